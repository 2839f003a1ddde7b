"""The answer in words: which backbone or level for which budget, and which are not significantly different."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from facebones.reporting.results import MetricResult, Results
from facebones.reporting.seeds import SEED_RULE, seed_sentences
from facebones.reporting.variants import variant_name
from facebones.reporting.words import MOST_LISTED, listed, spread_words
from facebones.system.number_format import short_number

MACS_BUDGETS = tuple(1e6 * value for value in (10, 50, 150, 500, 1e3, 5e3, 20e3))
LATENCY_BUDGETS = (2.0, 5.0, 20.0, 100.0, 500.0)
MOST_SENTENCES = 5  # of an answer
MOST_GROUPS = 4  # sentences for a factor by one metric

QUESTIONS = ("verdict", "budget", "unknown", "cheapest", "factor", "tuning", "seeds", "latency")
NO_SENTENCES = {question: list[str]() for question in QUESTIONS}

BEST_RULE = (
    "The best {noun} has the best mean over its seeds. {Noun}s are compared by the main metric of each evaluated"
    " set, which the protocol defines; here: {metrics}."
)
VARIANT_RULE = "A variant is a backbone with its level of each factor: {factors}. Its runs differ only in the seed."
TEST_RULE = (
    "Two {noun}s differ significantly if p <= 0.05 after Holm's correction over all pairs. Where one has several"
    " seeds, p asks whether other seeds, on other people or pairs, would show the difference; with one seed each,"
    " whether these two runs would show it on other people or pairs. Not significantly different does not mean equal."
)
SPREAD_RULE = (
    "± is the standard deviation over the seeds. For one seed, [low, high] is the 95 % interval over the people or"
    " pairs of the set; it does not include the variation between seeds."
)
BUDGET_RULE = (
    "The overall best is named with its cost. Smaller budgets are 10, 50, 150 and 500 M, 1, 5 and 20 G MACs: each"
    " further best {noun} is named with the largest budget at which it is best, if at least two {noun}s fit that"
    " budget. Budgets of latency (2, 5, 20, 100 and 500 ms for one image) use the first metric only."
)
ORDER_RULE = (
    "Two backbones change places if the better one by the mean over the seeds at default is not the better one at"
    " tuned, with everything else equal."
)
CHEAPEST_RULE = (
    "The cheapest is the one with the fewest MACs among the best and those not significantly different from it."
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The beginning of a report.

    Attributes:
        sentences: at most MOST_SENTENCES, plain text, the most important first.
        rules: how they were derived; plain text.
        details: every sentence of every metric, where they are more.
    """

    sentences: Sequence[str]
    rules: Sequence[str]
    details: Sequence[str] = ()


def answer(results: Results) -> Answer:
    """The answer that the metrics give, or the statement that there are none."""
    metrics = results.main_metrics()
    parts = [_by_metric(results, metric) for metric in metrics]
    if metrics:
        parts[0]["latency"] = _by_latency(results, metrics[0])
    added, reservations = _added_seeds(results), _reservations(results, metrics)
    measured = [sentence for part in parts for sentences in part.values() for sentence in sentences]
    details = [*measured, *added, *reservations]
    if not any(map(any, parts)):
        details.insert(0, f"Nothing has been measured yet, so no {results.noun} can be recommended.")
    rules = _rules(results, metrics) if metrics else []
    if len(details) <= MOST_SENTENCES:
        return Answer(sentences=details, rules=rules)
    if added:
        parts[0]["seeds"] = []  # the sentence on the added seeds tells their spread, too
    end = [*added[:1], *([_joined(reservations)] if reservations else [])]
    return Answer(sentences=_summary(results, metrics, parts[0], end), rules=rules, details=details)


def _summary(
    results: Results, metrics: Sequence[MetricResult], first: Mapping[str, list[str]], end: Sequence[str]
) -> list[str]:
    """One sentence for each question: what is best, by the other metrics too, for a budget, and is it real?"""
    beginning = [*first["verdict"], *_by_others(results, metrics)]
    parts = [first["factor"][:1], first["tuning"][:1], _in_one(first["budget"]), first["cheapest"], first["seeds"]]
    chosen = [sentence for part in [*parts, _in_one(first["latency"])] for sentence in part]
    return [*beginning, *chosen[: MOST_SENTENCES - len(beginning) - len(end)], *end]


def _in_one(sentences: Sequence[str]) -> list[str]:
    """Sentences on several budgets as one: what is best, without the verdict on the others."""
    if len(sentences) < 2:
        return [*sentences]
    parts = [sentence.rstrip(".").split("; ")[0] for sentence in sentences]
    return ["; ".join([parts[0], *(part[0].lower() + part[1:] for part in parts[1:])]) + "."]


def _joined(sentences: Sequence[str]) -> str:
    """Sentences as one; what begins with a name keeps its letters."""
    parts = [sentence.rstrip(".") for sentence in sentences]
    small = [part[0].lower() + part[1:] if part.startswith(("Each ", "The ")) else part for part in parts[1:]]
    return "; ".join([parts[0], *small]) + "."


def _by_others(results: Results, metrics: Sequence[MetricResult]) -> list[str]:
    """What is best by the metrics after the first, and by which of them nothing is significant."""
    best = dict[tuple[str, ...], list[str]]()
    unclear, first = list[str](), tuple[str, ...]()
    for metric in metrics:
        ranking = results.ranking(metric)
        if len(ranking) > 1 and not _all_guess(metric):
            ties, _, worse, untested = _sides(results, metric, ranking)
            if metric is not metrics[0]:
                best.setdefault(tuple(ties), []).append(metric.title)
                unclear += [] if worse or untested else [metric.title]
            else:
                first = tuple(ties)
    if not best:
        return []
    whole = f"all {len(metrics) - 1} other metrics"
    parts = [
        f"by {whole if len(titles) == len(metrics) - 1 > 2 else listed(titles)}, {listed([*names])} {_is(names)} best"
        + (" as well" if names == first else "")
        for names, titles in sorted(best.items(), key=lambda item: item[0] != first)
    ]
    if unclear:
        parts.append(f"no difference from the best is significant by {listed(unclear)}")
    whole = "; ".join(parts)
    return [whole[0].upper() + whole[1:] + "."]


def _rules(results: Results, metrics: Sequence[MetricResult]) -> list[str]:
    named = ", ".join(metric.title for metric in metrics)
    best_rule = BEST_RULE.format(metrics=named, noun=results.noun, Noun=results.noun.capitalize())
    test_rule, budget_rule = (rule.format(noun=results.noun) for rule in (TEST_RULE, BUDGET_RULE))
    rules = [best_rule, test_rule, SPREAD_RULE, budget_rule, CHEAPEST_RULE]
    if results.factors:
        rules.insert(0, VARIANT_RULE.format(factors=", ".join(results.factors)))
    if any(_by_tuning(results, metric) for metric in metrics):
        rules.append(ORDER_RULE)
    if any(seed_sentences(results, metric) for metric in metrics):
        rules.append(SEED_RULE.format(noun=results.noun))
    if results.added_seeds:
        from facebones.reporting.added_seeds import RULE

        rules.append(RULE.format(noun=results.noun))
    return rules


def _by_metric(results: Results, metric: MetricResult) -> dict[str, list[str]]:
    """The sentences on a metric by what they are about."""
    ranking = results.ranking(metric)
    if _all_guess(metric):
        chance = f"{100 * (metric.chance or 0):g} %"
        guessing = (
            f"By {metric.title}, no {results.noun} is better than guessing ({chance}); no conclusion is possible."
        )
        return NO_SENTENCES | {"verdict": [guessing]}
    if not ranking:
        return dict(NO_SENTENCES)
    if len(ranking) == 1:
        value = _value(results, metric, ranking[0])
        return NO_SENTENCES | {"verdict": [f"{ranking[0]} reaches {value} by {metric.title}; nothing to compare."]}
    costs = {name: macs for name in ranking if (macs := results.costs[name].macs) is not None}
    best = costs.get(ranking[0])
    unknown = [name for name in ranking if name not in costs] if costs else []
    them = "it" if len(unknown) == 1 else "them"
    return NO_SENTENCES | {
        "verdict": [
            _verdict(results, metric, ranking, place="" if best is None else f", at {short_number(best)} MACs,")
        ],
        "budget": _by_budget(results, metric, costs, MACS_BUDGETS, lambda value: f"{short_number(value)} MACs"),
        "unknown": [f"The MACs of {listed(unknown)} are unknown, so no budget includes {them}."] if unknown else [],
        "cheapest": _cheapest(results, metric, ranking),
        "factor": _by_factor(results, metric, ranking),
        "tuning": _by_tuning(results, metric),
        "seeds": seed_sentences(results, metric),
    }


def _by_factor(results: Results, metric: MetricResult, ranking: Sequence[str]) -> list[str]:
    """Which level of each factor is best, with everything else equal; the verdict on all says it if nothing else is."""
    sentences = []
    for factor in results.factors:
        groups = [(within, group) for within, group in _alike(results, factor, ranking) if len(group) > 1]
        if len(groups) == 1 and len(groups[0][1]) == len(ranking):
            continue
        for within, group in groups[:MOST_GROUPS]:
            called = {name: results.first_run(name).levels.get(factor, f"no {factor}") for name in group}
            sentences.append(_verdict(results, metric, group, lead=f"With {within}, ", called=called))
        if (more := len(groups) - MOST_GROUPS) > 0:
            sentences.append(f"The table of differences compares {factor} in {more} more settings.")
    return sentences


def _by_tuning(results: Results, metric: MetricResult) -> list[str]:
    """Whether tuning changes the order of the backbones."""
    if not results.tunings:
        return []
    from facebones.reporting.tuning_order import order_sentences  # few studies are tuned

    return order_sentences(results, metric)[:MOST_GROUPS]


def _added_seeds(results: Results) -> list[str]:
    """How `seeds: auto` ended, a sentence for each study that has it."""
    if not results.added_seeds:
        return []
    from facebones.reporting.added_seeds import added_seeds_sentence

    return [added_seeds_sentence(one) for one in results.added_seeds]


def _alike(results: Results, factor: str, ranking: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The variants that differ in one factor only, the best first, with what they have in common in words."""
    groups: dict[str, list[str]] = {}
    for name in results.variants:
        run = results.first_run(name)
        others = {key: level for key, level in run.levels.items() if key in results.factors and key != factor}
        if name in ranking:
            groups.setdefault(variant_name(run.backbone, others), []).append(name)
    return [(within, sorted(group, key=ranking.index)) for within, group in groups.items()]


def _by_latency(results: Results, metric: MetricResult) -> list[str]:
    ranking = results.ranking(metric)
    costs = {name: cost for name in ranking if (cost := results.costs[name].latency_ms) is not None}
    if len(costs) < 2 or _all_guess(metric):
        return []
    if busy := [name for name in costs if results.costs[name].busy]:
        return [f"The machine was busy while the latency of {listed(busy)} was measured: nothing is said by latency."]
    return _by_budget(results, metric, costs, LATENCY_BUDGETS, lambda value: f"{value:g} ms per image")


def _by_budget(
    results: Results,
    metric: MetricResult,
    costs: Mapping[str, float],
    budgets: Sequence[float],
    words: Callable[[float], str],
) -> list[str]:
    """A sentence for each best other than the overall best, the largest budget first; `costs` has the best first."""
    sentences = []
    before = results.ranking(metric)[0]
    for budget in reversed(budgets):
        affordable = [name for name, cost in costs.items() if cost <= budget]
        if len(affordable) > 1 and affordable[0] != before:
            before = affordable[0]
            sentences.append(_verdict(results, metric, affordable, lead=f"Up to {words(budget)}, "))
    return sentences


def _verdict(
    results: Results,
    metric: MetricResult,
    ranking: Sequence[str],
    *,
    lead: str = "",
    place: str = "",
    called: Mapping[str, str] | None = None,
) -> str:
    """Which of these variants, the best first, is best, and what the tests say about the others.

    Args:
        results: of the report.
        metric: that decides.
        ranking: the variants.
        lead: before the sentence.
        place: after the best.
        called: their names in the sentence; by default their own.
    """

    def named(names: Sequence[str]) -> str:
        return listed([called[name] if called else name for name in names])

    best, (ties, alike, worse, untested) = ranking[0], _sides(results, metric, ranking)
    if alike and not worse and not untested:
        return (
            f"{lead}{'by' if lead else 'By'} {metric.title}, no difference from the best is significant:"
            f" {named(ties)}{place} {'reaches' if len(ties) == 1 else 'tie at'} {_value(results, metric, best)},"
            f" before {named(alike)}."
        )
    level = "is best" if len(ties) == 1 else "tie for best"
    parts = [f"{lead}{named(ties)}{place} {level} by {metric.title}: {_value(results, metric, best)}"]
    if alike:
        parts.append(f"{named(alike)} {_is(alike)} not significantly different")
    if worse:
        parts.append(f"{named(worse)} {_is(worse)} significantly worse")
    if untested:
        parts.append(f"{named(untested)} {_is(untested)} worse, but no test confirms it")
    return "; ".join(parts) + "."


def _sides(
    results: Results, metric: MetricResult, ranking: Sequence[str]
) -> tuple[list[str], list[str], list[str], list[str]]:
    """These variants, the best first, as those that are best, and those that the tests call alike, worse or neither."""
    means = {name: spread.mean for name in ranking if (spread := results.spread(metric, name)) is not None}
    best, ties = ranking[0], [name for name in ranking if math.isclose(means[name], means[ranking[0]], abs_tol=1e-12)]
    others = [name for name in ranking if name not in ties]
    pairs = [{test.first, test.second} for test in results.tests(metric)]
    tested = {name for pair in pairs if best in pair for name in pair}
    same = results.not_different_from(metric, best)
    alike = [name for name in others if name in same]
    worse = [name for name in others if name in tested and name not in alike]
    return ties, alike, worse, [name for name in others if name not in tested]


def _cheapest(results: Results, metric: MetricResult, ranking: Sequence[str]) -> list[str]:
    best = ranking[0]
    candidates = {
        name: macs
        for name in sorted((best, *results.not_different_from(metric, best)), key=ranking.index)
        if (macs := results.costs[name].macs) is not None and not _guesses(results, metric, name)
    }
    cheapest = min(candidates, key=lambda name: candidates[name], default=best)
    if cheapest == best or best not in candidates:
        return []
    return [
        f"The cheapest {results.noun} that is not significantly different from the best, {best}, is {cheapest}:"
        f" {short_number(candidates[cheapest])} MACs instead of {short_number(candidates[best])}, and"
        f" {_value(results, metric, cheapest)}."
    ]


def _reservations(results: Results, metrics: Sequence[MetricResult]) -> list[str]:
    """What a reader must know before relying on the rest."""
    sentences = []
    unfinished = [run.name for run in results.runs if run.state != "done"]
    if unfinished:
        verb = "has" if len(unfinished) == 1 else "have"
        whole = "The only run" if len(results.runs) == 1 else f"{len(unfinished)} of {len(results.runs)} runs"
        more = " ..." if len(unfinished) > MOST_LISTED else ""
        sentences.append(f"{whole} {verb} failed or not finished: {', '.join(unfinished[:MOST_LISTED])}{more}.")
    still = {name for metric in metrics for name in metric.values}.intersection(unfinished)
    if still:
        sentences.append(f"The metrics include an earlier evaluation of {listed(sorted(still))}.")
    single = [name for name in results.variants if sum(run.state == "done" for run in results.runs_of(name)) == 1]
    if len(single) == len(results.variants) > 0:
        sentences.append(f"Each {results.noun} has one seed, so the variation between seeds is unknown.")
    elif single:
        verb = "has" if len(single) == 1 else "have"
        assumed = f"the tests take it to vary between seeds as the {results.noun} does that it is compared with"
        sentences.append(f"{listed(single)} {verb} one seed only; {assumed}.")
    return sentences


def _all_guess(metric: MetricResult) -> bool:
    """Whether the intervals of all runs reach what guessing reaches."""
    return _reach_chance(metric, list(metric.intervals.values()))


def _guesses(results: Results, metric: MetricResult, backbone: str) -> bool:
    """Whether the intervals of all runs of a variant reach what guessing reaches."""
    names = [run.name for run in results.runs_of(backbone)]
    return _reach_chance(metric, [metric.intervals[name] for name in names if name in metric.intervals])


def _reach_chance(metric: MetricResult, intervals: Sequence[Mapping[str, Any]]) -> bool:
    if metric.chance is None or not intervals:
        return False
    if metric.higher_is_better:
        return all(interval["low"] <= metric.chance for interval in intervals)
    return all(interval["high"] >= metric.chance for interval in intervals)


def _value(results: Results, metric: MetricResult, backbone: str) -> str:
    spread = results.spread(metric, backbone)
    return "-" if spread is None else spread_words(spread)


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
