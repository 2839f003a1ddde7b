"""Error rates of groups of people at one threshold, with intervals; indices of inequality, with intervals and tests.

A pair belongs to a group if both of its images do. Pairs across groups have rates of their own and enter no index;
pairs with an image of no known group are left out and counted.

Intervals of rates are Wilson's with effective numbers of outcomes, by the people (`calibration`). The design effect of
impostor pairs is the largest of three: at the threshold, and where half and twice as many are accepted, but at least
LEAST_ACCEPTED. That at the threshold alone is itself uncertain: 88-92 % of intervals contained the true rate (groups of
25 to 100 people), against 95-98 %.

Intervals of indices: people are drawn as in `bootstrap`. The draws say how rates of groups depend on each other; how
far each rate varies is taken from its interval: by their ranks, its replicates become normal in the logarithm of the
odds. This removes what the weights count too often, and the skewness of few errors. An index such as a largest
difference is too large in every sample, because noise makes groups differ, and even larger in a resampled one:
percentiles are corrected for this bias. They never reach equality, so an interval is extended to it unless a test finds
that the groups differ.

Groups of fewer than LEAST_PEOPLE people, or LEAST_PAIRS pairs where people are unknown, are listed with their rates and
intervals, but enter no index and no test.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.statistics.bootstrap import REPLICATES
from facebones.statistics.calibration import LEAST_ACCEPTED, design_effects, effective_interval, effective_outcomes
from facebones.statistics.fairness import INDICES, Index, undefined
from facebones.statistics.group_permutation import PERMUTATIONS, alike
from facebones.statistics.metric import Interval
from facebones.statistics.resampling import ColumnTotals, Kind, pairs_design
from facebones.statistics.significance import LEVEL, SIGNIFICANT, holm, t_quantile

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

LEAST_PEOPLE = 20
LEAST_PAIRS = 100
KINDS = ("fmr", "fnmr")
NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedPairs:
    """P scored pairs of M items (images or templates), and the group and the person of each item.

    Attributes:
        score: (P,) similarities.
        is_same: (P,) bool, true for a genuine pair.
        first: (P,) first item, from 0.
        second: (P,) second item.
        group: (M,) group of each item, from 0; -1 for none.
        person: (M,) person of each item, from 0; None if people are unknown.
    """

    score: FloatArray
    is_same: BoolArray
    first: IntArray
    second: IntArray
    group: IntArray
    person: IntArray | None = None

    @property
    def people(self) -> tuple[IntArray, IntArray] | None:
        """(P,) people of the first and of the second items; None if unknown."""
        return None if self.person is None else (self.person[self.first], self.person[self.second])

    def part(self, rows: Any) -> "GroupedPairs":
        """Some of the pairs."""
        pairs = self.score[rows], self.is_same[rows], self.first[rows], self.second[rows]
        names = ("score", "is_same", "first", "second")
        return GroupedPairs(**dict(zip(names, pairs, strict=True)), group=self.group, person=self.person)

    def column(self, groups: int) -> IntArray:
        """(P,) group of each pair; `groups` for a pair across groups, -1 where a group is unknown."""
        one, other = self.group[self.first], self.group[self.second]
        return np.where((one < 0) | (other < 0), -1, np.where(one == other, one, groups))


@dataclass(frozen=True, kw_only=True)
class Rate:
    """An error rate of one group.

    Attributes:
        errors: impostor pairs accepted, or genuine pairs rejected.
        pairs: of this kind.
        people: in these pairs; None if unknown.
        effective: independent pairs that tell as much.
        value: errors / pairs; None without pairs.
        interval: None without pairs.
        counts: whether there are enough people (or pairs) for the group to enter indices and tests.
    """

    errors: int
    pairs: int
    people: int | None
    effective: float
    value: float | None
    interval: Interval | None
    counts: bool


@dataclass(frozen=True, kw_only=True)
class MeasuredIndex:
    """An index of the groups that have enough people.

    Attributes:
        name: of `fairness.INDICES`.
        value: None if it has none.
        interval: None if it has none.
        reason: why it has no value.
        at_least: where a rate of 0 leaves a ratio without a value, what it is at least, from both groups' intervals.
    """

    name: str
    value: float | None = None
    interval: Interval | None = None
    reason: str | None = None
    at_least: float | None = None


@dataclass(frozen=True, kw_only=True)
class GroupTest:
    """The test of "all groups have one rate".

    Attributes:
        kind: "fmr" or "fnmr".
        p_value: None if it could not be made.
        adjusted: after Holm's correction for the tests beside it.
        permuted: "people", "images of a person" or "pairs".
        reason: why it could not be made.
    """

    kind: str
    p_value: float | None = None
    adjusted: float | None = None
    permuted: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class GroupComparison:
    """All groups of one grouping, at one threshold.

    Attributes:
        groups: names.
        rates: kind -> rate of each group, and last of the pairs across groups.
        indices: of the groups that have enough people.
        tests: of the FMR and of the FNMR.
        left_out: pairs with an image of no known group.
    """

    groups: tuple[str, ...]
    rates: dict[str, list[Rate]]
    indices: list[MeasuredIndex]
    tests: list[GroupTest]
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Return all attributes."""
        return asdict(self)


def compare_groups(
    pairs: GroupedPairs,
    groups: Sequence[str],
    threshold: float,
    *,
    replicates: int = REPLICATES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> GroupComparison:
    """Rates of each group at a threshold, indices of their inequality, and tests.

    Args:
        pairs: scores, groups and people.
        groups: names of the G groups.
        threshold: a pair is accepted where its score is at least this; taken as fixed.
        replicates: of the bootstrap over people.
        permutations: of the groups in each test.
        seed: of both.

    Raises:
        DataError: no genuine or no impostor pair has two known groups, or people contradict the labels of the pairs.

    >>> random = np.random.default_rng(0)
    >>> first, second = np.triu_indices(200, 1)
    >>> person = np.arange(200) // 2
    >>> pairs = GroupedPairs(score=random.normal(size=first.size), is_same=person[first] == person[second],
    ...     first=first, second=second, group=person % 2, person=person)
    >>> found = compare_groups(pairs, ["young", "old"], 2.0, replicates=100, permutations=99)
    >>> [rate.pairs for rate in found.rates["fmr"]]
    [4900, 4900, 10000]
    """
    column = pairs.column(len(groups))
    known = column >= 0
    genuine, impostors = int((known & pairs.is_same).sum()), int((known & ~pairs.is_same).sum())
    if not genuine or not impostors:
        raise DataError(
            f"{genuine} genuine and {impostors} impostor pairs have a group for both images; rates need both kinds, so"
            " give more images or people a group"
        )
    shown, column = pairs.part(known), column[known]
    error = (shown.score >= threshold) != shown.is_same
    rates = {kind: _rates(shown, column, error, kind, len(groups)) for kind in KINDS}
    drawn = _replicates(shown, column, error, rates, replicates=replicates, seed=seed)
    tests = [_test(shown, column, error, rates[kind], kind, permutations=permutations, seed=seed) for kind in KINDS]
    tests = _with_holm(tests)
    differ = {one.kind for one in tests if one.adjusted is not None and one.adjusted <= SIGNIFICANT}
    by_people = pairs.person is not None
    return GroupComparison(
        groups=tuple(groups),
        rates=rates,
        indices=[_index(one, rates, drawn, groups, by_people=by_people, differ=differ) for one in INDICES],
        tests=tests,
        left_out=int((~known).sum()),
    )


def _with_holm(tests: Sequence[GroupTest]) -> list[GroupTest]:
    """The tests with Holm's correction over those that could be made."""
    adjusted = iter(holm([one.p_value for one in tests if one.p_value is not None]).tolist())
    return [one if one.p_value is None else GroupTest(**(asdict(one) | {"adjusted": next(adjusted)})) for one in tests]


def _is_kind(pairs: GroupedPairs, kind: str) -> BoolArray:
    return pairs.is_same if kind == "fnmr" else ~pairs.is_same


def _rates(pairs: GroupedPairs, column: IntArray, error: BoolArray, kind: str, groups: int) -> list[Rate]:
    """The rate of each group, and of the pairs across groups."""
    rows = np.flatnonzero(_is_kind(pairs, kind))
    ordered = rows[np.argsort(column[rows], kind="stable")]
    ends = np.searchsorted(column[ordered], np.arange(groups + 2))
    return [_rate(pairs.part(part), error[part], kind) for part in np.split(ordered, ends[1:-1])]


def _rate(pairs: GroupedPairs, error: BoolArray, kind: str) -> Rate:
    people = pairs.people
    if not error.size:
        return Rate(
            errors=0,
            pairs=0,
            people=None if people is None else 0,
            effective=0.0,
            value=None,
            interval=None,
            counts=False,
        )
    value, number = float(error.mean()), int(error.sum())
    if kind == "fnmr" or people is None:
        effective, units = effective_outcomes(error, None if people is None else people[0])
    else:
        effective, units = _effective_impostors(pairs.score, *people, number)
    return Rate(
        errors=number,
        pairs=error.size,
        people=None if people is None else units,
        effective=effective,
        value=value,
        interval=effective_interval(value, effective, units, by_people=people is not None),
        counts=units >= (LEAST_PAIRS if people is None else LEAST_PEOPLE),
    )


def _effective_impostors(score: FloatArray, first: IntArray, second: IntArray, accepted: int) -> tuple[float, int]:
    """Independent impostor pairs that tell as much, and the number of people."""
    units = int(np.union1d(first, second).size)
    if first.size < 4 or units < 3:
        return 1.0, units
    order = np.argsort(-score, kind="stable")
    near = max(accepted, LEAST_ACCEPTED)
    measured_K = np.clip([max(near // 2, LEAST_ACCEPTED), near, 2 * near], 1, first.size // 2)
    return first.size / max(design_effects(first[order], second[order], np.unique(measured_K))), units


def _replicates(
    pairs: GroupedPairs,
    column: IntArray,
    error: BoolArray,
    rates: dict[str, list[Rate]],
    *,
    replicates: int,
    seed: int,
) -> dict[str, FloatArray]:
    """Kind -> (R, G) rates of each group in each draw of the people, with the standard errors of the intervals."""
    design, groups = pairs_design(pairs.is_same, pairs.people, replicates, seed), len(rates["fmr"]) - 1
    kinds: dict[str, Kind] = {"fmr": design.impostors, "fnmr": design.genuine}
    found, random = {}, np.random.default_rng(seed)
    for kind, outcomes in kinds.items():
        place = 2 * column[outcomes.rows] + error[outcomes.rows]
        totals = ColumnTotals(outcomes, place, design.counts.shape[1], 2 * (groups + 1))(design.counts[1:])
        right, wrong = totals[:, :-2:2], totals[:, 1:-2:2]
        drawn = np.clip(wrong / np.maximum(right + wrong, 1), 0, 1)
        rows = zip(drawn.T, rates[kind][:groups], strict=True)
        found[kind] = np.stack([_scaled(row, rate, random) for row, rate in rows], axis=1)
    return found


def _scaled(drawn_R: FloatArray, rate: Rate, random: np.random.Generator) -> FloatArray:
    """Replicates around the value: by their ranks normal in the logarithm of the odds, as wide as the interval."""
    from scipy.special import ndtri

    if rate.value is None:
        return drawn_R
    half, units = 0.5 / rate.effective, rate.people or rate.pairs
    value = float(np.clip(rate.value, half, 1 - half))
    wider = t_quantile(LEVEL, max(units - 1, 1)) / NORMAL.inv_cdf(0.5 + LEVEL / 2)
    error = wider / np.sqrt(rate.effective * value * (1 - value))
    rank = np.argsort(np.lexsort((random.random(drawn_R.size), drawn_R)))  # of equal ones at random
    deviation = ndtri((rank + 0.5) / drawn_R.size) * error
    return np.asarray(1 / (1 + np.exp(-np.log(value / (1 - value)) - deviation)))


def _index(
    index: Index,
    rates: dict[str, list[Rate]],
    drawn: dict[str, FloatArray],
    groups: Sequence[str],
    *,
    by_people: bool,
    differ: set[str],
) -> MeasuredIndex:
    """An index of the groups that have enough people; `differ` are the kinds of rates that a test finds to differ."""
    enough = [number for number in range(len(groups)) if all(rates[kind][number].counts for kind in index.needs)]
    if len(enough) < 2:
        least = f"{LEAST_PEOPLE} people" if by_people else f"{LEAST_PAIRS} pairs of each kind"
        return MeasuredIndex(name=index.name, reason=f"fewer than two groups have {least}")
    values = {kind: np.array([rates[kind][number].value for number in enough]) for kind in index.needs}
    names = [groups[number] for number in enough]
    if reason := undefined(index, values, names):
        at_least = _at_least(rates[index.needs[0]], enough) if len(index.needs) == 1 else None
        return MeasuredIndex(name=index.name, reason=reason, at_least=at_least)
    value = float(index.of(*(values[kind] for kind in index.needs)))
    replicates = index.of(*(drawn[kind][:, enough] for kind in index.needs))
    low, high = bias_corrected(replicates, value)
    if not differ.intersection(index.needs):
        low, high = min(low, index.equal), max(high, index.equal)
    interval = Interval(
        low=min(low, value),
        high=max(high, value),
        level=LEVEL,
        method="bootstrap, bias-corrected percentiles; to equality unless a test finds a difference",
        resampled="identities" if by_people else "pairs",
        replicates=len(replicates),
    )
    return MeasuredIndex(name=index.name, value=value, interval=interval)


def bias_corrected(replicates_R: FloatArray, value: float) -> tuple[float, float]:
    """Bias-corrected percentiles (B. Efron, Canadian Journal of Statistics 9 (1981)), no narrower than plain ones.

    The correction alone cuts the far end too short: 89 % of intervals held a true difference that half of
    all tests find.
    """
    bound, share = NORMAL.inv_cdf(0.5 + LEVEL / 2), float(np.mean(replicates_R < value))
    shift = 2 * NORMAL.inv_cdf(min(max(share, 1 - NORMAL.cdf(bound)), NORMAL.cdf(bound)))
    tails = NORMAL.cdf(min(shift, 0) - bound), NORMAL.cdf(max(shift, 0) + bound)
    low, high = np.quantile(replicates_R, tails)
    return float(low), float(high)


def _at_least(rates: list[Rate], enough: Sequence[int]) -> float:
    """Lower end of the highest rate's interval, divided by the upper end of the lowest one's; at least 1."""
    intervals = [interval for number in enough if (interval := rates[number].interval) is not None]
    return max(1.0, max(one.low for one in intervals) / min(one.high for one in intervals))


def _test(
    pairs: GroupedPairs,
    column: IntArray,
    error: BoolArray,
    rates: list[Rate],
    kind: str,
    *,
    permutations: int,
    seed: int,
) -> GroupTest:
    """The permutation test of one kind, over the groups that have enough people."""
    enough = [number for number, rate in enumerate(rates[:-1]) if rate.counts]
    if len(enough) < 2:
        return GroupTest(kind=kind, reason="fewer than two groups are large enough")
    keep = (
        _is_kind(pairs, kind) & np.isin(pairs.group[pairs.first], enough) & np.isin(pairs.group[pairs.second], enough)
    )
    p_value, permuted = alike(
        pairs.first[keep],
        pairs.second[keep],
        error[keep],
        pairs.group,
        pairs.person,
        permutations=permutations,
        seed=seed,
    )
    if p_value is None:
        return GroupTest(kind=kind, permuted=permuted, reason="no errors, or no two groups that can be exchanged")
    return GroupTest(kind=kind, p_value=p_value, permuted=permuted)
