"""Error versus discard: curves by hand, ties, and resampled intervals."""

import numpy as np
import pytest

from facebones.statistics.discard import (
    CELLS,
    best_possible,
    fnmr_after_discards,
    partial_area,
    range_of,
    resample_discards,
)
from facebones.statistics.significance import compare_models, confidence_interval


def test_curve_by_hand():
    """Rejected of ten: qualities 1, 2 and 9. So 3/10; without one 2/9; without three 1/7; without nine 0/1."""
    quality, rejected = np.arange(1, 11), np.isin(np.arange(1, 11), [1, 2, 9])
    found = fnmr_after_discards(quality, rejected, [0, 0.1, 0.2, 0.3, 0.5, 0.9])
    assert found == pytest.approx([3 / 10, 2 / 9, 1 / 8, 1 / 7, 1 / 5, 0])
    assert fnmr_after_discards(quality, rejected, [0.05]) == pytest.approx([2.5 / 9.5])  # half of the first pair


def test_pairs_of_equal_quality_go_in_proportion():
    """Qualities 1 (two rejected of four) and 2 (one of six): half of the four are two pairs, one of them rejected."""
    quality, rejected = np.repeat([1, 2], [4, 6]), np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 0], dtype=bool)
    expected = [3 / 10, 2 / 8, 1 / 6]
    for order in (np.arange(10), np.arange(10)[::-1], np.random.default_rng(0).permutation(10)):
        assert fnmr_after_discards(quality[order], rejected[order], [0, 0.2, 0.4]) == pytest.approx(expected)


def test_the_best_quality_reaches_the_best_possible():
    rejected = np.arange(200) < 10
    shares = np.linspace(0, 0.3, 31)
    assert fnmr_after_discards(np.arange(200), rejected, shares) == pytest.approx(best_possible(0.05, shares))
    assert partial_area(np.full(7, 0.05)) == pytest.approx(0.05)


def _pairs(people=300, images=4, seed=0):
    """Genuine pairs of people whose images have a hidden quality, on which rejection depends."""
    random = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), images * (images - 1) // 2)
    hidden = random.normal(size=person.size) + 0.5 * random.normal(size=people)[person]
    rejected = random.random(person.size) < 1 / (1 + np.exp(2 + 2 * hidden))
    good, poor = hidden + 0.2 * random.normal(size=person.size), random.normal(size=person.size)
    return person, rejected, {"good": good, "poor": poor}


def test_a_good_score_is_told_from_chance():
    person, rejected, qualities = _pairs()
    same = np.ones(person.size + 2, dtype=bool)
    same[-2:] = False  # impostor pairs play no part
    padded = {name: np.append(row, [0, 0]) for name, row in qualities.items()}
    identities = np.append(person, [0, 1]), np.append(person, [1, 2])
    found = resample_discards(padded, np.append(rejected, [True, False]), same, identities, up_to=0.2, replicates=300)
    assert [(one.metric.name, one.metric.at["discarded"]) for one in found] == [
        ("fnmr", 0.1), ("fnmr", 0.2), ("pauc", 0.2)]  # fmt: skip
    (*_, area) = compare_models(["good", "poor", "at random"], found)
    assert area.values["good"] == pytest.approx(
        float(partial_area(fnmr_after_discards(qualities["good"], rejected, range_of(0.2)))), abs=1e-12
    )
    assert area.values["at random"] == pytest.approx(rejected.mean())
    tests = {(one.first, one.second): one.adjusted for one in area.comparisons}
    assert tests["good", "at random"] < 0.001 and tests["poor", "at random"] > 0.05
    assert area.best == "good" and area.metric.main and area.intervals["good"].resampled == "identities"


def test_without_people_pairs_are_resampled_and_cells_change_little():
    _, rejected, qualities = _pairs(people=1000)
    assert rejected.size > 10 * CELLS
    (*_, found) = resample_discards(qualities, rejected, np.ones(rejected.size, dtype=bool), up_to=0.3, replicates=300)
    assert found.resampled == "pairs"
    assert found.replicates.mean(axis=0) == pytest.approx(found.values, abs=0.002)
    interval = confidence_interval(found, 2)
    half = 1.96 * np.sqrt(rejected.mean() * (1 - rejected.mean()) / rejected.size)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)
