"""The plot of ROC curves: what it shows of each model, that it is small, and that nothing hides anything."""

import cv2
import numpy as np
import pytest

from facebones.errors import DataError
from facebones.reporting.plots import curves as curve_plots
from facebones.reporting.plots.curves import plot_roc
from facebones.reporting.plots.style import model_styles, plot_paths
from facebones.statistics.curves import RocCurve, roc, true_accept_rate_at

NAMES = [f"backbone_{number:02} trained on a data set with a long name, seed 1" for number in range(14)]  # 60 letters


def made_up_curve(pairs=400, apart=2.0):
    is_same = np.arange(pairs) < pairs // 2
    return roc(np.random.default_rng(0).normal(size=pairs) + apart * is_same, is_same)


def huge_curve(points, seed=0):
    """A curve of so many distinct scores, without the pairs behind it."""
    random = np.random.default_rng(seed)
    far = np.arange(points + 1) / points
    tar = (far ** random.uniform(0.02, 0.1) * (points - 1) // 1) / (points - 1)
    tar[-1] = 1.0
    return RocCurve(far, tar, np.linspace(1, -1, points + 1), points, points)


def colours_by_name(figure):
    legend = figure.legends[0]
    handles, texts = legend.legend_handles, legend.get_texts()
    return {t.get_text().split(" (")[0]: (h.get_color(), h.get_marker()) for h, t in zip(handles, texts, strict=True)}


def step_lines(axes):
    return [line for line in axes.get_lines() if line.get_drawstyle() == "steps-post"]


def test_roc_plot(tmp_path, drawn, assert_is_image):
    plot_roc({"a": made_up_curve(), "b": made_up_curve(6000)}, tmp_path / "roc.png", "LFW")
    assert_is_image(tmp_path / "roc.png")
    (axes,) = drawn[0].axes
    assert (axes.get_title(), axes.get_xscale(), axes.get_xlim()) == ("LFW", "log", (1 / 3000, 1.0))
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert [label.split(" (AUC 0.9")[0] for label in labels] == ["a", "b"]
    assert [line.get_xdata()[0] for line in step_lines(axes)] == [1 / 200, 1 / 3000]


def test_line_and_markers_hold_the_strict_tar(tmp_path, drawn):
    curve = made_up_curve(2000)
    plot_roc({"a": curve}, tmp_path / "roc.png")
    line, markers = drawn[0].axes[0].get_lines()
    assert line.get_drawstyle() == "steps-post" and line.get_marker() in ("", "None", None)
    far, tar = line.get_data()
    targets = [0.001, 0.01, 0.1]
    strict = [true_accept_rate_at(curve, target) for target in targets]
    assert tar[np.searchsorted(far, targets, side="right") - 1].tolist() == strict
    assert markers.get_xdata().tolist() == targets
    assert list(markers.get_ydata()) == strict


@pytest.mark.parametrize("models", [1, 3, 14])
def test_many_models_are_readable_and_keep_their_look(tmp_path, drawn, models, assert_all_is_readable):
    looks = model_styles(NAMES)
    curves = {name: made_up_curve(apart=3 - index / 7) for index, name in enumerate(NAMES[:models])}
    plot_roc(curves, plot_paths(tmp_path / "roc"), styles=looks)
    plot_roc({NAMES[models - 1]: made_up_curve()}, tmp_path / "one.png", styles=looks)
    together, alone = drawn
    assert_all_is_readable(together)
    colours = colours_by_name(together)
    assert list(colours) == NAMES[:models]
    assert colours[NAMES[models - 1]] == colours_by_name(alone)[NAMES[models - 1]]
    assert [line.get_color() for line in step_lines(together.axes[0])] == [colour for colour, _ in colours.values()]
    assert (tmp_path / "roc.pdf").read_bytes().startswith(b"%PDF")


def test_intervals_are_bars_at_the_targets(tmp_path, drawn, assert_all_is_readable):
    curves = {"a": made_up_curve(2000), "b": made_up_curve(2000, 1.0), "c": made_up_curve(2000, 1.5)}
    bands = {name: (np.array([0.02, 0.1]), np.array([0.1, 0.5]), np.array([0.7, 0.9])) for name in ("a", "c")}
    plot_roc(curves, tmp_path / "roc.png", bands=bands)
    (axes,) = drawn[0].axes
    assert len(axes.collections) == 2
    places = []
    for bars in axes.collections:
        segments = np.array(bars.get_segments())  # (2, 2 ends, 2)
        np.testing.assert_allclose(segments[:, :, 1], [[0.1, 0.7], [0.5, 0.9]])
        np.testing.assert_allclose(segments[:, 0, 0], [0.02, 0.1], rtol=0.2)
        places.append(segments[0, 0, 0])
    assert places[0] < 0.02 < places[1]
    assert axes.get_ylim()[0] < 0.1
    markers = [line.get_xdata().tolist() for line in axes.get_lines() if line.get_linestyle() == "None"][:3]
    assert markers == [[0.001, 0.01, 0.02, 0.1], [0.001, 0.01, 0.1], [0.001, 0.01, 0.02, 0.1]]
    assert_all_is_readable(drawn[0])


def test_intervals_of_many_models_stay_near_their_target():
    factors = curve_plots._side_by_side(14)
    assert factors.size == 14 and np.unique(factors).size == 14
    assert factors.min() > 10**-0.08 and factors.max() < 10**0.08
    assert curve_plots._side_by_side(1).tolist() == [1.0]


def test_curves_of_millions_of_points_make_a_small_file_that_is_exact_at_the_decades(tmp_path, drawn):
    curves = {name: huge_curve(300_000, seed) for seed, name in enumerate(NAMES)}
    curves[NAMES[0]] = huge_curve(2_000_000)
    plot_roc(curves, tmp_path / "roc.pdf")
    assert (tmp_path / "roc.pdf").stat().st_size < 300_000
    for curve, line in zip(curves.values(), step_lines(drawn[0].axes[0]), strict=True):
        far, tar = line.get_data()
        for target in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
            assert tar[np.searchsorted(far, target, side="right") - 1] == true_accept_rate_at(curve, target)


def test_thinning_moves_no_line_by_more_than_a_dot(tmp_path, monkeypatch):
    curves = {"a": made_up_curve(60_000), "b": made_up_curve(40_000, 1.0)}
    solid = {name: look | {"linestyle": "-"} for name, look in model_styles(curves).items()}
    plot_roc(curves, tmp_path / "thin.png", styles=solid)
    monkeypatch.setattr(curve_plots, "thin_steps", lambda x, y, lowest: (np.maximum(x, lowest), y))
    plot_roc(curves, tmp_path / "all.png", styles=solid)
    thin, everything = (cv2.imread(str(tmp_path / name)).min(axis=2) < 128 for name in ("thin.png", "all.png"))
    for one, other in ((thin, everything), (everything, thin)):
        near_other = cv2.dilate(other.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert one.sum() > 5000
        assert not (one & ~near_other).any()


def test_the_axis_begins_where_it_is_told(tmp_path, drawn):
    plot_roc({"a": made_up_curve(6000)}, tmp_path / "roc.png", lowest_far=0.01)
    assert drawn[0].axes[0].get_xlim() == (0.01, 1.0)
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="lowest_far"):
            plot_roc({"a": made_up_curve()}, tmp_path / "roc.png", lowest_far=wrong)


@pytest.mark.parametrize("apart", [-50.0, 0.0, 50.0])
def test_perfect_and_useless_models_can_be_drawn(tmp_path, drawn, apart, assert_all_is_readable):
    plot_roc({"a": made_up_curve(400, apart), "b": roc([1.0, 0.0], [True, False])}, tmp_path / "roc.png")
    low, high = drawn[0].axes[0].get_ylim()
    assert low < high and high > 1.0
    assert_all_is_readable(drawn[0])


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ({"b": ([0.1], [0.2], [0.3])}, "b: a band without a curve"),
        ({"a": ([0.1], [0.2, 0.3], [0.3])}, "a: not a band"),
        ({"a": ([0.1], [0.4], [0.3])}, "a: not a band"),
        ({"a": (0.1, 0.2, 0.3)}, "a: not a band"),
        ({"a": ([0.1], [np.nan], [0.3])}, "a: not a band"),
    ],
)
def test_what_is_no_interval_is_refused(tmp_path, bands, message):
    with pytest.raises(ValueError, match=message):
        plot_roc({"a": made_up_curve()}, tmp_path / "roc.png", bands=bands)
    assert not list(tmp_path.iterdir())


def test_no_curves_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no ROC curves"):
        plot_roc({}, tmp_path / "roc.png")
