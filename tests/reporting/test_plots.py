"""Pictures: that they are written whole, show what they should, and leave no global figure."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from facebones.errors import ConfigError, DataError
from facebones.evaluation.curves import area_under_curve, roc
from facebones.reporting import plots
from facebones.reporting.plots import plot_faces, plot_roc, plot_training


def made_up_curve(pairs=400, apart=2.0):
    is_same = np.arange(pairs) < pairs // 2
    return roc(np.random.default_rng(0).normal(size=pairs) + apart * is_same, is_same)


def made_up_run(steps=120, sets=("lfw", "cfp_fp")):
    lines = [{"kind": "train", "step": s, "loss": 30 / (s + 1), "learning_rate": 0.1} for s in range(steps)]
    for step in range(20, steps, 20):
        lines += [{"kind": "validation", "step": step, "set": s, "accuracy": 0.9, "accuracy_std": 0.01} for s in sets]
    return lines


@pytest.fixture
def drawn(monkeypatch):
    """Figures in the moment they are saved."""
    figures, save = [], plots._save

    def remember(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", remember)
    return figures


def assert_is_picture(path):
    image = cv2.imread(str(path))
    assert image is not None
    assert image.std() > 0
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing temporary is left


def test_roc_picture(tmp_path, drawn):
    plot_roc({"a": made_up_curve(), "b": made_up_curve(6000)}, tmp_path / "roc.png", "LFW")
    assert_is_picture(tmp_path / "roc.png")
    (axes,) = drawn[0].axes
    assert (axes.get_title(), axes.get_xscale(), axes.get_xlim()) == ("LFW", "log", (1e-4, 1.0))
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert [label.split(" (AUC 0.9")[0] for label in labels] == ["a", "b"]


def test_roc_line_holds_the_strict_tar(tmp_path, drawn):
    curve = roc([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [True, False, True, True, False, False])
    plot_roc({"a": curve}, tmp_path / "roc.png")
    (line,) = drawn[0].axes[0].get_lines()
    assert line.get_drawstyle() == "steps-post"
    far, tar = line.get_data()
    heights = tar[np.searchsorted(far, [0.01, 0.4, 0.99], side="right") - 1]
    np.testing.assert_allclose(heights, [1 / 3, 1, 1])


@pytest.mark.parametrize(
    ("names", "columns"),
    [("shufflefacenet_1_{}, synthetic_profile", 2), ("a name longer than that, of file number {}", 1)],
)
def test_legend_hides_no_line_and_is_whole(tmp_path, drawn, names, columns):
    plot_roc({names.format(index): made_up_curve() for index in range(9)}, tmp_path / "roc.png")
    (legend,), (axes,) = drawn[0].legends, drawn[0].axes
    assert (len(legend.get_texts()), legend._ncols) == (9, columns)
    box = legend.get_window_extent()
    assert box.y1 <= axes.get_tightbbox().y0
    assert box.x0 >= 0 and box.x1 <= drawn[0].bbox.width


@pytest.mark.parametrize("apart", [0.0, 2.0, 50.0])
def test_corners_keep_the_shape_of_the_curve(apart):
    curve = made_up_curve(2000, apart)
    far, tar = plots._corners(curve)
    assert far.size < curve.false_accept_rate.size
    area = np.sum(np.diff(far) * (tar[1:] + tar[:-1])) / 2
    assert area == pytest.approx(area_under_curve(curve), abs=1e-12)


def test_line_styles_differ():
    styles = {(style["color"], style["linestyle"]) for style in map(plots._line_style, range(28))}
    assert len(styles) == 28


def test_training_picture(tmp_path, drawn):
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
    np.testing.assert_allclose(plots._running_mean(np.array([3.0, 1.0])), [3, 1])
    smooth = plots._running_mean(np.arange(100.0))  # over two values
    np.testing.assert_allclose(smooth[:3], [0, 0.5, 1.5])


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


def test_faces_of_different_sizes_in_rows_of_different_length(tmp_path, drawn):
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


def test_no_curves_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no ROC curves"):
        plot_roc({}, tmp_path / "roc.png")


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")])
def test_the_suffix_decides_the_format(tmp_path, suffix, start):
    plot_roc({"a": made_up_curve()}, tmp_path / f"roc.{suffix}")
    assert (tmp_path / f"roc.{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["roc.docx", "roc"])
def test_an_unknown_format_is_named_and_nothing_is_written(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot be written as .* png"):
        plot_roc({"a": made_up_curve()}, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_imported_late_and_pyplot_never(tmp_path):
    code = (
        "import sys, facebones.reporting.plots as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import numpy as np\n"
        f"p.plot_faces([[np.zeros((8, 8, 3), np.uint8)]], {str(tmp_path / 'x.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
