"""What study.json says of a tuning: the trials of each backbone, and the fields that it chose."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from facebones.reporting.runs import checked_levels, number, text
from facebones.reporting.variants import Levels
from facebones.system.number_format import exact, is_number

FACTOR, DEFAULT, TUNED = "tuning", "default", "tuned"  # a factor, and its levels
DONE, STOPPED, FAILED = "done", "stopped early", "failed"  # states of a trial that has ended


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial of one backbone.

    Attributes:
        number: from 0; trial 0 is the recipe as it is.
        fields: what it sets, "section.field" to text.
        state: "done", "stopped early", "failed", "unfinished" or "to do".
        accuracy: the last one on the pairs of held-out people; None if unknown.
        steps: planned.
        step: reached.
        error: why it failed; None otherwise.
    """

    number: int
    fields: Mapping[str, str]
    state: str
    accuracy: float | None
    steps: int
    step: int
    error: str | None


@dataclass(frozen=True, kw_only=True)
class TunedBackbone:
    """The trials of one backbone at one level of each other factor.

    Attributes:
        backbone: its name.
        levels: of the other factors.
        chosen: the best trial; None before all have ended, and if all have failed.
        trials: in order.
    """

    backbone: str
    levels: Levels
    chosen: Trial | None
    trials: Sequence[Trial]

    def count(self, *states: str) -> int:
        """How many trials are in one of these states."""
        return sum(trial.state in states for trial in self.trials)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The tuning of one study.

    Attributes:
        study: its name.
        people: on whom no trial trains.
        pairs: of these people, which decide.
        own: "section.field" of the space to the recipe's own value as text.
        backbones: the tuned ones.
        content: what study.json says of it.
    """

    study: str
    people: int
    pairs: int
    own: Mapping[str, str]
    backbones: Sequence[TunedBackbone]
    content: Mapping[str, Any]

    @property
    def factors(self) -> list[str]:
        """The other factors of the study."""
        return list(dict.fromkeys(factor for tuned in self.backbones for factor in tuned.levels))

    def fields_of(self, levels: Levels) -> list[str]:
        """The recipe fields that trials chose for a run with these levels."""
        return list(self.own) if levels.get(FACTOR) == TUNED else []


def read_tuning(content: Mapping[str, Any]) -> Tuning:
    """The tuning of a study, checked.

    Args:
        content: of study.json.

    Raises:
        KeyError: or another of `runs.OTHER_SHAPE`, if it has another shape.
    """
    tuning, study, recipe = content["tuning"], content["study"], content["recipe"]
    own = {}
    for name in study["tune"]["space"]:
        section, _, key = text(name).partition(".")
        own[name] = value_text(recipe[section][key])
    return Tuning(
        study=text(study["name"]),
        people=int(number(tuning["people"])),
        pairs=int(number(tuning["pairs"])),
        own=own,
        backbones=[_backbone(row, own) for row in tuning["backbones"]],
        content=tuning,
    )


def _backbone(row: Mapping[str, Any], own: Mapping[str, str]) -> TunedBackbone:
    trials = {trial.number: trial for trial in (_trial(one, own) for one in row["trials"])}
    return TunedBackbone(
        backbone=text(row["backbone"]),
        levels=checked_levels(row),
        chosen=None if row["chosen"] is None else trials[row["chosen"]],
        trials=list(trials.values()),
    )


def _trial(row: Mapping[str, Any], own: Mapping[str, str]) -> Trial:
    fields = {text(name): text(value) for name, value in row["fields"].items()}
    if others := fields.keys() - own.keys():
        raise ValueError(f"{min(others)} is not in the space")
    return Trial(
        number=int(number(row["trial"])),
        fields=fields,
        state=text(row["state"]),
        accuracy=None if row["accuracy"] is None else number(row["accuracy"]),
        steps=int(number(row["steps"])),
        step=int(number(row["step"])),
        error=None if row["error"] is None else " ".join(text(row["error"]).split()),
    )


def value_text(value: Any) -> str:
    """A value of a recipe as a study writes it.

    >>> value_text(64.0), value_text([4, 8]), value_text(True), value_text("cosine")
    ('64', '4,8', 'true', 'cosine')
    """
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return exact(value)
    return value if isinstance(value, str) else json.dumps(value)


def same_value(first: str, second: str) -> bool:
    """Whether two texts mean one value.

    >>> same_value("0.1", "1e-1"), same_value("cosine", "polynomial")
    (True, False)
    """
    if is_number(first) and is_number(second):
        return float(first) == float(second)
    return first.lower() == second.lower()
