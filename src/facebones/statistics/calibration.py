"""Thresholds that keep a promise: a false match rate that is at most the target, with stated confidence.

Independent impostor pairs. Let k of n impostor scores lie above the (k + 1)-th highest one. The rate at which new
impostor pairs score above it follows the beta distribution (k + 1, n - k), whatever the scores are: a tolerance limit.
The threshold is just above the lowest impostor score for which this rate is at most the target with 95 % confidence.
So n pairs without a single accepted one support a target of about 3 / n.

Pairs that share people. One person who resembles many others is in many impostor pairs, so the pairs tell less than
their number says. The variance of the rate over people, divided by the variance of as many independent pairs, is the
design effect d; the beta distribution then gets k / d and n / d. The variance is that of dyadic data: the squared sums
over each person, less the squared sums over each pair of people, which are counted twice. d is taken as the largest at
any threshold that accepts between 30 pairs and three times the target, because the few pairs at the threshold itself
show too little of it. It is multiplied by the squared ratio of Student's t to the normal quantile, for few people.

`benchmarks/calibration.py` simulates how often the promise is kept; docs/trust.md has its figures.

Sources: S. S. Wilks, Annals of Mathematical Statistics 12 (1941), for tolerance limits; E. L. Korn and B. I. Graubard,
Survey Methodology 24 (1998), for the beta distribution with effective numbers; P. M. Aronow, C. Samii and V. A.
Assenova, Political Analysis 23 (2015), for the variance of dyadic data.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.statistics.metric import Interval
from facebones.statistics.significance import LEVEL, t_quantile, wilson
from facebones.system.number_format import small_rate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

CONFIDENCE = 0.95
LEAST_ACCEPTED = 30  # pairs that a design effect is measured on
BEYOND = 3.0  # times the target, up to which it is measured
RATES = 12  # at which it is measured


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Scores of P pairs and, where known, the people in them.

    Attributes:
        score: (P,) finite similarities; higher means more alike.
        is_same: (P,) bool, true for a genuine pair.
        first: (P,) person of the first image, an integer from 0; None if unknown.
        second: (P,) person of the second image; None if unknown.
        items: (P,) and (P,) numbers of the two images or templates in `Protocol.faces`; None if they are not numbered.
    """

    score: FloatArray
    is_same: BoolArray
    first: IntArray | None = None
    second: IntArray | None = None
    items: tuple[IntArray, IntArray] | None = None

    @property
    def people(self) -> int | None:
        """How many people are in the pairs; None if unknown."""
        if self.first is None or self.second is None:
            return None
        return int(np.union1d(self.first, self.second).size)


@dataclass(frozen=True, kw_only=True)
class PromisedThreshold:
    """A threshold whose false match rate is at most a target, with stated confidence.

    Attributes:
        threshold: a pair is accepted where its score is at least this.
        false_match_rate: the target.
        confidence: share of such thresholds that keep the target, one-sided.
        upper_bound: upper confidence bound of the false match rate at the threshold; at most the target.
        accepted: impostor pairs that it accepts.
        impostors: impostor pairs.
        people: how many people are in the pairs; None if unknown.
        design_effect: how many impostor pairs tell as much as one independent pair.
        true_accept_rate: share of the genuine pairs that it accepts.
        interval: two-sided interval of that share.
    """

    threshold: float
    false_match_rate: float
    confidence: float
    upper_bound: float
    accepted: int
    impostors: int
    people: int | None
    design_effect: float
    true_accept_rate: float
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        """Return all attributes."""
        return asdict(self)


def pooled(parts: Sequence[ScoredPairs]) -> ScoredPairs:
    """The pairs of several sets together; people of different sets count as different people.

    A set without people counts each of its pairs as two people of its own, if another set knows its people.

    >>> one = ScoredPairs(np.array([0.9, 0.1]), np.array([True, False]), np.array([0, 0]), np.array([0, 1]))
    >>> pooled([one, one]).people
    4
    """
    score, is_same = (np.concatenate([getattr(part, name) for part in parts]) for name in ("score", "is_same"))
    if all(part.people is None for part in parts):
        return ScoredPairs(score, is_same)
    first, second, start = [], [], 0
    for part in parts:
        one, other = part.first, part.second
        if one is None or other is None:
            one = 2 * np.arange(part.score.size)
            other = np.where(part.is_same, one, one + 1)
        names, numbers = np.unique(np.concatenate([one, other]), return_inverse=True)
        first.append(start + numbers[: one.size])
        second.append(start + numbers[one.size :])
        start += names.size
    return ScoredPairs(score, is_same, np.concatenate(first), np.concatenate(second))


def promised_threshold(
    pairs: ScoredPairs, false_match_rate: float, confidence: float = CONFIDENCE
) -> PromisedThreshold:
    """The lowest threshold whose false match rate is at most the target, with this confidence.

    The pairs must be a random sample of those that the threshold is used for, and nothing may have been trained or
    chosen on them.

    Args:
        pairs: scores of genuine and impostor pairs.
        false_match_rate: the target, above 0 and below 1.
        confidence: of the promise, one-sided.

    Raises:
        DataError: the pairs cannot support the target, with the number that would; or pairs of one kind only.
        ValueError: a target or a confidence that is no rate.

    >>> random = np.random.default_rng(0)
    >>> score = np.concatenate([random.normal(3, 1, 1000), random.normal(0, 1, 5000)])
    >>> found = promised_threshold(ScoredPairs(score, np.arange(6000) < 1000), 0.001)
    >>> found.accepted, found.upper_bound <= 0.001
    (1, True)
    """
    for name, rate in (("false_match_rate", false_match_rate), ("confidence", confidence)):
        if not 0 < rate < 1:
            raise ValueError(f"{name}: {rate} is not between 0 and 1")
    genuine, impostors = int(pairs.is_same.sum()), int((~pairs.is_same).sum())
    if not genuine or not impostors:
        raise DataError(f"{genuine} genuine and {impostors} impostor pairs: a threshold needs both kinds")
    descending = np.sort(pairs.score[~pairs.is_same])[::-1]
    effect = _design_effect(pairs, false_match_rate, confidence)
    most = min(math.ceil(BEYOND * false_match_rate * impostors) + 1, impostors)
    bound_K = _upper_bound(np.arange(most), impostors, effect, confidence)
    supported = np.flatnonzero(bound_K <= false_match_rate)
    if not supported.size:
        raise DataError(_too_few(pairs, impostors, false_match_rate, confidence, effect))
    threshold = float(np.nextafter(descending[supported[-1]], np.inf))
    accepted = pairs.score[pairs.is_same] >= threshold
    return PromisedThreshold(
        threshold=threshold,
        false_match_rate=false_match_rate,
        confidence=confidence,
        upper_bound=float(bound_K[supported[-1]]),
        accepted=int(np.searchsorted(-descending, -threshold, side="right")),
        impostors=impostors,
        people=pairs.people,
        design_effect=effect,
        true_accept_rate=float(accepted.mean()),
        interval=_genuine_interval(pairs, accepted),
    )


def pairs_needed(false_match_rate: float, confidence: float = CONFIDENCE) -> int:
    """Independent impostor pairs that support a target if the threshold accepts none of them: about 3 / target.

    >>> pairs_needed(0.001)
    2995
    """
    return math.ceil(math.log1p(-confidence) / math.log1p(-false_match_rate))


def _too_few(pairs: ScoredPairs, impostors: int, target: float, confidence: float, effect: float) -> str:
    """Why a target cannot be promised, and what it would take."""
    needed = math.ceil(pairs_needed(target, confidence) * effect)
    people = pairs.people
    what, enough = f"{impostors:,} impostor pairs", f"{needed:,} pairs or more"
    if people is not None:
        what += f" of {people:,} people, which tell as much as {impostors / effect:,.0f} independent ones,"
        # With more people, the number of independent pairs grows at least in proportion.
        enough = f"about {math.ceil(people * needed / impostors):,} people with as many images each"
    return f"a false match rate of {small_rate(target)}: {what} cannot promise it; that takes {enough}"


def _upper_bound(accepted_K: IntArray, impostors: int, effect: float, confidence: float) -> FloatArray:
    """Upper confidence bound of the false match rate for each number of accepted pairs: (K,), rising."""
    from scipy.special import betaincinv

    return np.asarray(betaincinv(accepted_K / effect + 1, (impostors - accepted_K) / effect, confidence))


def _design_effect(pairs: ScoredPairs, target: float, confidence: float) -> float:
    """Design effect of the false match rate near a target, with the allowance for few people; 1 if they are unknown."""
    if pairs.first is None or pairs.second is None:
        return 1.0
    impostor = np.flatnonzero(~pairs.is_same)
    order = impostor[np.argsort(-pairs.score[impostor], kind="stable")]
    first, second = pairs.first[order], pairs.second[order]
    least = min(LEAST_ACCEPTED, max(order.size // 2, 1))
    most = min(max(least, int(BEYOND * target * order.size)), max(order.size // 2, 1))
    accepted_K = np.unique(np.geomspace(least, most, RATES).astype(np.int64))
    effect = max(design_effects(first, second, accepted_K))
    people = pairs.people or 2
    return float(effect * (t_quantile(2 * confidence - 1, people - 1) / NormalDist().inv_cdf(confidence)) ** 2)


def design_effects(first_N: IntArray, second_N: IntArray, accepted_K: IntArray) -> list[float]:
    """Design effect of the share of accepted pairs, if the first k of N are accepted, for each k; at least 1.

    Args:
        first_N: person of the first image of each impostor pair.
        second_N: person of the second image.
        accepted_K: numbers of accepted pairs, each from 1 to N - 1.
    """
    names, numbers = np.unique(np.concatenate([first_N, second_N]), return_inverse=True)
    first, second = numbers[: first_N.size], numbers[first_N.size :]
    people = names.size
    key = np.minimum(first, second) * people + np.maximum(first, second)
    cell, in_cell = np.unique(key, return_inverse=True, return_counts=True)[1:]
    of_person = np.bincount(first, minlength=people) + np.bincount(second, minlength=people)
    effects = []
    for accepted in accepted_K:
        rate = accepted / first.size
        person = np.bincount(first[:accepted], minlength=people) + np.bincount(second[:accepted], minlength=people)
        pair = np.bincount(cell[:accepted], minlength=in_cell.size)
        over_people = np.sum((person - rate * of_person) ** 2) * people / (people - 1)
        over_pairs = np.sum((pair - rate * in_cell) ** 2)
        effects.append(max(1.0, float((over_people - over_pairs) / (rate * (1 - rate) * first.size))))
    return effects


def effective_outcomes(outcome_N: BoolArray, person_N: IntArray | None) -> tuple[float, int]:
    """How many independent outcomes tell as much as N outcomes of some people, and how many people (or N) there are.

    Where all outcomes agree, each person counts once.
    """
    rate, outcomes = float(outcome_N.mean()), float(outcome_N.size)
    if person_N is None:
        return outcomes, outcome_N.size
    numbers = np.unique(person_N, return_inverse=True)[1]
    sums = np.bincount(numbers, outcome_N - rate)
    spread = float(np.sum(sums**2)) * sums.size / max(sums.size - 1, 1)
    binomial = rate * (1 - rate) * outcomes
    return min(outcomes, binomial * outcomes / spread) if binomial and spread else float(sums.size), sums.size


def effective_interval(rate: float, outcomes: float, units: int, *, by_people: bool) -> Interval:
    """Score interval of a share of outcomes that tell as much as so many independent ones.

    Args:
        rate: the share.
        outcomes: effective number of outcomes, such as `effective_outcomes` gives.
        units: people, or outcomes where people are unknown; few of them widen it as Student's t does.
        by_people: whether `units` are people.

    >>> found = effective_interval(0.9, 100.4, 50, by_people=True)
    >>> round(found.low, 4), round(found.high, 4), found.method
    (0.8235, 0.9455, 'score interval of 100 effective outcomes')
    """
    low, high = wilson(rate, outcomes, t_quantile(LEVEL, max(units - 1, 1)))
    return Interval(
        low=min(low, rate),  # they differ by rounding near 0 and 1
        high=max(high, rate),
        level=LEVEL,
        method=f"score interval of {outcomes:.0f} effective outcomes",
        resampled="identities" if by_people else "pairs",
        replicates=0,
    )


def _genuine_interval(pairs: ScoredPairs, accepted_G: BoolArray) -> Interval:
    """Interval of the share of accepted genuine pairs, by people where they are known."""
    outcomes, units = effective_outcomes(accepted_G, None if pairs.first is None else pairs.first[pairs.is_same])
    return effective_interval(float(accepted_G.mean()), outcomes, units, by_people=pairs.first is not None)
