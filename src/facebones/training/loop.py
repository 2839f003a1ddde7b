"""The loop over the steps of a training, in all of its processes: it logs, validates, saves and stops.

Of several processes the first one writes and prints. Where one of them may fail or be told to stop, all agree on it
before they continue, so that they save and stop at the same step.
"""

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any, NoReturn

import torch

from facebones.errors import DataError, FaceBonesError, RunError, counted
from facebones.recipe import Recipe
from facebones.run_folder import TRAIN_LINE, RunFolder, metrics_lines, parsed_line
from facebones.system.background_save import BackgroundSave
from facebones.system.number_format import percent
from facebones.system.process_group import agreed, gather_objects
from facebones.system.processes import Interrupted, StopRequest, stop_signals
from facebones.system.progress import Bar, format_seconds, say, shown
from facebones.system.sharded_checkpoint import save_state
from facebones.training.advice import Advice, note_on_sgd
from facebones.training.callbacks import Callback, Callbacks, RunInfo, registered_callbacks
from facebones.training.logs import MetricsLog, NoLog, train_line, validation_line
from facebones.training.run_files import describe_environment, note_environment, write_result
from facebones.training.step import Batch
from facebones.training.trackers import Trackers
from facebones.training.trainer import Trainer
from facebones.training.validation import mean_accuracy


class TrainingLoop:
    """The loop over all steps of a run, which logs, validates and saves.

    Args:
        trainer: at the step to begin with.
        folder: the run's.
        callbacks: called beside the registered ones.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, callbacks: Sequence[Callback] = ()) -> None:
        self.trainer, self.recipe, self.folder = trainer, trainer.recipe, folder
        self.world = trainer.world
        self._advice = Advice(
            steps=trainer.total_steps,
            batch_size=trainer.recipe.training.batch_size,
            accumulation_steps=trainer.recipe.training.accumulation_steps,
            identities=trainer.data.num_identities,
        )
        self._news: dict[str, str] = {}  # of the last log line and validation, shown behind the bar
        self._saving = BackgroundSave(folder.last, folder.last_index, trainer.world)
        info = RunInfo(folder=folder.path, recipe=trainer.recipe, total_steps=trainer.total_steps)
        every = [*callbacks, *registered_callbacks()] if self.world.is_first else []
        self.callbacks = Callbacks(every, info, trainer.device)

    def run(self) -> dict[str, Any]:
        """Train from the current step to the last, or to where the recipe stops it; returns what result.json holds."""
        trainer, recipe = self.trainer, self.recipe
        self._introduce()
        with agreed(self.world):
            log = self._begin_log()
        line_every = recipe.log.interval(trainer.total_steps)
        bar_shown, trainer_steps = shown("training", trainer.total_steps), closing(trainer.step_batches())
        with bar_shown as bar, log, trainer_steps as steps, stop_signals() as stop:
            self._save_beginning(log)
            while True:
                if self._validation_due():
                    self._save(log)
                    with stop.at_once() if self.world.size == 1 else nullcontext():
                        self._validate(log)
                if trainer.stopped_early:
                    self._say_stopped()
                if trainer.stopped_early or trainer.step == trainer.total_steps:
                    break
                trainer.stopwatch.start()
                batches = self._next_batches(steps, log, stop)
                trainer.train_step(batches)
                line_due = trainer.step % line_every == 0 or trainer.step == trainer.total_steps
                if line_due:
                    trainer.read_back_metrics()  # waits for the device, which is part of the steps' time
                trainer.stopwatch.stop(trainer.step_images)
                self.callbacks.on_step(trainer.step)
                if line_due:
                    self._log_interval(log)
                if bar is not None and (line_due or bar.due()):
                    self._show(bar)
                stopped = stop.received if self.world.size == 1 else None
                due = trainer.step % recipe.training.checkpoint_every == 0
                if due or stopped:
                    self._save(log, in_background=recipe.training.background_saves and not stopped)
                if stopped:
                    raise Interrupted(stopped, trainer.step)
            self._save(log)
        return self._finish()

    def _introduce(self) -> None:
        """Say what is trained, and what looks unintended."""
        trainer, config = self.trainer, self.recipe.training
        for note in filter(None, [*trainer.data.notes, trainer.data.aspect_note()]):
            say(f"note: {note}")
        if note := _ported_margins_note(self.recipe):
            say(note)
        if note := note_on_sgd(trainer.backbone, self.recipe.optimizer.name):
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
            f" {trainer.data.num_identities} identities: {counted(config.epochs, 'epoch')} of"
            f" {counted(trainer.steps_per_epoch, 'step')}, {config.precision}, {trainer.device}"
        )

    def _validation_due(self) -> bool:
        trainer = self.trainer
        due = trainer.step == trainer.total_steps or (
            trainer.step > 0 and trainer.step % self.recipe.validation.every == 0
        )
        return due and trainer.validated_step != trainer.step and bool(trainer.validation.sets)

    def _validate(self, log: MetricsLog) -> None:
        trainer = self.trainer
        if trainer.parallel is not None:
            trainer.parallel.share_statistics()
        rows = trainer.validation.measure(trainer.backbone, trainer.device, self.world)
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
        self._news["validation"] = f"accuracy {percent(mean_accuracy(rows))}"
        trainer.validated_step = trainer.step
        if mean_accuracy(rows) > trainer.best["mean_accuracy"]:
            trainer.best |= {"mean_accuracy": mean_accuracy(rows), "step": trainer.step}
            save_state(self.folder.best, self.folder.best_index, trainer.state_dict(log.length), self.world)
        if trainer.step == trainer.total_steps or trainer.stopped_early:
            trainer.final = rows
        self.callbacks.on_validation(rows)

    def _say_stopped(self) -> None:
        trainer, number = self.trainer, self.trainer.step // self.recipe.validation.every
        best, limit = trainer.best["mean_accuracy"], self.recipe.training.stop_below[number - 1]
        say(
            f"stopped early at step {trainer.step} of {trainer.total_steps}: at validation {number} the best mean"
            f" accuracy, {100 * best:.2f} %, is below {100 * limit:.2f} % (training.stop_below)"
        )

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
        meter = trainer.meter
        before = trainer.step - meter.counted - meter.skipped
        for note in self._advice.notes(meter.head, before=before, counted=meter.counted):
            say(note)
        loss = "" if values["loss"] is None else f"  loss {values['loss']:.4g}"
        self._news["train"] = f"{rate:.0f} images/s{loss}"
        trainer.meter.reset()
        self.callbacks.on_log(values)

    def _show(self, bar: Bar) -> None:
        """Show the step, and what the last log line and validation said; the device is not waited for."""
        trainer = self.trainer
        images_left = (trainer.total_steps - trainer.step) * trainer.step_images
        left = f"{format_seconds(trainer.stopwatch.left(images_left))} left"
        bar.update(trainer.step, "  ".join([left, *self._news.values()]))

    def _next_batches(self, steps: Iterator[list[Batch]], log: MetricsLog, stop: StopRequest) -> list[Batch]:
        """The batches of the next step, on which all processes agree: none failed to read, and none is to stop.

        Raises:
            FaceBonesError: one process cannot read its batches, or write what it saves in the background.
            Interrupted: one of several processes got a signal. All steps before are saved, as they are before an error.
        """
        error: FaceBonesError | None = None
        batches: list[Batch] = []
        try:
            batches = next(steps)
        except FaceBonesError as caught:  # an image is broken, or a worker was killed
            error = caught
        replaced = self.trainer.unreadable.take_new()
        several = self.world.size > 1  # one process alone stops after a step
        failed, news, writes, unwritten, number = self._largest(
            int(error is not None),
            int(bool(replaced)),
            int(not self._saving.finished),
            int(self._saving.failed),
            int((several and stop.received) or 0),
        )
        if news and several and not failed:
            self._merge_replaced(replaced)
        if failed:
            self._end_by(error, log)
        if self._saving.begun:
            self._commit_written(writes=bool(writes), failed=bool(unwritten))
        if number:
            self._save(log)
            raise Interrupted(signal.Signals(number), self.trainer.step)
        return batches

    def _merge_replaced(self, own: Mapping[int, str]) -> None:
        """Count the images that any process has replaced; more than the limit in all is an error in every process."""
        for rank, found in enumerate(gather_objects(self.world, own)):
            if rank != self.world.rank:
                self.trainer.unreadable.add(found)
        self.trainer.unreadable.take_new()

    def _end_by(self, error: FaceBonesError | None, log: MetricsLog) -> NoReturn:
        """Save, and raise the error of the process that has one in all of them."""
        self._save(log)
        command = self.folder.resume_command
        say(f"step {self.trainer.step} is saved; fix the error below, then continue with: {command}")
        with agreed(self.world):
            if error is not None:
                raise error
        raise AssertionError("unreachable: one process has an error")

    def _largest(self, *own: int) -> list[int]:
        """For each number the largest one of all processes, which wait for each other on the host, not on the GPU."""
        return list(own) if self.world.size == 1 else self.world.largest([torch.tensor(own)]).tolist()

    def _begin_log(self) -> MetricsLog:
        """The log of the first process; the others write theirs nowhere."""
        trainer = self.trainer
        if not self.world.is_first:
            return NoLog()
        self.folder.error.unlink(missing_ok=True)
        trackers = Trackers(self.recipe, self.folder.path, trainer.step) if self.recipe.log.trackers else None
        log = MetricsLog(self.folder.metrics, trainer.metrics_bytes, trackers)
        with suppress(DataError):  # the log is for people: a damaged one stops no training
            lines = (line for line in metrics_lines(log.path) if line[1].startswith(TRAIN_LINE))
            self._advice.replay((parsed_line(log.path, *line) for line in lines), trainer.step)
        return log

    def _save_beginning(self, log: MetricsLog) -> None:
        """Save before the first step, so that a run folder without a checkpoint is one that has lost it.

        Also if lines of metrics.jsonl are lost: the checkpoint must know its length before it grows again.
        """
        with agreed(self.world):
            lost = False
            if self.world.is_first:
                note_environment(self.folder, describe_environment(self.trainer), self.trainer.step)
                lost = not self.folder.has_last or log.length != self.trainer.metrics_bytes
        (lost_in_one,) = self._largest(int(lost))
        if lost_in_one:
            self._save(log)

    def _save(self, log: MetricsLog, *, in_background: bool = False) -> None:
        with agreed(self.world):  # a save would make the folder again, without what `resume` needs
            self._refuse_removed()
        self.trainer.read_back_metrics()
        if self.trainer.parallel is not None:
            self.trainer.parallel.share_statistics()
        state = self.trainer.state_dict(log.length)
        with self._resume_named():
            if in_background:
                self._saving.begin(state)
            else:
                self._saving.complete()
                save_state(self.folder.last, self.folder.last_index, state, self.world)

    @contextmanager
    def _resume_named(self) -> Iterator[None]:
        """Where a save fails, say how to continue from the one before, which is whole."""
        try:
            yield
        except FaceBonesError:
            if self.world.is_first and self.folder.has_last:
                say(f"the save before is whole; fix the error below, then continue with: {self.folder.resume_command}")
            raise

    def _refuse_removed(self) -> None:
        if self.world.is_first and not self.folder.config.is_file():
            raise RunError(
                f"{self.folder.path}: the run folder was removed while its training went on, which ends at step"
                f" {self.trainer.step}; start a new run"
            )

    def _commit_written(self, *, writes: bool, failed: bool) -> None:
        """Make what was written in the background the checkpoint, once no process writes any more."""
        if failed:
            with self._resume_named():
                self._saving.complete()  # raises the error in every process
        elif not writes:
            with agreed(self.world):
                self._saving.commit()

    def _finish(self) -> dict[str, Any]:
        """Write what a finished run has; returns the content of result.json."""
        result: dict[str, Any] = {}
        with agreed(self.world):
            if self.world.is_first:
                result = write_result(self.folder, self.trainer)
                self._refuse_removed()
        self.callbacks.on_end(result)
        return gather_objects(self.world, result)[0]  # type: ignore[no-any-return]


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
