"""Floating-point arrays of an HDF5 file as Keras 2 writes it, read without the HDF5 library.

The library is made for trusted files. Of the format (HDF5 File Format Specification, version 3.0) this reads what
h5py writes by default: superblock 0, object headers 1, groups as B-trees of names, contiguous and compact arrays.
Compressed, chunked and external arrays and links are refused. Every offset and size is checked against the file.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facebones.errors import CheckpointError
from facebones.system.regular_files import read_regular

SIGNATURE = b"\x89HDF\r\n\x1a\n"
DATASPACE, DATATYPE, EXTERNAL, LAYOUT, FILTERS, CONTINUATION, SYMBOLS = 1, 3, 7, 8, 11, 16, 17  # messages
FLOAT = 1  # class of a datatype
COMPACT, CONTIGUOUS = 0, 1
MOST_MEMBERS = 20_000  # of all groups and their trees; a network has some hundreds, with its optimizer some thousands
MOST_MESSAGES = 400_000  # of all headers
LONGEST_NAME = 256
DEEPEST = 16  # levels of groups, and of a B-tree
MOST_DIMENSIONS = 8

NOTHING = memoryview(b"")
Array = npt.NDArray[np.floating]


class _RefusedError(ValueError):
    """A file that is damaged or of another kind, and why."""


def read_hdf5(path: Path) -> dict[str, Array]:
    """Read the floating-point arrays of a file by their paths, such as "model_weights/conv2d/conv2d/kernel:0".

    Arrays of other types are left out. The arrays cannot be written to.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or holds what Keras does not write.
    """
    try:
        data = read_regular(path)
        return _File(data).arrays()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (_RefusedError, struct.error, UnicodeDecodeError) as error:
        from facebones.system.files import stand_in  # here: a sound file does not need it

        reason = str(error) if isinstance(error, _RefusedError) else "damaged or cut short"
        instead = stand_in(path) or f"no HDF5 file of Keras: {reason}; restore it from its source"
        raise CheckpointError(f"{path}: {instead}") from error


class _File:
    """The parser; offsets are from the file's beginning."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.view = memoryview(data)  # its slices are no copies
        self.seen: set[int] = set()  # headers and nodes: a group may hold itself
        self.members = self.messages = self.taken = 0  # so far; taken: bytes of arrays

    def arrays(self) -> dict[str, Array]:
        if self.data[:8] != SIGNATURE:
            raise _RefusedError("it does not begin as one")
        if self.data[8:9] != b"\0" or self.data[13:15] != b"\x08\x08":
            raise _RefusedError("its format is newer than that of h5py's default")
        (root,) = struct.unpack_from("<Q", self.data, 64)
        return dict(self._walk("", root, 0))

    def _walk(self, name: str, header: int, depth: int) -> Iterator[tuple[str, Array]]:
        """The arrays in an object: its own, or those of the group that it is."""
        if depth > DEEPEST:
            raise _RefusedError("its groups are too deep")
        if not self._is_new(header):
            return
        messages = dict(self._messages(header))
        if SYMBOLS in messages:
            tree, heap = struct.unpack_from("<QQ", messages[SYMBOLS])
            for child, at in self._children(tree, self._names_of(heap), 0):
                yield from self._walk(f"{name}/{child}".lstrip("/"), at, depth + 1)
        elif LAYOUT in messages and (array := self._array(name, messages)) is not None:
            yield name, array

    def _is_new(self, at: int) -> bool:
        """Whether an object or node has not been read yet."""
        if at in self.seen:
            return False
        self.seen.add(at)
        return True

    def _count(self, members: int) -> None:
        self.members += members
        if self.members > MOST_MEMBERS:
            raise _RefusedError("too many objects")

    def _messages(self, header: int) -> Iterator[tuple[int, memoryview]]:
        """Types and contents of the messages of an object header, from all of its blocks."""
        version, _, count, _, size = struct.unpack_from("<BBHII", self._bytes(header, 12))
        self.messages += count
        if version != 1 or self.messages > MOST_MESSAGES:
            raise _RefusedError("an object header of another version, or too many messages")
        blocks = [(header + 16, size)]
        while blocks and count > 0:
            at, size = blocks.pop(0)
            block = self._bytes(at, size)
            place = 0
            while place + 8 <= size and count > 0:
                kind, length = struct.unpack_from("<HH", block, place)
                content = block[place + 8 : place + 8 + length]
                if len(content) != length:
                    raise _RefusedError("a message is cut short")
                if kind == CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", content))
                yield kind, content
                place += 8 + length
                count -= 1

    def _names_of(self, heap: int) -> tuple[int, int]:
        """Where the names of a group's members begin and end, with a zero after each."""
        if bytes(self._bytes(heap, 4)) != b"HEAP":
            raise _RefusedError("a group has no names")
        size, _, at = struct.unpack("<QQQ", self._bytes(heap + 8, 24))
        self._bytes(at, size)
        return at, at + size

    def _children(self, node: int, names: tuple[int, int], depth: int) -> Iterator[tuple[str, int]]:
        """Names and headers of a group's members, from its B-tree."""
        if bytes(self._bytes(node, 4)) != b"TREE" or depth > DEEPEST:
            raise _RefusedError("a group has no tree")
        kind, level, count = struct.unpack("<BBH", self._bytes(node + 4, 4))
        if kind != 0:
            raise _RefusedError("a group has another tree")
        self._count(count)
        if not self._is_new(node):
            return
        keys = self._bytes(node + 24, 16 * count + 8)
        for number in range(count):
            (child,) = struct.unpack_from("<Q", keys, 16 * number + 8)
            if level:
                yield from self._children(child, names, depth + 1)
            else:
                yield from self._entries(child, names)

    def _entries(self, node: int, names: tuple[int, int]) -> Iterator[tuple[str, int]]:
        if bytes(self._bytes(node, 4)) != b"SNOD":
            raise _RefusedError("a group has no members")
        (count,) = struct.unpack("<H", self._bytes(node + 6, 2))
        self._count(count)
        if not self._is_new(node):
            return
        entries = self._bytes(node + 8, 40 * count)
        for number in range(count):
            name, header, kind = struct.unpack_from("<QQI", entries, 40 * number)
            if kind == 2:
                raise _RefusedError("it holds links")
            start = names[0] + name
            end = self.data.find(b"\0", start, min(names[1], start + LONGEST_NAME))
            if end <= start:
                raise _RefusedError("a member has no name, or a long one")
            yield self.data[start:end].decode(), header

    def _array(self, name: str, messages: dict[int, memoryview]) -> Array | None:
        """The array of an object; None if its elements are no floating-point numbers."""
        if FILTERS in messages or EXTERNAL in messages:
            raise _RefusedError(f"{name!r:.80} is compressed, or in another file")
        dtype, shape = _dtype(messages.get(DATATYPE, NOTHING)), _shape(messages.get(DATASPACE, NOTHING))
        if dtype is None:
            return None
        layout = messages[LAYOUT]
        version, kind = struct.unpack_from("<BB", layout)
        size = math.prod(shape) * dtype.itemsize
        self.taken += size
        if version != 3 or kind not in (COMPACT, CONTIGUOUS) or self.taken > len(self.data):
            raise _RefusedError(f"{name!r:.80} is stored in pieces, or larger than the file")
        if kind == COMPACT:
            content = layout[4:]
        else:
            at, length = struct.unpack_from("<QQ", layout, 2)
            content = self._bytes(at, length) if length else NOTHING  # it has no place if it was never written
        if not size:
            return None
        if len(content) < size:
            raise _RefusedError(f"{name!r:.80} lacks elements")
        return np.frombuffer(content, dtype, math.prod(shape)).reshape(shape)

    def _bytes(self, at: int, size: int) -> memoryview:
        if at + size > len(self.data):
            raise _RefusedError("cut short, or an offset beyond its end")
        return self.view[at : at + size]


def _dtype(message: memoryview) -> np.dtype[np.floating] | None:
    """A little-endian IEEE type of 2, 4 or 8 bytes; None for any other."""
    kind, bits, size = struct.unpack_from("<BBxxI", message)
    if kind & 15 != FLOAT or bits & 1 or size not in (2, 4, 8):
        return None
    return np.dtype(f"<f{size}")


def _shape(message: memoryview) -> tuple[int, ...]:
    version, rank = struct.unpack_from("<BB", message)
    if version not in (1, 2) or rank > MOST_DIMENSIONS:
        raise _RefusedError("an array of an unknown shape")
    return struct.unpack_from(f"<{rank}Q", message, 8 if version == 1 else 4)
