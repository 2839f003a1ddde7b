"""An image and a label in one value, as MessagePack or pickle: `(image, label)` or `(image, features, label)`.

Vec2Face and HSFace pack with MessagePack, older converters (folder2lmdb) with pickle. Neither is read by a library: of
MessagePack only what such a value needs is known, and pickles are read by `facebones.data.safe_pickle`.
"""

import struct
from collections.abc import Sequence
from mmap import mmap
from typing import NamedTuple

import numpy as np

from facebones.data.safe_pickle import PickledArray, PickledFile, read_pickle
from facebones.errors import DataError

MOST_PARTS = 16  # of a value
LONGEST_NAME = 1000  # bytes of a label in text
_NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_TEXTS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}


class Span(NamedTuple):
    """Bytes of a file."""

    start: int
    size: int


class Packed(NamedTuple):
    """What a value holds.

    Attributes:
        image: the encoded image: its place in the file, or a pickle's bytes.
        label: a number, or a name.
    """

    image: Span | bytes
    label: int | bytes


class _Unfit(Exception):  # noqa: N818 (becomes a DataError with the name of the value)
    """The value is something else, or is broken."""


def is_message(first: int) -> bool:
    """Whether a value with this first byte is an array of MessagePack, not a pickle.

    >>> is_message(0x92), is_message(0x80)
    (True, False)
    """
    return 0x90 <= first <= 0x9F or first in _ARRAYS


def unpack_message(content: bytes | mmap, span: Span, what: str) -> Packed:
    r"""Find image and label in an array of MessagePack.

    Args:
        content: the file.
        span: where the value is.
        what: name of the value, for errors.

    Raises:
        DataError: it is no array of an image and a label, or is broken.

    >>> unpack_message(b"\x92\xc4\x02ab\x07", Span(0, 6), "key 0")
    Packed(image=Span(start=3, size=2), label=7)
    """
    try:
        parts = _message_parts(content, *span)
        spans = [part for part in parts if isinstance(part, Span)]
        numbers = [part for part in parts if not isinstance(part, Span)]
        if not spans or len(numbers) > 1:
            raise _Unfit(_WANTED)
        last = spans[-1]
        return Packed(spans[0], numbers[0] if numbers else _name(content[last.start : last.start + last.size], spans))
    except _Unfit as error:
        raise DataError(f"{what}: {error}") from None
    except (struct.error, IndexError):
        raise DataError(f"{what}: the value is cut short; restore the file from its source") from None


def unpack_pickle(value: bytes, what: str) -> Packed:
    """Find image and label in a pickle, without running any of it; errors as of `unpack_message`.

    >>> import pickle
    >>> unpack_pickle(pickle.dumps((b"an image", 7)), "key 0")
    Packed(image=b'an image', label=7)
    """
    parts = read_pickle(value, what)
    try:
        if not isinstance(parts, list | tuple) or len(parts) > MOST_PARTS:
            raise _Unfit(_WANTED)
        texts = [text for text in map(_bytes, parts) if text is not None]
        numbers = [part for part in parts if type(part) is int]
        if not texts or len(numbers) > 1:
            raise _Unfit(_WANTED)
        return Packed(texts[0], numbers[0] if numbers else _name(texts[-1], texts))
    except _Unfit as error:
        raise DataError(f"{what}: {error}") from None


def lone_number(value: bytes) -> int | None:
    r"""The number in a value such as that of `__len__`, packed with MessagePack or pickle; None if it holds no number.

    >>> lone_number(b"\xcd\x01\x00"), lone_number(b"\x80\x04K\x07."), lone_number(b"\xc1")
    (256, 7, None)
    """
    try:
        if value[:1] in (b"\x80", b"I", b"L", b"K"):
            number = read_pickle(value, "a number")
            return number if type(number) is int else None
        (part,) = _message_parts(b"\x91" + value, 0, 1 + len(value))
    except (DataError, _Unfit, struct.error, IndexError):
        return None
    return part if isinstance(part, int) else None


_WANTED = "not an image and a label, as (image, label) or (image, features, label); restore the file or convert it"


def _message_parts(content: bytes | mmap, start: int, size: int) -> list[Span | int]:
    """The parts of an array: numbers, and the places of byte strings."""
    end = start + size
    code = content[start]
    place = start + 1
    if code in _ARRAYS:
        count, place = _number(content, place, _ARRAYS[code])
    else:
        count = code & 0x0F
    if not is_message(code) or count > MOST_PARTS:
        raise _Unfit(_WANTED)
    parts: list[Span | int] = []
    for _ in range(count):
        code = content[place]
        place += 1
        if code < 0x80 or code >= 0xE0:
            parts.append(code if code < 0x80 else code - 0x100)
        elif code in _NUMBERS:
            value, place = _number(content, place, _NUMBERS[code])
            parts.append(value)
        elif code in _TEXTS or 0xA0 <= code < 0xC0:
            length, place = _number(content, place, _TEXTS[code]) if code in _TEXTS else (code & 0x1F, place)
            parts.append(Span(place, length))
            place += length
        else:
            raise _Unfit(_WANTED)
        if place > end:
            raise IndexError(place)
    return parts


def _number(content: bytes | mmap, place: int, code: str) -> tuple[int, int]:
    """A number at a place, and the place after it."""
    return int(struct.unpack_from(code, content, place)[0]), place + struct.calcsize(code)


def _name(text: bytes, texts: Sequence[object]) -> bytes:
    """The last of several byte strings as a name."""
    if len(texts) < 2 or len(text) > LONGEST_NAME:
        raise _Unfit(_WANTED)
    return text


def _bytes(part: object) -> bytes | None:
    """A part of a pickle as bytes; None for a number."""
    if isinstance(part, PickledFile):
        return part.content
    if isinstance(part, PickledArray) and part.objects is None and part.values.dtype == np.uint8:
        return part.values.tobytes()
    if isinstance(part, str):
        return part.encode("utf-8", "surrogateescape")
    return part if isinstance(part, bytes) else None
