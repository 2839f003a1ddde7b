"""From uint8 pixels to what a backbone takes: the one place where values are scaled and images mirrored."""

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
    """What a network wants of pixels from 0 to 255: (x - mean) / scale, with the colours in an order.

    The default is that of our own backbones; networks that others trained may want another.

    Attributes:
        mean: what is subtracted.
        scale: what is divided by; not 0.
        colour: "rgb" or "bgr".

    Raises:
        ConfigError: no such scaling or order of colours.
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
    """Turn RGB images into network input, on the device where they are.

    Args:
        images_u8_BHWC: (B, H, W, 3) uint8.
        channels_last: give the result torch's channels-last memory format; the values are the same.
        mirror_B: (B,) bool, which images to flip left to right; None flips none.
        preprocessing: of a network that others trained.

    Returns:
        (B, 3, H, W) float32, x / 127.5 - 1, so from -1 to 1, unless `preprocessing` says otherwise. The input is not
        written to.

    Raises:
        ValueError: the images have another type or shape.
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

    A choice byte by byte, as `torch.where` makes it, takes most of the time of a batch's way to the network on a CPU;
    there OpenCV flips a copy in place, in a quarter of the time that torch takes for whole images. Elsewhere both kinds
    are made and chosen from, so that a GPU does not have to wait for the count of those that are flipped.
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
