"""TAR at a FAR, AUC and EER of one model, on the data and on every redrawn data set.

Impostor scores, ordered from the highest, are cut into cells, and a replicate needs nothing but the weight in each:
up to rank 1 / RESOLUTION a cell is one rank, below it is RESOLUTION of its rank wide. So the FAR of a replicate is
known to half a percent of itself, and the time does not depend on the number of pairs. Equal scores share a cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.statistics.resampling import ColumnTotals, Design, FloatArray, IntArray

RESOLUTION = 0.005
CHUNK = 128  # replicates that are counted at once, which bounds the memory
TOLERANCE = 1e-9  # a target that is met exactly, such as 3 of 3000, is not missed by rounding


@dataclass(frozen=True, eq=False)
class CurveReplicates:
    """Figures of one model; F = TAR at each target, then AUC, then EER.

    Attributes:
        figures: (R + 1, F) of the data (up to the resolution, in the first row) and of each redrawn data set.
        smooth_eer: (R + 1,) the EER to first order: from the rates at the data's own threshold.
        influence: (F, K) what an impostor pair in each score cell adds to each figure, to first order.
        cell: (I,) score cell of each impostor pair.
    """

    figures: FloatArray
    smooth_eer: FloatArray
    influence: FloatArray
    cell: IntArray


def curve_replicates(
    design: Design, scores_P: npt.NDArray[np.floating[Any]], far_targets: Sequence[float]
) -> CurveReplicates:
    """Compute the figures of each replicate from scores (P,); both kinds of pairs must be there."""
    cell, slot, cells = _score_cells(scores_P[design.impostors.rows], scores_P[design.genuine.rows], far_targets)
    units = design.counts.shape[1]
    impostors = ColumnTotals(design.impostors, cell, units, cells)
    genuine = ColumnTotals(design.genuine, slot, units, 2 * cells + 1)
    observed = _rates(impostors, genuine, design.counts[:1])
    fixed = _fixed_slots(*observed, far_targets)
    figures, far_fixed, tar_fixed = [], [], []
    for start in range(0, len(design.counts), CHUNK):
        far, tar = _rates(impostors, genuine, design.counts[start : start + CHUNK])
        figures.append(_figures(far, tar, far_targets))
        far_fixed.append(far[:, _cells_up_to(fixed)])
        tar_fixed.append(tar[:, fixed])
    drawn, far, tar = np.concatenate(figures), np.concatenate(far_fixed), np.concatenate(tar_fixed)
    slope = _slopes(drawn, far, tar)
    smooth_eer = slope[-1] * far[:, -1] + (1 - slope[-1]) * (1 - tar[:, -1])
    return CurveReplicates(drawn, smooth_eer, _influence(slope, fixed, observed[1][0]), cell)


def _score_cells(
    impostors_I: npt.NDArray[np.floating[Any]],
    genuine_G: npt.NDArray[np.floating[Any]],
    far_targets: Sequence[float],
) -> tuple[IntArray, IntArray, int]:
    """Cut the impostor scores into K cells, and find where the genuine scores lie among them.

    Cells are numbered from the highest scores on. Slot 2k is the gap above cell k, slot 2k + 1 the cell itself.

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
    """First rank of each cell, from 0; a cell starts at each target, so that the data's own TAR is exact."""
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
    # No weight at all, where a handful of identities is redrawn: such a replicate accepts nothing.
    far, tar = (rate / np.maximum(rate[:, -1:], 1.0) for rate in (far, tar))
    return np.pad(far, ((0, 0), (1, 0))), tar


def _cells_up_to(slot: Any) -> Any:
    """Count the cells from 0 to a slot: the column of FAR that belongs to it."""
    return (slot + 1) // 2


def _figures(far: FloatArray, tar: FloatArray, far_targets: Sequence[float]) -> FloatArray:
    """TAR at each target, AUC and EER of R replicates: (R, F)."""
    rows = np.arange(len(far))
    columns = [tar[rows, 2 * _first_excluded(far, target)] for target in far_targets]
    auc = np.einsum("rk,rk->r", np.diff(far, axis=1), tar[:, :-1:2] + tar[:, 1::2]) / 2
    return np.stack([*columns, auc, _equal_error_rates(far, tar)], axis=1)


def _first_excluded(far: FloatArray, target: float) -> IntArray:
    """First cell that the target does not admit (R,); K where it admits all."""
    exceeds = far[:, 1:] > target * (1 + TOLERANCE)
    return np.asarray(np.where(exceeds.any(axis=1), exceeds.argmax(axis=1), exceeds.shape[1]))


def _crossing(far: FloatArray, tar: FloatArray) -> tuple[IntArray, FloatArray]:
    """First slot of each replicate where FAR >= 1 - TAR (R,), and FAR + TAR - 1 at all slots (R, 2K + 1)."""
    excess = far[:, _cells_up_to(np.arange(tar.shape[1]))] + tar - 1.0
    return (excess >= 0).argmax(axis=1), excess


def _equal_error_rates(far: FloatArray, tar: FloatArray) -> FloatArray:
    """Meet FAR = 1 - TAR on the line between two slots, as `curves.equal_error_rate` does: (R,)."""
    after, excess = _crossing(far, tar)
    rows, before = np.arange(len(far)), np.maximum(after - 1, 0)
    low, high = far[rows, _cells_up_to(before)], far[rows, _cells_up_to(after)]
    rise = excess[rows, after] - excess[rows, before]
    weight = np.divide(-excess[rows, before], rise, out=np.zeros(len(rows)), where=rise > 0)
    return np.asarray(np.where(after > 0, low + weight * (high - low), 0.0))


def _fixed_slots(far: FloatArray, tar: FloatArray, far_targets: Sequence[float]) -> IntArray:
    """Slots of the data's own thresholds for each target and for the EER: (F - 1,)."""
    targets = [2 * _first_excluded(far, target)[0] for target in far_targets]
    return np.array([*targets, _crossing(far, tar)[0][0]])


def _slopes(figures: FloatArray, far_fixed: FloatArray, tar_fixed: FloatArray) -> FloatArray:
    """Slope of TAR at each target over FAR, and of the EER over FAR: (F - 1,), read off the replicates.

    To first order a replicate's TAR at a target differs from its TAR at the data's threshold by slope x the deviation
    of its FAR there, and its EER is slope x FAR + (1 - slope) x (1 - TAR) at the data's threshold.
    """
    far, tar = far_fixed - far_fixed.mean(axis=0), tar_fixed - tar_fixed.mean(axis=0)
    value = np.delete(figures, -2, axis=1)
    value = value - value.mean(axis=0)
    explained, by = value - tar, far.copy()
    explained[:, -1], by[:, -1] = value[:, -1] + tar[:, -1], far[:, -1] + tar[:, -1]
    square = np.sum(by * by, axis=0)
    slope: FloatArray = np.divide(np.sum(explained * by, axis=0), square, out=np.zeros(square.size), where=square > 0)
    return slope


def _influence(slope: FloatArray, fixed: IntArray, tar: FloatArray) -> FloatArray:
    """What an impostor pair in each cell adds to each figure: (F, K)."""
    cells = np.arange(tar.size // 2)
    rates = slope[:, None] * (cells < _cells_up_to(fixed)[:, None])
    return np.insert(rates, -1, (tar[:-1:2] + tar[1::2]) / 2, axis=0)
