"""Tuning (`tune:`): each backbone gets the same number of trials of equal length to find its own recipe fields.

Trials train without a share of the people, and pairs of these people decide; no set that is reported takes part.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from facebones.errors import ConfigError, UnknownNameError
from facebones.recipe import Recipe, flat_fields, recipe_from_dict
from facebones.reporting.tuning import FACTOR
from facebones.strict_yaml import fill, setting
from facebones.study.vary import FREE_FIELDS, OWN_FIELDS, Factors, Fields
from facebones.system.number_format import exact

# Fields that trials may not choose, with the reason.
NOT_TUNED = {
    "head.name": "is compared by `vary`",
    "training.epochs": "is the budget, which is the same for all trials",
    "distillation.embeddings": "is compared by `vary`",
    "distillation.alone": "is compared by `vary`",
    "training.stop_below": "is set by the tuning",
    "data.held_out": "is set by the tuning",
    **dict.fromkeys(("backbone.weights", "training.choose"), "is not a matter of tuning"),
}
RANGE = "a list of values, or a range {low: 0.01, high: 0.3, log: true}"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """The values that trials choose from for one field: listed ones, or a range of numbers.

    Attributes:
        default: the recipe's own value.
        choices: the texts of listed values, with what they mean.
        low: the smallest number of a range.
        high: the largest.
        log: whether orders of magnitude count in a range, instead of differences.
        whole: whether only whole numbers are in the range.
    """

    default: Any
    choices: Mapping[str, Any] = field(default_factory=dict)
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def count(self) -> float:
        """How many values there are; infinity for a range that is not of whole numbers."""
        return len(self.choices) or (self.high - self.low + 1 if self.whole else math.inf)

    def texts(self) -> Sequence[str]:
        """The texts of all values; none for a range that is not of whole numbers."""
        return [*self.choices] or ([*map(str, range(int(self.low), int(self.high) + 1))] if self.whole else [])

    @property
    def ends(self) -> Sequence[str]:
        """The texts of listed values, or of the ends of the range."""
        return [*self.choices] or [exact(self.low), exact(self.high)]

    def text_of(self, value: Any) -> str | None:
        """The text by which a trial sets a value; None if the value is not among them."""
        if self.choices:
            return next((text for text, meant in self.choices.items() if meant == value), None)
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        return exact(value) if inside else None


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Settings of a tuning.

    Attributes:
        space: "section.field" to the text of its values, as the file has them.
    """

    trials: int = setting(12, "trials of each backbone; the first is the recipe as it is", minimum=2, maximum=1000)
    held_out: float = setting(0.1, "share of the people that trials do not train on", above=0, maximum=0.9)
    pairs: int = setting(6000, "pairs of these people, or as many as they give", minimum=20, maximum=1_000_000)
    validations: int = setting(4, "validations of a trial, at which a bad one is stopped", minimum=1, maximum=1000)
    stop_early: bool = setting(True, "stop a trial that is worse than half of the finished ones were")
    seed: int = setting(0, "seed of what is tried; trainings have the study's first seed", minimum=0)
    space: Mapping[str, Any] = field(default_factory=dict)


def read_tuning(content: Any, where: str) -> TuneSettings | None:
    """The settings of a study's `tune:`; None if there are none, or for `false`.

    Raises:
        ConfigError: another shape, or a value out of range.
        UnknownNameError: an unknown key.

    >>> read_tuning({"trials": "5", "space": {"optimizer.learning_rate": ["0.1", "0.03"]}}, "tune").trials
    5
    """
    if content in ({}, "", "false"):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("space"), dict) or not content["space"]:
        raise ConfigError(f"{where}: needs a space, such as space: {{optimizer.learning_rate: [0.01, 0.03, 0.1]}}")
    plain = {key: value for key, value in content.items() if key != "space"}
    return replace(fill(TuneSettings, plain, lambda key: f"{where}.{key}"), space=content["space"])


def read_space(settings: TuneSettings, recipe: Recipe, factors: Factors, where: str) -> dict[str, Dimension]:
    """The values that trials choose from, checked against the recipe that they start from.

    Args:
        settings: of the tuning.
        recipe: what trial 0 trains by.
        factors: of the study.
        where: how an error names the place of `tune`.

    Raises:
        ConfigError: a field that trials may not choose, a value that it cannot have, the recipe's own value is not
            among the values, or there are fewer combinations than trials.
        UnknownNameError: an unknown field.
    """
    own, space = flat_fields(recipe.to_dict()), dict[str, Dimension]()
    for name in ("data.held_out", "training.stop_below"):
        if own[name]:
            raise ConfigError(f"{name} {own[name]}: is set by the tuning ({where}); leave it out")
    if FACTOR in factors:
        raise ConfigError(f"{where}: its factor is called {FACTOR}, and so is one of vary; rename that")
    for name, values in settings.space.items():
        place = f"{where}.space.{name}"
        if name not in own:
            raise UnknownNameError("field", name, own, f"{where}.space")
        _refuse_field(name, factors, place)
        if name.startswith("distillation.") and not recipe.distillation.embeddings:
            raise ConfigError(f"{place}: has no effect without distillation.embeddings; give these, or take it out")
        if name.startswith("distillation."):
            _refuse_idle(name.partition(".")[2], settings.space.get("distillation.loss"), recipe, place)

        def meaning(text: Any, name: str = name, place: str = place) -> Any:
            if not isinstance(text, str):
                raise ConfigError(f"{place}: must be {RANGE}")
            return flat_fields(with_fields(recipe, {name: text}, {name: place}).to_dict())[name]

        space[name] = dimension = _dimension(values, own[name], meaning, place)
        if dimension.text_of(own[name]) is None:
            raise ConfigError(f"{place}: must include the recipe's own value, {own[name]}, which is trial 0")
    listed = math.prod(one.count for one in space.values())
    if listed < settings.trials:
        raise ConfigError(f"{where}.trials: the space has {listed:g} combinations; give trials: {listed:g} or fewer")
    return space


def _refuse_field(name: str, factors: Factors, place: str) -> None:
    if name in OWN_FIELDS:
        raise ConfigError(f"{place}: a study sets it by `{OWN_FIELDS[name]}`; take it out of the space")
    if name in NOT_TUNED or name.startswith(FREE_FIELDS):
        reason = NOT_TUNED.get(name, "does not change the trained network")
        raise ConfigError(f"{place}: {reason}; take it out of the space")
    if any(name in fields for levels in factors.values() for fields in levels.values()):
        raise ConfigError(f"{place}: is in vary too; remove one of them")


def _refuse_idle(key: str, losses: Any, recipe: Recipe, place: str) -> None:
    """Raise ConfigError for a field of the section `distillation` that a loss of the space has not."""
    config = recipe.distillation
    for loss in losses if isinstance(losses, list) else [config.loss]:
        if key in replace(config, loss=str(loss)).without_effect():
            raise ConfigError(f"{place}: has no effect with distillation.loss {loss!s:.40}; take one of the two out")


def _dimension(values: Any, own: Any, meaning: Callable[[Any], Any], place: str) -> Dimension:
    if isinstance(values, list) and len(values) == 1:
        raise ConfigError(f"{place}: has one value only; give two or more, or take it out of the space")
    if isinstance(values, list) and values:
        texts = [",".join(map(str, value)) if isinstance(value, list) else value for value in values]
        choices = {text: meaning(text) for text in texts}
        if len({*map(repr, choices.values())}) < len(texts):
            raise ConfigError(f"{place}: a value is listed twice; remove one")
        return Dimension(default=own, choices=choices)
    number = isinstance(own, int | float) and not isinstance(own, bool)
    if not number or not isinstance(values, dict) or not {"low", "high"} <= values.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{place}: must be {RANGE if number else 'a list of values'}")
    low, high, log = meaning(values["low"]), meaning(values["high"]), values.get("log", "false")
    if not low < high or log not in ("true", "false") or (log == "true" and low <= 0):
        raise ConfigError(f"{place}: low must be below high, log true or false, and low above 0 if log is true")
    return Dimension(default=own, low=low, high=high, log=log == "true", whole=isinstance(own, int))


def with_fields(recipe: Recipe, fields: Fields, where: Mapping[str, str] | None = None) -> Recipe:
    """A recipe with some of its fields set from text.

    Raises:
        ConfigError: a value that a field cannot have.

    >>> with_fields(Recipe(), {"optimizer.learning_rate": "0.03"}).optimizer.learning_rate
    0.03
    """
    sections = recipe.to_dict()
    for name, text in fields.items():
        section, _, key = name.partition(".")
        sections[section] = {**sections[section], key: text}
    return recipe_from_dict(sections, where)
