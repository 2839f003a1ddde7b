"""Turn uint8 pixels into the input of a network: the one place that scales values and mirrors images."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch

from facebones.errors import ConfigError

Colour = Literal["rgb", "bgr"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a network expects pixels from 0 to 255: scaled by (x - mean) / scale, in an order of colours.

    The default fits the backbones of this package; networks from elsewhere may need another.

    Attributes:
        mean: subtracted from each value.
        scale: divisor, not 0.
        colour: "rgb" or "bgr".

    Raises:
        ConfigError: a number is not finite, the scale is 0, or the order of colours is unknown.

    >>> Preprocessing(mean=0, scale=255, colour="bgr").to_json()
    {'mean': 0, 'scale': 255, 'colour': 'bgr'}
    """

    mean: float = 127.5
    scale: float = 127.5
    colour: Colour = "rgb"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.scale) and self.scale):
            raise ConfigError(f"preprocessing (x - {self.mean}) / {self.scale}: give numbers, and a scale other than 0")
        if self.colour not in get_args(Colour):
            raise ConfigError(f"preprocessing colour '{self.colour}': give one of {', '.join(get_args(Colour))}")

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


OURS = Preprocessing()


def to_network_input(
    images_u8_BHWC: torch.Tensor,
    channels_last: bool = False,
    mirror_B: torch.Tensor | None = None,
    preprocessing: Preprocessing = OURS,
) -> torch.Tensor:
    """Turn RGB images into network input, on their own device.

    Args:
        images_u8_BHWC: (B, H, W, 3) uint8.
        channels_last: return torch's channels-last memory format; the values are the same.
        mirror_B: (B,) bool, the images to flip left to right; None flips none.
        preprocessing: scaling and order of colours.

    Returns:
        (B, 3, H, W) float32; x / 127.5 - 1 by default, from -1 to 1. The input is unchanged.

    Raises:
        ValueError: the images have another type or shape.

    >>> to_network_input(torch.tensor([[[[0, 127, 255]]]], dtype=torch.uint8)).flatten()
    tensor([-1.0000, -0.0039,  1.0000])
    """
    if images_u8_BHWC.dtype != torch.uint8 or images_u8_BHWC.ndim != 4 or images_u8_BHWC.shape[3] != 3:
        found = f"{images_u8_BHWC.dtype} of shape {tuple(images_u8_BHWC.shape)}"
        raise ValueError(f"images are {found}; give torch.uint8 of shape (B, H, W, 3)")
    if mirror_B is not None:
        images_u8_BHWC = _mirrored(images_u8_BHWC, mirror_B)
    images = images_u8_BHWC.permute(0, 3, 1, 2)
    if preprocessing.colour == "bgr":
        images = images.flip(1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    scaled = images.to(torch.float32, memory_format=memory_format).div_(preprocessing.scale)
    return scaled.sub_(preprocessing.mean / preprocessing.scale)


def _mirrored(images_BHWC: torch.Tensor, mirror_B: torch.Tensor) -> torch.Tensor:
    """Flip some images left to right.

    On a CPU, OpenCV flips them in a copy, in a quarter of torch's time for whole images; choosing byte by byte with
    `torch.where` takes longer than all the rest of this function's work. On a GPU, both versions of every image are
    computed and one is selected, so the host does not wait for the number of flipped images.
    """
    if images_BHWC.device.type == "cpu":
        mirrored = images_BHWC.clone(memory_format=torch.contiguous_format)
        images = mirrored.numpy()
        for index in np.flatnonzero(mirror_B.numpy()):
            cv2.flip(images[index], 1, images[index])
        return mirrored
    count = len(images_BHWC)
    choice_B = torch.arange(count, device=images_BHWC.device) + count * mirror_B
    return torch.cat([images_BHWC, images_BHWC.flip(2)]).index_select(0, choice_B)
