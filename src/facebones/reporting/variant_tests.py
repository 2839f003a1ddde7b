"""Tests of two variants by one metric: over the seeds of both and over the people or pairs of the set.

With one run each, the test is that of the evaluation. With seeds, `statistics.seeds_and_set` takes both kinds of noise
into account: what it needs of the set is in the intervals of the differences between runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from facebones.statistics.seeds_and_set import compare_levels, shared_variance
from facebones.statistics.significance import SIGNIFICANT, holm

ERRORS = 1.959964  # standard errors to each side in a 95 % interval


@dataclass(frozen=True, kw_only=True)
class VariantTest:
    """Two variants compared by one metric.

    Attributes:
        first: a variant.
        second: another.
        difference: mean of the first's runs minus mean of the second's.
        p_value: after Holm's correction over all pairs of variants. In a study without seeds and factors, after the
            evaluation's own, which covers the set's other metrics too.
        low: lower end of the 95 % interval of the difference, without a correction.
        high: its upper end.
        from_seeds: share of the variance of the difference that is from the seeds; None with one run each.
        set_error: standard error of the difference that is from the set; None with one run each.
    """

    first: str
    second: str
    difference: float
    p_value: float
    low: float
    high: float
    from_seeds: float | None = None
    set_error: float | None = None

    @property
    def significant(self) -> bool:
        """At 5 %."""
        return self.p_value <= SIGNIFICANT


class RunTest(NamedTuple):
    """Two runs compared: first minus second, its interval, and the p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float

    @property
    def variance(self) -> float:
        """Of the difference, over people or pairs."""
        return ((self.high - self.low) / (2 * ERRORS)) ** 2


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two variants that differ in one thing only.

    Attributes:
        factor: in which they differ; BACKBONE for backbones.
        within: what they have in common, in words: the backbone, or levels of other factors.
        levels: theirs of the factor, or the backbones.
        test: of one against the other.
    """

    factor: str
    within: str
    levels: tuple[str, str]
    test: VariantTest


def variant_tests(
    comparisons: Sequence[Mapping[str, Any]],
    values: Mapping[str, float],
    owner: Mapping[str, str],
    variants: Sequence[str],
    *,
    factors: bool,
) -> list[VariantTest]:
    """The tests of every two variants of which all runs were compared, in the order of the variants.

    A variant with a run that has the metric from elsewhere, such as from validation, has no test: its mean is of other
    runs than a test would be.

    Args:
        comparisons: of every two runs; see `MetricResult`.
        values: of the metric, by run.
        owner: run to variant.
        variants: in order.
        factors: whether variants have levels; then there are more of them than an evaluation knows.
    """
    cells, within = _cells(comparisons, owner, variants)
    compared = {test[side] for test in comparisons for side in ("first", "second")}
    runs = {name: [values[run] for run in values if owner.get(run) == name] for name in variants}
    untested = {owner[run] for run in values if run in owner and run not in compared}
    cells = {pair: outcomes for pair, outcomes in cells.items() if untested.isdisjoint(pair)}
    single = not factors and all(len(runs[name]) == 1 for pair in cells for name in pair)
    tests = [_variant_test(pair, outcomes, runs, within) for pair, outcomes in cells.items()]
    if single:
        return [replace(test, p_value=cells[test.first, test.second][0].adjusted) for test in tests]
    corrected = holm([test.p_value for test in tests]).tolist()
    return [replace(test, p_value=p_value) for test, p_value in zip(tests, corrected, strict=True)]


def _cells(
    comparisons: Sequence[Mapping[str, Any]], owner: Mapping[str, str], variants: Sequence[str]
) -> tuple[dict[tuple[str, str], list[RunTest]], dict[str, list[float]]]:
    """The tests of runs of two variants, in the order of the variants, and variances between runs of one."""
    order = {name: place for place, name in enumerate(variants)}
    cells: dict[tuple[str, str], list[RunTest]] = {}
    within: dict[str, list[float]] = {}
    for test in comparisons:
        first, second = owner.get(test["first"]), owner.get(test["second"])
        if first is None or second is None:
            continue
        turned = order[first] > order[second]
        outcome = _run_test(test, turned)
        if first != second:
            cells.setdefault((second, first) if turned else (first, second), []).append(outcome)
        else:
            within.setdefault(first, []).append(outcome.variance)
    pairs = sorted(cells, key=lambda pair: (order[pair[0]], order[pair[1]]))
    return {pair: cells[pair] for pair in pairs}, within


def _run_test(test: Mapping[str, Any], turned: bool) -> RunTest:
    """The test of two runs; turned: of the second against the first."""
    difference, low, high = test["difference"], test["interval"]["low"], test["interval"]["high"]
    if turned:
        difference, low, high = -difference, -high, -low
    return RunTest(difference, low, high, test["p_value"], test["adjusted"])


def _variant_test(
    pair: tuple[str, str],
    outcomes: Sequence[RunTest],
    runs: Mapping[str, Sequence[float]],
    within: Mapping[str, Sequence[float]],
) -> VariantTest:
    first, second = pair
    if len(runs[first]) + len(runs[second]) > 2:
        variances = [outcome.variance for outcome in outcomes]
        shared = shared_variance(variances, within.get(first, ()), within.get(second, ()))
        return VariantTest(first=first, second=second, **vars(compare_levels(runs[first], runs[second], shared)))
    difference, low, high, p_value, _ = outcomes[0]
    return VariantTest(first=first, second=second, difference=difference, p_value=p_value, low=low, high=high)
