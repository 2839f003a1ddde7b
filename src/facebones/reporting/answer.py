"""The answer in words: which backbone for which budget, and what is not told apart from it, by stated rules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from facebones.reporting.results import Cost, Figure, Results, Spread

MACS_BUDGETS = tuple(1e6 * value for value in (10, 25, 50, 100, 150, 300, 500, 1e3, 2e3, 5e3, 10e3, 25e3, 50e3))
LATENCY_BUDGETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
MOST_NAMED = 4  # backbones in a list of a sentence; of more, their number is said

BUDGET_RULE = (
    "Budgets are 10, 25, 50, 100, 150, 300, 500 M, 1, 2, 5, 10, 25 and 50 G MACs, and 1, 2, 5, 10, 20, 50, 100, 200,"
    " 500, 1000 and 5000 ms for an image. One is named where its best backbone is another than that of the budget"
    " before it, and where it is not a matter of one backbone only."
)
BEST_RULE = (
    "The best backbone has the best mean over its seeds: of accuracy on each pair set; of 1:1, of TAR at the smallest"
    " FAR, but not below 1e-4, that the data can measure; of 1:N, of Rank-1."
)
TEST_RULE = (
    "Two backbones are told apart where each run of one differs from each run of the other significantly (p < 0.05"
    " after Holm's correction over all pairs of runs), and always in the same direction. Otherwise they are not"
    " significantly different, which does not say that they are equal."
)
SPREAD_RULE = (
    "+- is the standard deviation over the seeds. Of one seed, [low, high] is the 95 % interval over the people or"
    " pairs of the set; what another seed would give is not in it."
)
CHEAPEST_RULE = (
    "The cheapest is that of the fewest MACs among the best and what is not significantly different from it."
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a report begins with.

    Attributes:
        sentences: plain text, the most important first.
        rules: how they were made; plain text.
    """

    sentences: Sequence[str]
    rules: Sequence[str]


def answer(results: Results) -> Answer:
    """The answer that the figures give; where there are none, that is what it says."""
    figures = results.main_figures()
    sentences = [sentence for figure in figures for sentence in _of_figure(results, figure)]
    if figures:
        sentences += _by_latency(results, figures[0])
    if not sentences:
        sentences = ["Nothing has been measured yet, so no backbone can be recommended."]
    rules = [BEST_RULE, TEST_RULE, SPREAD_RULE, BUDGET_RULE, CHEAPEST_RULE] if figures else []
    return Answer(sentences=[*sentences, *_reservations(results, figures)], rules=rules)


def _of_figure(results: Results, figure: Figure) -> list[str]:
    ranking = results.ranking(figure)
    if len(ranking) == 1:
        return [f"{ranking[0]} reaches {_value(results, figure, ranking[0])} by {figure.title}; nothing is compared."]
    sentences = _by_budget(results, figure, MACS_BUDGETS, lambda cost: cost.macs, _macs)
    unknown = [name for name in ranking if results.costs[name].macs is None]
    if not sentences:  # fewer than two costs are known
        return [_verdict(results, figure, ranking, "Of all,")]
    sentences += [
        f"{name}, whose MACs are not known, is in no budget; by {figure.title} it has {_value(results, figure, name)}."
        for name in unknown
    ]
    return sentences + _cheapest(results, figure, ranking)


def _by_latency(results: Results, figure: Figure) -> list[str]:
    return _by_budget(results, figure, LATENCY_BUDGETS, lambda cost: cost.latency_ms, lambda value: f"{value:g} ms")


def _by_budget(
    results: Results,
    figure: Figure,
    budgets: Sequence[float],
    cost_of: Callable[[Cost], float | None],
    text: Callable[[float], str],
) -> list[str]:
    """The best of all, and from which budget on; then what is best below, where at least two can be afforded."""
    unit = " MACs" if budgets is MACS_BUDGETS else " an image"
    costs = {name: cost for name in results.ranking(figure) if (cost := cost_of(results.costs[name])) is not None}
    sentences: list[str] = []
    before = None
    for budget in budgets:
        affordable = [name for name, cost in costs.items() if cost <= budget]
        if len(affordable) > 1 and affordable[0] != before:
            before = affordable[0]
            is_last = before == next(iter(costs))
            lead = f"With {text(budget)}{unit} or more," if is_last else f"At up to {text(budget)}{unit},"
            sentences.insert(0, _verdict(results, figure, list(costs) if is_last else affordable, lead))
    return sentences


def _verdict(results: Results, figure: Figure, ranking: Sequence[str], lead: str) -> str:
    """Which of these, the best first, is best, and what the tests say of the others."""
    best, others = ranking[0], ranking[1:]
    pairs = [{test.first, test.second} for test in results.tests(figure)]
    tested = {name for pair in pairs if best in pair for name in pair}
    alike = [name for name in results.as_good_as(figure, best) if name in others]
    worse = [name for name in others if name in tested and name not in alike]
    untested = [name for name in others if name not in tested]
    parts = [f"{lead} {best} is best by {figure.title}: {_value(results, figure, best)}"]
    if alike:
        parts.append(f"{_listed(alike)} {_is(alike)} not significantly different")
    if worse:
        parts.append(f"{_listed(worse)} {_is(worse)} significantly worse")
    if untested:
        parts.append(f"{_listed(untested)} {_is(untested)} lower, which no test confirms")
    return "; ".join(parts) + "."


def _cheapest(results: Results, figure: Figure, ranking: Sequence[str]) -> list[str]:
    best = ranking[0]
    candidates = {
        name: macs
        for name in (best, *results.as_good_as(figure, best))
        if (macs := results.costs[name].macs) is not None
    }
    cheapest = min(candidates, key=lambda name: candidates[name], default=best)
    if cheapest == best or best not in candidates:
        return []
    return [
        f"The cheapest that is not significantly different from the best, {best}, is {cheapest}:"
        f" {_macs(candidates[cheapest])} MACs instead of {_macs(candidates[best])}, and"
        f" {_value(results, figure, cheapest)}."
    ]


def _reservations(results: Results, figures: Sequence[Figure]) -> list[str]:
    """What a reader must know before believing the rest."""
    sentences = []
    unfinished = [run.name for run in results.runs if run.state != "done"]
    if unfinished:
        verb = "has" if len(unfinished) == 1 else "have"
        sentences.append(
            f"{_listed(unfinished)} of {len(results.runs)} runs {verb} failed or not finished; this is of the others."
        )
    if results.runs and all(len(results.runs_of(name)) == 1 for name in results.backbones):
        sentences.append("There is one seed of each backbone, so what another seed would change is not known.")
    by_chance = [figure for figure in figures if _all_guess(figure)]
    sentences += [
        f"By {figure.title} no backbone is better than guessing (50 %); nothing can be concluded from it."
        for figure in by_chance
    ]
    return sentences


def _all_guess(figure: Figure) -> bool:
    """Whether the intervals of all runs reach down to the accuracy of a coin."""
    lows = [interval["low"] for interval in figure.intervals.values()]
    return figure.name == "accuracy" and bool(lows) and all(low <= 0.5 for low in lows)


def _value(results: Results, figure: Figure, backbone: str) -> str:
    spread = results.spread(figure, backbone)
    return "-" if spread is None else format_spread(spread)


def format_spread(spread: Spread) -> str:
    """Write a figure of a backbone for people: over seeds with its deviation, of one seed with its interval.

    >>> format_spread(Spread(mean=0.9, deviation=0.01, low=0.8, high=1.0, values={"a": 0.89, "b": 0.91}))
    '90.00% +- 1.00'
    >>> format_spread(Spread(mean=0.9, deviation=None, low=0.85, high=0.93, values={"a": 0.9}))
    '90.00% [85.00, 93.00]'
    """
    if spread.deviation is not None:
        return f"{spread.mean:.2%} +- {100 * spread.deviation:.2f}"
    if spread.low is None or spread.high is None:
        return f"{spread.mean:.2%}"
    return f"{spread.mean:.2%} [{100 * spread.low:.2f}, {100 * spread.high:.2f}]"


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> _listed(["a"]), _listed(["a", "b", "c"]), _listed(list("abcdefg"))
    ('a', 'a, b and c', '7 (a, b, c, d ...)')
    """
    if len(names) > MOST_NAMED:
        return f"{len(names)} ({', '.join(names[:MOST_NAMED])} ...)"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _macs(value: float) -> str:
    """Multiply-accumulates with their unit.

    >>> _macs(150e6), _macs(2e9), _macs(76_561_120)
    ('150 M', '2 G', '76.6 M')
    """
    return f"{value / 1e9:.3g} G" if value >= 1e9 else f"{value / 1e6:.3g} M"
