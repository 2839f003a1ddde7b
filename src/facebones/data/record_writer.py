"""Write RecordIO, the container format of mxnet; see `recordio` for the format."""

import os
import sys
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate, chain, repeat
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from facebones.data.recordio import FIRST, FRAME, LAST, LENGTH_BITS, LENGTH_MASK, MAGIC, MIDDLE, WHOLE, WORD
from facebones.errors import DataError
from facebones.system.files import atomic_write

WRITE_BYTES = 2**18

_MAGIC_WORD = np.array(MAGIC, dtype=WORD)
_PADDING = (b"", bytes(3), bytes(2), bytes(1))


class RecordWriter:
    """Write a RecordIO file and its index; both appear together when the block ends without an error.

    >>> import tempfile
    >>> from facebones.data.recordio import Header, RecordFile, pack
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
        """Add a record; it is cut into parts at each magic number at a multiple of 4.

        Raises:
            DataError: it has 512 MiB or more, the limit of the format.
        """
        if len(record) > LENGTH_MASK:
            raise DataError(f"{self.path}, key {key}: {len(record)} bytes; a record holds less than 512 MiB")
        self._keys.append(key)
        self._pending.append(record)
        self._pending_bytes += len(record)
        if self._pending_bytes >= WRITE_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write the pending records; one search through all of them shows whether any contains the magic number."""
        block, lengths = _frame_whole(self._pending)
        if np.count_nonzero(np.frombuffer(block, WORD) == _MAGIC_WORD) > len(self._pending):
            block, lengths = _frame_parts([cut(record) for record in self._pending])
        self._records.write(block)
        offsets = list(accumulate(lengths, initial=self._offset))
        self._offset = offsets.pop()
        self._offsets.extend(offsets)
        self._pending.clear()
        self._pending_bytes = 0

    def _finish(self) -> None:
        """Sync both files before the first gets its name, so that a full disk leaves neither."""
        self._flush()
        for key, offset in zip(self._keys, self._offsets, strict=True):
            self._index.write(b"%d\t%d\n" % (key, offset))
        for file in (self._records, self._index):
            file.flush()
            os.fsync(file.fileno())


def cut(record: bytes) -> tuple[bytes, ...]:
    """Cut a record at each magic number at a multiple of 4, without the magic number itself.

    >>> [len(part) for part in cut(bytes(8) + MAGIC.to_bytes(4, "little") + bytes(3))]
    [8, 3]
    """
    found = np.frombuffer(record, WORD, len(record) // 4) == _MAGIC_WORD
    if not np.count_nonzero(found):
        return (record,)
    places = (4 * np.flatnonzero(found)).tolist()
    starts = (0, *(place + 4 for place in places))
    return tuple(record[start:end] for start, end in zip(starts, (*places, len(record)), strict=True))


def _frame_whole(records: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """Frame records of one part each.

    Returns:
        The bytes of all, and the number of bytes of each.
    """
    sizes = [len(record) for record in records]
    padding = [_PADDING[size % 4] for size in sizes]
    frames = map(FRAME.pack, repeat(MAGIC), sizes)  # the kind WHOLE is 0, so the length stands alone
    block = b"".join(chain.from_iterable(zip(frames, records, padding, strict=True)))
    return block, [8 + (size + 3 & ~3) for size in sizes]


def _frame_parts(records: Sequence[tuple[bytes, ...]]) -> tuple[bytes, list[int]]:
    """Frame records that are given as their parts; returns the same as `_frame_whole`."""
    pieces: list[bytes] = []
    lengths = []
    for parts in records:
        length = 0
        for number, part in enumerate(parts):
            size = len(part)
            pieces += (FRAME.pack(MAGIC, _kind(number, len(parts)) << LENGTH_BITS | size), part, _PADDING[size % 4])
            length += 8 + (size + 3 & ~3)
        lengths.append(length)
    return b"".join(pieces), lengths


def _kind(number: int, count: int) -> int:
    if count == 1:
        return WHOLE
    if number == 0:
        return FIRST
    return LAST if number == count - 1 else MIDDLE
