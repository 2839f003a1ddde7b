"""Pictures of a training: its course, and sheets of faces."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray
from facebones.errors import DataError
from facebones.reporting.figures import (
    Paths,
    Style,
    label_axes,
    legend_below,
    line_only,
    new_figure,
    save_pictures,
    set_text,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MetricsLine = dict[str, Any]
FloatArray = npt.NDArray[np.float64]

WHITE = 255


def plot_training(
    runs: Mapping[str, Sequence[MetricsLine]], paths: Paths, *, styles: Mapping[str, Style] | None = None
) -> None:
    """Draw loss, learning rate and, for each verification set, accuracy with a band of one standard deviation.

    Args:
        runs: name -> the objects of its metrics.jsonl, of kind "train" and "validation", in the order written.
        paths: where to write, one file or several; the suffix decides the format.
        styles: name -> look, of `model_styles`; without, they are chosen for this picture alone.

    Raises:
        DataError: there are no runs, a run has no training lines, or a line lacks a key.
        ConfigError: a format that cannot be written.
        ValueError: a run has no style.
    """
    from matplotlib.ticker import MaxNLocator

    if not runs:
        raise DataError("no runs to draw; give at least one run folder")
    sets = list(dict.fromkeys(name for run, lines in runs.items() for name in _set_names(lines, run)))
    columns = 2 if len(sets) in (0, 2) else 3
    rows = -(-(2 + len(sets)) // columns)
    figure = new_figure(4.6 * columns, 3.3 * rows + 0.4)
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(2 + len(sets))]
    looks = styles_of(runs, styles)
    for name, lines in runs.items():
        _draw_training(panels[0], panels[1], name, lines, looks[name])
        for axes, set_name in zip(panels[2:], sets, strict=True):
            _draw_accuracy(axes, name, _of_set(lines, set_name), looks[name])
    titles = ["Training loss", "Learning rate", *(f"{name}: accuracy ± standard deviation over folds" for name in sets)]
    heights = ["Loss", "Learning rate", *["Accuracy (%)"] * len(sets)]
    for axes, title, height in zip(panels, titles, heights, strict=True):
        label_axes(axes, title, "Step", height)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    legend_below(figure, list(runs), list(looks.values()))
    save_pictures(figure, paths)


def plot_faces(rows: Sequence[Sequence[ImageArray]], paths: Paths, titles: Sequence[str] | None = None) -> None:
    """Draw a contact sheet: one row of images under the other, each row under its title.

    Args:
        rows: uint8 (H, W, 3) RGB images; they may differ in size, and the rows in length.
        paths: where to write, one file or several; the suffix decides the format.
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
    figure = new_figure(max(1.1 * most, 3.0) + 0.2, (row_inches + (0.25 if titles else 0.05)) * len(rows) + 0.1)
    for index, row in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, index + 1)
        axes.imshow(_strip(row, most, height, width), interpolation="lanczos")
        axes.set_axis_off()
        if titles is not None:
            set_text(axes.set_title("", loc="left", fontsize=9, pad=3), titles[index])
    save_pictures(figure, paths)


def _of_kind(lines: Sequence[MetricsLine], kind: str) -> list[MetricsLine]:
    return [line for line in lines if line.get("kind") == kind]


def _of_set(lines: Sequence[MetricsLine], name: str) -> list[MetricsLine]:
    return [line for line in _of_kind(lines, "validation") if line["set"] == name]


def _set_names(lines: Sequence[MetricsLine], run: str) -> list[str]:
    return [str(name) for name in _values(_of_kind(lines, "validation"), "set", run)]


def _values(lines: Sequence[Mapping[str, Any]], key: str, run: str) -> list[Any]:
    for number, line in enumerate(lines):
        if key not in line:
            raise DataError(f"{run}: {line['kind']} line {number} of the metrics has no '{key}'; restore metrics.jsonl")
    return [line[key] for line in lines]


def column(lines: Sequence[Mapping[str, Any]], key: str, run: str) -> FloatArray:
    """Numbers that the lines hold under a key, (N,)."""
    try:
        return np.array(_values(lines, key, run), dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"{run}: the metrics hold something else than numbers as '{key}'; restore metrics.jsonl"
        ) from None


def _draw_training(loss_axes: "Axes", rate_axes: "Axes", run: str, lines: Sequence[MetricsLine], style: Style) -> None:
    lines = _of_kind(lines, "train")
    if not lines:
        raise DataError(f"{run}: the metrics hold no training lines; train at least one step")
    step, loss = column(lines, "step", run), column(lines, "loss", run)
    loss_axes.plot(step, loss, color=style["color"], linewidth=0.6, alpha=0.3)
    loss_axes.plot(step, running_mean(loss), **line_only(style))
    rate_axes.plot(step, column(lines, "learning_rate", run), **line_only(style))


def _draw_accuracy(axes: "Axes", run: str, lines: Sequence[MetricsLine], style: Style) -> None:
    step = column(lines, "step", run)
    accuracy, deviation = (100 * column(lines, key, run) for key in ("accuracy", "accuracy_std"))
    axes.fill_between(step, accuracy - deviation, accuracy + deviation, color=style["color"], alpha=0.12, linewidth=0)
    axes.plot(step, accuracy, **style)


def running_mean(values: FloatArray) -> FloatArray:
    """Mean over the last fiftieth of the values, fewer at the start: (N,) -> (N,); NaN counts as not there."""
    window = max(1, values.size // 50)
    there = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(there)])
    end = np.arange(1, values.size + 1)
    start = np.maximum(end - window, 0)
    counted = count[end] - count[start]
    return np.where(counted > 0, (total[end] - total[start]) / np.maximum(counted, 1), np.nan)


def _strip(row: Sequence[ImageArray], cells: int, height: int, width: int) -> ImageArray:
    """Set images side by side on white, each in the middle of a cell, with a gap of 4 pixels."""
    gap = 4
    strip = np.full((height, cells * (width + gap) - gap, 3), WHITE, dtype=np.uint8)
    for index, image in enumerate(row):
        top = (height - image.shape[0]) // 2
        left = index * (width + gap) + (width - image.shape[1]) // 2
        strip[top : top + image.shape[0], left : left + image.shape[1]] = image
    return strip
