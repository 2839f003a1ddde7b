"""Thinned steps: exact where they are read, unchanged to the eye, and few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facebones.reporting.plots.curves import COLUMNS, decades, height_at, thin_steps


def rising_steps(points, seed=0):
    """Steps from (0, 0) to (1, 1), dense near 0 on a logarithmic axis too, with ties in both directions."""
    random = np.random.default_rng(seed)
    x = np.sort(np.concatenate([[0.0, 1.0], 10.0 ** random.uniform(-8, 0, points // 2), random.random(points // 2)]))
    y = np.sort(np.round(random.random(x.size), 5))
    y[0], y[-1] = 0.0, 1.0
    return np.round(x, 9), y


def test_decades_are_the_numbers_as_they_are_written():
    assert decades(1e-7).tolist() == [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert decades(2e-4, 0.1).tolist() == [1e-3, 1e-2, 1e-1]
    assert decades(0.2, 0.5).tolist() == []


def test_a_million_points_become_few_and_every_decade_is_exact():
    x, y = rising_steps(1_000_000)
    thin_x, thin_y = thin_steps(x, y, 1e-7)
    assert thin_x.size <= COLUMNS + 8
    for decade in decades(1e-7):
        assert height_at(thin_x, thin_y, decade) == height_at(x, y, decade)


@given(points=st.integers(2, 3000), seed=st.integers(0, 99), exponent=st.floats(-8, -0.5))
@settings(deadline=None, max_examples=50)
def test_steps_move_by_less_than_a_column(points, seed, exponent):
    x, y = rising_steps(points, seed)
    lowest = 10.0**exponent
    thin_x, thin_y = thin_steps(x, y, lowest)
    assert thin_x[0] == lowest and thin_x[-1] == 1.0
    assert (np.diff(thin_x) >= 0).all() and (np.diff(thin_y) >= 0).all()
    column = lowest ** (-1 / (COLUMNS - 1)) * (1 + 1e-9)
    for place in np.geomspace(lowest * column, 1 / column, 50):
        low, high = height_at(x, y, place / column), height_at(x, y, place * column)
        assert low <= height_at(thin_x, thin_y, place) <= high


def test_falling_steps_that_begin_inside_the_axis_stay_there():
    x, y = np.array([0.01, 0.01, 0.5, 0.9]), np.array([0.8, 0.7, 0.7, 0.2])
    thin_x, thin_y = thin_steps(x, y, 1e-4)
    assert thin_x.tolist() == [0.01, 0.9]
    assert thin_y.tolist() == [0.7, 0.2]
    assert height_at(x, y, 0.009) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_written_to_and_the_answer_is_in_double(dtype):
    x, y = (values.astype(dtype) for values in rising_steps(100))
    before = x.copy(), y.copy()
    thinned = thin_steps(x, y, 1e-3)
    assert [values.dtype for values in thinned] == [np.float64, np.float64]
    np.testing.assert_array_equal((x, y), before)
