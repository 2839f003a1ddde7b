"""The answer in words: which backbone for which budget, and what is not told apart from it, by stated rules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from facebones.reporting.results import Figure, Results, Spread

MACS_BUDGETS = tuple(1e6 * value for value in (10, 50, 150, 500, 1e3, 5e3, 20e3))
LATENCY_BUDGETS = (2.0, 5.0, 20.0, 100.0, 500.0)
MOST_NAMED = 4  # backbones in a list of a sentence; of more, their number is said

BUDGET_RULE = (
    "The best of all is named with its cost. Smaller budgets are 10, 50, 150 and 500 M, 1, 5 and 20 G MACs: the largest"
    " is named for each other best backbone, where there are at least two to choose from. By latency, at 2, 5, 20, 100"
    " and 500 ms for an image, the same is said of the first figure only."
)
BEST_RULE = (
    "The best backbone has the best mean over its seeds: of accuracy on each pair set; of 1:1, of TAR at the smallest"
    " FAR, but not below 1e-4, that the data can measure; of 1:N, of Rank-1."
)
TEST_RULE = (
    "Two backbones are told apart where each run of one differs from each run of the other significantly (p <= 0.05"
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
    if _all_guess(figure):
        return [f"By {figure.title} no backbone is better than guessing (50 %); nothing can be concluded from it."]
    if len(ranking) == 1:
        return [f"{ranking[0]} reaches {_value(results, figure, ranking[0])} by {figure.title}; nothing is compared."]
    costs = {name: macs for name in ranking if (macs := results.costs[name].macs) is not None}
    best = costs.get(ranking[0])
    sentences = [_verdict(results, figure, ranking, place="" if best is None else f", at {_macs(best)} MACs,")]
    sentences += _by_budget(results, figure, costs, MACS_BUDGETS, lambda value: f"{_macs(value)} MACs")
    unknown = [name for name in ranking if name not in costs]
    if unknown and costs:
        sentences.append(f"The MACs of {_listed(unknown)} are not known, so no budget counts {_them(unknown)}.")
    return sentences + _cheapest(results, figure, ranking)


def _by_latency(results: Results, figure: Figure) -> list[str]:
    ranking = results.ranking(figure)
    costs = {name: cost for name in ranking if (cost := results.costs[name].latency_ms) is not None}
    if len(costs) < 2 or _all_guess(figure):
        return []
    return _by_budget(results, figure, costs, LATENCY_BUDGETS, lambda value: f"{value:g} ms an image")


def _by_budget(
    results: Results,
    figure: Figure,
    costs: Mapping[str, float],
    budgets: Sequence[float],
    text: Callable[[float], str],
) -> list[str]:
    """A sentence for each best that is not the best of all, the largest budget first; `costs` has the best first."""
    sentences = []
    before = results.ranking(figure)[0]
    for budget in reversed(budgets):
        affordable = [name for name, cost in costs.items() if cost <= budget]
        if len(affordable) > 1 and affordable[0] != before:
            before = affordable[0]
            sentences.append(_verdict(results, figure, affordable, lead=f"At up to {text(budget)}, "))
    return sentences


def _verdict(results: Results, figure: Figure, ranking: Sequence[str], *, lead: str = "", place: str = "") -> str:
    """Which of these, the best first, is best, and what the tests say of the others."""
    means = {name: spread.mean for name in ranking if (spread := results.spread(figure, name)) is not None}
    best, ties = ranking[0], [name for name in ranking if means[name] == means[ranking[0]]]
    others = [name for name in ranking if name not in ties]
    pairs = [{test.first, test.second} for test in results.tests(figure)]
    tested = {name for pair in pairs if best in pair for name in pair}
    alike = [name for name in results.as_good_as(figure, best) if name in others]
    worse = [name for name in others if name in tested and name not in alike]
    untested = [name for name in others if name not in tested]
    level = "is best" if len(ties) == 1 else "are level and best"
    parts = [f"{lead}{_listed(ties)}{place} {level} by {figure.title}: {_value(results, figure, best)}"]
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
        whole = f"of {len(results.runs)} runs" if len(results.runs) > 1 else "(the only run)"
        sentences.append(f"{_listed(unfinished)} {whole} {verb} failed or not finished.")
    still = {name for figure in figures for name in figure.values}.intersection(unfinished)
    if still:
        sentences.append(f"An earlier evaluation of {_listed(sorted(still))} is among the figures.")
    single = [name for name in results.backbones if sum(run.state == "done" for run in results.runs_of(name)) == 1]
    if len(single) == len(results.backbones) > 0:
        sentences.append("There is one seed of each backbone, so what another seed would change is not known.")
    elif single:
        sentences.append(f"Of {_listed(single)} there is one seed, so what another would change is not known.")
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


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _macs(value: float) -> str:
    """Multiply-accumulates with their unit.

    >>> _macs(150e6), _macs(2e9), _macs(76_561_120)
    ('150 M', '2 G', '76.6 M')
    """
    return f"{value / 1e9:.3g} G" if value >= 1e9 else f"{value / 1e6:.3g} M"
