"""Pictures of results: ROC curves, the course of a training, sheets of faces.

Drawn with matplotlib's object interface, so nothing here depends on or leaves behind a global figure. The format
follows the file's suffix (.png, .svg, .pdf ...).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray
from facebones.errors import ConfigError, DataError
from facebones.evaluation.curves import RocCurve, area_under_curve
from facebones.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MetricsLine = dict[str, Any]
FloatArray = npt.NDArray[np.float64]

# M. Okabe and K. Ito, "Color Universal Design" (2008): tellable apart by colour-blind readers; yellow is left out, it
# is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
RESOLUTION = 150  # dots per inch
NARROW_LABEL = 52  # letters; two columns of such labels fit under a picture
WHITE = 255


def plot_roc(curves: dict[str, RocCurve], path: str | os.PathLike[str], title: str = "Face verification") -> None:
    """Draw ROC curves over a logarithmic FAR axis, from the decade of 1 / impostors up to 1.

    The curves are drawn as steps, without interpolation: the height at a FAR is the strict TAR at that FAR. The TAR
    axis begins a little below the lowest curve, so look at its labels.

    Args:
        curves: name -> curve; the legend gives each with its AUC.
        path: where to write; the suffix decides the format.
        title: heading of the picture.

    Raises:
        DataError: there are no curves.
        ConfigError: a format that cannot be written.
    """
    if not curves:
        raise DataError("no ROC curves to draw; evaluate at least one set")
    lowest_far = min(0.01, *(10.0 ** np.floor(-np.log10(curve.impostors)) for curve in curves.values()))
    figure = _figure(7.6, 4.8)
    axes = figure.add_subplot()
    for index, (name, curve) in enumerate(curves.items()):
        far, tar = _corners(curve)
        label = f"{name} (AUC {area_under_curve(curve):.6f})"
        axes.step(np.maximum(far, lowest_far / 10), tar, where="post", label=label, **_line_style(index))
    axes.set_xscale("log")
    axes.set_xlim(lowest_far, 1.0)
    axes.set_ylim(*_tar_limits(curves, lowest_far))
    _label(axes, title, "False accept rate (FAR)", "True accept rate (TAR)")
    _legend_below(figure, axes)
    _save(figure, path)


def plot_training(runs: dict[str, Sequence[MetricsLine]], path: str | os.PathLike[str]) -> None:
    """Draw loss, learning rate and, for each verification set, accuracy with a band of one standard deviation.

    Args:
        runs: name -> the objects of its metrics.jsonl, of kind "train" and "validation", in the order written.
        path: where to write; the suffix decides the format.

    Raises:
        DataError: there are no runs, a run has no training lines, or a line lacks a key.
        ConfigError: a format that cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    if not runs:
        raise DataError("no runs to draw; give at least one run folder")
    sets = list(dict.fromkeys(name for run, lines in runs.items() for name in _set_names(lines, run)))
    columns = 2 if len(sets) in (0, 2) else 3
    rows = -(-(2 + len(sets)) // columns)
    figure = _figure(4.6 * columns, 3.3 * rows + 0.4)
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(2 + len(sets))]
    for index, (name, lines) in enumerate(runs.items()):
        _draw_training(panels[0], panels[1], name, lines, _line_style(index))
        for axes, set_name in zip(panels[2:], sets, strict=True):
            _draw_accuracy(axes, name, _of_set(lines, set_name), _line_style(index))
    titles = ["Training loss", "Learning rate", *(f"{name}: accuracy ± standard deviation over folds" for name in sets)]
    heights = ["Loss", "Learning rate", *["Accuracy (%)"] * len(sets)]
    for axes, title, height in zip(panels, titles, heights, strict=True):
        _label(axes, title, "Step", height)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), 4), frameon=False)
    _save(figure, path)


def plot_faces(
    rows: Sequence[Sequence[ImageArray]], path: str | os.PathLike[str], titles: Sequence[str] | None = None
) -> None:
    """Draw a contact sheet: one row of images under the other, each row under its title.

    Args:
        rows: uint8 (H, W, 3) RGB images; they may differ in size, and the rows in length.
        path: where to write; the suffix decides the format.
        titles: one for each row.

    Raises:
        DataError: there are no images.
        ValueError: the number of titles is not that of the rows.
        ConfigError: a format that cannot be written.
    """
    images = [image for row in rows for image in row]
    if not images:
        raise DataError("no faces to draw; the selection is empty")
    if titles is not None and len(titles) != len(rows):
        raise ValueError(f"{len(titles)} titles for {len(rows)} rows; give one for each row")
    height, width = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    most = max(len(row) for row in rows)
    row_inches = 1.1 * height / width
    figure = _figure(max(1.1 * most, 3.0) + 0.2, (row_inches + (0.25 if titles else 0.05)) * len(rows) + 0.1)
    for index, row in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, index + 1)
        axes.imshow(_strip(row, most, height, width), interpolation="lanczos")
        axes.set_axis_off()
        if titles is not None:
            axes.set_title(titles[index], loc="left", fontsize=9, pad=3)
    _save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=RESOLUTION, layout="constrained")


def _save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(
            f"{path}: pictures cannot be written as '{path.suffix}'; use one of {', '.join(sorted(known))}"
        )
    with atomic_write(path) as file:
        figure.savefig(file, format=kind)


def _line_style(index: int) -> dict[str, Any]:
    """Choose colour and dash of line `index`: 28 distinct ones, and neighbours can be told apart in a grey print."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 1.6,
    }


def _label(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(figure: "Figure", axes: "Axes") -> None:
    """Name the lines under the axes, where no line can be hidden, and make room for it."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) <= NARROW_LABEL else 1
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False)


def _corners(curve: RocCurve) -> tuple[FloatArray, FloatArray]:
    """Drop the points in mid-stretch of a level or upright part: the drawing is the same with far fewer of them."""
    far, tar = curve.false_accept_rate, curve.true_accept_rate
    level = (tar[:-2] == tar[1:-1]) & (tar[1:-1] == tar[2:])
    upright = (far[:-2] == far[1:-1]) & (far[1:-1] == far[2:])
    keep = np.concatenate([[True], ~(level | upright), [True]])
    return far[keep], tar[keep]


def _tar_limits(curves: dict[str, RocCurve], lowest_far: float) -> tuple[float, float]:
    """Limits of the TAR axis: as close around the curves as lets their differences be seen."""
    lowest = min(
        curve.true_accept_rate[np.searchsorted(curve.false_accept_rate, lowest_far, side="right") - 1]
        for curve in curves.values()
    )
    span = max(1.0 - float(lowest), 0.01)
    return max(0.0, 1.0 - 1.3 * span), 1.0 + 0.03 * span


def _of_kind(lines: Sequence[MetricsLine], kind: str) -> list[MetricsLine]:
    return [line for line in lines if line.get("kind") == kind]


def _of_set(lines: Sequence[MetricsLine], name: str) -> list[MetricsLine]:
    return [line for line in _of_kind(lines, "validation") if line["set"] == name]


def _set_names(lines: Sequence[MetricsLine], run: str) -> list[str]:
    return [str(name) for name in _values(_of_kind(lines, "validation"), "set", run)]


def _values(lines: Sequence[MetricsLine], key: str, run: str) -> list[Any]:
    for number, line in enumerate(lines):
        if key not in line:
            raise DataError(f"{run}: {line['kind']} line {number} of the metrics has no '{key}'; restore metrics.jsonl")
    return [line[key] for line in lines]


def _column(lines: Sequence[MetricsLine], key: str, run: str) -> FloatArray:
    """Numbers that the lines hold under a key, (N,)."""
    try:
        return np.array(_values(lines, key, run), dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"{run}: the metrics hold something else than numbers as '{key}'; restore metrics.jsonl"
        ) from None


def _draw_training(
    loss_axes: "Axes", rate_axes: "Axes", run: str, lines: Sequence[MetricsLine], style: dict[str, Any]
) -> None:
    lines = _of_kind(lines, "train")
    if not lines:
        raise DataError(f"{run}: the metrics hold no training lines; train at least one step")
    step, loss = _column(lines, "step", run), _column(lines, "loss", run)
    loss_axes.plot(step, loss, color=style["color"], linewidth=0.6, alpha=0.3)
    loss_axes.plot(step, _running_mean(loss), label=run, **style)
    rate_axes.plot(step, _column(lines, "learning_rate", run), **style)


def _draw_accuracy(axes: "Axes", run: str, lines: Sequence[MetricsLine], style: dict[str, Any]) -> None:
    step = _column(lines, "step", run)
    accuracy, deviation = (100 * _column(lines, key, run) for key in ("accuracy", "accuracy_std"))
    axes.fill_between(step, accuracy - deviation, accuracy + deviation, color=style["color"], alpha=0.12, linewidth=0)
    axes.plot(step, accuracy, marker="o", markersize=3, **style)


def _running_mean(values: FloatArray) -> FloatArray:
    """Mean over the last fiftieth of the values, fewer at the start: (N,) -> (N,)."""
    window = max(1, values.size // 50)
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, values.size + 1)
    start = np.maximum(end - window, 0)
    return np.asarray((total[end] - total[start]) / (end - start))


def _strip(row: Sequence[ImageArray], cells: int, height: int, width: int) -> ImageArray:
    """Set images side by side on white, each in the middle of a cell, with a gap of 4 pixels."""
    gap = 4
    strip = np.full((height, cells * (width + gap) - gap, 3), WHITE, dtype=np.uint8)
    for index, image in enumerate(row):
        top = (height - image.shape[0]) // 2
        left = index * (width + gap) + (width - image.shape[1]) // 2
        strip[top : top + image.shape[0], left : left + image.shape[1]] = image
    return strip
