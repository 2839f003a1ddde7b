"""Error versus discard: how many genuine pairs are still rejected once those of the lowest quality are left out.

The quality of a pair is the lower one of its two images. The threshold is fixed before anything is discarded, as in
operation, where a quality check comes before the comparison. At the discarded share r of the genuine pairs, FNMR(r) is
the share of the others that is rejected. Pairs of equal quality are discarded together in proportion, so that their
order has no influence; between two pairs the numbers are interpolated linearly. pAUC is the mean of FNMR(r) for r from
0 to a stated share: that of a quality that says nothing is FNMR(0), and the best possible discards the rejected pairs
first.

People are resampled where they are known. Replicates count pairs in at most CELLS cells of quality.

Sources: P. Grother, E. Tabassi, "Performance of Biometric Quality Measures", IEEE Transactions on Pattern Analysis and
Machine Intelligence 29 (2007); P. Grother, A. Hom, M. Ngan, K. Hanaoka, "FATE Part 11: Face Image Quality Vector
Assessment", NIST interagency report 8485 (2023); T. Schlett, C. Rathgeb, J. Tapia, C. Busch, "Considerations on the
Evaluation of Biometric Quality Assessment Algorithms", IEEE Transactions on Biometrics, Behavior, and Identity Science
(2023, arXiv 2303.13294), for the ranges of pAUC.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.statistics.bootstrap import REPLICATES, Identities, ResampledMetric
from facebones.statistics.metric import Metric
from facebones.statistics.resampling import ColumnTotals, Design, pairs_design

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SHARES = (0.1, 0.2, 0.3)  # at which FNMR is given
STEPS = 200  # of the range of pAUC
CELLS = 500
AT_RANDOM = "at random"  # a quality that says nothing


def fnmr_after_discards(quality_P: npt.ArrayLike, rejected_P: npt.ArrayLike, shares_F: npt.ArrayLike) -> FloatArray:
    """FNMR at each discarded share of the genuine pairs: (F,).

    Args:
        quality_P: (P,) quality of each genuine pair, higher is better.
        rejected_P: (P,) bool, whether it is rejected.
        shares_F: from 0 to below 1.

    >>> fnmr_after_discards([1, 2, 3, 4], [True, False, False, True], [0, 0.25, 0.5]).round(4).tolist()
    [0.5, 0.3333, 0.5]
    >>> fnmr_after_discards([1, 1, 1, 1], [True, False, False, True], [0, 0.25, 0.5]).tolist()
    [0.5, 0.5, 0.5]
    """
    value, cell = np.unique(np.asarray(quality_P, dtype=np.float64), return_inverse=True)
    pairs = np.bincount(cell, minlength=value.size)
    rejected = np.bincount(cell, np.asarray(rejected_P, dtype=np.float64), minlength=value.size)
    curve: FloatArray = _fnmr(pairs[None], rejected[None], np.asarray(shares_F, dtype=np.float64))[0]
    return curve


def best_possible(fnmr: float, shares_F: npt.ArrayLike) -> FloatArray:
    """FNMR at each discarded share if the rejected pairs are discarded first: (F,).

    >>> best_possible(0.1, [0, 0.05, 0.1, 0.2]).round(4).tolist()
    [0.1, 0.0526, 0.0, 0.0]
    """
    shares = np.asarray(shares_F, dtype=np.float64)
    return np.maximum(fnmr - shares, 0) / (1 - shares)


def partial_area(fnmr_F: npt.ArrayLike) -> FloatArray:
    """Mean height of curves over equal steps (last axis), by trapezoids.

    >>> float(partial_area([0.2, 0.1, 0.0]))
    0.1
    """
    height = np.asarray(fnmr_F, dtype=np.float64)
    return np.asarray((height[..., 1:] + height[..., :-1]).mean(axis=-1) / 2)


def range_of(up_to: float) -> FloatArray:
    """The discarded shares from 0 to the end of the range of a pAUC."""
    return np.linspace(0, up_to, STEPS + 1)


def resample_discards(
    qualities: Mapping[str, npt.ArrayLike],
    rejected_P: npt.ArrayLike,
    is_same_P: npt.ArrayLike,
    identities: Identities | None = None,
    *,
    up_to: float,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[ResampledMetric]:
    """FNMR at each of `SHARES` within the range, then pAUC, of S qualities, and after them of discarding at random.

    Args:
        qualities: name -> (P,) quality of each pair.
        rejected_P: (P,) bool, whether it is below the threshold.
        is_same_P: (P,) bool, true for a genuine pair; impostor pairs play no part.
        identities: persons of the first and of the second images, (P,) integers from 0; None if unknown.
        up_to: end of the range of pAUC.
        replicates: number R of resampled data sets.
        seed: of the draws.

    Returns:
        metrics with S + 1 values each, the last those of discarding at random.

    Raises:
        DataError: as `bootstrap.resample_accuracy`.
    """
    design = pairs_design(is_same_P, identities, replicates, seed)
    rows = design.genuine.rows
    rejected = np.asarray(rejected_P, dtype=np.bool_)[rows]
    given = [*(np.asarray(one, dtype=np.float64)[rows] for one in qualities.values()), np.zeros(rows.size)]
    shares = [share for share in SHARES if share <= up_to + 1e-9]
    grid = np.concatenate([shares, range_of(up_to)])
    exact = np.stack([fnmr_after_discards(one, rejected, grid) for one in given])
    drawn = np.stack([_replicates(design, one, rejected, grid) for one in given], axis=1)  # (R, S + 1, F)
    split = len(shares)
    found = [_metric("fnmr", share, exact[:, place], drawn[:, :, place], design) for place, share in enumerate(shares)]
    area = partial_area(exact[:, split:]), partial_area(drawn[:, :, split:])
    return [*found, _metric("pauc", up_to, *area, design, main=True)]


def _metric(
    name: str, share: float, values: FloatArray, replicates: FloatArray, design: Design, **more: Any
) -> ResampledMetric:
    models = values.size
    return ResampledMetric(
        metric=Metric(name=name, at={"discarded": share}, higher_is_better=False, **more),
        values=values,
        replicates=replicates,
        excess=np.zeros((models, models)),
        resampled=design.resampled,
        units=design.units,
        evidence=design.genuine_units,
        outcomes=design.genuine.rows.size,
    )


def _replicates(design: Design, quality_P: FloatArray, rejected_P: BoolArray, shares_F: FloatArray) -> FloatArray:
    """The curve of each resampled data set, (R, F)."""
    cell = _cells(quality_P)
    cells, units = int(cell.max()) + 1, design.counts.shape[1]
    totals = ColumnTotals(design.genuine, 2 * cell + rejected_P, units, 2 * cells)(design.counts[1:])
    return _fnmr(totals[:, ::2] + totals[:, 1::2], totals[:, 1::2], shares_F)


def _cells(quality_P: FloatArray) -> npt.NDArray[np.intp]:
    """Cell of each pair by rising quality, from 0; equal ones share a cell."""
    value, number, count = np.unique(quality_P, return_inverse=True, return_counts=True)
    middle = (np.cumsum(count) - count) * min(CELLS, value.size) // quality_P.size
    cell: npt.NDArray[np.intp] = np.unique(middle, return_inverse=True)[1][number]
    return cell


def _fnmr(pairs_RC: npt.NDArray[Any], rejected_RC: npt.NDArray[Any], shares_F: FloatArray) -> FloatArray:
    """The curves of R counts of all and of rejected pairs in C cells of rising quality, (R, F)."""
    curves = np.empty((len(pairs_RC), shares_F.size))
    for row, (pairs, rejected) in enumerate(zip(pairs_RC, rejected_RC, strict=True)):
        until, wrong = (np.append(0.0, np.cumsum(one)) for one in (pairs, rejected))
        gone = shares_F * until[-1]
        left = until[-1] - gone
        # A replicate of a handful of people can be empty.
        curves[row] = (wrong[-1] - np.interp(gone, until, wrong)) / np.where(left > 0, left, 1.0)
    return np.clip(curves, 0.0, 1.0)
