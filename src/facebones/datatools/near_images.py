"""Near-identical images: one photo that was saved again, resized, cropped, mirrored or brightened.

A perceptual hash finds candidates, and a registration verifies them:

* The hash is the low frequencies of a discrete cosine transform, as in pHash, but as real numbers: aligned faces have
  so much in common that its bits hardly differ. The mean of the training images is subtracted, and what remains is
  whitened by their covariance, so that a cosine near 1 is rare among different faces. A product of matrices compares
  all images with all, faster than bits would be counted.
* The hash of a crop follows from the same pixels, by cosines over the crop instead of the whole image. The whole of
  one image is compared with 18 crops of the other, both ways, and with all of these mirrored.
* For each image, the eight nearest candidates are registered by an affine transform (ECC), which also undoes what an
  alignment with other landmarks changes, and compared in their fine detail: the normalised correlation of what a blur
  removes, by its local contrast. Different photos of one face differ there, even where their coarse pattern is the
  same.

The numbers below were chosen on real faces, see docs/trust.md.

Sources: C. Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010), for pHash; G. D.
Evangelidis and E. Z. Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization", IEEE
TPAMI 30 (2008), for ECC.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]
Interval = tuple[float, float]
Grey = npt.NDArray[Any]

SIDE = 64  # of the small grey images, pixels
FREQUENCIES = 8  # in each direction
CROP_SIDES = (0.93, 0.86)  # of the compared crops; between them, neighbours are near enough
LEAST_COSINE = 0.6  # of the hashes of a candidate
CANDIDATES = 8  # of each image
SAME_DETAIL = 0.75  # correlation of the fine detail of near-identical images
WORTH_REFINING = 0.35  # after the coarse registration
DETAIL_SIGMA = 2.0  # of the blur whose result is subtracted, pixels of the small image
FLAT = 10.0  # grey levels of contrast that count little: noise, and what a JPEG adds
LEAST_COMMON = 0.5  # share of the image that both show
BLOCK = 256  # images compared at a time: their cosines stay in the processor's cache
_AFFINE = cv2.MOTION_AFFINE
EVERYWHERE: Any = None  # no mask
_MARGIN = np.ones((5, 5), np.uint8)


def small_grey(image_HxWx3: ImageArray) -> ImageArray:
    """The image in grey, (64, 64) uint8."""
    grey = cv2.cvtColor(image_HxWx3, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _intervals(side: float) -> list[Interval]:
    return [(0.0, side), ((1 - side) / 2, (1 + side) / 2), (1 - side, 1.0)]


WHOLE: Interval = (0.0, 1.0)
INTERVALS = [WHOLE, *(interval for side in CROP_SIDES for interval in _intervals(side))]
# Rows and columns of each crop as places in INTERVALS; the first crop is the whole image.
CROPS = [
    (0, 0),
    *((row, column) for side in (1, 4) for row in range(side, side + 3) for column in range(side, side + 3)),
]


def _cosines(interval: Interval) -> Floats:
    """(FREQUENCIES, SIDE) cosines over an interval of the side, 0 outside of it; pixels at its ends count in part."""
    low, high = interval
    edges = np.arange(SIDE + 1) / SIDE
    covered = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) / (high - low)
    phase = np.pi * (edges[:-1] + 0.5 / SIDE - low) / (high - low)
    scale = np.where(np.arange(FREQUENCIES) > 0, np.sqrt(2), 1)[:, None]
    return np.asarray(np.cos(np.arange(FREQUENCIES)[:, None] * phase) * covered * scale, dtype=np.float32)


_BASIS = np.concatenate([_cosines(interval) for interval in INTERVALS])


@dataclass(frozen=True, eq=False)
class PerceptualHash:
    """The hash of images and of their crops, as directions: a cosine compares two.

    Attributes:
        mean: (K,) what the images have in common.
        whitening: (K, K).
    """

    mean: Floats
    whitening: Floats

    @classmethod
    def fitted(cls, greys_NxSxS: ImageArray) -> "PerceptualHash":
        """Fit to a sample of images; with few images, the coefficients are scaled, but less and less whitened."""
        rows = _coefficients(greys_NxSxS)[0].astype(np.float64)
        mean = rows.mean(axis=0)
        centred = rows - mean
        covariance = centred.T @ centred / len(rows)
        own = np.diag(np.diag(covariance))
        share = len(mean) / (len(mean) + len(rows))
        values, vectors = np.linalg.eigh((1 - share) * covariance + share * own + 1e-9 * np.eye(len(mean)))
        return cls(mean.astype(np.float32), (vectors / np.sqrt(values)).astype(np.float32))

    def __call__(self, greys_NxSxS: ImageArray) -> Floats:
        """(V, N, K) float32 of length 1: of the whole images, then of their crops."""
        hashes = np.empty((len(CROPS), len(greys_NxSxS), len(self.mean)), np.float32)
        for start in range(0, len(greys_NxSxS), BLOCK):
            rows = (_coefficients(greys_NxSxS[start : start + BLOCK]) - self.mean) @ self.whitening
            rows /= np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), 1e-6)
            hashes[:, start : start + BLOCK] = rows
        return hashes


def _coefficients(greys_NxSxS: ImageArray) -> Floats:
    """(V, N, K) low frequencies of each crop without the mean grey, scaled to length 1: the contrast does not count."""
    both = _BASIS @ greys_NxSxS.astype(np.float32) @ _BASIS.T  # (N, I * F, I * F)
    boxes = both.reshape(len(both), len(INTERVALS), FREQUENCIES, len(INTERVALS), FREQUENCIES)
    rows = np.stack([boxes[:, row, :, column].reshape(len(both), -1)[:, 1:] for row, column in CROPS])
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), 1e-6), dtype=np.float32)


class NearestImages:
    """The nearest training images of each of T images, by their hashes; training images come block by block.

    Args:
        hashing: fitted to training images.
        greys_TxSxS: the T images, (T, 64, 64) uint8.
    """

    def __init__(self, hashing: PerceptualHash, greys_TxSxS: ImageArray) -> None:
        self._hashing = hashing
        self._own = np.stack([hashing(greys_TxSxS), hashing(greys_TxSxS[:, :, ::-1])])  # (2, V, T, K)
        self._image = np.empty(0, np.intp)
        self._training = np.empty(0, np.intp)
        self._cosine = np.empty(0, np.float32)

    def add(self, start: int, greys_BxSxS: ImageArray) -> None:
        """Compare with the training images from number `start` on."""
        hashes = self._hashing(greys_BxSxS)
        found = [(self._image, self._training, self._cosine)]
        for first in range(0, self._own.shape[2], BLOCK):
            best = self._largest(slice(first, first + BLOCK), hashes)
            image, training = np.nonzero(best >= LEAST_COSINE)
            found.append((first + image, start + training, best[image, training]))
        image, training, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((-cosine, image))
        rank = np.arange(len(order)) - np.searchsorted(image[order], image[order])
        kept = order[rank < CANDIDATES]
        self._image, self._training, self._cosine = image[kept], training[kept], cosine[kept]

    def _largest(self, images: slice, hashes_VxBxK: Floats) -> Floats:
        """The largest cosine of each image with each training image, over crops and mirror images."""
        whole = self._own[:, 0, images]
        best: Floats = whole[0] @ hashes_VxBxK[0].T
        spare = np.empty_like(best)
        for mirrored, crop in product((0, 1), range(len(CROPS))):
            np.maximum(best, np.matmul(self._own[mirrored, crop, images], hashes_VxBxK[0].T, out=spare), out=best)
            if crop:
                np.maximum(best, np.matmul(whole[mirrored], hashes_VxBxK[crop].T, out=spare), out=best)
        return best

    def candidates(self) -> tuple[Integers, Integers]:
        """Images and training images of the pairs to verify, (C,) and (C,), in the order of the training images."""
        order = np.argsort(self._training, kind="stable")
        return self._image[order], self._training[order]

    def starts(self, images_C: Integers, greys_CxSxS: ImageArray) -> Iterator[tuple[bool, Floats]]:
        """How to begin the registration of an image to a training image, for each of C candidates.

        Yields:
            whether to mirror the image, and the affine transform (2, 3) from the training image to it, by the nearest
            crops.
        """
        hashes = self._hashing(greys_CxSxS)  # (V, C, K)
        own = self._own[:, :, images_C]  # (2, V, C, K)
        cropped = np.einsum("mvck,ck->cmv", own, hashes[0])
        others = np.einsum("mck,vck->cmv", own[:, 0], hashes)
        for cosines in np.stack([cropped, others], axis=1):  # (2, M, V)
            side, mirrored, crop = np.unravel_index(int(cosines.argmax()), cosines.shape)
            own_crop, other_crop = (CROPS[crop], CROPS[0]) if side == 0 else (CROPS[0], CROPS[crop])
            yield bool(mirrored), _between(own_crop, other_crop)


def _between(crop: tuple[int, int], training_crop: tuple[int, int]) -> Floats:
    """The transform (2, 3) from a crop of the training image to a crop of the image, in pixels x, y."""
    rows = []
    for place, axis in enumerate((1, 0)):  # x is the column
        (low, high), (from_low, from_high) = INTERVALS[crop[axis]], INTERVALS[training_crop[axis]]
        scale = (high - low) / (from_high - from_low)
        rows.append([scale * (place == 0), scale * (place == 1), SIDE * (low - from_low * scale)])
    return np.array(rows, dtype=np.float32)


def same_detail(image_SxS: ImageArray, training_SxS: ImageArray, start_2x3: Floats) -> float:
    """Register an image to a training image, and correlate their fine detail.

    Args:
        image_SxS: (64, 64) uint8.
        training_SxS: likewise.
        start_2x3: about which transform leads from the training image to the image.

    Returns:
        the correlation, -1 to 1, where both overlap; -1 where they hardly do. `SAME_DETAIL` and above: one photo.

    >>> image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    >>> round(same_detail(image, image, np.eye(2, 3, dtype=np.float32)), 3)
    1.0
    """
    half = [cv2.resize(one, (SIDE // 2, SIDE // 2), interpolation=cv2.INTER_AREA) for one in (training_SxS, image_SxS)]
    coarse = _resized(_registered(half[0], half[1], _resized(start_2x3, 0.5), iterations=20), 2)
    score = _correlation(image_SxS, training_SxS, coarse)
    if score < WORTH_REFINING:
        return score
    fine = _registered(training_SxS, image_SxS, coarse, iterations=30)
    return max(score, _correlation(image_SxS, training_SxS, fine))


def _resized(transform_2x3: Floats, scale: float) -> Floats:
    """The same transform between images of other sizes."""
    return np.asarray(transform_2x3 * np.array([1, 1, scale]), dtype=np.float32)


def _registered(training: Grey, image: Grey, start: Floats, iterations: int) -> Floats:
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, iterations, 1e-4)
    try:
        found = cv2.findTransformECC(training, image, start.copy(), _AFFINE, criteria, EVERYWHERE, 3)[1]
    except cv2.error:  # it does not converge, as with a plain image
        return start
    return np.asarray(found, dtype=np.float32)


def _correlation(image: ImageArray, training: ImageArray, transform: Floats) -> float:
    if not np.isfinite(transform).all():
        return -1.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(image, transform, (SIDE, SIDE), flags=flags)
    inside = cv2.warpAffine(
        np.ones_like(image), transform, (SIDE, SIDE), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    common = cv2.erode(inside, _MARGIN, borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0
    if common.mean() < LEAST_COMMON:
        return -1.0
    one, other = (_detail(part)[common] for part in (np.asarray(warped), training))
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / length if length > 0 else 0.0


def _detail(grey: npt.NDArray[np.generic]) -> Floats:
    """What a blur removes, by its local contrast: a few strong edges would decide otherwise."""
    exact = grey.astype(np.float32)
    detail = exact - cv2.GaussianBlur(exact, (0, 0), DETAIL_SIGMA)
    contrast = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), 2 * DETAIL_SIGMA))
    return np.asarray(detail / (contrast + FLAT), dtype=np.float32)
