"""Align faces: map five landmarks to their places in ArcFace's 112x112 reference by a similarity transform.

Source: J. Deng et al., "ArcFace" (arXiv 1801.07698), and InsightFace's five points for it; S. Umeyama, "Least-squares
estimation of transformation parameters between two point patterns", PAMI 13 (1991).
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray
from facebones.errors import DataError

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
