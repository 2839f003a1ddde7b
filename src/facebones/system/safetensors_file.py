"""Safetensors files of any size: written and read piece by piece, without a copy of a tensor in memory.

The format (huggingface.co/docs/safetensors): 8 bytes with the length of the header, little-endian; the header as JSON;
then the values of all tensors, one after the other. The library `safetensors` reads and writes whole tensors; here a
tensor is written from blocks, and read by rows into blocks.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

from facebones.errors import CheckpointError, RunError
from facebones.system.files import parse_json
from facebones.system.regular_files import NO_FILE, open_descriptor

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALIGNMENT = 8  # bytes
WRITTEN_AT_ONCE = 2**24  # bytes
LARGEST_HEADER = 10**8  # bytes, as in the library
MOST_DIMENSIONS = 32
LARGEST_DIMENSION = 2**62

Blocks = Sequence[Tensor]  # (n_i, ...) each: one tensor, cut along its first dimension


def shape_of(blocks: Blocks) -> tuple[int, ...]:
    """The shape of the tensor that blocks make."""
    if len(blocks) == 1:
        return tuple(blocks[0].shape)
    return (sum(len(block) for block in blocks), *blocks[0].shape[1:])


def header_of(tensors: Mapping[str, Blocks]) -> bytes:
    """The beginning of a file that holds these tensors: all before the values.

    Raises:
        RunError: a tensor has a type or layout that the format does not know.
    """
    entries, end = {}, 0
    for name, blocks in _in_order(tensors):
        start, end = end, end + sum(block.numel() * block.element_size() for block in blocks)
        entries[name] = {
            "dtype": DTYPE_NAMES[blocks[0].dtype],
            "shape": list(shape_of(blocks)),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def file_size(tensors: Mapping[str, Blocks]) -> int:
    """Bytes of a file that holds these tensors."""
    blocks = [block for blocks in tensors.values() for block in blocks]
    return len(header_of(tensors)) + sum(block.numel() * block.element_size() for block in blocks)


def write_tensors(file: IO[bytes], tensors: Mapping[str, Blocks]) -> None:
    """Write tensors, each given in one block or several, which may lie on any device."""
    file.write(header_of(tensors))
    for _, blocks in _in_order(tensors):
        for block in blocks:
            _write_values(file, block.detach())


def _in_order(tensors: Mapping[str, Blocks]) -> list[tuple[str, Blocks]]:
    """The widest numbers first, so that each tensor begins at a multiple of its number's width."""
    for name, blocks in tensors.items():
        if blocks[0].dtype not in DTYPE_NAMES or any(block.layout != torch.strided for block in blocks):
            kind = f"{blocks[0].layout} of {blocks[0].dtype}".replace("torch.", "")
            raise RunError(f"{name}: a tensor {kind} cannot be saved; let the module keep it in another type")
    return sorted(tensors.items(), key=lambda item: -item[1][0].element_size())


def _write_values(file: IO[bytes], values: Tensor) -> None:
    if not values.numel():
        return
    rows = values if values.ndim else values.reshape(1)
    row_bytes = rows[0].numel() * rows.element_size()
    for piece in torch.split(rows, max(1, WRITTEN_AT_ONCE // row_bytes)):
        file.write(_bytes_of(piece.cpu().contiguous()))


def _bytes_of(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return values.reshape(-1).view(torch.uint8).numpy().data


# -------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its values begin at byte `start` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class SafetensorsFile:
    """An open safetensors file from an untrusted source. No memory is taken before the header has been checked.

    Args:
        path: of the file.
        size: bytes that it must have; None: any.

    Attributes:
        entries: the tensors by name.

    Raises:
        CheckpointError: missing, no regular file, of another size, or damaged.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self.path = path
        self._file = open_regular(path)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            if size not in (None, self.size):
                self._refuse(f"has {self.size} bytes instead of {size}")
            self.entries = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, name: str) -> Tensor:
        """A whole tensor, in memory of its own.

        Raises:
            CheckpointError: it cannot be read, or be held in memory.
        """
        entry = self.entries[name]
        found = new_tensor(entry.shape, entry.dtype, f"{self.path}: {name}")
        self._fill(entry.start, found)
        return found

    def read_rows(self, name: str, first: int, out: Tensor) -> None:
        """Read rows `first`, `first + 1`, ... of a tensor into `out` (n, ...), which is contiguous and on the CPU.

        Raises:
            CheckpointError: they cannot be read.
        """
        entry = self.entries[name]
        self._fill(entry.start + first * entry.row_bytes, out)

    def _fill(self, start: int, out: Tensor) -> None:
        if not out.numel():
            return
        memory = _bytes_of(out)
        try:
            self._file.seek(start)
            while memory:
                count = self._file.readinto(memory)  # type: ignore[attr-defined]
                if not count:
                    self._refuse("was cut short while it was read")
                memory = memory[count:]
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _read_header(self) -> dict[str, Entry]:
        try:
            length = int.from_bytes(self._file.read(8), "little")
            if self.size < 8 or length > min(self.size - 8, LARGEST_HEADER):
                self._refuse("no safetensors file, or cut short")
            content = parse_json(self._file.read(length))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            self._refuse(f"its header: {error!s:.100}")
        if not isinstance(content, dict):
            self._refuse("its header holds no tensors by name")
        content.pop("__metadata__", None)
        entries, places = {}, []
        for name, fields in content.items():
            dtype, shape, offsets = self._fields(name, fields)
            entries[name] = Entry(dtype, shape, 8 + length + offsets[0])
            places.append(offsets)
        self._check_places(sorted(places), self.size - 8 - length)
        return entries

    def _fields(self, name: str, fields: Any) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
        match fields:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)], **others}:
                sound = not others and dtype in DTYPES and is_shape(shape) and 0 <= start <= end
                if sound and end - start == math.prod(shape) * DTYPES[dtype].itemsize:
                    return DTYPES[dtype], tuple(shape), (start, end)
        self._refuse(f"its header: {name!s:.80}: no tensor that fits its place in the file")

    def _check_places(self, places: list[tuple[int, int]], total: int) -> None:
        ends = [0, *(end for _, end in places)]
        if [*(start for start, _ in places), total] != ends:
            self._refuse("its header: tensors overlap, leave gaps, or exceed the file")

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}; damaged: restore the file")


def is_shape(values: Sequence[Any]) -> bool:
    """Whether a list from a file is the shape of a tensor."""
    return len(values) <= MOST_DIMENSIONS and all(type(n) is int and 0 <= n <= LARGEST_DIMENSION for n in values)


def new_tensor(shape: Sequence[int], dtype: torch.dtype, where: str) -> Tensor:
    """An unfilled tensor of a shape that a file states.

    Raises:
        CheckpointError: memory for it is not to be had.
    """
    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, OverflowError, TypeError, MemoryError) as error:
        raise CheckpointError(f"{where}: a tensor {tuple(shape)!s:.60} does not fit into memory") from error


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading; neither a pipe, which would block, nor a device.

    Raises:
        CheckpointError: it is missing, cannot be read, or is no regular file.
    """
    try:
        return os.fdopen(open_descriptor(path), "rb")
    except OSError as error:
        if isinstance(error, IsADirectoryError) or error.strerror == NO_FILE:
            raise CheckpointError(f"{path}: is no regular file; damaged: restore the file") from error
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
