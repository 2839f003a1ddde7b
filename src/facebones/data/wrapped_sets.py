"""Training sets whose images come from another one, read in another way."""

from collections.abc import Mapping
from functools import partial

import cv2
import numpy as np

from facebones.data.images import decode
from facebones.data.training_set import Integers, TrainingSet, used_labels
from facebones.errors import ConfigError, counted

LEAST_PEOPLE = 2  # of a training


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


class SomePeople(WrappedSet):
    """The images of some people, with new labels from 0 in the order of the old ones.

    Args:
        original: the training set.
        people: labels of the original, (P,) in ascending order, each with an image.

    Attributes:
        people: the labels; the new label of a person is its place here.
        kept: (N,) number in the original of each image, ascending.
    """

    def __init__(self, original: TrainingSet, people: Integers) -> None:
        super().__init__(original)
        self.people = people
        self.kept = np.flatnonzero(np.isin(original.labels, people))
        self.labels = np.searchsorted(people, original.labels[self.kept])

    def read(self, index: int) -> tuple[bytes, int]:
        """The image, and its new label; errors as of the original."""
        return self.original.read(int(self.kept[index]))[0], int(self.labels[index])

    def image_sizes(self) -> Mapping[str, Integers]:
        """Those of these images."""
        return {key: sizes[self.kept] for key, sizes in self.original.image_sizes().items()}

    def read_ahead(self, first: int, last: int) -> None:
        """Announce these images to the original."""
        self.original.read_ahead_some(self.kept[first:last])

    def read_ahead_some(self, indices: Integers) -> None:
        """Announce these images to the original."""
        self.original.read_ahead_some(self.kept[indices])

    def describe(self, index: int) -> str:
        """The original's name of an image."""
        return self.original.describe(int(self.kept[index]))

    def identity_name(self, label: int) -> str:
        """The original's name of an identity."""
        return self.original.identity_name(int(self.people[label]))


def only_used_labels(data: TrainingSet) -> SomePeople:
    """All images of a set whose labels are far more than its images, without the labels of nobody; a note says so."""
    kept = SomePeople(data, used_labels(data.labels))
    people = counted(len(kept.people), "person", "people")
    kept.notes = [
        *data.notes,
        f"{data.path}: labels up to {kept.people[-1]} for {counted(len(data), 'image')}: the {people} with images are"
        f" numbered 0 to {len(kept.people) - 1}",
    ]
    return kept


def held_out_people(num_identities: int, share: float) -> Integers:
    """Which of so many people `data.held_out` holds out: a function of both numbers alone, the same in every run.

    A larger share holds out the same people and more.

    Args:
        num_identities: people that have an image.
        share: of them that is held out, rounded to whole people; at least one, unless it is 0.

    Returns:
        (H,) numbers from 0 to `num_identities` - 1, ascending.

    Raises:
        ConfigError: fewer than two people would remain.

    >>> held_out_people(10, 0.2), held_out_people(10, 0.3)
    (array([4, 6]), array([2, 4, 6]))
    """
    count = max(1, round(share * num_identities)) if share else 0
    if count and num_identities - count < LEAST_PEOPLE:
        raise ConfigError(
            f"data.held_out {share:g}: of {counted(num_identities, 'person', 'people')}, {num_identities - count} would"
            f" remain, and training needs {LEAST_PEOPLE} or more; give a smaller share, or 0"
        )
    return np.sort(np.random.default_rng(0).permutation(num_identities)[:count])


def without_held_out(data: TrainingSet, share: float) -> TrainingSet:
    """A training set without the people that `data.held_out` holds out; `data` itself if the share is 0.

    Raises:
        ConfigError: as `held_out_people`.
    """
    if not share:
        return data
    people, held_out = _people(data, share)
    remaining = SomePeople(data, np.delete(people, held_out))
    note = (
        f"{data.path}: data.held_out {share:g}: {len(held_out)} of {len(people)} people, with"
        f" {counted(len(data) - len(remaining), 'image')}, {'is' if len(held_out) == 1 else 'are'} not trained on"
    )
    remaining.notes = [*data.notes, note]
    return remaining


def held_out_only(data: TrainingSet, share: float) -> SomePeople:
    """The images of the people that `data.held_out` holds out of a training set.

    Raises:
        ConfigError: as `held_out_people`.
    """
    people, held_out = _people(data, share)
    return SomePeople(data, people[held_out])


def _people(data: TrainingSet, share: float) -> tuple[Integers, Integers]:
    """The labels of a training set that have an image, and the places among them that are held out."""
    people = used_labels(data.labels)  # a record file may leave labels out
    return people, held_out_people(len(people), share)
