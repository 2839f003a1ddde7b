"""Plots of 1:N: ranks and error rates where they belong, readable with many models."""

import numpy as np
import pytest

from facebones.errors import DataError
from facebones.reporting.plots.curves import plot_cmc, plot_det
from facebones.reporting.plots.style import model_styles, plot_paths

NAMES = [f"backbone_{number:02} trained on a data set with a long name, seed 1" for number in range(14)]  # 60 letters


def made_up_det(points=4000, quality=40.0):
    fpir = np.arange(1, points + 1) / points
    return fpir, np.floor(1000 * np.exp(-quality * fpir)) / 1000


def tick_labels(axis):
    low, high = sorted(axis.get_view_interval())
    labels = [label.get_text() for label in axis.get_ticklabels()]
    return [text for text, place in zip(labels, axis.get_ticklocs(), strict=True) if low <= place <= high]


@pytest.mark.parametrize(
    ("ranks", "scale", "ticks", "marked"),
    [
        (1, "linear", ["1"], None),
        (10, "linear", [str(rank) for rank in range(1, 11)], None),
        (20, "linear", [str(rank) for rank in range(1, 21)], None),
        (50, "log", ["1", "2", "5", "10", "20", "50"], [0, 1, 4, 9, 19, 49]),
    ],
)
def test_ranks_are_on_the_axis_that_reads_best(tmp_path, drawn, ranks, scale, ticks, marked):
    rates = 1 - 0.1 / np.arange(1, ranks + 1)
    plot_cmc({"a": rates, "b": rates[:5] - 0.01}, tmp_path / "cmc.png")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == scale
    drawn[0].draw_without_rendering()
    assert tick_labels(axes.xaxis) == ticks
    first, second = axes.get_lines()
    np.testing.assert_array_equal(first.get_data(), (np.arange(1, ranks + 1), rates))
    assert second.get_xdata().tolist() == list(range(1, min(5, ranks) + 1))
    assert first.get_markevery() == marked
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts == ["a (rank 1: 90.00 %)", "b (rank 1: 89.00 %)"]


@pytest.mark.parametrize("models", [1, 3, 14])
def test_many_models_are_readable_and_keep_their_look(tmp_path, drawn, models, assert_all_is_readable):
    looks = model_styles(NAMES)
    names = NAMES[14 - models :]
    plot_cmc({name: [0.9, 0.95, 1.0] for name in names}, plot_paths(tmp_path / "cmc"), styles=looks)
    plot_det({name: made_up_det(quality=9.0 + i) for i, name in enumerate(names)}, tmp_path / "det.png", styles=looks)
    for figure in drawn:
        assert_all_is_readable(figure)
        assert [handle.get_color() for handle in figure.legends[0].legend_handles] == [
            looks[name]["color"] for name in names
        ]
    cmc, det = (figure.axes[0].get_lines() for figure in drawn)
    steps = [line for line in det if line.get_drawstyle() == "steps-post"]
    assert [line.get_color() for line in cmc] == [line.get_color() for line in steps]
    assert [line.get_linestyle() for line in cmc] == [line.get_linestyle() for line in steps]


def test_det_is_steps_of_errors_in_percent_with_marks(tmp_path, drawn):
    fpir, fnir = made_up_det()
    plot_det({"a": (fpir, fnir)}, tmp_path / "det.png", "IJB-C, 1:N")
    (axes,) = drawn[0].axes
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_title()) == ("log", "log", "IJB-C, 1:N")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("FPIR (%)", "FNIR (1 - TPIR, %)")
    assert axes.get_xlim() == (1 / 4000, 1.0)
    drawn[0].draw_without_rendering()
    assert tick_labels(axes.xaxis) == ["0.1", "1", "10", "100"]
    line, markers, low, high = axes.get_lines()
    x, y = line.get_data()
    for mark in (0.01, 0.1):
        assert y[np.searchsorted(x, mark, side="right") - 1] == fnir[np.searchsorted(fpir, mark, side="right") - 1]
    assert markers.get_xydata().tolist() == [[0.01, fnir[39]], [0.1, fnir[399]]]
    assert [low.get_xdata()[0], high.get_xdata()[0]] == [0.01, 0.1]
    bottom, top = axes.get_ylim()
    assert 0 < bottom < 0.001 and fnir[0] < top


@pytest.mark.parametrize(
    "pair",
    [
        ([0.0, 0.5, 1.0], [0.0, 0.0, 0.0]),  # without an error, which no logarithmic axis can show
        ([0.2], [0.4]),
        ([0.5, 1.0], [1.0, 0.9]),
        ([0.0, 0.0], [1.0, 0.5]),
        ([1e-7, 0.3], [1e-7, 0.0]),
        ([0.0, 1.0], [1.0, 1.0]),
    ],
)
def test_det_of_few_points_and_extreme_errors_can_be_drawn(tmp_path, drawn, pair, assert_all_is_readable):
    plot_det({"a": pair, "b": made_up_det()}, tmp_path / "both.png")
    plot_det({"a": pair}, tmp_path / "det.png")
    for figure in drawn:
        bottom, top = figure.axes[0].get_ylim()
        assert 0 < bottom < top <= 1.1
        assert_all_is_readable(figure)


@pytest.mark.parametrize("rates", [[], [[0.5]], [0.5, 0.4], [0.5, 1.1], [-0.1, 0.5], [np.nan], 0.5])
def test_what_is_no_cmc_curve_is_refused(tmp_path, rates):
    with pytest.raises(ValueError, match="model 1: not a CMC curve"):
        plot_cmc({"model 1": rates}, tmp_path / "cmc.png")


@pytest.mark.parametrize(
    "pair",
    [
        ([], []),
        ([0.1, 0.2], [0.5]),
        ([0.2, 0.1], [0.4, 0.5]),  # thresholds rise
        ([0.1, 0.2], [0.4, 0.5]),
        ([0.1, 1.2], [0.5, 0.4]),
        ([0.1, np.nan], [0.5, 0.4]),
        ([[0.1]], [[0.5]]),
    ],
)
def test_what_is_no_det_curve_is_refused(tmp_path, pair):
    with pytest.raises(ValueError, match="model 1: not a DET curve"):
        plot_det({"model 1": pair}, tmp_path / "det.png")


@pytest.mark.parametrize("plot", [plot_cmc, plot_det])
def test_no_curves_are_an_error(tmp_path, plot):
    with pytest.raises(DataError, match=r"no .* curves to draw"):
        plot({}, tmp_path / "plot.png")
