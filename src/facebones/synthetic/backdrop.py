"""Backgrounds: rooms, walls, gardens and evening lights, out of focus and in calm colours."""

import cv2
import numpy as np

from facebones.data.images import ImageArray
from facebones.synthetic.drawing import Canvas
from facebones.synthetic.head import Array

COARSE = 32  # pixels across a background before it is enlarged: everything in it is out of focus
# From light walls to dark rooms, then plants and skies: muted, as behind most portraits.
WALLS = np.array(
    (
        (228, 223, 213), (208, 200, 188), (182, 184, 178), (158, 168, 172), (204, 184, 162), (172, 150, 128),
        (128, 136, 138), (98, 110, 120), (74, 88, 104), (142, 152, 134), (110, 122, 102), (184, 158, 140),
        (152, 116, 98), (116, 88, 72), (88, 74, 66), (60, 58, 60), (42, 46, 54), (198, 206, 210),
        (66, 82, 78), (132, 112, 122),
    ),
    dtype=float,
)  # fmt: skip
PLANTS = np.array(
    ((92, 108, 74), (122, 132, 92), (70, 86, 66), (148, 142, 98), (104, 112, 100), (150, 118, 84)), dtype=float
)
SKIES = np.array(((188, 204, 216), (206, 210, 212), (166, 186, 204), (222, 212, 198), (140, 152, 168)), dtype=float)
LAMPS = np.array(((238, 206, 156), (228, 180, 128), (214, 216, 206), (176, 196, 214)), dtype=float)


def tone(rng: np.random.Generator, palette: Array) -> Array:
    """Draw a colour (3,) of a palette, somewhat lighter, darker or warmer."""
    warmth = rng.normal(0, 4)
    colour = palette[rng.integers(len(palette))] * rng.uniform(0.82, 1.12) + np.array((warmth, 0, -warmth))
    return np.asarray(np.minimum(np.maximum(colour, 12.0), 242.0))


def background(rng: np.random.Generator, height: int, width: int) -> ImageArray:
    """Draw an unfocused background, uint8 (height, width, 3)."""
    rows = round(COARSE * height / width)
    draw = (_wall, _room, _room, _outdoors, _evening)[rng.integers(5)]
    pixels = draw(rng, rows)
    focus = rng.uniform(0.9, 2.4)
    blurred = cv2.GaussianBlur(pixels, (0, 0), focus)
    return np.asarray(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _gradient(first: Array, second: Array, rows: int, corners: Array) -> ImageArray:
    """Mix two colours by the shares (2, 2) at the corners."""
    share = cv2.resize(corners, (COARSE, rows), interpolation=cv2.INTER_LINEAR)[:, :, None]
    return np.asarray(first + share * (second - first)).astype(np.uint8)


def _wall(rng: np.random.Generator, rows: int) -> ImageArray:
    colour = tone(rng, WALLS)
    return _gradient(colour * rng.uniform(0.55, 0.9), np.minimum(colour * 1.12, 246), rows, rng.uniform(0, 1, (2, 2)))


def _room(rng: np.random.Generator, rows: int) -> ImageArray:
    """A wall with doors, shelves, pictures or a window."""
    pixels = _wall(rng, rows)
    canvas = Canvas(pixels, 1)
    for _ in range(rng.integers(2, 6)):
        left, top = rng.uniform(-6, COARSE - 4), rng.uniform(-8, 0.7 * rows)
        right, bottom = left + rng.uniform(3, 14), top + rng.uniform(5, rows)
        corners = np.array(((left, top), (right, top), (right, bottom), (left, bottom)))
        canvas.fill(corners, tone(rng, WALLS))
    return pixels


def _outdoors(rng: np.random.Generator, rows: int) -> ImageArray:
    """Sky above, plants below, and spots of light or leaves."""
    sky, green = tone(rng, SKIES), tone(rng, PLANTS)
    horizon = rng.uniform(-0.2, 0.7) * rows
    share = 1 / (1 + np.exp((horizon - np.arange(rows)) / rng.uniform(0.5, 3)))
    pixels = np.ascontiguousarray(
        np.broadcast_to((sky + share[:, None, None] * (green - sky)), (rows, COARSE, 3))
    ).astype(np.uint8)
    _spots(rng, pixels, (green * 0.7, green * 1.15, sky, tone(rng, PLANTS)), 16)
    return pixels


def _evening(rng: np.random.Generator, rows: int) -> ImageArray:
    """A dim street or room with lamps."""
    dark = tone(rng, WALLS[5:17]) * rng.uniform(0.35, 0.8)
    pixels = _gradient(dark * 0.7, dark * 1.1, rows, rng.uniform(0, 1, (2, 2)))
    lamps = [dark + rng.uniform(0.3, 0.85) * (tone(rng, LAMPS) - dark) for _ in range(3)]
    _spots(rng, pixels, lamps, 10)
    return pixels


def _spots(rng: np.random.Generator, pixels: ImageArray, colours: list[Array] | tuple[Array, ...], most: int) -> None:
    canvas, (rows, columns, _) = Canvas(pixels, 1), pixels.shape
    places = rng.uniform(0, 1, (rng.integers(most // 2, most + 1), 3))
    for number, (x, y, size) in enumerate(places):
        centre = np.array((x * columns, y * rows))
        canvas.dot(centre, 0.8 + 2.4 * size, np.minimum(colours[number % len(colours)], 250))
