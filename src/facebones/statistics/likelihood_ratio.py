"""Scores as evidence: log-likelihood ratios, their cost Cllr, and how much of it is calibration.

A log-likelihood ratio says how much more likely a score is for a genuine pair than for an impostor pair. Unlike a
score, it means the same for every model. Two calibrations are fitted:

* logistic: slope x score + intercept, by logistic regression in which both kinds of pair weigh the same;
* isotonic: the rising step function that fits best (pool adjacent violators).

Cllr, in bits, is the mean cost of taking the ratios at their word: 0 is perfect, 1 is no information, more than 1 is
worse than saying nothing. min Cllr is the cost after the best possible rising map of these very scores: what the model
itself leaves open. A calibration is judged on pairs that it was not fitted to (`cross_fitted_cost`).

Source: N. Brümmer and J. du Preez, "Application-independent evaluation of speaker detection", Computer Speech and
Language 20 (2006). Labels are smoothed as in J. Platt, "Probabilistic outputs for support vector machines" (1999), so
that kinds that do not overlap have a finite slope.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from facebones.errors import DataError
from facebones.statistics.calibration import BoolArray, FloatArray, ScoredPairs

FOLDS = 5
STEPS = 100  # of Newton's method, far more than it needs
Calibration = Callable[[FloatArray], FloatArray]  # scores to natural log-likelihood ratios


@dataclass(frozen=True, kw_only=True)
class LogisticCalibration:
    """log-likelihood ratio = slope x score + intercept.

    >>> LogisticCalibration(slope=20.0, intercept=-6.0)(np.array([0.3, 0.5])).tolist()
    [0.0, 4.0]
    """

    slope: float
    intercept: float

    def __call__(self, score_P: FloatArray) -> FloatArray:
        """Natural log-likelihood ratios (P,)."""
        return self.slope * score_P + self.intercept

    def to_json(self) -> dict[str, float]:
        """Return both numbers."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class IsotonicCalibration:
    """Rising steps: `ratio[k]` from `score[k]` on; below the first score, `ratio[0]`."""

    score: FloatArray
    ratio: FloatArray

    def __call__(self, score_P: FloatArray) -> FloatArray:
        """Natural log-likelihood ratios (P,)."""
        place = np.searchsorted(self.score, score_P, side="right") - 1
        return np.asarray(self.ratio[np.maximum(place, 0)])


def cost(ratio_P: FloatArray, is_same_P: BoolArray) -> float:
    """Cllr of natural log-likelihood ratios, in bits; both kinds of pair weigh the same.

    >>> cost(np.zeros(4), np.array([True, False, False, False]))
    1.0
    """
    genuine = np.logaddexp(0, -ratio_P[is_same_P]).mean()
    impostor = np.logaddexp(0, ratio_P[~is_same_P]).mean()
    return float((genuine + impostor) / (2 * np.log(2)))


def least_cost(score_P: FloatArray, is_same_P: BoolArray) -> float:
    """The min Cllr of scores: the cost after the rising map that suits these pairs best."""
    ratio = _isotonic_ratio(score_P, is_same_P, smoothing=0.0)
    return cost(ratio, is_same_P)


def fit_logistic(score_P: FloatArray, is_same_P: BoolArray) -> LogisticCalibration:
    """Fit slope and intercept by Newton's method.

    Raises:
        DataError: pairs of one kind only, or scores that are all equal.
    """
    _check(score_P, is_same_P)
    centre, spread = float(score_P.mean()), float(score_P.std())
    design = np.stack([(score_P - centre) / spread, np.ones(score_P.size)])
    genuine = int(is_same_P.sum())
    impostors = is_same_P.size - genuine
    weight = np.where(is_same_P, 0.5 / genuine, 0.5 / impostors)
    wanted = np.where(is_same_P, (genuine + 1) / (genuine + 2), 1 / (impostors + 2))
    beta, loss = np.zeros(2), np.inf
    for _ in range(STEPS):
        logit = beta @ design
        answer = 1 / (1 + np.exp(-np.clip(logit, -500, 500)))
        gradient = design @ (weight * (answer - wanted))
        curvature = (design * (weight * answer * (1 - answer))) @ design.T
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))  # far from the end, Newton's steps overshoot
        beta = beta - step
        new = float(np.sum(weight * (np.logaddexp(0, beta @ design) - wanted * (beta @ design))))
        if abs(loss - new) < 1e-12:
            break
        loss = new
    return LogisticCalibration(slope=float(beta[0] / spread), intercept=float(beta[1] - beta[0] * centre / spread))


def fit_isotonic(score_P: FloatArray, is_same_P: BoolArray) -> IsotonicCalibration:
    """Fit rising steps; one pair more of each kind is spread over the scores, so that all ratios are finite.

    Raises:
        DataError: as `fit_logistic`.
    """
    _check(score_P, is_same_P)
    ratio = _isotonic_ratio(score_P, is_same_P, smoothing=1.0)
    score, first = np.unique(score_P, return_index=True)
    return IsotonicCalibration(score, ratio[first])


def cross_fitted_cost(
    pairs: ScoredPairs, fit: Callable[[FloatArray, BoolArray], Calibration], folds: int = FOLDS, seed: int = 0
) -> float | None:
    """Cllr of a calibration on pairs that it was not fitted to.

    Where people are known, they are dealt over the folds: a pair is judged if both its people are in one fold, by a
    calibration of the pairs with nobody of this fold. Otherwise the pairs are dealt.

    Args:
        pairs: the scores.
        fit: `fit_logistic` or `fit_isotonic`.
        folds: their number.
        seed: of the dealing.

    Returns:
        the cost in bits; None where a fold has pairs of one kind only.
    """
    random = np.random.default_rng(seed)
    if pairs.first is None or pairs.second is None:
        fold = np.empty(pairs.score.size, dtype=np.int64)
        for kind in (pairs.is_same, ~pairs.is_same):
            fold[kind] = random.permutation(int(kind.sum())) % folds
        one = other = fold
    else:
        names, numbers = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
        dealt = random.permutation(names.size) % folds
        one, other = dealt[numbers[: pairs.first.size]], dealt[numbers[pairs.first.size :]]
    ratios, labels = [], []
    for number in range(folds):
        judged, fitted = (one == number) & (other == number), (one != number) & (other != number)
        kinds = [pairs.is_same[rows] for rows in (judged, fitted)]
        if any(kind.all() or not kind.any() for kind in kinds):
            return None
        ratios.append(fit(pairs.score[fitted], kinds[1])(pairs.score[judged]))
        labels.append(kinds[0])
    return cost(np.concatenate(ratios), np.concatenate(labels))


def _check(score: FloatArray, is_same: BoolArray) -> None:
    if is_same.all() or not is_same.any():
        raise DataError(f"{is_same.size} pairs of one kind: a calibration needs genuine and impostor pairs")
    if score.min() == score.max():
        raise DataError(f"{score.size} pairs with equal scores: nothing to calibrate; check the model")


def _isotonic_ratio(score: FloatArray, is_same: BoolArray, smoothing: float) -> FloatArray:
    """Ratio of each pair by the best rising map; without smoothing, infinite where kinds do not overlap."""
    from scipy.optimize import isotonic_regression

    names, place = np.unique(score, return_inverse=True)
    genuine = np.bincount(place[is_same], minlength=names.size) + smoothing / names.size
    impostor = np.bincount(place[~is_same], minlength=names.size) + smoothing / names.size
    genuine, impostor = genuine / genuine.sum(), impostor / impostor.sum()
    share = isotonic_regression(genuine / (genuine + impostor), weights=genuine + impostor).x
    with np.errstate(divide="ignore"):
        return np.asarray((np.log(share) - np.log1p(-share))[place])
