"""The files of a run."""

import fcntl
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from facebones.errors import CheckpointError, ConfigError
from facebones.recipe import Recipe, dump_recipe, load_recipe
from facebones.system.files import atomic_write
from facebones.system.progress import say


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
        """One JSON object a line: what was measured while training."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """The final figures."""
        return self.path / "result.json"

    @property
    def environment(self) -> Path:
        """Versions, device and data of the run."""
        return self.path / "environment.json"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best mean accuracy over the validation sets."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def weights(self) -> Path:
        """The trained backbone."""
        return self.path / "model.safetensors"

    @property
    def card(self) -> Path:
        """What the trained backbone is."""
        return self.path / "model.json"

    @property
    def resume_command(self) -> str:
        """The command line that goes on with the run."""
        return f"facebones resume {shlex.quote(str(self.path))}"

    @property
    def begun(self) -> bool:
        """Whether there is work here that a checkpoint should know of."""
        done = any(path.exists() for path in (self.best, self.weights, self.result))
        return done or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def refuse_existing(self) -> None:
        """Raise ConfigError where the folder already holds a run, or a file that a run would replace."""
        if self.config.exists():
            raise ConfigError(
                f"{self.path}: already holds a run; go on with `{self.resume_command}` or choose another --output"
            )
        for path in (self.metrics, self.environment, self.last, self.best, self.weights, self.card, self.result):
            if path.exists():
                raise ConfigError(f"{path}: is there already, and a run would replace it; choose another --output")

    @contextmanager
    def create(self, recipe: Recipe) -> Iterator[None]:
        """Make the folder of a new run, which is this process's alone within the block.

        Raises:
            ConfigError: the folder already holds a run, is another process's, or cannot be made.
        """
        with folder_lock(self.path):
            self.refuse_existing()  # since it was last asked, another process may have been here
            self.write_recipe(recipe)
            yield

    @contextmanager
    def open(self) -> Iterator[Recipe]:
        """The recipe of the run that is here, which is this process's alone within the block.

        What a killed process left half-written is removed.

        Raises:
            CheckpointError: there is no run here.
            ConfigError: another process is at work on it.
        """
        if not self.config.is_file():
            raise CheckpointError(f"{self.path}: holds no run (no config.yaml); begin one with `facebones train`")
        with folder_lock(self.path):
            for leftover in (*self.path.glob(".*.tmp"), *self.last.parent.glob(".*.tmp")):
                leftover.unlink()
            yield load_recipe(self.config)

    def write_recipe(self, recipe: Recipe) -> None:
        """Write config.yaml."""
        with atomic_write(self.config) as file:
            file.write(dump_recipe(recipe).encode())


@contextmanager
def folder_lock(path: Path, work: str = "trains") -> Iterator[None]:
    """Make a folder and keep other processes out of it, until this one leaves the block or dies.

    It is a POSIX record lock because a fork does not inherit these: data workers that outlive a killed training by
    some seconds keep nobody out. (Nothing else here may open the file: to close it would free the lock.)

    Raises:
        ConfigError: it cannot be made, or another process works here.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("ab")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose another place") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(f"{path}: another process {work} here; wait for its end, or stop it") from error
        except OSError as error:
            say(f"note: {path}: cannot be locked ({error.strerror}): see that no other process {work} here")
        yield
