"""Turn uint8 pixels into the input of a network: the one place that scales values and mirrors images.

Align faces: map five landmarks to their places in ArcFace's 112x112 reference by a similarity transform.

Source: J. Deng et al., "ArcFace" (arXiv 1801.07698), and InsightFace's five points for it; S. Umeyama, "Least-squares
estimation of transformation parameters between two point patterns", PAMI 13 (1991).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch

from facebones.data.images import ImageArray
from facebones.errors import ConfigError, DataError

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


# ---------------------------------------------------------------------------------------------------------- Align faces


FloatArray = npt.NDArray[np.floating[Any]]

ALIGNED_SIZE = 112
# x, y in pixels of the 112x112 image: the eyes (left in the image first), the nose tip, the mouth corners.
REFERENCE = np.array(
    ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
)


def align_face(image_HxWx3: ImageArray, landmarks_5x2: FloatArray, what: str, size: int = ALIGNED_SIZE) -> ImageArray:
    """Warp a face so that its landmarks come closest to the reference (bilinear, black outside of the photo).

    Args:
        image_HxWx3: the photo, (H, W, 3) uint8.
        landmarks_5x2: (5, 2) x, y in pixels of the photo, in the order of `REFERENCE`.
        what: name of the image in an error.
        size: height and width of the result; the reference is scaled to it.

    Returns:
        (size, size, 3) uint8.

    Raises:
        DataError: the landmarks are unusable: not finite, or all in one place.

    >>> photo = np.zeros((200, 300, 3), np.uint8)
    >>> photo[51:53, 72:75] = 255  # where the reference has the eye on the right
    >>> int(align_face(photo, REFERENCE, "photo")[52, 73, 0])
    255
    """
    return warp(image_HxWx3, similarity_transform(landmarks_5x2, REFERENCE * (size / ALIGNED_SIZE), what), size)


def warp(image_HxWx3: ImageArray, matrix_2x3: FloatArray, size: int = ALIGNED_SIZE) -> ImageArray:
    """Warp an image to (size, size, 3) uint8 by a (2, 3) matrix of `similarity_transform`, as `align_face` does."""
    return np.asarray(cv2.warpAffine(image_HxWx3, matrix_2x3, (size, size), flags=cv2.INTER_LINEAR), dtype=np.uint8)


def similarity_transform(source_Kx2: FloatArray, target_Kx2: FloatArray, what: str) -> npt.NDArray[np.float64]:
    """Fit the rotation, scale and shift from one set of points to another by least squares.

    In the plane the fit has a closed form: with points as complex numbers, the transform is z -> a z + b.

    Args:
        source_Kx2: (K, 2) points.
        target_Kx2: (K, 2) their targets.
        what: name of the image in an error.

    Returns:
        (2, 3) matrix M: target = M @ (x, y, 1).

    Raises:
        DataError: a point is not finite, or all source points are equal.
    """
    (matrix,) = similarity_transforms(np.asarray(source_Kx2)[None], target_Kx2, lambda _: what)
    return np.asarray(matrix)


def similarity_transforms(
    source_NxKx2: FloatArray, target_Kx2: FloatArray, what: Callable[[int], str]
) -> npt.NDArray[np.float64]:
    """Fit the transforms of N faces at once, as `similarity_transform` does for one.

    Args:
        source_NxKx2: (N, K, 2) points.
        target_Kx2: (K, 2) their targets.
        what: returns the name of a face in an error, from its index.

    Returns:
        (N, 2, 3) matrices.

    Raises:
        DataError: a point is not finite, or all source points of a face are equal; names the first such face.
    """
    target = np.asarray(target_Kx2, dtype=np.float64) @ (1, 1j)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        source = np.asarray(source_NxKx2, dtype=np.float64) @ (1, 1j)
        centre = source.mean(axis=1)
        centred = source - centre[:, None]
        spread = (centred.conj() * centred).sum(axis=1).real
    usable = np.isfinite(spread) & (spread > 1e-9)
    if not usable.all():
        index = int(np.argmin(usable))
        reason = "all in one place" if spread[index] <= 1e-9 else "not finite"
        raise DataError(f"{what(index)}: its landmarks are {reason}; correct them")
    factor = (centred.conj() * (target - target.mean())).sum(axis=1) / spread
    shift = target.mean() - factor * centre
    rows = ((factor.real, -factor.imag, shift.real), (factor.imag, factor.real, shift.imag))
    return np.moveaxis(np.array(rows), -1, 0)


def five_of_68(landmarks_68x2: FloatArray) -> npt.NDArray[np.float64]:
    """Reduce 68 landmarks (numbered from 0) to five, as InsightFace does.

    Args:
        landmarks_68x2: (68, 2) in the order of the 300-W annotation.

    Returns:
        (5, 2): the means of points 36 and 39 and of 42 and 45, then points 30, 48 and 54.
    """
    points = np.asarray(landmarks_68x2, dtype=np.float64)
    eyes = [points[[36, 39]].mean(axis=0), points[[42, 45]].mean(axis=0)]
    return np.stack([*eyes, points[30], points[48], points[54]])
