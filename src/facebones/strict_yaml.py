"""YAML of strangers, read strictly, and fields that say what values they admit; for recipes and studies.

Its YAML is mappings, lists and text, and no more: without aliases and tags, a short file stays short in memory and
builds nothing. A value is text until its field says what it is.
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from facebones.errors import ConfigError, UnknownNameError

LARGEST_NUMBER = 1e30  # some way below the end of float32, in which torch computes
LARGEST_INTEGER = 2**63 - 1
MOST_BYTES = 2**20


def setting(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    form: tuple[str, str] = ("", ""),
    minimum: float = -math.inf,
    maximum: float | None = None,
    above: float = -math.inf,
) -> Any:
    """A field of a recipe: its default, help, and what values it admits.

    `form` is what a text looks like: a regular expression, and how an error says it.
    """
    if maximum is None:
        maximum = LARGEST_INTEGER if isinstance(default, int) else LARGEST_NUMBER
    limits = {"choices": tuple(choices), "form": form, "minimum": minimum, "maximum": maximum, "above": above}
    metadata = {"help": help, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class _StrictLoader(yaml.BaseLoader):
    """Every value is text; what a recipe has no use for is refused, and a key that stands twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            what = "an alias (*name)" if isinstance(event, yaml.AliasEvent) else "a tag (!name)"
            raise yaml.composer.ComposerError(None, None, f"{what} has no place in a recipe", event.start_mark)
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
        with path.open("rb") as file:
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
    """Convert `value` to `kind` where that is exact, and hold it against the field's limits.

    Raises:
        ConfigError: of another kind, or out of range; the message begins with `where`.
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
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _convert(value: Any, kind: type) -> Any:
    """`value` as `kind`, or None where it is not one."""
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
    """What a text says: a truth value, a number exactly, or None for neither."""
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
