"""Training sets whose images come from another one, read in another way."""

from collections.abc import Mapping
from functools import partial

import cv2

from facebones.data.images import decode
from facebones.data.training_set import Integers, TrainingSet


class WrappedSet(TrainingSet):
    """The images of a training set; a subclass changes what `read` gives.

    Args:
        original: the training set.
    """

    def __init__(self, original: TrainingSet) -> None:
        self.original = original
        self.path, self.labels, self.notes = original.path, original.labels, original.notes

    def read(self, index: int) -> tuple[bytes, int]:
        """As the original."""
        return self.original.read(index)

    def image_sizes(self) -> Mapping[str, Integers]:
        """Those of the original."""
        return self.original.image_sizes()

    def read_ahead(self, first: int, last: int) -> None:
        """Pass on to the original."""
        self.original.read_ahead(first, last)

    def read_ahead_some(self, indices: Integers) -> None:
        """Pass on to the original."""
        self.original.read_ahead_some(indices)

    def describe(self, index: int) -> str:
        """The original's name of an image."""
        return self.original.describe(index)

    def identity_name(self, label: int) -> str:
        """The original's name of an identity."""
        return self.original.identity_name(label)


class SavedAgain(WrappedSet):
    """The images saved as JPEG again, as they are where records were unpacked into files.

    The published study unpacked its records in this way, at quality 75 with colours at half the resolution (4:2:0); so
    do converters that use Pillow's defaults.

    Args:
        original: the training set.
        quality: of the JPEG, 1 to 100.
    """

    def __init__(self, original: TrainingSet, quality: int) -> None:
        super().__init__(original)
        self.quality = quality

    def read(self, index: int) -> tuple[bytes, int]:
        """The image as JPEG, and its label; errors as of the original."""
        encoded, label = self.original.read(index)
        image = decode(encoded, partial(self.describe, index))
        options = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes(), label


class NumberedImages(WrappedSet):
    """The images with their number in the set instead of a label: what belongs to an image is looked up by it."""

    def read(self, index: int) -> tuple[bytes, int]:
        """The image, and its number."""
        return self.original.read(index)[0], index
