"""Draw anti-aliased shapes on a small canvas, and project the points of a head onto it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray

Points = npt.NDArray[np.float64]
Colour = Sequence[float] | npt.NDArray[np.float64]

SUPERSAMPLING = 2
SUBPIXEL_BITS = 4
NEUTRAL = 128  # of a relief
NEUTRAL_RGB = (NEUTRAL, NEUTRAL, NEUTRAL)
WHITE = (255, 255, 255)
SHADOW = (0.44, 0.56, 0.59)  # what red, green and blue lose in the shadow of skin or hair


class Canvas:
    """An RGB or grey image, drawn larger than needed and averaged down.

    Coordinates are pixels of the final size; the centre of the first pixel is (0, 0).
    """

    def __init__(self, pixels: ImageArray, supersampling: float = SUPERSAMPLING) -> None:
        """Draw on `pixels`, uint8 (H, W, 3) or (H, W), which is `supersampling` times the final size."""
        self.pixels = pixels
        self._scale = supersampling

    def __len__(self) -> int:
        """Return the height of the image in its final size."""
        return round(len(self.pixels) / self._scale)

    def fill(self, outline: Points, colour: Colour) -> None:
        """Fill the polygon `outline` (N, 2)."""
        cv2.fillPoly(self.pixels, [self._fixed(outline)], _scalar(colour), cv2.LINE_AA, SUBPIXEL_BITS)

    def line(self, points: Points, colour: Colour, width: float, closed: bool = False) -> None:
        """Draw the line through `points` (N, 2), or the lines through (K, N, 2), `width` pixels wide."""
        thickness = max(1, round(width * self._scale))
        fixed = self._fixed(points)
        lines = [fixed] if fixed.ndim == 2 else list(fixed)
        cv2.polylines(self.pixels, lines, closed, _scalar(colour), thickness, cv2.LINE_AA, SUBPIXEL_BITS)

    def dot(self, centre: Points, radius: float, colour: Colour) -> None:
        """Fill a circle around `centre` (2,)."""
        x, y = self._fixed(centre)
        thick = round(radius * self._scale * 2**SUBPIXEL_BITS)
        cv2.circle(self.pixels, (int(x), int(y)), thick, _scalar(colour), -1, cv2.LINE_AA, SUBPIXEL_BITS)

    def averaged(self) -> ImageArray:
        """Return the image in its final size."""
        height, width = self.pixels.shape[:2]
        size = (round(width / self._scale), round(height / self._scale))
        return np.asarray(cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _fixed(self, points: Points) -> npt.NDArray[np.int32]:
        ones = 2**SUBPIXEL_BITS
        # The last half rounds; what is left of the image or above it may be a sixteenth of a pixel off.
        fixed: npt.NDArray[np.int32] = (points * (self._scale * ones) + ((self._scale - 1) / 2 * ones + 0.5)).astype(
            np.int32
        )
        return fixed


def _scalar(colour: Colour) -> tuple[float, ...]:
    red, green, blue = colour
    return float(red), float(green), float(blue)


class Relief:
    """Soft light, shade and tint, which multiply what is drawn on a canvas; `NEUTRAL` changes nothing.

    Attributes:
        broad: forms as wide as a cheek; half the size, so that a small blur makes them soft.
        fine: forms as small as a nostril, and the hair of beards.
        form: white where the head is, which is as round as the light shows; the rest is flat.
    """

    def __init__(self, height: int, width: int) -> None:
        """Start a neutral relief for an image of height x width pixels."""
        self._size = (width, height)
        half = ((height + 1) // 2, (width + 1) // 2)
        self.broad = Canvas(np.full((*half, 3), NEUTRAL, dtype=np.uint8), 0.5)
        self.form = Canvas(np.zeros(half, dtype=np.uint8), 0.5)
        self.fine = Canvas(np.full((height, width, 3), NEUTRAL, dtype=np.uint8), 1)

    def roundness(self) -> npt.NDArray[np.float32]:
        """Return where the head is: float32 (H, W), 1 inside and 0 outside."""
        large = cv2.resize(self.form.pixels, self._size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(np.multiply(large, 1 / 255, dtype=np.float32))

    def factors(self, scale: float) -> npt.NDArray[np.float32]:
        """Return the factors, float32 (H, W, 3); `scale` is the size of a head unit in pixels."""
        wide, narrow = 2 * round(1.7 * scale) + 1, 2 * round(0.8 * scale) + 1
        broad = cv2.blur(cv2.blur(self.broad.pixels, (wide, wide)), (wide, wide))
        fine = cv2.blur(cv2.blur(self.fine.pixels, (narrow, narrow)), (narrow, narrow))
        large = cv2.resize(broad, self._size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.multiply(large, fine, scale=1 / NEUTRAL**2, dtype=cv2.CV_32F), dtype=np.float32)


def grey(level: float) -> tuple[float, float, float]:
    """Return a grey colour; in a relief, `NEUTRAL` plus light or minus shade."""
    return level, level, level


def shaded(colour: Colour, amount: float) -> list[float]:
    """Darken a colour towards its shadow."""
    red, green, blue = colour
    return [red * (1 - amount * SHADOW[0]), green * (1 - amount * SHADOW[1]), blue * (1 - amount * SHADOW[2])]


def mixed(first: Colour, second: Colour, share: float) -> list[float]:
    """Mix two colours, `share` of the second.

    >>> mixed((0, 0, 100), (200, 100, 100), 0.25)
    [50.0, 25.0, 100.0]
    """
    (r1, g1, b1), (r2, g2, b2) = first, second
    return [r1 + share * (r2 - r1), g1 + share * (g2 - g1), b1 + share * (b2 - b1)]


def between(first: Points, second: Points) -> Points:
    """Outline of the area between two curves (N, 2) of the same direction."""
    return np.concatenate((first, second[::-1]))


@dataclass(frozen=True)
class View:
    """An orthographic camera: image = matrix @ head + offset.

    In head coordinates, x points to the right of the image, y down and z to the camera; 0 is between the eyes.
    """

    matrix: Points  # (2, 3)
    offset: Points  # (2,)
    yaw: float

    def __call__(self, points: Points) -> Points:
        """Project head points (..., 3) to pixels (..., 2)."""
        return np.asarray(np.dot(points, self.matrix.T) + self.offset)

    @cached_property
    def scale(self) -> float:
        """Pixels per unit of the head."""
        return float(np.sqrt((self.matrix**2).sum() / 2))


def rotation(yaw: float, pitch: float, roll: float) -> Points:
    """Return the (3, 3) matrix that turns a head by yaw (to the image's right), pitch (down) and roll, in radians."""
    (sin_y, sin_p, sin_r), (cos_y, cos_p, cos_r) = np.sin((yaw, pitch, roll)), np.cos((yaw, pitch, roll))
    turn = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    nod = np.array([[1, 0, 0], [0, cos_p, sin_p], [0, -sin_p, cos_p]])
    tilt = np.array([[cos_r, -sin_r, 0], [sin_r, cos_r, 0], [0, 0, 1]])
    return np.asarray(tilt @ nod @ turn)


def similarity(source: Points, target: Points) -> tuple[Points, Points]:
    """Fit `target = linear @ source + offset` (N, 2) by least squares, linear being a scaled rotation.

    With points as complex numbers, the fit is one complex regression. It equals Umeyama's solution unless a reflection
    fits better, which never happens for the five points of a face.
    """
    first = (source - source.mean(axis=0)) @ (1, 1j)
    second = (target - target.mean(axis=0)) @ (1, 1j)
    factor = np.vdot(first, second) / np.vdot(first, first)
    linear = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return linear, target.mean(axis=0) - linear @ source.mean(axis=0)


def smooth(control: Points, closed: bool = True, steps: int = 4) -> Points:
    """Return the Catmull-Rom curve through `control` (..., N, K), with `steps` points per segment."""
    return _spline_matrix(control.shape[-2], closed, steps) @ control


@lru_cache(maxsize=64)
def _spline_matrix(count: int, closed: bool, steps: int) -> Points:
    """Build the matrix that turns `count` control points into the points of the curve."""
    rows = []
    for start in range(count if closed else count - 1):
        for t in np.arange(steps) / steps:
            weights = (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (t**3 - t**2) / 2,
            )
            row = np.zeros(count)
            for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
                neighbour = start + offset
                row[neighbour % count if closed else min(max(neighbour, 0), count - 1)] += weight
            rows.append(row)
    if not closed:
        rows.append(np.eye(count)[-1])
    return np.array(rows)
