"""Where the names of points go in a crowded picture, so that none lies on another or on a point.

Greedy with restarts: labels are placed one after another, each at the free place nearest to its point out of
places on rings around it; of several orders the one with the shortest leader lines is kept. Lengths are in pixels,
boxes are (left, bottom, right, top).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

DIRECTIONS = 24
RING_STEP = 0.5  # of a label's height
GAP = 2.0  # least distance between two boxes
ORDERS = 8
CONSIDERED = 80  # the nearest free places whose leader lines are looked at
CROSSING_COST = 6.0  # a leader line that passes a marker or label is as bad as one longer by so many heights
COVERING_COST = 1e6  # a square pixel
LEADER_SAMPLES = 12


class Placement(NamedTuple):
    """Boxes of the labels (N, 4), and how good they are: cost, the lower the better."""

    boxes: FloatArray
    cost: float


def place_labels(
    markers: FloatArray,
    sizes: FloatArray,
    bounds: tuple[float, float, float, float],
    obstacles: FloatArray | None = None,
) -> FloatArray:
    """Boxes for the labels of markers.

    Where there is no free place left, a label goes where it covers the least.

    Args:
        markers: boxes of the markers, (N, 4).
        sizes: width and height of the labels, (N, 2).
        bounds: the box in which the labels must stay.
        obstacles: boxes of what else no label may lie on, (M, 4).

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
    """Areas that boxes (N, 4) share with others (M, 4), each grown by `gap`: (N, M).

    >>> overlaps(np.array([[0.0, 0, 4, 2]]), np.array([[3.0, 1, 9, 9], [4.0, 0, 5, 2]]))
    array([[1., 0.]])
    """
    left_bottom = np.maximum(boxes[:, None, :2], others[None, :, :2] - gap)
    right_top = np.minimum(boxes[:, None, 2:], others[None, :, 2:] + gap)
    shared: FloatArray = np.clip(right_top - left_bottom, 0.0, None).prod(axis=-1)
    return shared


def nearest_point(box: FloatArray, point: FloatArray) -> FloatArray:
    """The point of a box (..., 4) that is nearest to a point (..., 2): where its leader line ends."""
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
    fit &= overlaps(boxes, taken, GAP / 2).sum(axis=1) == 0
    return boxes[fit] if fit.any() else boxes


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
    """What the leader line of each of some boxes (C, 4) would cost: its length, and what lies in its way: (C,)."""
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
