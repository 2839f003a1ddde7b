"""The index of a sharded checkpoint: a JSON file with all plain values, and which rows of which matrix lie where.

    checkpoints/last.json                                   the index, written last: it is the commit point
    checkpoints/last-120-3f9c1e/part-0-of-2.safetensors     process 0: its rows, and all whole tensors
    checkpoints/last-120-3f9c1e/part-1-of-2.safetensors     process 1: its rows

Tensors stand in the state as `{"$tensor": NAME}`. Numbers survive to the bit, NaN and infinity too; keys of
dictionaries stay text or integers, and tuples stay tuples.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from facebones.errors import CheckpointError
from facebones.system.files import atomic_write, parse_json, read_at_most

FORMAT, VERSION = "facebones sharded checkpoint", 1
LARGEST_INDEX = 2**26  # bytes
NAME = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)  # of a folder or file: it stays in the folder above
NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class TensorName:
    """What stands for a tensor in the state of an index."""

    name: str


@dataclass(frozen=True)
class Part:
    """A file of a checkpoint, and its bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Matrix:
    """A matrix, and its rows in each part."""

    dtype: str
    shape: tuple[int, ...]
    rows: tuple[range, ...]


@dataclass(frozen=True)
class Index:
    """The content of an index.

    Attributes:
        folder: of the parts, beside the index.
        parts: the files, in the order of the processes that wrote them; the first holds the whole tensors too.
        matrices: those that are spread over the parts, by name.
        state: nested dictionaries, lists and plain values, with a TensorName for each tensor.
        names: of all tensors.
    """

    folder: str
    parts: tuple[Part, ...]
    matrices: Mapping[str, Matrix]
    state: dict[str, Any]
    names: frozenset[str]

    def paths(self, index: Path) -> list[Path]:
        """The files of the parts, of which none leads elsewhere by a link.

        Args:
            index: path of the index.

        Raises:
            CheckpointError: one is missing, or is a link.
        """
        above = index.parent.resolve()
        found = []
        for part in self.parts:
            path = index.parent / self.folder / part.name
            if path.resolve() != above / self.folder / part.name:
                _refuse(f"{path}: is a link")
            if not path.exists():
                raise CheckpointError(f"{path}: is missing, though {index.name} names it; restore the file")
            found.append(path)
        return found


def check_cover(matrix: Matrix, where: str) -> None:
    """Check that the parts hold each row once, in order.

    Raises:
        CheckpointError: rows overlap, or some are in no part.
    """
    ends = [0, *(rows.stop for rows in matrix.rows)]
    for number, rows in enumerate(matrix.rows):
        if rows.start != ends[number] or rows.stop < rows.start:
            what = "overlap" if rows.start < ends[number] else "leave a gap"
            _refuse(f"{where}: rows {rows.start} to {rows.stop} of part {number} {what}")
    if ends[-1] != matrix.shape[0]:
        _refuse(f"{where}: the parts hold {ends[-1]} rows of {matrix.shape[0]}")


# -------------------------------------------------------------------------------------------------------- writing


def write_index(path: Path, index: Index) -> None:
    """Write an index atomically.

    Raises:
        RunError, ConfigError: it cannot be written; an older one there stays.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "folder": index.folder,
        "parts": [{"name": part.name, "bytes": part.size} for part in index.parts],
        "matrices": {
            name: {
                "dtype": matrix.dtype,
                "shape": list(matrix.shape),
                "rows": [[rows.start, rows.stop] for rows in matrix.rows],
            }
            for name, matrix in index.matrices.items()
        },
        "state": _to_json(index.state),
    }
    text = json.dumps(content, allow_nan=False).encode()
    with atomic_write(path) as file:
        file.write(text + b"\n")


def _to_json(value: Any) -> Any:
    """A value as JSON has it; objects with one key that begins with $ stand for what JSON has not."""
    match value:
        case TensorName(name):
            return {"$tensor": name}
        case float() if not math.isfinite(value):
            return {"$float": str(value)}
        case None | bool() | int() | float() | str():
            return value
        case tuple():
            return {"$tuple": [_to_json(item) for item in value]}
        case list():
            return [_to_json(item) for item in value]
        case dict() if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _to_json(item) for key, item in value.items()}
        case dict() if all(type(key) in (str, int) for key in value):
            return {"$items": [[key, _to_json(item)] for key, item in value.items()]}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


# -------------------------------------------------------------------------------------------------------- reading


def read_index(path: Path) -> Index:
    """Read an index from an untrusted source.

    Raises:
        CheckpointError: it is missing or damaged; the message names the place.
    """
    from facebones.system.safetensors_file import open_regular  # here: it needs torch

    with open_regular(path) as file:
        try:
            text = read_at_most(file, LARGEST_INDEX + 1)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > LARGEST_INDEX:
        _refuse(f"{path}: has more than {LARGEST_INDEX} bytes")
    try:
        return _parse(parse_json(text), path)
    except ValueError as error:
        raise CheckpointError(f"{path}: no index of a checkpoint: {error!s:.100}; restore the file") from error
    except RecursionError:
        _refuse(f"{path}: nested too deeply")


def _parse(content: Any, path: Path) -> Index:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        _refuse(f"{path}: no index of a checkpoint")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: has version {content.get('version')!r:.20} of the format; this facebones reads {VERSION}: update"
        )
    match content:
        case {"folder": str(folder), "parts": list(parts), "matrices": dict(matrices), "state": dict(state)}:
            pass
        case _:
            _refuse(f"{path}: lacks folder, parts, matrices or state")
    if not NAME.fullmatch(folder):
        _refuse(f"{path}: folder: {folder!r:.60} is no name of a folder beside it")
    found_parts = tuple(_parse_part(part, f"{path}: parts.{number}") for number, part in enumerate(parts))
    if not parts or len({part.name for part in found_parts}) != len(parts):
        _refuse(f"{path}: parts: none, or one twice")
    found_matrices = {
        name: _parse_matrix(matrix, len(parts), f"{path}: matrices: {name:.80}") for name, matrix in matrices.items()
    }
    reader = _StateReader(path)
    found_state = reader.value(state)
    if not isinstance(found_state, dict):
        _refuse(f"{path}: state: no dictionary")
    if unused := found_matrices.keys() - reader.names:
        _refuse(f"{path}: matrices: {min(unused):.80} does not stand in the state")
    return Index(folder, found_parts, found_matrices, found_state, frozenset(reader.names))


def _parse_part(part: Any, where: str) -> Part:
    match part:
        case {"name": str(name), "bytes": int(size)} if NAME.fullmatch(name) and type(size) is int and size >= 0:
            return Part(name, size)
    _refuse(f"{where}: no name of a file with its bytes: {part!r:.60}")


def _parse_matrix(matrix: Any, parts: int, where: str) -> Matrix:
    from facebones.system.safetensors_file import DTYPES, is_shape

    match matrix:
        case {"dtype": str(dtype), "shape": [_, *_] as shape, "rows": list(rows)}:
            pairs = all(isinstance(pair, list) and len(pair) == 2 and is_shape(pair) for pair in rows)
            if dtype in DTYPES and is_shape(shape) and pairs and len(rows) == parts:
                found = Matrix(dtype, tuple(shape), tuple(range(start, stop) for start, stop in rows))
                check_cover(found, where)
                return found
    _refuse(f"{where}: no type and shape with rows of {parts} parts")


class _StateReader:
    """The inverse of `_to_json`.

    Attributes:
        names: the tensors met so far.
    """

    def __init__(self, path: Path) -> None:
        self.names: set[str] = set()
        self._path = path
        self._place: list[str | int] = ["state"]

    def value(self, value: Any) -> Any:
        """The value that JSON stands for."""
        if isinstance(value, list):
            return [self._inner(number, item) for number, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        special = next((key for key in value if key.startswith("$")), None)
        if special is None:
            return {key: self._inner(key, item) for key, item in value.items()}
        if len(value) == 1:
            match value:
                case {"$tensor": str(name)}:
                    return self._tensor(name)
                case {"$float": str(text)} if text in NOT_FINITE:
                    return float(text)
                case {"$tuple": list(items)}:
                    return tuple(self.value(items))
                case {"$items": list(items)}:
                    return self._dictionary(items)
        self._refuse(f"{special!r:.40} is not understood")

    def _inner(self, key: str | int, value: Any) -> Any:
        if not isinstance(value, dict | list):
            return value
        self._place.append(key)
        found = self.value(value)
        self._place.pop()
        return found

    def _tensor(self, name: str) -> TensorName:
        if name in self.names:
            self._refuse(f"the tensor {name:.80} stands twice in the state")
        self.names.add(name)
        return TensorName(name)

    def _dictionary(self, items: list[Any]) -> dict[str | int, Any]:
        found: dict[str | int, Any] = {}
        for pair in items:
            match pair:
                case [str() | int() as key, item] if type(key) is not bool and key not in found:
                    found[key] = self._inner(key, item)
                case _:
                    self._refuse(f"no key with its value: {pair!r:.60}")
        return found

    def _refuse(self, what: str) -> NoReturn:
        _refuse(f"{self._path}: {'.'.join(map(str, self._place)):.200}: {what}")


def _refuse(what: str) -> NoReturn:
    raise CheckpointError(f"{what}; damaged: restore the file")


# ------------------------------------------------------------------------------------------------------- leftovers


def folder_name(index: Path, step: int, token: str) -> str:
    """The folder of a save's parts."""
    return f"{index.stem}-{step}-{token}"


def remove_leftovers(index: Path) -> None:
    """Remove the parts of saves that are not the current one: of killed saves, and of older ones.

    An index that cannot be read keeps all parts.
    """
    if index.exists() and current_folder(index) is None:
        return
    remove_folders(index, current_folder(index))


def current_folder(index: Path) -> str | None:
    """The folder of the current save's parts; None if there is none, or its index cannot be read."""
    with suppress(CheckpointError):
        return read_index(index).folder
    return None


def remove_folders(index: Path, kept: str | None) -> None:
    """Remove the folders of all saves under this index but one."""
    own = re.compile(rf"{re.escape(index.stem)}-\d+-[0-9a-f]+")
    with suppress(OSError):
        for folder in index.parent.iterdir():
            if own.fullmatch(folder.name) and folder.name != kept and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
