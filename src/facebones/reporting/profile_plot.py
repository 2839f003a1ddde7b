"""The picture of a profile: latency against MACs, and against parameters, every network by its name."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from facebones.errors import DataError
from facebones.reporting.figures import COLOURS, Paths, label_axes, new_figure, save_pictures
from facebones.reporting.label_placement import FloatArray, nearest_point, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

PANELS = (
    ("macs", "MACs", "Latency against MACs (area of a marker: parameters)"),
    ("parameters", "Parameters", "Latency against parameters"),
)
MARKERS = ("o", "s", "^", "v", "P", "X", "h")  # all of a size: none reaches farther than half its width
SMALLEST_MARKER = 30.0  # area in square points
AREA_PER_MILLION = 8.0  # so that from four million on it is proportional
PLAIN_MARKER = 36.0
LABEL_SIZE = 7.5
INK = 0.65  # of a marker's brightness
LONGEST_LABEL = 34
NEAR = 2.5  # points; a label nearer than that to its marker needs no line
FULL_DECADES = 3  # from there on only the powers of ten are labelled


def plot_profile(rows: Sequence[Row], paths: Paths, title: str) -> None:
    """Draw latency over MACs and over parameters, on logarithmic axes.

    Colour and shape of a marker are the family's; over MACs, its area grows with the parameters. A network without a
    count is left out of that panel.

    Args:
        rows: "networks" of a profile.
        paths: where to write, one file or several; the suffix decides the format.
        title: heading of the picture.

    Raises:
        DataError: there are no rows.
        ConfigError: a format that cannot be written.
    """
    if not rows:
        raise DataError("no networks to draw; name at least one")
    figure = new_figure(15.0, max(8.0, 0.25 * len(rows)))
    figure.suptitle(title, fontsize=9)
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
    figure.draw_without_rendering()  # only now is known where the axes lie
    figure.set_layout_engine("none")
    for axes, drawn, key, areas in panels:
        _draw_names(axes, drawn, key, areas, families)
    save_pictures(figure, paths)


def _area(row: Row) -> float:
    return max(SMALLEST_MARKER, AREA_PER_MILLION * (row["parameters"] or 0) / 1e6)


def _style(family: str, families: list[str]) -> dict[str, Any]:
    index = families.index(family)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _dark(colour: str) -> tuple[float, ...]:
    """The colour, dark enough for small letters on white."""
    from matplotlib.colors import to_rgb

    return tuple(INK * channel for channel in to_rgb(colour))


def _draw_markers(axes: "Axes", rows: Sequence[Row], key: str, areas: FloatArray, families: list[str]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

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
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        steps = (1.0,) if high / low > 10**FULL_DECADES else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=steps, numticks=40))
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_legend(figure: "Figure", families: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", label=family, **_style(family, families)) for family in families]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(families), frameon=False)


def _draw_names(axes: "Axes", rows: Sequence[Row], key: str, areas: FloatArray, families: list[str]) -> None:
    if not rows:
        return
    figure = axes.figure
    pixels = figure.dpi / 72  # a point
    points = np.array([(row[key], row["latency_p50_ms"]) for row in rows], dtype=np.float64)
    centres = axes.transData.transform(points)
    reach = np.sqrt(areas)[:, None] / 2 * pixels + 1
    markers = np.concatenate([centres - reach, centres + reach], axis=1)
    names = [_shortened(row["name"]) for row in rows]
    boxes = place_labels(markers, _sizes(axes, names), axes.bbox.extents)
    for row, name, centre, box, radius in zip(rows, names, centres, boxes, reach, strict=True):
        end = nearest_point(box, centre)
        far = np.linalg.norm(end - centre) - radius[0] > NEAR * pixels
        colour = _dark(_style(row["family"], families)["color"])
        axes.annotate(
            name, (row[key], row["latency_p50_ms"]), xytext=(box[:2] - centre) / pixels, textcoords="offset points",
            fontsize=LABEL_SIZE, color=colour, ha="left", va="bottom", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": radius[0] / pixels,
                "relpos": tuple((end - box[:2]) / (box[2:] - box[:2])),
            } if far else None,
        )  # fmt: skip


def _shortened(name: str) -> str:
    """The end of a long path, which tells networks apart better than its beginning."""
    return name if len(name) <= LONGEST_LABEL else f"...{name[3 - LONGEST_LABEL :]}"


def _sizes(axes: "Axes", names: Sequence[str]) -> FloatArray:
    """Width and height of the names in pixels, (N, 2)."""
    sizes = []
    for name in names:
        text = axes.text(0, 0, name, fontsize=LABEL_SIZE, transform=axes.transAxes)
        extent = text.get_window_extent()
        text.remove()
        sizes.append((extent.width, extent.height))
    return np.array(sizes, dtype=np.float64)
