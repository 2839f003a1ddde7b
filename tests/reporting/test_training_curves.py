"""The course of a training: what is drawn of its lines, and what cannot be."""

import numpy as np
import pytest

from facebones.errors import DataError
from facebones.reporting.plots.report_plots import _column, running_mean


def test_running_mean():
    np.testing.assert_allclose(running_mean(np.array([3.0, 1.0])), [3, 1])
    smooth = running_mean(np.arange(100.0))  # over two values
    np.testing.assert_allclose(smooth[:3], [0, 0.5, 1.5])


def test_running_mean_goes_on_behind_a_loss_that_is_no_number():
    values = np.arange(100.0)
    values[[10, 20, 21]] = np.nan
    smooth = running_mean(values)  # over two values
    np.testing.assert_allclose(smooth[[10, 11, 20, 21, 22, 99]], [9, 11, 19, np.nan, 22, 98.5])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"kind": "train"}, "a: train line 1 of metrics.jsonl has no 'step'"),
        ({"kind": "train", "step": "x"}, "a: metrics.jsonl has a value of 'step' that is not a number"),
        ({"kind": "train", "step": [1, 2]}, "a: metrics.jsonl has a value of 'step' that is not a number"),
    ],
)
def test_what_is_no_number_is_named(line, message):
    with pytest.raises(DataError, match=message):
        _column([{"kind": "train", "step": 1}, line], "step", "a")
