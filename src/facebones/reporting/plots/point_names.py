"""Names beside the points of a picture, none on another or on a point, each with a line to its point if it is far."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from facebones.reporting.plots.label_placement import FloatArray, nearest_point, place_labels
from facebones.reporting.plots.style import drawable, missing_glyphs, set_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_SIZE = 7.5
INK = 0.65  # of a marker's brightness
LONGEST_LABEL = 34
NEAR = 2.5  # points; a label nearer than that to its marker needs no line
FULL_DECADES = 3  # from there on only the powers of ten are labelled


def draw_names(
    axes: "Axes",
    names: Sequence[str],
    points: FloatArray,
    areas: FloatArray,
    colours: Sequence[Any],
    *,
    obstacles: FloatArray | None = None,
) -> None:
    """Write the names beside their points, shortened where they are long.

    The places of the axes must be settled: `settle` does that.

    Args:
        axes: on which the points are drawn.
        names: one a point.
        points: (N, 2), in the units of the axes.
        areas: (N,) of the markers, in square points.
        colours: of the markers.
        obstacles: boxes in pixels, (M, 4), on which no name may lie.
    """
    if not names:
        return
    pixels = _pixels(axes)
    centres = axes.transData.transform(points)
    reach = np.sqrt(areas)[:, None] / 2 * pixels + 1
    markers = np.concatenate([centres - reach, centres + reach], axis=1)
    texts = [shortened(name) for name in names]
    boxes = place_labels(markers, _sizes(axes, texts), axes.bbox.extents, obstacles)
    for text, point, centre, box, radius, colour in zip(texts, points, centres, boxes, reach, colours, strict=True):
        end = nearest_point(box, centre)
        far = np.linalg.norm(end - centre) - radius[0] > NEAR * pixels
        ink = _dark(colour)
        written = axes.annotate(
            "x", tuple(point), xytext=(box[:2] - centre) / pixels, textcoords="offset points",
            fontsize=LABEL_SIZE, color=ink, ha="left", va="bottom", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": ink, "linewidth": 0.6, "shrinkA": 0, "shrinkB": radius[0] / pixels,
                "relpos": tuple((end - box[:2]) / (box[2:] - box[:2])),
            } if far else None,
        )  # fmt: skip
        set_text(written, text)


@missing_glyphs()
def settle(figure: Any) -> None:
    """Lay the figure out for good: only now is known where the axes lie."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def label_log_axis(axis: Any, limits: tuple[float, float]) -> None:
    """Label a logarithmic axis at the powers of ten and, where these are few, in between."""
    from matplotlib.ticker import LogLocator, NullFormatter

    steps = (1.0,) if limits[1] / limits[0] > 10**FULL_DECADES else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=40))
    axis.set_minor_formatter(NullFormatter())


def shortened(name: str) -> str:
    """One line, and the end of a long path, which tells networks apart better than its beginning."""
    name = drawable(" ".join(name.split()))
    return name if len(name) <= LONGEST_LABEL else f"...{name[3 - LONGEST_LABEL :]}"


def _pixels(axes: "Axes") -> float:
    """In a point."""
    return axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]


def _dark(colour: Any) -> tuple[float, ...]:
    """The colour, dark enough for small letters on white."""
    from matplotlib.colors import to_rgb

    return tuple(INK * channel for channel in to_rgb(colour))


@missing_glyphs()
def _sizes(axes: "Axes", names: Sequence[str]) -> FloatArray:
    """Width and height of the names in pixels, (N, 2)."""
    sizes = []
    for name in names:
        text = axes.text(0, 0, "x", fontsize=LABEL_SIZE, transform=axes.transAxes)
        set_text(text, name)
        extent = text.get_window_extent()
        text.remove()
        sizes.append((extent.width, extent.height))
    return np.array(sizes, dtype=np.float64)
