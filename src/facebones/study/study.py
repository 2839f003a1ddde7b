"""A study: one recipe, several backbones and seeds, and what the trained networks are measured on; from a short YAML.

Loading is as strict as that of a recipe, and paths start where the command is called, as they do there.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from facebones.errors import ConfigError, UnknownNameError
from facebones.recipe import Recipe, find_shipped, load_recipe
from facebones.strict_yaml import check_value, read_yaml, setting

# What a study says itself; in its overrides these would contradict it.
OWN_FIELDS = {"backbone.name": "backbones", "training.seed": "seeds", "data.path": "data"}
MODEL_PART = "model "  # and a model's name: of the evaluation in study.json, what says why the model was left out


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """Whether and how the networks are profiled."""

    enabled: bool = setting(True, "whether there is a profile")
    batch_size: int = setting(32, "images a forward pass, for images/s and memory", minimum=1)
    threads: int = setting(0, "of the CPU; 0 is what torch takes", minimum=0)
    precision: str = setting("fp32", "by autocast", choices=("fp32", "bf16", "fp16"))
    seconds: float = setting(2.0, "least time a figure of a network", above=0)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison.

    Attributes:
        name: the file's name without ending.
        overrides: "section.field" of the recipe to its value's text.
        profile: whether and how the networks are profiled.
    """

    name: str = setting("", "")
    recipe: str = setting("", "a recipe's name, or its file")
    overrides: Mapping[str, str] = field(default_factory=dict)
    backbones: list[str] = setting([], "names, shell patterns, timm:NAME; or what is trained: runs and ONNX files")
    seeds: list[int] = setting([0], "a training run each", minimum=0)
    data: str = setting("", "the training data; --data sets it")
    pair_sets: list[str] = setting([], "names beside the data, or paths; by default the recipe's validation sets")
    ijb: list[str] = setting([], "IJB-B or IJB-C folders")
    profile: ProfileSettings = field(default_factory=ProfileSettings)

    def resolved_recipe(self, where: Mapping[str, str] | None = None) -> Recipe:
        """The recipe that all runs share, with the study's overrides and data; it validates on the study's pair sets.

        Args:
            where: of overrides that do not come from the command line, how their place is named in an error.

        Raises:
            ConfigError: the recipe cannot be used.
        """
        where = where or {}
        for name, own in OWN_FIELDS.items():
            if name in self.overrides:
                place = where.get(name, f"--{name}")
                raise ConfigError(f"{place}: the study itself says it; give --{own}, or `{own}` in the file")
        validated = {"validation.sets": ",".join(self.pair_sets)} if self.pair_sets else {}
        recipe = load_recipe(self.recipe, validated | dict(self.overrides), where)
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=self.data))

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        return dataclasses.asdict(self)


def load_study(path: str, *, overrides: Mapping[str, str] | None = None, **given: Any) -> Study:
    """Read a study and apply what the command line says.

    Args:
        path: a YAML file, or the name of a study that comes with the package, such as "compact_faithful".
        overrides: "section.field" of the recipe to the value's text, on top of the file's own.
        given: fields of the study that replace the file's; None leaves them.

    Raises:
        ConfigError: not readable, not YAML, or a value of the wrong kind or out of range.
        UnknownNameError: an unknown study, key, recipe, section or field, with the nearest name.
    """
    file = find_shipped(path, "study", "studies", "studies")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: a study is a mapping of {', '.join(_keys())}")
    for key in content:
        if key not in _keys():
            raise UnknownNameError("key", key, _keys(), str(file))
    replaced = {key: value for key, value in given.items() if value is not None}
    where = {key: f"--{key.replace('_', '-')}" if key in replaced else f"{file}: {key}" for key in _keys()}
    return _build(file, content | replaced, where, overrides or {})


def _keys() -> list[str]:
    return [item.name for item in dataclasses.fields(Study) if item.name != "name"]


def _build(file: Path, values: dict[str, Any], where: Mapping[str, str], overrides: Mapping[str, str]) -> Study:
    hints = get_type_hints(Study)
    checked = {
        item.name: check_value(values[item.name], hints[item.name], item.metadata, where[item.name])
        for item in dataclasses.fields(Study)
        if item.metadata and item.name in values
    }
    if "profile" in values:
        checked["profile"] = _profile_settings(values["profile"], where["profile"])
    own = _texts(values.get("overrides", {}), where["overrides"])
    study = Study(name=file.stem, overrides=own | dict(overrides), **checked)
    _check_complete(study, where)
    # Refuses what its recipe does not know.
    study.resolved_recipe({key: f"{where['overrides']}.{key}" for key in own if key not in overrides})
    return study


def _check_complete(study: Study, where: Mapping[str, str]) -> None:
    for key in ("recipe", "backbones", "seeds"):
        if not getattr(study, key):
            raise ConfigError(f"{where[key]}: is missing or empty; a study needs it")
    for key in ("backbones", "seeds", "pair_sets", "ijb"):
        _refuse_twice(getattr(study, key), where[key])


def _refuse_twice(items: Sequence[Any], where: str) -> None:
    if twice := [item for number, item in enumerate(items) if item in items[:number]]:
        raise ConfigError(f"{where}: {twice[0]} stands twice; leave one out")


def _texts(values: Any, where: str) -> dict[str, str]:
    """Overrides of the recipe, each as the text that the command line would have; a list has commas between."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: is a mapping of section.field to value, such as training.epochs: 2")
    texts = {}
    for key, value in values.items():
        plain = ",".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
        if not isinstance(plain, str):
            raise ConfigError(f"{where}.{key}: is one value or a list, and its key section.field in one word")
        texts[key] = plain
    return texts


def _profile_settings(value: Any, where: str) -> ProfileSettings:
    """`profile: true`, `profile: false`, or a mapping of settings."""
    fields = {item.name: item for item in dataclasses.fields(ProfileSettings)}
    if not isinstance(value, dict):
        return ProfileSettings(enabled=check_value(value, bool, fields["enabled"].metadata, where))
    for key in value:
        if key not in fields:
            raise UnknownNameError("key", key, fields, where)
    hints = get_type_hints(ProfileSettings)
    return ProfileSettings(
        **{key: check_value(text, hints[key], fields[key].metadata, f"{where}.{key}") for key, text in value.items()}
    )
