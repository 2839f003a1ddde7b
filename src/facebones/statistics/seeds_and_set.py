"""Would other seeds on other people show the difference between two levels? Both kinds of noise in one test.

On a set, a run of level A has the value mu_A + set_A + seed + noise: set_A is what this set has for or against A and is
shared by A's runs, seed is what a training has by luck, and the noise is that of one run on one set. Other seeds draw
the last two again, other people the first and the last. So the variance of the difference between the means of n and m
runs is that between the seeds on this set, s^2 (1 / n + 1 / m), plus that of set_A - set_B. The latter follows from the
variances of the differences of two runs over people or pairs, V, which the evaluation knows: two runs of A differ by
their noise alone, so it is V(A, B) - (V(A, A) + V(B, B)) / 2. This is the usual model of crossed random effects.

How sure the first variance is depends on the seeds, which are few; the second comes from thousands of pairs. Cochran's
rule takes the critical value between Student's t with n + m - 2 degrees of freedom and the normal one, in proportion to
the two variances. Satterthwaite's degrees of freedom would give up to 7.8 % false alarms with two seeds instead of 5.

Source: W. G. Cochran, "Approximate significance levels of the Behrens-Fisher test", Biometrics 20 (1964).
`benchmarks/power.py` has the false alarms and the power by simulation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from facebones.statistics.seed_power import POWER, Values, seed_noise
from facebones.statistics.significance import LEVEL, SIGNIFICANT, mean_of

LEAST_LOGARITHM = -300.0  # of a p-value, to base 10


@dataclass(frozen=True, kw_only=True)
class LevelTest:
    """Two levels compared over seeds and people.

    Attributes:
        difference: mean of the first level minus mean of the second.
        low: lower end of the 95 % interval of the difference.
        high: its upper end.
        p_value: two-sided, of no difference.
        from_seeds: share of the variance that the seeds make; more people cannot reduce it.
        set_error: standard error that the set makes; more seeds cannot reduce it.
    """

    difference: float
    low: float
    high: float
    p_value: float
    from_seeds: float
    set_error: float


def shared_variance(between: Sequence[float], within_first: Sequence[float], within_second: Sequence[float]) -> float:
    """The variance of what a set has for one level and against the other, whatever the seeds.

    Args:
        between: variances, over people or pairs, of the difference of a run of one level and one of the other.
        within_first: the same of two runs of the first level; empty where it has one run only.
        within_second: of two runs of the second. Where one of both is empty, the levels are taken to have the same
            noise; where both are, all of `between` is taken for shared, which is too much.

    Raises:
        ValueError: `between` is empty.

    >>> shared_variance([5.0, 7.0], [2.0], [4.0]), shared_variance([1.0], [2.0], []), shared_variance([1.0], [], [])
    (3.0, 0.0, 1.0)
    """
    if not len(between):
        raise ValueError("between: none; give the variance of at least one difference of two runs")
    noise = [float(np.mean(one)) for one in (within_first, within_second) if len(one)]
    return max(float(np.mean(between)) - (float(np.mean(noise)) if noise else 0.0), 0.0)


def compare_levels(first: Values, second: Values, shared: float) -> LevelTest:
    """Compare two levels of which at least one has two seeds.

    Args:
        first: value of each seed of the first level, (S,).
        second: of the second, (T,).
        shared: from `shared_variance`.

    Raises:
        ValueError: no level has two seeds, or one has none.

    >>> by_seeds = compare_levels([0.90, 0.92, 0.94], [0.86, 0.88, 0.90], 0.0)
    >>> round(by_seeds.p_value, 4), round(by_seeds.low, 4), by_seeds.from_seeds
    (0.0705, -0.0053, 1.0)
    >>> both = compare_levels([0.90, 0.92, 0.94], [0.86, 0.88, 0.90], 0.01**2)
    >>> round(both.p_value, 4), round(both.from_seeds, 4)
    (0.0891, 0.7273)
    """
    noise, difference = seed_noise([first, second]), mean_of(first) - mean_of(second)
    of_seeds = noise.deviation**2 * (1 / len(first) + 1 / len(second))
    whole = of_seeds + shared
    if not whole:  # all runs agree on every set
        p_value = float(not difference)
        none = {"from_seeds": 0.0, "set_error": 0.0}
        return LevelTest(difference=difference, low=difference, high=difference, p_value=p_value, **none)
    part, error = of_seeds / whole, math.sqrt(whole)
    half = error * _bound(1 - LEVEL, part, noise.degrees)
    return LevelTest(
        difference=difference,
        low=difference - half,
        high=difference + half,
        p_value=_p_value(abs(difference) / error, part, noise.degrees),
        from_seeds=part,
        set_error=math.sqrt(shared),
    )


def left_for_seeds(difference: float, set_error: float, *, power: float = POWER, alpha: float = SIGNIFICANT) -> float:
    """The difference by itself that seeds must find so that, with the set's noise, this difference is found.

    0 where no number of seeds finds it with this power: the set's noise alone hides it.

    >>> left_for_seeds(0.01, 0.0), left_for_seeds(0.01, 0.004), round(left_for_seeds(0.01, 0.002), 5)
    (0.01, 0.0, 0.00828)
    """
    hidden = set_error * (NormalDist().inv_cdf(1 - alpha / 2) + NormalDist().inv_cdf(power))
    return math.sqrt(max(difference**2 - hidden**2, 0.0))


def _bound(p_value: float, part: float, degrees: int) -> float:
    """Standard errors from which a difference has at most this p-value; `part` of its variance is from the seeds."""
    from scipy.special import ndtri, stdtrit

    return -float(part * stdtrit(degrees, p_value / 2) + (1 - part) * ndtri(p_value / 2))


def _p_value(errors: float, part: float, degrees: int) -> float:
    """The p-value of a difference of so many standard errors."""
    low, high = LEAST_LOGARITHM, 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _bound(10**middle, part, degrees) > errors else (low, middle)
    return float(10**high)
