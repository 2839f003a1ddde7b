"""Is the difference real? Intervals for figures, tests between models, and the correction for making many of them.

An interval for a rate is Wilson's score interval with the effective number of outcomes, value (1 - value) / variance,
the variance being the bootstrap's (`bootstrap.Figure.variance`). It keeps to 0-1, and it is as skew as a rate near 1
is. It was chosen by simulation (500 persons whose quality differs; accuracy, TAR, AUC and EER): value +- 1.96 standard
errors held the truth about one data set in a hundred less often, the bootstrap's percentiles one or two, basic
intervals three; with 300 persons, and 30 or fewer accepted impostor pairs, the others fell to 88-93 %, this one to 92.
How often it holds, and where it does not, stands in docs/protocols.md ("How well it holds").

A test of two models asks whether the difference is further from 0 than its standard error explains; the models share
their replicates. The p-value is two-sided, by Student's t with one degree less than there are identities (or pairs).
For a mean of outcomes (accuracy, Rank-k) McNemar's mid-p test takes its place, for it holds with few outcomes too;
where identities are known, its normal deviate is divided by the root of the design effect: the variance over
identities in the unit of that over pairs, at least 1. Of equal models 4-6 % are told apart at 0.05 in simulations; with
a TAR of 30 or fewer accepted impostor pairs it is 2-4 %: the test errs to the side of "no difference".

Sources: E. B. Wilson, Journal of the American Statistical Association 22 (1927); E. L. Korn and B. I. Graubard, Survey
Methodology 24 (1998), for effective numbers; M. W. Fagerland, S. Lydersen and P. Laake, "The McNemar test for binary
matched-pairs data: mid-p and asymptotic are better than exact conditional", BMC Medical Research Methodology 13
(2013); J. N. K. Rao and A. J. Scott, Annals of Statistics 12 (1984), for dividing by the design effect; S. Holm,
Scandinavian Journal of Statistics 6 (1979).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.statistics.bootstrap import Figure, Unmeasured
from facebones.statistics.student import quantile, two_sided_p

FloatArray = npt.NDArray[np.float64]

LEVEL = 0.95
SIGNIFICANT = 0.05
MOST_EXACT = 10_000  # discordant outcomes; beyond, mid-p and the normal deviate agree to four digits
SMALLEST_P = 1e-300


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where the truth lies, with the stated confidence.

    Attributes:
        low: lower bound.
        high: upper bound.
        level: share of intervals made in this way that hold the truth.
        method: how it was made.
        resampled: what was drawn, "identities" or "pairs"; "seeds" where nothing was.
        replicates: how often; 0 where nothing was drawn.
    """

    low: float
    high: float
    level: float
    method: str
    resampled: str
    replicates: int

    def to_json(self) -> dict[str, Any]:
        """Give all attributes."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """Mean and spread of a figure over training seeds; of one seed there is neither deviation nor interval.

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
        """Give all attributes, null for what one seed has not."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models compared by one figure.

    Attributes:
        first: name of a model.
        second: name of the other.
        difference: value of the first minus that of the second.
        interval: of the difference, not corrected for many comparisons.
        p_value: two-sided, of "there is no difference".
        adjusted: that p-value after Holm's correction.
        method: the test's name.
    """

    first: str
    second: str
    difference: float
    interval: Interval
    p_value: float
    adjusted: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """Give all attributes."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FigureComparison:
    """All models and all pairs of models by one figure.

    Attributes:
        figure: its name.
        values: value of each model, by name.
        intervals: interval of each model, by name.
        comparisons: all M (M - 1) / 2 pairs of models.
        best: name of the best model, the first of equals.
        not_different_from_best: names of the best model and of all that do not differ from it significantly.
    """

    figure: str
    values: dict[str, float]
    intervals: dict[str, Interval]
    comparisons: tuple[Comparison, ...]
    best: str
    not_different_from_best: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give all attributes as plain lists, objects and finite numbers."""
        return asdict(self) | {
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "not_different_from_best": list(self.not_different_from_best),
        }


def confidence_interval(figure: Figure, model: int = 0, level: float = LEVEL) -> Interval:
    """Interval of one model's value: Wilson's, with the effective number of outcomes that the bootstrap finds.

    Where no replicate differs (all pairs right), the number of identities (or pairs) stands for it.
    """
    value = float(figure.values[model])
    variance = figure.variance(np.arange(figure.values.size) == model)
    bound = quantile(level, figure.units - 1)
    if variance > 0 and 0 < value < 1:
        low, high = wilson(value, value * (1 - value) / variance, bound)
        method = "bootstrap, score interval"
    else:
        low, high = wilson(value, figure.evidence, bound)
        method = f"score interval of {figure.evidence} outcomes, for no replicate differs"
    return _interval(min(low, value), max(high, value), level, method, figure)  # rounding parts them near 0 and 1


def wilson(rate: float, outcomes: float, bound: float) -> tuple[float, float]:
    """Wilson's interval for a rate over so many (effective) outcomes, and a normal or t quantile such as 1.96.

    >>> low, high = wilson(0.9, 100, 1.96)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    """
    square = bound**2 / outcomes
    centre = rate + square / 2
    half = math.sqrt(square * (rate * (1 - rate) + square / 4))
    return max((centre - half) / (1 + square), 0.0), min((centre + half) / (1 + square), 1.0)


def over_seeds(values: Sequence[float], level: float = LEVEL) -> SeedSpread:
    """Mean and spread of a figure over training seeds.

    Raises:
        ValueError: no values.

    >>> spread = over_seeds([0.90, 0.92, 0.94])
    >>> round(spread.mean, 4), round(spread.deviation, 4), spread.seeds, round(spread.interval.low, 4)
    (0.92, 0.02, 3, 0.8703)
    """
    if not len(values):
        raise ValueError("values: none; give the figure of at least one seed")
    mean, seeds = float(np.mean(values)), len(values)
    if seeds == 1:
        return SeedSpread(mean=mean, deviation=None, seeds=1, interval=None)
    deviation = float(np.std(values, ddof=1))
    half = quantile(level, seeds - 1) * deviation / math.sqrt(seeds)
    interval = Interval(
        low=mean - half, high=mean + half, level=level, method="Student's t", resampled="seeds", replicates=0
    )
    return SeedSpread(mean=mean, deviation=deviation, seeds=seeds, interval=interval)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided mid-p value of McNemar's test, from the outcomes that only one of two models has right.

    Half the probability of what was observed counts as more extreme. With nothing discordant the answer is 1.

    >>> round(mcnemar(1, 9), 6)
    0.011719
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    if not total:
        return 1.0
    if total > MOST_EXACT:
        return math.erfc(abs(only_first - only_second) / math.sqrt(2 * total))
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    below = np.arange(fewer + 1)
    log_chance = log_factorial[total] - log_factorial[below] - log_factorial[total - below] - total * math.log(2)
    chance = np.exp(log_chance)
    return min(float(2 * chance.sum() - chance[-1]), 1.0) if only_first != only_second else 1.0 - float(chance[-1]) / 2


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """Adjust p-values for making all these tests: at 0.05, the chance of any false alarm is at most 5 %.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is less than one before it, or above 1.

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
    names: Sequence[str],
    figures: Sequence[Figure | Unmeasured] | Mapping[str, Figure | Unmeasured],
    level: float = LEVEL,
) -> dict[str, FigureComparison | Unmeasured]:
    """Compare all pairs of M models by each figure; Holm's correction runs over all these comparisons together.

    Args:
        names: M different names, in the figures' order.
        figures: what the functions of `bootstrap` give; a figure that could not be measured stays as it is.
        level: of the intervals; models differ significantly where the adjusted p-value is at most 0.05.

    Raises:
        ValueError: names that are not unique or do not fit a figure.
    """
    figures = list(figures.values()) if isinstance(figures, Mapping) else list(figures)
    measured = [figure for figure in figures if isinstance(figure, Figure)]
    for figure in measured:
        if len(names) != figure.values.size or len(set(names)) != len(names):
            raise ValueError(f"names: {list(names)} for {figure.values.size} models; give a name of its own for each")
    pairs = list(itertools.combinations(range(len(names)), 2))
    tests = [[_test(figure, *pair) for pair in pairs] for figure in measured]
    adjusted = holm([p_value for row in tests for p_value, _ in row]).reshape(len(measured), len(pairs))
    found: dict[str, FigureComparison | Unmeasured] = {
        figure.name: figure for figure in figures if isinstance(figure, Unmeasured)
    }
    for figure, row, corrected in zip(measured, tests, adjusted, strict=True):
        comparisons = tuple(
            Comparison(
                first=names[first],
                second=names[second],
                difference=float(figure.values[first] - figure.values[second]),
                interval=difference_interval(figure, first, second, level),
                p_value=p_value,
                adjusted=float(after),
                method=method,
            )
            for (first, second), (p_value, method), after in zip(pairs, row, corrected, strict=True)
        )
        found[figure.name] = FigureComparison(
            figure=figure.name,
            values=dict(zip(names, figure.values.tolist(), strict=True)),
            intervals={name: confidence_interval(figure, index, level) for index, name in enumerate(names)},
            comparisons=comparisons,
            best=names[int(np.argmax(figure.values) if figure.higher_is_better else np.argmin(figure.values))],
            not_different_from_best=not_different_from_best(
                names, figure.values, comparisons, higher_is_better=figure.higher_is_better
            ),
        )
    return {figure.name: found[figure.name] for figure in figures}


def comparison_json(results: Mapping[str, Any], figures: Mapping[str, FigureComparison | Unmeasured]) -> dict[str, Any]:
    """What a protocol answers of each model, and the comparison of each figure, as plain values."""
    return {
        "models": {name: result.to_json() for name, result in results.items()},
        "figures": {name: figure.to_json() for name, figure in figures.items()},
    }


def not_different_from_best(
    names: Sequence[str],
    values: Sequence[float] | FloatArray,
    comparisons: Sequence[Comparison],
    *,
    higher_is_better: bool = True,
) -> tuple[str, ...]:
    """Names, in their order, of the best model and of those whose adjusted p-value against it is above 0.05."""
    best = names[int(np.argmax(values) if higher_is_better else np.argmin(values))]
    different = {
        name
        for comparison in comparisons
        if best in (comparison.first, comparison.second) and comparison.adjusted <= SIGNIFICANT
        for name in (comparison.first, comparison.second)
    }
    return tuple(name for name in names if name == best or name not in different)


def difference_interval(figure: Figure, first: int, second: int, level: float = LEVEL) -> Interval:
    """Interval of the value of one model minus that of another: +- t standard errors of the difference."""
    difference = float(figure.values[first] - figure.values[second])
    half = quantile(level, figure.units - 1) * math.sqrt(_difference_variance(figure, first, second))
    return _interval(difference - half, difference + half, level, "paired bootstrap, standard error", figure)


def _test(figure: Figure, first: int, second: int) -> tuple[float, str]:
    """Two-sided p-value of "no difference", and the name of the test."""
    variance = _difference_variance(figure, first, second)
    if figure.discordant is not None:
        only_first, only_second = int(figure.discordant[first, second]), int(figure.discordant[second, first])
        effect = _design_effect(variance, only_first, only_second, figure) if figure.resampled != "pairs" else 1.0
        name = "McNemar mid-p" if figure.resampled == "pairs" else "McNemar mid-p, design effect of identities"
        return _deflated(mcnemar(only_first, only_second), effect), name
    difference = float(figure.values[first] - figure.values[second])
    if variance > 0:
        return two_sided_p(difference / math.sqrt(variance), figure.units - 1), "paired bootstrap"
    # All identities agree: the sign test's answer.
    return (1.0 if difference == 0 else max(2.0 ** (1 - figure.evidence), SMALLEST_P)), "paired bootstrap"


def _design_effect(variance: float, only_first: int, only_second: int, figure: Figure) -> float:
    """Variance of a difference of means over that of independent outcomes with the same discordance, at least 1."""
    net, total = only_first - only_second, only_first + only_second
    independent = (total - net**2 / figure.outcomes) / figure.outcomes**2
    return max(variance / independent, 1.0) if independent > 0 else 1.0


def _deflated(p_value: float, effect: float) -> float:
    """P-value after its normal deviate is divided by the root of the design effect."""
    deviate = -NormalDist().inv_cdf(max(p_value, SMALLEST_P) / 2)
    return math.erfc(deviate / math.sqrt(2 * effect))


def _difference_variance(figure: Figure, first: int, second: int) -> float:
    number = np.arange(figure.values.size)
    return figure.variance((number == first) * 1.0 - (number == second))


def _interval(low: float, high: float, level: float, method: str, figure: Figure) -> Interval:
    return Interval(
        low=low,
        high=high,
        level=level,
        method=method,
        resampled=figure.resampled,
        replicates=len(figure.replicates),
    )
