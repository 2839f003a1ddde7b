"""Pictures of a training: that they are written whole and show what they should."""

import numpy as np
import pytest

from facebones.errors import DataError
from facebones.reporting import plots
from facebones.reporting.plots import plot_faces, plot_training


def made_up_run(steps=120, sets=("lfw", "cfp_fp")):
    lines = [{"kind": "train", "step": s, "loss": 30 / (s + 1), "learning_rate": 0.1} for s in range(steps)]
    for step in range(20, steps, 20):
        lines += [{"kind": "validation", "step": step, "set": s, "accuracy": 0.9, "accuracy_std": 0.01} for s in sets]
    return lines


def test_training_picture(tmp_path, drawn, assert_is_picture):
    plot_training({"a": made_up_run(), "b": made_up_run(sets=("lfw",))}, tmp_path / "training.png")
    assert_is_picture(tmp_path / "training.png")
    titles = [axes.get_title().split(":")[0] for axes in drawn[0].axes]
    assert titles == ["Training loss", "Learning rate", "lfw", "cfp_fp"]
    lfw = drawn[0].axes[2]
    np.testing.assert_allclose(lfw.get_lines()[0].get_ydata(), 90.0)
    band = lfw.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [89.0, 91.0])


def test_training_without_validation_has_two_panels(tmp_path, drawn):
    plot_training({"a": made_up_run(3)}, tmp_path / "training.png")
    assert len(drawn[0].axes) == 2


def test_running_mean():
    np.testing.assert_allclose(plots.running_mean(np.array([3.0, 1.0])), [3, 1])
    smooth = plots.running_mean(np.arange(100.0))  # over two values
    np.testing.assert_allclose(smooth[:3], [0, 0.5, 1.5])


def test_running_mean_goes_on_behind_a_loss_that_is_no_number():
    values = np.arange(100.0)
    values[[10, 20, 21]] = np.nan
    smooth = plots.running_mean(values)  # over two values
    np.testing.assert_allclose(smooth[[10, 11, 20, 21, 22, 99]], [9, 11, 19, np.nan, 22, 98.5])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "no runs"),
        ({"a": []}, "a: the metrics hold no training lines"),
        ({"a": [{"kind": "train", "step": 1, "loss": 2.0}]}, "a: train line 0 of the metrics has no 'learning_rate'"),
        ({"a": [*made_up_run(2), {"kind": "validation", "set": "x", "step": 1}]}, "validation line 0 .* 'accuracy'"),
        ({"a": [*made_up_run(2), {"kind": "validation", "step": 1}]}, "validation line 0 .* 'set'"),
    ],
)
def test_training_that_cannot_be_drawn(runs, message, tmp_path):
    with pytest.raises(DataError, match=message):
        plot_training(runs, tmp_path / "training.png")
    assert not list(tmp_path.iterdir())


def test_faces_of_different_sizes_in_rows_of_different_length(tmp_path, drawn, assert_is_picture):
    random = np.random.default_rng(0)
    small, large = (random.integers(0, 255, (size, size, 3), dtype=np.uint8) for size in (64, 112))
    plot_faces([[small, large, small], [], [large]], tmp_path / "faces.png", ["first", "empty", "third"])
    assert_is_picture(tmp_path / "faces.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["first", "empty", "third"]
    strip = np.asarray(drawn[0].axes[0].images[0].get_array())
    np.testing.assert_array_equal(strip[24:88, 24:88], small)
    np.testing.assert_array_equal(strip[:, 116:228], large)


def test_faces_need_images_and_matching_titles(tmp_path):
    with pytest.raises(DataError, match="no faces"):
        plot_faces([[], []], tmp_path / "faces.png")
    with pytest.raises(ValueError, match="2 titles for 1 rows"):
        plot_faces([[np.zeros((4, 4, 3), np.uint8)]], tmp_path / "faces.png", ["a", "b"])
