"""How many seeds tell a difference? Power of a t test between the seeds of two levels.

The tests of `significance` compare trained models on people or pairs: would other people show the difference? They say
nothing about other seeds, and a few seeds that agree prove little: of two equal levels with two seeds each, both runs
of one are better than both runs of the other in a third of all studies (`chance_of_order`). The test here asks the
other question, would other seeds show the difference: Student's t of two groups of seeds, with their pooled variance.
Seeds of two levels are not paired, although they have the same numbers: another network draws other weights from them.
Groups of equal size keep the test near its level even where one level varies more than the other.

Its power is exact for normal values: the noncentral t distribution, both tails. The spread between seeds that it takes
must be known, though, and two or three seeds tell little about it; `SeedNoise.upper` is the spread that it may well
have, the upper confidence limit by the chi-squared distribution of the variance.

`benchmarks/power.py` compares computed and simulated power; docs/trust.md has its figures.

Sources: J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd edition (1988), chapter 2; N. L. Johnson
and B. L. Welch, Biometrika 31 (1940), for the noncentral t; C. Stein, Annals of Mathematical Statistics 16 (1945), for
sample sizes that follow from the spread of a first sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from facebones.statistics.significance import SIGNIFICANT, mean_of

FloatArray = npt.NDArray[np.float64]
Values = Sequence[float] | FloatArray

POWER = 0.8
CONFIDENCE = 0.95  # of the upper limit of a spread
LEAST_SEEDS, MOST_SEEDS = 2, 1000  # of a level
NODES, TAIL = 256, 1e-15  # of the integral over the measured spread, and what it leaves out at either end


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """The spread between seeds of one level, from several levels that are taken to have the same.

    Attributes:
        deviation: standard deviation, pooled over the levels.
        degrees: of freedom: seeds less levels.
        upper: the deviation is at most this, with `confidence`.
        confidence: one-sided.
    """

    deviation: float
    degrees: int
    upper: float
    confidence: float


def seed_noise(levels: Sequence[Values], confidence: float = CONFIDENCE) -> SeedNoise:
    """The pooled spread between the seeds of levels.

    Args:
        levels: the values of each level's seeds, (S,) each, in any unit.
        confidence: of the upper limit, one-sided; 0 < confidence < 1.

    Raises:
        ValueError: no level has two seeds.

    >>> found = seed_noise([[0.90, 0.92, 0.94], [0.80, 0.82, 0.84]])
    >>> round(found.deviation, 4), found.degrees, round(found.upper, 4)
    (0.02, 4, 0.0474)
    """
    from scipy.special import chdtri

    degrees = sum(max(len(values) - 1, 0) for values in levels)
    if not degrees:
        raise ValueError(f"levels: {len(levels)}, none of which has two seeds; a spread needs them")
    # Equal values have no spread at all, although np.mean of them may differ from them by rounding.
    squares = sum(len(values) * float(np.var(values)) for values in levels if np.ptp(values))
    deviation = math.sqrt(squares / degrees)
    upper = deviation * math.sqrt(degrees / float(chdtri(degrees, confidence)))
    return SeedNoise(deviation=deviation, degrees=degrees, upper=upper, confidence=confidence)


def compare_seeds(first: Values, second: Values) -> float:
    """Two-sided p-value of "other seeds would show no difference": Student's t with pooled variance.

    Without any spread it is 0, or 1 if the means are equal.

    Raises:
        ValueError: no level has two seeds, or one has none.

    >>> round(compare_seeds([0.90, 0.92, 0.94], [0.86, 0.88, 0.90]), 4)
    0.0705
    """
    from scipy.special import stdtr

    noise, difference = seed_noise([first, second]), mean_of(first) - mean_of(second)
    if not noise.deviation:
        return float(not difference)
    t = difference / (noise.deviation * math.sqrt(1 / len(first) + 1 / len(second)))
    return 2 * float(stdtr(noise.degrees, -abs(t)))


def seed_power(
    difference: float, deviation: float, seeds: int, others: int | None = None, *, alpha: float = SIGNIFICANT
) -> float:
    """Chance that the test finds a true difference of two levels; at no difference it is alpha.

    Args:
        difference: of the levels' means over all seeds, in the unit of `deviation`.
        deviation: true standard deviation between the seeds of a level.
        seeds: of one level.
        others: of the other level; by default as many.
        alpha: two-sided level of the test.

    Raises:
        ValueError: fewer than three seeds in all, or a level without any.

    >>> round(seed_power(1.0, 0.5, 3), 3), round(seed_power(1.0, 0.5, 6), 3), round(seed_power(0.0, 0.5, 3), 3)
    (0.463, 0.876, 0.05)
    """
    others = seeds if others is None else others
    if min(seeds, others) < 1 or seeds + others < LEAST_SEEDS + 1:
        raise ValueError(f"seeds: {seeds} and {others}; a spread needs two seeds in one of the levels")
    if not deviation:
        return 1.0 if difference else alpha
    return _noncentral(abs(difference) / (deviation * math.sqrt(1 / seeds + 1 / others)), seeds + others - 2, alpha)


def detectable_difference(
    deviation: float,
    seeds: int,
    others: int | None = None,
    *,
    power: float = POWER,
    alpha: float = SIGNIFICANT,
) -> float:
    """The smallest true difference that the test finds with this power; arguments as for `seed_power`.

    >>> round(detectable_difference(0.5, 3), 3), round(detectable_difference(0.5, 10), 3)
    (1.535, 0.662)
    """
    return deviation * _detectable(seeds, seeds if others is None else others, power, alpha)


@lru_cache
def _detectable(seeds: int, others: int, power: float, alpha: float) -> float:
    """For a deviation of 1."""
    low, high = 0.0, 1.0
    while seed_power(high, 1.0, seeds, others, alpha=alpha) < power:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        found = seed_power(middle, 1.0, seeds, others, alpha=alpha) >= power
        low, high = (low, middle) if found else (middle, high)
    return high


def seeds_needed(
    difference: float, deviation: float, *, power: float = POWER, alpha: float = SIGNIFICANT, most: int = MOST_SEEDS
) -> int | None:
    """Seeds of each of two levels that find a true difference with this power; None if `most` are too few.

    >>> seeds_needed(1.0, 0.5), seeds_needed(0.1, 0.5), seeds_needed(0.01, 0.5)
    (6, 394, None)
    """
    if seed_power(difference, deviation, most, alpha=alpha) < power:
        return None
    few, enough = LEAST_SEEDS - 1, most
    while enough - few > 1:
        middle = (few + enough) // 2
        found = seed_power(difference, deviation, middle, alpha=alpha) >= power
        few, enough = (few, middle) if found else (middle, enough)
    return enough


def chance_of_order(seeds: int, others: int | None = None) -> float:
    """How often all seeds of one of two equal levels are better than all of the other, by luck.

    >>> [round(chance_of_order(seeds), 3) for seeds in (1, 2, 3, 5)]
    [1.0, 0.333, 0.1, 0.008]
    """
    return 2 / math.comb(seeds + (seeds if others is None else others), seeds)


def _noncentral(shift: float, degrees: int, alpha: float) -> float:
    """Chance that |T| exceeds its bound, for a noncentral T: an integral over the measured spread s.

    s is relative to the true spread. scipy's own function is NaN for many arguments.
    """
    from scipy.special import gammainccinv, gammaincinv, ndtr, stdtrit

    half, bound = degrees / 2, float(stdtrit(degrees, 1 - alpha / 2))
    low, high = (math.sqrt(float(ends(half, TAIL)) / half) for ends in (gammaincinv, gammainccinv))
    node, weight = _nodes()
    s = (low + high) / 2 + (high - low) / 2 * node
    log_density = math.log(2) + half * math.log(half) - math.lgamma(half) + (degrees - 1) * np.log(s) - half * s**2
    found = ndtr(shift - bound * s) + ndtr(-shift - bound * s)
    return min((high - low) / 2 * float(np.sum(weight * np.exp(log_density) * found)), 1.0)


@lru_cache
def _nodes() -> tuple[FloatArray, FloatArray]:
    node, weight = np.polynomial.legendre.leggauss(NODES)
    return node, weight
