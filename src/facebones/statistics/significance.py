"""Is the difference real? Intervals of metrics, tests between models, and the correction for multiple tests.

The interval of a rate is Wilson's score interval with the effective number of outcomes, value (1 - value) / variance,
where the variance is the bootstrap's (`ResampledMetric.variance`). It stays in [0, 1] and is asymmetric near the ends.
It was chosen by simulation (500 persons of different quality; accuracy, TAR, AUC and EER). Compared with it, value +-
1.96 standard errors contained the true value in one data set of a hundred less, the bootstrap's percentiles in one or
two less, basic intervals in three less. With 300 persons and 30 or fewer accepted impostor pairs the others fell to
88-93 %, this one to 92 %. docs/protocols.md ("How well this holds") gives its coverage and its limits.

A test of two models asks whether the difference is further from 0 than its standard error explains; the models share
their replicates. The p-value is two-sided, from Student's t with one degree of freedom less than there are identities
(or pairs). For a mean of outcomes (accuracy, Rank-k) McNemar's mid-p test is used instead, because it is valid with few
outcomes too. Where identities are known, its normal deviate is divided by the root of the design effect: the variance
over identities divided by the variance over pairs, at least 1. In simulations, 4-6 % of equal models differ
significantly at 0.05; for a TAR with 30 or fewer accepted impostor pairs 2-4 %, so there the test is conservative.

Sources: E. B. Wilson, Journal of the American Statistical Association 22 (1927); E. L. Korn and B. I. Graubard, Survey
Methodology 24 (1998), for effective numbers; M. W. Fagerland, S. Lydersen and P. Laake, "The McNemar test for binary
matched-pairs data: mid-p and asymptotic are better than exact conditional", BMC Medical Research Methodology 13
(2013); J. N. K. Rao and A. J. Scott, Annals of Statistics 12 (1984), for dividing by the design effect; S. Holm,
Scandinavian Journal of Statistics 6 (1979).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facebones.statistics.metric import Comparison, Interval, Metric, MetricComparison, best_model

if TYPE_CHECKING:
    from facebones.statistics.bootstrap import ResampledMetric

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
SIGNIFICANT = 0.05
MOST_EXACT = 10_000  # discordant outcomes; beyond, mid-p and the normal deviate agree to four digits
SMALLEST_P = 1e-300


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """Mean and spread of a metric over training seeds; one seed has neither deviation nor interval.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation (divisor n - 1).
        seeds: their number n.
        interval: of the mean, by Student's t with n - 1 degrees of freedom.
    """

    mean: float
    deviation: float | None
    seeds: int
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Return all attributes; None where one seed has no value."""
        return asdict(self)


def confidence_interval(metric: "ResampledMetric", model: int = 0, level: float = LEVEL) -> Interval:
    """Interval of one model's value: Wilson's, with the effective number of outcomes from the bootstrap.

    Where all replicates agree (all pairs correct), the number of identities (or pairs) is used instead.
    """
    value = float(metric.values[model])
    variance = metric.variance(np.arange(metric.values.size) == model)
    bound = t_quantile(level, metric.units - 1)
    if variance > 0 and 0 < value < 1:
        low, high = wilson(value, value * (1 - value) / variance, bound)
        method = "bootstrap, score interval"
    else:
        low, high = wilson(value, metric.evidence, bound)
        method = f"score interval of {metric.evidence} outcomes; all replicates agree"
    return _interval(min(low, value), max(high, value), level, method, metric)  # they differ by rounding near 0 and 1


def wilson(rate: float, outcomes: float, bound: float) -> tuple[float, float]:
    """Wilson's interval of a rate over a number of (effective) outcomes, for a normal or t quantile such as 1.96.

    >>> low, high = wilson(0.9, 100, 1.96)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    """
    square = bound**2 / outcomes
    centre = rate + square / 2
    half = math.sqrt(square * (rate * (1 - rate) + square / 4))
    return max((centre - half) / (1 + square), 0.0), min((centre + half) / (1 + square), 1.0)


def outcomes_interval(rate: float, outcomes: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share of independent outcomes, such as of the pairs that are decided correctly.

    It is that of `confidence_interval` where single outcomes are resampled, without the bootstrap.

    >>> found = outcomes_interval(0.9, 600)
    >>> round(found.low, 4), round(found.high, 4)
    (0.8733, 0.9216)
    """
    low, high = wilson(rate, outcomes, t_quantile(level, max(outcomes - 1, 1)))
    method = f"score interval of {outcomes} outcomes"
    return Interval(low=low, high=high, level=level, method=method, resampled="pairs", replicates=0)


def over_seeds(values: Sequence[float], level: float = LEVEL) -> SeedSpread:
    """Mean and spread of a metric over training seeds.

    Raises:
        ValueError: no values.

    >>> spread = over_seeds([0.90, 0.92, 0.94])
    >>> round(spread.mean, 4), round(spread.deviation, 4), spread.seeds, round(spread.interval.low, 4)
    (0.92, 0.02, 3, 0.8703)
    """
    if not len(values):
        raise ValueError("values: none; give the value of at least one seed")
    mean, seeds = mean_of(values), len(values)
    if seeds == 1:
        return SeedSpread(mean=mean, deviation=None, seeds=1, interval=None)
    deviation = float(np.std(values, ddof=1)) if np.ptp(values) else 0.0
    half = t_quantile(level, seeds - 1) * deviation / math.sqrt(seeds)
    interval = Interval(
        low=mean - half, high=mean + half, level=level, method="Student's t", resampled="seeds", replicates=0
    )
    return SeedSpread(mean=mean, deviation=deviation, seeds=seeds, interval=interval)


def mean_of(values: Sequence[float] | FloatArray) -> float:
    """The mean; of equal values exactly this value, whatever their number.

    >>> float(np.mean([0.8345] * 3)) == 0.8345, mean_of([0.8345] * 3) == 0.8345
    (False, True)
    """
    return float(np.mean(values)) if np.ptp(values) else float(values[0])


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided mid-p value of McNemar's test, from the outcomes that only one of two models decides correctly.

    Half the probability of the observed outcome counts as more extreme. Without discordant outcomes it is 1.

    >>> round(mcnemar(1, 9), 6)
    0.011719
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    if not total:
        return 1.0
    if total > MOST_EXACT:
        return math.erfc(abs(only_first - only_second) / math.sqrt(2 * total))
    from scipy.special import bdtr

    log_chance = math.lgamma(total + 1) - math.lgamma(fewer + 1) - math.lgamma(total - fewer + 1) - total * math.log(2)
    chance = math.exp(log_chance)
    return min(2 * float(bdtr(fewer, total, 0.5)) - chance, 1.0) if only_first != only_second else 1.0 - chance / 2


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """Holm's correction of p-values for multiple tests: at 0.05, the chance of any false alarm is at most 5 %.

    The smallest of m is multiplied by m, the next by m - 1, and so on; the results are made monotone and at most 1.

    Raises:
        ValueError: a value outside 0 to 1.

    >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values: {values.tolist()}; give numbers from 0 to 1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1)), 1.0)
    return adjusted


def compare_models(
    names: Sequence[str], metrics: "Sequence[ResampledMetric | Metric]", level: float = LEVEL
) -> list[MetricComparison]:
    """Compare all pairs of M models by each metric; Holm's correction covers all these comparisons together.

    Args:
        names: M different names, in the order of the values.
        metrics: as the functions of `bootstrap` return them; a `Metric` is one that could not be measured.
        level: of the intervals; models differ significantly where the adjusted p-value is at most 0.05.

    Raises:
        ValueError: names that are not unique or do not match a metric.
    """
    measured = [metric for metric in metrics if not isinstance(metric, Metric)]
    for metric in measured:
        if len(names) != metric.values.size or len(set(names)) != len(names):
            raise ValueError(f"names: {list(names)} for {metric.values.size} models; give one unique name for each")
    pairs = list(itertools.combinations(range(len(names)), 2))
    tests = [[_test(metric, *pair) for pair in pairs] for metric in measured]
    adjusted = iter(holm([p_value for row in tests for p_value, _ in row]).reshape(len(measured), len(pairs)))
    rows = iter(tests)
    return [
        MetricComparison(metric=metric)
        if isinstance(metric, Metric)
        else _compared(names, metric, next(rows), next(adjusted), level)
        for metric in metrics
    ]


def _compared(
    names: Sequence[str],
    resampled: "ResampledMetric",
    tests: Sequence[tuple[float, str]],
    adjusted: FloatArray,
    level: float,
) -> MetricComparison:
    """The comparison by one metric, from the p-value and name of the test of each pair of models, in order."""
    pairs = itertools.combinations(range(len(names)), 2)
    comparisons = tuple(
        Comparison(
            first=names[first],
            second=names[second],
            difference=float(resampled.values[first] - resampled.values[second]),
            interval=difference_interval(resampled, first, second, level),
            p_value=p_value,
            adjusted=float(after),
            method=method,
        )
        for (first, second), (p_value, method), after in zip(pairs, tests, adjusted, strict=True)
    )
    values = dict(zip(names, resampled.values.tolist(), strict=True))
    best = best_model(resampled.metric, values)
    return MetricComparison(
        metric=resampled.metric,
        values=values,
        intervals={name: confidence_interval(resampled, index, level) for index, name in enumerate(names)},
        comparisons=comparisons,
        best=best,
        not_different_from_best=not_different_from(best, names, comparisons),
    )


def not_different_from(best: str | None, names: Sequence[str], comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Names, in order, of the best model and of those whose adjusted p-value against it is above 0.05."""
    different = {
        name
        for comparison in comparisons
        if best in (comparison.first, comparison.second) and comparison.adjusted <= SIGNIFICANT
        for name in (comparison.first, comparison.second)
    }
    return tuple(name for name in names if name == best or name not in different)


def difference_interval(metric: "ResampledMetric", first: int, second: int, level: float = LEVEL) -> Interval:
    """Interval of the value of one model minus that of another: +- t standard errors of the difference."""
    difference = float(metric.values[first] - metric.values[second])
    half = t_quantile(level, metric.units - 1) * math.sqrt(_difference_variance(metric, first, second))
    return _interval(difference - half, difference + half, level, "paired bootstrap, standard error", metric)


def _test(metric: "ResampledMetric", first: int, second: int) -> tuple[float, str]:
    """Two-sided p-value of "no difference", and the name of the test."""
    variance = _difference_variance(metric, first, second)
    if metric.discordant is not None:
        only_first, only_second = int(metric.discordant[first, second]), int(metric.discordant[second, first])
        effect = _design_effect(variance, only_first, only_second, metric) if metric.resampled != "pairs" else 1.0
        name = "McNemar mid-p" if metric.resampled == "pairs" else "McNemar mid-p, design effect of identities"
        return _deflated(mcnemar(only_first, only_second), effect), name
    difference = float(metric.values[first] - metric.values[second])
    if variance > 0:
        return _two_sided_p(difference / math.sqrt(variance), metric.units - 1), "paired bootstrap"
    # All identities agree: the sign test.
    return (1.0 if difference == 0 else max(2.0 ** (1 - metric.evidence), SMALLEST_P)), "paired bootstrap"


def _design_effect(variance: float, only_first: int, only_second: int, metric: "ResampledMetric") -> float:
    """Variance of a difference of means divided by that of independent outcomes with equal discordance, at least 1."""
    net, total = only_first - only_second, only_first + only_second
    independent = (total - net**2 / metric.outcomes) / metric.outcomes**2
    return max(variance / independent, 1.0) if independent > 0 else 1.0


def _deflated(p_value: float, effect: float) -> float:
    """P-value whose normal deviate is divided by the root of the design effect."""
    deviate = -NormalDist().inv_cdf(max(p_value, SMALLEST_P) / 2)
    return math.erfc(deviate / math.sqrt(2 * effect))


def _difference_variance(metric: "ResampledMetric", first: int, second: int) -> float:
    number = np.arange(metric.values.size)
    return metric.variance((number == first) * 1.0 - (number == second))


def _interval(low: float, high: float, level: float, method: str, metric: "ResampledMetric") -> Interval:
    return Interval(
        low=low,
        high=high,
        level=level,
        method=method,
        resampled=metric.resampled,
        replicates=len(metric.replicates),
    )


# scipy.special holds the functions behind scipy.stats.t and takes a quarter of the time to import.
def _two_sided_p(t: float, degrees: int) -> float:
    """Probability that |T| >= |t| for Student's T."""
    from scipy.special import stdtr

    return 2 * float(stdtr(degrees, -abs(t)))


def t_quantile(level: float, degrees: int) -> float:
    """Bound t with P(|T| < t) = level for Student's T."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))
