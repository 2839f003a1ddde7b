"""A recipe: everything that decides a training run, as dataclasses that YAML and `--section.field value` fill.

The help of each field is what `facebones train --help` prints. Loading is strict: an unknown key, a value of the
wrong kind or out of range is refused with its place, and nothing is guessed. A value is text until its field says what
it is, in the file as on the command line: the path 0123 stays 0123, and the learning rate 5e-4 is a number.

A recipe may come from a stranger. Its YAML is mappings, lists and text, and no more: without aliases and tags, a short
file stays short in memory and builds nothing.
"""

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from facebones.errors import ConfigError, UnknownNameError
from facebones.strict_yaml import check_value, read_yaml, setting

CHOOSABLE = ("precision", "compile")  # of a training's settings, those that it can choose by measuring


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network."""

    name: str = setting("shufflefacenet_1_0", "backbone, one of `facebones backbones`")
    embedding_size: int = setting(512, "length of the embedding", minimum=1)
    dropout: float = setting(0.0, "dropout before the last linear layer", minimum=0, maximum=0.95)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The loss: softmax over scale * (cos(m1 angle + m2) - m3)."""

    scale: float = setting(64.0, "factor on all cosines", above=0)
    m1: float = setting(1.0, "factor on the angle (SphereFace)", above=0)
    m2: float = setting(0.5, "added to the angle, radians (ArcFace)", minimum=0)
    m3: float = setting(0.0, "subtracted from the cosine (CosFace)", minimum=0)
    interclass_filter: float = setting(0.0, "other classes' cosines above this are ignored; 0 is off", minimum=0)
    gradient: str = setting(
        "straight_through", "how the margin is differentiated", choices=("straight_through", "exact")
    )
    sample_rate: float = setting(1.0, "share of the class centres that takes part in a step", above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training faces."""

    path: str = setting("", "folder with train.rec, or with one folder an identity; --data sets it")
    flip: bool = setting(True, "mirror half of the images at random")
    shuffle: str = setting(
        "full",
        "order of an epoch: full, or block:N, which keeps N neighbouring images together, for slow disks",
        form=(r"full|block:[1-9][0-9]{0,8}", "full or block:N, such as block:1024"),
    )
    unreadable_limit: int = setting(
        0, "images that cannot be read, in whose place the next one is used; one more ends the training", minimum=0
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
    # At 1, AdamW would never learn and divides by zero.
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
    warmup_epochs: float = setting(0.0, "epochs of linear rise before", minimum=0)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and how."""

    epochs: int = setting(20, "passes over the data", minimum=1, maximum=1_000_000)
    batch_size: int = setting(128, "images a forward pass", minimum=2)
    accumulation_steps: int = setting(1, "forward passes a step of the optimizer", minimum=1)
    precision: str = setting("fp32", "number format of the backbone", choices=("fp32", "bf16", "fp16"))
    channels_last: bool = setting(True, "memory layout in which convolutions are faster on most devices")
    compile: bool = setting(False, "let torch.compile fuse the backbone: slow to begin, then faster")
    choose: list[str] = setting(
        [], "settings chosen by measuring the first steps; --autotune sets them", choices=CHOOSABLE
    )
    clip_norm: float = setting(0.0, "largest norm of the gradient; 0 does not clip", minimum=0)
    seed: int = setting(0, "seed of weights, order, flips and samples", minimum=0)
    checkpoint_every: int = setting(1000, "steps between checkpoints", minimum=1)


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Verification while training."""

    sets: list[str] = setting([], "pair sets: names beside the training data, or paths of .bin files")
    every: int = setting(2000, "steps between validations; there is always one at the end", minimum=1)
    batch_size: int = setting(128, "images a forward pass", minimum=1)


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is said on the way."""

    every: int = setting(50, "steps between lines", minimum=1)
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

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The recipe as plain sections, every field written out."""
        return dataclasses.asdict(self)


def load_recipe(
    path: str | Path, overrides: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None
) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: a YAML file, or the name of a recipe that comes with the package, such as "casia_webface".
        overrides: "section.field" to the value's text, as on the command line; a list has commas between. What they
            set is no longer open to `training.choose`.
        where: of overrides that do not come from the command line, how their place is named in an error.

    Raises:
        ConfigError: not readable, not YAML, or a value of the wrong kind or out of range.
        UnknownNameError: an unknown recipe, section or field, with the nearest name.
    """
    path = find_recipe(str(path))
    sections = _sections(path)
    places = {f"{name}.{key}": f"{path}: {name}.{key}" for name, values in sections.items() for key in values}
    where = where or {}
    for key, text in (overrides or {}).items():
        section, _, name = key.partition(".")
        if section not in _section_types() or not name:
            if key in where:
                raise UnknownNameError("field", key, field_names(), where[key])
            raise UnknownNameError("option", f"--{key}", [f"--{name}" for name in field_names()])
        places[key] = where.get(key, f"--{key}")
        sections.setdefault(section, {})[name] = text
    recipe = recipe_from_dict(sections, places)
    still_open = [name for name in recipe.training.choose if f"training.{name}" not in (overrides or {})]
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, choose=still_open))


def find_recipe(name: str) -> Path:
    """The path of a recipe given by a path or by the name of one that comes with the package."""
    return find_shipped(name, "recipe", "recipes")


def find_shipped(name: str, kind: str, plural: str, folder: str = ".") -> Path:
    """The path of a YAML file given by a path or by the name of one that comes with the package.

    Args:
        name: path or name.
        kind: what it is, for errors: "recipe" or "study".
        plural: likewise.
        folder: where those that come along are, within the recipes.

    Raises:
        ConfigError: no such file.
        UnknownNameError: nothing of that name comes along; the message offers the nearest.
    """
    if Path(name).is_file():
        return Path(name)
    known = shipped_files(folder)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise ConfigError(f"{name}: no such {kind} file; {plural} that come with the package: {', '.join(known)}")
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]


def shipped_files(folder: str = ".") -> dict[str, Path]:
    """The YAML files that come with the package, by name.

    Args:
        folder: "." for recipes, "studies" for studies.
    """
    installed = Path(__file__).parent / "recipes"  # in a wheel; in a checkout, recipes/ is at the root
    recipes = installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted((recipes / folder).glob("*.yaml"))}


def recipe_from_dict(sections: Mapping[str, Any], where: Mapping[str, str] | None = None) -> Recipe:
    """Check sections of plain values and build a recipe.

    Args:
        sections: section to field to value, of the field's kind or as text.
        where: "section.field" to how its place is named in an error.
    """
    where = where or {}
    types = _section_types()
    built: dict[str, Any] = {}
    for section, values in sections.items():
        if section not in types:
            raise UnknownNameError("section", section, types, where.get(section, "recipe"))
        names = [item.name for item in dataclasses.fields(types[section])]
        for key in values:
            if key not in names:
                place = where.get(f"{section}.{key}", f"{section}.{key}")
                raise UnknownNameError("key", str(key), names, place)
        hints = get_type_hints(types[section])
        checked = {
            item.name: check_value(
                values[item.name], hints[item.name], item.metadata, where.get(f"{section}.{item.name}", item.name)
            )
            for item in dataclasses.fields(types[section])
            if item.name in values
        }
        built[section] = types[section](**checked)
    return Recipe(**built)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)


def field_names() -> list[str]:
    """All fields as "section.field"."""
    return [f"{section}.{item.name}" for section, kind in _section_types().items() for item in dataclasses.fields(kind)]


def field_help() -> list[tuple[str, str]]:
    """All fields as ("section.field", help with choices and default), for --help."""
    rows = []
    for section, kind in _section_types().items():
        defaults = kind()
        for item in dataclasses.fields(kind):
            choices = f" ({', '.join(item.metadata['choices'])})" if item.metadata["choices"] else ""
            value = getattr(defaults, item.name)
            several = "; commas between several" if isinstance(value, list) else ""
            shown = "" if value in ("", []) else f" [{value}]"
            rows.append((f"{section}.{item.name}", f"{item.metadata['help']}{several}{choices}{shown}"))
    return rows


def _section_types() -> dict[str, Any]:
    return get_type_hints(Recipe)


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    """Read the YAML file as sections of fields."""
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections ({', '.join(_section_types())})")
    for section, values in content.items():
        if section not in _section_types():
            raise UnknownNameError("section", section, _section_types(), str(path))
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: section '{section}' is a mapping of fields, not {reprlib.repr(values)}")
    return content
