"""Rates of groups, indices of inequality and their tests: by hand, and by simulation with known effects."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from facebones.errors import DataError
from facebones.statistics.fairness import fairness_discrepancy_rate, garbe, gini, inequity_rate, largest_ratio
from facebones.statistics.group_permutation import IMAGES, PAIRS, PEOPLE, alike
from facebones.statistics.group_rates import LEAST_PEOPLE, GroupedPairs, compare_groups

FEW = {"replicates": 200, "permutations": 99}


def _made_up(random, people=(30, 30), fmr=(0.03, 0.03), fnmr=(0.2, 0.2), images=2, across=0.3):
    """All pairs of the images of people, with true rates at threshold 0; a fifth of the variance is of people."""
    group = np.repeat(np.arange(len(people)), people)
    person = np.repeat(np.arange(group.size), images)
    first, second = np.triu_indices(person.size, 1)
    one, other = person[first], person[second]
    effect = random.normal(size=group.size)
    rate = np.where(group[one] == group[other], np.take(fmr, group[one]), across * np.mean(fmr))
    mean = np.where(one == other, norm.isf(np.take(fnmr, group[one])), norm.ppf(rate))
    shared = np.where(one == other, np.sqrt(0.2) * effect[one], np.sqrt(0.1) * (effect[one] + effect[other]))
    score = mean + shared + np.sqrt(0.8) * random.normal(size=first.size)
    return GroupedPairs(
        score=score, is_same=one == other, first=first, second=second, group=group[person], person=person
    )


# ------------------------------------------------------------------------------------------------------------ formulas


def test_indices_are_those_of_the_sources_by_hand():
    fmr, fnmr = [0.001, 0.002, 0.004], [0.02, 0.05, 0.03]
    # A = 0.003, B = 0.03: 1 - (0.0015 + 0.015); ratios 4 and 2.5: sqrt(10).
    assert float(fairness_discrepancy_rate(fmr, fnmr)) == pytest.approx(0.9835)
    assert float(inequity_rate(fmr, fnmr)) == pytest.approx(10**0.5)
    # Differences of ordered pairs 2 (1 + 3 + 2) = 12 over 2 x 9 x 7 / 3, times 3 / 2; and 12 over 60, times 3 / 2.
    assert float(gini(fmr)) == pytest.approx(12 / 42 * 1.5)
    assert float(gini(fnmr)) == pytest.approx(12 / 60 * 1.5)
    assert float(garbe(fmr, fnmr)) == pytest.approx((12 / 42 + 12 / 60) * 0.75)
    # The weight of the FMR.
    assert float(fairness_discrepancy_rate(fmr, fnmr, alpha=1)) == pytest.approx(0.997)
    assert float(inequity_rate(fmr, fnmr, alpha=1)) == pytest.approx(4)
    assert float(garbe(fmr, fnmr, alpha=0)) == pytest.approx(0.3)


def test_equal_rates_are_equal_by_every_index():
    same = [0.01, 0.01, 0.01]
    assert (float(fairness_discrepancy_rate(same, same)), float(inequity_rate(same, same))) == (1, 1)
    assert float(garbe(same, same)) == pytest.approx(0, abs=1e-12) and float(gini([0.0, 0.0])) == 0
    assert float(gini([0.0, 0.3])) == 1 and largest_ratio([0.0, 0.3]) == np.inf


def test_rates_are_counted_by_hand():
    #             a0 a1 b0 b1 c0; a, b: people of "x"; c: of "y"; the last image has no group
    person = np.array([0, 0, 1, 1, 2, 2, 3])
    group = np.array([0, 0, 0, 0, 1, 1, -1])
    listed = [(0, 1, 0.9), (2, 3, 0.2), (4, 5, 0.8), (0, 2, 0.7), (1, 3, 0.1), (0, 4, 0.6), (2, 4, 0.1), (3, 6, 0.9)]
    first, second, score = map(np.array, zip(*listed, strict=True))
    pairs = GroupedPairs(
        score=score, is_same=person[first] == person[second], first=first, second=second, group=group, person=person
    )
    found = compare_groups(pairs, ["x", "y"], 0.6, **FEW)
    counts = {kind: [(rate.errors, rate.pairs, rate.people) for rate in rates] for kind, rates in found.rates.items()}
    assert counts["fnmr"] == [(1, 2, 2), (0, 1, 1), (0, 0, 0)]
    assert counts["fmr"] == [(1, 2, 2), (0, 0, 0), (1, 2, 3)]  # the threshold itself accepts
    assert found.left_out == 1
    assert all(index.value is None and "fewer than two groups" in index.reason for index in found.indices)
    assert all(test.p_value is None and test.reason for test in found.tests)


def test_a_small_group_is_listed_and_enters_no_index():
    pairs = _made_up(
        np.random.default_rng(0), people=(40, 40, LEAST_PEOPLE - 1), fmr=(0.02, 0.02, 0.9), fnmr=(0.2,) * 3
    )
    found = compare_groups(pairs, ["a", "b", "few"], 0.0, **FEW)
    assert [rate.counts for rate in found.rates["fmr"][:3]] == [True, True, False]
    assert found.rates["fmr"][2].value > 0.8
    ratio = next(index for index in found.indices if index.name == "fmr_ratio")
    assert ratio.value == pytest.approx(float(largest_ratio([rate.value for rate in found.rates["fmr"][:2]])))


def test_a_ratio_to_no_error_has_no_value_but_a_bound():
    pairs = _made_up(np.random.default_rng(0), fmr=(1e-12, 0.2), across=0.01)
    found = {index.name: index for index in compare_groups(pairs, ["a", "b"], 0.0, **FEW).indices}
    for name in ("fmr_ratio", "ir"):
        assert found[name].value is None and found[name].reason == "no error in a: a ratio to 0 has no value"
    assert 1 < found["fmr_ratio"].at_least < 1000 and found["ir"].at_least is None
    assert found["fmr_difference"].interval.low > 0 and np.isfinite(found["garbe"].value)


def test_no_error_at_all_leaves_garbe_without_a_value():
    pairs = _made_up(np.random.default_rng(0), fnmr=(1e-12, 1e-12))
    comparison = compare_groups(pairs, ["a", "b"], 0.0, **FEW)
    found = {index.name: index for index in comparison.indices}
    assert found["garbe"].value is None and "no error of FNMR in any group" in found["garbe"].reason
    assert found["fnmr_difference"].value == 0 and found["fnmr_difference"].interval.high > 0.01
    assert comparison.tests[1].p_value is None and comparison.tests[0].p_value is not None


def test_pairs_without_groups_are_refused():
    pairs = _made_up(np.random.default_rng(0))
    none = GroupedPairs(**(vars(pairs) | {"group": np.full(pairs.group.size, -1)}))
    with pytest.raises(DataError, match="0 genuine and 0 impostor pairs have a group for both images"):
        compare_groups(none, ["a", "b"], 0.0)
    with pytest.raises(DataError, match=r"0 genuine and \d+ impostor pairs"):
        compare_groups(pairs.part(~pairs.is_same), ["a", "b"], 0.0)


def test_people_may_be_unknown():
    pairs = GroupedPairs(**(vars(_made_up(np.random.default_rng(0), people=(70, 70), images=3)) | {"person": None}))
    found = compare_groups(pairs, ["a", "b"], 0.0, **FEW)
    assert {test.permuted for test in found.tests} == {PAIRS} and found.rates["fmr"][0].people is None
    assert found.rates["fmr"][0].effective == found.rates["fmr"][0].pairs
    assert found.indices[0].interval.resampled == "pairs"


def test_the_same_seed_gives_the_same_result():
    pairs = _made_up(np.random.default_rng(1))
    one, other = (compare_groups(pairs, ["a", "b"], 0.0, seed=seed, **FEW).to_json() for seed in (3, 3))
    assert one == other != compare_groups(pairs, ["a", "b"], 0.0, seed=4, **FEW).to_json()


# ---------------------------------------------------------------------------------------------------------- simulation


def _simulated(sets, **setting):
    """How many intervals hold the true FMR of the first group and the true FMR difference; p-values of both tests."""
    held, tests = [], []
    fmr, fnmr = setting.get("fmr", (0.03, 0.03)), setting.get("fnmr", (0.2, 0.2))
    for seed in range(sets):
        pairs = _made_up(np.random.default_rng(seed), **setting)
        found = compare_groups(pairs, ["a", "b"], 0.0, replicates=200, permutations=39, seed=seed)
        measured = [found.rates["fmr"][0], found.rates["fnmr"][1], found.indices[0], found.indices[4]]
        true = [fmr[0], fnmr[1], np.ptp(fmr), float(fairness_discrepancy_rate(fmr, fnmr))]
        inside = [one.interval.low <= value <= one.interval.high for one, value in zip(measured, true, strict=True)]
        held.append(inside)
        tests.append([test.p_value for test in found.tests])
    return np.sum(held, axis=0), np.array(tests)


def test_equal_groups_raise_few_alarms_and_intervals_hold():
    sets = 120
    held, p_values = _simulated(sets)
    for alarms in (p_values <= 0.05).sum(axis=0):
        assert binomtest(int(alarms), sets, 0.05, "greater").pvalue > 0.001
    for count in held:
        assert binomtest(int(count), sets, 0.95, "less").pvalue > 0.001
    assert (p_values < 0.5).mean() > 0.3  # a test that never rejects would keep its level too


def test_unequal_groups_are_found_and_intervals_hold():
    sets = 60
    held, p_values = _simulated(sets, fmr=(0.02, 0.1), fnmr=(0.1, 0.5))
    assert ((p_values <= 0.05).mean(axis=0) > 0.8).all()
    for count in held:
        assert binomtest(int(count), sets, 0.93, "less").pvalue > 0.001


# ---------------------------------------------------------------------------------------------------------------- test


def test_groups_of_images_are_exchanged_within_people():
    random = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 6)
    camera = np.tile([0, 0, 0, 1, 1, 1], 40)
    first, second = np.triu_indices(person.size, 1)
    same = person[first] == person[second]
    first, second = first[same], second[same]
    worse = (camera[first] == 1) & (camera[second] == 1)
    found = alike(
        first, second, random.random(first.size) < np.where(worse, 0.6, 0.2), camera, person, permutations=199
    )
    assert found[0] < 0.01 and found[1] == IMAGES
    assert alike(first, second, random.random(first.size) < 0.3, camera, person, permutations=199)[0] > 0.05


def test_a_rate_of_people_is_no_rate_of_groups():
    # One person with many images and all the errors: people are exchanged, so this is no evidence against a group.
    person = np.repeat(np.arange(41), [20] + [2] * 40)
    first, second = np.triu_indices(person.size, 1)
    same = person[first] == person[second]
    first, second = first[same], second[same]
    group = (person >= 20).astype(int)
    p_value, permuted = alike(first, second, person[first] == 0, group, person, permutations=199)
    assert permuted == PEOPLE and p_value > 0.2


@pytest.mark.parametrize("error", [np.zeros(2, bool), np.ones(2, bool)])
def test_without_both_outcomes_there_is_no_test(error):
    assert alike(np.array([0, 2]), np.array([1, 3]), error, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))[0] is None
