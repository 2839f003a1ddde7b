"""How Parquet files store byte strings, small numbers, and the headers of pages.

The format: github.com/apache/parquet-format, Encodings.md, and the compact protocol of Apache Thrift.
"""

import struct
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any

import numpy as np

from facebones.data.mapped_file import Integers

DEEPEST = 16  # structs and lists within one another
BINARY, LIST, SET, STRUCT = 8, 9, 10, 12  # kinds of fields


def plain_spans(content: bytes | mmap, start: int, count: int) -> Integers:
    r"""(N, 2) spans of byte strings that each follow their length.

    >>> plain_spans(b"\x02\0\0\0ab\x01\0\0\0c", 0, 2).tolist()
    [[4, 6], [10, 11]]
    """
    ends, place = [], start
    take, size = struct.Struct("<I").unpack_from, len(content)
    for _ in range(count):
        place += 4 + take(content, place)[0]
        ends.append(place)
    if place > size:
        raise ValueError(place)
    stops = np.array(ends, np.int64)
    return np.stack([np.concatenate([[start], stops[:-1]])[: len(stops)] + 4, stops], axis=1)


def is_one_run(content: bytes, value: int, count: int) -> bool:
    """Whether levels are one run of a value: no value is missing."""
    try:
        header, place = _varint(content, 0)
    except IndexError:
        return False
    return header == count << 1 and content[place : place + 1] == bytes([value])


def run_lengths(content: bytes | mmap, width: int, count: int) -> Integers:
    r"""(N,) numbers of `width` bits, in runs of one value and in runs of packed bits.

    >>> run_lengths(b"\x06\x03" + b"\x03\x05\0", 2, 5).tolist()  # three times 3, then 1, 1, 0, 0, ...
    [3, 3, 3, 1, 1]
    """
    if width > 32:
        raise ValueError(width)
    numbers = np.zeros(count, np.int64)
    size = (width + 7) // 8
    done = place = 0
    while done < count:
        header, place = _varint(content, place)
        if header & 1:
            groups = min(header >> 1, -(-(count - done) // 8))
            packed = np.frombuffer(content, np.uint8, groups * width, place)
            place += (header >> 1) * width
            bits = np.unpackbits(packed, bitorder="little").reshape(groups * 8, width)
            run = bits.astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))
            taken = min(len(run), count - done)
            numbers[done : done + taken] = run[:taken]
        else:
            taken = min(header >> 1, count - done)
            numbers[done : done + taken] = int.from_bytes(content[place : place + size], "little")
            place += size
        if not taken:
            raise ValueError("an empty run")
        done += taken
    return numbers


# ---------------------------------------------------------------------------------------- Thrift's compact protocol


def _varint(content: bytes | mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number too long")


def read_struct(
    content: bytes, place: int, depth: int = 0, each: Mapping[int, Callable[[dict[int, Any]], object]] | None = None
) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and the place after it.

    Args:
        content: the bytes.
        place: where the struct begins.
        depth: structs and lists around this one.
        each: for long lists of structs, by the number of the field: gets each struct, and none is kept.

    Raises:
        IndexError, ValueError: it is broken.
    """
    if depth > DEEPEST:
        raise ValueError("structs within structs")
    fields: dict[int, Any] = {}
    number = 0
    while kind := content[place]:
        place += 1
        if kind >> 4:
            number += kind >> 4
        else:
            zigzag, place = _varint(content, place)
            number = zigzag >> 1 ^ -(zigzag & 1)
        if each and number in each and kind & 15 == LIST:
            place = _each_struct(content, place, each[number])
        else:
            fields[number], place = _field(content, place, kind & 15, depth)
    return fields, place + 1


def _each_struct(content: bytes, place: int, take: Callable[[dict[int, Any]], object]) -> int:
    """Pass on the structs of the list at a place, one by one; the place after it."""
    count, kind, place = _list_header(content, place)
    if count and kind != STRUCT:
        raise ValueError("a list of other things")
    for _ in range(count):
        fields, place = read_struct(content, place, 1)
        take(fields)
    return place


def _list_header(content: bytes, place: int) -> tuple[int, int, int]:
    """Number and kind of the elements of a list, and where the first one begins."""
    header = content[place]
    count, place = header >> 4, place + 1
    if count == 15:
        count, place = _varint(content, place)
    if count > len(content):  # each takes a byte at least
        raise ValueError("a list longer than its bytes")
    return count, header & 15, place


def _field(content: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, place
    if kind == 3:
        return content[place], place + 1
    if kind in (4, 5, 6):
        zigzag, place = _varint(content, place)
        return zigzag >> 1 ^ -(zigzag & 1), place
    if kind == 7:
        return None, place + 8
    if kind == BINARY:
        length, place = _varint(content, place)
        return content[place : place + length], place + length
    if kind in (LIST, SET):
        return _list(content, place, depth)
    if kind == STRUCT:
        return read_struct(content, place, depth + 1)
    raise ValueError(f"a field of kind {kind}")


def _list(content: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    if depth > DEEPEST:
        raise ValueError("lists within lists")
    count, kind, place = _list_header(content, place)
    values = []
    for _ in range(count):
        if kind in (1, 2):  # of a list, truth takes a byte
            value, place = content[place] == 1, place + 1
        else:
            value, place = _field(content, place, kind, depth + 1)
        values.append(value)
    return values, place


def whole_field(fields: Mapping[int, Any], number: int, most: int = 2**31) -> int:
    """A field that is a whole number from 0, below `most`."""
    value = fields.get(number)
    if type(value) is not int or not 0 <= value < most:
        raise ValueError(f"field {number}")
    return value
