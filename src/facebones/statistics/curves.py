"""Exact verification curves from scores: ROC, area under it, equal error rate, TAR at a FAR.

Scores are similarities: higher means more alike. A pair is accepted where score >= threshold.

Tie rule: pairs with equal scores are accepted together, so they form one step of the curve, whatever their order in
the input. There is no threshold grid: the curve has one point for each distinct score.

Sources: T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27 (2006), algorithm 1 and
section 7; J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a ROC curve", Radiology 143 (1982).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

SEARCH_STEP = 4096  # points examined at once


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Operating points from "accept nothing" (0, 0) to "accept everything" (1, 1): K + 1 points for K distinct scores.

    Attributes:
        false_accept_rate: (K + 1,) float64, accepted impostor pairs / impostor pairs; ascending.
        true_accept_rate: (K + 1,) float64, accepted genuine pairs / genuine pairs; ascending.
        threshold: (K + 1,) the lowest accepted score; +inf for the first point, then the distinct scores, descending.
        genuine: number of genuine pairs.
        impostors: number of impostor pairs; a FAR below 1 / impostors cannot be measured.
    """

    false_accept_rate: npt.NDArray[np.float64]
    true_accept_rate: npt.NDArray[np.float64]
    threshold: FloatArray
    genuine: int
    impostors: int


def roc(scores_P: npt.ArrayLike, is_same_P: npt.ArrayLike) -> RocCurve:
    """Compute the exact ROC curve in O(P log P) time.

    Args:
        scores_P: (P,) finite similarities.
        is_same_P: (P,) booleans or 0/1; true for a genuine pair.

    Raises:
        ValueError: no pairs, unequal or wrong shapes, a score that is not finite, or pairs of one kind only.

    >>> curve = roc([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
    >>> curve.false_accept_rate.tolist(), curve.true_accept_rate.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    scores, is_same = _checked(scores_P, is_same_P)
    # A sort takes half the time of an argsort, and needs no gather of the labels.
    ordered = np.sort(scores)
    ends_tie = np.ones(ordered.size, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=ends_tie[:-1])
    pairs_up_to = np.flatnonzero(ends_tie)
    threshold = np.full(pairs_up_to.size + 1, np.inf, dtype=ordered.dtype)
    distinct = np.take(ordered, pairs_up_to, out=threshold[:-1], mode="clip")  # (K,) ascending; "raise" would copy
    pairs_up_to += 1
    del ordered, ends_tie  # tens of millions of pairs: few copies fit into memory
    genuine_at = np.bincount(np.searchsorted(distinct, np.sort(scores[is_same])), minlength=distinct.size)
    genuine_up_to = np.cumsum(genuine_at, out=genuine_at)
    genuine = int(genuine_up_to[-1])
    impostors = scores.size - genuine
    impostors_up_to = np.subtract(pairs_up_to, genuine_up_to, out=pairs_up_to)
    return RocCurve(
        false_accept_rate=_accepted_rate(impostors_up_to, impostors),
        true_accept_rate=_accepted_rate(genuine_up_to, genuine),
        threshold=threshold[::-1],
        genuine=genuine,
        impostors=impostors,
    )


def roc_of_counts(score_K: FloatArray, genuine_K: npt.NDArray[Any], impostors_K: npt.NDArray[Any]) -> RocCurve:
    """The exact ROC curve of scores that are counted, not listed.

    Args:
        score_K: (K,) distinct scores, rising.
        genuine_K: (K,) genuine pairs with each score.
        impostors_K: (K,) impostor pairs with each score.

    Raises:
        ValueError: no pairs of a kind.

    >>> curve = roc_of_counts(np.array([0.1, 0.8, 0.9]), np.array([0, 1, 1]), np.array([1, 1, 0]))
    >>> area_under_curve(curve)
    0.875
    """
    genuine, impostors = int(genuine_K.sum()), int(impostors_K.sum())
    if not genuine or not impostors:
        raise ValueError(f"{genuine} genuine and {impostors} impostor pairs; a curve needs both kinds")
    seen = np.flatnonzero(genuine_K + impostors_K)[::-1]
    rates = [np.append(0, np.cumsum(count[seen])) / count.sum() for count in (impostors_K, genuine_K)]
    return RocCurve(
        false_accept_rate=rates[0],
        true_accept_rate=rates[1],
        threshold=np.append(np.inf, score_K[seen]),
        genuine=genuine,
        impostors=impostors,
    )


def corners(curve: RocCurve) -> RocCurve:
    """Remove the points inside horizontal and vertical stretches of a curve: nearly all, with few genuine pairs.

    The area, the equal error rate, the strict true accept rates and the plot stay the same.

    >>> corners(roc([0.9, 0.8, 0.7, 0.6], [True, False, False, True])).false_accept_rate.tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    inside = np.zeros(curve.threshold.size, dtype=np.bool_)
    for rate in (curve.false_accept_rate, curve.true_accept_rate):
        same = rate[1:] == rate[:-1]
        inside[1:-1] |= same[1:] & same[:-1]
    kept = np.flatnonzero(~inside)
    return replace(
        curve,
        false_accept_rate=curve.false_accept_rate[kept],
        true_accept_rate=curve.true_accept_rate[kept],
        threshold=curve.threshold[kept],
    )


def area_under_curve(curve: RocCurve) -> float:
    """Area under the ROC curve, by the trapezoid rule.

    It is the probability that a random genuine pair scores above a random impostor pair, a tie counting one half
    (Mann-Whitney's U / (genuine x impostors)).

    >>> area_under_curve(roc([0.9, 0.8, 0.8, 0.1], [True, True, False, False]))
    0.875
    """
    width = np.diff(curve.false_accept_rate)
    return float(0.5 * np.sum(width * (curve.true_accept_rate[1:] + curve.true_accept_rate[:-1])))


def equal_error_rate(curve: RocCurve) -> float:
    """Error rate where the false accept rate equals the false reject rate (1 - TAR).

    Neighbouring points of the curve are joined by straight lines; the result is the FAR where such a line meets
    FAR = 1 - TAR. There is exactly one such point, because FAR + TAR rises with every point.

    >>> equal_error_rate(roc([0.9, 0.8, 0.8, 0.1], [True, True, False, False]))
    0.25
    """
    far, tar = curve.false_accept_rate, curve.true_accept_rate
    excess = far - (1.0 - tar)  # rises from -1 to 1
    after = int(np.searchsorted(excess, 0.0, side="left"))
    weight = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(far[after - 1] + weight * (far[after] - far[after - 1]))


def true_accept_rate_at(curve: RocCurve, far: float) -> float:
    """Largest true accept rate among the points whose false accept rate is at most `far`.

    Strict: the target is never exceeded, and there is no interpolation.

    Raises:
        ValueError: `far` lies outside 0 to 1.

    >>> true_accept_rate_at(roc([0.9, 0.8, 0.8, 0.1], [True, True, False, False]), 0.49)
    0.5
    """
    _check_rate(far)
    return float(curve.true_accept_rate[np.searchsorted(curve.false_accept_rate, far, side="right") - 1])


def published_true_accept_rate_at(curve: RocCurve, far: float) -> tuple[float, float]:
    """True accept rate as in the published tables of IJB-B and IJB-C: at the point whose FAR is nearest to `far`.

    Of equal distances the larger FAR is taken, and of points with one FAR the largest true accept rate. So the FAR that
    is reached may exceed the target. Not every point takes part: the published evaluations use scikit-learn's
    `roc_curve`, which by default (`drop_intermediate`) drops a point where the steps before and after it are equal,
    such as one impostor pair each. The result equals theirs, to the last bit.

    Returns:
        The true accept rate, and the FAR reached.

    Raises:
        ValueError: `far` lies outside 0 to 1.

    >>> curve = roc([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, False, False])
    >>> published_true_accept_rate_at(curve, 0.2)
    (1.0, 0.3333333333333333)
    >>> true_accept_rate_at(curve, 0.2)
    0.5
    """
    _check_rate(far)
    rates = curve.false_accept_rate
    after = int(np.searchsorted(rates, far, side="right"))  # the first point whose FAR is larger
    below = above = -1
    for stop in range(after, 0, -SEARCH_STEP):
        if (found := _published_points(curve, max(stop - SEARCH_STEP, 0), stop)).size:
            below = int(found[-1])
            break
    for start in range(after, rates.size, SEARCH_STEP):
        if (found := _published_points(curve, start, min(start + SEARCH_STEP, rates.size))).size:
            above = int(np.searchsorted(rates, rates[found[0]], side="right")) - 1
            break
    nearest = above if above >= 0 and abs(rates[above] - far) <= abs(rates[below] - far) else below
    return float(curve.true_accept_rate[nearest]), float(rates[nearest])


def _check_rate(far: float) -> None:
    if not 0.0 <= far <= 1.0:
        raise ValueError(f"far: {far} is not a rate; give a number from 0 to 1")


def _checked(scores: npt.ArrayLike, is_same: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Scores and labels as arrays that a curve is defined for."""
    score_array, label_array = np.asarray(scores), np.asarray(is_same)
    if score_array.ndim != 1 or score_array.shape != label_array.shape:
        raise ValueError(
            f"scores have shape {score_array.shape}, labels {label_array.shape}; give one label for each score"
        )
    if not score_array.size:
        raise ValueError("no pairs; a curve needs at least one genuine and one impostor pair")
    if not np.issubdtype(score_array.dtype, np.floating):
        score_array = score_array.astype(np.float64)
    if not (finite := np.isfinite(score_array)).all():
        index = int(np.argmin(finite))
        raise ValueError(f"score {index} is {score_array[index]}; give finite scores")
    if label_array.dtype != np.bool_ and not np.isin(label_array, (0, 1)).all():
        raise ValueError("labels hold values other than 0 and 1; give true for a genuine pair, false for an impostor")
    label_array = label_array.astype(np.bool_)
    if label_array.all() or not label_array.any():
        kind = "genuine" if label_array[0] else "impostor"
        raise ValueError(f"all {label_array.size} pairs are {kind} pairs; a curve needs both kinds")
    return score_array, label_array


def _accepted_rate(up_to: npt.NDArray[np.intp], total: int) -> npt.NDArray[np.float64]:
    """Shares of scores >= each distinct score, descending, from counts of scores <= it; with a leading 0."""
    rate = np.zeros(up_to.size + 1)
    np.subtract(total, up_to[-2::-1], out=rate[1:-1])
    rate[-1] = total
    return np.divide(rate, total, out=rate)


def _published_points(curve: RocCurve, start: int, stop: int) -> npt.NDArray[np.intp]:
    """Indices from `start` to before `stop` of the points of the curve behind the published tables.

    It drops a point where the steps before and after it add the same numbers of pairs; the first two points and the
    last stay.
    """
    first, last = max(start - 1, 1), min(stop + 1, curve.threshold.size)
    kept = np.ones(stop - start, dtype=np.bool_)
    if last - first > 2:
        equal = np.ones(last - first - 2, dtype=np.bool_)
        for rate, pairs in ((curve.false_accept_rate, curve.impostors), (curve.true_accept_rate, curve.genuine)):
            equal &= np.diff(np.rint(rate[first:last] * pairs), 2) == 0
        kept[first + 1 - start : last - 1 - start] = ~equal
    return start + np.flatnonzero(kept)
