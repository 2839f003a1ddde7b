"""Everything that differs between two images of a person: pose, light, background, occlusion and camera."""

from dataclasses import dataclass

import cv2
import numpy as np

from facebones.data.images import ImageArray
from facebones.errors import UnknownNameError
from facebones.synthetic.drawing import Canvas, Points, View
from facebones.synthetic.face import NEUTRAL_RELIEF, Array, Expression

EYE_BLINK = 0.04
POSES = ("any", "frontal", "profile")


@dataclass(frozen=True, kw_only=True)
class Light:
    """A lamp and its surroundings; colours are RGB factors."""

    direction: Points  # (3,), unit length, towards the lamp
    key: Array
    ambient: Array
    gain: Array
    gamma: float


def draw_pose(rng: np.random.Generator, pose: str) -> tuple[float, float, float]:
    """Sample yaw, pitch and roll in radians.

    Args:
        rng: random generator.
        pose: "frontal" (yaw within 16 degrees), "profile" (30 to 50 degrees to either side), or "any".

    Raises:
        UnknownNameError: an unknown pose.
    """
    if pose not in POSES:
        raise UnknownNameError("pose", pose, POSES)
    if pose == "frontal":
        yaw = rng.uniform(-16, 16)
    elif pose == "profile":
        yaw = rng.uniform(30, 50) * rng.choice((-1, 1))
    else:
        yaw = np.clip(rng.normal(0, 20), -50, 50)
    yaw, pitch, roll = np.radians((yaw, np.clip(rng.normal(0, 7), -18, 18), rng.normal(0, 6)))
    return float(yaw), float(pitch), float(roll)


def draw_expression(rng: np.random.Generator) -> Expression:
    """Sample an expression."""
    return Expression(
        mouth_open=max(0.0, rng.uniform(-7, 7)),
        smile=rng.uniform(-0.7, 1.5),
        brow_raise=rng.normal(0, 1.2),
        lids=0.1 if rng.uniform() < EYE_BLINK else rng.uniform(0.7, 1.15),
        gaze=(rng.normal(0, 1.2), rng.normal(0, 0.4)),
    )


def draw_light(rng: np.random.Generator) -> Light:
    """Sample lamp, surroundings, exposure and white balance, so widely that colours hardly identify a person."""
    azimuth, elevation = rng.uniform(-1.5, 1.5), rng.uniform(-0.3, 1.2)
    direction = np.array((np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)))
    share = rng.uniform(0.3, 0.95)
    warmth = rng.normal(0, 0.14)
    balance = np.exp(np.array((warmth, rng.normal(0, 0.05), -warmth)))
    return Light(
        direction=direction,
        key=1.25 * share * np.exp(rng.normal(0, 0.1, 3)),
        ambient=(1.05 - 0.8 * share) * np.exp(rng.normal(0, 0.1, 3)),
        gain=balance * np.exp(rng.normal(0, 0.3)),
        gamma=float(np.exp(rng.normal(0, 0.28))),
    )


def background(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Draw an uneven background, uint8 (height, width, 3), sometimes with shapes in it."""
    cells = int(rng.integers(2, 7))
    base = rng.uniform(10, 245, 3)
    coarse = np.clip(base + rng.normal(0, rng.uniform(8, 60), (cells, cells, 3)), 0, 255).astype(np.uint8)
    pixels = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    canvas = Canvas(pixels, supersampling=1)
    for _ in range(rng.integers(0, 4)):
        middle, size, angle = rng.uniform(0, width, 2), rng.uniform(0.1, 0.6) * width, rng.uniform(0, np.pi)
        corners = angle + np.array((0, rng.uniform(0.4, 2.6), np.pi, np.pi + rng.uniform(0.4, 2.6)))
        canvas.fill(middle + size * np.stack((np.cos(corners), np.sin(corners)), axis=1), rng.uniform(0, 255, 3))
    return pixels


def draw_clothes(canvas: Canvas, view: View, rng: np.random.Generator) -> None:
    """Draw shoulders in a random colour."""
    collar, slope = rng.uniform(76, 92), rng.uniform(6, 26)
    x = np.array((-110, -60, -26, 0, 26, 60, 110, 110, -110.0))
    y = collar + np.array((slope + 14, slope, -3, rng.uniform(0, 16), -3, slope, slope + 14, 120, 120))
    canvas.fill(view(np.stack((x, y, np.full(9, -10.0)), axis=1)), rng.uniform(8, 245, 3))


def draw_occlusion(canvas: Canvas, view: View, rng: np.random.Generator) -> None:
    """Occlude the face in about a sixth of the images: by sunglasses, a mask, a hat, a hand or another object."""
    kind = rng.integers(0, 30)
    colour = rng.uniform(0, 255, 3)
    if kind == 0:
        _draw_sunglasses(canvas, view, colour * 0.2)
    elif kind == 1:
        x = np.array((-38, -20, 0, 20, 38, 34, 14, -14, -34.0))
        y = np.array((18, 17, 12, 17, 18, 52, 72, 72, 52.0))
        z = np.array((8, 38, 54, 38, 8, 6, 36, 36, 6.0))
        canvas.fill(view(np.stack((x, y, z), axis=1)), colour)
    elif kind == 2:
        brim, top = rng.uniform(-34, -24), -90.0
        canvas.fill(view(np.array(((-52, brim, 0), (52, brim, 0), (44, top, 0), (-44, top, 0)))), colour)
        canvas.line(view(np.array(((-54, brim, 10), (0, brim + 2, 46), (54, brim, 10)))), colour * 0.6, 4 * view.scale)
    elif kind in (3, 4):
        side, height = rng.choice((-1, 1)), rng.uniform(-20, 60)
        start = np.array((side * rng.uniform(8, 34), height, 48))
        for finger in range(int(rng.integers(1, 5))):
            ends = np.array((start, (side * 90, start[1] + rng.uniform(20, 40), 40))) + (0, 9 * finger, 0)
            canvas.line(view(ends), (60 + 0.6 * colour[0], 45 + 0.5 * colour[0], 38 + 0.45 * colour[0]), 8 * view.scale)
    elif kind == 5:
        corner, size = rng.uniform(-50, 40, 2), rng.uniform(12, 40, 2)
        steps = np.array(((0, 0), (1, 0), (1, 1), (0, 1)))
        canvas.fill(view(np.column_stack((corner + (0, 10) + steps * size, np.full(4, 40.0)))), colour)


def _draw_sunglasses(canvas: Canvas, view: View, colour: Array) -> None:
    around = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for x in (-17.5, 17.5):
        lens = np.stack((x + 13 * np.cos(around), 2 + 9.5 * np.sin(around), np.full(16, 44.0)), axis=1)
        canvas.fill(view(lens), colour)
    canvas.line(view(np.array(((-44, 0, 0), (-28, -2, 40), (28, -2, 40), (44, 0, 0.0)))), colour, 2 * view.scale)


def shine(pixels: ImageArray, relief: ImageArray, view: View, head_width: float, light: Light) -> ImageArray:
    """Light the drawn colours.

    Args:
        pixels: uint8 (H, W, 3), colours under even white light.
        relief: uint8 (H, W), 128 where the skull adds no light or shade.
        view: the camera, which places the ellipsoid that approximates the head.
        head_width: half width of the head, in head units.
        light: the lamp.

    Returns:
        uint8 (H, W, 3).
    """
    height, width = relief.shape
    x0, y0 = view(np.array((0.0, 4.0, 0.0)))
    across = ((np.arange(width, dtype=np.float32) - x0) / (1.12 * head_width * view.scale)).astype(np.float32)
    down = ((np.arange(height, dtype=np.float32) - y0) / (76 * view.scale)).astype(np.float32)[:, None]
    facing = np.sqrt(np.maximum(1 - across**2 - down**2, 0.04, dtype=np.float32))
    lx, ly, lz = (float(value) for value in light.direction)
    lambert = np.maximum(lx * across + ly * down + lz * facing, 0)
    box = 2 * round(1.6 * view.scale) + 1
    soft = cv2.blur(cv2.blur(relief, (box, box)), (box, box)).astype(np.float32) / NEUTRAL_RELIEF
    from_lamp = soft * lambert
    channels = [
        cv2.addWeighted(from_lamp, key, soft, ambient, 0) for key, ambient in zip(light.key, light.ambient, strict=True)
    ]
    light_map = cv2.merge(channels)
    return np.asarray(cv2.multiply(pixels, light_map, dtype=cv2.CV_8U), dtype=np.uint8)


def expose(pixels: ImageArray, light: Light) -> ImageArray:
    """Apply exposure, white balance and gamma with a look-up table per channel."""
    levels = np.arange(256)[:, None] / 255
    table = 255 * np.clip(levels * light.gain, 0, 1) ** light.gamma
    return np.asarray(cv2.LUT(pixels, table.astype(np.uint8).reshape(256, 1, 3)), dtype=np.uint8)


def photograph(pixels: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Degrade the image as a camera does: blur or a lower resolution in some images, and noise."""
    height, width = pixels.shape[:2]
    if rng.uniform() < 0.2:
        factor = rng.uniform(0.3, 0.7)
        small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    elif rng.uniform() < 0.4:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.4)), dtype=np.uint8)
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(0.5, 7))
    return np.asarray(cv2.add(pixels, cv2.merge((noise, noise, noise)), dtype=cv2.CV_8U), dtype=np.uint8)
