"""A training set that is a record file, as InsightFace writes it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from facebones.data.image_folder import listing
from facebones.data.record_shards import compare_property, unused_labels
from facebones.data.recordio import HeaderTable, RecordFile, blocks, first_label
from facebones.data.training_set import Integers, TrainingSet, register_data_format
from facebones.errors import DataError, counted, some

# InsightFace stores keys as float32, which holds every whole number below this one.
EXACT_FLOATS = 2**24


@register_data_format
class RecordSet(TrainingSet):
    """The images of a `.rec` file, in the order of their keys.

    If the file has InsightFace's record 0 and identity records, the labels come from these and from the first image of
    each identity; otherwise from the header of every record.

    Args:
        path: the file.
        shard: it is one of several files of a set: what the labels of all are missing is not noted for one.

    Attributes:
        records: the file.
        complete: it has record 0 and the identity records.

    Raises:
        DataError: the file is missing or broken, has no image, or has a label that is not an identity.
    """

    name: ClassVar[str] = "recordio"

    @classmethod
    def find(cls, path: Path) -> bool:
        """Whether the path is a `.rec` file, or a folder that holds one."""
        if path.is_dir():
            return any(name.lower().endswith(".rec") for name in listing(path)[1])
        return path.suffix.lower() == ".rec" and path.is_file()

    @classmethod
    def open(cls, path: Path) -> "RecordSet":
        """Open the file, or the one in the folder.

        Raises:
            DataError: see the class; or the folder holds several `.rec` files and none of them is train.rec.
        """
        return cls(record_file(path))

    def __init__(self, path: str | os.PathLike[str], *, shard: bool = False) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self.records = RecordFile(path)
        self.complete = self._read_identities()
        if not self.complete:
            self._read_all_headers()
        if not shard:
            self.notes += [*compare_property(self, [self.path]), *unused_labels(self.path, self.labels)]

    def read(self, index: int) -> tuple[bytes, int]:
        """Read an image and its label; the label in the image's record must agree with its identity record."""
        _, image, label = self.read_record(index)
        return image, label

    def read_record(self, index: int) -> tuple[bytes, bytes, int]:
        """Read header, image and label; errors as in `read`."""
        head, image = self.records.split(int(self._places[index]))
        label = first_label(head)
        if label != (known := int(self.labels[index])):
            found = f"the image has label {label:g}, but its identity record says {known}"
            raise DataError(f"{self.describe(index)}: {found}; restore the file from its source")
        return head, image, known

    def read_ahead(self, first: int, last: int) -> None:
        """Have the system fetch a part of the file, in one piece if the images are neighbours in it."""
        self.records.read_ahead(self._at(np.arange(first, min(last, len(self)))))

    def read_ahead_some(self, indices: Integers) -> None:
        """Have the system fetch these images, without what lies between them."""
        self.records.read_ahead(self._at(indices))

    def image_sizes(self) -> Mapping[str, Integers]:
        """(N,) bytes of each image's record, from the index alone: sizes rounded up to 4, with the record's header."""
        spans, places = self.records.spans(), self._places
        own = spans[places.start : places.stop] if isinstance(places, range) else spans[places]
        return {"record_sizes_sha256": own}

    @property
    def positions(self) -> Integers:
        """(N,) position of each image in `records`; the array is made at each access."""
        return self._at(np.arange(len(self)))

    def _at(self, indices: Integers) -> Integers:
        """Positions of these images."""
        return self._places.start + indices if isinstance(self._places, range) else self._places[indices]

    def describe(self, index: int) -> str:
        """Name an image by file, key and byte offset."""
        return self.records.where(int(self._places[index]))

    def identity_name(self, label: int) -> str:
        """Name an identity by its label."""
        return str(label)

    def _read_identities(self) -> bool:
        """Read the labels from record 0 and the identity records; False if these are missing or do not fit."""
        limits = self._header_record()
        if limits is None:
            return False
        first_identity, end = limits
        by_key = self.records.key_runs.by_number()
        if self.records.key_runs.at(by_key.at([0, end - 1])).tolist() != [0, end - 1]:
            return False  # keys from 0: record 0, images, identities
        table = self.records.headers(by_key.at(np.arange(first_identity, end)))
        if (table.flags != 2).any() or (table.sizes != 0).any() or not np.isfinite(table.labels).all():
            return False
        ranges = table.labels.astype(np.int64)  # (identities, 2): first image key, last + 1
        ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
        edges = np.append(ranges[:, 0], first_identity)
        if edges[0] != 1 or (ranges[:, 1] != edges[1:]).any() or (ranges[:, 0] >= ranges[:, 1]).any():
            return False
        self._places = by_key.between(1, first_identity)
        first_images = by_key.at(ranges[:, 0])
        identities = self._labels(self.records.headers(first_images), first_images)
        self.labels = np.repeat(identities, ranges[:, 1] - ranges[:, 0])
        return True

    def _header_record(self) -> tuple[int, int] | None:
        """Read the first identity key and the last + 1 from record 0; None if they do not fit this file."""
        place = self.records.positions_of([0])
        if place[0] < 0:
            return None
        table = self.records.headers(place)
        first, end = table.labels[0].tolist()
        inside = 1 < first < end and end == len(self.records) and end < EXACT_FLOATS
        return (int(first), int(end)) if inside and table.flags[0] == 2 and table.sizes[0] == 0 else None

    def _read_all_headers(self) -> None:
        """Read the label of every record, except InsightFace's identity records: these have two labels and no image."""
        total = len(self.records)
        is_image, labels = np.zeros(total, np.bool_), np.zeros(total, np.int64)
        for block in blocks(total):  # in the order of the index, which is that of the file: a disk is fast in it
            positions = np.arange(block.start, min(block.stop, total))
            table = self.records.headers(positions)
            image = (table.flags != 2) | (table.sizes > 0)
            if not image.all():
                table, positions = HeaderTable(*(column[image] for column in table)), positions[image]
            is_image[positions] = True
            labels[positions] = self._labels(table, positions)
        images = np.count_nonzero(is_image)
        if images < total:
            reason = "record 0 and the identity records do not fit the images; the labels come from the images alone"
            self.notes.append(f"{self.path}: {reason}")
        if not images:
            raise DataError(f"{self.path}: {counted(total, 'record')}, but no image; restore the file from its source")
        by_key = self.records.key_runs.by_number().between(0, total)
        if isinstance(by_key, range) and images == total:
            self._places, self.labels = by_key, labels
        else:
            places = np.arange(total) if isinstance(by_key, range) else by_key
            self._places = places[is_image[places]]
            self.labels = labels[self._places]

    def _labels(self, table: HeaderTable, positions: Integers) -> Integers:
        labels = table.labels[:, 0]
        sound = np.isfinite(labels) & (labels >= 0) & (labels < EXACT_FLOATS) & (labels == np.floor(labels))
        if not sound.all():
            row = int(np.argmin(sound))
            place = self.records.where(int(positions[row]))
            raise DataError(f"{place}: label {labels[row]:g}; a label is a whole number from 0 to {EXACT_FLOATS - 1}")
        return labels.astype(np.int64)


def record_file(path: Path) -> Path:
    """The file itself, or the one in a folder that holds some.

    Raises:
        DataError: the folder holds several `.rec` files and none of them is train.rec.
    """
    if not path.is_dir():
        return path
    records = [name for name in listing(path)[1] if name.lower().endswith(".rec")]
    if "train.rec" in records or len(records) == 1:
        return path / ("train.rec" if "train.rec" in records else records[0])
    raise DataError(
        f"{path}: {len(records)} record files ({some(records)}) and no train.rec; name one of them, or"
        f" '{path}/*.rec' for all of them as the shards of one set"
    )
