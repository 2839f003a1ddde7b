"""Convert data sets between the formats of the field, without touching the bytes of any image."""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facebones.data.folders import find_records, open_labelled_images, pair_sets
from facebones.data.image_folder import ImageFolder
from facebones.data.images import decode, image_suffix, read_image_file
from facebones.data.joined_sets import data_roots
from facebones.data.pair_bins import PairSet, PixelOrder, read_pairs, write_pairs
from facebones.data.pair_lists import PAIR_LIST_SUFFIXES, read_pair_list
from facebones.data.record_set import RecordSet
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, RecordFile, pack
from facebones.data.training_set import TrainingSet, data_formats
from facebones.datatools.partial_folder import (
    PartialFolder,
    is_occupied,
    pairs_origin,
    records_origin,
    refuse_existing,
)
from facebones.errors import DataError, RunError, counted
from facebones.system.files import atomic_write, publish_folder, temporary_folder
from facebones.system.processes import CAN_FORK, map_forked
from facebones.system.progress import printable, track

# In an image folder that was made from a .rec: the same records, with the path of the image instead of the image.
HEADERS_FOLDER = ".rec_headers"
BLOCK_RECORDS = 256
BLOCKS_WORTH_A_PROCESS = 8
_IMAGE_PATH = re.compile(rb"[0-9]+/[0-9]+\.(jpg|png|bmp|webp)")


# Of a record: its key; the record with a path instead of the image; that path or ""; whether the file existed.
_Unpacked = tuple[int, bytes, str, bool]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of `convert`.

    Attributes:
        source: the data set that was read.
        destination: the data set that was written.
        images: number of images.
        groups: number of identities or pairs, in words.
        kept: images that an interrupted conversion had written.
        notes: messages for the user.
    """

    source: Path
    destination: Path
    images: int
    groups: str
    kept: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        kept = f", {self.kept} of them kept from an earlier run" if self.kept else ""
        head = f"{self.source} -> {self.destination}: {counted(self.images, 'image')} of {self.groups}{kept}"
        return "\n".join(printable(line, breaks=False) for line in (head, *self.notes))


def convert(
    source: Path,
    destination: Path,
    *,
    root: Path | None = None,
    resume: bool = False,
    pixel_order: PixelOrder | None = None,
) -> Conversion:
    """Convert a data set; the kind of `source` and the ending of `destination` decide how.

    ===================================  ==================================================
    source                               destination
    ===================================  ==================================================
    `.rec` file or InsightFace folder    image folder
    image folder                         InsightFace folder, or a file that ends in `.rec`
    several folders or a pattern         InsightFace folder, or a file that ends in `.rec`
    LMDB, Parquet, format of a plug-in   InsightFace folder, or a file that ends in `.rec`
    pair list (`.txt`, `.csv`, `.tsv`)   file that ends in `.bin`
    `.bin` file                          folder of images with a `pairs.txt`
    `.bin` file                          file that ends in `.bin`: lists of bytes and booleans
    ===================================  ==================================================

    Args:
        source: a data set.
        destination: the file or folder to create.
        root: the folder that the paths in a pair list start from; by default the folder of the list.
        resume: continue an interrupted conversion into a folder, and keep its complete files.
        pixel_order: order of the channels in a `.bin` of decoded pixels, "bgr" by default.

    Raises:
        DataError: the source is missing or broken, or the destination exists.
        RunError, ConfigError: the destination cannot be written.
    """
    to_file = destination.suffix.lower() in {".bin", ".rec"}
    ending = source.suffix.lower() if source.is_file() else ""
    if root is not None and ending not in PAIR_LIST_SUFFIXES:
        raise DataError(f"{source}: --root goes with a pair list only ({_endings()}); leave it out")
    if pixel_order is not None and ending != ".bin":
        raise DataError(f"{source}: --pixel-order goes with a .bin file of decoded pixels only; leave it out")
    if ending in PAIR_LIST_SUFFIXES and destination.suffix.lower() == ".bin":
        return _list_to_pairs(source, destination, root or source.parent)
    if ending == ".bin" and destination.suffix.lower() != ".rec":
        pairs = read_pairs(source, pixel_order)
        return _pairs_to_folder(pairs, source, destination, resume) if not to_file else _rewritten(pairs, destination)
    roots = data_roots(source)
    if len(roots) > 1 and destination.suffix.lower() != ".bin":
        return _to_records(open_labelled_images(source), source, destination)
    if destination.suffix.lower() != ".bin" and _has_other_format(roots[0]):
        return _to_records(open_labelled_images(source), source, destination)
    if ending in {"", ".rec"}:
        records = find_records(roots[0])  # a pattern may match one folder only
        if records is not None and not to_file:
            return _records_to_folder(records, destination, resume)
        if records is None and destination.suffix.lower() != ".bin":
            return _to_records(ImageFolder(roots[0]), source, destination)
    known = ".rec to folder, folder, LMDB or Parquet to folder or .rec, pair list to .bin, .bin to folder or .bin"
    raise DataError(f"{source}: cannot be converted to {destination}; the conversions are {known}")


def _has_other_format(path: Path) -> bool:
    """Whether the first data format that recognises a place is neither that of record files nor that of folders."""
    found = next((each for each in data_formats() if each.find(path)), None)
    return found is not None and found not in (RecordSet, ImageFolder)


def _records_to_folder(source: Path, destination: Path, resume: bool) -> Conversion:
    """Write each image to `label/key.ending`, and the rest of the records to HEADERS_FOLDER."""
    data = RecordSet(source)
    with (
        PartialFolder(destination, resume, "conversion", records_origin(data), rewritten=HEADERS_FOLDER) as folder,
        RecordWriter(folder.path / HEADERS_FOLDER / "train.rec") as headers,
        closing(_unpacked(data, folder)) as unpacked,
    ):
        for key, record, name, was_there in track(unpacked, "converting", len(data.records)):
            headers.write(key, record)
            if name:
                folder.count(name, was_there)
        kept = folder.kept
        if (size := source.with_name("property")).is_file():
            folder.place(f"{HEADERS_FOLDER}/property", size.read_bytes())
    notes = list(data.notes)
    if sets := pair_sets(source):
        notes.append(f"left where they are: {', '.join(path.name for path in sets)}; convert each by itself")
    return _training_summary(source, destination, data, notes, kept)


def _unpacked(data: RecordSet, folder: PartialFolder) -> Generator[_Unpacked]:
    """Write the images to the folder, in several processes if there are many: most of the time is system time."""
    unpack = _Unpacker(data, folder).unpack
    order = np.argsort(data.records.offsets, kind="stable")
    blocks = [order[start : start + BLOCK_RECORDS] for start in range(0, len(order), BLOCK_RECORDS)]
    processes = min(os.cpu_count() or 1, len(blocks) // BLOCKS_WORTH_A_PROCESS)
    if processes < 2 or not CAN_FORK:
        yield from chain.from_iterable(map(unpack, blocks))
        return
    with closing(map_forked(lambda block: list(unpack(block)), blocks, processes)) as results:
        yield from chain.from_iterable(results)


class _Unpacker:
    """Writes the images of records to files."""

    def __init__(self, data: RecordSet, folder: PartialFolder) -> None:
        self._data, self._folder = data, folder
        self._keys = data.records.keys
        self._index_of = np.full(len(data.records), -1)
        self._index_of[data.positions] = np.arange(len(data))
        self._name = f"%0{len(str(data.num_identities - 1))}d/%0{len(str(self._keys.max()))}d%s"

    def unpack(self, positions: npt.NDArray[np.int64]) -> Iterator[_Unpacked]:
        """Write the images of these records; yield the rows of the file of headers."""
        columns = (positions, self._keys[positions], self._index_of[positions])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        data, put, path_of = self._data, self._folder.put, self._name
        for position, key, index in rows:
            if index < 0:
                yield key, data.records.read(position), "", False
                continue
            head, image, label = data.read_record(index)
            suffix = image_suffix(image) or _refuse_image(image, data.describe(index))
            name = path_of % (label, key, suffix)
            yield key, head + name.encode(), name, put(name, image)


def _to_records(data: TrainingSet, source: Path, destination: Path) -> Conversion:
    """Write `train.rec`, `train.idx` and `property` as InsightFace does, or as they were before a conversion."""
    notes = list(data.notes)
    if destination.suffix.lower() == ".rec":
        for path in (destination, destination.with_suffix(".idx")):
            refuse_existing(path)
        if (kept := destination.with_name("property")).exists():
            notes.append(f"{kept}: unchanged, because it belongs to another set; {destination.name} gets none")
        _write_records(data, destination)
    else:
        with _new_folder(destination) as building:
            _write_records(data, building / "train.rec")
    return _training_summary(source, destination, data, notes)


def _write_records(data: TrainingSet, path: Path) -> None:
    headers = data.path / HEADERS_FOLDER
    with RecordWriter(path) as writer:
        if isinstance(data, ImageFolder) and (headers / "train.rec").is_file():
            _rebuild_records(data, RecordFile(headers / "train.rec"), writer)
        else:
            _number_records(data, writer)
    known = headers / "property"
    if (own := path.with_name("property")).exists():
        return
    with atomic_write(own) as file:
        file.write(known.read_bytes() if known.is_file() else _property(data))


def _number_records(data: TrainingSet, writer: RecordWriter) -> None:
    """Write the images with keys from 1, then a record per identity, then record 0: the order of face2rec."""
    by_identity = np.argsort(data.labels, kind="stable").tolist()  # of joined folders, an identity is in several places
    for key, index in enumerate(track(by_identity, "converting"), 1):
        image, label = data.read(index)
        if image_suffix(image) is None:
            _refuse_image(image, data.describe(index))
        writer.write(key, pack(Header(float(label), key), image))
    ends = np.cumsum(np.bincount(data.labels)) + 1
    first_identity = len(data) + 1
    for label, (start, end) in enumerate(zip([1, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        key = first_identity + label
        writer.write(key, pack(Header((float(start), float(end)), key)))
    limits = (float(first_identity), float(first_identity + len(ends)))
    writer.write(0, pack(Header(limits, 0)))


def _rebuild_records(data: ImageFolder, headers: RecordFile, writer: RecordWriter) -> None:
    """Write the records as they were, with each path replaced by its image."""
    fix = f"restore the folder, or remove {data.path / HEADERS_FOLDER} to write it with new keys"
    expected = int((headers.headers(np.arange(len(headers))).sizes > 0).sum())
    if expected != len(data):
        raise DataError(f"{data.path}: {counted(len(data), 'image')}, but {expected} came from the .rec; {fix}")
    prefix = f"{data.path}/"
    for position, key in enumerate(track(headers.keys.tolist(), "converting")):
        head, name = headers.split(position)
        if name:
            if _IMAGE_PATH.fullmatch(name) is None:
                raise DataError(f"{headers.where(position)}: {name[:40]!r} is no path of an image; {fix}")
            path = prefix + name.decode()
            try:
                head += read_image_file(path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}; {fix}") from error
        writer.write(key, head)


def _property(data: TrainingSet) -> bytes:
    image, _ = data.read(0)
    height, width = decode(image, data.describe(0)).shape[:2]
    return b"%d,%d,%d\n" % (data.num_identities, height, width)


def _list_to_pairs(source: Path, destination: Path, root: Path) -> Conversion:
    refuse_existing(destination)
    pairs = read_pair_list(source, root)
    write_pairs(destination, pairs.images, pairs.is_same)
    return _pairs_summary(source, destination, pairs)


def _rewritten(pairs: PairSet, destination: Path) -> Conversion:
    """A `.bin` in the plain form that every reader takes."""
    assert pairs.path is not None  # noqa: S101 (it was read from a file)
    refuse_existing(destination)
    write_pairs(destination, pairs.images, pairs.is_same)
    return _pairs_summary(pairs.path, destination, pairs)


def _pairs_to_folder(pairs: PairSet, source: Path, destination: Path, resume: bool) -> Conversion:
    width = len(str(len(pairs) - 1))
    names = []
    with PartialFolder(destination, resume, "conversion", pairs_origin(pairs, source)) as folder:
        for index, image in enumerate(track(pairs.images, "converting")):
            suffix = image_suffix(image) or _refuse_image(image, f"{source}, image {index}")
            names.append(f"images/{index // 2:0{width}d}_{'ab'[index % 2]}{suffix}")
            folder.place(names[-1], image)
        kept = folder.kept
        rows = zip(names[::2], names[1::2], pairs.is_same.tolist(), strict=True)
        folder.place("pairs.txt", "".join(f"{first}\t{second}\t{same:d}\n" for first, second, same in rows).encode())
    return _pairs_summary(source, destination, pairs, kept)


def _pairs_summary(source: Path, destination: Path, pairs: PairSet, kept: int = 0) -> Conversion:
    images, groups = len(pairs.images), counted(len(pairs), "pair")
    return Conversion(
        source=source, destination=destination, images=images, groups=groups, kept=kept, notes=pairs.notes
    )


def _training_summary(
    source: Path, destination: Path, data: TrainingSet, notes: list[str], kept: int = 0
) -> Conversion:
    groups = counted(len(np.unique(data.labels)), "identity", "identities")
    return Conversion(
        source=source, destination=destination, images=len(data), groups=groups, kept=kept, notes=tuple(notes)
    )


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """Yield a hidden folder that is renamed to `destination` when the block ends without an error."""
    if is_occupied(destination):
        refuse_existing(destination)
    with temporary_folder(destination) as building:
        yield building
        if not (building / "train.rec").is_file():  # what was written after that has made the folder again
            raise RunError(f"{building}: was removed while it was filled; run the same command again")
        publish_folder(building, destination)


def _refuse_image(image: bytes, what: str) -> str:
    start = image[:8].hex(" ") or "nothing"
    raise DataError(f"{what}: {len(image)} bytes that are no JPEG, PNG, BMP or WebP image (they start with {start})")


def _endings() -> str:
    return ", ".join(sorted(PAIR_LIST_SUFFIXES))
