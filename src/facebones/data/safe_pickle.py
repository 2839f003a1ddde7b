"""Read a pickle as data: lists, tuples, numbers, strings, bytes, `io.BytesIO` and plain NumPy arrays.

Python's own reader imports and calls whatever the file names. This one cannot: names are looked up in a short table of
functions in this module, and an instruction outside of the table of instructions is refused.
"""

import codecs
import math
import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError


@dataclass
class PickledType:
    """A NumPy type: booleans, numbers, bytes of a fixed length ("S9"), or Python objects ("O8")."""

    code: str
    order: str = "="

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy type."""
        return np.dtype(f"{self.order}{self.code}")

    @property
    def of_objects(self) -> bool:
        """Whether an array of this type is pickled as a list of objects."""
        return self.code.startswith("O")


@dataclass
class PickledArray:
    """A NumPy array of numbers or bytes; a pickle creates it empty and fills it later."""

    values: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    objects: list[Any] | None = None  # of an array of objects: the list in the pickle, in the array's order

    def to_list(self) -> list[Any]:
        """The elements in order; an array of objects gives its own list, without a copy."""
        return self.values.ravel().tolist() if self.objects is None else self.objects


@dataclass
class PickledFile:
    """An `io.BytesIO`; a pickle creates it empty and fills it later."""

    content: bytes = b""


MOST_AXES = 8  # of an array; images have three, and a stack of images four
MOST_ELEMENTS = 2**40  # along an axis
_PRINTED = re.compile(rb"(?:[^\\]++|\\(?:[\\'\"ntr]|x[0-9a-f]{2}))*+", re.DOTALL)


class _Unfit(Exception):  # noqa: N818 (becomes a DataError with file and byte)
    """The pickle is broken, or asks for more than data."""


def read_pickle(content: bytes | mmap.mmap, what: str) -> Any:
    """Read a pickle of any protocol, from Python 2 or 3, without running any of it.

    Args:
        content: the pickle.
        what: name of the file, for errors.

    Returns:
        The object; strings of Python 2, bytearrays and byte arrays become bytes, NumPy arrays become `PickledArray`,
        an `io.BytesIO` becomes a `PickledFile`.

    Raises:
        DataError: it is not a pickle, is cut short, or asks for anything else; names the byte offset.

    >>> import pickle
    >>> read_pickle(pickle.dumps([b"image", (True, 3)]), "a.bin")
    [b'image', (True, 3)]
    >>> read_pickle(pickle.dumps(print), "a.bin")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    facebones.errors.DataError: a.bin, byte ...: the pickle asks for builtins.print, ...
    """
    reader = _Reader(content)
    try:
        return reader.run()
    except _Unfit as error:
        raise DataError(f"{what}, byte {reader.start}: {error}") from error
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise DataError(f"{what}, byte {reader.start}: not a sound pickle; restore the file from its source") from error


@dataclass(frozen=True)
class _Name:
    """An allowed name, and the function of this module that replaces what it names."""

    name: str
    build: Callable[..., Any]


class _Reader:
    """The stack machine of a pickle: a stack, the stacks below the marks, and a memo."""

    def __init__(self, content: bytes | mmap.mmap) -> None:
        self.content = content
        self.built = {bytes: 0, PickledArray: 0}
        self.start = self.position = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Follow the instructions up to STOP and return the top of the stack."""
        while True:
            self.start = self.position
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            step = self.STEPS.get(code)
            if step is None:
                raise _Unfit(_refusal(code))
            step(self)

    def take(self, size: int) -> bytes:
        """Take the next bytes; never allocates more than the file has."""
        end = self.position + size
        if size < 0 or end > len(self.content):
            raise _Unfit("the pickle is cut short; restore the file from its source")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def line(self) -> bytes:
        end = self.content.find(b"\n", self.position)
        if end < 0:
            raise _Unfit("the pickle is cut short; restore the file from its source")
        taken = self.content[self.position : end]
        self.position = end + 1
        return taken

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self.take(struct.calcsize(code)))[0])

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """Take the items above the last mark."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def push_tuple(self, size: int) -> None:
        items = self.stack[len(self.stack) - size :]
        if len(items) < size:
            raise IndexError(size)
        del self.stack[len(self.stack) - size :]
        self.push(tuple(items))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError(type(target))
        target.extend(items)

    def memorize(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def integer(self, text: bytes) -> None:
        """Text of an INT or LONG; protocols 0 and 1 write True as 01 and False as 00."""
        if len(text) > 24:
            raise _Unfit("a number too long for a pair list; refused")
        self.push({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text.rstrip(b"L")))

    def decimal(self, text: bytes) -> None:
        """Text of a FLOAT."""
        if len(text) > 40:
            raise _Unfit("a number too long for a pair list; refused")
        self.push(float(text))

    def quoted(self, text: bytes) -> None:
        """Text of a STRING: with quotes and escapes, as Python 2 printed it."""
        inner = text[1:-1]
        if len(text) < 2 or text[:1] not in b"\"'" or text[:1] != text[-1:] or not _PRINTED.fullmatch(inner):
            raise ValueError(text[:20])
        self.push(codecs.escape_decode(inner)[0])

    def name(self, module: object, name: object) -> None:
        full = f"{_text(module)}.{_text(name)}"
        build = _NAMES.get(full)
        if build is None:
            shown = ascii(full[:80])[1:-1]
            raise _Unfit(f"the pickle asks for {shown}, which a pair list does not need; refused, nothing was run")
        self.push(_Name(full, build))

    def name_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def call(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise TypeError(name)
        result = name.build(*arguments)
        if isinstance(result, bytes):
            # A scalar copies the bytes that it is made of, as an array does; bytes of bytes are the same object.
            kind = PickledArray if name.build is _scalar else bytes
            self.count(kind, 0 if any(result is argument for argument in arguments) else len(result))
        elif isinstance(result, PickledArray):
            self.count(PickledArray, result.values.nbytes)
        self.push(result)

    def new_object(self) -> None:
        """Create an `io.BytesIO`, the only object that a pair list may hold beside plain data."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or name.name != "_io.BytesIO" or arguments != ():
            raise _Unfit(_refusal(b"\x81"))
        self.push(PickledFile())

    def count(self, kind: type, size: int) -> None:
        """Refuse a small file that builds many objects from the same bytes: each object copies them."""
        self.built[kind] += size
        if self.built[kind] > len(self.content):
            raise _Unfit("the pickle builds more bytes than it holds; refused")

    def instance(self) -> None:
        self.name(self.line(), self.line())
        _no_call()

    def fill(self) -> None:
        """Set the byte order of a NumPy type, the values of an array, or the content of a BytesIO."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, PickledType):
            target.order = _text(state[1])
            if target.order not in "<>=|":
                raise ValueError(target.order)
        elif isinstance(target, PickledArray):
            _, shape, kind, by_columns, raw = state
            filled = _array(raw, kind, shape, "F" if by_columns else "C")
            target.values, target.objects = filled.values, filled.objects
            self.count(PickledArray, target.values.nbytes)
        elif isinstance(target, PickledFile):
            if not isinstance(state[0], bytes):  # text would be encoded again for each file
                raise TypeError(state[0])
            target.content = state[0]
        else:
            raise TypeError(target)

    STEPS: ClassVar[dict[bytes, Callable[["_Reader"], object]]] = {
        b"\x80": lambda r: r.take(1),  # protocol
        b"\x95": lambda r: r.take(8),  # frame
        b"(": lambda r: r.mark(),
        b"0": lambda r: r.stack.pop(),
        b"1": lambda r: r.pop_mark(),
        b"p": lambda r: r.memorize(int(r.line()[:20])),
        b"q": lambda r: r.memorize(r.number("<B")),
        b"r": lambda r: r.memorize(r.number("<I")),
        b"\x94": lambda r: r.memorize(len(r.memo)),
        b"g": lambda r: r.push(r.memo[int(r.line()[:20])]),
        b"h": lambda r: r.push(r.memo[r.number("<B")]),
        b"j": lambda r: r.push(r.memo[r.number("<I")]),
        b"N": lambda r: r.push(None),
        b"\x88": lambda r: r.push(True),
        b"\x89": lambda r: r.push(False),
        b"I": lambda r: r.integer(r.line()),
        b"L": lambda r: r.integer(r.line()),
        b"F": lambda r: r.decimal(r.line()),
        b"G": lambda r: r.push(float(struct.unpack(">d", r.take(8))[0])),
        b"K": lambda r: r.push(r.number("<B")),
        b"M": lambda r: r.push(r.number("<H")),
        b"J": lambda r: r.push(r.number("<i")),
        b"\x8a": lambda r: r.push(int.from_bytes(r.take(r.number("<B")), "little", signed=True)),
        b"S": lambda r: r.quoted(r.line()),
        b"T": lambda r: r.push(r.take(r.number("<i"))),
        b"U": lambda r: r.push(r.take(r.number("<B"))),
        b"B": lambda r: r.push(r.take(r.number("<I"))),
        b"C": lambda r: r.push(r.take(r.number("<B"))),
        b"\x8e": lambda r: r.push(r.take(r.number("<Q"))),
        b"\x96": lambda r: r.push(r.take(r.number("<Q"))),
        b"V": lambda r: r.push(r.line().decode("raw-unicode-escape")),
        b"X": lambda r: r.push(r.take(r.number("<I")).decode("utf-8", "surrogatepass")),
        b"\x8c": lambda r: r.push(r.take(r.number("<B")).decode("utf-8", "surrogatepass")),
        b"\x8d": lambda r: r.push(r.take(r.number("<Q")).decode("utf-8", "surrogatepass")),
        b"]": lambda r: r.push([]),
        b"l": lambda r: r.push(r.pop_mark()),
        b"a": lambda r: r.append([r.stack.pop()]),
        b"e": lambda r: r.append(r.pop_mark()),
        b")": lambda r: r.push(()),
        b"t": lambda r: r.push(tuple(r.pop_mark())),
        b"\x85": lambda r: r.push_tuple(1),
        b"\x86": lambda r: r.push_tuple(2),
        b"\x87": lambda r: r.push_tuple(3),
        b"c": lambda r: r.name(r.line(), r.line()),
        b"i": lambda r: r.instance(),
        b"\x93": lambda r: r.name_from_stack(),
        b"R": lambda r: r.call(),
        b"\x81": lambda r: r.new_object(),
        b"b": lambda r: r.fill(),
    }


def _refusal(code: bytes) -> str:
    import pickletools

    known = {instruction.code: instruction.name for instruction in pickletools.opcodes}.get(code.decode("latin-1"))
    if known is None:
        return f"not a pickle (0x{code.hex()} is no instruction); name a verification set or restore the file"
    return f"the pickle asks for the instruction {known}, which a pair list does not need; refused, nothing was run"


def _text(value: object) -> str:
    """A name as Python 2 (bytes) or 3 (str) wrote it."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, str):
        return value
    raise TypeError(type(value))


def _encode(text: str, encoding: object = "latin1") -> bytes:
    """Replace `_codecs.encode` and `bytes(text, encoding)`: how Python 3 writes bytes in protocols 0 to 2."""
    if _text(encoding) not in ("latin1", "latin-1"):
        raise ValueError(encoding)
    return text.encode("latin-1")


def _bytes(content: object = b"", encoding: object = "latin1") -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return _encode(content, encoding)
    raise TypeError(content)


_TYPES = re.compile(r"b1|[iu][1248]|f[248]|O[48]|S[1-9][0-9]{0,9}")


def _type(code: object, *_: object) -> PickledType:
    name = _text(code)
    if name in ("S", "S0", "a0"):  # bytes without a length: numpy 2 writes the length into the name
        raise _Unfit("a numpy array of empty texts; restore the file from its source")
    if not _TYPES.fullmatch(name):
        raise _Unfit(f"the pickle asks for a numpy array of type {name}, which a pair list does not need; refused")
    return PickledType(name, "|" if name[0] in "OS" else "=")


def _scalar(kind: PickledType, raw: object) -> Any:
    """A NumPy scalar as a Python number or as bytes."""
    if kind.of_objects:
        raise TypeError(kind)
    return _array(raw, kind, (1,)).values[0].item()


def _array(raw: object, kind: PickledType, shape: tuple[int, ...], order: object = "C") -> PickledArray:
    if kind.of_objects:
        return _object_array(raw, shape, order)
    if not isinstance(raw, bytes):  # text would be encoded again for each array
        raise TypeError(raw)
    if _elements(shape) * kind.numpy.itemsize != len(raw):
        raise _Unfit(f"a numpy array of shape {shape} over {len(raw)} bytes; restore the file from its source")
    return PickledArray(np.frombuffer(raw, dtype=kind.numpy).reshape(shape, order="F" if order == "F" else "C"))


def _from_buffer(
    raw: object, kind: PickledType, shape: tuple[int, ...], order: object, axis_order: object = None
) -> PickledArray:
    """Replace NumPy's `_frombuffer`: how protocol 5 writes an array. One in order "K" has its axes in `axis_order`."""
    if order != "K" or axis_order is None:
        return _array(raw, kind, shape, order)
    array = _array(raw, kind, shape)  # checks the shape
    axes = axis_order if isinstance(axis_order, tuple) and len(axis_order) == len(shape) else ()
    if array.objects is not None or not all(type(axis) is int for axis in axes) or sorted(axes) != [*range(len(shape))]:
        raise _Unfit("a numpy array in an order of axes that no array has; restore the file from its source")
    return PickledArray(array.values.transpose(axes))


def _elements(shape: object) -> int:
    """Number of elements of an array. A shape is not believed: a product of texts or of huge numbers takes forever."""
    sizes = shape if isinstance(shape, tuple) and len(shape) <= MOST_AXES else (-1,)
    if not all(type(size) is int and 0 <= size <= MOST_ELEMENTS for size in sizes):
        raise _Unfit("a numpy array of a shape that no array has; restore the file from its source")
    return math.prod(sizes)


def _object_array(objects: object, shape: tuple[int, ...], order: object) -> PickledArray:
    """An array of objects, by reference: the objects exist already, so it takes no memory of its own."""
    if not isinstance(objects, list):
        raise TypeError(objects)
    if _elements(shape) != len(objects):
        raise _Unfit(f"a numpy array of shape {shape} over {len(objects)} objects; restore the file from its source")
    if order == "F" and sum(size > 1 for size in shape) > 1:
        raise _Unfit("a numpy array of objects in columns, whose order is not that of the pairs; refused")
    return PickledArray(objects=objects)


def _byte_array(code: object, values: object) -> bytes:
    """Replace `array.array`: how Python 3 writes an array of bytes in protocols 0 to 2."""
    if (kind := _text(code)) != "B" or not isinstance(values, list):
        raise _Unfit(f"the pickle asks for array.array of type {kind[:4]!r}; a pair list needs bytes ('B'); refused")
    return bytes(values)


def _rebuilt_byte_array(_: object, code: object, machine_format: object, raw: object) -> bytes:
    """Replace `array._array_reconstructor`: how Python 3 writes an array of bytes in protocols 3 to 5."""
    if not isinstance(raw, bytes) or machine_format != 0:
        raise TypeError(raw)
    return _byte_array(code, []) or raw


def _no_call(*_: object) -> NoReturn:
    raise _Unfit("the pickle calls a name that is no function of a pair list; refused, nothing was run")


_NAMES: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "_io.BytesIO": _no_call,
    "array._array_reconstructor": _rebuilt_byte_array,
    "array.array": _byte_array,
    "numpy.dtype": _type,
    "numpy.ndarray": _no_call,
    **dict.fromkeys([f"{module}.bytes" for module in ("builtins", "__builtin__")], _bytes),
    **dict.fromkeys([f"{module}.bytearray" for module in ("builtins", "__builtin__")], _bytes),
    **dict.fromkeys([f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")], lambda *_: PickledArray()),
    **dict.fromkeys([f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")], _scalar),
    **dict.fromkeys([f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")], _from_buffer),
}
