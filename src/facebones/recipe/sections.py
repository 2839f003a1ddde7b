"""The sections of a recipe: everything that decides a training run, as dataclasses.

The help of each field is what `facebones train --help` prints. The section `head` holds a head's name and that head's
own options (`heads.registry`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from facebones.heads.registry import DEFAULT_HEAD, CombinedOptions
from facebones.strict_yaml import setting

CHOOSABLE = ("precision", "compile")  # training settings that `training.choose` may name
IMPORT = "import"  # top-level key of a recipe; the field is `imports`


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network."""

    name: str = setting("shufflefacenet_1_0", "backbone, one of `facebones backbones`")
    embedding_size: int = setting(512, "length of the embedding", minimum=1)
    dropout: float = setting(0.0, "dropout before the last linear layer", minimum=0, maximum=0.95)


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
class DataConfig:
    """The training images."""

    path: str = setting("", "folder with train.rec, or with one folder an identity; --data sets it")
    flip: bool = setting(True, "mirror half of the images at random")
    shuffle: str = setting(
        "full",
        "order of an epoch: full, or block:N, which reads N neighbouring images together (slow disks)",
        form=(r"full|block:[1-9][0-9]{0,8}", "full or block:N, such as block:1024"),
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


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the steps."""

    name: str = setting("polynomial", "shape after the warm-up", choices=("polynomial", "step", "cosine"))
    power: float = setting(1.0, "power of polynomial decay: 1 is linear, 2 quadratic", above=0)
    milestones: list[float] = setting([], "epochs at which `step` multiplies the rate", minimum=0)
    factor: float = setting(0.1, "what `step` multiplies the rate by", above=0, maximum=1)
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up", minimum=0)


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
    clip_norm: float = setting(0.0, "clip the gradient to this norm; 0: no clipping", minimum=0)
    seed: int = setting(0, "seed of weights, order, flips and sampled centres", minimum=0)
    checkpoint_every: int = setting(1000, "steps between checkpoints", minimum=1)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Verification during training."""

    sets: list[str] = setting([], "pair sets: names beside the training data, or paths of .bin files")
    every: int = setting(2000, "steps between validations; the last step is always validated", minimum=1)
    batch_size: int = setting(128, "images a forward pass", minimum=1)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged."""

    every: int = setting(50, "steps between log lines", minimum=1)
    tensorboard: bool = setting(False, "write TensorBoard files too (extra `tensorboard`)")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    imports: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The recipe as YAML has it: sections with every field written out, and `import` if there are plug-ins."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}
        sections["head"] = self.head.to_dict()
        return ({IMPORT: list(self.imports)} if self.imports else {}) | sections

    def values(self) -> dict[str, Any]:
        """Every field as "section.field"; heads that are the same function are written alike.

        Two runs with equal values compute the same. `arcface` with margin 0.5 is `combined` with m2 0.5.

        >>> from facebones.recipe import head_config
        >>> Recipe(head=head_config("arcface")).values() == Recipe().values()
        True
        """
        return flat_fields(self.to_dict() | {"head": self.head.combined().to_dict()})


SECTIONS: dict[str, type[Any]] = {
    **{"backbone": BackboneConfig, "head": HeadConfig, "data": DataConfig, "optimizer": OptimizerConfig},
    **{"schedule": ScheduleConfig, "training": TrainingConfig, "validation": ValidationConfig, "log": LogConfig},
}


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)


def flat_fields(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of fields as "section.field"."""
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        if section != IMPORT
        for key, value in values.items()
    }
