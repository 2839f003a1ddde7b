"""Strict reading of YAML that anyone may have written, and dataclass fields that declare the values they accept.

Recipes, studies and the options of heads use it. The YAML is mappings, lists and text only: without aliases and tags, a
short file stays short in memory and builds no objects. A value is text until its field says what it is: the path 0123
stays 0123, and the learning rate 5e-4 is a number.
"""

import dataclasses
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from facebones.errors import ConfigError, UnknownNameError
from facebones.system.progress import say
from facebones.system.regular_files import open_regular

LARGEST_NUMBER = 1e30  # far enough below the largest float32, in which torch computes
LARGEST_INTEGER = 2**63 - 1
MOST_BYTES = 2**20
MOST_VALUES = 2**15  # with keys and lists; parsing takes 50 microseconds for each, and a byte may hold a third of one
SAME = object()  # of a field's `older`: the default
Section = TypeVar("Section")


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    form: tuple[str, str] = ("", ""),
    minimum: float = -math.inf,
    maximum: float | None = None,
    above: float = -math.inf,
    older: Any = SAME,
    renamed: Sequence[str] = (),
    leads: bool = False,
) -> Any:
    """A field of a recipe: its default, its help, and the values it accepts.

    Args:
        default: also decides the range of an integer.
        help: for `facebones train --help`.
        choices: the texts it accepts; empty: any.
        form: a regular expression that a text matches, and how an error describes it.
        minimum: the smallest number accepted.
        maximum: the largest number accepted.
        above: numbers must be larger than this.
        older: what a run did that was made before this field existed; by default the same as `default` says. A run
            whose numbers the default would change is refused when it is resumed.
        renamed: earlier names of the field; they are accepted, with a note.
        leads: whether a group of fields (`ungrouped`) has no effect without this one.
    """
    if maximum is None:
        maximum = LARGEST_INTEGER if isinstance(default, int) else LARGEST_NUMBER
    limits = {"choices": tuple(choices), "form": form, "minimum": minimum, "maximum": maximum, "above": above}
    metadata = {"help": help, **limits, "older": older, "renamed": tuple(renamed), "leads": leads}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


NO_LIMITS: Mapping[str, Any] = {
    **{"choices": (), "form": ("", ""), "minimum": -math.inf, "maximum": LARGEST_NUMBER, "above": -math.inf},
    **{"help": "", "older": SAME, "renamed": (), "leads": False},
}  # of a dataclass field without `setting`


def limits_of(item: "dataclasses.Field[Any]") -> Mapping[str, Any]:
    """What `setting` says of a dataclass field; for a plain field, no limits."""
    return {**NO_LIMITS, **item.metadata}


def fill(kind: type[Section], values: Mapping[str, Any], place: Callable[[str], str], noun: str = "key") -> Section:
    """Build a dataclass of settings from values that may be text.

    Args:
        kind: the dataclass.
        values: field to value; missing fields take their defaults.
        place: how an error names the place of a field.
        noun: what an error calls a field.

    Raises:
        UnknownNameError: a value of no field; the message offers the nearest name.
        ConfigError: a value of another kind, or out of range.
    """
    hints, items = get_type_hints(kind), {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in items:
            raise UnknownNameError(noun, str(key), items, place(str(key)))
    checked = {
        name: check_value(values[name], hints[name], limits_of(item), place(name))
        for name, item in items.items()
        if name in values
    }
    return kind(**checked)


def earlier_names(kind: type[Any]) -> dict[str, str]:
    """Earlier names of fields to their present names."""
    return {old: item.name for item in dataclasses.fields(kind) for old in limits_of(item)["renamed"]}


def with_present_names(kind: type[Any], values: Mapping[str, Any], section: str, *, note: bool) -> dict[str, Any]:
    """The values with earlier names of fields replaced by the present ones.

    Args:
        kind: the dataclass that the values are for.
        values: field to value.
        section: what stands before a field's name, for notes.
        note: whether each earlier name is noted on stderr.

    Raises:
        ConfigError: a field is given under both names.
    """
    present = dict(values)
    for old, name in earlier_names(kind).items():
        if old not in present:
            continue
        if name in present:
            raise ConfigError(f"{section}.{old}: is the earlier name of {section}.{name}; give one of them")
        if note:
            say(f"note: {section}.{old} is called {section}.{name} now")
        present[name] = under_present_name(kind, old, present.pop(old))
    return present


def under_present_name(kind: type[Any], old: str, value: Any) -> Any:
    """The value of a field's present name that says what a value of an earlier name said.

    An earlier switch whose present field is a list, `tensorboard: true` of `trackers`, is `[tensorboard]`.
    """
    if get_type_hints(kind)[earlier_names(kind)[old]] != list[str]:
        return value
    return {"true": [old], "false": []}.get(str(value).lower(), value)


def ungrouped(kind: type[Any], values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The values with groups of fields written out: `clip: {norm: 5, of: all}` is `clip_norm: 5` and `clip_of: all`.

    Args:
        kind: the dataclass that the values are for.
        values: field to value.
        section: what stands before a field's name, for errors.

    Raises:
        ConfigError: a field is given in a group and by itself, a group is no mapping of its fields, or it is empty or
            without the field that leads it.
    """
    leading = {item.name for item in dataclasses.fields(kind) if limits_of(item)["leads"]}
    written = dict[str, Any]()
    for key, value in values.items():
        group = group_of_fields(kind, key)
        if group and not (isinstance(value, Mapping) and value and set(value) <= set(group)):
            raise ConfigError(
                f"{section}.{key}: is a group of fields; give {{{', '.join(f'{own}: ...' for own in group)}}}"
            )
        if lacking := [own for own in group if f"{key}_{own}" in leading and own not in value]:
            raise ConfigError(f"{section}.{key}: has no effect without '{lacking[0]}'; give {lacking[0]} too")
        for name, part in {f"{key}_{own}": part for own, part in value.items()}.items() if group else [(key, value)]:
            if name in written:
                raise ConfigError(f"{section}.{name}: is given twice, by itself and in a group; give it once")
            written[name] = part
    return written


def group_of_fields(kind: type[Any], key: str) -> list[str]:
    """The fields in a group, without the group's name: "norm" and "of" for "clip"; empty for what is no group."""
    names = [item.name for item in dataclasses.fields(kind)]
    group = [name.removeprefix(f"{key}_") for name in names if name.startswith(f"{key}_")]
    return group if len(group) > 1 and key not in names else []


class _StrictLoader(yaml.BaseLoader):
    """Every value is text; aliases, tags, repeated keys, keys that are not text and too many values are refused."""

    _values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            what = "an alias (*name)" if isinstance(event, yaml.AliasEvent) else "a tag (!name)"
            raise yaml.composer.ComposerError(None, None, f"{what} has no place in a recipe", event.start_mark)
        self._values += 1
        if self._values > MOST_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MOST_VALUES} values, which no recipe has", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key_node, _ in node.value:
            problem = "" if isinstance(key_node, yaml.ScalarNode) else "a key that is not text"
            if not problem and key_node.value in known:
                problem = f"key '{key_node.value}' stands twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            known.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file in mappings, lists and text; None where it is empty.

    Raises:
        ConfigError: not readable, too large, or not plain YAML.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path}: larger than {MOST_BYTES} bytes, which no recipe is; name another file")
        text = content.decode("utf-8")
        return yaml.load(text, _StrictLoader)  # noqa: S506 (derived from BaseLoader, which builds text only)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character U+{ord(text[error.position]):04X} is not allowed; remove it"
        raise ConfigError(f"{path}, line {line}: not valid YAML: {problem}") from error
    except yaml.MarkedYAMLError as error:
        place = f"{path}, line {error.problem_mark.line + 1}" if error.problem_mark else str(path)
        raise ConfigError(f"{place}: not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: lists or mappings nested too deep; a recipe is sections of fields") from error


def check_value(value: Any, kind: Any, limits: Mapping[str, Any], where: str) -> Any:
    """Convert `value` to `kind` if that is exact, and check it against the limits of its field.

    Raises:
        ConfigError: another kind of value, or out of range; the message begins with `where`.
    """
    if get_origin(kind) is list:
        items = value.removeprefix("[").removesuffix("]").split(",") if isinstance(value, str) else value
        if not isinstance(items, list):
            items = [items]
        (item_kind,) = get_args(kind)
        cleaned = (item.strip() if isinstance(item, str) else item for item in items)
        return [check_value(item, item_kind, limits, where) for item in cleaned if item != ""]
    converted = _convert(value, kind)
    if converted is None:
        raise ConfigError(f"{where}: {reprlib.repr(value)} is not {_KIND_NAMES[kind]}")
    if limits["choices"] and converted not in limits["choices"]:
        raise UnknownNameError("value", str(converted), limits["choices"], where)
    pattern, spelled = limits["form"]
    if pattern and not re.fullmatch(pattern, converted):
        raise ConfigError(f"{where}: {reprlib.repr(converted)} is not {spelled}")
    if isinstance(converted, int | float) and not (
        limits["minimum"] <= converted <= limits["maximum"] and converted > limits["above"]
    ):
        raise ConfigError(
            f"{where}: {reprlib.repr(converted)} is out of range; it must be {_range_text(converted, limits)}"
        )
    return converted


_KIND_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
ADMITTED_KINDS = (*_KIND_NAMES, *(list[kind] for kind in _KIND_NAMES))  # type: ignore[valid-type]
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _convert(value: Any, kind: type) -> Any:
    """`value` as `kind`, or None if it is not one."""
    if kind is str:
        return value if isinstance(value, str) and "\0" not in value else None  # no path holds a zero byte
    if isinstance(value, str):
        value = _read_value(value)
    if kind is bool:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind is int:
        return int(value) if isinstance(value, int) or value.is_integer() else None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def _read_value(text: str) -> bool | int | float | None:
    """The truth value or exact number that a text spells, or None."""
    for read in (_TRUTH.__getitem__, int, float):
        try:
            return read(text.lower())
        except (KeyError, ValueError):
            pass
    return None


def _range_text(value: float, limits: Mapping[str, Any]) -> str:
    named = {"above": limits["above"], "at least": limits["minimum"], "at most": limits["maximum"]}
    if value <= limits["maximum"] in (LARGEST_NUMBER, LARGEST_INTEGER):
        del named["at most"]
    return " and ".join(f"{name} {bound}" for name, bound in named.items() if bound > -math.inf)


def find_shipped(name: str, kind: str, plural: str, folder: str = ".") -> Path:
    """The path of a YAML file, given its path or the name of one that comes with the package.

    Args:
        name: path or name.
        kind: what it is, for errors: "recipe" or "study".
        plural: likewise.
        folder: of the shipped files, within the recipes.

    Raises:
        ConfigError: no such file.
        UnknownNameError: no shipped file of that name; the message offers the nearest.
    """
    from facebones.system.files import is_file  # here: it needs NumPy, and a loaded recipe does not

    if is_file(name):
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
