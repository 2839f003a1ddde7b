"""Names beside the points of a crowded plot: none covers another or a point, and distant ones get a leader line.

Placement is greedy with restarts: labels are placed one after another, each at the free place nearest to its point
among places on rings around it; of several orders the one with the shortest leader lines is kept. Lengths are in
pixels, boxes are (left, bottom, right, top).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facebones.reporting.plots.style import FloatArray, drawable, missing_glyphs, set_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_SIZE = 7.5
INK = 0.65  # of a marker's brightness
LONGEST_LABEL = 34
NEAR = 2.5  # points; a label nearer than that to its marker needs no line
FULL_DECADES = 3  # an axis longer than this is labelled at powers of ten only

DIRECTIONS = 24
RING_STEP = 0.5  # of a label's height
GAP = 2.0  # least distance between two boxes
ORDERS = 8
CONSIDERED = 80  # nearest free places whose leader lines are compared
FEW = 5 * CONSIDERED  # places that are enough if so many of them are free
CROSSING_COST = 6.0  # label heights of leader line that crossing a marker or label is worth
COVERING_COST = 1e6  # per square pixel
LEADER_SAMPLES = 12


# -------------------------------------------------------------------------------------------------------- drawing


def draw_names(
    axes: "Axes",
    names: Sequence[str],
    points: FloatArray,
    areas: FloatArray,
    colours: Sequence[Any],
    *,
    obstacles: FloatArray | None = None,
) -> None:
    """Write the names beside their points; long ones are shortened.

    Call `fix_layout` first, so that the position of the axes is final.

    Args:
        axes: on which the points are drawn.
        names: one per point.
        points: (N, 2), in the units of the axes.
        areas: (N,) of the markers, in square points.
        colours: of the markers.
        obstacles: boxes in pixels, (M, 4), that no name may cover.
    """
    if not names:
        return
    pixels = _pixels(axes)
    centres = axes.transData.transform(points)
    reach = np.sqrt(areas)[:, None] / 2 * pixels + 1
    markers = np.concatenate([centres - reach, centres + reach], axis=1)
    texts = short_names(names)
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


def label_log_axis(axis: Any, limits: tuple[float, float]) -> None:
    """Label a logarithmic axis at the powers of ten and, if these are few, in between."""
    from matplotlib.ticker import LogLocator, NullFormatter

    steps = (1.0,) if limits[1] / limits[0] > 10**FULL_DECADES else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=40))
    axis.set_minor_formatter(NullFormatter())


def short_names(names: Sequence[str]) -> list[str]:
    """The names in one line each; where all are of one backbone, only what its variants differ in.

    >>> short_names(["r18 (adaface)", "r18 (arcface)"]), short_names(["r18 (adaface)", "r50 (adaface)"])
    (['adaface', 'arcface'], ['r18 (adaface)', 'r50 (adaface)'])
    """
    parts = [name.removesuffix(")").partition(" (") for name in names]
    if len(names) > 1 and all(levels for _, _, levels in parts) and len({backbone for backbone, _, _ in parts}) == 1:
        names = [levels for _, _, levels in parts]
    return [_shortened(name) for name in names]


def _shortened(name: str) -> str:
    """The name in one line; a long path keeps its end, which distinguishes networks better than its beginning."""
    name = drawable(" ".join(name.split()))
    return name if len(name) <= LONGEST_LABEL else f"...{name[3 - LONGEST_LABEL :]}"


def _pixels(axes: "Axes") -> float:
    """Pixels per point."""
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


# ------------------------------------------------------------------------------------------------------ placement


class Placement(NamedTuple):
    """Boxes of the labels (N, 4), and their cost; lower is better."""

    boxes: FloatArray
    cost: float


def place_labels(
    markers: FloatArray,
    sizes: FloatArray,
    bounds: tuple[float, float, float, float],
    obstacles: FloatArray | None = None,
) -> FloatArray:
    """Boxes for the labels of markers.

    Without a free place, a label goes where it covers the least.

    Args:
        markers: boxes of the markers, (N, 4).
        sizes: width and height of the labels, (N, 2).
        bounds: the box in which the labels must stay.
        obstacles: further boxes that no label may cover, (M, 4).

    Returns:
        boxes of the labels, (N, 4).
    """
    taken = markers if obstacles is None else np.concatenate([markers, obstacles])
    candidates = [_candidates(marker, size, bounds, taken) for marker, size in zip(markers, sizes, strict=True)]
    draws = np.random.default_rng(0)
    orders = [np.argsort(_distance_to_nearest(markers)), *(draws.permutation(len(markers)) for _ in range(ORDERS - 1))]
    placements = [_place_in_order(order, markers, candidates) for order in orders]
    return min(placements, key=lambda placement: placement.cost).boxes


def overlaps(boxes: FloatArray, others: FloatArray, gap: float = 0.0) -> FloatArray:
    """Areas shared by boxes (N, 4) and others (M, 4) grown by `gap`: (N, M).

    >>> overlaps(np.array([[0.0, 0, 4, 2]]), np.array([[3.0, 1, 9, 9], [4.0, 0, 5, 2]]))
    array([[1., 0.]])
    """
    left_bottom = np.maximum(boxes[:, None, :2], others[None, :, :2] - gap)
    right_top = np.minimum(boxes[:, None, 2:], others[None, :, 2:] + gap)
    shared: FloatArray = np.clip(right_top - left_bottom, 0.0, None).prod(axis=-1)
    return shared


def nearest_point(box: FloatArray, point: FloatArray) -> FloatArray:
    """The point of a box (..., 4) nearest to a point (..., 2): the end of its leader line."""
    return np.clip(point, box[..., :2], box[..., 2:])


def _candidates(
    marker: FloatArray, size: FloatArray, bounds: tuple[float, float, float, float], taken: FloatArray
) -> FloatArray:
    """Boxes on rings around a marker, inside the bounds and free of what is taken, the nearest first: (C, 4)."""
    angles = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (A, 2), the first to the right
    reach = max(bounds[2] - bounds[0], bounds[3] - bounds[1])
    rings = np.arange(GAP, reach, max(RING_STEP * size[1], 1.0))[:, None, None]
    half = (size + marker[2:] - marker[:2]) / 2
    # Along a direction the label just touches the marker's box where the longer component reaches its half-size.
    touching = directions * np.min(half / np.maximum(np.abs(directions), 1e-9), axis=1, keepdims=True)
    centres = ((marker[:2] + marker[2:]) / 2 + touching + rings * directions).reshape(-1, 2)
    boxes = np.concatenate([centres - size / 2, centres + size / 2], axis=1)
    fit = (boxes[:, :2] >= bounds[:2]).all(axis=1) & (boxes[:, 2:] <= bounds[2:]).all(axis=1)
    free = boxes[fit]
    free = free[overlaps(free, taken, GAP / 2).sum(axis=1) == 0]
    return free if len(free) else boxes


def _distance_to_nearest(markers: FloatArray) -> FloatArray:
    centres = (markers[:, :2] + markers[:, 2:]) / 2
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest: FloatArray = distances.min(axis=1)
    return nearest


def _place_in_order(order: npt.NDArray[np.int64], markers: FloatArray, candidates: list[FloatArray]) -> Placement:
    boxes = np.zeros_like(markers)
    leaders = np.empty((0, 2))  # points on the leader lines so far
    total = 0.0
    for count, index in enumerate(order):
        labels = boxes[order[:count]]
        covering = overlaps(candidates[index][:FEW], labels, GAP).sum(axis=1)
        if np.count_nonzero(covering == 0) < CONSIDERED:  # thousands of places are seldom needed
            covering = overlaps(candidates[index], labels, GAP).sum(axis=1)
        nearest = np.argsort(covering > 0, kind="stable")[:CONSIDERED]
        others = np.concatenate([np.delete(markers, index, axis=0), labels])
        costs = _costs(candidates[index][nearest], markers[index], others, leaders) + COVERING_COST * covering[nearest]
        best = int(np.argmin(costs))
        boxes[index] = candidates[index][nearest[best]]
        leaders = np.concatenate([leaders, _leader(boxes[index][None], markers[index])[0]])
        total += float(costs[best])
    return Placement(boxes, total)


def _costs(boxes: FloatArray, marker: FloatArray, others: FloatArray, leaders: FloatArray) -> FloatArray:
    """Cost of the leader line of each box (C, 4): its length, and what it crosses: (C,)."""
    height = boxes[0, 3] - boxes[0, 1]
    points = _leader(boxes, marker)  # (C, S, 2)
    length = np.linalg.norm(points[:, -1] - points[:, 0], axis=-1)
    crossed = _inside(points, others).any(axis=1).sum(axis=1)
    covered = _inside(leaders, boxes).sum(axis=0) / LEADER_SAMPLES
    costs: FloatArray = length + CROSSING_COST * height * (crossed + covered)
    return costs


def _leader(boxes: FloatArray, marker: FloatArray) -> FloatArray:
    """Points along the lines from the edge of a marker to boxes (C, 4): (C, S, 2)."""
    centre = (marker[:2] + marker[2:]) / 2
    ends = nearest_point(boxes, centre)
    starts = nearest_point(marker, ends)
    fractions = np.linspace(0, 1, LEADER_SAMPLES)[None, :, None]
    points: FloatArray = starts[:, None] + fractions * (ends - starts)[:, None]
    return points


def _inside(points: FloatArray, boxes: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether points (..., S, 2) lie in boxes (..., M, 4): (..., S, M)."""
    points, boxes = points[..., :, None, :], boxes[..., None, :, :]
    inside: npt.NDArray[np.bool_] = np.all((points > boxes[..., :2]) & (points < boxes[..., 2:]), axis=-1)
    return inside
