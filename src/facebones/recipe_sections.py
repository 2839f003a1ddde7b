"""The sections of a recipe: the fields that decide a training run, each with its default, its range and its help.

Nothing here reads a file (`facebones.recipe`) or computes. The help is what `facebones train --help` prints.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from facebones.errors import ConfigError
from facebones.heads.registry import DEFAULT_HEAD, CombinedOptions
from facebones.strict_yaml import setting

CHOOSABLE = ("precision", "compile")  # training settings that `training.choose` may name
TIMM_WEIGHTS = "timm"  # a value of backbone.weights that is no path
MARGIN_LOSSES = ("frozen_centres", "adadistill")  # values of distillation.loss that have a scale and a margin
REPETITION = ("fresh", "repeated")  # random draws of an epoch: new ones, or those of the first epoch


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network."""

    name: str = setting("shufflefacenet_1_0", "backbone, one of `facebones backbones`")
    embedding_size: int = setting(512, "length of the embedding", minimum=1)
    dropout: float = setting(0.0, "dropout before the last linear layer", minimum=0, maximum=0.95)
    weights: str = setting(
        "",
        "weights to begin with: a run, a checkpoint or file of weights, hf:OWNER/NAME, or timm, which has some for"
        " timm:NAME",
    )
    frozen: int = setting(0, "how many of the first stages keep these weights (docs/training.md)", minimum=0)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The loss: a registered head.

    Attributes:
        name: in the registry.
        options: an instance of that head's options; a mapping of unchecked values where the head is in a plug-in that
            is not imported (`load_config`).
    """

    name: str = DEFAULT_HEAD
    options: Any = field(default_factory=CombinedOptions)

    def to_dict(self) -> dict[str, Any]:
        """Name and options side by side, as in YAML."""
        options = dict(self.options) if isinstance(self.options, Mapping) else dataclasses.asdict(self.options)
        return {"name": self.name, **options}

    def combined(self) -> "HeadConfig":
        """A head with a fixed margin as options of `combined`; any other head as it is."""
        combined = getattr(self.options, "combined", None)
        return HeadConfig(options=combined()) if combined else self


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """A teacher, whose embeddings of the training images were computed before."""

    embeddings: str = setting(
        "",
        "the teacher's embeddings, made by `facebones data embed`: a name beside the data, or a path; none: no teacher",
    )
    loss: str = setting(
        "embedding_cosine",
        "what draws the student to the teacher",
        choices=("embedding_cosine", "embedding_mse", "relational", "frozen_centres", "adadistill"),
    )
    alone: bool = setting(False, "without a head: then images of people without labels will do, in one folder")
    weight: float = setting(1.0, "factor on this loss; the head's has 1", above=0)
    scale: float = setting(64.0, "frozen_centres, adadistill: factor on all cosines", above=0)
    margin: float = setting(0.45, "frozen_centres, adadistill: the margin", minimum=0)
    kind: str = setting(
        "arc", "frozen_centres, adadistill: margin added to the angle, or taken from the cosine", choices=("arc", "cos")
    )

    def without_effect(self) -> list[str]:
        """Names of the fields that change nothing here; not `alone`, which needs a teacher.

        >>> DistillationConfig(embeddings="teacher").without_effect()
        ['scale', 'margin', 'kind']
        """
        of_margin = ["scale", "margin", "kind"]
        if not self.embeddings:
            return ["loss", "weight", *of_margin]
        return [] if self.loss in MARGIN_LOSSES else of_margin


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training images."""

    path: str = setting("", "folder with train.rec or with one folder an identity, LMDB, or Parquet; --data sets it")
    order: str = setting(
        "fresh", "fresh: each epoch has its own order; repeated: all have the first one's", choices=REPETITION
    )
    flip: bool = setting(True, "mirror half of the images at random")
    flip_draw: str = setting(
        "fresh",
        "fresh: each epoch draws its own flips; repeated: the same flips by position in every epoch",
        choices=REPETITION,
    )
    crop: float = setting(
        0.0, "probability of a random crop (20-100 % of the image): the rest becomes black", minimum=0, maximum=1
    )
    low_resolution: float = setting(
        0.0, "probability of resizing an image to 20-100 % of its side and back", minimum=0, maximum=1
    )
    photometric: float = setting(
        0.0, "probability of changing brightness, contrast and saturation by 0.5-1.5", minimum=0, maximum=1
    )
    erasing: float = setting(
        0.0, "probability of filling a rectangle (2-40 % of the image) with random pixels", minimum=0, maximum=1
    )
    jpeg_quality: int = setting(
        0, "save each image as JPEG of this quality again before it is used; 0: do not", minimum=0, maximum=100
    )
    shuffle: str = setting(
        "full",
        "order of an epoch: full, or block:N, which reads N neighbouring images together (slow disks)",
        form=(r"full|block:[1-9][0-9]{0,8}", "full or block:N, such as block:1024"),
    )
    held_out: float = setting(
        0.0,
        "share of the people that are not trained on, always the same ones (docs/training.md)",
        minimum=0,
        maximum=0.9,
    )
    max_unreadable: int = setting(
        0,
        "replace up to this many unreadable images by their successors; fail on the next one (0: fail at once)",
        minimum=0,
        renamed=("unreadable_limit",),
    )
    workers: int = setting(
        2, "processes that read and decode; 0 reads in the training process", minimum=0, maximum=1024
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer."""

    name: str = setting("sgd", "optimizer", choices=("sgd", "adamw"))
    learning_rate: float = setting(0.1, "largest learning rate", above=0)
    momentum: float = setting(0.9, "momentum of sgd", minimum=0, maximum=1)
    # AdamW with a decay of 1 never learns and divides by zero.
    beta1: float = setting(0.9, "decay of adamw's mean", minimum=0, maximum=0.9999)
    beta2: float = setting(0.999, "decay of adamw's mean square", minimum=0, maximum=0.999999)
    weight_decay: float = setting(5e-4, "weight decay", minimum=0)
    decay_norm_and_prelu: bool = setting(True, "weight decay on normalisation, PReLU and biases too")
    layer_decay: float = setting(
        1.0, "learning rate of each earlier stage of the backbone, relative to the stage after it", above=0, maximum=1
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the steps."""

    name: str = setting("polynomial", "shape after the warm-up", choices=("polynomial", "step", "cosine"))
    power: float = setting(1.0, "power of polynomial decay: 1 is linear, 2 quadratic", above=0)
    milestones: list[float] = setting([], "epochs at which `step` multiplies the rate", minimum=0)
    factor: float = setting(0.1, "what `step` multiplies the rate by", above=0, maximum=1)
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up", minimum=0)
    one_step_ahead: bool = setting(
        False, "decay from the first step on: (k + 1) / (T + 1) of the decay is over at step k of T, not k / T"
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how."""

    epochs: int = setting(20, "passes over the data", minimum=1, maximum=1_000_000)
    batch_size: int = setting(128, "images a forward pass", minimum=2)
    accumulation_steps: int = setting(1, "forward passes a step of the optimizer", minimum=1)
    precision: str = setting("fp32", "number format of the backbone", choices=("fp32", "bf16", "fp16"))
    channels_last: bool = setting(True, "channels-last memory layout: faster convolutions on most devices")
    compile: bool = setting(False, "compile the backbone with torch.compile: slower to start, then faster")
    choose: list[str] = setting(
        [], "settings to choose by timing the first steps; --autotune sets it", choices=CHOOSABLE
    )
    clip_norm: float = setting(0.0, "clip the gradient to this norm; 0: no clipping", minimum=0, leads=True)
    clip_of: str = setting(
        "all", "gradient that is clipped: of backbone and head by their joint norm, or of the backbone alone",
        choices=("all", "backbone"),
    )  # fmt: skip
    growth_interval: int = setting(
        2000, "fp16: steps without an overflow after which the gradient scale doubles", minimum=1
    )
    batch_norm: str = setting(
        "whole",
        "several processes: normalise over the whole batch, which makes their number change nothing, or each over its"
        " own part, which sends less",
        choices=("whole", "own"),
    )
    canonical_shards: int = setting(
        0,
        "cut each batch, and the classes, into this many parts and sum them in a fixed order: the same bits on any"
        " number of processes that divides it (CPU, fp32); 0: off",
        minimum=0,
        maximum=1024,
    )
    seed: int = setting(0, "seed of weights, order, flips and sampled centres", minimum=0)
    stop_below: list[float] = setting(
        [],
        "end at the first validation, if the best mean accuracy so far is below the first number, at the second one, if"
        " below the second, ... (docs/training.md)",
        minimum=0,
        maximum=1,
    )
    checkpoint_every: int = setting(1000, "steps between checkpoints", minimum=1)
    background_saves: bool = setting(
        False, "write checkpoints during the training, from a copy in memory of all that is saved"
    )

    @property
    def step_images(self) -> int:
        """Images of a step."""
        return self.batch_size * self.accumulation_steps

    def steps_per_epoch(self, images: int, data: Any) -> int:
        """Whole steps in the images of a training set.

        Raises:
            ConfigError: a step needs more images.
        """
        if images >= self.step_images:
            return images // self.step_images
        if (largest := images // self.accumulation_steps) >= 2:
            fitting = f"--training.batch_size {largest} or less"
        else:
            fitting = f"--training.batch_size 2 --training.accumulation_steps {max(1, images // 2)} or less"
        raise ConfigError(
            f"training.batch_size {self.batch_size} x accumulation_steps {self.accumulation_steps} is more than the"
            f" {images} images of {data}; give {fitting}"
        )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Verification during training."""

    sets: list[str] = setting([], "pair sets: names beside the training data, or paths of .bin files")
    every: int = setting(2000, "steps between validations; the last step is always validated", minimum=1)
    batch_size: int = setting(128, "images a forward pass", minimum=1)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged."""

    every: int = setting(
        0, "steps between log lines; 0: 50, or in a run of less than 1,000 steps a twentieth of it", minimum=0
    )
    trackers: list[str] = setting(
        [], "log to these too: tensorboard, wandb, mlflow, trackio (extras of these names)", renamed=("tensorboard",)
    )

    def interval(self, total_steps: int) -> int:
        """Steps between the log lines of a run.

        >>> [LogConfig().interval(steps) for steps in (7, 400, 490_280)], LogConfig(every=100).interval(7)
        ([1, 20, 50], 100)
        """
        return self.every or min(50, max(1, total_steps // 20))


SECTIONS: dict[str, type[Any]] = {
    **{"backbone": BackboneConfig, "head": HeadConfig, "distillation": DistillationConfig},
    **{"data": DataConfig, "optimizer": OptimizerConfig},
    **{"schedule": ScheduleConfig, "training": TrainingConfig, "validation": ValidationConfig, "log": LogConfig},
}
