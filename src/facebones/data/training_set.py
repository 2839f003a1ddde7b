"""The contract of a training set, and the registry of data formats that can be one.

A data format is a subclass of `TrainingSet` under the decorator `register_data_format`. `record_set` and
`image_folder` are two of them; a module of the user's can register more, see `docs/data_formats.md`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt

from facebones.data.images import aspect_note, decode
from facebones.errors import ConfigError, DataError
from facebones.plugins import import_entry_points

Integers = npt.NDArray[np.int64]
Item = TypeVar("Item")

LARGEST_TABLE = 2**26  # labels below it are looked up in a table
SAMPLE = 64  # images whose bytes a fingerprint covers
UNREADABLE = "-"
# Every fingerprint has these keys; fingerprints of older versions have no others.
LABEL_KEYS = ("images", "identities", "labels_sha256")
# Where one of these differs, it is other data. Sizes alone may differ: a broken file may have been repaired.
CONTENT_KEYS = (*LABEL_KEYS, "image_sample")


class TrainingSet(ABC):
    """Encoded face images with a label each.

    A subclass sets `path`, `labels` and perhaps `notes` in `__init__(path)`, and defines `read`. Instances are pickled
    on their way to the data workers, so they keep no open file in their pickled state.

    Attributes:
        name: name of the data format, such as "recordio".
        path: the file or folder.
        labels: (N,) int64 identity of each image, from 0.
        notes: messages for the user, such as a count that disagrees with the data.
    """

    name: ClassVar[str] = ""
    path: Path
    labels: Integers
    notes: Sequence[str] = ()
    _fingerprint: dict[str, Any] | None = None
    _sampled_sizes: Sequence[tuple[int, int]] = ()

    @classmethod
    def find(cls, path: Path) -> bool:
        """Tell in a moment whether the file or folder has this format; errors in it are for `open` to raise."""
        raise NotImplementedError(f"{cls.__name__} is not a data format: it has no find()")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file or folder.

        Raises:
            DataError: it is broken.
        """
        return cls(path)  # type: ignore[call-arg] # subclasses take the path

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_identities(self) -> int:
        """1 + the largest label: the number of class centres that a head needs."""
        return int(self.labels.max()) + 1

    def fingerprint(self) -> dict[str, Any]:
        """Identify the data wherever it lies: counts, and digests of labels, image sizes and a sample of images.

        A change of the labels or of the number of images is always noticed. A replaced image is noticed if its size in
        bytes changes (RecordIO: the size rounded up to 4), or if it is one of the 64 in the sample, which are evenly
        spread from the first image to the last. Not noticed: another image of the same size outside of the sample, or,
        in a format without `image_sizes`, any image outside of the sample. An image of the sample that could not be
        decoded may be repaired. No more than the sample is read, so ten million images take seconds.

        Returns:
            "images", "identities" (counts), "labels_sha256", the keys of `image_sizes` (SHA-256), and "image_sample":
            the beginning of each SHA-256, separated by blanks, "-" for an image that cannot be decoded. `same_data`
            compares two fingerprints.
        """
        if self._fingerprint is None:
            self._sampled_sizes = []
            digests = {"labels_sha256": self.labels, **self.image_sizes()}
            self._fingerprint = {
                "images": len(self),
                "identities": self.num_identities,
                **{key: _digest(values) for key, values in digests.items()},
                "image_sample": " ".join(map(self._image_digest, evenly(range(len(self)), SAMPLE))),
            }
        return dict(self._fingerprint)

    def aspect_note(self) -> str | None:
        """A note that counts images of another aspect than the network's input in the fingerprint's sample, or None."""
        self.fingerprint()
        return aspect_note(str(self.path), self._sampled_sizes, sampled=len(self) > SAMPLE)

    def image_sizes(self) -> Mapping[str, Integers]:
        """Sizes of the encoded images under the key that they get in the fingerprint; empty if unknown.

        Formats that count differently use different keys: a set that was converted still has the same fingerprint.
        """
        return {}

    def _image_digest(self, index: int) -> str:
        try:
            encoded = self.read(index)[0]
            height, width = decode(encoded, "an image of the sample").shape[:2]
        except DataError:  # the training names it, or replaces it
            return UNREADABLE
        self._sampled_sizes = [*self._sampled_sizes, (height, width)]
        return hashlib.sha256(encoded).hexdigest()[:16]

    @abstractmethod
    def read(self, index: int) -> tuple[bytes, int]:
        """Read an image.

        Returns:
            The encoded image (JPEG, PNG, BMP or WebP), and its label.

        Raises:
            DataError: the image cannot be read, or its label is not the one in `labels`.
        """

    def read_ahead(self, first: int, last: int) -> None:
        """Announce that images `first` to `last` - 1 are read soon; does nothing unless the format can use it."""
        return

    def read_ahead_some(self, indices: Integers) -> None:
        """Announce that these images are read soon, (M,) in ascending order: one process's images of a block.

        By default, each run of neighbours goes to `read_ahead`.
        """
        for run in np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1):
            if len(run):
                self.read_ahead(int(run[0]), int(run[-1]) + 1)

    def describe(self, index: int) -> str:
        """Name an image in an error, such as "train.rec, key 17"."""
        return f"{self.path}, image {index}"

    def identity_name(self, label: int) -> str:
        """Name an identity: by default its label."""
        return str(label)

    def image_name(self, index: int) -> str:
        """Name an image in a file of groups: by default its number, from 0."""
        return str(index)


Format = TypeVar("Format", bound=type[TrainingSet])

_REGISTRY: dict[str, type[TrainingSet]] = {}


def register_data_format(format: Format) -> Format:
    """Class decorator: `open_training_set` asks this format, too.

    Args:
        format: a subclass of `TrainingSet` with a `name` and a `find`.

    Raises:
        ConfigError: it has no name, or the name is taken.

    >>> @register_data_format
    ... class Nothing(TrainingSet):
    ...     name = "nothing"
    Traceback (most recent call last):
    ...
    facebones.errors.ConfigError: data format Nothing: define a name, and find(path) as a classmethod
    """
    if not format.name or format.find.__func__ is TrainingSet.find.__func__:  # type: ignore[attr-defined] # bound
        raise ConfigError(f"data format {format.__name__}: define a name, and find(path) as a classmethod")
    known = _REGISTRY.get(format.name)
    if known is not None and (known.__module__, known.__qualname__) != (format.__module__, format.__qualname__):
        raise ConfigError(f"data format '{format.name}' is registered already, by {known.__module__}; rename one")
    _REGISTRY[format.name] = format
    return format


def data_formats() -> list[type[TrainingSet]]:
    """The registered data formats, in the order in which `open_training_set` asks them.

    RecordIO comes first, then plug-ins, which may know a certain Parquet file better, then LMDB and Parquet, and image
    folders last: nearly every folder looks like one.
    """
    from facebones.data import image_folder, lmdb_set, parquet_set, record_set  # noqa: F401 (they register themselves)

    import_entry_points()
    places = {"recordio": 0, "lmdb": 2, "parquet": 2, "folder": 3}
    return sorted(_REGISTRY.values(), key=lambda format: places.get(format.name, 1))


def list_data_formats() -> list[str]:
    """Names of the registered data formats.

    >>> list_data_formats()
    ['recordio', 'lmdb', 'parquet', 'folder']
    """
    return [format.name for format in data_formats()]


def same_data(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Compare two fingerprints on the keys that both have; older versions knew fewer keys.

    An image of the sample counts only if both could decode it: a broken one may have been repaired.

    Returns:
        The keys that differ, [] for the same data.

    >>> first = {"images": 2, "identities": 2, "labels_sha256": "ab", "image_sample": "01 02"}
    >>> same_data(first, {"images": 2, "identities": 2, "labels_sha256": "ab"})
    []
    >>> same_data(first, first | {"image_sample": "01 -"})
    []
    >>> same_data(first, first | {"image_sample": "01 03"})
    ['image_sample']
    """
    keys = [key for key in {**dict.fromkeys(LABEL_KEYS), **now} if key in LABEL_KEYS or key in then]
    return [key for key in keys if not _agree(key, now.get(key), then.get(key))]


def _agree(key: str, one: Any, other: Any) -> bool:
    if key == "image_sample" and isinstance(one, str) and isinstance(other, str):
        pairs = list(zip_longest(one.split(" "), other.split(" ")))
        return all(a == b or (UNREADABLE in (a, b) and None not in (a, b)) for a, b in pairs)
    # As text: a damaged file may hold anything, such as a tensor, which has no single truth value.
    return repr(one) == repr(other)


def used_labels(labels: Integers) -> Integers:
    """The labels that have an image, ascending; ten million are not sorted for it.

    >>> used_labels(np.array([4, 0, 4])).tolist()
    [0, 4]
    """
    largest = int(labels.max())
    if largest >= LARGEST_TABLE:
        return np.unique(labels)
    used = np.zeros(largest + 1, np.bool_)
    used[labels] = True
    return np.flatnonzero(used)


def evenly(values: Sequence[Item], most: int) -> list[Item]:
    """Choose up to `most` of the values, evenly spaced, the first and the last among them.

    >>> evenly("abcdefghi", 3)
    ['a', 'e', 'i']
    >>> evenly("ab", 3)
    ['a', 'b']
    """
    places = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(np.int64)
    return [values[place] for place in places.tolist()]


def _digest(values: Integers) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<i8").data).hexdigest()
