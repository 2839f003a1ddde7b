"""What differs between two images of a person besides what is around: pose, expression, light and camera."""

from dataclasses import dataclass

import cv2
import numpy as np

from facebones.data.images import ImageArray
from facebones.errors import UnknownNameError
from facebones.synthetic.drawing import Points, Relief, View
from facebones.synthetic.head import Array, Expression

EYE_BLINK = 0.04
MIDDLE_GREY = 114.0  # mean that a camera aims at
LUMINANCE = np.array((0.299, 0.587, 0.114))
WRAP = 0.3  # how far light reaches around the head, as it does in skin
BEHIND = 0.6  # light on what is beside the head, where a face turned to the lamp has 1
SHOULDER = 0.68  # level from which highlights are compressed
POSES = ("any", "frontal", "profile")


@dataclass(frozen=True, kw_only=True)
class Light:
    """A lamp, its surroundings and the camera's settings; colours are RGB factors."""

    direction: Points  # (3,), unit length, towards the lamp
    key: Array
    ambient: Array
    gain: Array
    gamma: float
    metering: float = 0.0  # how far the camera corrects its exposure: 0 not, 1 to the same mean in each image
    saturation: float = 1.0


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
        mouth_open=max(0.0, rng.uniform(-8, 6)),
        smile=rng.uniform(-0.25, 1.45),
        brow_raise=rng.normal(0, 1.2),
        lids=0.1 if rng.uniform() < EYE_BLINK else rng.uniform(0.7, 1.15),
        gaze=(rng.normal(0, 1.2), rng.normal(0, 0.4)),
    )


def draw_light(rng: np.random.Generator) -> Light:
    """Sample lamp, surroundings, exposure and white balance, so widely that colours hardly identify a person."""
    azimuth, elevation = rng.uniform(-1.4, 1.4), rng.uniform(-0.15, 1.1)
    direction = np.array((np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)))
    share = rng.uniform(0.35, 0.82)
    lamp, room = np.exp(_warmth(rng, 0.08)), np.exp(_warmth(rng, 0.05))
    return Light(
        direction=direction,
        key=0.8 * share * lamp,
        ambient=0.8 * (1 - share) * room,
        gain=np.exp(_warmth(rng, 0.07) + min(max(rng.normal(0, 0.27), -0.55), 0.35)),
        gamma=float(np.exp(rng.normal(0, 0.17))),
        metering=rng.uniform(0.6, 0.95),
        saturation=rng.uniform(0.6, 1.1),
    )


def _warmth(rng: np.random.Generator, spread: float) -> Array:
    """Logarithms of RGB factors from candle light to shade, with a trace of green or magenta."""
    warmth, tint = spread * min(max(rng.normal(0.15, 1), -1.5), 2.0), rng.normal(0, 0.015)
    return np.array((warmth, tint, -1.1 * warmth))


def shine(pixels: ImageArray, relief: Relief, view: View, head_width: float, light: Light) -> ImageArray:
    """Light the drawn colours.

    Args:
        pixels: uint8 (H, W, 3), colours under even white light.
        relief: light and shade of what is drawn.
        view: the camera, which places the ellipsoid that approximates the head.
        head_width: half width of the head, in head units.
        light: the lamp.

    Returns:
        uint8 (H, W, 3).
    """
    height, width = pixels.shape[:2]
    x0, y0 = view(np.array((0.0, 2.0, 0.0)))
    across = ((np.arange(width, dtype=np.float32) - x0) / (1.1 * head_width * view.scale)).astype(np.float32)
    down = ((np.arange(height, dtype=np.float32) - y0) / (76 * view.scale)).astype(np.float32)[:, None]
    facing = np.sqrt(np.maximum(1 - across**2 - down**2, 0.03, dtype=np.float32))
    lx, ly, lz = (float(value) / (1 + WRAP) for value in light.direction)
    lambert = np.maximum(lx * across + ly * down + lz * facing + np.float32(WRAP / (1 + WRAP)), 0)
    lambert = np.float32(BEHIND) + relief.roundness() * (lambert - np.float32(BEHIND))
    channels = [
        cv2.addWeighted(lambert, key, lambert, 0, ambient)
        for key, ambient in zip(light.key, light.ambient, strict=True)
    ]
    light_map = cv2.multiply(cv2.merge(channels), relief.factors(view.scale))
    return np.asarray(cv2.multiply(pixels, light_map, dtype=cv2.CV_8U), dtype=np.uint8)


def expose(pixels: ImageArray, light: Light) -> ImageArray:
    """Apply exposure, white balance and tone curve with a look-up table per channel, then the camera's saturation."""
    mean = max(float(np.dot(cv2.mean(pixels)[:3], LUMINANCE)), 1.0)
    metered = (MIDDLE_GREY / mean) ** light.metering
    levels = np.arange(256)[:, None] / 255 * light.gain * metered
    room = 1 - SHOULDER
    bright = SHOULDER + room * (1 - np.exp(-np.maximum(levels - SHOULDER, 0) / room))
    table = 255 * np.where(levels < SHOULDER, levels, bright) ** light.gamma
    exposed = cv2.LUT(pixels, table.astype(np.uint8).reshape(256, 1, 3))
    if light.saturation == 1:
        return np.asarray(exposed, dtype=np.uint8)
    dull = cv2.cvtColor(cv2.cvtColor(exposed, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(exposed, light.saturation, dull, 1 - light.saturation, 0), dtype=np.uint8)


def photograph(pixels: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Degrade the image as a camera does: blur or a lower resolution in some images, and noise."""
    height, width = pixels.shape[:2]
    if rng.uniform() < 0.2:
        factor = rng.uniform(0.33, 0.75)
        small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    elif rng.uniform() < 0.4:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.4)), dtype=np.uint8)
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(0.5 + 6.5 * rng.uniform() ** 1.6)
    return np.asarray(cv2.add(pixels, cv2.merge((noise, noise, noise)), dtype=cv2.CV_8U), dtype=np.uint8)
