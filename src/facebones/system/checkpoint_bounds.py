"""Bounds of a checkpoint from elsewhere: it builds no more than a small multiple of its own bytes.

torch's weights-only loader runs no code, but a few bytes can ask it for `bytearray(10**12)`, a thousand copies of one
text, or a list in which each level holds the one below twice, which takes forever to search or to print. So the
instructions are followed once with the sizes of the values alone, before torch sees them, and the loaded values are
counted.
"""

import io
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

from torch import Tensor

from facebones.system.regular_files import open_regular

MOST_BUILT = 20  # bytes or elements, for each byte of the file
LEAST_BUILT = 2**16  # that any file may build
DEEPEST = 100  # levels of dictionaries and lists
LONGEST_NUMBER = 1024  # bits
OLDER_PICKLES = 5  # in a file of torch before 1.6: its mark, version, system, values, and names of storages
# They reserve as much as a number among their arguments says. Checkpoints of tensors do not call them.
RESERVING = (
    *("builtins.bytearray", "__builtin__.bytearray", "torch.Tensor", "torch.storage.", "torch.cuda."),
    "torch._utils._rebuild_qtensor",
)
CONTAINERS = (dict, list, tuple, set)
REBUILDING = "torch._utils._rebuild_"  # these refer to storages, and copy nothing


class OutOfBounds(Exception):  # noqa: N818 (becomes a CheckpointError with the file's name)
    """The file asks for more than it may."""


def check_instructions(path: Path, *, is_archive: bool) -> None:
    """Check what the pickles in a `.pt` or `.pth` file ask for.

    Raises:
        OutOfBounds: it is compressed, or asks for far more than the file holds.
        OSError: it cannot be read.
        ValueError: a pickle is cut short. zipfile's errors are raised for a damaged archive.
    """
    size = path.stat().st_size
    with open_regular(path) as file:
        if not is_archive:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # reads no more than there is
                _follow_all(content, size, size)
            return
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
                raise OutOfBounds("is compressed otherwise than torch does")
            # TorchScript archives compress their code.
            if sum(member.file_size for member in members) > MOST_BUILT * size:
                raise OutOfBounds(f"is an archive whose parts claim more than {MOST_BUILT} times its bytes")
            for member in members:
                if member.filename.endswith("data.pkl"):
                    _follow_all(io.BytesIO(archive.read(member)), member.file_size, size)


def _follow_all(file: IO[bytes] | mmap.mmap, length: int, size: int) -> None:
    """Follow each pickle up to the end, or to an instruction at which torch stops as well, and says why."""
    for _ in range(OLDER_PICKLES):
        if file.tell() >= length:
            return
        machine = _Sizes(size)
        for instruction, argument, _ in pickletools.genops(file):  # type: ignore[arg-type] # it only reads
            try:
                machine.STEPS[instruction.name](machine, argument)
            except (LookupError, TypeError, AttributeError):
                return


def check_content(content: Any, size: int) -> None:
    """Check the numbers and tensors in what was loaded. Values may be within themselves, as in foreign checkpoints.

    Raises:
        OutOfBounds: a number has thousands of digits, or the tensors are far larger than the file.
    """
    seen: set[int] = set()
    elements = 0
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor) and not value.is_meta:
            elements += value.numel()
        elif isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
            raise OutOfBounds(f"holds a whole number of {value.bit_length()} bits")
        elif isinstance(value, CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(_inside(value))
        if elements > _most(size):
            raise OutOfBounds("holds tensors that are far larger than it is")


def check_tree(content: Any, size: int) -> None:
    """Check that values are a tree with no more parts than the file has bytes, so that they can be compared and shown.

    Raises:
        OutOfBounds: they are nested too deeply, within themselves, or the same ones again and again.
    """
    parts = 0
    waiting = [iter([content])]
    while waiting:
        value = next(waiting[-1], waiting)
        if value is waiting:
            waiting.pop()
            continue
        parts += 1
        if isinstance(value, CONTAINERS):
            waiting.append(_inside(value))
        if parts > _most(size):
            raise OutOfBounds("refers to the same values so often that they are far more than the file holds")
        if len(waiting) > DEEPEST:
            raise OutOfBounds(f"holds values nested in more than {DEEPEST} levels")


def _most(size: int) -> int:
    return max(LEAST_BUILT, MOST_BUILT * size)


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        return iter([part for pair in value.items() for part in pair])
    return iter(value)


class _Value:
    """A value in a pickle: how many elements or bytes it has, and the parts of a tuple."""

    __slots__ = ("name", "number", "parts", "size")

    def __init__(self, size: int = 1, *, name: str = "", number: int = 0, parts: "tuple[_Value, ...]" = ()) -> None:
        self.size, self.name, self.number, self.parts = size, name, number, parts


class _Sizes:
    """The stack machine of a pickle with the sizes of the values in their place."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.built = 0
        self.stack: list[_Value] = []
        self.marked: list[list[_Value]] = []
        self.memo: dict[int, _Value] = {}

    def literal(self, argument: Any) -> None:
        is_number = isinstance(argument, int)
        size = len(argument) if isinstance(argument, str | bytes) else 1
        self.stack.append(_Value(size, number=int(argument) if is_number else 0))

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[_Value]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def tuple_of(self, count: int | None) -> None:
        parts = self.pop_mark() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(_Value(len(parts), parts=tuple(parts)))

    def grow(self, items: int, drop: int = 0) -> None:
        del self.stack[len(self.stack) - drop :]
        self.stack[-1].size += items

    def call(self) -> None:
        """A call copies its arguments, unless it rebuilds a tensor."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if not arguments.parts and arguments.size:
            raise OutOfBounds(f"calls {called.name or 'a value':.80} with a value that is no tuple of arguments")
        for one in (called, *arguments.parts):  # `_rebuild_from_type_v2` calls one of its arguments
            if one.name.startswith(RESERVING) or one.name.endswith("Tensor"):
                raise OutOfBounds(f"calls {one.name:.80}, which checkpoints of tensors do not")
        copied = 1 if called.name.startswith(REBUILDING) else 1 + sum(part.size for part in arguments.parts)
        self.copy(copied)
        self.stack.append(_Value(copied))

    def copy(self, size: int) -> None:
        self.built += size
        if self.built > _most(self.size):
            raise OutOfBounds("builds far more than it holds")

    def storage(self) -> None:
        """A storage's name ends in its number of elements, for which older files have memory set aside."""
        named = self.stack.pop()
        if any(part.number > self.size for part in named.parts):
            raise OutOfBounds("claims tensors that are larger than it is")
        self.stack.append(_Value())

    STEPS: ClassVar[dict[str, Callable[["_Sizes", Any], object]]] = {
        **dict.fromkeys(("PROTO", "STOP", "FRAME"), lambda m, a: None),
        **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE"), lambda m, a: m.literal(None)),
        **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), lambda m, a: m.literal(a)),
        **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), lambda m, a: m.literal(a)),
        **dict.fromkeys(
            ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE"), lambda m, a: m.stack.append(_Value(0))
        ),
        **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, a: m.stack.append(m.memo[a])),
        **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, a: m.memo.__setitem__(a, m.stack[-1])),
        **dict.fromkeys(("APPENDS", "SETITEMS"), lambda m, a: m.grow(len(m.pop_mark()))),
        **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, a: m.call()),
        "GLOBAL": lambda m, a: m.stack.append(_Value(name=a.replace(" ", "."))),
        "MARK": lambda m, a: m.mark(),
        "TUPLE": lambda m, a: m.tuple_of(None),
        "TUPLE1": lambda m, a: m.tuple_of(1),
        "TUPLE2": lambda m, a: m.tuple_of(2),
        "TUPLE3": lambda m, a: m.tuple_of(3),
        "APPEND": lambda m, a: m.grow(1, drop=1),
        "SETITEM": lambda m, a: m.grow(1, drop=2),
        "BUILD": lambda m, a: m.copy(m.stack.pop().size),
        "BINPERSID": lambda m, a: m.storage(),
    }
