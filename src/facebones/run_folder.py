"""The files of a run."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from facebones.config import Recipe, dump_recipe, load_recipe
from facebones.errors import CheckpointError, ConfigError
from facebones.files import atomic_write


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
        """The trained backbone; model.json beside it says what it is."""
        return self.path / "model.safetensors"

    def refuse_existing(self) -> None:
        """Raise ConfigError where the folder already holds a run."""
        if self.config.exists() or self.last.exists():
            raise ConfigError(
                f"{self.path}: already holds a run; go on with `facebones resume {self.path}`"
                " or choose another --output"
            )

    def create(self, recipe: Recipe) -> None:
        """Make the folder of a new run.

        Raises:
            ConfigError: the folder already holds a run, or cannot be made.
        """
        self.refuse_existing()
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            self.metrics.unlink(missing_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}; choose another --output") from error
        with atomic_write(self.config) as file:
            file.write(dump_recipe(recipe).encode())

    def open(self) -> Recipe:
        """The recipe of the run that is here; what a killed process left half-written is removed.

        Raises:
            CheckpointError: there is no run here.
        """
        if not self.config.is_file():
            raise CheckpointError(f"{self.path}: holds no run (no config.yaml); begin one with `facebones train`")
        for leftover in (*self.path.glob(".*.tmp"), *self.last.parent.glob(".*.tmp")):
            leftover.unlink()
        return load_recipe(self.config)
