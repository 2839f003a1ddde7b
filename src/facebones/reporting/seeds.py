"""What the seeds of a report could tell: would other seeds show the difference, and how many seeds would say so."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from facebones.reporting.results import MetricResult, Results
from facebones.reporting.variant_tests import VariantTest
from facebones.statistics.seed_power import (
    MOST_SEEDS,
    compare_seeds,
    detectable_difference,
    seed_noise,
    seeds_needed,
)
from facebones.statistics.seeds_and_set import left_for_seeds
from facebones.statistics.significance import SIGNIFICANT, over_seeds
from facebones.system.number_format import p_words, rounded

SEED_RULE = (
    "How many seeds tell a difference follows from Student's t test between the seeds of two {noun}s: at 5 %, with 80 %"
    " power, from their pooled standard deviation over the seeds or, in brackets, from its upper 95 % confidence limit."
    " It asks whether other seeds would show the difference on the same people; the verdict, whether other seeds would"
    " on other people or pairs."
)
# By whether there are seeds.
BARS = {
    True: "Bars are 95 % intervals of each {noun} by itself: of the mean over its seeds, by Student's t; of a single"
    " run, over people or pairs.",
    False: "Bars are 95 % intervals of each {noun} by itself, over people or pairs.",
}
PAIRED = {
    True: " The tests compare two {noun}s on the same people or pairs, where what is hard for both cancels out, and ask"
    " about other seeds on other people; so bars may overlap where a difference is significant, and lie apart where it"
    " is not.",
    False: " The tests compare two {noun}s on the same people or pairs, where what is hard for both cancels out; so"
    " bars may overlap where a difference is significant.",
}


@dataclass(frozen=True, kw_only=True)
class SeedTest:
    """Two variants compared between their seeds by one metric.

    Attributes:
        first: a variant with two seeds or more.
        second: another.
        seeds: of each.
        difference: mean of the first minus mean of the second.
        p_value: of Student's t test with pooled variance; not corrected for the number of comparisons.
        deviation: pooled standard deviation between seeds.
        upper: its upper 95 % confidence limit.
        detectable: the difference that these seeds find with 80 % power.
        detectable_upper: the same, if the deviation is at its upper limit.
        needed: seeds of each variant that would find the observed difference with 80 % power; None: more than 1,000.
        needed_upper: the same, if the deviation is at its upper limit.
    """

    first: str
    second: str
    seeds: tuple[int, int]
    difference: float
    p_value: float
    deviation: float
    upper: float
    detectable: float
    detectable_upper: float
    needed: int | None
    needed_upper: int | None


def seed_tests(results: Results, metric: MetricResult) -> list[SeedTest]:
    """Every two variants that have two seeds or more, in the order of the variants."""
    spreads = {name: results.spread(metric, name) for name in results.variants}
    values = {name: [*one.values.values()] for name, one in spreads.items() if one and len(one.values) > 1}
    return [_seed_test(first, second, values) for first, second in combinations(values, 2)]


def _seed_test(first: str, second: str, values: Mapping[str, list[float]]) -> SeedTest:
    one, other = values[first], values[second]
    noise, difference = seed_noise([one, other]), over_seeds(one).mean - over_seeds(other).mean
    detectable, detectable_upper = (
        detectable_difference(spread, len(one), len(other)) for spread in (noise.deviation, noise.upper)
    )
    return SeedTest(
        first=first,
        second=second,
        seeds=(len(one), len(other)),
        difference=difference,
        p_value=compare_seeds(one, other),
        deviation=noise.deviation,
        upper=noise.upper,
        detectable=detectable,
        detectable_upper=detectable_upper,
        needed=seeds_needed(difference, noise.deviation),
        needed_upper=seeds_needed(difference, noise.upper),
    )


def seed_sentences(results: Results, metric: MetricResult) -> list[str]:
    """What the seeds could tell of the best and the one after it; nothing where there are no seeds, or they agree."""
    best, *others = results.ranking(metric)
    tests = {frozenset((one.first, one.second)): one for one in seed_tests(results, metric)}
    found = next(((name, tests[pair]) for name in others if (pair := frozenset((best, name))) in tests), None)
    if found is None or not found[1].deviation:
        return []
    other, test = found
    verdicts = {frozenset((one.first, one.second)): one for one in results.tests(metric)}
    one, two = test.seeds if test.first == best else test.seeds[::-1]
    seeds = f"{one} seeds each" if one == two else f"{one} and {two} seeds"
    return [
        f"Between seeds of {best} and {other}, {metric.title} varies by ± {_points(test.deviation)} points (at most"
        f" ± {_points(test.upper)}): {seeds} would find a difference of {_points(test.detectable)} points"
        f" ({_points(test.detectable_upper)}) with 80 % power;"
        f" {_of_observed(test, verdicts.get(frozenset((best, other))))}."
    ]


def _of_observed(test: SeedTest, verdict: VariantTest | None) -> str:
    """What that means for the observed difference, beside the verdict over seeds and set, if there is one."""
    if not test.difference:
        return "the two tie"
    seen, p = f"the {_points(test.difference)} points seen", p_words(test.p_value)
    if verdict is not None and verdict.significant:
        return f"{seen} are more than seeds and set explain"
    if test.p_value <= SIGNIFICANT:
        chance = f"p {p}" if p.startswith("<") else f"p = {p}"
        return f"{seen} are more than the seeds alone explain ({chance}, without the set's noise and Holm's correction)"
    left = left_for_seeds(test.difference, verdict.set_error or 0.0 if verdict is not None else 0.0)
    if not left:
        return (
            f"no number of seeds would find the {_points(test.difference)} points seen on this set, a larger one might"
        )
    needed, upper = (seeds_needed(left, spread) for spread in (test.deviation, test.upper))
    if needed is None:
        return f"{seen} would take more than {MOST_SEEDS:,} seeds each"
    most = f"more than {MOST_SEEDS:,}" if upper is None else f"{upper:,}"
    return f"{seen} would take about {needed:,} seeds each ({most})"


def bars_words(results: Results) -> str:
    """What the bars of a plot show and what the tests compare, for where they could seem to disagree."""
    seeds = any(len(results.runs_of(name)) > 1 for name in results.variants)
    tested = any(results.tests(metric) for metric in results.main_metrics())
    return (BARS[seeds] + (PAIRED[seeds] if tested else "")).format(noun=results.noun)


def _points(difference: float) -> str:
    return rounded(100 * abs(difference))
