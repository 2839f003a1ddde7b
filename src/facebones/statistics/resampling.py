"""Drawing identities, or pairs, again and again, and counting what hangs on them; `bootstrap` says why it is so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

MOST_UNITS = 4096
BLOCK = 1 << 22  # outcomes that are counted at once, which bounds the memory
DENSE_TABLE = 1 << 25  # up to this size a table of two persons is cheaper than sorting its entries


@dataclass(frozen=True, eq=False)
class Kind:
    """The outcomes of one kind: where they stand in the input, and the units that each hangs on.

    Attributes:
        rows: (N,) indices into the input.
        units: one or two arrays (N,) of unit numbers.
        cell: (N,) number of the two persons' cell in a table; None where an outcome hangs on one unit.
    """

    rows: IntArray
    units: tuple[IntArray, ...]
    cell: IntArray | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """What is drawn how often, and which outcomes hang on it.

    Attributes:
        counts: (R + 1, U) how often each unit is drawn; the first row is all ones: the data itself.
        genuine: genuine pairs, or searches for somebody in the gallery.
        impostors: impostor pairs, or searches for somebody who is not.
        resampled: "identities" or "pairs".
        units: number of identities or pairs, before they were grouped.
        genuine_units: how many of them have genuine pairs.
    """

    counts: npt.NDArray[np.float32]
    genuine: Kind
    impostors: Kind
    resampled: str
    units: int
    genuine_units: int

    @property
    def outcomes(self) -> int:
        """Number of pairs or probes."""
        return self.genuine.rows.size + self.impostors.rows.size


def pairs_design(
    is_same_P: npt.ArrayLike,
    identities: tuple[npt.ArrayLike, npt.ArrayLike] | None,
    replicates: int,
    seed: int,
) -> Design:
    """Plan the redrawing of pairs (P,) by their identities, or by themselves where those are None.

    Genuine and impostor pairs are drawn apart where pairs are drawn.

    Raises:
        DataError: shapes that do not fit, an unknown identity (below 0), labels that contradict the identities, or
            fewer than two identities or pairs.
    """
    is_same = np.asarray(is_same_P)
    if is_same.ndim != 1 or is_same.dtype != np.bool_:
        raise DataError(f"labels: {is_same.dtype} of shape {is_same.shape}; give one boolean for each pair")
    random = np.random.default_rng(seed)
    genuine, impostors = np.flatnonzero(is_same), np.flatnonzero(~is_same)
    if identities is None:
        _check_enough(is_same.size, "pairs")
        groups = [_grouped(rows.size, random) for rows in (genuine, impostors)]
        sizes = [min(rows.size, MOST_UNITS) for rows in (genuine, impostors)]
        return Design(
            counts=_counts(sizes, replicates, random),
            genuine=Kind(genuine, (groups[0],)),
            impostors=Kind(impostors, (groups[1] + sizes[0],)),
            resampled="pairs",
            units=is_same.size,
            genuine_units=genuine.size,
        )
    first, second, persons = _numbered(identities, is_same)
    _check_enough(persons, "identities")
    group = _grouped(persons, random)
    return Design(
        counts=_counts([min(persons, MOST_UNITS)], replicates, random),
        genuine=Kind(genuine, (group[first[genuine]],)),
        impostors=Kind(
            impostors,
            (group[first[impostors]], group[second[impostors]]),
            _cell(first[impostors], second[impostors], persons),
        ),
        resampled="identities",
        units=persons,
        genuine_units=int(np.count_nonzero(np.bincount(first[genuine]))),
    )


def probes_design(is_impostor_N: npt.ArrayLike, subject_N: npt.ArrayLike, replicates: int, seed: int) -> Design:
    """Plan the redrawing of probes (N,) by their subjects; every probe hangs on one.

    Raises:
        DataError: shapes that do not fit, an unknown subject (below 0), or fewer than two subjects.
    """
    is_impostor, subject = np.asarray(is_impostor_N, dtype=np.bool_), np.asarray(subject_N)
    if subject.ndim != 1 or is_impostor.shape != subject.shape:
        raise DataError(f"subjects: shape {subject.shape} for {is_impostor.shape} probes; give one subject for each")
    _check_known(subject, "probe")
    names, number = np.unique(subject, return_inverse=True)
    _check_enough(names.size, "identities")
    random = np.random.default_rng(seed)
    group = _grouped(names.size, random)
    mated, unmated = np.flatnonzero(~is_impostor), np.flatnonzero(is_impostor)
    return Design(
        counts=_counts([min(names.size, MOST_UNITS)], replicates, random),
        genuine=Kind(mated, (group[number[mated]],)),
        impostors=Kind(unmated, (group[number[unmated]],)),
        resampled="identities",
        units=names.size,
        genuine_units=int(np.unique(number[mated]).size),
    )


class ColumnTotals:
    """Total weight of a kind's outcomes in each of L columns, for any draw of the units.

    An outcome that hangs on the units i and j weighs c_i + c_j - 1; one that hangs on i alone weighs c_i. Both are
    linear in the counts c, so one table of (U, L) sums and a matrix product do for all replicates.
    """

    def __init__(self, kind: Kind, column_N: IntArray, units: int, columns: int) -> None:
        self.surplus = (len(kind.units) - 1) * np.bincount(column_N, minlength=columns)  # (L,)
        table = np.zeros(units * columns, dtype=np.float32)  # exact up to 2^24, and fast to multiply
        for start in range(0, column_N.size, BLOCK):
            block = slice(start, start + BLOCK)
            for unit in kind.units:
                place = unit[block].astype(np.int64) * columns + column_N[block]
                table += np.bincount(place, minlength=table.size)
        self.table = table.reshape(units, columns)

    def __call__(self, counts_RU: npt.NDArray[np.float32]) -> FloatArray:
        """Give the (R, L) totals of R draws."""
        return (counts_RU @ self.table).astype(np.float64) - self.surplus


def excess_covariance(kind: Kind, influences: Sequence[npt.NDArray[np.floating[Any]]]) -> FloatArray:
    """Covariance that the replicates of M means over a kind's outcomes have too much.

    It is the covariance of the sums in the cells of the table of two persons, which is counted once for each of them.

    Args:
        kind: N outcomes.
        influences: M arrays (N,): what the M means are means of, to first order.

    Returns:
        (M, M); zeros where every outcome hangs on one unit.
    """
    models = len(influences)
    if kind.cell is None or not kind.rows.size:
        return np.zeros((models, models))
    sums = [np.bincount(kind.cell, influence - influence.mean()).astype(np.float32) for influence in influences]
    return np.array([[np.dot(one, other) for other in sums] for one in sums], dtype=np.float64) / kind.rows.size**2


def _numbered(identities: tuple[npt.ArrayLike, npt.ArrayLike], is_same: BoolArray) -> tuple[IntArray, IntArray, int]:
    """Number the persons from 0 without gaps: (P,), (P,) and how many there are."""
    first, second = (np.asarray(side) for side in identities)
    if first.shape != is_same.shape or second.shape != is_same.shape:
        raise DataError(f"identities: shapes {first.shape} and {second.shape} for {is_same.size} pairs; give one each")
    for side in (first, second):
        _check_known(side, "pair")
    if (wrong := (first == second) != is_same).any():
        pair = int(np.argmax(wrong))
        label = "genuine" if is_same[pair] else "impostor"
        raise DataError(
            f"pair {pair}: labelled {label}, but its identities are {first[pair]} and {second[pair]}; mend either"
        )
    lowest = min(first.min(), second.min())
    span = int(max(first.max(), second.max()) - lowest) + 1
    if span > DENSE_TABLE:  # far-flung numbers: sorting them is slow, but needs no table
        names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
        return numbers[: first.size], numbers[first.size :], names.size
    present = np.zeros(span, dtype=np.bool_)
    present[first - lowest] = present[second - lowest] = True
    number = (np.cumsum(present) - 1).astype(np.int32)
    return number[first - lowest], number[second - lowest], int(present.sum())


def _check_known(identity: npt.NDArray[Any], what: str) -> None:
    if not np.issubdtype(identity.dtype, np.integer):
        raise DataError(f"identities: {identity.dtype}; give whole numbers from 0")
    if identity.size and identity.min() < 0:
        row = int(np.argmin(identity))
        raise DataError(f"{what} {row}: identity {identity[row]} is unknown; give all identities, or none")


def _check_enough(units: int, what: str) -> None:
    if units < 2:
        raise DataError(f"{units} {what} cannot be redrawn; give data of two {what} or more")


def _cell(first: IntArray, second: IntArray, persons: int) -> IntArray:
    """Number the cells of the symmetric table of two persons that the pairs (N,) fall into: (N,)."""
    cell = np.minimum(first, second).astype(np.int64) * persons + np.maximum(first, second)
    if persons**2 <= DENSE_TABLE:
        return cell.astype(np.int32)
    return np.unique(cell, return_inverse=True)[1]


def _grouped(units: int, random: np.random.Generator) -> IntArray:
    """Give each unit the number of its group (N,): itself, or where there are too many one of MOST_UNITS at random."""
    if units <= MOST_UNITS:
        return np.arange(units, dtype=np.int32)
    return random.permutation(units).astype(np.int32) % MOST_UNITS


def _counts(strata: Sequence[int], replicates: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw each stratum's units with replacement, as many as there are: (R + 1, U) counts, ones in the first row."""
    if replicates < 2:
        raise ValueError(f"replicates: {replicates} show no spread; give 2 or more")
    counts = np.ones((replicates + 1, sum(strata)), dtype=np.float32)
    start = 0
    for units in strata:
        for row in counts[1:]:
            row[start : start + units] = np.bincount(random.integers(units, size=units), minlength=units)
        start += units
    return counts
