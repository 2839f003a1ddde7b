"""RecordIO, the container of mxnet, read and written without mxnet.

A file is a row of parts, each `uint32 magic, uint32 kind << 29 | length, payload, zeros to a multiple of 4`, little
endian. A payload that holds the magic at a multiple of 4 is cut there into several parts, so that the magic at a
multiple of 4 always starts a part. The text index beside the file has a line `key<TAB>offset` for each record.
"""

import mmap
import os
import struct
import sys
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate, chain, repeat
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.system.files import atomic_write

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH_BITS = 29
LENGTH_MASK = 2**LENGTH_BITS - 1
HEADER_BLOCK = 2**18
WRITE_BYTES = 2**18
READ_AHEAD_BYTES = 2**17  # of more at once, Linux may fetch the beginning only

_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
_WORD = np.dtype("<u4")
_MAGIC_WORD = np.array(MAGIC, dtype=_WORD)
_NO_FLAG = bytes(4)
_PADDING = (b"", bytes(3), bytes(2), bytes(1))

Integers = npt.NDArray[np.int64]


class Header(NamedTuple):
    """What stands before the image in a record.

    Attributes:
        label: one number, or several where the record has a flag above 0.
        id: the record's key, as a rule.
        id2: a second number, 0 as a rule.
    """

    label: float | tuple[float, ...]
    id: int
    id2: int = 0


class HeaderTable(NamedTuple):
    """The headers of N records, column by column.

    Attributes:
        flags: (N,) how many labels follow the header.
        labels: (N, 2) float32; the label or the first two of several; NaN where there is none.
        ids: (N,) uint64.
        sizes: (N,) bytes behind header and labels, that is of the image.
    """

    flags: Integers
    labels: npt.NDArray[np.float32]
    ids: npt.NDArray[np.uint64]
    sizes: Integers


def pack(header: Header, content: bytes = b"") -> bytes:
    """Join header, labels and content into a record; several labels are written behind the header.

    >>> pack(Header(label=3.0, id=7), b"image")[24:]
    b'image'
    """
    if isinstance(header.label, tuple):
        labels = np.asarray(header.label, dtype="<f4").tobytes()
        return _HEADER.pack(len(header.label), 0.0, header.id, header.id2) + labels + content
    return _HEADER.pack(0, header.label, header.id, header.id2) + content


def split(record: bytes) -> tuple[bytes, bytes]:
    """Cut a record into its header with the labels, and its content.

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
        The header, and the content behind it (the encoded image).

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


class RecordFile:
    """A RecordIO file, memory-mapped, read in any order.

    Where there is no index, the file is scanned and the key of a record is the id in its header. Instances can be
    pickled; each process opens its own map when it first reads.

    Attributes:
        path: the `.rec` file.
        index_path: the `.idx` file, or None where the file was scanned.
        keys: (N,) key of each record, in the order of the index.
        offsets: (N,) where each record starts, in bytes.

    Raises:
        DataError: the file or its index is missing, empty or broken; with line or byte offset.
    """

    def __init__(self, path: str | os.PathLike[str], index_path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        self.size = _file_size(self.path)
        beside = self.path.with_suffix(".idx")
        self.index_path = Path(index_path) if index_path is not None else beside if beside.is_file() else None
        self.keys = np.zeros(0, dtype=np.int64)
        if self.index_path is not None:
            self.keys, self.offsets = _read_index(self.index_path, self.path, self.size)
        else:
            self.offsets = self._scan()
            self.keys = self.headers(np.arange(len(self.offsets))).ids.astype(np.int64)
            if (self.keys < 0).any():
                self._fail(int(self.offsets[np.argmin(self.keys)]), "an id too large for a key")
        self._order = None if (np.diff(self.keys) > 0).all() else np.argsort(self.keys, kind="stable")
        self._refuse_duplicates()
        if self.index_path is not None:
            self._refuse_short_index(self.index_path)

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def where(self, position: int) -> str:
        """Name a record for an error: file, key and byte offset."""
        key = f", key {self.keys[position]}" if len(self.keys) else ""
        return f"{self.path}{key}, byte {self.offsets[position]}"

    def positions_of(self, keys: npt.ArrayLike) -> Integers:
        """Positions of keys, -1 for a key that is not there; same shape as `keys`."""
        wanted = np.asarray(keys, dtype=np.int64)
        ordered = self.keys if self._order is None else self.keys[self._order]
        places = np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)
        positions = places if self._order is None else self._order[places]
        return np.where(ordered[places] == wanted, positions, -1)

    def read_key(self, key: int) -> bytes:
        """Read the record with this key.

        Raises:
            DataError: there is none, or it is broken.
        """
        position = int(self.positions_of(key))
        if position < 0:
            raise DataError(f"{self.path}: no record has key {key}; keys are {self.keys.min()} to {self.keys.max()}")
        return self.read(position)

    def read(self, position: int) -> bytes:
        """Read the record at this place of the index, its parts joined.

        Raises:
            DataError: the record is broken; with file and byte offset.
        """
        return self._record(int(self.offsets[position]))[0]

    def _record(self, offset: int) -> tuple[bytes, int]:
        """The record at `offset`, its parts joined, and the offset behind it."""
        kind, payload, following = self._part(offset)
        if kind == WHOLE:
            return payload, following
        if kind != FIRST:
            self._fail(offset, f"a record cannot start with a part of kind {kind}")
        parts = [payload]
        while kind != LAST:
            offset = following
            kind, payload, following = self._part(offset)
            if kind not in (MIDDLE, LAST):
                self._fail(offset, f"part of kind {kind} inside a record of several parts")
            parts.append(payload)
        return MAGIC_BYTES.join(parts), following

    def split(self, position: int) -> tuple[bytes, bytes]:
        """Read a record, cut into its header with the labels, and its content.

        Raises:
            DataError: the record is broken; with file, key and byte offset.
        """
        record = self.read(position)
        try:
            return split(record)
        except DataError as error:
            raise DataError(f"{self.where(position)}: {error}") from error

    def read_ahead(self, positions: Integers) -> None:
        """Tell the system that these records will be read soon; it fetches them while this process goes on."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        offsets = np.sort(self.offsets[positions])
        cuts = np.flatnonzero(np.diff(offsets) > READ_AHEAD_BYTES) + 1  # records elsewhere in the file
        for part in np.split(offsets, cuts):
            for start in range(int(part[0]) // mmap.PAGESIZE * mmap.PAGESIZE, int(part[-1]) + 1, READ_AHEAD_BYTES):
                self._bytes.madvise(mmap.MADV_WILLNEED, start, min(READ_AHEAD_BYTES, self.size - start))

    def headers(self, positions: Integers) -> HeaderTable:
        """Read the headers of many records at once, without their images.

        Args:
            positions: (N,) places in the index.

        Raises:
            DataError: one of the records is broken; with file and byte offset.
        """
        blocks = [positions[start : start + HEADER_BLOCK] for start in range(0, max(len(positions), 1), HEADER_BLOCK)]
        columns = zip(*map(self._header_block, blocks), strict=True)
        return HeaderTable(*map(np.concatenate, columns))

    def _header_block(self, positions: Integers) -> HeaderTable:
        offsets = self.offsets[positions]
        words = np.frombuffer(self._bytes, _WORD, self.size // 4)
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
        return table

    def _fill_row(self, table: HeaderTable, row: int, position: int) -> None:
        """Read a header the slow way: the record has several parts, or is too short and refused here."""
        head, content = self.split(position)
        header, _ = unpack(head)
        several = header.label if isinstance(header.label, tuple) else (header.label, np.nan)
        table.flags[row] = (len(head) - _HEADER.size) // 4
        table.labels[row] = (*several, np.nan)[:2]
        table.ids[row] = header.id
        table.sizes[row] = len(content)

    def _check_frames(self, words: npt.NDArray[np.uint32], offsets: Integers) -> tuple[Integers, Integers]:
        """Lengths and kinds of the parts at `offsets`, after the checks that `_part` makes for one."""
        first = offsets >> 2
        lengths = (words[first + 1] & LENGTH_MASK).astype(np.int64)
        broken = (words[first] != MAGIC) | (offsets + 8 + (lengths + 3 & ~3) > self.size)
        if broken.any():
            self._part(int(offsets[broken.argmax()]))
        return lengths, (words[first + 1] >> LENGTH_BITS).astype(np.int64)

    def _part(self, offset: int) -> tuple[int, bytes, int]:
        """Kind and payload of the part at `offset`, and the offset behind it."""
        if offset + 8 > self.size:
            self._fail(offset, f"the file ends at byte {self.size} in the middle of a record")
        content = self._bytes
        magic, word = _FRAME.unpack_from(content, offset)
        if magic != MAGIC:
            self._fail(offset, f"0x{magic:08x} instead of the magic number 0x{MAGIC:08x}")
        length = word & LENGTH_MASK
        following = offset + 8 + (length + 3 & ~3)
        if following > self.size:
            self._fail(offset, f"the record claims {length} bytes, but the file ends at byte {self.size}")
        return word >> LENGTH_BITS, content[offset + 8 : offset + 8 + length], following

    def _scan(self) -> Integers:
        """Walk from part to part; reads eight bytes of each."""
        content, size, take = self._bytes, self.size, _FRAME.unpack_from
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
        if self._order is None:
            return
        repeated = np.flatnonzero(np.diff(self.keys[self._order]) == 0)
        if repeated.size:
            first, second = self._order[repeated[0] : repeated[0] + 2]
            place = f"{self.index_path}, line {second + 1}" if self.index_path else self.where(second)
            other = f"byte {self.offsets[first]} has it too"
            raise DataError(f"{place}: key {self.keys[second]} a second time, {other}; restore the index")

    def _refuse_short_index(self, index: Path) -> None:
        """The last record that the index knows must end the file: an index cut short would lose images in silence."""
        last = int(self.offsets.argmax())
        _, end = self._record(int(self.offsets[last]))
        if end < self.size:
            known = f"its last record, key {self.keys[last]}, ends at byte {end}, but {self.path} has {self.size} bytes"
            raise DataError(f"{index}: cut short: {known}; restore the index, or remove it to have the .rec scanned")

    @property
    def _bytes(self) -> mmap.mmap:
        if self._map is None:
            if _file_size(self.path) != self.size:
                raise DataError(f"{self.path}: the file has changed since it was opened; start again")
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def _fail(self, offset: int, reason: str) -> NoReturn:
        raise DataError(f"{self.path}, byte {offset}: {reason}; restore the file from its source")


class RecordWriter:
    """Write a RecordIO file and its index; both appear together, when the block ends without an error.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with RecordWriter(folder / "train.rec") as writer:
    ...     writer.write(1, pack(Header(label=0.0, id=1), b"image"))
    >>> RecordFile(folder / "train.rec").read_key(1)[24:]
    b'image'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._stack = ExitStack()
        self._keys = array("q")
        self._offsets = array("q")
        self._offset = self._pending_bytes = 0
        self._pending: list[bytes] = []

    def __enter__(self) -> Self:
        self._records = self._stack.enter_context(atomic_write(self.path))
        self._index = self._stack.enter_context(atomic_write(self.path.with_suffix(".idx")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self._finish()
            except OSError:
                kind, error, trace = sys.exc_info()
        self._stack.__exit__(kind, error, trace)

    def write(self, key: int, record: bytes) -> None:
        """Add a record; it is cut at each magic number that stands at a multiple of 4.

        Raises:
            DataError: it has 512 MiB or more, which the format cannot hold.
        """
        if len(record) > LENGTH_MASK:
            raise DataError(f"{self.path}, key {key}: {len(record)} bytes; a record holds less than 512 MiB")
        self._keys.append(key)
        self._pending.append(record)
        self._pending_bytes += len(record)
        if self._pending_bytes >= WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write what is pending. The magic is rare: one search through all of it shows whether any record has it."""
        block, lengths = _frame_whole(self._pending)
        if np.count_nonzero(np.frombuffer(block, _WORD) == _MAGIC_WORD) > len(self._pending):
            block, lengths = _frame_parts([cut(record) for record in self._pending])
        self._records.write(block)
        offsets = list(accumulate(lengths, initial=self._offset))
        self._offset = offsets.pop()
        self._offsets.extend(offsets)
        self._pending.clear()
        self._pending_bytes = 0

    def _finish(self) -> None:
        """Bring everything to the disk before the first file gets its name, so that a full disk leaves neither."""
        self._flush()
        for key, offset in zip(self._keys, self._offsets, strict=True):
            self._index.write(b"%d\t%d\n" % (key, offset))
        for file in (self._records, self._index):
            file.flush()
            os.fsync(file.fileno())


def cut(record: bytes) -> tuple[bytes, ...]:
    """Cut a record at each magic number at a multiple of 4; the magic itself is left out.

    >>> [len(part) for part in cut(bytes(8) + MAGIC_BYTES + bytes(3))]
    [8, 3]
    """
    found = np.frombuffer(record, _WORD, len(record) // 4) == _MAGIC_WORD
    if not np.count_nonzero(found):
        return (record,)
    places = (4 * np.flatnonzero(found)).tolist()
    starts = (0, *(place + 4 for place in places))
    return tuple(record[start:end] for start, end in zip(starts, (*places, len(record)), strict=True))


def _frame_whole(records: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """Put records, none of which is to be cut, into their frames.

    Returns:
        The bytes of all, and how many there are of each.
    """
    sizes = [len(record) for record in records]
    padding = [_PADDING[size % 4] for size in sizes]
    frames = map(_FRAME.pack, repeat(MAGIC), sizes)  # the kind WHOLE is 0, so the length stands alone
    block = b"".join(chain.from_iterable(zip(frames, records, padding, strict=True)))
    return block, [8 + (size + 3 & ~3) for size in sizes]


def _frame_parts(records: Sequence[tuple[bytes, ...]]) -> tuple[bytes, list[int]]:
    """Put records, each given as its parts, into their frames; as `_frame_whole`."""
    pieces: list[bytes] = []
    lengths = []
    for parts in records:
        length = 0
        for number, part in enumerate(parts):
            size = len(part)
            pieces += (_FRAME.pack(MAGIC, _kind(number, len(parts)) << LENGTH_BITS | size), part, _PADDING[size % 4])
            length += 8 + (size + 3 & ~3)
        lengths.append(length)
    return b"".join(pieces), lengths


def _kind(number: int, count: int) -> int:
    if count == 1:
        return WHOLE
    if number == 0:
        return FIRST
    return LAST if number == count - 1 else MIDDLE


def _file_size(path: Path) -> int:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DataError(f"{path}: not a file; name the .rec file")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    if size == 0:
        raise DataError(f"{path}: the file is empty; restore it from its source")
    return size


def _read_index(path: Path, records: Path, size: int) -> tuple[Integers, Integers]:
    """Keys and offsets of an index, each line checked against the size of the record file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    text = text.replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n"
    lines = text.count(b"\n")
    # Without its digits a sound index is a tab and a line end, over and over: far quicker than going line by line.
    if text.translate(None, b"0123456789") != b"\t\n" * lines or _has_empty_field(text):
        _fail_at_line(path, text)
    keys, offsets = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ").reshape(lines, 2).T.copy()
    wrong = (offsets % 4 != 0) | (offsets > size - 8)
    if wrong.any():
        line = int(wrong.argmax())
        reason = "outside the file" if offsets[line] > size - 8 else "not a multiple of 4"
        mend = f"{records.name} has {size} bytes; restore both files from one source"
        raise DataError(f"{path}, line {line + 1}: key {keys[line]}: byte offset {offsets[line]} is {reason}; {mend}")
    return keys, offsets


def _has_empty_field(text: bytes) -> bool:
    return text[:1] == b"\t" or b"\n\t" in text or b"\t\n" in text


def _fail_at_line(path: Path, text: bytes) -> NoReturn:
    for number, line in enumerate(text.split(b"\n"), start=1):
        fields = line.split(b"\t")
        if len(fields) != 2 or not all(field.isdigit() for field in fields):
            shown = line[:40].decode("utf-8", "replace")
            raise DataError(f"{path}, line {number}: {shown!r} is not 'key<TAB>offset'; restore the index or remove it")
    raise AssertionError("a sound index")
