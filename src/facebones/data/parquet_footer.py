"""What the footer of a Parquet file says of two of its columns: where their pages are, for each group of rows.

pyarrow reads footers too, but its classes for groups of rows and columns end the process on some that are damaged.

The format: github.com/apache/parquet-format, parquet.thrift.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from facebones.data.mapped_file import MappedFile
from facebones.data.parquet_encodings import read_struct, whole_field
from facebones.errors import DataError

MAGIC = b"PAR1"
REPEATED = 2  # how often a field occurs; 0 is always, 1 perhaps
CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "LZ4", "ZSTD", "LZ4_RAW")
DEEPEST = 16  # groups of fields within one another


class Chunk(NamedTuple):
    """The pages of a column for one group of rows.

    Attributes:
        start: offset of the first page.
        size: bytes of all pages.
        rows: number of rows.
        codec: name of the compression.
        levels: 1 + the number of ways in which a value can be missing.
    """

    start: int
    size: int
    rows: int
    codec: str
    levels: int


class Leaf(NamedTuple):
    """A column of values: its path, `Chunk.levels`, and whether a row may have several values."""

    path: str
    levels: int
    repeated: bool


def read_chunks(file: MappedFile, paths: Sequence[str]) -> list[list[Chunk]]:
    """The groups of rows of some columns.

    Args:
        file: the Parquet file.
        paths: of the columns, such as "image.bytes".

    Returns:
        For each path, the chunks in the order of the rows.

    Raises:
        DataError: the footer is broken, or a column is missing or has lists of values.
    """
    content = file.content
    length = int.from_bytes(content[-8:-4], "little")
    start = file.size - 8 - length
    if content[-4:] != MAGIC or start < 4:
        _fail(file, max(file.size - 8, 0), "no footer of a Parquet file, which may be cut short")
    footer = content[start : file.size - 8]
    elements: list[dict[int, Any]] = []
    leaves: list[Leaf] = []
    wanted: list[int] = []
    chunks: list[list[Chunk]] = [[] for _ in paths]

    def take_group(group: dict[int, Any]) -> None:
        if not leaves:  # the schema is complete
            leaves.extend(_leaves(elements))
            wanted.extend(_find(file, leaves, path) for path in paths)
        for found, place in zip(chunks, wanted, strict=True):
            found.append(_chunk(group, leaves, place))

    try:
        fields, _ = read_struct(footer, 0, each={2: elements.append, 4: take_group})
        if sum(chunk.rows for chunk in chunks[0]) != whole_field(fields, 3, 2**62):
            raise ValueError("rows")
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"{file.path}: the footer is broken; restore the file from its source") from error
    return chunks


def _leaves(elements: list[dict[int, Any]]) -> list[Leaf]:
    """The columns of a schema, which lists each group before its fields."""
    leaves = []
    open_groups = [(whole_field(elements[0], 5), "", 0, False)]
    left = [open_groups[0][0]]
    for element in elements[1:]:
        while left and not left[-1]:
            left.pop()
            open_groups.pop()
        left[-1] -= 1
        _, above, missing, repeated = open_groups[-1]
        kind = element.get(3, 0)
        path = f"{above}{element[4].decode()}"
        missing, repeated = missing + (kind != 0), repeated or kind == REPEATED
        if children := element.get(5):
            if len(left) > DEEPEST:
                raise ValueError("groups within groups")
            open_groups.append((children, f"{path}.", missing, repeated))
            left.append(whole_field(element, 5))
        else:
            leaves.append(Leaf(path, missing + 1, repeated))
    return leaves


def _find(file: MappedFile, leaves: list[Leaf], path: str) -> int:
    place = next((place for place, leaf in enumerate(leaves) if leaf.path == path), None)
    if place is None or leaves[place].repeated:
        raise DataError(f"{file.path}: column {path} has lists of values; give one for each row")
    return place


def _chunk(group: dict[int, Any], leaves: list[Leaf], place: int) -> Chunk:
    """A column of a group of rows."""
    columns = group[1]
    if len(columns) != len(leaves) or columns[place].get(1):
        raise ValueError("columns")  # of another number, or in another file
    about = columns[place][3]
    start = whole_field(about, 9, 2**62)
    dictionary = about.get(11)
    if type(dictionary) is int and 0 < dictionary < start:
        start = dictionary
    codec = CODECS[whole_field(about, 4)]
    return Chunk(start, whole_field(about, 7, 2**62), whole_field(group, 3, 2**62), codec, leaves[place].levels)


def _fail(file: MappedFile, offset: int, reason: str) -> NoReturn:
    raise DataError(f"{file.path}, byte {offset}: {reason}; restore the file from its source")
