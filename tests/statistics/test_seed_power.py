"""Power between seeds: against scipy's noncentral t, and against simulations of known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from facebones.statistics.seed_power import (
    chance_of_order,
    compare_seeds,
    detectable_difference,
    seed_noise,
    seed_power,
    seeds_needed,
)

STUDIES = 4000


@pytest.mark.parametrize(("seeds", "others"), [(2, 2), (3, 3), (10, 10), (1, 2), (5, 2), (200, 200)])
@pytest.mark.parametrize("difference", [0.0, 0.3, -1.0, 2.5])
def test_power_is_that_of_the_noncentral_t(seeds, others, difference):
    degrees, shift = seeds + others - 2, difference / 0.7 / math.sqrt(1 / seeds + 1 / others)
    bound = stats.t.ppf(0.995, degrees)
    wrong_way = np.nan_to_num(stats.nct.cdf(-bound, degrees, shift))  # scipy: NaN where it is next to nothing
    expected = stats.nct.sf(bound, degrees, shift) + wrong_way
    assert seed_power(difference, 0.7, seeds, others, alpha=0.01) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("seeds", "effect"), [(2, 0), (2, 3), (3, 0), (3, 2), (5, 0), (5, 1.5), (10, 1)])
def test_simulated_studies_find_a_difference_as_often_as_computed_and_none_as_often_as_promised(seeds, effect):
    """The share of studies of two levels in which the test is significant, within Monte-Carlo error."""
    random = np.random.default_rng([seeds, round(10 * effect)])
    studies = random.normal(0.9, 0.01, (STUDIES, 2, seeds)) + 0.01 * effect * np.array([0, 1])[:, None]
    found = np.mean([compare_seeds(first, second) <= 0.05 for first, second in studies])
    computed = seed_power(0.01 * effect, 0.01, seeds)
    assert found == pytest.approx(computed, abs=4 * math.sqrt(computed * (1 - computed) / STUDIES))
    assert effect or computed == pytest.approx(0.05)


def test_the_test_is_students_t():
    random = np.random.default_rng(0)
    first, second = random.normal(0.9, 0.01, 4), random.normal(0.91, 0.02, 3)
    assert compare_seeds(first, second) == pytest.approx(stats.ttest_ind(first, second).pvalue, rel=1e-9)
    assert compare_seeds([0.1] * 3, [0.1] * 3) == 1.0 and compare_seeds([0.1] * 3, [0.2] * 3) == 0.0


@pytest.mark.parametrize(("levels", "seeds"), [(2, 2), (2, 3), (5, 3)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_upper_limit_of_the_spread_holds_as_often_as_promised(levels, seeds, confidence):
    studies = np.random.default_rng([levels, seeds]).normal(0, 2, (STUDIES, levels, seeds)) + np.arange(levels)[:, None]
    held = np.mean([seed_noise(study, confidence).upper >= 2 for study in studies])
    assert held == pytest.approx(confidence, abs=4 * math.sqrt(confidence * (1 - confidence) / STUDIES))


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("effect", [0.4, 1.0, 3.0])
def test_what_is_needed_is_the_least_that_is_enough(power, effect):
    seeds = seeds_needed(effect, 1.0, power=power)
    assert seed_power(effect, 1.0, seeds) >= power and (seeds == 2 or seed_power(effect, 1.0, seeds - 1) < power)
    assert detectable_difference(1.0, seeds, power=power) <= effect
    assert seed_power(detectable_difference(2.0, seeds, power=power), 2.0, seeds) == pytest.approx(power, abs=1e-6)


def test_where_there_is_no_spread_any_difference_is_found():
    assert seed_noise([[0.1, 0.1, 0.1], [0.2, 0.2]]).upper == 0.0
    assert seed_power(0.01, 0.0, 2) == 1.0 and seed_power(0.0, 0.0, 2) == 0.05
    assert detectable_difference(0.0, 2) == 0.0 and seeds_needed(0.01, 0.0) == 2
    assert seeds_needed(0.0, 1.0) is None


def test_equal_levels_are_in_order_by_luck_as_often_as_counted():
    studies = np.random.default_rng(0).normal(size=(STUDIES, 2, 3))
    ordered = (studies[:, 0].min(1) > studies[:, 1].max(1)) | (studies[:, 1].min(1) > studies[:, 0].max(1))
    assert np.mean(ordered) == pytest.approx(chance_of_order(3), abs=0.02) and chance_of_order(3) == 0.1


def test_levels_without_two_seeds_have_no_spread():
    with pytest.raises(ValueError, match="levels: 2, none of which has two seeds"):
        seed_noise([[0.1], [0.2]])
    with pytest.raises(ValueError, match="seeds: 1 and 1; a spread needs two seeds"):
        seed_power(1.0, 1.0, 1)
