"""Identities that come as names or as numbers, from the data or from a list of keys beside them, as labels from 0."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facebones.data.text_lists import line_blocks, shown
from facebones.errors import DataError, some

Integers = npt.NDArray[np.int64]

LARGEST_LABEL = 2**62
LIST_ENDING = ".txt"
USUAL_LISTS = ("labels.txt", "train.txt")
MOST_DIGITS = 18


def number_labels(labels: Sequence[int | bytes], describe: Callable[[int], str]) -> tuple[Integers, list[str] | None]:
    """Number the identities of images.

    Args:
        labels: (N,) whole numbers, or names, which may all be numbers in text.
        describe: names an image, for errors.

    Returns:
        (N,) the numbers as they are, and None; or the place of each name in the order of the names, and the names.

    Raises:
        DataError: a label is below 0, or some are names and some are numbers.

    >>> number_labels([b"bo", b"ann", b"bo"], str)
    (array([1, 0, 1]), ['ann', 'bo'])
    >>> number_labels([b"7", b"3"], str)
    (array([7, 3]), None)
    """
    kinds = {type(label) for label in labels}
    if len(kinds) > 1:
        other = next(index for index, label in enumerate(labels) if type(label) is not type(labels[0]))
        raise DataError(f"{describe(other)}: label {labels[other]!r:.60}, where others are like {labels[0]!r:.60}")
    names = [label for label in labels if isinstance(label, bytes)]
    if names and not all(name.isdigit() and len(name) <= MOST_DIGITS for name in names):
        order = sorted(set(names))
        place = {name: number for number, name in enumerate(order)}
        numbers = np.fromiter(map(place.__getitem__, names), np.int64, len(names))
        return numbers, [name.decode("utf-8", "backslashreplace") for name in order]
    numbered = list(map(int, labels))
    for index, label in enumerate(numbered):
        if not 0 <= label <= LARGEST_LABEL:
            raise DataError(f"{describe(index)}: label {label}; a label is a whole number from 0, or a name")
    return np.array(numbered, np.int64), None


def find_key_list(path: Path) -> Path | None:
    """Find the list of keys and labels of a database: in its folder, or beside its file with the ending .txt.

    Raises:
        DataError: there are several, and none has a usual name.
    """
    if path.is_file():
        beside = path.with_suffix(LIST_ENDING)
        return beside if beside.is_file() else None
    found = sorted(each for each in path.iterdir() if each.suffix.lower() == LIST_ENDING and each.is_file())
    usual = [each for each in found if each.name in USUAL_LISTS]
    if len(found) > 1 and len(usual) != 1:
        names = some([each.name for each in found])
        raise DataError(f"{path}: {len(found)} text files ({names}); name the list of keys and labels {USUAL_LISTS[0]}")
    return next(iter(usual or found), None)


def read_key_list(path: Path) -> dict[bytes, bytes]:
    """Read a list with a line `key label` for each image; the last blank, tab or comma separates them.

    Raises:
        DataError: the list cannot be read, a line is no key and label, or a key is there twice; names the line.
    """
    label_of: dict[bytes, bytes] = {}
    for first, block in line_blocks(path):
        for number, line in zip(itertools.count(first), block.splitlines(), strict=False):
            fields = _split(line)
            if not all(fields):
                raise DataError(f"{path}, line {number}: {shown(line)} is not 'key label'; correct or restore the list")
            key, label = fields
            if label_of.setdefault(key, label) is not label:
                raise DataError(f"{path}, line {number}: key {shown(key)} a second time; correct or restore the list")
    return label_of


def _split(line: bytes) -> Iterable[bytes]:
    """Key and label of a line; one of them is empty if there is only one."""
    line = line.strip()
    place = max(line.rfind(blank) for blank in (b" ", b"\t", b","))
    return line[: max(place, 0)].rstrip(b" \t,"), line[place + 1 :]
