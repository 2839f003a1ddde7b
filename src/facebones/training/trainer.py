"""The trainer: what is built from a recipe, and the state of a training that changes with each step."""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones import Backbone, create_backbone
from facebones.backbones.stages import TrainingMode, freeze
from facebones.data.augmentations import Augmentation
from facebones.data.joined_sets import beside
from facebones.data.loader import EpochOrder, block_size, training_batches
from facebones.data.wrapped_sets import NumberedImages, SavedAgain
from facebones.errors import CheckpointError, ConfigError, DataError, counted
from facebones.heads.distillation import NoHead
from facebones.heads.partial_fc import Head
from facebones.heads.sharded import create_shared_head
from facebones.recipe import Recipe
from facebones.system.device import random_state
from facebones.system.distributed import ALONE, World
from facebones.system.progress import say
from facebones.training import step as steps
from facebones.training.data_parallel import DataParallel
from facebones.training.logical_state import head_state, load_head_state, load_optimizer_state, optimizer_state
from facebones.training.logs import Meter, Stopwatch
from facebones.training.optimizer import build_optimizer, build_schedule, materialise_optimizer_state
from facebones.training.start import StartWeights
from facebones.training.state import check_state, restore_random_state
from facebones.training.teaching import Teaching, open_training_data
from facebones.training.trackers import check_trackers
from facebones.training.validation import Validation


class Trainer:
    """A training in memory.

    Args:
        recipe: everything that decides the run.
        device: where it computes.
        world: the processes that train together.

    Building one seeds torch's global generators with the recipe's seed.

    Raises:
        ConfigError: the recipe cannot be trained by so many processes.
    """

    def __init__(self, recipe: Recipe, device: torch.device, world: World = ALONE) -> None:
        config = recipe.training
        self.recipe, self.device = recipe, device
        self.world = shared_world(recipe, device, world)
        self.data = open_training_data(recipe)
        self.step_images = config.step_images
        self.unreadable = UnreadableImages(recipe.data.max_unreadable, len(self.data))
        self.steps_per_epoch = config.steps_per_epoch(len(self.data), self.data.path)
        self.total_steps = self.steps_per_epoch * config.epochs
        check_trackers(recipe.log.trackers)
        self.validation = Validation(recipe, beside(recipe.data.path))

        torch.manual_seed(config.seed)
        self.backbone = create_backbone(recipe.backbone.name, recipe.backbone.embedding_size, recipe.backbone.dropout)
        freeze(self.backbone, recipe.backbone.frozen)
        self.training_mode = TrainingMode(self.backbone, recipe.backbone.frozen)
        self.started_from: dict[str, str] | None = None
        self.backbone.to(device)
        # On MPS the gradient of BatchNorm2d is wrong in this layout (github.com/pytorch/pytorch/issues/175189).
        self.channels_last = config.channels_last and device.type != "mps"
        if self.channels_last:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # The same weights, for training steps only; never saved.
        compiling = partial(compiled, channels_last=self.channels_last) if config.compile else _as_it_is
        self.parallel: DataParallel | None = None
        if self.world.alone:
            self.compiled_backbone = compiling(self.backbone)
        else:
            self.compiled_backbone = self.parallel = DataParallel(
                self.backbone,
                self.world,
                batch_size=config.batch_size,
                seed=config.seed,
                device=device,
                whole_batch_norm=config.batch_norm == "whole",
                frozen=recipe.backbone.frozen,
                compiled=compiling,
            )
        self.head = self._create_head().to(device)
        self.teaching: Teaching | None = None
        if recipe.distillation.embeddings:
            self.teaching = Teaching(recipe, self.data, device, self.world)
        self.optimizer = build_optimizer(recipe.optimizer, *self._modules.values(), self.head)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=config.precision == "fp16", growth_interval=config.growth_interval
        )
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

    def _create_head(self) -> Head:
        recipe = self.recipe
        if recipe.distillation.alone:
            return NoHead()
        return create_shared_head(
            recipe.head.name,
            recipe.head.options,
            self.data.num_identities,
            recipe.backbone.embedding_size,
            world=self.world,
            batch_size=recipe.training.batch_size,
        )

    @property
    def _modules(self) -> dict[str, nn.Module]:
        """What is trained beside the head, and is whole in every process."""
        taught = {} if self.teaching is None else {"distillation": self.teaching.loss}
        return {"backbone": self.backbone, **taught}

    def start_from(self, start: StartWeights | None) -> None:
        """Begin with these weights instead of random ones."""
        if start is not None:
            start.fill(self.backbone)
            self.started_from = start.record

    def train_step(self, batches: Sequence[steps.Batch]) -> None:
        """One update of the weights; see `step.train_step`."""
        steps.train_step(self, batches)

    def read_back_metrics(self) -> None:
        """Read the metrics of the last steps from the device; see `step.read_back_metrics`."""
        steps.read_back_metrics(self)

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def stopped_early(self) -> bool:
        """Whether `training.stop_below` ends the training at this step, whose validation is over."""
        if self.validated_step != self.step or self.step == self.total_steps:
            return False
        number = self.step // self.recipe.validation.every  # of this validation, from 1
        return any(self.best["mean_accuracy"] < limit for limit in self.recipe.training.stop_below[number - 1 : number])

    def state_dict(self, metrics_bytes: int) -> dict[str, Any]:
        """Everything that changes during training, as tensors and plain values."""
        return {
            "recipe": self.recipe.to_dict(),
            "backbone": self.backbone.state_dict(),
            "head": head_state(self.head),
            "optimizer": optimizer_state(self.optimizer, self._modules, self.head),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "position": self.step % self.steps_per_epoch * self.step_images,  # images of this epoch already used
            "rng": random_state(self.device),
            "best": self.best,
            "validated_step": self.validated_step,
            "skipped_steps": self.skipped_steps,
            "unreadable": self.unreadable.images,
            "meter": self.meter.state_dict(),
            "latest": self.latest,
            "final": self.final,
            "metrics_bytes": metrics_bytes,
            "data": self.data.fingerprint(),
            "validation": self.validation.fingerprint,
            **({} if self.teaching is None else {"distillation": self.teaching.state_dict()}),
        }

    def pattern(self) -> dict[str, Any]:
        """The present state with everything that a later one has: what a checkpoint must look like."""
        materialise_optimizer_state(self.optimizer)
        return self.state_dict(0)

    def load_state_dict(self, state: Mapping[str, Any], path: Path) -> None:
        """Restore the state of `state_dict`.

        Raises:
            CheckpointError: the state belongs to another recipe or other data, or is damaged.
        """
        check_state(self.recipe, self.pattern(), state, path)
        self.step = state["step"]
        place = {key: state[key] for key in ("step", "epoch", "position")}
        if place != {key: self.state_dict(0)[key] for key in place} or not 0 <= self.step <= self.total_steps:
            raise CheckpointError(f"{path}: its position in the data does not fit its config.yaml; restore both")
        self.backbone.load_state_dict(state["backbone"])
        try:
            load_head_state(self.head, state["head"])
        except CheckpointError as error:  # of a head's own state, which knows no path
            raise CheckpointError(f"{path}: {error}") from error
        load_optimizer_state(self.optimizer, self._modules, self.head, state["optimizer"])
        if self.teaching is not None:
            self.teaching.load_state_dict(state["distillation"], path)
        self.scaler.load_state_dict(state["scaler"])
        self.unreadable.load(state["unreadable"], path)
        self.meter.load_state_dict(state["meter"])
        self.best, self.latest, self.final = state["best"], state["latest"], state["final"]
        self.validated_step, self.skipped_steps = state["validated_step"], state["skipped_steps"]
        self.metrics_bytes = max(0, state["metrics_bytes"])
        restore_random_state(state["rng"], self.device, path)

    def step_batches(self) -> Generator[list[steps.Batch]]:
        """The batches of each step, from the current one to the last."""
        config, data, images = self.recipe.training, self.recipe.data, self.data
        if data.jpeg_quality:
            images = SavedAgain(images, data.jpeg_quality)
        if self.teaching is not None:
            images = NumberedImages(images)
        order = EpochOrder(
            images,
            batch_size=config.batch_size,
            batches_per_epoch=self.steps_per_epoch * config.accumulation_steps,
            first=self.step * config.accumulation_steps,
            last=self.total_steps * config.accumulation_steps,
            seed=config.seed,
            block=block_size(data.shuffle),
            repeated=data.order == "repeated",
            part=(self.world.rank, self.world.size),
        )
        augmentation = Augmentation(data.crop, data.low_resolution, data.photometric, data.erasing, config.seed)
        batches = training_batches(
            order,
            workers=data.workers,
            held=config.accumulation_steps,
            pin_memory=self.device.type == "cuda",
            replaced=self.unreadable.add if self.unreadable.limit else None,
            augment=augmentation if augmentation.changes_something else None,
        )
        label_N = torch.from_numpy(self.data.labels)
        gathered: list[steps.Batch] = []
        for pixels_BHWC, label_B in batches:
            batch = steps.Batch(pixels_BHWC, label_B)
            if self.teaching is not None:  # the images have numbers instead of labels
                batch = steps.Batch(pixels_BHWC, label_N[label_B], numbers=label_B)
            gathered.append(batch)
            if len(gathered) == config.accumulation_steps:
                yield gathered
                gathered = []


class UnreadableImages:
    """Training images that could not be read and were replaced by their successors.

    Args:
        limit: how many there may be.
        total: images of the training set.

    Attributes:
        images: their indices in the training set, in the order in which they were met.
    """

    def __init__(self, limit: int, total: int) -> None:
        self.limit, self.total = limit, total
        self.images: list[int] = []
        self._new: dict[int, str] = {}

    def add(self, found: Mapping[int, str]) -> None:
        """Add images, each with what is wrong with it.

        Raises:
            DataError: more than the limit.
        """
        for index, reason in found.items():
            if index in self.images:
                continue
            if len(self.images) == self.limit:
                raise DataError(f"{reason} (data.max_unreadable is {self.limit}, and this is one more)")
            self.images.append(index)
            self._new[index] = reason
            say(f"note: {reason}; the next image takes its place ({len(self.images)} of {self.limit} allowed)")

    def take_new(self) -> dict[int, str]:
        """Those that were added since the last call, with what is wrong with each."""
        new, self._new = self._new, {}
        return new

    def load(self, images: Any, path: Path) -> None:
        """Restore the indices that a checkpoint holds.

        Raises:
            CheckpointError: not indices of images.
        """
        if not isinstance(images, list) or not all(type(i) is int and 0 <= i < self.total for i in images):
            raise CheckpointError(f"{path}: unreadable: holds no indices of images; damaged: restore the file")
        self.images = images


def shared_world(recipe: Recipe, device: torch.device, world: World) -> World:
    """The world of a training, with the shards that its recipe asks for.

    Raises:
        ConfigError: the batch or the canonical shards cannot be shared by so many processes, or the recipe asks for
            equal bits where they cannot be had.
    """
    config, size = recipe.training, world.size
    least = 1 if config.batch_norm == "whole" else 2
    if size > 1 and config.batch_size < least * size:
        raise ConfigError(
            f"training.batch_size {config.batch_size} is too small for {size} processes: each needs"
            f" {counted(least, 'image')}; give --batch-size {least * size} or more, or start fewer processes"
        )
    if size > 1 and config.choose:
        raise ConfigError("training.choose (--autotune) measures on one process; choose there, then give its choice")
    if not (shards := config.canonical_shards):
        return world
    if config.batch_size % shards:
        raise ConfigError(
            f"training.canonical_shards {shards} does not divide training.batch_size {config.batch_size}; give a"
            f" --batch-size of {max(1, round(config.batch_size / shards)) * shards}"
        )
    if config.precision != "fp32" or config.compile or config.choose or device.type != "cpu":
        raise ConfigError(
            "training.canonical_shards gives equal bits on CPUs in fp32 without --training.compile and --autotune"
            f" only; this training has {device.type}, {config.precision}, compile {config.compile}"
        )
    if config.batch_norm != "whole":
        raise ConfigError("training.canonical_shards needs training.batch_norm whole")
    return world.with_canonical(shards)


def _as_it_is(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    return backbone


def compiled(backbone: Backbone, channels_last: bool) -> Callable[[Tensor], Tensor]:
    """The network compiled by torch.compile, which fuses the operations between its convolutions."""
    # By default, inductor copies the input of each depthwise convolution into another layout in backward.
    return torch.compile(backbone, options={"force_layout_optimization": channels_last})
