"""Read RecordIO, the container format of mxnet, without mxnet; `record_writer` writes it.

A file is a sequence of parts, each `uint32 magic, uint32 kind << 29 | length, payload, zeros to a multiple of 4`,
little endian. A record is one part, unless its payload has the magic number at a multiple of 4: it is cut there into
several parts, so the magic at a multiple of 4 always starts a part. The text index next to the file has one line
`key<TAB>offset` per record.
"""

import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.mapped_file import MappedFile
from facebones.data.record_index import Integers, Runs, read_index
from facebones.errors import DataError

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH_BITS = 29
LENGTH_MASK = 2**LENGTH_BITS - 1
HEADER_BLOCK = 2**15  # the arrays of a block fit in the processor's cache

FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
WORD = np.dtype("<u4")
_NO_FLAG = bytes(4)


class Header(NamedTuple):
    """The header before the image in a record.

    Attributes:
        label: one number, or several if the record's flag is above 0.
        id: usually the record's key.
        id2: usually 0.
    """

    label: float | tuple[float, ...]
    id: int
    id2: int = 0


class HeaderTable(NamedTuple):
    """The headers of N records, column by column.

    Attributes:
        flags: (N,) number of labels that follow the header.
        labels: (N, 2) float32; the label, or the first two of several; NaN if there is none.
        ids: (N,) uint64.
        sizes: (N,) bytes after header and labels: the size of the image.
    """

    flags: Integers
    labels: npt.NDArray[np.float32]
    ids: npt.NDArray[np.uint64]
    sizes: Integers


def pack(header: Header, content: bytes = b"") -> bytes:
    """Join header, labels and content into a record; several labels follow the header.

    >>> pack(Header(label=3.0, id=7), b"image")[24:]
    b'image'
    """
    if isinstance(header.label, tuple):
        labels = np.asarray(header.label, dtype="<f4").tobytes()
        return _HEADER.pack(len(header.label), 0.0, header.id, header.id2) + labels + content
    return _HEADER.pack(0, header.label, header.id, header.id2) + content


def split(record: bytes) -> tuple[bytes, bytes]:
    """Split a record into its header with the labels, and its content.

    Raises:
        DataError: the record is too short for its header.
    """
    end = _HEADER.size
    if len(record) >= end and not record.startswith(_NO_FLAG):
        end += 4 * int.from_bytes(record[:4], "little")
    if len(record) < end:
        raise DataError(f"a record of {len(record)} bytes, but its header needs {end}; restore the file")
    return record[:end], record[end:]


def first_label(head: bytes) -> float:
    """Return the label in a header, or the first of several."""
    label: float = _LABEL.unpack_from(head, 4 if head.startswith(_NO_FLAG) else _HEADER.size)[0]
    return label


def unpack(record: bytes) -> tuple[Header, bytes]:
    """Read the header of a record.

    Returns:
        The header, and the content after it (the encoded image).

    Raises:
        DataError: the record is too short for its header.

    >>> unpack(pack(Header(label=(1.0, 2.0), id=7), b"image"))
    (Header(label=(1.0, 2.0), id=7, id2=0), b'image')
    """
    head, content = split(record)
    flag, label, identifier, second = _HEADER.unpack_from(head)
    if flag:
        return Header(struct.unpack_from(f"<{flag}f", head, _HEADER.size), identifier, second), content
    return Header(label, identifier, second), content


class RecordFile(MappedFile):
    """A memory-mapped RecordIO file; records are read in any order.

    Without an index, the file is scanned, and the key of a record is the id in its header. Instances can be pickled;
    each process maps the file on its first read.

    Attributes:
        path: the `.rec` file.
        index_path: the `.idx` file, or None if the file was scanned.
        key_runs: the keys of the records, in the order of the index.
        offsets: (N,) byte offset of each record.
        size: size of the file in bytes.

    Raises:
        DataError: the file or its index is missing, empty or broken; names the line or the byte offset.
    """

    def __init__(self, path: str | os.PathLike[str], index_path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(path)
        self._sorted_offsets: Integers | None = None
        beside = self.path.with_suffix(".idx")
        self.index_path = Path(index_path) if index_path is not None else beside if beside.is_file() else None
        self.key_runs = Runs(np.zeros(1, np.int64), np.zeros(0, np.int64))
        if self.index_path is not None:
            self.key_runs, self.offsets = read_index(self.index_path, self.path, self.size)
        else:
            self.offsets = self._scan()
            self.key_runs = Runs.of(map(self._ids, blocks(len(self.offsets))))
        self._refuse_duplicates()
        if self.index_path is not None:
            self._refuse_repeated_offsets(self.index_path)
            self._refuse_short_index(self.index_path)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def keys(self) -> Integers:
        """(N,) key of each record, in the order of the index; the array is made at each access."""
        return self.key_runs.at(np.arange(len(self)))

    def _ids(self, block: slice) -> Integers:
        """The ids in the headers of a block, as keys."""
        ids = self.headers(np.arange(block.start, min(block.stop, len(self)))).ids.astype(np.int64)
        if (ids < 0).any():
            self._fail(int(self.offsets[block][np.argmin(ids)]), "an id too large for a key")
        return ids

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sorted_offsets": None}

    def where(self, position: int) -> str:
        """Name a record in an error: file, key and byte offset."""
        key = f", key {self.key_runs.at(position)}" if len(self.key_runs) else ""
        return f"{self.path}{key}, byte {self.offsets[position]}"

    def positions_of(self, keys: npt.ArrayLike) -> Integers:
        """Positions of keys, -1 for an unknown key; same shape as `keys`."""
        return self.key_runs.find(keys)

    def read_key(self, key: int) -> bytes:
        """Read the record with this key.

        Raises:
            DataError: no record has this key, or the record is broken.
        """
        position = int(self.positions_of(key))
        if position < 0:
            lowest, highest = self.key_runs.at(self.key_runs.by_number().at([0, len(self) - 1]))
            raise DataError(f"{self.path}: no record has key {key}; keys are {lowest} to {highest}")
        return self.read(position)

    def read(self, position: int) -> bytes:
        """Read the record at this position in the index, and join its parts.

        Raises:
            DataError: the record is broken; names file and byte offset.
        """
        return self._record(position)[0]

    def _record(self, position: int) -> tuple[bytes, int]:
        """The record with its parts joined, and the offset after it.

        It ends where the next one in the file begins, at the latest: records within one another, of which a small file
        can hold thousands, would be read again and again.
        """
        offset, ascending = int(self.offsets[position]), self._ascending
        place = int(ascending.searchsorted(offset, side="right"))
        end = int(ascending[place]) if place < len(ascending) else self.size
        kind, payload, following = self._part(offset, end)
        if kind == WHOLE:
            return payload, following
        if kind != FIRST:
            self._fail(offset, f"a record cannot start with a part of kind {kind}")
        parts = [payload]
        while kind != LAST:
            offset = following
            kind, payload, following = self._part(offset, end)
            if kind not in (MIDDLE, LAST):
                self._fail(offset, f"part of kind {kind} inside a record of several parts")
            parts.append(payload)
        return MAGIC_BYTES.join(parts), following

    def split(self, position: int) -> tuple[bytes, bytes]:
        """Read a record as its header with the labels, and its content.

        Raises:
            DataError: the record is broken; names file, key and byte offset.
        """
        record = self.read(position)
        try:
            return split(record)
        except DataError as error:
            raise DataError(f"{self.where(position)}: {error}") from error

    def read_ahead(self, positions: Integers) -> None:
        """Tell the system that these records are read soon; it fetches their pages in the background."""
        offsets = self.offsets[positions]
        self.fetch(offsets, self._ends_of(offsets))

    def _ends_of(self, offsets: Integers) -> Integers:
        """Where the records at these offsets end, at the latest: at the next record, or the end of the file."""
        following = np.searchsorted(self._ascending, offsets, side="right")
        inside = following < len(self._ascending)
        return np.where(inside, self._ascending.take(following, mode="clip"), self.size)

    def spans(self) -> Integers:
        """(N,) bytes from the start of each record to the start of the next in the file, from the offsets alone."""
        order = None if self._in_file_order() else np.argsort(self.offsets, kind="stable")
        ascending = self.offsets if order is None else self.offsets[order]
        spans = np.empty(len(self), np.int64)
        np.subtract(ascending[1:], ascending[:-1], out=spans[:-1])
        spans[-1] = self.size - ascending[-1]
        if order is not None:
            spans[order] = spans.copy()
        return spans

    @property
    def _ascending(self) -> Integers:
        """(N,) offsets in the order of the file."""
        if self._sorted_offsets is None:
            self._sorted_offsets = self.offsets if self._in_file_order() else np.sort(self.offsets)
        return self._sorted_offsets

    def _in_file_order(self) -> bool:
        return bool((self.offsets[1:] > self.offsets[:-1]).all())

    def headers(self, positions: Integers) -> HeaderTable:
        """Read the headers of many records at once, without their images.

        Args:
            positions: (N,) positions in the index.

        Raises:
            DataError: a record is broken; names file and byte offset.
        """
        tables = (self._header_block(positions[block]) for block in blocks(max(len(positions), 1)))
        return HeaderTable(*map(np.concatenate, zip(*tables, strict=True)))

    def _header_block(self, positions: Integers) -> HeaderTable:
        offsets = self.offsets[positions]
        words = np.frombuffer(self.content, WORD, self.size // 4)
        lengths, kinds = self._check_frames(words, offsets)
        columns = np.minimum((offsets >> 2)[:, None] + np.arange(2, 10), len(words) - 1)
        header = words[columns]  # (N, 8): flag, label, id, id, id2, id2, first and second of several labels
        flags = header[:, 0].astype(np.int64)
        labels = np.where(flags[:, None] > 0, header[:, 6:8], header[:, [1, 1]]).view(np.float32)
        labels[flags < 2, 1] = np.nan
        ids = header[:, 2].astype(np.uint64) | header[:, 3].astype(np.uint64) << np.uint64(32)
        table = HeaderTable(flags, labels, ids, lengths - _HEADER.size - 4 * flags)
        for row in np.flatnonzero((kinds != WHOLE) | (table.sizes < 0)):
            self._fill_row(table, int(row), int(positions[row]))
        self.forget()
        return table

    def _fill_row(self, table: HeaderTable, row: int, position: int) -> None:
        """Read one header the slow way: the record has several parts, or is too short and refused here."""
        head, content = self.split(position)
        header, _ = unpack(head)
        several = header.label if isinstance(header.label, tuple) else (header.label, np.nan)
        table.flags[row] = (len(head) - _HEADER.size) // 4
        table.labels[row] = (*several, np.nan)[:2]
        table.ids[row] = header.id
        table.sizes[row] = len(content)

    def _check_frames(self, words: npt.NDArray[np.uint32], offsets: Integers) -> tuple[Integers, Integers]:
        """Lengths and kinds of the parts at `offsets`, with the checks of `_part`."""
        first = offsets >> 2
        lengths = (words[first + 1] & LENGTH_MASK).astype(np.int64)
        broken = (words[first] != MAGIC) | (offsets + 8 + (lengths + 3 & ~3) > self.size)
        if broken.any():
            self._part(int(offsets[broken.argmax()]))
        return lengths, (words[first + 1] >> LENGTH_BITS).astype(np.int64)

    def _part(self, offset: int, end: int | None = None) -> tuple[int, bytes, int]:
        """Kind and payload of the part at `offset`, and the offset after it, which is `end` at most."""
        if offset + 8 > self.size:
            self._fail(offset, f"the file ends at byte {self.size} in the middle of a record")
        content = self.content
        magic, word = FRAME.unpack_from(content, offset)
        if magic != MAGIC:
            self._fail(offset, f"0x{magic:08x} instead of the magic number 0x{MAGIC:08x}")
        length = word & LENGTH_MASK
        following = offset + 8 + (length + 3 & ~3)
        if following > self.size:
            self._fail(offset, f"the record claims {length} bytes, but the file ends at byte {self.size}")
        if end is not None and following > end:
            self._fail(offset, f"the record claims {length} bytes, but the index has another at byte {end}")
        return word >> LENGTH_BITS, content[offset + 8 : offset + 8 + length], following

    def _scan(self) -> Integers:
        """Offsets of all records: go from part to part, and read eight bytes of each."""
        content, size, take = self.content, self.size, FRAME.unpack_from
        starts = array("q")
        offset = last = 0
        inside = False
        while offset + 8 <= size:
            magic, word = take(content, offset)
            kind = word >> LENGTH_BITS
            if magic != MAGIC or kind > LAST or (kind >= MIDDLE) != inside:
                break
            if not inside:
                starts.append(offset)
            inside = kind in (FIRST, MIDDLE)
            last = offset
            offset += 8 + ((word & LENGTH_MASK) + 3 & ~3)
        if offset != size or inside:
            self._fail_scan(last if offset > size else offset)
        return np.frombuffer(starts, dtype=np.int64)

    def _fail_scan(self, offset: int) -> NoReturn:
        if offset == self.size:
            self._fail(offset, "the file ends inside a record of several parts")
        kind, _, _ = self._part(offset)
        self._fail(offset, f"a part of kind {kind} out of its order")

    def _refuse_duplicates(self) -> None:
        key = self.key_runs.repeated()
        if key is not None:
            first, second = np.flatnonzero(self.keys == key)[:2].tolist()
            place = f"{self.index_path}, line {second + 1}" if self.index_path else self.where(second)
            other = f"byte {self.offsets[first]} has it too"
            raise DataError(f"{place}: key {key} a second time, {other}; {self._way_on()}")

    def _way_on(self) -> str:
        """What to do about doubled keys: scan the file without its index, if its records have different ids."""
        if self.index_path is None:
            return "two files may have been joined: restore them, and name both as training data"
        ids = self.headers(np.arange(len(self.offsets))[np.unique(self.offsets, return_index=True)[1]]).ids
        if len(np.unique(ids)) < len(ids):
            return "the records have doubled ids, too; restore both files from one source"
        return f"restore the index, or remove {self.index_path.name} to have the .rec scanned without it"

    def _refuse_repeated_offsets(self, index: Path) -> None:
        """Refuse several keys for one record: a small file would become any number of images."""
        again = self._ascending[1:] == self._ascending[:-1]
        if again.any():
            offset = self._ascending[1:][again.argmax()]
            first, second = np.flatnonzero(self.offsets == offset)[:2].tolist()
            known = (
                f"key {self.key_runs.at(second)}: byte offset {offset} is that of key {self.key_runs.at(first)}, too"
            )
            fix = "restore the index, or remove it to have the .rec scanned"
            raise DataError(f"{index}, line {second + 1}: {known}; {fix}")

    def _refuse_short_index(self, index: Path) -> None:
        """Refuse an index that is cut short, which would silently lose images: its last record must end the file."""
        last = int(self.offsets.argmax())
        _, end = self._record(last)
        if end < self.size:
            known = f"its last record, key {self.key_runs.at(last)}, ends at byte {end}"
            fix = "restore the index, or remove it to have the .rec scanned"
            raise DataError(f"{index}: cut short: {known}, but {self.path} has {self.size} bytes; {fix}")

    def _fail(self, offset: int, reason: str) -> NoReturn:
        raise DataError(f"{self.path}, byte {offset}: {reason}; restore the file from its source")


def blocks(count: int) -> Iterator[slice]:
    """Cut `count` records into blocks whose headers are read at once."""
    return (slice(start, start + HEADER_BLOCK) for start in range(0, count, HEADER_BLOCK))
