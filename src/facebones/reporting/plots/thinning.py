"""Steps of millions of points, thinned for a picture without a visible change."""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

COLUMNS = 2000  # more than a picture has dots from left to right


def decades(lowest: float, highest: float = 1.0) -> FloatArray:
    """Powers of ten from `lowest` to `highest`, both included, as the numbers that are written 1e-3, 1e-2 ..."""
    first, last = int(np.floor(np.log10(lowest))), int(np.ceil(np.log10(highest)))
    powers = np.array([float(f"1e{exponent}") for exponent in range(first, last + 1)])
    return powers[(powers >= lowest) & (powers <= highest)]


def thin_steps(
    x_K: npt.NDArray[np.floating[Any]], y_K: npt.NDArray[np.floating[Any]], lowest: float
) -> tuple[FloatArray, FloatArray]:
    """Choose the corners that are seen on a logarithmic axis from `lowest` to 1.

    The steps hold the height y_k from x_k up to the next x. At the edges of COLUMNS equally wide columns and at each
    power of ten they are what they were, exactly; in between they move sideways by less than a column.

    Args:
        x_K: (K,) never falling, not above 1.
        y_K: (K,) heights.
        lowest: where the axis begins, above 0 and below 1.

    Returns:
        x and y of the corners, each (M,), M <= COLUMNS + number of decades; the first x is at least `lowest`.
    """
    edges = np.union1d(np.geomspace(lowest, 1.0, COLUMNS), decades(lowest))
    last_up_to = np.unique(np.searchsorted(x_K, edges, side="right") - 1)
    last_up_to = last_up_to[last_up_to >= 0]
    x, y = (np.asarray(values[last_up_to], dtype=np.float64) for values in (x_K, y_K))
    corner = np.ones(x.size, dtype=np.bool_)
    corner[1:-1] = y[1:-1] != y[:-2]
    return np.maximum(x, lowest)[corner], y[corner]


def height_at(x_K: npt.NDArray[np.floating[Any]], y_K: npt.NDArray[np.floating[Any]], x: float) -> float | None:
    """Height of the steps at x; None before the first of them."""
    index = int(np.searchsorted(x_K, x, side="right")) - 1
    return float(y_K[index]) if index >= 0 else None
