"""Checkpoints that several processes write and any number of processes reads, without pickle.

Each process writes its rows of the large matrices (class centres, and their momentum) to a safetensors file of its own;
process 0 writes everything else, and the index last. Read, each process takes the rows that it needs, from whichever
files hold them. So a training continues with another number of processes, or of shards, to the bit.
"""

import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from facebones.errors import CheckpointError, RunError
from facebones.system import process_group
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.system.checkpoint_index import (
    Index,
    Matrix,
    Part,
    check_cover,
    current_folder,
    folder_name,
    read_index,
    remove_folders,
    write_index,
)
from facebones.system.distributed import World
from facebones.system.files import atomic_write
from facebones.system.rows import Rows, fitted, holds_rows, named_tensors
from facebones.system.safetensors_file import DTYPE_NAMES, Blocks, file_size, write_tensors
from facebones.system.sharded_reader import SavedParts

__all__ = ["Rows", "Save", "load_parts", "load_sharded", "load_state", "newest", "save_sharded", "save_state"]

LOOKS = 5  # at a checkpoint that a training replaces

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
            ranges = {name: (tensor.span.start, tensor.span.stop) for name, tensor in rows.items()}
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
            frozenset(named),
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


def remove_sharded(index: Path) -> None:
    """Remove a sharded checkpoint."""
    with suppress(OSError):  # it is older, so that nobody reads it
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
    """Read some parts of the state in a sharded checkpoint, with whole tensors, also while a training replaces it.

    Raises:
        CheckpointError: it is damaged.
    """
    for _ in range(LOOKS):
        folder = current_folder(index)
        try:
            with SavedParts(index) as parts:
                state = parts.index.state
                return {key: parts.filled(state[key], None, parts.whole) for key in keys if key in state}
        except CheckpointError:
            if current_folder(index) == folder:
                raise
    raise CheckpointError(f"{index}: is replaced faster than it can be read; wait until the training ends")


def _load_sharded(index: Path, pattern: Any) -> dict[str, Any]:
    with SavedParts(index) as reader:
        found: dict[str, Any] = reader.filled(reader.index.state, pattern, reader.fitting)
        return found
