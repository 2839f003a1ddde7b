"""The trainer: what is built from a recipe, one step of it, and the loop over all steps, which saves as it goes."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

import facebones
from facebones.backbones import Backbone, create_backbone
from facebones.backbones.weights import save_weights
from facebones.data.batch_memory import Batch
from facebones.data.folders import open_training_set
from facebones.data.loader import training_batches
from facebones.data.order import EpochOrder, block_size
from facebones.data.preprocessing import to_network_input
from facebones.errors import CheckpointError, ConfigError, FaceBonesError, RunError
from facebones.evaluation.models import AUTOCAST_TYPE
from facebones.heads import PartialFC, combined_margin
from facebones.recipe import HeadConfig, Recipe
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import save_checkpoint
from facebones.system.device import to_device
from facebones.system.files import write_json
from facebones.system.progress import say
from facebones.system.signals import Interrupted, stop_signals
from facebones.training.environment import describe_environment, note_environment
from facebones.training.logs import (
    Meter,
    MetricsLog,
    Stopwatch,
    find_summary_writer,
    finite_or_none,
    train_line,
    validation_line,
)
from facebones.training.optimizer import build_optimizer, fill_state, leave_out_unless
from facebones.training.saved_state import check_state
from facebones.training.schedule import build_schedule
from facebones.training.unreadable import UnreadableImages
from facebones.training.validation import Validation, mean_accuracy

# Below this the gradient scaler has halved more than sixteen times in a row without finding a finite gradient.
SMALLEST_GRADIENT_SCALE = 1.0


class Trainer:
    """A training in memory: what is built from a recipe, and the state that changes with each step.

    Args:
        recipe: everything that decides the run.
        device: where it computes.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        config = recipe.training
        self.recipe, self.device = recipe, device
        self.data = open_training_set(recipe.data.path)
        self.step_images = config.batch_size * config.accumulation_steps
        self.unreadable = UnreadableImages(recipe.data.unreadable_limit, len(self.data))
        self.steps_per_epoch = len(self.data) // self.step_images
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"training.batch_size {config.batch_size} x accumulation_steps {config.accumulation_steps} is more than"
                f" the {len(self.data)} images of {self.data.path}; give {_fitting_batch(recipe, len(self.data))}"
            )
        self.total_steps = self.steps_per_epoch * config.epochs
        self.summary_writer = find_summary_writer() if recipe.log.tensorboard else None
        self.validation = Validation(recipe, Path(recipe.data.path))

        torch.manual_seed(config.seed)
        self.backbone = create_backbone(recipe.backbone.name, recipe.backbone.embedding_size, recipe.backbone.dropout)
        self.backbone.to(device)
        # On MPS the gradient of BatchNorm2d comes out wrong in this layout (github.com/pytorch/pytorch/issues/175189).
        self.channels_last = config.channels_last and device.type != "mps"
        if self.channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Same weights, other code: it is used in training steps only, and never saved.
        self.compiled_backbone = compiled(self.backbone, self.channels_last) if config.compile else self.backbone
        self.head = build_head(recipe.head, self.data.num_identities, recipe.backbone.embedding_size).to(device)
        self.optimizer = build_optimizer(recipe.optimizer, self.backbone, self.head)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.schedule = build_schedule(
            recipe.schedule, recipe.optimizer.learning_rate, self.steps_per_epoch, config.epochs
        )

        self.step = 0
        self.validated_step = -1
        self.metrics_bytes = 0
        self.skipped_steps = 0
        names = [pair_set.name for pair_set in self.validation.sets]
        self.best: dict[str, Any] = {"mean_accuracy": 0.0, "step": 0, "sets": dict.fromkeys(names, 0.0)}
        self.latest = {"learning_rate": 0.0, "gradient_norm": 0.0}
        self.final: list[dict[str, Any]] = []
        self.meter = Meter()
        self.stopwatch = Stopwatch()

    # ------------------------------------------------------------------------------------------------ one step

    def train_step(self, batches: list[Batch]) -> None:
        """One update of the optimizer from `accumulation_steps` batches; a gradient that is not finite is not applied.

        Nothing here waits for the device, but the draw of a sampled head: what the steps came to is read by `settle`.
        """
        learning_rate = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.backbone.train()
        self.head.draw_sample(torch.cat([label_B for _, label_B in batches]))
        loss_sum = torch.zeros((), device=self.device)
        for images_BHWC, label_B in batches:
            x_B3HW = self._network_input(images_BHWC)
            with torch.autocast(self.device.type, **self._autocast):
                embedding_BD = self.compiled_backbone(x_B3HW)
            embedding_BD = functional.normalize(embedding_BD)
            loss = self.head(embedding_BD, label_B.to(self.device, non_blocking=True)) / len(batches)
            self.scaler.scale(loss).backward()
            loss_sum += loss.detach()
        self.scaler.unscale_(self.optimizer)
        gradient_norm = self._clip_gradients()
        leave_out_unless(self.optimizer, (loss_sum + gradient_norm).isfinite())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.latest["learning_rate"] = learning_rate
        self.meter.add(loss_sum, gradient_norm)

    def settle(self) -> None:
        """Take note of the steps since the last time; comes before every line, save and validation.

        Raises:
            RunError: a loss or gradient was not finite; in fp16 only once the gradient scaler, which leaves such steps
                out, has given up.
        """
        figures = self.meter.settle()
        steps = range(self.step - len(figures) + 1, self.step + 1)
        bad = [(step, *row) for step, row in zip(steps, figures, strict=True) if not math.isfinite(sum(row))]
        self.skipped_steps += len(bad)
        if figures:
            self.latest["gradient_norm"] = figures[-1][1]
        scaled = self.scaler.is_enabled()
        if bad and not (scaled and self.scaler.get_scale() >= SMALLEST_GRADIENT_SCALE):
            step, loss, gradient_norm = bad[-1 if scaled else 0]
            raise RunError(
                f"step {step}: loss {loss:g}, gradient norm {gradient_norm:g}: not applied; the last"
                " checkpoint stands; try a lower --optimizer.learning_rate, --schedule.warmup_epochs 1,"
                " --training.clip_norm 5 or --training.precision fp32"
            )

    # ---------------------------------------------------------------------------------------------------------

    def run(self, folder: RunFolder) -> dict[str, Any]:
        """Train from the present step to the end, saving into `folder`; returns what result.json holds."""
        config, total = self.recipe.training, self.total_steps
        for note in self.data.notes:
            say(f"note: {note}")
        if not self.validation.sets:
            say("note: no validation sets: only the loss will tell how training goes (--validation.sets NAME,...)")
        if config.precision == "fp16" and self.device.type == "cpu":
            say("note: fp16 is up to 20 times as slow as fp32 on a CPU; --autotune takes what is fast here")
        say(
            f"training {self.backbone.name} on {len(self.data)} images of"
            f" {self.data.num_identities} identities: {_counted(config.epochs, 'epoch')} of"
            f" {_counted(self.steps_per_epoch, 'step')}, {config.precision}, {self.device}"
        )
        log = MetricsLog(folder.metrics, self.metrics_bytes, self.summary_writer)
        with closing(log), closing(self.step_batches()) as steps, stop_signals() as stop:
            self._save_beginning(folder, log)
            while True:
                if self._validation_due():
                    self._save(folder, log)
                    with stop.at_once():
                        self._validate(folder, log)
                if self.step == total:
                    break
                self.stopwatch.start()
                self.train_step(self._next_batches(steps, folder, log))
                line_due = self.step % self.recipe.log.every == 0 or self.step == total
                if line_due:
                    self.settle()  # waits for the device, which is a part of the steps' time
                self.stopwatch.stop(self.step_images)
                if line_due:
                    self._log_interval(log)
                if self.step % config.checkpoint_every == 0 or stop.received:
                    self._save(folder, log)
                if stop.received:
                    raise Interrupted(stop.received, self.step)
            self._save(folder, log)
        return self._finish(folder)

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    def state_dict(self, metrics_bytes: int) -> dict[str, Any]:
        """Everything that changes while training, as tensors and plain values."""
        return {
            "recipe": self.recipe.to_dict(),
            "backbone": self.backbone.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "position": self.step % self.steps_per_epoch * self.step_images,  # images of this epoch already used
            "rng": _random_state(self.device),
            "best": self.best,
            "validated_step": self.validated_step,
            "skipped_steps": self.skipped_steps,
            "unreadable": self.unreadable.images,
            "meter": self.meter.state_dict(),
            "latest": self.latest,
            "final": self.final,
            "metrics_bytes": metrics_bytes,
            "data": self.data_fingerprint(),
            "validation": self.validation.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any], path: Path) -> None:
        """Take up the state of `state_dict`.

        Raises:
            CheckpointError: it is of another backbone, embedding size, head or data, or damaged.
        """
        fill_state(self.optimizer)
        check_state(self.state_dict(0), state, path)
        self.step = state["step"]
        place = {key: state[key] for key in ("step", "epoch", "position")}
        if place != {key: self.state_dict(0)[key] for key in place} or not 0 <= self.step <= self.total_steps:
            raise CheckpointError(f"{path}: its place in the data does not fit its config.yaml; restore both")
        self.backbone.load_state_dict(state["backbone"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.unreadable.load(state["unreadable"], path)
        self.meter.load_state_dict(state["meter"])
        self.best, self.latest, self.final = state["best"], state["latest"], state["final"]
        self.validated_step, self.skipped_steps = state["validated_step"], state["skipped_steps"]
        self.metrics_bytes = max(0, state["metrics_bytes"])
        _restore_random_state(state["rng"], self.device, path)

    def data_fingerprint(self) -> dict[str, Any]:
        """What tells one training set from another: counts, and a digest of all labels."""
        return self.data.fingerprint()

    def environment(self) -> dict[str, Any]:
        """What environment.json says."""
        data = {"path": self.recipe.data.path, **self.data_fingerprint()}
        return describe_environment(self.device, data, self.validation.fingerprint)

    @property
    def _autocast(self) -> dict[str, Any]:
        precision = self.recipe.training.precision
        return {"dtype": AUTOCAST_TYPE[precision], "enabled": precision != "fp32"}

    def step_batches(self) -> Generator[list[Batch]]:
        """The batches of each step from the present one to the last."""
        config = self.recipe.training
        order = EpochOrder(
            self.data,
            batch_size=config.batch_size,
            batches_per_epoch=self.steps_per_epoch * config.accumulation_steps,
            first=self.step * config.accumulation_steps,
            last=self.total_steps * config.accumulation_steps,
            seed=config.seed,
            block=block_size(self.recipe.data.shuffle),
        )
        batches = training_batches(
            order,
            workers=self.recipe.data.workers,
            held=config.accumulation_steps,
            pin_memory=self.device.type == "cuda",
            replaced=self.unreadable.add if self.unreadable.limit else None,
        )
        gathered: list[Batch] = []
        for batch in batches:
            gathered.append(batch)
            if len(gathered) == config.accumulation_steps:
                yield gathered
                gathered = []

    def _network_input(self, images_BHWC: Tensor) -> Tensor:
        mirror_B = None
        if self.recipe.data.flip:
            mirror_B = to_device(torch.rand(len(images_BHWC)) < 0.5, self.device)
        images_BHWC = images_BHWC.to(self.device, non_blocking=True)
        return to_network_input(images_BHWC, self.channels_last, mirror_B)

    def _clip_gradients(self) -> Tensor:
        """The norm of the whole gradient (backbone and head), which is scaled down to `clip_norm` where that is set."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_norm := self.recipe.training.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        return norm

    def _validation_due(self) -> bool:
        due = self.step == self.total_steps or (self.step > 0 and self.step % self.recipe.validation.every == 0)
        return due and self.validated_step != self.step and bool(self.validation.sets)

    def _validate(self, folder: RunFolder, log: MetricsLog) -> None:
        rows = self.validation.measure(self.backbone, self.device)
        say(f"validation at step {self.step}")
        for row in rows:
            best = max(self.best["sets"][row["set"]], row["accuracy"])  # in this order NaN is never the larger
            self.best["sets"][row["set"]] = best
            row |= {"step": self.step, "epoch": self.epoch, "best_accuracy": best or math.nan}
            log.write("validation", row)
            say(validation_line(row))
        self.validated_step = self.step
        if mean_accuracy(rows) > self.best["mean_accuracy"]:
            self.best |= {"mean_accuracy": mean_accuracy(rows), "step": self.step}
            save_checkpoint(folder.best, self.state_dict(log.length))
        if self.step == self.total_steps:
            self.final = rows

    def _log_interval(self, log: MetricsLog) -> None:
        rate, seconds_left = self.stopwatch.read((self.total_steps - self.step) * self.step_images)
        values = {
            "step": self.step,
            "epoch": (self.step - 1) // self.steps_per_epoch + 1,
            "loss": self.meter.loss,
            "learning_rate": self.latest["learning_rate"],
            "gradient_norm": self.latest["gradient_norm"],
            "gradient_scale": self.scaler.get_scale(),
            "skipped_steps": self.meter.skipped,
            "images_per_second": rate,
        }
        log.write("train", values)
        say(train_line(values, self.total_steps, self.recipe.training.epochs, seconds_left))
        self.meter.reset()

    def _next_batches(self, steps: Iterator[list[Batch]], folder: RunFolder, log: MetricsLog) -> list[Batch]:
        """The batches of the next step; where they cannot be had, all steps before are saved."""
        try:
            return next(steps)
        except FaceBonesError:  # an image is broken, or a worker was killed
            self._save(folder, log)
            say(f"step {self.step} is saved; once the error below is mended, go on with: {folder.resume_command}")
            raise

    def _save_beginning(self, folder: RunFolder, log: MetricsLog) -> None:
        """Save before the first step: from now on a folder without a checkpoint is one that has lost it.

        Also where lines of metrics.jsonl are gone, for the checkpoint must know its length before it grows again.
        """
        note_environment(folder, self.environment(), self.step)
        if not folder.last.is_file() or log.length != self.metrics_bytes:
            self._save(folder, log)

    def _save(self, folder: RunFolder, log: MetricsLog) -> None:
        self.settle()
        save_checkpoint(folder.last, self.state_dict(log.length))

    def _finish(self, folder: RunFolder) -> dict[str, Any]:
        """Write the trained weights and the final figures.

        Raises:
            RunError: the gradient scaler has skipped every step.
        """
        if self.skipped_steps == self.step:
            raise RunError(
                f"the gradient scaler skipped all {self.step} steps, so nothing was trained; begin a new run with"
                " more --training.epochs, or with --training.precision fp32 or bf16"
            )
        card = {
            "backbone": self.backbone.name,
            "embedding_size": self.recipe.backbone.embedding_size,
            "training_data": Path(self.recipe.data.path).name,
            "training_images": len(self.data),
            "training_identities": self.data.num_identities,
            "epochs": self.recipe.training.epochs,
            "facebones": facebones.__version__,
        }
        save_weights(folder, self.backbone, card)
        result = {
            **card,
            "steps": self.step,
            "skipped_steps": self.skipped_steps,
            "unreadable_images": len(self.unreadable.images),
            "final": [finite_or_none(row) for row in self.final],
            "best": self.best,
        }
        write_json(folder.result, result)
        return result


def build_head(config: HeadConfig, num_classes: int, embedding_size: int) -> PartialFC:
    """The head of a recipe, its centres drawn from torch's global generator."""
    margin = partial(
        combined_margin,
        scale=config.scale,
        m1=config.m1,
        m2=config.m2,
        m3=config.m3,
        interclass_filter=config.interclass_filter,
        gradient=cast(Any, config.gradient),
    )
    return PartialFC(num_classes, embedding_size, margin, sample_rate=config.sample_rate)


def compiled(backbone: Backbone, channels_last: bool) -> Callable[[Tensor], Tensor]:
    """The same network, with what lies between its convolutions fused."""
    # Left to itself, inductor copies the input of each depthwise convolution into another layout in backward.
    return torch.compile(backbone, options={"force_layout_optimization": channels_last})


def _counted(count: int, noun: str) -> str:
    """A number of things.

    >>> _counted(1, "epoch"), _counted(2, "step")
    ('1 epoch', '2 steps')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def _fitting_batch(recipe: Recipe, images: int) -> str:
    """The options that make a step fit so many images."""
    if (largest := images // recipe.training.accumulation_steps) >= 2:
        return f"--training.batch_size {largest} or less"
    return f"--training.batch_size 2 --training.accumulation_steps {max(1, images // 2)} or less"


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def _restore_random_state(state: Mapping[str, Tensor], device: torch.device, path: Path) -> None:
    try:
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
        if device.type == "mps" and "mps" in state:
            torch.mps.set_rng_state(state["mps"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: rng: no state of a random generator; damaged: restore the file") from error
