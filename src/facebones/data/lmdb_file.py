"""Read an LMDB database (`data.mdb`, or a file such as `faces.lmdb`) without the C library.

The C library trusts the pages of a file: a damaged or malicious one ends the process. This reader checks each number
against the file, visits each page once, and reads values in any order and from any number of processes.

The format is that of LMDB 0.9 on 64-bit machines (openldap, libraries/liblmdb/mdb.c, data version 1): two meta pages,
of which the one with the later transaction counts, and a B+ tree of branch pages, leaf pages, and pages that overflow.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from facebones.data.mapped_file import MANY_BYTES, Integers, MappedFile
from facebones.errors import DataError

MAGIC, DATA_VERSION = 0xBEEFC0DE, 1
PAGE_SIZES = frozenset(2**power for power in range(8, 17))
HEADER, NODE = 16, 8  # bytes of a page's header, and of a node's
BRANCH, LEAF = 1, 2  # flags of pages
OVERFLOWS, SUBDATABASE, DUPLICATES = 1, 2, 4  # flags of nodes, the last one of databases
NO_PAGE = 2**64 - 1
_META = struct.Struct("<IIQQ48x")  # magic, version, address, size; the table of free pages
_TABLE = struct.Struct("<IHHQQQQQ")  # page size, flags, depth, pages of each kind, entries, root
_LAST = struct.Struct("<QQ")  # last page, transaction


class Values(NamedTuple):
    """The entries of a leaf page: N keys, and where their values lie in the file."""

    keys: list[bytes]
    offsets: Integers
    sizes: Integers


class LmdbFile(MappedFile):
    """The entries of an LMDB database, in the order of their keys.

    Args:
        path: the database: a file, or a folder with `data.mdb`.

    Attributes:
        entries: number of entries that the file claims.

    Raises:
        DataError: the file is missing, is no LMDB database, or is broken; names the byte offset.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        super().__init__(path / "data.mdb" if path.is_dir() else path)
        self.page_size = self._page_size()
        metas = [meta for meta in (self._meta(0), self._meta(self.page_size)) if meta is not None]
        if not metas:
            self._fail(0, "the meta pages of the LMDB database are broken")
        _, self.entries, self._root = max(metas)

    def pages(self) -> Iterator[Values]:
        """The entries, leaf page by leaf page, without sub-databases.

        Raises:
            DataError: a page is broken; names the byte offset.
        """
        if self._root == NO_PAGE:
            return
        seen = np.zeros(self.size // self.page_size + 1, np.bool_)
        waiting, since, found = [self._root], 0, 0
        while waiting:
            number = waiting.pop()
            page = number * self.page_size
            if number < 2 or page + self.page_size > self.size:
                self._fail(min(page, self.size), f"a page with the number {number}, outside of the file")
            if seen[number]:
                self._fail(page, "a page that is in the tree twice")
            seen[number] = True
            flags, pointers = self._pointers(page)
            if flags & BRANCH:
                waiting += self._children(pointers)[::-1]
            elif pointers.size:
                yield self._leaf(pointers)
                found += pointers.size
            since += self.page_size
            if since > MANY_BYTES:
                self.forget()
                since = 0
        if found != self.entries:
            self._fail(0, f"{found} entries, but the meta page says {self.entries}")

    def value(self, offset: int, size: int) -> bytes:
        """The bytes of a value."""
        return self.content[offset : offset + size]

    def _page_size(self) -> int:
        """The page size, from the meta page at the beginning."""
        if self.size >= HEADER + _META.size and _META.unpack_from(self.content, HEADER)[0] == MAGIC:
            size = int(struct.unpack_from("<I", self.content, HEADER + 24)[0])
            if size in PAGE_SIZES and self.size >= 2 * size:
                return size
        raise DataError(
            f"{self.path}: not an LMDB database that a 64-bit machine wrote, or cut short; restore it from its source"
        )

    def _meta(self, page: int) -> tuple[int, int, int] | None:
        """Transaction, entries and root of a meta page; None for one that is broken."""
        place = page + HEADER
        magic, version, _, _ = _META.unpack_from(self.content, place)
        if magic != MAGIC:
            return None
        if version != DATA_VERSION:
            self._fail(place, f"LMDB's data format {version}; facebones reads format {DATA_VERSION}, of LMDB 0.9")
        _, flags, _, _, _, _, entries, root = _TABLE.unpack_from(self.content, place + _META.size)
        if flags & DUPLICATES:
            self._fail(place, "a database of several values for one key (dupsort); write it with one for each")
        _, transaction = _LAST.unpack_from(self.content, place + _META.size + _TABLE.size)
        return transaction, entries, root

    def _pointers(self, page: int) -> tuple[int, Integers]:
        """Flags of a page, and the offsets of its nodes in the file."""
        flags, lower = struct.unpack_from("<HH", self.content, page + 10)
        if flags & 0x7F not in (BRANCH, LEAF):  # beside flags of pages in memory
            self._fail(page, f"a page of the kind {flags:#x} where the tree has branches and leaves")
        if not HEADER <= lower <= self.page_size or lower % 2:
            self._fail(page, "the header of the page is broken")
        nodes = np.frombuffer(self.content, "<u2", (lower - HEADER) // 2, page + HEADER).astype(np.int64)
        if ((nodes < lower) | (nodes > self.page_size - NODE) | (nodes % 2 == 1)).any():
            self._fail(page, "a node outside of its page")
        return flags, nodes + page

    def _fields(self, nodes: Integers) -> Any:
        """(4, N) the four numbers at the beginning of nodes."""
        words = np.frombuffer(self.content, "<u2", self.size // 2)
        return words[(nodes >> 1) + np.arange(4)[:, None]].astype(np.int64)

    def _children(self, nodes: Integers) -> list[int]:
        low, middle, high, _ = self._fields(nodes)
        children: list[int] = (low | middle << 16 | high << 32).tolist()
        return children

    def _leaf(self, nodes: Integers) -> Values:
        """The entries of a leaf page."""
        low, high, flags, key_sizes = self._fields(nodes)
        sizes, offsets = low | high << 16, nodes + NODE + key_sizes
        page_end = int(nodes[0]) // self.page_size * self.page_size + self.page_size
        is_large = flags & OVERFLOWS != 0
        if (offsets + np.where(is_large, 8, sizes) > page_end).any():
            self._fail(page_end - self.page_size, "an entry that is longer than its page")
        offsets[is_large] = self._overflows(offsets[is_large], sizes[is_large])
        kept = np.flatnonzero(flags & SUBDATABASE == 0)
        content = self.content
        starts, ends = (nodes[kept] + NODE).tolist(), (nodes + NODE + key_sizes)[kept].tolist()
        keys = [content[start:end] for start, end in zip(starts, ends, strict=True)]
        return Values(keys, offsets[kept], sizes[kept])

    def _overflows(self, places: Integers, sizes: Integers) -> Integers:
        """Offsets of values on pages of their own, whose numbers stand at these places."""
        content = np.frombuffer(self.content, np.uint8)
        numbers = content[places[:, None] + np.arange(8)].view("<u8")[:, 0]
        wrong = (numbers < 2) | (numbers > self.size // self.page_size)
        offsets = np.where(wrong, 0, numbers).astype(np.int64) * self.page_size + HEADER
        wrong |= offsets + sizes > self.size
        if wrong.any():
            self._fail(int(places[wrong.argmax()]), "a value that ends outside of the file, which may be cut short")
        return offsets

    def _fail(self, offset: int, reason: str) -> NoReturn:
        raise DataError(f"{self.path}, byte {offset}: {reason}; restore the file from its source")
