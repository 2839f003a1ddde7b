"""Whether tuning changes the order of the backbones, in words."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from facebones.reporting.results import MetricResult, Results
from facebones.reporting.tuning import DEFAULT, FACTOR, TUNED
from facebones.reporting.variants import level_words
from facebones.reporting.words import MOST_LISTED, listed

OUTCOMES = {True: "significant", False: "not significant", None: "not tested"}
AT_BOTH = {True: "significant at both levels", False: "not significant at either level", None: "not tested"}

Pair = tuple[str, str]
AtLevels = Mapping[str, Mapping[str, str]]  # backbone to DEFAULT and TUNED to the variant


def order_sentences(results: Results, metric: MetricResult) -> list[str]:
    """A sentence for each combination of the other factors' levels with two backbones that have both levels."""
    settings: dict[str, dict[str, dict[str, str]]] = {}
    for variant in results.variants:
        run = results.first_run(variant)
        others = [name for name in results.factors if name != FACTOR and name in run.levels]
        within = ", ".join(level_words(name, run.levels[name]) for name in others)
        level = run.levels.get(FACTOR)
        if level in (DEFAULT, TUNED) and results.spread(metric, variant) is not None:
            settings.setdefault(within, {}).setdefault(run.backbone, {})[level] = variant
    sentences = []
    for within, variants in settings.items():
        both = {backbone: levels for backbone, levels in variants.items() if len(levels) == 2}
        if len(both) > 1:
            lead = f"With {within}, tuning" if within else "Tuning"
            sentences.append(f"{lead} {_order(results, metric, both)}")
    return sentences


def _order(results: Results, metric: MetricResult, variants: AtLevels) -> str:
    whose = "the backbones"
    if len(variants) < len(results.backbones):
        few = len(variants) <= MOST_LISTED
        whose = listed(list(variants)) if few else f"the {len(variants)} backbones that have both levels"
    moves = {pair: words for pair in combinations(variants, 2) if (words := _move(results, metric, variants, pair))}
    if not moves:
        return f"does not change the order of {whose} by {metric.title}."
    parts = list(moves.values())
    if len(parts) > MOST_LISTED:
        parts[MOST_LISTED:] = [f"{len(parts) - MOST_LISTED} more pairs change places"]
    verdict = _verdict({pair: _outcomes(results, metric, variants, pair) for pair in moves})
    return f"changes the order of {whose} by {metric.title}: {'; '.join([*parts, verdict])}."


def _move(results: Results, metric: MetricResult, variants: AtLevels, pair: Pair) -> str:
    """How two backbones change places; empty if they do not."""
    before, after = (_better(results, metric, variants, pair, level) for level in (DEFAULT, TUNED))
    first, second = pair
    if before == after:
        return ""
    if before is None:
        return f"{first} and {second} tie at {DEFAULT} and {after} is better at {TUNED}"
    other = second if before == first else first
    if after is None:
        return f"{before} is better than {other} at {DEFAULT} and ties with it at {TUNED}"
    return f"{after} overtakes {before}"


def _better(results: Results, metric: MetricResult, variants: AtLevels, pair: Pair, level: str) -> str | None:
    """The better one of two backbones at a level; None for a tie."""
    spreads = [results.spread(metric, variants[name][level]) for name in pair]
    first, second = (spread.mean for spread in spreads if spread is not None)
    if first == second:
        return None
    return pair[(first > second) != metric.higher_is_better]


def _outcomes(results: Results, metric: MetricResult, variants: AtLevels, pair: Pair) -> dict[str, bool | None]:
    """Whether two backbones differ significantly at each level; None where nothing tested it."""
    tests = {frozenset((test.first, test.second)): test.significant for test in results.tests(metric)}
    return {level: tests.get(frozenset(variants[name][level] for name in pair)) for level in (DEFAULT, TUNED)}


def _verdict(outcomes: Mapping[Pair, Mapping[str, bool | None]]) -> str:
    """What the tests say about the pairs that change places."""
    if len(outcomes) == 1:
        return "".join(_difference(pair, found) for pair, found in outcomes.items())
    significant = [_difference(pair, found) for pair, found in outcomes.items() if any(found.values())]
    if len(significant) > MOST_LISTED:
        return f"{len(significant)} of these differences are significant at one level or both"
    if significant:
        others = [] if len(significant) == len(outcomes) else ["no other of these differences is significant"]
        return "; ".join([*significant, *others])
    if all(found is None for one in outcomes.values() for found in one.values()):
        return "no test compares them"
    return "none of these differences is significant at either level"


def _difference(pair: Sequence[str], found: Mapping[str, bool | None]) -> str:
    default, tuned = found.values()
    words = f"{OUTCOMES[default]} at {DEFAULT} and {OUTCOMES[tuned]} at {TUNED}"
    return f"the difference of {listed(pair)} is {AT_BOTH[default] if default == tuned else words}"
