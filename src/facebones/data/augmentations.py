"""Random changes of training images: crop, low resolution, photometric changes, erasing.

The first three, their order and their ranges are those of AdaFace's authors (arXiv 2204.00964, section 4.1, and
`dataset/augmenter.py` of github.com/mk-minchul/AdaFace, which trains with a probability of 0.2 each); the last one is
random erasing (arXiv 1708.04896, algorithm 1, with the area and aspect of its authors' code).

What happens to an image depends on the seed, the number of its batch and its row in it alone: it is the same on any
number of workers and processes, and in a resumed run.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

CROP_AREA, CROP_ASPECT, CROP_TRIES = (0.2, 1.0), (3 / 4, 4 / 3), 10
LOW_RESOLUTION = (0.2, 1.0)  # of the side
INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
PHOTOMETRIC_FACTOR = (0.5, 1.5)  # of brightness, contrast and saturation
ERASED_AREA, ERASED_ASPECT, ERASING_TRIES = (0.02, 0.4), (0.3, 1 / 0.3), 100
# The ends of seeds [seed, batch, ...]; they keep these draws apart from each other and from those of order and flips.
CHOICE, CHANGE = (0, 2), 3


@dataclass(frozen=True)
class Augmentation:
    """Changes images at random, each with its own probability and independently of the others.

    Args:
        crop: probability of a random crop.
        low_resolution: probability of sampling down and up again.
        photometric: probability of other brightness, contrast and saturation.
        erasing: probability of random erasing.
        seed: of the training.

    >>> images = np.full((2, 112, 112, 3), 200, np.uint8)
    >>> Augmentation(crop=1.0)(images, number=0, first_row=0)
    >>> int(images.min()), int(images.max())
    (0, 200)
    """

    crop: float = 0.0
    low_resolution: float = 0.0
    photometric: float = 0.0
    erasing: float = 0.0
    seed: int = 0

    def __call__(self, images: Pixels, number: int, first_row: int) -> None:
        """Change images in place.

        Args:
            images: consecutive rows of a batch, (R, H, W, 3) RGB.
            number: of the batch, counted from the start of the training.
            first_row: row of the first image in the whole batch.
        """
        # Drawn apart, so that one probability does not decide which images another one takes.
        draw_R4 = np.random.default_rng([self.seed, number, *CHOICE]).random((first_row + len(images), 4))[first_row:]
        chosen_R4 = draw_R4 < (self.crop, self.low_resolution, self.photometric, self.erasing)
        changes = (crop_in_place, lower_resolution, change_colours, erase)
        for row in np.flatnonzero(chosen_R4.any(axis=1)).tolist():
            random = np.random.default_rng([self.seed, number, first_row + row, CHANGE])
            for change, chosen in zip(changes, chosen_R4[row].tolist(), strict=True):
                if chosen:
                    change(images[row], random)

    @property
    def changes_something(self) -> bool:
        """Whether any probability is above 0."""
        return any((self.crop, self.low_resolution, self.photometric, self.erasing))


def crop_in_place(image: Pixels, random: np.random.Generator) -> None:
    """Blacken what is outside a random rectangle; the face stays at its place and keeps its size."""
    for _ in range(CROP_TRIES):
        aspect = math.exp(random.uniform(math.log(CROP_ASPECT[0]), math.log(CROP_ASPECT[1])))
        if (inside := _rectangle(image, random.uniform(*CROP_AREA), aspect, random)) is not None:
            kept = image[inside].copy()
            image[:] = 0
            image[inside] = kept
            return


def lower_resolution(image: Pixels, random: np.random.Generator) -> None:
    """Resize to 20-100 % of the side and back, each with a random interpolation."""
    height, width = image.shape[:2]
    scale = random.uniform(*LOW_RESOLUTION)
    down, up = random.integers(len(INTERPOLATIONS), size=2).tolist()
    small_size = max(1, int(scale * width)), max(1, int(scale * height))
    small = cv2.resize(image, small_size, interpolation=INTERPOLATIONS[down])
    image[:] = cv2.resize(small, (width, height), interpolation=INTERPOLATIONS[up])


def change_colours(image: Pixels, random: np.random.Generator) -> None:
    """Change brightness, contrast and saturation, in random order, each by a factor of 0.5 to 1.5."""
    factors = random.uniform(*PHOTOMETRIC_FACTOR, size=3).tolist()
    for which in random.permutation(3).tolist():
        factor = factors[which]
        if which == 0:
            image[:] = cv2.addWeighted(image, factor, image, 0, 0)
            continue
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if which == 1:
            image[:] = cv2.addWeighted(image, factor, image, 0, (1 - factor) * cv2.mean(grey)[0])
        else:
            image[:] = cv2.addWeighted(image, factor, cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), 1 - factor, 0)


def erase(image: Pixels, random: np.random.Generator) -> None:
    """Replace a random rectangle by random pixels."""
    for _ in range(ERASING_TRIES):
        aspect = random.uniform(*ERASED_ASPECT)  # height to width
        if (inside := _rectangle(image, random.uniform(*ERASED_AREA), 1 / aspect, random)) is not None:
            image[inside] = random.integers(256, size=image[inside].shape, dtype=np.uint8)
            return


def _rectangle(image: Pixels, area: float, aspect: float, random: np.random.Generator) -> tuple[slice, slice] | None:
    """Rows and columns of a rectangle at a random place; None if it does not fit.

    Args:
        image: (H, W, 3).
        area: as a share of the image's.
        aspect: width to height.
        random: draws the place.
    """
    height, width = image.shape[:2]
    rows = max(1, round(math.sqrt(area * height * width / aspect)))
    columns = max(1, round(math.sqrt(area * height * width * aspect)))
    if rows > height or columns > width:
        return None
    top, left = (int(random.integers(free + 1)) for free in (height - rows, width - columns))
    return slice(top, top + rows), slice(left, left + columns)
