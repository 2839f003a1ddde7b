"""Training: one recipe, one folder, one loop; a killed run is resumed bit by bit."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from facebones.data.joined_sets import absolute
from facebones.data.loader import Batch
from facebones.errors import CheckpointError, ConfigError, FaceBonesError
from facebones.plugins import import_plugins, imported_plugins
from facebones.recipe import Recipe, load_recipe
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.system.device import device_settings, random_state_kept, select_device
from facebones.system.processes import PARENT_VARIABLE, Interrupted, stop_signals
from facebones.system.progress import say
from facebones.training.callbacks import Callback, Callbacks, RunInfo, registered_callbacks
from facebones.training.logs import MetricsLog, train_line, validation_line
from facebones.training.run_files import describe_environment, note_environment, write_result
from facebones.training.trainer import Trainer
from facebones.training.validation import mean_accuracy


def train(
    recipe: Recipe | str | Path, output: str | Path, device: str = "auto", *, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Train by a recipe into a new run folder.

    The folder holds a checkpoint from before the first step on. An error on the way, such as a training image that
    cannot be decoded, ends the run after a save and leaves error.json: fix the cause, and resume.

    Args:
        recipe: with `data.path` set; or the path or name of one.
        output: the run's folder, made here; nothing is written before all input has been checked.
        device: "auto", "cpu", "cuda", ...
        callbacks: called beside the registered ones.

    Returns:
        The content of result.json.

    Raises:
        FaceBonesError: input that cannot be used, or a run that failed (RunError).
        Interrupted: SIGINT or SIGTERM came; the state is saved.

    Torch's random state and the settings of CUDA are the same after the call as before.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder, computing = RunFolder(Path(output)), select_device(device)
    with device_settings(computing), random_state_kept(computing):
        with _errors_noted(folder, only_in_study=True):
            folder.refuse_existing()
            trainer = _begin(recipe, computing)
        with folder.create(trainer.recipe), _errors_noted(folder, trainer):
            return TrainingLoop(trainer, folder, callbacks).run()


def resume(
    output: str | Path,
    device: str = "auto",
    data: str | None = None,
    workers: int | None = None,
    *,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Continue a run from its newest checkpoint, to the same weights as without the interruption.

    Args:
        output: the run's folder.
        device: as for `train`.
        data: where the training data is now, if it has moved; kept in config.yaml.
        workers: another number of processes that read and decode; kept in config.yaml.
        callbacks: as for `train`.

    Returns:
        The content of result.json.

    Raises:
        CheckpointError: no run there, its checkpoint is lost or damaged, or the data is not what it was trained on.
    """
    folder, computing = RunFolder(Path(output)), select_device(device)
    given = {"path": None if data is None else absolute(data), "workers": workers}
    changed = {key: value for key, value in given.items() if value is not None}
    with device_settings(computing), random_state_kept(computing), folder.open() as saved:
        with _errors_noted(folder, only_in_study=True):
            recipe = replace(saved, data=replace(saved.data, **cast(Any, changed)))
            trainer = _restore(folder, recipe, computing)
            if recipe != saved:
                folder.write_recipe(recipe)
        say(f"resuming {output} at step {trainer.step} of {trainer.total_steps}")
        with _errors_noted(folder, trainer):
            return TrainingLoop(trainer, folder, callbacks).run()


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with paths that hold in any working folder; pair sets named beside the data keep their names."""
    sets = [str(Path(name).absolute()) if Path(name).is_file() else name for name in recipe.validation.sets]
    return replace(
        recipe,
        data=replace(recipe.data, path=absolute(recipe.data.path)),
        validation=replace(recipe.validation, sets=sets),
    )


class TrainingLoop:
    """The loop over all steps of a run, which logs, validates and saves.

    Args:
        trainer: at the step to begin with.
        folder: the run's.
        callbacks: called beside the registered ones.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, callbacks: Sequence[Callback] = ()) -> None:
        self.trainer, self.recipe, self.folder = trainer, trainer.recipe, folder
        info = RunInfo(folder=folder.path, recipe=trainer.recipe, total_steps=trainer.total_steps)
        self.callbacks = Callbacks([*callbacks, *registered_callbacks()], info, trainer.device)

    def run(self) -> dict[str, Any]:
        """Train from the current step to the last; returns the content of result.json."""
        trainer, recipe = self.trainer, self.recipe
        self.folder.error.unlink(missing_ok=True)
        self._introduce()
        log = MetricsLog(self.folder.metrics, trainer.metrics_bytes, trainer.summary_writer)
        with closing(log), closing(trainer.step_batches()) as steps, stop_signals() as stop:
            self._save_beginning(log)
            while True:
                if self._validation_due():
                    self._save(log)
                    with stop.at_once():
                        self._validate(log)
                if trainer.step == trainer.total_steps:
                    break
                trainer.stopwatch.start()
                trainer.train_step(self._next_batches(steps, log))
                line_due = trainer.step % recipe.log.every == 0 or trainer.step == trainer.total_steps
                if line_due:
                    trainer.read_back_metrics()  # waits for the device, which is part of the steps' time
                trainer.stopwatch.stop(trainer.step_images)
                self.callbacks.on_step(trainer.step)
                if line_due:
                    self._log_interval(log)
                if trainer.step % recipe.training.checkpoint_every == 0 or stop.received:
                    self._save(log)
                if stop.received:
                    raise Interrupted(stop.received, trainer.step)
            self._save(log)
        result = write_result(self.folder, trainer)
        self.callbacks.on_end(result)
        return result

    def _introduce(self) -> None:
        """Say what is trained, and what looks unintended."""
        trainer, config = self.trainer, self.recipe.training
        for note in filter(None, [*trainer.data.notes, trainer.data.aspect_note()]):
            say(f"note: {note}")
        if note := _ported_margins_note(self.recipe):
            say(note)
        if not trainer.validation.sets:
            say("note: no validation sets: only the loss shows how the training goes (--validation.sets NAME,...)")
        if config.precision == "fp16" and trainer.device.type == "cpu":
            say(
                "note: fp16 is up to 20 times as slow as fp32 on a CPU, and its scaler skips steps while it searches"
                " its scale; they count in the schedule; give --training.precision fp32, or --autotune"
            )
        say(
            f"training {trainer.backbone.name} on {len(trainer.data)} images of"
            f" {trainer.data.num_identities} identities: {_counted(config.epochs, 'epoch')} of"
            f" {_counted(trainer.steps_per_epoch, 'step')}, {config.precision}, {trainer.device}"
        )

    def _validation_due(self) -> bool:
        trainer = self.trainer
        due = trainer.step == trainer.total_steps or (
            trainer.step > 0 and trainer.step % self.recipe.validation.every == 0
        )
        return due and trainer.validated_step != trainer.step and bool(trainer.validation.sets)

    def _validate(self, log: MetricsLog) -> None:
        trainer = self.trainer
        rows = trainer.validation.measure(trainer.backbone, trainer.device)
        say(f"validation at step {trainer.step}")
        for row in rows:
            best = max(trainer.best["sets"][row["set"]], row["accuracy"])  # in this order NaN is never the larger
            trainer.best["sets"][row["set"]] = best
            row |= {
                "step": trainer.step,
                "epoch": trainer.epoch,
                "best_accuracy": best or (0.0 if row["accuracy"] == 0 else math.nan),
            }
            log.write("validation", row)
            say(validation_line(row))
        trainer.validated_step = trainer.step
        if mean_accuracy(rows) > trainer.best["mean_accuracy"]:
            trainer.best |= {"mean_accuracy": mean_accuracy(rows), "step": trainer.step}
            save_checkpoint(self.folder.best, trainer.state_dict(log.length))
        if trainer.step == trainer.total_steps:
            trainer.final = rows
        self.callbacks.on_validation(rows)

    def _log_interval(self, log: MetricsLog) -> None:
        trainer = self.trainer
        images_left = (trainer.total_steps - trainer.step) * trainer.step_images
        rate, seconds_left = trainer.stopwatch.read(images_left)
        values: dict[str, Any] = {
            "step": trainer.step,
            "epoch": (trainer.step - 1) // trainer.steps_per_epoch + 1,
            "loss": trainer.meter.loss,
            "learning_rate": trainer.latest["learning_rate"],
            "gradient_norm": trainer.latest["gradient_norm"],
            "gradient_scale": trainer.scaler.get_scale(),
            "skipped_steps": trainer.meter.skipped,
            "images_per_second": rate,
        }
        if head := trainer.meter.head:
            values["head"] = head
        log.write("train", values)
        say(train_line(values, trainer.total_steps, self.recipe.training.epochs, seconds_left))
        trainer.meter.reset()
        self.callbacks.on_log(values)

    def _next_batches(self, steps: Iterator[list[Batch]], log: MetricsLog) -> list[Batch]:
        """The batches of the next step; if they cannot be read, all steps before are saved."""
        try:
            return next(steps)
        except FaceBonesError:  # an image is broken, or a worker was killed
            self._save(log)
            command = self.folder.resume_command
            say(f"step {self.trainer.step} is saved; fix the error below, then continue with: {command}")
            raise

    def _save_beginning(self, log: MetricsLog) -> None:
        """Save before the first step, so that a run folder without a checkpoint is one that has lost it.

        Also if lines of metrics.jsonl are lost: the checkpoint must know its length before it grows again.
        """
        note_environment(self.folder, describe_environment(self.trainer), self.trainer.step)
        if not self.folder.last.is_file() or log.length != self.trainer.metrics_bytes:
            self._save(log)

    def _save(self, log: MetricsLog) -> None:
        self.trainer.read_back_metrics()
        save_checkpoint(self.folder.last, self.trainer.state_dict(log.length))


def _ported_margins_note(recipe: Recipe) -> str:
    """A note on margins that InsightFace's trainer would not combine; empty where there is none to make."""
    head = recipe.head
    if head.name != "combined" or not head.options.m3 or (head.options.m1, head.options.m2) == (1, 0):
        return ""
    m1, m2, m3 = (f"{value:g}" for value in (head.options.m1, head.options.m2, head.options.m3))
    return (
        f"note: head combined applies m1 {m1}, m2 {m2} and m3 {m3} together; InsightFace's margin_list [{m1}, {m2},"
        f" {m3}] applies m3 alone: for that, set --head.m1 1 --head.m2 0"
    )


def _begin(recipe: Recipe, device: torch.device) -> Trainer:
    """The trainer of a new run, by a recipe that can be resumed: absolute paths, its plug-ins, no choice left open."""
    if not recipe.data.path:
        raise ConfigError("no training data: give --data PATH (a folder with train.rec, or one folder an identity)")
    import_plugins(recipe.imports, "import")
    recipe = replace(with_absolute_paths(recipe), imports=_all_imports(recipe))
    trainer = _build(recipe, device)
    if recipe.training.choose:
        from facebones.training.autotune import choose_settings

        del trainer  # one at a time: a head may take most of the memory
        trainer = Trainer(choose_settings(recipe, device), device)
    return trainer


def _restore(folder: RunFolder, recipe: Recipe, device: torch.device) -> Trainer:
    """The trainer of a run at its newest checkpoint."""
    if not recipe.data.path:
        raise CheckpointError(f"{folder.config}: names no data (data.path); restore it, or start a new run")
    trainer = _build(recipe, device)
    if folder.last.is_file():
        trainer.load_state_dict(load_checkpoint(folder.last), folder.last)
    elif folder.begun:
        raise CheckpointError(f"{folder.last}: is gone, though the run had begun; restore it, or start a new run")
    return trainer


def _build(recipe: Recipe, device: torch.device) -> Trainer:
    """The trainer of a recipe, whose validation sets have been checked."""
    trainer = Trainer(recipe, device)
    trainer.validation.try_out(trainer.backbone, trainer.device)
    return trainer


def _all_imports(recipe: Recipe) -> tuple[str, ...]:
    """The plug-ins of a recipe and of this process, files by absolute path: `resume` imports them again."""
    own = [str(Path(name).resolve()) if name.endswith(".py") else name for name in recipe.imports]
    return (*own, *(name for name in imported_plugins() if name not in own))


@contextmanager
def _errors_noted(folder: RunFolder, trainer: Trainer | None = None, *, only_in_study: bool = False) -> Iterator[None]:
    """Leave error.json where a run ends by an error; where it is refused before its first step, only in a study.

    A study reads it from its trainings; who starts a single training sees the error, and finds nothing changed.
    """
    try:
        yield
    except Exception as error:
        if not only_in_study or PARENT_VARIABLE in os.environ:
            with suppress(FaceBonesError, OSError):  # a full disk: the error itself says more
                folder.write_error(error, trainer.step if trainer else 0)
        raise


def _counted(count: int, noun: str) -> str:
    """A number of things.

    >>> _counted(1, "epoch"), _counted(2, "step")
    ('1 epoch', '2 steps')
    """
    return f"{count} {noun}{'s' * (count != 1)}"
