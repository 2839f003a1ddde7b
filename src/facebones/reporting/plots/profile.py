"""The plot of a profile: latency against MACs and against parameters, each network with its name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facebones.errors import DataError
from facebones.reporting.console import profile_headline
from facebones.reporting.plots.labels import draw_names, label_log_axis
from facebones.reporting.plots.style import (
    COLOURS,
    FloatArray,
    Paths,
    fix_layout,
    label_axes,
    new_figure,
    plot_paths,
    save_plot,
    set_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

PANELS = (
    ("macs", "MACs", "Latency against MACs (area of a marker: parameters)"),
    ("parameters", "Parameters", "Latency against parameters"),
)
MARKERS = ("o", "s", "^", "v", "P", "X", "h")  # none reaches farther than half its width
SMALLEST_MARKER = 30.0  # area in square points
AREA_PER_MILLION = 8.0  # proportional from four million on
PLAIN_MARKER = 36.0


def write_profile_plots(result: Mapping[str, Any], output: Path) -> list[Path]:
    """Write profile.png and profile.pdf.

    Args:
        result: content of profile.json.
        output: folder.

    Returns:
        the files.

    Raises:
        DataError: the profile has no networks.
        RunError, ConfigError: the disk is full, or the folder cannot be written.
    """
    files = plot_paths(output / "profile")
    plot_profile(result["networks"], files, profile_headline(result))
    return list(files)


def plot_profile(rows: Sequence[Row], paths: Paths, title: str) -> None:
    """Draw latency over MACs and over parameters, on logarithmic axes.

    Colour and shape of a marker show the family; over MACs, its area grows with the parameters. A network without a
    count is missing in that panel.

    Args:
        rows: "networks" of a profile.
        paths: one file or several; the suffix determines the format.
        title: heading.

    Raises:
        DataError: there are no rows.
        ConfigError: a format is not supported.
    """
    if not rows:
        raise DataError("no networks to draw; name at least one")
    figure = new_figure(15.0, max(8.0, 0.25 * len(rows)))
    set_text(figure.suptitle("", fontsize=9), title)
    families = list(dict.fromkeys(row["family"] for row in rows))
    panels = []
    for place, (key, axis, heading) in enumerate(PANELS, start=1):
        axes = figure.add_subplot(1, 2, place)
        drawn = [row for row in rows if row[key]]
        areas = np.array([_area(row) if key == "macs" else PLAIN_MARKER for row in drawn])
        _draw_markers(axes, drawn, key, areas, families)
        label_axes(axes, heading, axis, "Latency of one image, median (ms)")
        panels.append((axes, drawn, key, areas))
    _draw_legend(figure, families)
    fix_layout(figure)
    for axes, drawn, key, areas in panels:
        points = np.array([(row[key], row["latency_p50_ms"]) for row in drawn], dtype=np.float64)
        colours = [_style(row["family"], families)["color"] for row in drawn]
        draw_names(axes, [row["name"] for row in drawn], points, areas, colours)
    save_plot(figure, paths)


def _area(row: Row) -> float:
    return max(SMALLEST_MARKER, AREA_PER_MILLION * (row["parameters"] or 0) / 1e6)


def _style(family: str, families: list[str]) -> dict[str, Any]:
    index = families.index(family)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _draw_markers(axes: "Axes", rows: Sequence[Row], key: str, areas: FloatArray, families: list[str]) -> None:
    from matplotlib.ticker import EngFormatter

    for row, area in zip(rows, areas, strict=True):
        style = _style(row["family"], families)
        axes.scatter(
            row[key],
            row["latency_p50_ms"],
            s=area,
            alpha=0.75,
            linewidths=0.5,
            edgecolors="white",
            **style,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.12)
    label_log_axis(axes.xaxis, axes.get_xlim())
    label_log_axis(axes.yaxis, axes.get_ylim())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_legend(figure: "Figure", families: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", **_style(family, families)) for family in families]
    places = [str(number) for number in range(len(families))]  # matplotlib hides names that begin with "_"
    legend = figure.legend(handles, places, loc="outside lower center", ncols=len(families), frameon=False)
    for text, family in zip(legend.get_texts(), families, strict=True):
        set_text(text, family)
