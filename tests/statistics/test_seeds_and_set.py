"""Levels over seeds and people: variances, the limits, and false alarms of levels that are equal in the long run."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_ind

from facebones.statistics.seed_power import compare_seeds
from facebones.statistics.seeds_and_set import compare_levels, shared_variance

PAIRS = 1000


def trained(random, seeds, taste, luck=0.05):
    """Whether each run of two levels decides each pair of a set correctly, (2, seeds, PAIRS).

    `taste` is how differently the levels see a pair, whatever the seed; on all pairs together they are equal.
    """
    difficulty = random.normal(1.2, 1.0, PAIRS)
    of_level = taste * random.standard_normal((2, 1, PAIRS))
    of_run = luck * random.standard_normal((2, seeds, 1)) + 0.4 * random.standard_normal((2, seeds, PAIRS))
    return difficulty + of_level + of_run > 0


def variance(one, other):
    return np.var(one.astype(float) - other) / PAIRS


def variances(correct):
    first, second = correct
    seeds = range(len(first))
    between = [variance(first[one], second[other]) for one in seeds for other in seeds]
    return between, *([variance(runs[i], runs[j]) for i in seeds for j in range(i)] for runs in (first, second))


def test_without_noise_of_the_set_it_is_students_t_and_without_seeds_the_normal_test():
    first, second = [0.90, 0.92, 0.95], [0.86, 0.885, 0.89, 0.9]
    found = compare_levels(first, second, 0.0)
    expected = ttest_ind(first, second)
    assert (found.p_value, found.from_seeds) == (pytest.approx(expected.pvalue, rel=1e-9), 1.0)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    found = compare_levels([0.9, 0.9], [0.88, 0.88], 0.01**2)
    assert (found.p_value, found.from_seeds) == (pytest.approx(2 * norm.sf(2), rel=1e-9), 0.0)
    assert (found.low, found.high) == pytest.approx((0.02 - 1.959964 * 0.01, 0.02 + 1.959964 * 0.01), abs=1e-8)


def test_the_interval_excludes_zero_where_p_is_below_five_percent():
    for difference in np.linspace(0, 0.06, 61):
        found = compare_levels([0.90, 0.92, 0.91], [value - difference for value in (0.90, 0.92, 0.905)], 0.006**2)
        assert (found.low > 0) == (found.p_value < 0.05)


def test_runs_without_any_noise_differ_or_are_equal():
    assert compare_levels([0.9, 0.9], [0.8], 0.0).p_value == 0
    assert compare_levels([0.9, 0.9], [0.9], 0.0).p_value == 1
    assert all(compare_levels([value], [value] * 3, 0.0).p_value == 1 for value in np.arange(3000, 6001) / 6000)
    assert compare_levels([0.9, 0.9], [0.1, 0.1], 1e-12).p_value < 1e-200


def test_no_variance_at_all_is_refused():
    with pytest.raises(ValueError, match="between: none"):
        shared_variance([], [1.0], [1.0])


@pytest.mark.parametrize("taste", [0.0, 0.5])
def test_what_a_set_has_for_a_level_is_found_among_the_noise_of_the_runs(taste):
    random = np.random.default_rng(0)
    found = [shared_variance(*variances(trained(random, 4, taste))) for _ in range(40)]
    means = [np.subtract(*trained(random, 60, taste, luck=0.0).mean((1, 2))) for _ in range(400)]
    truth = np.var(means) - 2 * variance(*trained(random, 2, 0.0)[0]) / 2 / 60
    assert np.mean(found) == pytest.approx(truth, rel=0.2, abs=4e-6)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_levels_seldom_differ_on_other_seeds_and_pairs(seeds):
    random, sets = np.random.default_rng(seeds), 400
    alarms = {"both": 0, "seeds": 0}
    for _ in range(sets):
        correct = trained(random, seeds, 0.5)
        first, second = correct.mean(2)
        alarms["both"] += compare_levels(first, second, shared_variance(*variances(correct))).p_value <= 0.05
        alarms["seeds"] += compare_seeds(first, second) <= 0.05
    assert alarms["both"] / sets < 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)
    assert alarms["seeds"] > alarms["both"]  # the seeds alone know nothing of other pairs
