"""Read long text lists, one record per line with columns separated by blanks: millions of lines per second.

NumPy parses a block of lines at once. Only if that fails, the lines of the block are read one by one, to name the first
wrong line.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.system.regular_files import open_regular

BLOCK_BYTES = 1 << 20  # the arrays of a block fit in the processor's cache
LARGEST_NUMBER = 2**31 - 1  # of a template, medium or subject: fits in int32
SHOWN_CHARACTERS = 60
_QUOTED = re.compile(r'"[^"]*"')
_OF_WHOLE_NUMBERS = np.isin(np.arange(256, dtype=np.uint8), np.frombuffer(b"0123456789 \t\n\v\f\r", np.uint8))

IntArray = npt.NDArray[np.int32]


def separator_of(line: str) -> str:
    """The mark between the fields of a CSV file, by a line of it: a tab, a semicolon, or else a comma.

    Excel writes semicolons where numbers have decimal commas, and tabs as "text". What stands in quotes does not count.

    >>> separator_of("a.jpg;1,5;2,5"), separator_of("a;b.jpg,1,2"), separator_of('"Lee; Ann",f'), separator_of("a,b")
    (';', ',', ',', ',')
    """
    bare = _QUOTED.sub("", line)
    if "\t" in bare:
        return "\t"
    return ";" if bare.count(";") >= max(1, bare.count(",")) else ","


def decimal(field: str) -> float:
    """The number in a field that no comma separates from others: its decimal mark may be a comma.

    Raises:
        ValueError: it is no number.

    >>> decimal("0,95"), decimal("-1.5e3")
    (0.95, -1500.0)
    """
    return float(field.replace(",", ".", 1) if "." not in field else field)


def leads_out(name: str) -> bool:
    """Whether a path in a list may leave the folder that it starts from: it is absolute, or has a `..`.

    An untrusted list must not name files outside of the folder. Links inside the folder belong to its owner and are
    followed. Any `..` counts, even one that seems to stay inside: after a link, it goes up from the link's target.

    >>> [leads_out(name) for name in ("ann/1.jpg", "../1.jpg", "ann/../../1.jpg", "/1.jpg", "..1.jpg")]
    [False, True, True, True, False]
    """
    return name.startswith("/") or (".." in name and ".." in name.split("/"))


def line_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines) up to the end of the file, without blank lines at the end.

    Raises:
        DataError: the file cannot be read or is empty, or a line is too long for a list.
    """
    number, rest = 1, b""
    try:
        with open_regular(path) as file:
            while chunk := file.read(BLOCK_BYTES):
                rest += chunk
                end = rest.rfind(b"\n", 0, len(rest.rstrip())) + 1  # some text follows it
                if end:
                    yield number, rest[:end]
                    number += rest.count(b"\n", 0, end)
                    rest = rest[end:]
                elif len(rest) > 2 * BLOCK_BYTES:
                    raise DataError(f"{path}, line {number}: longer than {BLOCK_BYTES} bytes; not a list in text")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; restore it or check the path") from error
    if rest.strip():
        yield number, rest.rstrip() + b"\n"
    elif number == 1:
        raise DataError(f"{path}: holds no line; restore the list")


def has_columns(block: bytes, columns: int) -> bool:
    """Whether every line of a block has this number of columns, separated by the blanks of `bytes.split`."""
    characters = np.frombuffer(block, np.uint8)
    controls = characters - np.uint8(ord("\t")) <= ord("\r") - ord("\t")  # \t \n \v \f \r; lower bytes wrap around
    blank = np.logical_or(controls, characters == ord(" "))
    starts = np.flatnonzero(blank[:-1] > blank[1:]) + 1
    if not blank[0]:
        starts = np.concatenate([[0], starts])
    ends = np.flatnonzero(characters == ord("\n"))
    if starts.size != columns * ends.size:
        return False
    first, last = starts[0::columns], starts[columns - 1 :: columns]
    return bool((last < ends).all() and (first[1:] > ends[:-1]).all())


def whole_numbers(block: bytes) -> IntArray | None:
    """All numbers of a text, in order; None if it has anything else, or a number is too large."""
    if not _OF_WHOLE_NUMBERS[np.frombuffer(block, np.uint8)].all():
        return None
    numbers = np.fromstring(block, dtype=np.int64, sep=" ")  # larger numbers become 2**63 - 1
    return numbers.astype(np.int32) if numbers.max(initial=0) <= LARGEST_NUMBER else None


def is_whole_number(field: bytes) -> bool:
    """Whether a column is a number that `whole_numbers` accepts."""
    return field.isdigit() and len(field) <= 19 and int(field) <= LARGEST_NUMBER


def blame_line(path: Path, first: int, block: bytes, fits: Callable[[list[bytes]], bool], wanted: str) -> NoReturn:
    """Raise a DataError that names the first wrong line of a block.

    Args:
        path: the list.
        first: number of the block's first line.
        block: whole lines; one of them is wrong.
        fits: tells whether the columns of a line are right.
        wanted: what a line should look like.
    """
    lines = enumerate(block[:-1].split(b"\n"), first)
    number, line = next((number, line) for number, line in lines if not fits(line.split()))
    raise DataError(f"{path}, line {number}: {shown(line)} is not {wanted}; correct or restore the list")


def shown(line: bytes) -> str:
    """Beginning of a line, quoted for an error."""
    return repr(" ".join(line[: 2 * SHOWN_CHARACTERS].decode(errors="replace").split())[:SHOWN_CHARACTERS])
