"""The permutation test of "all groups have one error rate": groups are exchanged among people.

Where each person has one group, the groups are permuted among the people; where people have images of several groups
(cameras, ages), among the images of each person; where people are unknown, among the pairs within groups.

The statistic is the sum over groups of pairs x (rate - overall rate)^2, divided by rate (1 - rate) and by the design
effect of the pairs within groups. The division matters for impostors. People of one group resemble each other more than
people of two, so exchanged groups accept fewer pairs than the true ones; without it, equal rates would seem to differ.

Sources: E. Chung and J. P. Romano, "Exact and asymptotically robust permutation tests", Annals of Statistics 41 (2013),
for the division; B. Phipson and G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 9 (2010), for
counting the data itself.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

PERMUTATIONS = 999
PEOPLE, IMAGES, PAIRS = "people", "images of a person", "pairs"
TIES = 1e-9  # equal statistics differ by rounding


def alike(
    first_N: IntArray,
    second_N: IntArray,
    error_N: BoolArray,
    group_M: IntArray,
    person_M: IntArray | None,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> tuple[float | None, str]:
    """Test whether all groups have one error rate, on N pairs of one kind whose images all have a group.

    Args:
        first_N: first item of each pair.
        second_N: second item.
        error_N: whether the pair is an error.
        group_M: group of each item.
        person_M: person of each item; None if unknown.
        permutations: how often groups are exchanged.
        seed: of the exchange.

    Returns:
        The p-value and what was exchanged; None without an error, or where nothing can be exchanged.
    """
    random = np.random.default_rng(seed)
    items, (first, second) = _numbered(first_N, second_N)
    group = np.unique(group_M[items], return_inverse=True)[1]
    if person_M is None:
        return _of_pairs(group[first], group[second], error_N, permutations, random), PAIRS
    person = np.unique(person_M[items], return_inverse=True)[1]
    exchange, permuted = _exchange(group, person)
    if exchange is None or not 0 < np.count_nonzero(error_N) < error_N.size:
        return None, permuted
    statistic = _Statistic(first, second, error_N, person, int(group.max()) + 1)
    observed = statistic(group)
    drawn = [statistic(exchange(random)) for _ in range(permutations)]
    return _p_value(observed, drawn), permuted


def _numbered(first: IntArray, second: IntArray) -> tuple[IntArray, tuple[IntArray, IntArray]]:
    """The items that are in the pairs, and both sides as numbers of these."""
    items, number = np.unique(np.concatenate([first, second]), return_inverse=True)
    return items, (number[: first.size], number[first.size :])


def _exchange(group_M: IntArray, person_M: IntArray) -> tuple[Callable[[np.random.Generator], IntArray] | None, str]:
    """A function that permutes the groups, and what it exchanges."""
    people = int(person_M.max()) + 1
    of_person = np.zeros(people, dtype=np.int64)
    of_person[person_M] = group_M
    if (of_person[person_M] == group_M).all():
        possible = (of_person != of_person[0]).any()
        return (lambda random: random.permutation(of_person)[person_M]) if possible else None, PEOPLE
    order = np.argsort(person_M, kind="stable")

    def within(random: np.random.Generator) -> IntArray:
        shuffled = np.lexsort((random.random(person_M.size), person_M))
        dealt = np.empty_like(group_M)
        dealt[order] = group_M[shuffled]
        return dealt

    return within, IMAGES


class _Statistic:
    """The statistic of any dealing of the groups: see the module."""

    def __init__(self, first: IntArray, second: IntArray, error: BoolArray, person: IntArray, groups: int) -> None:
        self.first, self.second, self.groups = first, second, groups
        self.people = person[first], person[second]
        self.is_genuine = bool((self.people[0] == self.people[1]).all())
        self.error = np.flatnonzero(error)
        persons = int(person.max()) + 1
        low, high = (side(*(one[self.error] for one in self.people)) for side in (np.minimum, np.maximum))
        self.cell = np.unique(low.astype(np.int64) * persons + high, return_inverse=True)[1]
        self.persons = persons

    def __call__(self, group_M: IntArray) -> float:
        of_pair = group_M[self.first]
        within = np.flatnonzero(of_pair == group_M[self.second])
        wrong = np.flatnonzero(of_pair[self.error] == group_M[self.second[self.error]])
        pairs_G = np.bincount(of_pair[within], minlength=self.groups)
        errors_G = np.bincount(of_pair[self.error[wrong]], minlength=self.groups)
        total, rate = within.size, wrong.size / max(within.size, 1)
        if not 0 < rate < 1:
            return 0.0
        excess = np.sum((errors_G - rate * pairs_G) ** 2 / np.maximum(pairs_G, 1))
        sums = self._by_person(self.error[wrong]) - rate * self._by_person(within)
        spread = float(np.sum(sums**2))
        if not self.is_genuine:  # each pair is in the sums of two people
            spread -= float(np.sum(np.bincount(self.cell[wrong]) ** 2))
        return float(excess / max(spread / total, rate * (1 - rate)))

    def _by_person(self, pairs: IntArray) -> npt.NDArray[Any]:
        counts = np.bincount(self.people[0][pairs], minlength=self.persons)
        return counts if self.is_genuine else counts + np.bincount(self.people[1][pairs], minlength=self.persons)


def _of_pairs(
    one: IntArray, other: IntArray, error: BoolArray, permutations: int, random: np.random.Generator
) -> float | None:
    """The test where people are unknown: the groups of the pairs within groups are dealt among these pairs."""
    within = one == other
    group, wrong = one[within], error[within]
    groups, errors = int(one.max()) + 1, int(wrong.sum())
    if not 0 < errors < wrong.size or (group == group[0]).all():
        return None
    pairs_G = np.bincount(group, minlength=groups)

    def statistic(errors_G: npt.NDArray[Any]) -> Any:
        return np.sum((errors_G - errors * pairs_G / wrong.size) ** 2 / np.maximum(pairs_G, 1), axis=-1)

    drawn = random.multivariate_hypergeometric(pairs_G, errors, size=permutations)
    return _p_value(float(statistic(np.bincount(group[wrong], minlength=groups))), statistic(drawn))


def _p_value(observed: float, drawn: Any) -> float:
    """Share of the statistics, that of the data included, that are at least as large as that of the data."""
    return (1 + int(np.count_nonzero(np.asarray(drawn) >= observed * (1 - TIES)))) / (1 + len(drawn))
