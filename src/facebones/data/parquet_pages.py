"""Random access to the byte strings of a column in a Parquet file, page by page.

Arrow's own reader gives a whole group of rows at a time, which may be gigabytes; a training wants single images, in any
order. So the headers of the pages are read once, and then a page for each image: a megabyte in most files. Sizes in a
header are checked before memory is allocated.

The format: github.com/apache/parquet-format, README.md, Encodings.md and parquet.thrift.
"""

import struct
from itertools import pairwise
from mmap import mmap
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.mapped_file import Integers, MappedFile
from facebones.data.parquet_encodings import is_one_run, plain_spans, read_struct, run_lengths, whole_field
from facebones.data.parquet_footer import Chunk
from facebones.errors import DataError

DATA, DICTIONARY, DATA_2 = 0, 2, 3  # kinds of pages
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8  # encodings
ENCODINGS = {
    3: "RLE",
    5: "DELTA_BINARY_PACKED",
    6: "DELTA_LENGTH_BYTE_ARRAY",
    7: "DELTA_BYTE_ARRAY",
    9: "BYTE_STREAM_SPLIT",
}
UNCOMPRESSED = "UNCOMPRESSED"
CODECS = {
    "SNAPPY": "snappy",
    "GZIP": "gzip",
    "BROTLI": "brotli",
    "ZSTD": "zstd",
    "LZ4_RAW": "lz4_raw",
}
LONGEST_HEADER = 2**16  # bytes of a page's header, with its statistics
INFLATED, FREE_BYTES = 20, 2**20  # a page has at most so many times its bytes in the file, beside the free ones
FREE_REPEATS = 2**24  # bytes of images that repeat, beside `INFLATED` times the file


class Page(NamedTuple):
    """A page: where its content is, and what its header says of it."""

    kind: int
    start: int
    size: int
    inflated: int
    values: int
    encoding: int
    levels_size: int  # bytes of the levels before the values; -1 where the content says it
    compressed: bool


class ByteColumn:
    """The byte strings of a column.

    Args:
        file: the Parquet file.
        chunks: the groups of rows.

    Attributes:
        ends: (P,) number of rows up to the end of each page.
        pages: the P pages that hold rows.

    Raises:
        DataError: a page is broken, is too long for its bytes, or has an encoding that is not read.
    """

    def __init__(self, file: MappedFile, chunks: list[Chunk]) -> None:
        self.file = file
        self.chunks = chunks
        self.pages: list[Page] = []
        self._chunk_of: list[int] = []
        self._dictionaries: dict[int, Page] = {}
        for number, chunk in enumerate(chunks):
            self._add_chunk(number, chunk)
        self._refuse_overlaps()
        self.ends: Integers = np.cumsum([page.values for page in self.pages], dtype=np.int64)

    def page_of(self, row: int) -> tuple[int, int]:
        """The page that holds a row, and the row's place in it."""
        page = int(np.searchsorted(self.ends, row, side="right"))
        return page, row - (int(self.ends[page - 1]) if page else 0)

    def strings(self, number: int) -> "Strings":
        """The byte strings of a page.

        Raises:
            DataError: the page is broken.
        """
        page, chunk = self.pages[number], self.chunks[self._chunk_of[number]]
        try:
            present, values, start = self._content(page, chunk)
            count = page.values if present is None else int(present.sum())
            if page.encoding == PLAIN:
                return Strings(values, plain_spans(values, start, count), present)
            dictionary = self._dictionaries[self._chunk_of[number]]
            held = self._inflate(dictionary, chunk, dictionary.start, dictionary.size, dictionary.inflated)
            spans = plain_spans(held, 0, dictionary.values)
            width = values[start]
            rows = spans[run_lengths(values[start + 1 : start + 1 + page.inflated], width, count)]
            usual = len(held) * page.values // max(dictionary.values, 1)  # bytes of so many images
            if int((rows[:, 1] - rows[:, 0]).sum()) > INFLATED * usual + FREE_BYTES // 4:
                self._fail(page.start, "a page that repeats a large image very often")
            return Strings(held, rows, present)
        except (IndexError, ValueError, struct.error, OSError) as error:
            self._fail(page.start, "the page is broken", error)

    def packed_pages(self) -> list[Page]:
        """The pages that are inflated to be read."""
        codecs = (self.chunks[number].codec for number in self._chunk_of)
        return [
            page for page, codec in zip(self.pages, codecs, strict=True) if codec != UNCOMPRESSED and page.compressed
        ]

    def page_sizes(self) -> Integers:
        """(P,) bytes of each page in the file."""
        return np.array([page.size for page in self.pages], np.int64)

    # ------------------------------------------------------------------------------------------------- headers

    def _add_chunk(self, number: int, chunk: Chunk) -> None:
        """Take the pages of a group of rows."""
        for page in read_pages(self.file, chunk):
            if page.kind == DICTIONARY:
                self._dictionaries[number] = page
            else:
                self._check_encoding(page, number)
                self.pages.append(page)
                self._chunk_of.append(number)
        dictionary = self._dictionaries.get(number)
        if dictionary is not None:  # images that repeat are stored once
            whole = chunk.rows * dictionary.inflated // max(dictionary.values, 1)
            if whole > INFLATED * self.file.size + FREE_REPEATS:
                self._fail(chunk.start, f"{chunk.rows} rows of {dictionary.values} images, {whole} bytes in all")

    def _refuse_overlaps(self) -> None:
        """Refuse pages within one another: a small file would hold any number of large images."""
        spans = sorted((page.start, page.size) for page in (*self.pages, *self._dictionaries.values()))
        for (start, size), (following, _) in pairwise(spans):
            if start + size > following:
                self._fail(following, "a page within another, or twice")

    def _check_encoding(self, page: Page, number: int) -> None:
        if page.encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY):
            if number not in self._dictionaries:
                self._fail(page.start, "a page without its dictionary")
        elif page.encoding != PLAIN:
            name = ENCODINGS.get(page.encoding, f"number {page.encoding}")
            raise DataError(
                f"{self.file.path}: images in the encoding {name}, which facebones does not read; write them with"
                " use_dictionary=False and column_encoding=None, or as a folder"
            )

    # ------------------------------------------------------------------------------------------------- content

    def _content(self, page: Page, chunk: Chunk) -> tuple[npt.NDArray[np.bool_] | None, bytes | mmap, int]:
        """Which rows of a page have a value (None for all), and where the values begin, in which bytes."""
        start, size = page.start, page.size
        if page.kind == DATA_2:
            levels = self.file.content[start : start + page.levels_size]
            values, place = self._values(page, chunk, start + page.levels_size, size - page.levels_size)
        else:
            values, place = self._values(page, chunk, start, size)
            levels = b""
            if chunk.levels > 1:
                length = struct.unpack_from("<I", values, place)[0]
                levels = values[place + 4 : place + 4 + min(length, page.inflated)]
                place += 4 + length
        if chunk.levels < 2 or (page.kind == DATA_2 and not page.levels_size):
            return None, values, place
        full = chunk.levels - 1
        if is_one_run(levels, full, page.values):
            return None, values, place
        return run_lengths(levels, full.bit_length(), page.values) == full, values, place

    def _values(self, page: Page, chunk: Chunk, start: int, size: int) -> tuple[bytes | mmap, int]:
        """The content of a page, inflated; a page that is not compressed is read in its place in the file."""
        if chunk.codec == UNCOMPRESSED or not page.compressed:
            return self.file.content, start
        levels = max(page.levels_size, 0)
        return self._inflate(page, chunk, start, size, page.inflated - levels), 0

    def _inflate(self, page: Page, chunk: Chunk, start: int, size: int, inflated: int) -> bytes:
        content = self.file.content[start : start + size]
        if chunk.codec == UNCOMPRESSED or not inflated:
            return content
        import pyarrow as arrow

        try:
            whole: bytes = arrow.decompress(content, inflated, CODECS[chunk.codec], asbytes=True)
        except (arrow.ArrowException, ValueError) as error:
            self._fail(page.start, "the page is broken", error)
        return whole

    def _fail(self, offset: int, reason: str, error: BaseException | None = None) -> NoReturn:
        _fail(self.file, offset, reason, error)


def read_pages(file: MappedFile, chunk: Chunk) -> list[Page]:
    """The pages of a group of rows, from their headers: the dictionary, if there is one, and those of values.

    Raises:
        DataError: a header is broken, or claims what the file cannot hold.
    """
    place, rows, end = chunk.start, 0, chunk.start + chunk.size
    pages = []
    if not 0 < place <= end <= file.size:
        _fail(file, place, "a group of rows outside of the file, which may be cut short")
    while place < end and rows < chunk.rows:
        page, place = _page(file, place, end)
        if page.kind in (DICTIONARY, DATA, DATA_2):
            pages.append(page)
            rows += page.values if page.kind != DICTIONARY else 0
    if rows != chunk.rows:
        _fail(file, chunk.start, f"pages of {rows} rows, where the footer says {chunk.rows}")
    return pages


def _page(file: MappedFile, place: int, end: int) -> tuple[Page, int]:
    """The page whose header is at a place, and the place after it."""
    window = file.content[place : min(end, place + LONGEST_HEADER)]
    try:
        header, length = read_struct(window, 0)
        kind, inflated, size = (whole_field(header, field) for field in (1, 2, 3))
        about = header.get({DATA: 5, DICTIONARY: 7, DATA_2: 8}.get(kind, 0), {})
        values = whole_field(about, 1) if about else 0
        encoding = whole_field(about, 4 if kind == DATA_2 else 2) if about else PLAIN
        levels_size = whole_field(about, 5) if kind == DATA_2 else -1
        if kind == DATA_2 and whole_field(about, 6):
            raise ValueError("repeated values")
        compressed = bool(about.get(7, True)) if kind == DATA_2 else True
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        _fail(file, place, "the header of a page is broken", error)
    start = place + length
    if start + size > end:
        _fail(file, place, "a page that ends outside of its group of rows")
    if inflated > INFLATED * size + FREE_BYTES:
        _fail(file, place, f"a page of {size} bytes that claims to inflate to {inflated}")
    return Page(kind, start, size, inflated, values, encoding, levels_size, compressed), start + size


def _fail(file: MappedFile, offset: int, reason: str, error: BaseException | None = None) -> NoReturn:
    raise DataError(f"{file.path}, byte {offset}: {reason}; restore the file from its source") from error


class Strings(NamedTuple):
    """The byte strings of a page.

    Attributes:
        content: what they are in.
        spans: (N, 2) first byte and last byte + 1 of each.
        present: (R,) whether a row has a value, in order; None if all have.
    """

    content: bytes | mmap
    spans: Integers
    present: npt.NDArray[np.bool_] | None

    @property
    def memory(self) -> int:
        """Bytes of memory: a page that is read in its place in the file takes none but that of its spans."""
        return self.spans.nbytes + (len(self.content) if isinstance(self.content, bytes) else 0)

    def at(self, row: int) -> bytes | None:
        """The byte string of a row of the page, or None."""
        if self.present is not None:
            if not self.present[row]:
                return None
            row = int(self.present[:row].sum())
        start, end = self.spans[row].tolist()
        return self.content[start:end]
