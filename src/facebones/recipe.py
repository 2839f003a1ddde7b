"""Recipes: what decides a training run, and how it is read from YAML, the command line and runs of any version.

Reading is strict: an unknown key or a value of the wrong kind or out of range is refused with its place
(`strict_yaml`). The fields are in `recipe_sections`. The section `head` holds a head's name and that head's own options
(`heads.registry`). The top-level key `import` lists plug-ins; loading a recipe imports them, which runs their code, and
says so.
"""

import contextlib
import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from facebones.errors import ConfigError, FaceBonesError, UnknownNameError
from facebones.heads.registry import DEFAULT_HEAD, CombinedOptions, list_heads, lookup_head
from facebones.plugins import import_plugins
from facebones.recipe_sections import (
    SECTIONS,
    BackboneConfig,
    DataConfig,
    DistillationConfig,
    HeadConfig,
    LogConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    ValidationConfig,
)
from facebones.strict_yaml import (
    NO_LIMITS,
    SAME,
    check_value,
    earlier_names,
    fill,
    find_shipped,
    group_of_fields,
    limits_of,
    read_yaml,
    under_present_name,
    ungrouped,
    with_present_names,
)
from facebones.system.progress import say

IMPORT = "import"  # top-level key of a recipe; the field is `imports`


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
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


# ------------------------------------------------------------------------------------------------------- reading


def load_recipe(
    path: str | Path, overrides: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None
) -> Recipe:
    """Read a recipe, import its plug-ins and apply overrides.

    Args:
        path: a YAML file, or the name of a recipe that comes with the package, such as "casia_webface".
        overrides: "section.field" to the text of the value, as on the command line; a list has commas between its
            items. What they set is no longer open to `training.choose`. A `head.name` that differs from the file's
            drops the file's options of the head.
        where: how an error names the place of an override that does not come from the command line.

    Raises:
        ConfigError: not readable, not YAML, or a value of the wrong kind or out of range.
        UnknownNameError: an unknown recipe, section or field, with the nearest name.

    >>> load_recipe("casia_webface", {"training.epochs": "3"}).training.epochs
    3
    """
    path, overrides = find_shipped(str(path), "recipe", "recipes"), overrides or {}
    sections, imports = _read_file(path, note=True)
    import_plugins(imports, f"{path}: import", listed_in=path)
    places = _places(path, sections)
    given = _given(sections, overrides, where or {}, places)
    recipe = recipe_from_dict({IMPORT: imports, **_override(sections, given)}, places)
    still_open = [name for name in recipe.training.choose if f"training.{name}" not in overrides]
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, choose=still_open))


def load_config(path: Path, *, run_imports: bool = False) -> Recipe:
    """Read the config.yaml of a run, which an older version may have written.

    Args:
        path: the file.
        run_imports: import the plug-ins of the run. Without them, options of a head that is not registered are kept
            as text: nothing of a run folder that is only read is executed.

    Raises:
        ConfigError, UnknownNameError: as for `load_recipe`.
    """
    sections, imports = _read_file(path, note=False)
    if run_imports:
        import_plugins(imports, f"{path}: import", listed_in=path)
    return recipe_from_dict({IMPORT: imports, **sections}, _places(path, sections), lenient=not run_imports)


def head_config(name: str, **options: Any) -> HeadConfig:
    """A head with some of its options set; the others have their defaults.

    >>> head_config("arcface", margin=0.4).options.margin
    0.4
    """
    return _read_head({"name": name, **options}, lambda key: f"head.{key}", lenient=False)


def recipe_from_dict(
    sections: Mapping[str, Any], where: Mapping[str, str] | None = None, *, lenient: bool = False
) -> Recipe:
    """Check sections of plain values and build a recipe.

    Args:
        sections: section to field to value, of the field's kind or as text.
        where: "section.field" to how an error names its place.
        lenient: keep the options of an unknown head unchecked.

    >>> recipe_from_dict({"training": {"epochs": "3"}}).training.epochs
    3
    """
    where = where or {}
    sections = dict(sections)
    imports = tuple(check_value(sections.pop(IMPORT, []), list[str], NO_LIMITS, where.get(IMPORT, IMPORT)))
    built: dict[str, Any] = {name: kind() for name, kind in SECTIONS.items()}
    for section, values in _present_names(sections, note=False).items():
        if section not in SECTIONS:
            raise UnknownNameError("section", section, SECTIONS, where.get(section, "recipe"))

        def place(key: str, section: str = section) -> str:
            return where.get(f"{section}.{key}", f"{section}.{key}")

        if section == "head":
            built[section] = _read_head(values, place, lenient=lenient)
        else:
            built[section] = fill(SECTIONS[section], values, place)
    return Recipe(imports=imports, **built)


def older_values(now: Recipe, found: Any) -> dict[str, Any]:
    """What a saved `to_dict` says of each field of `Recipe.values`; fields that it lacks have their older meaning.

    Args:
        now: the recipe to compare with.
        found: of a checkpoint, which any version may have written, or anyone may have forged.

    Returns:
        "section.field" to value, for all fields of `now`; None for what cannot be read.
    """
    sections = {name: part for name, part in found.items() if isinstance(part, dict)} if _is_named(found) else {}
    sections = {name: part for name, part in _present_names(sections, note=False).items() if name in SECTIONS}
    with contextlib.suppress(FaceBonesError):  # what is no head is compared as it is
        head = sections.get("head", {})
        options = lookup_head(str(head.get("name", DEFAULT_HEAD))).options
        older = {item.name: limits_of(item)["older"] for item in fields(options)}
        then_given = {key: value for key, value in older.items() if value is not SAME} | head
        sections["head"] = _read_head(then_given, str, lenient=True).combined().to_dict()
    then = flat_fields(sections)
    return {name: then.get(name, older_meaning(name)) for name in now.values()}


def older_meaning(name: str) -> Any:
    """What a run did that was made before a field existed; None where only the plug-in of its head knows.

    >>> older_meaning("head.name"), older_meaning("data.max_unreadable")
    ('combined', 0)
    """
    section, _, key = name.partition(".")
    kind = CombinedOptions if section == "head" else SECTIONS[section]
    if name == "head.name":
        return DEFAULT_HEAD
    older = {item.name: limits_of(item)["older"] for item in fields(kind)}.get(key)
    return getattr(kind(), key) if older is SAME else older


def lacking_fields(path: Path) -> dict[str, Any]:
    """Fields that a config.yaml of an older version lacks, with what runs did before the fields existed.

    Without options of heads: a head's name and all its options are written together.
    """
    sections, _ = _read_file(path, note=False)
    return {
        f"{section}.{item.name}": older_meaning(f"{section}.{item.name}")
        for section, kind in SECTIONS.items()
        if section != "head"
        for item in fields(kind)
        if item.name not in sections.get(section, {})
    }


def is_older_meaning(name: str, value: Any) -> bool:
    """Whether a value is what runs did before the field existed, and not the field's default.

    >>> is_older_meaning("training.epochs", 20)
    False
    """
    section, _, key = name.partition(".")
    return section != "head" and value == older_meaning(name) != getattr(SECTIONS[section](), key)


def field_names() -> list[str]:
    """All fields as "section.field"; of `head`, the options of every registered head."""
    return [name for name, _ in field_help()]


def field_help() -> list[tuple[str, str]]:
    """All fields as ("section.field", help with choices and default), for --help."""
    rows = []
    for section, kind in SECTIONS.items():
        if section == "head":
            rows += _head_help()
            continue
        rows += [(f"{section}.{item.name}", _help_of(item, getattr(kind(), item.name))) for item in fields(kind)]
    return rows


def _head_help() -> list[tuple[str, str]]:
    """Options that several heads share have one row, which says where the heads differ."""
    heads = list_heads()
    texts: dict[str, dict[str, list[str]]] = {}
    for head in heads:
        options = lookup_head(head).options
        for item in fields(options):
            text = _help_of(item, getattr(options(), item.name))
            texts.setdefault(item.name, {}).setdefault(text, []).append(head)
    rows = [("head.name", f"the head ({', '.join(heads)}) [{DEFAULT_HEAD}]")]
    for name, versions in texts.items():
        parts = [text if owners == heads else f"{', '.join(owners)}: {text}" for text, owners in versions.items()]
        rows.append((f"head.{name}", "; ".join(parts)))
    return rows


def _help_of(item: "dataclasses.Field[Any]", value: Any) -> str:
    limits = limits_of(item)
    choices = f" ({', '.join(limits['choices'])})" if limits["choices"] else ""
    several = "; commas between several" if isinstance(value, list) else ""
    shown = "" if value in ("", []) else f" [{value}]"
    return f"{limits['help']}{several}{choices}{shown}"


def _read_head(values: Mapping[str, Any], place: Callable[[str], str], *, lenient: bool) -> HeadConfig:
    options = dict(values)
    name = check_value(options.pop("name", DEFAULT_HEAD), str, NO_LIMITS, place("name"))
    try:
        kind = lookup_head(name, place("name")).options
    except UnknownNameError:
        if lenient:
            return HeadConfig(name=name, options=options)
        raise
    known = {item.name for item in fields(kind)}
    for key in options:
        others = [head for head in list_heads() if key in {item.name for item in fields(lookup_head(head).options)}]
        if key not in known and others:
            raise ConfigError(f"{place(key)}: head {name} has no option '{key}'; `head.name: {others[0]}` has it")
    return HeadConfig(name=name, options=fill(kind, options, place, f"option of head {name}"))


def _places(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """How an error names the place of each field of a file."""
    return {f"{name}.{key}": f"{path}: {name}.{key}" for name, values in sections.items() for key in values}


def _given(
    sections: Mapping[str, Any], overrides: Mapping[str, str], where: Mapping[str, str], places: dict[str, str]
) -> dict[str, dict[str, str]]:
    """Overrides as sections, under the present names of fields; adds their places to `places`."""
    head = str(overrides.get("head.name", sections.get("head", {}).get("name", DEFAULT_HEAD)))
    given: dict[str, dict[str, str]] = {}
    for key, text in overrides.items():
        section, _, name = key.partition(".")
        if section not in SECTIONS or not name:
            if key in where:
                raise UnknownNameError("field", key, field_names(), where[key])
            raise UnknownNameError("option", f"--{key}", [f"--{name}" for name in field_names()])
        place = where.get(key, f"--{key}")
        kind = SECTIONS[section]
        if section == "head":
            kind = lookup_head(head, where.get("head.name", "--head.name")).options
        name = name.replace(".", "_")  # training.clip.norm: as a mapping in YAML
        if group := group_of_fields(kind, name):
            several = " ".join(f"{key if key in where else place}.{own} ..." for own in group)
            raise ConfigError(f"{place}: is a group of fields; give {several}")
        present = earlier_names(kind).get(name, name)
        if present != name:
            say(f"note: {place}: is called {section}.{present} now")
        if present in given.setdefault(section, {}):
            raise ConfigError(f"{place}: {section}.{present} is given under another name too; give one of them")
        places[f"{section}.{present}"] = place
        given[section][present] = text if present == name else under_present_name(kind, name, text)
    return given


def _override(sections: dict[str, dict[str, Any]], given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections of a file, replaced by those of the command line."""
    merged = {name: dict(sections.get(name, {})) | dict(given.get(name, {})) for name in {**sections, **given}}
    of_file = sections.get("head", {})
    before, now = of_file.get("name", DEFAULT_HEAD), merged.get("head", {}).get("name", DEFAULT_HEAD)
    if before != now:
        merged["head"] = dict(given["head"])
        dropped = ", ".join(f"{key} {value}" for key, value in of_file.items() if key != "name")
        _note_defaults(now, f", without {before}'s {dropped}" if dropped else "")
    return merged


@cache  # a study loads its recipe again and again
def _note_defaults(head: str, without: str) -> None:
    say(f"note: head {head} starts from its own defaults{without}")


def _present_names(sections: Mapping[str, Any], *, note: bool) -> dict[str, Any]:
    """The sections with earlier names of fields replaced; what is not a known section is left to later checks."""
    present = dict(sections)
    for name, values in sections.items():
        kind = SECTIONS.get(name)
        if name == "head":
            known = isinstance(values, Mapping) and values.get("name", DEFAULT_HEAD) in list_heads()
            kind = lookup_head(values.get("name", DEFAULT_HEAD)).options if known else None
        if kind is not None and isinstance(values, Mapping):
            present[name] = with_present_names(kind, ungrouped(kind, values, name), name, note=note)
    return present


def _read_file(path: Path, *, note: bool) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The sections of a YAML file, and its plug-ins; a relative path of one is relative to the file."""
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections ({', '.join(SECTIONS)})")
    imports = check_value(content.pop(IMPORT, []), list[str], NO_LIMITS, f"{path}: {IMPORT}")
    for section, values in content.items():
        if section not in SECTIONS:
            raise UnknownNameError("section", section, [*SECTIONS, IMPORT], str(path))
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: section '{section}' is a mapping of fields, not {reprlib.repr(values)}")
    imports = [str((path.parent / name).resolve()) if name.endswith(".py") else name for name in imports]
    try:
        return _present_names(content, note=note), imports
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _is_named(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(name, str) for name in found)
