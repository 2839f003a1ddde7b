"""A few of many, to look at instead of all."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def evenly(values: Sequence[Item], most: int) -> list[Item]:
    """Choose up to `most` of the values, evenly spaced, the first and the last among them.

    >>> evenly("abcdefghi", 3)
    ['a', 'e', 'i']
    >>> evenly("ab", 3)
    ['a', 'b']
    """
    places = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(np.int64)
    return [values[place] for place in places.tolist()]
