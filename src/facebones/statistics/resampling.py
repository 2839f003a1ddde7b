"""Resampled data sets: how often each identity or pair is drawn, and the metrics of each replicate.

The units, identities or pairs, are drawn with replacement. An outcome counts as often as its units were drawn; the
module `bootstrap` explains the weights. A replicate of a curve (TAR at a FAR, AUC, EER) needs only the weight in each
cell of scores: the impostor scores, from the highest down, are cut into cells of one rank each up to rank
1 / RESOLUTION, and of RESOLUTION of their rank below. So the FAR of a replicate is known to half a percent of itself,
and the time does not depend on the number of pairs. Equal scores share a cell.
"""

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
BLOCK = 1 << 22  # outcomes counted at once, to bound memory
DENSE_TABLE = 1 << 25  # up to this size, a table of all pairs of persons is faster than sorting its entries
RESOLUTION = 0.005
CHUNK = 128  # replicates counted at once, to bound memory
TOLERANCE = 1e-9  # rounding must not miss a target that is met exactly, such as 3 of 3000


@dataclass(frozen=True, eq=False)
class Kind:
    """The outcomes of one kind, genuine or impostor, and the units that each depends on.

    Attributes:
        rows: (N,) indices into the input.
        units: one or two arrays (N,) of unit numbers.
        cell: (N,) index of the pair of persons; None where an outcome depends on one unit.
    """

    rows: IntArray
    units: tuple[IntArray, ...]
    cell: IntArray | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """How often each unit is drawn, and which outcomes depend on it.

    Attributes:
        counts: (R + 1, U) how often each unit is drawn; the first row is all ones: the data itself.
        genuine: genuine pairs, or searches whose subject is in the gallery.
        impostors: impostor pairs, or searches whose subject is not in the gallery.
        resampled: "identities" or "pairs".
        units: number of identities or pairs, before grouping.
        genuine_units: number of units with genuine pairs.
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
    """Plan the resampling of pairs (P,) by identities, or by pairs where `identities` is None.

    When pairs are resampled, genuine and impostor pairs are drawn separately.

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
    """Plan the resampling of probes (N,) by their subjects.

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
    """Total weight of the outcomes in each of L columns, for any draw of the units.

    An outcome of the units i and j weighs c_i + c_j - 1; one of the unit i weighs c_i. Both are linear in the counts c,
    so one table (U, L) of sums and a matrix product give the totals of all replicates.
    """

    def __init__(self, kind: Kind, column_N: IntArray, units: int, columns: int) -> None:
        self.surplus = (len(kind.units) - 1) * np.bincount(column_N, minlength=columns)  # (L,)
        table = np.zeros(units * columns, dtype=np.float32)  # exact up to 2^24
        for start in range(0, column_N.size, BLOCK):
            block = slice(start, start + BLOCK)
            for unit in kind.units:
                place = unit[block].astype(np.int64) * columns + column_N[block]
                table += np.bincount(place, minlength=table.size)
        self.table = table.reshape(units, columns)

    def __call__(self, counts_RU: npt.NDArray[np.float32]) -> FloatArray:
        """Return the totals (R, L) of R draws."""
        return (counts_RU @ self.table).astype(np.float64) - self.surplus


def excess_covariance(kind: Kind, influences: Sequence[npt.NDArray[np.floating[Any]]]) -> FloatArray:
    """Covariance that the replicates of M means overestimate.

    It is the covariance of the sums over pairs of persons, which the weights count once for each person.

    Args:
        kind: N outcomes.
        influences: M arrays (N,): the influence of each outcome on each of the M means, to first order.

    Returns:
        (M, M); zeros where every outcome depends on one unit.
    """
    models = len(influences)
    if kind.cell is None or not kind.rows.size:
        return np.zeros((models, models))
    sums = [np.bincount(kind.cell, influence - influence.mean()).astype(np.float32) for influence in influences]
    return np.array([[np.dot(one, other) for other in sums] for one in sums], dtype=np.float64) / kind.rows.size**2


@dataclass(frozen=True, eq=False)
class CurveReplicates:
    """Metrics of one model on each replicate; F = TAR at each target, then AUC, then EER.

    Attributes:
        values: (R + 1, F) of the data (first row, up to the resolution) and of each resampled data set.
        smooth_eer: (R + 1,) the EER to first order, from the rates at the threshold of the data.
        influence: (F, K) influence of an impostor pair in each score cell on each metric, to first order.
        cell: (I,) score cell of each impostor pair.
    """

    values: FloatArray
    smooth_eer: FloatArray
    influence: FloatArray
    cell: IntArray


def curve_replicates(
    design: Design, scores_P: npt.NDArray[np.floating[Any]], far_targets: Sequence[float]
) -> CurveReplicates:
    """Compute the metrics of each replicate from scores (P,); both kinds of pairs must be present."""
    cell, slot, cells = _score_cells(scores_P[design.impostors.rows], scores_P[design.genuine.rows], far_targets)
    units = design.counts.shape[1]
    impostors = ColumnTotals(design.impostors, cell, units, cells)
    genuine = ColumnTotals(design.genuine, slot, units, 2 * cells + 1)
    observed = _rates(impostors, genuine, design.counts[:1])
    fixed = _fixed_slots(*observed, far_targets)
    values, far_fixed, tar_fixed = [], [], []
    for start in range(0, len(design.counts), CHUNK):
        far, tar = _rates(impostors, genuine, design.counts[start : start + CHUNK])
        values.append(_metrics(far, tar, far_targets))
        far_fixed.append(far[:, _cells_up_to(fixed)])
        tar_fixed.append(tar[:, fixed])
    drawn, far, tar = np.concatenate(values), np.concatenate(far_fixed), np.concatenate(tar_fixed)
    slope = _slopes(drawn, far, tar)
    smooth_eer = slope[-1] * far[:, -1] + (1 - slope[-1]) * (1 - tar[:, -1])
    return CurveReplicates(drawn, smooth_eer, _influence(slope, fixed, observed[1][0]), cell)


def _score_cells(
    impostors_I: npt.NDArray[np.floating[Any]],
    genuine_G: npt.NDArray[np.floating[Any]],
    far_targets: Sequence[float],
) -> tuple[IntArray, IntArray, int]:
    """Cut the impostor scores into K cells, and find the slot of each genuine score among them.

    Cells are numbered from the highest score down. Slot 2k is the gap above cell k, slot 2k + 1 the cell itself.

    Returns:
        (I,) cells, (G,) slots and K.
    """
    ordered = np.sort(impostors_I)
    tops = np.unique(ordered[ordered.size - 1 - _cell_ranks(ordered.size, far_targets)])  # (K,) rising
    bottoms = ordered[np.append(0, np.searchsorted(ordered, tops[:-1], side="right"))]
    cell = tops.size - 1 - np.searchsorted(tops, impostors_I, side="left").astype(np.int32)
    below = np.searchsorted(tops, genuine_G, side="left")
    inside = (below < tops.size) & (genuine_G >= bottoms[np.minimum(below, tops.size - 1)])
    return cell, (2 * (tops.size - below) - inside).astype(np.int32), tops.size


def _cell_ranks(impostors: int, far_targets: Sequence[float]) -> IntArray:
    """First rank of each cell, from 0; a cell starts at each target, so that the TAR of the data is exact."""
    ranks, rank = [], 0
    while rank < impostors:
        ranks.append(rank)
        rank += max(1, int(rank * RESOLUTION))
    targets = [int(far * impostors * (1 + TOLERANCE)) for far in far_targets]
    ranks += [target for target in targets if target < impostors]
    return np.unique(np.array(ranks, dtype=np.int64))


def _rates(
    impostors: ColumnTotals, genuine: ColumnTotals, counts: npt.NDArray[np.float32]
) -> tuple[FloatArray, FloatArray]:
    """FAR before cell 0 and after each cell (R, K + 1), and TAR after each slot (R, 2K + 1)."""
    far, tar = np.cumsum(impostors(counts), axis=1), np.cumsum(genuine(counts), axis=1)
    # With a handful of identities a replicate can have no weight at all: then it accepts nothing.
    far, tar = (rate / np.maximum(rate[:, -1:], 1.0) for rate in (far, tar))
    return np.pad(far, ((0, 0), (1, 0))), tar


def _cells_up_to(slot: Any) -> Any:
    """Number of cells up to a slot: its column in the FAR table."""
    return (slot + 1) // 2


def _metrics(far: FloatArray, tar: FloatArray, far_targets: Sequence[float]) -> FloatArray:
    """TAR at each target, AUC and EER of R replicates: (R, F)."""
    rows = np.arange(len(far))
    columns = [tar[rows, 2 * _first_excluded(far, target)] for target in far_targets]
    auc = np.einsum("rk,rk->r", np.diff(far, axis=1), tar[:, :-1:2] + tar[:, 1::2]) / 2
    return np.stack([*columns, auc, _equal_error_rates(far, tar)], axis=1)


def _first_excluded(far: FloatArray, target: float) -> IntArray:
    """First cell beyond the target (R,); K where all cells are within."""
    exceeds = far[:, 1:] > target * (1 + TOLERANCE)
    return np.asarray(np.where(exceeds.any(axis=1), exceeds.argmax(axis=1), exceeds.shape[1]))


def _crossing(far: FloatArray, tar: FloatArray) -> tuple[IntArray, FloatArray]:
    """First slot of each replicate where FAR >= 1 - TAR (R,), and FAR + TAR - 1 at all slots (R, 2K + 1)."""
    excess = far[:, _cells_up_to(np.arange(tar.shape[1]))] + tar - 1.0
    return (excess >= 0).argmax(axis=1), excess


def _equal_error_rates(far: FloatArray, tar: FloatArray) -> FloatArray:
    """Intersect FAR = 1 - TAR with the line between two slots, as `curves.equal_error_rate` does: (R,)."""
    after, excess = _crossing(far, tar)
    rows, before = np.arange(len(far)), np.maximum(after - 1, 0)
    low, high = far[rows, _cells_up_to(before)], far[rows, _cells_up_to(after)]
    rise = excess[rows, after] - excess[rows, before]
    weight = np.divide(-excess[rows, before], rise, out=np.zeros(len(rows)), where=rise > 0)
    return np.asarray(np.where(after > 0, low + weight * (high - low), 0.0))


def _fixed_slots(far: FloatArray, tar: FloatArray, far_targets: Sequence[float]) -> IntArray:
    """Slots of the thresholds of the data for each target and for the EER: (F - 1,)."""
    targets = [2 * _first_excluded(far, target)[0] for target in far_targets]
    return np.array([*targets, _crossing(far, tar)[0][0]])


def _slopes(values: FloatArray, far_fixed: FloatArray, tar_fixed: FloatArray) -> FloatArray:
    """Slope of TAR at each target over FAR, and of the EER over FAR: (F - 1,), estimated from the replicates.

    To first order, the TAR of a replicate at a target differs from its TAR at the threshold of the data by slope x the
    deviation of its FAR there; its EER is slope x FAR + (1 - slope) x (1 - TAR) at the threshold of the data.
    """
    far, tar = far_fixed - far_fixed.mean(axis=0), tar_fixed - tar_fixed.mean(axis=0)
    value = np.delete(values, -2, axis=1)
    value = value - value.mean(axis=0)
    explained, by = value - tar, far.copy()
    explained[:, -1], by[:, -1] = value[:, -1] + tar[:, -1], far[:, -1] + tar[:, -1]
    square = np.sum(by * by, axis=0)
    slope: FloatArray = np.divide(np.sum(explained * by, axis=0), square, out=np.zeros(square.size), where=square > 0)
    return slope


def _influence(slope: FloatArray, fixed: IntArray, tar: FloatArray) -> FloatArray:
    """Influence of an impostor pair in each cell on each metric: (F, K)."""
    cells = np.arange(tar.size // 2)
    rates = slope[:, None] * (cells < _cells_up_to(fixed)[:, None])
    return np.insert(rates, -1, (tar[:-1:2] + tar[1::2]) / 2, axis=0)


def _numbered(identities: tuple[npt.ArrayLike, npt.ArrayLike], is_same: BoolArray) -> tuple[IntArray, IntArray, int]:
    """Number the persons from 0 without gaps: (P,), (P,) and their count."""
    first, second = (np.asarray(side) for side in identities)
    if first.shape != is_same.shape or second.shape != is_same.shape:
        raise DataError(f"identities: shapes {first.shape} and {second.shape} for {is_same.size} pairs; give one each")
    for side in (first, second):
        _check_known(side, "pair")
    if (wrong := (first == second) != is_same).any():
        pair = int(np.argmax(wrong))
        label = "genuine" if is_same[pair] else "impostor"
        raise DataError(
            f"pair {pair}: labelled {label}, but its identities are {first[pair]} and {second[pair]}; correct one"
        )
    lowest = min(first.min(), second.min())
    span = int(max(first.max(), second.max()) - lowest) + 1
    if span > DENSE_TABLE:  # a table of such numbers would be too large
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
        raise DataError(f"{what}: {units} cannot be resampled; give data of two or more")


def _cell(first: IntArray, second: IntArray, persons: int) -> IntArray:
    """Index of each unordered pair of persons: (N,)."""
    cell = np.minimum(first, second).astype(np.int64) * persons + np.maximum(first, second)
    if persons**2 <= DENSE_TABLE:
        return cell.astype(np.int32)
    return np.unique(cell, return_inverse=True)[1]


def _grouped(units: int, random: np.random.Generator) -> IntArray:
    """Group of each unit (N,): the unit itself, or one of MOST_UNITS random groups where there are more units."""
    if units <= MOST_UNITS:
        return np.arange(units, dtype=np.int32)
    return random.permutation(units).astype(np.int32) % MOST_UNITS


def _counts(strata: Sequence[int], replicates: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw the units of each stratum with replacement: counts (R + 1, U), ones in the first row."""
    if replicates < 2:
        raise ValueError(f"replicates: {replicates}; a spread needs 2 or more")
    counts = np.ones((replicates + 1, sum(strata)), dtype=np.float32)
    start = 0
    for units in strata:
        for row in counts[1:]:
            row[start : start + units] = np.bincount(random.integers(units, size=units), minlength=units)
        start += units
    return counts
