"""The factors of a study (`vary:`): named levels of recipe fields, every combination of which is trained."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from facebones.errors import ConfigError

# Fields of the recipe that a study sets with a key of its own.
OWN_FIELDS = {"backbone.name": "backbones", "training.seed": "seeds", "data.path": "data"}
# Fields that may differ between a run and its plan: places, the amount of logging, and measurements on the way.
FREE_FIELDS = (
    "data.path",
    "data.workers",
    "training.checkpoint_every",
    "training.background_saves",
    "training.choose",
    "validation.",
    "log.",
)
COLUMNS = ("backbone", "seed", "variant")  # of tables; no name for a factor
LONGEST_NAME = 60  # letters of a level, which is a part of folder names
MOST_COMBINATIONS = 1000
SHAPE = "must be named levels, such as {arcface: {head.name: arcface}, cosface: {head.name: cosface}}"

Fields = Mapping[str, str]  # "section.field" to the text of its value
Factors = Mapping[str, Mapping[str, Fields]]  # factor to level to fields


def read_factors(content: Any, where: str) -> Factors:
    """Factors as the YAML has them; a list of values is short for levels of the field that the factor is named after.

    Raises:
        ConfigError: another shape, a name that cannot be used, or a level twice.

    >>> read_factors({"optimizer.learning_rate": ["0.01", "0.03"]}, "vary")["optimizer.learning_rate"]["0.03"]
    {'optimizer.learning_rate': '0.03'}
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: must be a mapping of factors, such as head.name: [arcface, cosface]")
    return {name: _read_levels(name, levels, f"{where}.{name}") for name, levels in content.items()}


def _read_levels(factor: str, levels: Any, where: str) -> Mapping[str, Fields]:
    if not _is_name(factor) or factor in COLUMNS:
        known = ", ".join(COLUMNS)
        raise ConfigError(f"{where}: no name for a factor; use 1 to {LONGEST_NAME} printable letters, not {known}")
    if isinstance(levels, list):
        values = [field_texts({factor: value}, where)[factor] for value in levels]
        if twice := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ConfigError(f"{where}: {twice[0]} is listed twice; remove one")
        levels = {value: {factor: value} for value in values}
    if not isinstance(levels, dict) or not levels:
        raise ConfigError(f"{where}: {SHAPE}, or a list of values of the field {factor}")
    for level in levels:
        if not _is_name(level):
            raise ConfigError(
                f"{where}: {level!r:.80} is no name for a level; use 1 to {LONGEST_NAME} printable letters"
            )
    return {level: field_texts(fields, f"{where}.{level}") for level, fields in levels.items()}


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and 0 < len(name.strip()) <= len(name) <= LONGEST_NAME


def field_texts(values: Any, where: str) -> dict[str, str]:
    """Fields of the recipe, each as its text on the command line; a list is joined by commas."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must be a mapping of section.field to value, such as training.epochs: 2")
    texts = {}
    for key, value in values.items():
        plain = ",".join(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
        if not isinstance(plain, str):
            raise ConfigError(f"{where}.{key}: must be one value or a list, under a key of the form section.field")
        texts[key] = plain
    return texts


def check_factors(factors: Factors, overrides: Sequence[str], where: str) -> None:
    """Refuse fields that no factor can set, or that are set twice.

    Args:
        factors: as `read_factors` returns them.
        overrides: fields that the study sets for all trainings.
        where: how an error names the place of the factors.

    Raises:
        ConfigError: such a field, or too many combinations.
    """
    owners: dict[str, str] = {}
    for factor, field in _fields(factors):
        place = f"{where}.{factor}: {field}"
        if field in OWN_FIELDS:
            raise ConfigError(f"{place}: a study sets it by `{OWN_FIELDS[field]}`; take it out of vary")
        if field.startswith(FREE_FIELDS):
            raise ConfigError(f"{place}: does not change the trained network; set it in overrides")
        if field in overrides:
            raise ConfigError(f"{place}: is in the study's overrides too; remove one of them")
        if owners.setdefault(field, factor) != factor:
            raise ConfigError(f"{place}: is in the factor {owners[field]} too; one factor sets a field")
    if (count := math.prod(map(len, factors.values()))) > MOST_COMBINATIONS:
        raise ConfigError(f"{where}: {count} combinations of levels; at most {MOST_COMBINATIONS} can be planned")


def sets_section(factors: Factors, section: str) -> bool:
    """Whether a factor sets a field of a section of the recipe.

    >>> sets_section({"size": {"small": {"backbone.embedding_size": "128"}}}, "backbone")
    True
    """
    return any(field.startswith(f"{section}.") for _, field in _fields(factors))


def _fields(factors: Factors) -> Iterator[tuple[str, str]]:
    for factor, levels in factors.items():
        for fields in levels.values():
            yield from ((factor, field) for field in fields)


def combinations(factors: Factors) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Every combination of levels: factor to level, and the fields that they set; one empty one without factors.

    >>> [levels for levels, _ in combinations({"a": {"x": {}, "y": {}}, "b": {"z": {}}})]
    [{'a': 'x', 'b': 'z'}, {'a': 'y', 'b': 'z'}]
    """
    for chosen in itertools.product(*(levels for levels in factors.values())):
        levels = dict(zip(factors, chosen, strict=True))
        fields = [factors[factor][level] for factor, level in levels.items()]
        yield levels, {name: text for part in fields for name, text in part.items()}


def places(factors: Factors, levels: Mapping[str, str], where: str) -> dict[str, str]:
    """How an error names the place of each field that a combination of levels sets."""
    return {
        field: f"{where}.{factor}" if field == factor else f"{where}.{factor}.{level}.{field}"
        for factor, level in levels.items()
        for field in factors[factor][level]
    }
