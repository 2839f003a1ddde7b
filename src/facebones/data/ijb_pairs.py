"""Labelled pairs of templates from the IJB lists, and scores for them from other programs."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from facebones.data.text_lists import (
    IntArray,
    blame_line,
    has_columns,
    is_whole_number,
    line_blocks,
    whole_numbers,
)
from facebones.errors import DataError
from facebones.system.files import map_array

TARGETS = ("ijbb", "ijbc")
PAIR_LIST = "template_pair_label.txt"
# Below this number, a table of all ids is small, and much faster than sorting tens of millions of ids.
LARGEST_TABLE = 1 << 26

SubjectArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Labelled(Protocol):
    """An object with labelled pairs: a list of pairs, or a template set."""

    @property
    def is_same(self) -> BoolArray:
        """(P,) bool, True for a genuine pair."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class PairLabels:
    """Pairs of templates, each of one subject or of two.

    Attributes:
        path: the list.
        template_ids: (T,) int32, ascending: the templates in the list.
        pair_a: (P,) int32, index into `template_ids`.
        pair_b: (P,) int32, index into `template_ids`.
        is_same: (P,) bool, True for a genuine pair.
    """

    path: Path
    template_ids: IntArray
    pair_a: IntArray
    pair_b: IntArray
    is_same: BoolArray

    def __len__(self) -> int:
        """Number of pairs, P."""
        return self.is_same.size

    def identities(self) -> SubjectArray:
        """(T,) int64 subject of each template by the genuine pairs; -1 for a template without a genuine pair."""
        return joined_templates(self.template_ids.size, self.pair_a, self.pair_b, self.is_same)


def read_pair_labels(path: str | os.PathLike[str]) -> PairLabels:
    """Read a list of template pairs, lines `template template 0|1`.

    Args:
        path: the list, a `meta` folder, or the folder that holds one.

    Raises:
        DataError: there is no list, or a line is broken; names the line.
    """
    path = _pair_list(Path(path))
    blocks: list[IntArray] = []
    labels: list[BoolArray] = []
    for first, block in line_blocks(path):
        numbers = whole_numbers(block) if has_columns(block, 3) else None
        if numbers is None or numbers[2::3].max() > 1:
            blame_line(path, first, block, _is_pair, "'template template 0|1'")
        rows = numbers.reshape(-1, 3)
        blocks.append(rows[:, :2].T.copy())
        labels.append(rows[:, 2] == 1)
    template_ids, (pair_a, pair_b) = _numbered(np.concatenate(blocks, axis=1))
    return PairLabels(
        path=path, template_ids=template_ids, pair_a=pair_a, pair_b=pair_b, is_same=np.concatenate(labels)
    )


def read_scores(path: str | os.PathLike[str], pairs: Labelled) -> npt.NDArray[np.floating[Any]]:
    """Read the scores of P pairs from a `.npy` file, in the order of the list.

    Args:
        path: a file of (P,) or (P, 1) numbers; a higher score means more alike.
        pairs: the scored pairs.

    Returns:
        (P,) float32, or float64 if the file has larger numbers than float32.

    Raises:
        DataError: the file is missing, holds no numbers or not P of them, or a score is not finite.
    """
    try:
        # Mapped, not read: a file with a huge shape is refused before it takes memory.
        found = map_array(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or 'it ends early'}; check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: no .npy file of numbers; write it with numpy.save") from error
    if found.dtype.kind not in "fiu":
        raise DataError(f"{path}: no .npy file of numbers; write it with numpy.save")
    count = pairs.is_same.size
    if found.shape not in {(count,), (count, 1)}:
        shape = " x ".join(map(str, found.shape)) or "a single number as"
        raise DataError(f"{path}: {shape} scores for {count} pairs; give one score a pair, in the order of the list")
    single = found.dtype.kind == "f" and found.dtype.itemsize <= 4
    scores: npt.NDArray[np.floating[Any]] = found.reshape(-1).astype(np.float32 if single else np.float64)
    finite = np.isfinite(scores)
    if not finite.all():
        index, wrong = int(np.argmin(finite)), count - np.count_nonzero(finite)
        raise DataError(f"{path}: {wrong} of {count} scores are not finite, the first at index {index}; correct them")
    return scores


def joined_templates(templates: int, pair_a: IntArray, pair_b: IntArray, is_same: BoolArray) -> SubjectArray:
    """Join templates to subjects: the connected components of the graph of genuine pairs.

    Each template takes the smallest number of its neighbours, then the number of that template, until nothing changes.

    Returns:
        (T,) int64 subject, numbered from 0 by first template; -1 for a template without a genuine pair.

    >>> first, second = np.array([0, 3], np.int32), np.array([2, 1], np.int32)
    >>> joined_templates(4, first, second, np.array([True, False])).tolist()
    [0, -1, 0, -1]
    """
    one, other = pair_a[is_same], pair_b[is_same]
    smallest = np.arange(templates)
    while True:
        before = smallest.copy()
        ends = before[one], before[other]
        lower = np.minimum(*ends)
        for end in ends:
            np.minimum.at(smallest, end, lower)
        smallest = smallest[smallest]
        if np.array_equal(smallest, before):
            break
    subjects = np.full(templates, -1, dtype=np.int64)
    known = np.unique(np.concatenate([one, other]))
    subjects[known] = np.unique(smallest[known], return_inverse=True)[1]
    return subjects


def _pair_list(path: Path) -> Path:
    """The list itself: the path, or the only list in the folder or its `meta`."""
    if not path.is_dir():
        return path
    candidates = [folder / f"{name}_{PAIR_LIST}" for folder in (path / "meta", path) for name in TARGETS]
    found = [candidate for candidate in candidates if candidate.exists()]
    if len(found) != 1:
        reason = f"holds {found[0].name} and {found[1].name}; name the file" if found else f"holds no ijbX_{PAIR_LIST}"
        raise DataError(f"{path}: {reason}" + ("" if found else ", nor does a meta folder in it; name the file"))
    return found[0]


def _is_pair(fields: list[bytes]) -> bool:
    return len(fields) == 3 and all(map(is_whole_number, fields)) and int(fields[2]) <= 1


def _numbered(ids: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct ids, ascending, and the index of each id among them, in the shape of `ids`."""
    largest = int(ids.max())
    if largest >= LARGEST_TABLE:
        distinct, place = np.unique(ids, return_inverse=True)
        return distinct, place.reshape(ids.shape).astype(np.int32)
    occurs = np.zeros(largest + 1, dtype=np.bool_)
    for row in ids:
        occurs[row] = True
    return np.flatnonzero(occurs).astype(np.int32), (np.cumsum(occurs, dtype=np.int32) - 1)[ids]
