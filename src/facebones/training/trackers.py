"""Trackers: what a run logs goes to TensorBoard, Weights & Biases, MLflow or Trackio too, where the recipe names them.

metrics.jsonl remains the source of every plot and table, so a tracker that fails is closed with a note, and the
training continues. A resumed run continues the entry of the tracker that it began: `trackers.json` in the run folder
holds the identifiers. Each tracker reads its own environment variables, such as WANDB_MODE and MLFLOW_TRACKING_URI.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

from facebones.errors import ConfigError, RunError, first_line
from facebones.recipe import Recipe
from facebones.run_folder import RunFolder
from facebones.system.files import write_json
from facebones.system.progress import say

PROJECT = "facebones"
MOST_OF_A_REASON = 120  # characters: those of MLflow are paragraphs


class Tracker(Protocol):
    """An open entry of a tracker."""

    identifier: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values of a step."""

    def close(self, *, failed: bool) -> None:
        """End the entry."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is opened for.

    Attributes:
        folder: of the run.
        fields: "section.field" of the recipe to its value.
        step: that the run is at.
        identifier: of the tracker's entry, if an earlier part of the run has begun one; else empty.
    """

    folder: Path
    fields: Mapping[str, Any]
    step: int
    identifier: str

    @property
    def name(self) -> str:
        """Folder and its parent: studies name folders by seed."""
        return "/".join(self.folder.absolute().parts[-2:])


class TensorBoard:
    """Event files in RUN/tensorboard."""

    identifier = ""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purged = run.step + 1 if run.step else None  # what a killed run wrote after its last save
        self._board = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purged)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values of a step."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        del failed
        self._board.close()


class WeightsAndBiases:
    """A run of Weights & Biases; with WANDB_MODE=offline, files in RUN/wandb."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.identifier or None,
            resume="allow",
            dir=run.folder,
            config=dict(run.fields),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.identifier = str(self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values of a step."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, in the experiment that MLFLOW_EXPERIMENT_NAME names."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        if run.identifier:
            self.identifier = run.identifier
            self._client.update_run(self.identifier, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self.identifier = self._client.create_run(number, run_name=run.name).info.run_id
        params = [Param(_plain(name), str(value)) for name, value in run.fields.items()]
        for start in range(0, len(params), 100):  # the most that one call takes
            self._client.log_batch(self.identifier, params=params[start : start + 100])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values of a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_plain(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.identifier, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self.identifier, "FAILED" if failed else "FINISHED")


class Trackio:
    """A run of Trackio, in its local database."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self.identifier = run.identifier or f"{run.name}-{time.time_ns():x}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(project, name=self.identifier, config=dict(run.fields), resume="allow", embed=False)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values of a step."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        del failed
        self._run.finish()


@dataclass(frozen=True)
class Kind:
    """A kind of tracker: how an entry is opened, the package it needs, and what to try where it does not open."""

    open: Callable[[TrackedRun], Tracker]
    package: str
    remedy: str


TRACKERS = {
    "tensorboard": Kind(TensorBoard, "tensorboard", "check that the run folder can be written"),
    "wandb": Kind(WeightsAndBiases, "wandb", "run `wandb login`, or set WANDB_MODE=offline"),
    "mlflow": Kind(
        MLflow, "mlflow", "set MLFLOW_TRACKING_URI to sqlite:///FILE.db or to the address of a server that answers"
    ),
    "trackio": Kind(Trackio, "trackio", "check TRACKIO_DIR"),
}


def check_trackers(names: Sequence[str]) -> None:
    """Check that the named trackers exist and are installed.

    Raises:
        ConfigError: one does not or is not.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"log.trackers: no tracker {name!r}; known: {', '.join(TRACKERS)}")
        if find_spec(TRACKERS[name].package) is None:
            raise ConfigError(
                f"log.trackers: {name} is not installed; pip install 'facebones[{name}]', or leave it out"
            )


class Trackers:
    """The trackers of a run, written to as one.

    Args:
        recipe: names them.
        folder: of the run.
        step: that the run is at.

    Raises:
        RunError: one does not open.
    """

    def __init__(self, recipe: Recipe, folder: Path, step: int) -> None:
        self._open: dict[str, Tracker] = {}
        path = folder / "trackers.json"
        known = _identifiers(path) if recipe.log.trackers else {}
        fields = {name: value for name, value in recipe.values().items() if value not in (None, "", [])}
        for name in recipe.log.trackers:
            run = TrackedRun(folder, fields, step, known.get(name, ""))
            try:
                self._open[name] = TRACKERS[name].open(run)
            except Exception as error:  # of a package that is not ours, or of its server
                self.close(failed=True)
                reason = shorten(first_line(error), MOST_OF_A_REASON, placeholder=" ...")
                raise RunError(
                    f"log.trackers: {name} does not start: {reason}; {TRACKERS[name].remedy}, then:"
                    f" {RunFolder(folder).resume_command}"
                ) from error
            identifier = self._open[name].identifier
            if identifier != known.get(
                name, ""
            ):  # noted at once: should the next one fail, this one is not begun twice
                known[name] = identifier
                write_json(path, known)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values of a step; a tracker that fails is closed, with a note."""
        for name, tracker in [*self._open.items()]:
            try:
                tracker.write(step, values)
            except Exception as error:  # noqa: BLE001 - of a package that is not ours, or of its server
                say(f"note: {name}: {first_line(error)}; it gets no more of this run, which metrics.jsonl holds")
                del self._open[name]
                with suppress(Exception):
                    tracker.close(failed=True)

    def close(self, *, failed: bool) -> None:
        """End the entries."""
        for name, tracker in self._open.items():
            try:
                tracker.close(failed=failed)
            except Exception as error:  # noqa: BLE001 - as above
                say(f"note: {name}: {first_line(error)}; its last lines may be lost, metrics.jsonl holds them")
        self._open.clear()


def _identifiers(path: Path) -> dict[str, str]:
    """The identifiers that an earlier part of the run noted."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {first_line(error)}; delete it to begin new entries") from error
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _plain(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return re.sub(r"[^\w./ :-]", "_", name)
