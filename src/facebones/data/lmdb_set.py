"""Training sets in LMDB databases, in the layouts that face recognition uses.

- An image and a label in each value (Vec2Face, HSFace, folder2lmdb), with `__len__` and `__keys__` beside them: see
  `facebones.data.packed_values`. The order is that of the numbers that are the keys.
- `image-000000001` and `label-000000001`, counted by `num-samples`.
- An encoded image in each value, whose key is its path `<identity>/<name>`, or is in a list of keys and labels beside.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from facebones.data.images import image_suffix
from facebones.data.lmdb_file import LmdbFile
from facebones.data.mapped_file import MANY_BYTES
from facebones.data.named_labels import find_key_list, number_labels, read_key_list
from facebones.data.packed_values import Packed, Span, is_message, lone_number, unpack_message, unpack_pickle
from facebones.data.training_set import Integers, TrainingSet, register_data_format
from facebones.errors import DataError, counted, some

DATABASE = "data.mdb"
ENDINGS = frozenset({".lmdb", ".mdb"})
MOST_DIGITS = 18  # of a key that is a number
_ABOUT = re.compile(rb"__[a-z_]+__|num-samples")  # entries about the set
_OF_PAIR = re.compile(rb"(image|label)-([0-9]{1,18})")


@register_data_format
class LmdbSet(TrainingSet):
    """The images of an LMDB database.

    Opening it reads the tree of keys, and of each packed value the label. No library reads the database, so there is
    nothing to install, and data workers share it however they start.

    Args:
        path: a file such as `faces.lmdb`, a folder with `data.mdb`, or a folder with one of these.

    Attributes:
        file: the database.

    Raises:
        DataError: the database is missing or broken, has no image, or none of the layouts.
    """

    name: ClassVar[str] = "lmdb"

    @classmethod
    def find(cls, path: Path) -> bool:
        """Whether the path is a database, or a folder that holds one."""
        return bool(_databases(path))

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        databases = _databases(self.path)
        if len(databases) > 1:
            names = some([each.name for each in databases])
            raise DataError(f"{path}: {len(databases)} LMDB databases ({names}); name one of them")
        self.file = LmdbFile(databases[0] if databases else self.path)
        self.notes: list[str] = []
        self._names: list[str] | None = None
        self._pickled = False
        entries = _Entries(self.file)
        if not len(entries):
            raise DataError(f"{path}: an LMDB database without an image; restore it from its source")
        self._read(entries)

    def read(self, index: int) -> tuple[bytes, int]:
        """Read an image and its label."""
        start = int(self._starts[index])
        value = self.file.value(start, int(self._sizes[index]))
        if self._pickled:
            image = unpack_pickle(value, self.describe(index)).image
            assert isinstance(image, bytes)  # noqa: S101 (of a pickle)
            value = image
        return value, int(self.labels[index])

    def image_sizes(self) -> Mapping[str, Integers]:
        """(N,) bytes of each image."""
        return {"file_sizes_sha256": self._image_sizes}

    def read_ahead(self, first: int, last: int) -> None:
        """Have the system fetch these images."""
        self.read_ahead_some(np.arange(first, min(last, len(self))))

    def read_ahead_some(self, indices: Integers) -> None:
        """Have the system fetch these images, without what lies between them."""
        starts = self._starts[indices]
        self.file.fetch(starts, starts + self._sizes[indices])

    def describe(self, index: int) -> str:
        """Name an image by file and byte offset."""
        return f"{self.file.path}, byte {self._starts[index]}"

    def identity_name(self, label: int) -> str:
        """Name an identity by its name in the database, or by its number."""
        return str(label) if self._names is None else self._names[label]

    # ---------------------------------------------------------------------------------------------- the layouts

    def _read(self, entries: "_Entries") -> None:
        """Fill places, sizes and labels from the entries."""
        if (pairs := entries.pairs()) is not None:
            self._read_pairs(entries, *pairs)
            return
        first = self.file.value(int(entries.offsets[0]), min(int(entries.sizes[0]), 64))
        if image_suffix(first) is None:
            self._read_packed(entries)
        else:
            self._read_images(entries)

    def _read_packed(self, entries: "_Entries") -> None:
        """Values of an image and a label each."""
        order = entries.by_number()
        self._place(entries, order)
        self._pickled = not is_message(self.file.content[int(self._starts[0])])
        labels: list[int | bytes] = [0] * len(order)
        self._image_sizes = np.zeros(len(order), np.int64)
        since = 0
        for index in np.argsort(self._starts, kind="stable").tolist():
            image, labels[index] = self._unpack(index)
            since += int(self._sizes[index])
            if isinstance(image, Span):
                self._starts[index], self._sizes[index] = image
            self._image_sizes[index] = image.size if isinstance(image, Span) else len(image)
            if since > MANY_BYTES:
                self.file.forget()
                since = 0
        self._set_labels(labels)
        self._compare_length(entries)

    def _unpack(self, index: int) -> Packed:
        span = Span(int(self._starts[index]), int(self._sizes[index]))
        if self._pickled:
            return unpack_pickle(self.file.value(*span), self.describe(index))
        return unpack_message(self.file.content, span, self.describe(index))

    def _read_pairs(self, entries: "_Entries", images: Integers, labels: Integers) -> None:
        """Entries of an image, each with an entry of its label."""
        self._place(entries, images)
        self._image_sizes = self._sizes
        spans = zip(entries.offsets[labels].tolist(), entries.sizes[labels].tolist(), strict=True)
        self._set_labels([self.file.value(*span) for span in spans])

    def _read_images(self, entries: "_Entries") -> None:
        """Values that are images, with labels in a list beside, or in their keys."""
        listed = find_key_list(self.path)
        if listed is not None:
            label_of = read_key_list(listed)
            keys = [key for key in entries.keys if key in label_of]
            if not keys:
                raise DataError(f"{listed}: names no key of {self.file.path}, such as {entries.keys[0]!r:.60}")
            order = np.flatnonzero(np.fromiter((key in label_of for key in entries.keys), np.bool_, len(entries)))
            for count, what in ((len(label_of) - len(keys), "no image"), (len(entries) - len(keys), "no label")):
                if count:
                    self.notes.append(f"{self.path}: {counted(count, 'key')} with {what} left out, by {listed.name}")
            labels: Sequence[int | bytes] = [label_of[key] for key in keys]
        else:
            order = np.arange(len(entries))
            labels = [key.rpartition(b"/")[0] for key in entries.keys]
            if not all(labels):
                raise DataError(
                    f"{self.path}: images without labels: keys such as {entries.keys[0]!r:.60}; put a text file with a"
                    " line 'key label' for each beside them, or use keys <identity>/<name>"
                )
        self._place(entries, order)
        self._image_sizes = self._sizes
        self._set_labels(labels)

    def _place(self, entries: "_Entries", order: Integers) -> None:
        self._starts, self._sizes = entries.offsets[order], entries.sizes[order]

    def _set_labels(self, labels: Sequence[int | bytes]) -> None:
        self.labels, self._names = number_labels(labels, self.describe)

    def _compare_length(self, entries: "_Entries") -> None:
        """Note a `__len__` that disagrees with the data."""
        said = lone_number(entries.about.get(b"__len__", b""))
        if said not in (None, len(self)):
            self.notes.append(f"{self.path}: __len__ says {said} images, but the database has {len(self)}")


class _Entries:
    """The entries of a database but those about the set, in the order of their keys.

    Attributes:
        keys: N keys.
        offsets: (N,) where each value begins.
        sizes: (N,) bytes of each value.
        about: entries about the set: `__len__`.
    """

    def __init__(self, file: LmdbFile) -> None:
        self.file = file
        self.keys: list[bytes] = []
        self.about: dict[bytes, bytes] = {}
        offsets, sizes = [], []
        for page in file.pages():
            kept = [_ABOUT.fullmatch(key) is None for key in page.keys]
            if not all(kept):
                self.about.update(self._about(page.keys, kept, page.offsets, page.sizes))
            self.keys += [key for key, keep in zip(page.keys, kept, strict=True) if keep]
            offsets.append(page.offsets[kept])
            sizes.append(page.sizes[kept])
        self.offsets = np.concatenate([np.zeros(0, np.int64), *offsets])
        self.sizes = np.concatenate([np.zeros(0, np.int64), *sizes])
        self._refuse_overlaps()

    def __len__(self) -> int:
        return len(self.keys)

    def _about(
        self, keys: list[bytes], kept: list[bool], offsets: Integers, sizes: Integers
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, keep, offset, size in zip(keys, kept, offsets.tolist(), sizes.tolist(), strict=True):
            if not keep and size <= MOST_DIGITS:
                yield key, self.file.value(offset, size)

    def _refuse_overlaps(self) -> None:
        """Refuse values within one another: a small file would hold any number of large images."""
        order = np.argsort(self.offsets, kind="stable")
        ends = self.offsets + self.sizes
        within = self.offsets[order][1:] < ends[order][:-1]
        if within.any():
            offset = self.offsets[order][1:][within.argmax()]
            raise DataError(f"{self.file.path}, byte {offset}: a value within another; restore the file")

    def by_number(self) -> Integers:
        """The order of the keys as numbers; of other keys, their own."""
        if not all(key.isdigit() and len(key) <= MOST_DIGITS for key in self.keys):
            return np.arange(len(self))
        return np.argsort(np.fromiter(map(int, self.keys), np.int64, len(self)), kind="stable")

    def pairs(self) -> tuple[Integers, Integers] | None:
        """Places of `image-N` and of `label-N`, in the order of the numbers; None for another layout."""
        if not all(map(_OF_PAIR.fullmatch, self.keys[:1] + self.keys[-1:])):
            return None
        places: dict[bytes, dict[int, int]] = {b"image": {}, b"label": {}}
        for place, key in enumerate(self.keys):
            match = _OF_PAIR.fullmatch(key)
            if match is None:
                raise DataError(f"{self.file.path}: key {key!r:.60} among image-N and label-N; remove it")
            places[match[1]][int(match[2])] = place
        images, labels = places[b"image"], places[b"label"]
        if lone := sorted(images.keys() ^ labels.keys()):
            raise DataError(f"{self.file.path}: image-N and label-N do not match at N = {some(lone)}; restore the file")
        numbers = sorted(images)
        return np.array([images[each] for each in numbers]), np.array([labels[each] for each in numbers])


def _databases(path: Path) -> list[Path]:
    """The databases that a path names: itself, `data.mdb` in it, or those in the folder by their endings."""
    if path.is_file():
        return [path] if path.suffix.lower() in ENDINGS else []
    if not path.is_dir():
        return []
    if (path / DATABASE).is_file():
        return [path]
    return sorted(
        each
        for each in path.iterdir()
        if each.suffix.lower() in ENDINGS and (each.is_file() or (each / DATABASE).is_file())
    )
