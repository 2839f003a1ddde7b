"""A study: one recipe, several backbones, levels and seeds, and what measures them; read from a short YAML file.

Loading is as strict as for a recipe. Paths are relative to the current folder, except plug-ins (`import:`), which are
relative to the file.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from facebones.errors import ConfigError, UnknownNameError
from facebones.plugins import import_plugins
from facebones.recipe import Recipe, load_recipe
from facebones.strict_yaml import check_value, fill, find_shipped, read_yaml, setting
from facebones.study.tuning import TuneSettings, read_space, read_tuning
from facebones.study.vary import (
    FREE_FIELDS,
    OWN_FIELDS,
    Factors,
    check_factors,
    combinations,
    field_texts,
    places,
    read_factors,
    sets_section,
)

AUTO = "auto"  # as many seeds as it takes
FIRST_SEEDS = 3  # of each level, before anything is decided


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """Whether and how the networks are profiled."""

    enabled: bool = setting(True, "whether to profile")
    batch_size: int = setting(32, "images a forward pass, for images/s and memory", minimum=1)
    threads: int = setting(0, "CPU threads; 0 keeps the default of torch", minimum=0)
    precision: str = setting("fp32", "number format, by autocast", choices=("fp32", "bf16", "fp16"))
    seconds: float = setting(2.0, "minimum time of a measurement", above=0)


@dataclass(frozen=True, kw_only=True)
class AutoSeeds:
    """When `seeds: auto` has enough of them; see `study.seed_rounds`."""

    difference: float = setting(1.0, "points between any two levels that would be found", above=0, maximum=100)
    power: float = setting(0.8, "chance of finding it", minimum=0.5, maximum=0.999)
    confidence: float = setting(0.8, "of the upper limit of the spread between seeds", minimum=0.5, maximum=0.999)
    set: str = setting("", "validation set whose accuracy counts; by default the first")
    most: int = setting(10, "seeds of each level", minimum=FIRST_SEEDS, maximum=1000)
    hours: float = setting(0.0, "of training in all, added up over the trainings; 0: any number", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of backbones, and of levels of recipe fields.

    Attributes:
        name: name of the file without its ending.
        overrides: "section.field" of the recipe to its value's text.
        vary: factor to level to the fields that it sets, as in `overrides`; every combination is trained.
        tune: how each backbone gets fields of its own; None: not at all.
        seeds: of each training; with `auto_seeds` all that there may be.
        auto_seeds: when the seeds are enough; None where they are given as numbers.
        evaluate: what the models are measured on: names beside the data, paths, or PROTOCOL=PATH.
        pair_sets: short for pair sets in `evaluate`; the trainings validate on them too.
        ijb: short for IJB-B and IJB-C folders in `evaluate`.
        profile: whether and how the networks are profiled.
        imports: plug-ins (`import:` in the file), imported before anything else.
    """

    name: str = setting("", "")
    recipe: str = setting("", "name or file of a recipe")
    overrides: Mapping[str, str] = field(default_factory=dict)
    vary: Factors = field(default_factory=dict)
    tune: TuneSettings | None = None
    backbones: list[str] = setting([], "names, shell patterns, timm:NAME; or trained models: runs and ONNX files")
    seeds: list[int] = setting([0], "one training for each", minimum=0)
    auto_seeds: AutoSeeds | None = None
    data: str = setting("", "the training data; --data sets it")
    evaluate: list[str] = setting([], "names beside the data, or paths, of pair sets, IJB folders, ...")
    pair_sets: list[str] = setting([], "names beside the data, or paths; by default the recipe's validation sets")
    ijb: list[str] = setting([], "IJB-B or IJB-C folders")
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    imports: list[str] = setting([], "plug-ins: modules, or Python files relative to the study's file")

    def resolved_recipe(
        self, where: Mapping[str, str] | None = None, varied: Mapping[str, str] | None = None
    ) -> Recipe:
        """The recipe that all runs share, with the study's overrides, data and pair sets for validation.

        Args:
            where: names of overrides in an error, if they do not come from the command line.
            varied: fields that levels set.

        Raises:
            ConfigError: the recipe cannot be used.
        """
        where = where or {}
        for name, own in OWN_FIELDS.items():
            if name in self.overrides:
                place = where.get(name, f"--{name}")
                raise ConfigError(f"{place}: a study sets it by --{own}, or by `{own}` in the file")
        validated = {"validation.sets": ",".join(self.pair_sets)} if self.pair_sets else {}
        recipe = load_recipe(self.recipe, validated | dict(self.overrides) | dict(varied or {}), where)
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=self.data))

    def recipes(self, where: Mapping[str, str] | None = None) -> list[tuple[dict[str, str], Recipe]]:
        """The recipe of each combination of levels; without `vary`, the one recipe under no levels.

        Args:
            where: as for `resolved_recipe`; "vary" names the place of the factors.

        Raises:
            ConfigError: a recipe cannot be used, a field is set twice, or two combinations train the same network.
        """
        where = where or {}
        place = where.get("vary", "vary")
        check_factors(self.vary, [*self.overrides], place)
        found: list[tuple[dict[str, str], Recipe]] = []
        known: dict[str, str] = {}
        for levels, fields in combinations(self.vary):
            recipe = self.resolved_recipe({**where, **places(self.vary, levels, place)}, fields)
            words = ", ".join(f"{factor} {level}" for factor, level in levels.items())
            if (other := known.setdefault(_decisive(recipe), words)) != words:
                raise ConfigError(f"{place}: {other} and {words} are the same recipe; remove one of them")
            found.append((levels, recipe))
        return found

    @property
    def builds_others(self) -> bool:
        """Whether a factor or the tuning sets fields of the section `backbone`, so that levels differ as networks."""
        tuned = any(name.startswith("backbone.") for name in (self.tune.space if self.tune else ()))
        return tuned or sets_section(self.vary, "backbone")

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values; `vary`, `tune` and `auto_seeds` only where they are used.

        >>> Study(recipe="demo", backbones=["iresnet18"]).to_json()["seeds"]
        [0]
        """
        optional = ("vary", "tune", "auto_seeds")
        return {key: value for key, value in dataclasses.asdict(self).items() if value or key not in optional}


def _decisive(recipe: Recipe) -> str:
    """Equal for recipes that train the same network."""
    return repr(sorted((key, value) for key, value in recipe.values().items() if not key.startswith(FREE_FIELDS)))


def load_study(
    path: str,
    *,
    overrides: Mapping[str, str] | None = None,
    typed: Mapping[str, str] | None = None,
    **given: Any,
) -> Study:
    """Read a study and apply the options of a command line.

    Args:
        path: a YAML file, or the name of a study in the package, such as "compact_faithful".
        overrides: "section.field" of the recipe to the value's text; they replace the file's own.
        typed: how an error names the place of an override, by "section.field", such as "--lr".
        given: fields of the study that replace the file's; None keeps them. `pair_sets` replaces the file's
            `validation.sets` too.

    Raises:
        ConfigError: not readable, not YAML, or a value of the wrong kind or out of range.
        UnknownNameError: an unknown study, key, recipe, section or field, with the nearest name.

    >>> load_study("demo", seeds="3,4").seeds
    [3, 4]
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
    return _build(file, content | replaced, where, overrides or {}, typed or {})


def _keys() -> list[str]:
    """Keys of the YAML file; "import" is a word of Python, and so has another name as a field."""
    return ["import" if item.name == "imports" else item.name for item in dataclasses.fields(Study)[1:]]


def _build(
    file: Path,
    values: dict[str, Any],
    where: Mapping[str, str],
    overrides: Mapping[str, str],
    typed: Mapping[str, str],
) -> Study:
    checked: dict[str, Any] = {"imports": _plugins(file, values.get("import", []), where["import"])}
    import_plugins(checked["imports"], where["import"], listed_in=file)  # the recipe may name a head of theirs
    values = {**values, "evaluate": _with_protocols(values.get("evaluate", []), where["evaluate"])}
    values, auto_seeds = _with_seeds(values, where)
    hints = get_type_hints(Study)
    checked |= {
        item.name: check_value(values[item.name], hints[item.name], item.metadata, where[item.name])
        for item in dataclasses.fields(Study)
        if item.metadata and item.name in values
    }
    if "profile" in values:
        checked["profile"] = _profile_settings(values["profile"], where["profile"])
    own = field_texts(values.get("overrides", {}), where["overrides"])
    if where["pair_sets"].startswith("--"):  # the file's validation sets belong to its own pair sets
        own.pop("validation.sets", None)
    factors = read_factors(values.get("vary", {}), where["vary"])
    tune = read_tuning(values.get("tune", {}), where["tune"])
    study = Study(
        name=file.stem, overrides=own | dict(overrides), vary=factors, tune=tune, auto_seeds=auto_seeds, **checked
    )
    _check_complete(study, where)
    # Refuse overrides and levels that the recipe does not know.
    of_file = {key: f"{where['overrides']}.{key}" for key in own if key not in overrides}
    study.resolved_recipe(named := {"vary": where["vary"], **of_file, **typed})
    if study.vary or study.tune:
        for _, recipe in study.recipes(named):
            if study.tune is not None:
                read_space(study.tune, recipe, study.vary, where["tune"])
    return study


def _with_seeds(values: dict[str, Any], where: Mapping[str, str]) -> tuple[dict[str, Any], AutoSeeds | None]:
    """The values with all seeds that there may be in place of `auto`, and when they are enough.

    "auto:0.5" on the command line is `auto` with another difference.
    """
    content = values.get("auto_seeds", {})
    if not isinstance(content, dict):
        raise ConfigError(f"{where['auto_seeds']}: must be a mapping, such as auto_seeds: {{difference: 0.5}}")
    settings = fill(AutoSeeds, content, lambda key: f"{where['auto_seeds']}.{key}")
    auto, colon, difference = str(values.get("seeds", "")).partition(":")
    if auto.strip() != AUTO:
        return values, None
    if colon:
        settings = fill(
            AutoSeeds, {**content, "difference": difference.strip()}, lambda _: f"{where['seeds']}: auto:POINTS"
        )
    return {**values, "seeds": [*range(settings.most)]}, settings


def _plugins(file: Path, names: Any, where: str) -> list[str]:
    """Names of modules, and absolute paths of Python files."""
    metadata = next(item.metadata for item in dataclasses.fields(Study) if item.name == "imports")
    checked: list[str] = check_value(names, list[str], metadata, where)
    return [str((file.parent / name).absolute()) if name.endswith(".py") else name for name in checked]


def _with_protocols(items: Any, where: str) -> Any:
    """Replace `{protocol: NAME, path: PATH}` by the text NAME=PATH, the form of the command line."""
    if not isinstance(items, list):
        return items
    for item in items:
        if isinstance(item, dict) and not (item.keys() == {"protocol", "path"} and "" not in item.values()):
            raise ConfigError(f"{where}: an item is a name, a path, or {{protocol: NAME, path: PATH}}")
    return [f"{item['protocol']}={item['path']}" if isinstance(item, dict) else item for item in items]


def _check_complete(study: Study, where: Mapping[str, str]) -> None:
    for key in ("recipe", "backbones", "seeds"):
        if not getattr(study, key):
            raise ConfigError(f"{where[key]}: is missing or empty; a study needs it")
    for key in ("backbones", "seeds", "evaluate", "pair_sets", "ijb"):
        _refuse_twice(getattr(study, key), where[key])


def _refuse_twice(items: Sequence[Any], where: str) -> None:
    if twice := [item for number, item in enumerate(items) if item in items[:number]]:
        raise ConfigError(f"{where}: {twice[0]} is listed twice; remove one")


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
