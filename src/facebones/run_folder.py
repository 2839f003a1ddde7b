"""The folder of a run: which file is where, who may work in it, and why a run failed."""

import fcntl
import json
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import facebones
from facebones.errors import CheckpointError, ConfigError, DataError, FaceBonesError, first_line
from facebones.system.files import atomic_write, write_json
from facebones.system.regular_files import open_in_place, open_regular, read_regular

if TYPE_CHECKING:
    from facebones.recipe import Recipe

TRAIN_LINE = b'{"kind": "train", '  # how most lines of a metrics.jsonl begin
LOCK_SECONDS = 150.0  # an NFS 4 server frees the locks of a dead client after 90 seconds


def read_metrics(path: Path, *, without: bytes | None = None) -> list[Any]:
    """The lines of a metrics.jsonl, in order. A killed run may leave a half-written last line, which is dropped.

    Args:
        path: the file.
        without: lines that begin so are left out, without being parsed.

    Raises:
        DataError: the file cannot be read, or a line is not JSON.
    """
    lines = metrics_lines(path)
    return [parsed_line(path, *line) for line in lines if without is None or not line[1].startswith(without)]


def metrics_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each complete line of a metrics.jsonl; no more than one is in memory.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error


def parsed_line(path: Path, number: int, line: bytes) -> Any:
    """The content of a line of a metrics.jsonl.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON ({first_line(error)}); restore the file") from error


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """What was measured during training, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """The final metrics."""
        return self.path / "result.json"

    @property
    def environment(self) -> Path:
        """Versions, device and data of the run."""
        return self.path / "environment.json"

    @property
    def error(self) -> Path:
        """Why the run failed; absent unless it did."""
        return self.path / "error.json"

    @property
    def last(self) -> Path:
        """The newest checkpoint, where one process has written it."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def last_index(self) -> Path:
        """The index of the newest checkpoint, where several processes have written it."""
        return self.last.with_suffix(".json")

    @property
    def best(self) -> Path:
        """The checkpoint with the best mean accuracy over the validation sets."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def best_index(self) -> Path:
        """The index of that checkpoint, where several processes have written it."""
        return self.best.with_suffix(".json")

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """All that may be a checkpoint of this run."""
        return self.last, self.last_index, self.best, self.best_index

    @property
    def has_last(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return self.last.is_file() or self.last_index.is_file()

    @property
    def weights(self) -> Path:
        """The trained backbone."""
        return self.path / "model.safetensors"

    @property
    def card(self) -> Path:
        """Description of the trained backbone."""
        return self.path / "model.json"

    @property
    def resume_command(self) -> str:
        """The command that continues the run."""
        return f"facebones resume {shlex.quote(str(self.path))}"

    @property
    def begun(self) -> bool:
        """Whether the run has results that a checkpoint must account for."""
        done = any(path.exists() for path in (self.best, self.best_index, self.weights, self.result))
        return done or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def refuse_existing(self) -> None:
        """Raise ConfigError if the folder already holds a run, or a file that a run would replace."""
        if self.config.exists():
            raise ConfigError(
                f"{self.path}: already holds a run; continue it with `{self.resume_command}` or choose another --output"
            )
        for path in (self.metrics, self.environment, *self.checkpoints, self.weights, self.card, self.result):
            if path.exists():
                raise ConfigError(f"{path}: is there already, and a run would replace it; choose another --output")

    @contextmanager
    def create(self, recipe: "Recipe") -> Iterator[None]:
        """Make the folder of a new run and lock it for this process within the block.

        Raises:
            ConfigError: the folder already holds a run, is locked by another process, or cannot be made.
        """
        with folder_lock(self.path):
            self.refuse_existing()  # another process may have used the folder since the last check
            self.write_recipe(recipe)
            yield

    @contextmanager
    def open(self) -> "Iterator[Recipe]":
        """Lock the run for this process within the block, and yield its recipe; its plug-ins are imported, with a note.

        Half-written files of a killed process are removed, and parts of checkpoints that no index names.

        Raises:
            CheckpointError: there is no run here.
            ConfigError: another process works on it.
        """
        from facebones.recipe import load_config
        from facebones.system.checkpoint_index import remove_leftovers

        if not self.config.is_file():
            raise CheckpointError(f"{self.path}: holds no run (no config.yaml); start one with `facebones train`")
        with folder_lock(self.path):
            for leftover in (*self.path.glob(".*.tmp"), *self.last.parent.glob(".*.tmp")):
                leftover.unlink()
            for index in (self.last_index, self.best_index):
                remove_leftovers(index)
            yield load_config(self.config, run_imports=True)

    def write_recipe(self, recipe: "Recipe") -> None:
        """Write config.yaml."""
        from facebones.recipe import dump_recipe

        with atomic_write(self.config) as file:
            file.write(dump_recipe(recipe).encode())

    def write_error(self, error: BaseException, step: int) -> None:
        """Write error.json: type, message, step, version, and the exit status of the command."""
        expected = isinstance(error, FaceBonesError)
        content = {
            "type": type(error).__name__,
            "message": str(error) if expected else first_line(error),
            "step": step,
            "facebones": facebones.__version__,
            "status": error.exit_status if isinstance(error, FaceBonesError) else 1,
        }
        write_json(self.error, content)

    def read_error(self) -> dict[str, Any] | None:
        """The content of error.json; None if there is none, or none that can be read."""
        try:
            content = json.loads(read_regular(self.error))
        except (OSError, ValueError, RecursionError):
            return None
        kinds = {"type": str, "message": str, "step": int, "status": int}
        readable = isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in kinds.items())
        return content if readable else None


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Make a folder and lock it against other processes, until this one leaves the block or dies.

    The lock is a POSIX record lock because forked processes do not inherit it: data workers that outlive a killed
    training by some seconds lock nobody out. (No other code in this process may open the file: closing it would free
    the lock.) A training of a study holds a lease, so it waits for a lock that a dead process left on a file server.

    Raises:
        ConfigError: the folder cannot be made, or another process works here.
    """
    from facebones.system.processes import PARENT_VARIABLE  # here: a report only reads the folder

    try:
        path.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(open_in_place(path / ".lock"), "ab")
    except FileExistsError as error:
        raise ConfigError(f"{path}: not a folder; choose another place") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose another place") from error
    with file:
        try:
            _lock(file, LOCK_SECONDS if PARENT_VARIABLE in os.environ else 0)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(f"{path}: another process trains here; wait until it ends, or stop it") from error
        except OSError as error:
            from facebones.system.progress import say

            say(f"note: {path}: cannot be locked ({error.strerror}): make sure that no other process trains here")
        yield


def _lock(file: IO[bytes], seconds: float) -> None:
    """Lock a file, and try again for some time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
