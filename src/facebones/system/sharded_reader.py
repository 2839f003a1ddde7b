"""Reading a sharded checkpoint: whole tensors, or the rows that one process needs, from whichever files hold them."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facebones.errors import CheckpointError
from facebones.system.checkpoint_index import TensorName, read_index
from facebones.system.rows import Rows, inner_pattern
from facebones.system.safetensors_file import DTYPES, Entry, SafetensorsFile, new_tensor


class SavedParts:
    """The open files of a sharded checkpoint.

    Args:
        path: of the index.

    Attributes:
        index: its content.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, read_index(path)
        self._paths = self.index.paths(path)
        self._open: dict[int, SafetensorsFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "SavedParts":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def filled(self, value: Any, pattern: Any, read: Callable[[str, Any], Any]) -> Any:
        """A part of the state, with what `read` gives for each tensor and its pattern."""
        if isinstance(value, TensorName):
            return read(value.name, pattern)
        if isinstance(value, dict):
            return {key: self.filled(item, inner_pattern(pattern, key), read) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.filled(item, inner_pattern(pattern, number), read) for number, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        return value

    def whole(self, name: str, _: Any = None) -> Tensor:
        """A tensor, whether it is spread over the parts or not."""
        matrix = self.index.matrices.get(name)
        if matrix is None:
            return self._part(0).read(name)
        for number in range(len(matrix.rows)):  # before memory is taken
            self._part(number)
        found = new_tensor(matrix.shape, DTYPES[matrix.dtype], f"{self.path}: {name}")
        self._read_rows(name, range(matrix.shape[0]), found)
        return found

    def fitting(self, name: str, pattern: Any) -> Any:
        """The rows that the pattern has, or the whole tensor; an empty block where the whole would not fit."""
        matrix = self.index.matrices.get(name)
        shape, dtype = self._kind(name)
        alike = isinstance(pattern, Tensor | Rows) and (shape, dtype) == (tuple(pattern.shape), pattern.dtype)
        if isinstance(pattern, Rows) and alike:
            where = f"{self.path}: {name}"
            blocks = [new_tensor(block.shape, dtype, where) for block in pattern.blocks]
            for block, place in zip(blocks, pattern.places, strict=True):
                self._read_rows(name, place, block)
            return Rows(blocks, pattern.start, pattern.total)
        if isinstance(pattern, Tensor) and alike:
            return _laid_out(self.whole(name), pattern)
        if shape and (matrix is not None or isinstance(pattern, Rows)):
            return Rows([new_tensor((0, *shape[1:]), dtype, f"{self.path}: {name}")], 0, shape[0])
        return self.whole(name)

    def _kind(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        if matrix := self.index.matrices.get(name):
            return matrix.shape, DTYPES[matrix.dtype]
        entry = self._entry(0, name)
        return entry.shape, entry.dtype

    def _read_rows(self, name: str, wanted: range, out: Tensor) -> None:
        """Fill `out` with these rows, from all parts that hold some."""
        matrix = self.index.matrices.get(name)
        held = matrix.rows if matrix else (range(self._entry(0, name).shape[0]),)
        for number, rows in enumerate(held):
            start, stop = max(rows.start, wanted.start), min(rows.stop, wanted.stop)
            if start < stop:
                self._part(number).read_rows(name, start - rows.start, out[start - wanted.start : stop - wanted.start])

    def _entry(self, number: int, name: str) -> Entry:
        return self._part(number).entries[name]

    def _part(self, number: int) -> SafetensorsFile:
        """A part, opened and compared with the index."""
        if number not in self._open:
            file = SafetensorsFile(self._paths[number], self.index.parts[number].size)
            self._open[number] = self._stack.enter_context(file)
            self._compare(file, number)
        return self._open[number]

    def _compare(self, file: SafetensorsFile, number: int) -> None:
        matrices, index = self.index.matrices, self.path.name
        names = matrices.keys() if number else self.index.names
        if missing := names - file.entries.keys():
            raise CheckpointError(f"{file.path}: lacks {min(missing):.80}, which {index} names; restore the files")
        if more := file.entries.keys() - names:
            raise CheckpointError(f"{file.path}: holds {min(more):.80}, which {index} does not; restore the files")
        for name, matrix in matrices.items():
            entry, shape = file.entries[name], (len(matrix.rows[number]), *matrix.shape[1:])
            if (entry.shape, entry.dtype) != (shape, DTYPES[matrix.dtype]):
                raise CheckpointError(f"{file.path}: {name:.80}: not the rows that {index} names; restore the files")


def _laid_out(found: Tensor, pattern: Tensor) -> Tensor:
    """The same values with the strides of the pattern: torch's fused optimizers expect those of the parameter."""
    if found.stride() == pattern.stride():
        return found
    return torch.empty_like(pattern, device="cpu").copy_(found)
