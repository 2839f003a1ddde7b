"""Checkpoints that several processes write and any number of processes reads, without pickle.

Each process writes its rows of the large matrices (class centres, and their momentum) to a safetensors file of its own;
process 0 writes everything else, and the index last. Read, each process takes the rows that it needs, from whichever
files hold them. So a training goes on with another number of processes, or of shards, to the bit.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from facebones.errors import CheckpointError, RunError
from facebones.system import process_group
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.system.checkpoint_index import (
    Index,
    Matrix,
    Part,
    TensorName,
    check_cover,
    current_folder,
    folder_name,
    read_index,
    remove_folders,
    write_index,
)
from facebones.system.distributed import World
from facebones.system.files import atomic_write
from facebones.system.safetensors_file import (
    DTYPE_NAMES,
    DTYPES,
    Blocks,
    Entry,
    SafetensorsFile,
    file_size,
    new_tensor,
    write_tensors,
)


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive rows of a matrix that no process holds as a whole.

    Attributes:
        blocks: (n_i, D) each: one for each own shard, consecutive; a block may be empty.
        start: number of the first row.
        total: rows of the whole matrix.
    """

    blocks: Sequence[Tensor]
    start: int
    total: int

    @property
    def range(self) -> range:
        """The rows that are here."""
        return range(self.start, self.start + sum(map(len, self.blocks)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (C, D) of the whole matrix."""
        return (self.total, *self.blocks[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self.blocks[0].dtype


# --------------------------------------------------------------------------------------------------------- saving


def save_state(single: Path, index: Path, state: Mapping[str, Any], world: World) -> None:
    """Save a state: into one file if one process holds it whole, else as `save_sharded`. All processes call it.

    What was saved before in the other form is removed.

    Raises:
        RunError, ConfigError: the disk is full, or the place cannot be written. The older checkpoint stays.
    """
    if world.size > 1 or holds_rows(state):
        save_sharded(index, state, world)
        return
    save_checkpoint(single, state)
    remove_sharded(index)


def save_sharded(index: Path, state: Mapping[str, Any], world: World) -> None:
    """Save a state in a file for each process, and an index of them. All processes call it together.

    A kill at any moment leaves the older checkpoint or this one; `checkpoint_index.remove_leftovers` removes what else
    it leaves.

    Args:
        index: path of the index, a .json file; the parts go into a new folder beside it.
        state: nested dictionaries (keys: text or integers), lists, plain values and tensors, the same in all processes,
            and `Rows`, of which each process gives its own.
        world: the processes.

    Raises:
        RunError, ConfigError: the disk is full, or the place cannot be written, in all processes if it is so in one.
            The older checkpoint stays, and nothing else is left.
    """
    save = Save.planned(index, state, world)
    with save.removed_on_error():
        with process_group.agreed(world):
            save.write_part()
        with process_group.agreed(world):
            save.commit()


def holds_rows(state: Any) -> bool:
    """Whether a part of a state is spread over processes."""
    if isinstance(state, Mapping):
        return any(map(holds_rows, state.values()))
    return isinstance(state, Rows) or (isinstance(state, list | tuple) and any(map(holds_rows, state)))


@dataclass(frozen=True, eq=False)
class Save:
    """One save of one process, from the agreement on its files to the commit.

    Attributes:
        path: of the index.
        index: its content, the same in all processes.
        tensors: what this process writes.
        rank: of this process.
    """

    path: Path
    index: Index
    tensors: Mapping[str, Blocks]
    rank: int

    @classmethod
    def planned(cls, path: Path, state: Mapping[str, Any], world: World) -> "Save":
        """Agree with the other processes on a new folder and what each will write; nothing is written yet."""
        named: dict[str, Tensor | Rows] = {}
        plain = named_tensors(state, named)
        rows = {name: tensor for name, tensor in named.items() if isinstance(tensor, Rows)}
        own: dict[str, Blocks] = {name: tensor.blocks for name, tensor in rows.items()}
        with process_group.agreed(world):
            if world.is_first:
                own |= {name: [tensor] for name, tensor in named.items() if isinstance(tensor, Tensor)}
            ranges = {name: (tensor.range.start, tensor.range.stop) for name, tensor in rows.items()}
            told = (secrets.token_hex(4), file_size(own), ranges)
        answers = process_group.gather_objects(world, told)
        index = Index(
            folder_name(path, int(state.get("step", 0)), answers[0][0]),
            tuple(Part(f"part-{rank}-of-{world.size}.safetensors", answer[1]) for rank, answer in enumerate(answers)),
            {
                name: Matrix(DTYPE_NAMES[tensor.dtype], tensor.shape, tuple(range(*a[2][name]) for a in answers))
                for name, tensor in rows.items()
            },
            plain,
        )
        for name, matrix in index.matrices.items():
            check_cover(matrix, name)
        return cls(path, index, own, world.rank)

    @property
    def folder(self) -> Path:
        """The folder of this save's files."""
        return self.path.parent / self.index.folder

    def write_part(self) -> None:
        """Write the file of this process.

        Raises:
            RunError, ConfigError: it cannot be written.
        """
        with atomic_write(self.folder / self.index.parts[self.rank].name) as file:
            write_tensors(file, self.tensors)

    def commit(self) -> None:
        """In process 0: make this the checkpoint, after all processes have written; then remove those before it.

        Raises:
            RunError, ConfigError: a part is not there, or the index cannot be written.
        """
        if self.rank:
            return
        sizes: dict[str, int] = {}
        with suppress(OSError):  # no such folder; listing it, rather than asking for a file, makes NFS look again
            sizes = {file.name: file.stat().st_size for file in self.folder.iterdir()}
        for number, part in enumerate(self.index.parts):
            if sizes.get(part.name) != part.size:
                raise RunError(
                    f"{self.folder / part.name}: process {number} has written it, but it is not here; keep the run"
                    " folder on a file system that all machines share"
                )
        write_index(self.path, self.index)
        with suppress(OSError):  # it is older, so that nobody reads it
            self.path.with_suffix(".pt").unlink(missing_ok=True)
        remove_folders(self.path, self.index.folder)

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Remove the files of this save if the block fails before they became the checkpoint."""
        try:
            yield
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the files of this save, unless it is the checkpoint."""
        if self.rank == 0 and current_folder(self.path) != self.index.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def named_tensors(state: Any, named: dict[str, Tensor | Rows], place: str = "") -> Any:
    """A state with a TensorName for each tensor; `named` gets the tensors by these names."""
    inner = place + "." if place else ""
    if isinstance(state, Tensor | Rows):
        name = place
        while name in named or name == "__metadata__":
            name += "'"
        named[name] = state
        return TensorName(name)
    if isinstance(state, Mapping):
        return {key: named_tensors(value, named, f"{inner}{key}") for key, value in state.items()}
    if isinstance(state, list | tuple):
        items = [named_tensors(value, named, f"{inner}{number}") for number, value in enumerate(state)]
        return items if isinstance(state, list) else tuple(items)
    return state


def remove_sharded(index: Path) -> None:
    """Remove a sharded checkpoint."""
    index.unlink(missing_ok=True)
    remove_folders(index, None)


# -------------------------------------------------------------------------------------------------------- loading


def load_state(single: Path, index: Path, pattern: Any, world: World) -> dict[str, Any]:
    """Read the newest checkpoint of either form, for the processes that there are now. All processes call it together.

    Args:
        single: path of the file that one process alone writes.
        index: path of the index that several write.
        pattern: the fresh own state: where it holds `Rows`, these rows are read.
        world: the processes.

    Returns:
        The state as `save_state` got it, but for the division into rows. It may differ from the pattern in keys, types
        and shapes: see `training.state.check_structure`. Rows that would not fit are not read: they come as an empty
        block.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    with process_group.agreed(world):
        found = _load_newest(single, index, pattern, world)
    return found


def _load_newest(single: Path, index: Path, pattern: Any, world: World) -> dict[str, Any]:
    if newest(single, index) == index:
        return _load_sharded(index, pattern)
    found = load_checkpoint(single)
    return found if world.size == 1 and not holds_rows(pattern) else cast(dict[str, Any], fitted(found, pattern))


def load_sharded(index: Path, pattern: Any, world: World) -> dict[str, Any]:
    """Read a sharded checkpoint; see `load_state`."""
    with process_group.agreed(world):
        found = _load_sharded(index, pattern)
    return found


def newest(single: Path, index: Path) -> Path:
    """The newer checkpoint of the two forms; both are there only after a kill between the writes of two saves.

    Raises:
        CheckpointError: the only one that can say how new it is, is damaged.
    """
    if not (single.is_file() and index.is_file()):
        return index if index.is_file() else single
    ages = {}
    for path, state in ((single, load_checkpoint(single)), (index, read_index(index).state)):
        step = state.get("step")
        ages[path] = (step if isinstance(step, int) else -1, path.stat().st_mtime_ns)
    return max(ages, key=lambda path: ages[path])


def load_parts(index: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read some parts of the state in a sharded checkpoint, with whole tensors.

    Raises:
        CheckpointError: it is damaged.
    """
    with _Reader(index) as reader:
        state = reader.index.state
        return {key: reader.filled(state[key], None, reader.whole) for key in keys if key in state}


def _load_sharded(index: Path, pattern: Any) -> dict[str, Any]:
    with _Reader(index) as reader:
        found: dict[str, Any] = reader.filled(reader.index.state, pattern, reader.fitting)
        return found


def fitted(found: Any, pattern: Any) -> Any:
    """A state with rows cut as in the pattern, in memory of its own; what does not fit stays as it is."""
    if isinstance(found, dict):
        return {key: fitted(value, _inner(pattern, key)) for key, value in found.items()}
    if isinstance(found, list | tuple):
        items = [fitted(value, _inner(pattern, number)) for number, value in enumerate(found)]
        return items if isinstance(found, list) else tuple(items)
    fits = isinstance(found, Tensor) and found.layout == torch.strided and not found.is_meta
    if not fits or not isinstance(pattern, Tensor | Rows) or not _alike(found, pattern):
        return found
    if isinstance(pattern, Tensor):
        return found.clone()
    places = _block_places(pattern)
    return Rows([found[place.start : place.stop].clone() for place in places], pattern.start, pattern.total)


def _alike(found: Any, pattern: Any) -> bool:
    return (tuple(found.shape), found.dtype) == (tuple(pattern.shape), pattern.dtype)


def _block_places(rows: Rows) -> list[range]:
    """The rows of each block, as numbers in the whole matrix."""
    places, start = [], rows.start
    for block in rows.blocks:
        places.append(range(start, start + len(block)))
        start += len(block)
    return places


def _inner(pattern: Any, key: Any) -> Any:
    """The pattern of a value in a dictionary or list; None where there is none."""
    if isinstance(pattern, Mapping):
        return pattern.get(key)
    fits = isinstance(pattern, list | tuple) and isinstance(key, int) and key < len(pattern)
    return pattern[key] if fits else None


class _Reader:
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

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def filled(self, value: Any, pattern: Any, read: Callable[[str, Any], Any]) -> Any:
        """A part of the state, with what `read` gives for each tensor and its pattern."""
        if isinstance(value, TensorName):
            return read(value.name, pattern)
        if isinstance(value, dict):
            return {key: self.filled(item, _inner(pattern, key), read) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.filled(item, _inner(pattern, number), read) for number, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        return value

    def whole(self, name: str, _: Any = None) -> Tensor:
        """A tensor, whether it is spread over the parts or not."""
        matrix = self.index.matrices.get(name)
        if matrix is None:
            self._entry(0, name)
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
            for block, place in zip(blocks, _block_places(pattern), strict=True):
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
        file = self._part(number)
        if name not in file.entries:
            raise CheckpointError(f"{file.path}: lacks {name:.80}, which {self.path.name} names; restore the files")
        return file.entries[name]

    def _part(self, number: int) -> SafetensorsFile:
        """A part, opened and compared with the index."""
        if number not in self._open:
            file = SafetensorsFile(self._paths[number], self.index.parts[number].size)
            self._open[number] = self._stack.enter_context(file)
            for name, matrix in self.index.matrices.items():
                entry, shape = self._entry(number, name), (len(matrix.rows[number]), *matrix.shape[1:])
                if (entry.shape, entry.dtype) != (shape, DTYPES[matrix.dtype]):
                    raise CheckpointError(
                        f"{file.path}: {name:.80}: not the rows that {self.path.name} names; restore the files"
                    )
        return self._open[number]


def _laid_out(found: Tensor, pattern: Tensor) -> Tensor:
    """The same values with the strides of the pattern: torch's fused optimizers expect those of the parameter."""
    if found.stride() == pattern.stride():
        return found
    return torch.empty_like(pattern, device="cpu").copy_(found)
