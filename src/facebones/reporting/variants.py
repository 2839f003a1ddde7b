"""What is compared: a variant is a backbone and, where recipes differ, its level of each factor.

A variant's runs differ only in their seed. A study names its factors and levels (`vary:`). Runs of one backbone that
still differ get factors that are found here: the fewest fields of their recipes, seeds and places excluded, in which
the recipes differ.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.errors import some
from facebones.system.number_format import is_number

if TYPE_CHECKING:
    from facebones.reporting.results import Run

Levels = Mapping[str, str]  # factor to level
BACKBONE = "backbone"  # the factor that every comparison has
TRUTHS = ("true", "false", "yes", "no", "none", "null", "on", "off")
# Runs of one backbone that differ only in these recipe fields are its seeds.
NOT_COMPARED = {
    "backbone": ("name",),
    "training": ("seed", "checkpoint_every", "background_saves", "choose"),
    "data": ("path", "workers"),
}
NOT_TRAINING = ("validation", "log")  # sections that do not change the weights
DATA = "the training data"
RECIPE = "recipe"  # the factor of runs whose recipes differ in too many fields, or are unknown
MOST_SHOWN = 6  # fields in which recipes differ
MOST_FACTORS = 3
LONGEST_LEVEL = 40  # letters

Kind = Mapping[str, Any]  # what runs should have in common, by name


def level_words(factor: str, level: str) -> str:
    """A level where its factor is not named: a number or a truth value says what it is of.

    >>> level_words("loss", "adaface"), level_words("optimizer.learning_rate", "0.03")
    ('adaface', 'learning_rate 0.03')
    """
    return level if _speaks_for_itself(level) else f"{factor.rpartition('.')[2]} {level}"


def _speaks_for_itself(level: str) -> bool:
    return any(letter.isalpha() for letter in level) and not is_number(level) and level.lower() not in TRUTHS


def variant_name(backbone: str, levels: Levels) -> str:
    """A variant in tables, plots and sentences.

    >>> variant_name("mobilefacenet", {})
    'mobilefacenet'
    >>> variant_name("mobilefacenet", {"loss": "adaface", "optimizer.learning_rate": "0.03"})
    'mobilefacenet (adaface, learning_rate 0.03)'
    """
    words = ", ".join(level_words(factor, level) for factor, level in levels.items())
    return f"{backbone} ({words})" if words else backbone


def several_levels(levels: Iterable[Levels]) -> list[str]:
    """The factors that have more than one level; to have none of a factor's levels is one, too.

    >>> several_levels([{"loss": "arcface", "data": "all"}, {"loss": "adaface", "data": "all"}])
    ['loss']
    """
    levels = list(levels)
    factors = dict.fromkeys(factor for one in levels for factor in one)
    return [factor for factor in factors if len({one.get(factor) for one in levels}) > 1]


# ------------------------------------------------------------------------------------------------ found factors


def with_factors(runs: "Sequence[Run]") -> "list[Run]":
    """The runs, each with its level of every field in which runs of one backbone and equal levels differ.

    If more than MOST_FACTORS fields are needed, or a recipe is unknown, the only level is the first run of the recipe.
    """
    compared = with_equal_fingerprints(runs)
    begun = {(_place(run), kind): run for run in reversed(compared) if (kind := _kind(run)) is not None}
    found, named = _factors(compared)
    if not found and not named:
        return list(runs)
    first_of = {place: run for (place, _), run in begun.items()}
    texts = {name: _level_texts(name, [run for run in compared if run.recipe]) for name in found}
    split = []
    for run, one in zip(runs, compared, strict=True):
        place = _place(run)
        like = one if _kind(one) is not None else first_of.get(place)  # a run that has not begun
        levels = {} if like is None else {name: texts[name][like.name] for name in found if like.name in texts[name]}
        if place in named and like is not None:
            levels[RECIPE] = begun[place, _kind(like) or ""].name
        split.append(replace(run, levels={**run.levels, **levels}))
    return split


def _factors(runs: "Sequence[Run]") -> tuple[list[str], set[Any]]:
    """The fields that are factors, and the backbones and levels whose recipes can only be named."""
    groups: dict[Any, dict[str, Kind | None]] = {}  # recipes by their text; None if one is unknown
    for run in runs:
        if (text := _kind(run)) is not None:
            groups.setdefault(_place(run), {}).setdefault(text, _compared(run) if run.recipe else None)
    found: dict[str, None] = {}
    named: set[Any] = set()
    for place, kinds in groups.items():
        known = [kind for kind in kinds.values() if kind is not None]
        telling = _telling_fields(known) if len(known) == len(kinds) else []
        if len(known) < len(kinds) > 1 or len(telling) > MOST_FACTORS:
            named.add(place)
        else:
            found |= dict.fromkeys(telling)
    return list(found), named


def _place(run: "Run") -> Any:
    return (run.backbone, *sorted(run.levels.items()))


def _telling_fields(kinds: Sequence[Kind]) -> list[str]:
    """Fields, in the recipe's order, that together differ between every two of the recipes; none is superfluous."""
    chosen: list[str] = []
    for name in _differing(kinds):
        if _count(kinds, [*chosen, name]) > _count(kinds, chosen):
            chosen.append(name)
    for name in list(chosen):
        others = [other for other in chosen if other != name]
        if _count(kinds, others) == len(kinds):
            chosen = others
    return chosen


def _count(kinds: Sequence[Kind], names: Sequence[str]) -> int:
    return len({json.dumps([kind.get(name) for name in names], sort_keys=True) for kind in kinds})


def _differing(kinds: Sequence[Kind]) -> list[str]:
    names = dict.fromkeys(name for kind in kinds for name in kind)
    return [name for name in names if any(kind.get(name) != kinds[0].get(name) for kind in kinds)]


def _level_texts(name: str, runs: "Sequence[Run]") -> dict[str, str]:
    """The level of each run that has the field; what is too long to be read is called after the first run with it."""
    kinds = {run.name: kind for run in runs if name in (kind := _compared(run))}
    values = {run: json.dumps(kind[name], sort_keys=True) for run, kind in kinds.items()}
    first = {value: run for run, value in reversed(values.items())}
    words = {
        run.name: _folder_of(run) if name == DATA else _text(kinds[run.name][name]) for run in runs if run.name in kinds
    }
    meant: dict[str, set[str]] = {}
    for run, value in values.items():
        meant.setdefault(words[run], set()).add(value)
    return {
        run: words[run] if words[run] and len(meant[words[run]]) == 1 else f"that of {first[values[run]]}"
        for run in words
    }


def _text(value: Any) -> str:
    """A value in words; empty if it is too long."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = value if isinstance(value, str) else "none" if value is None else json.dumps(value)
    return text if len(text) <= LONGEST_LEVEL and text.isprintable() else ""


def _folder_of(run: "Run") -> str:
    """The name of the folder of the training data."""
    data = run.environment.get("data")
    return _text(Path(str(data.get("path", ""))).name) if isinstance(data, Mapping) else ""


# --------------------------------------------------------------------------------------------------------- notes


def repeated_seeds(runs: "Sequence[Run]") -> list[str]:
    """A note on each run that repeats another one's training: it tells nothing about the spread over seeds."""
    notes: list[str] = []
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        if run.seed is None:
            continue
        if other := seen.get((run.variant, run.seed)):
            notes.append(f"{run.name} and {other} have the same recipe and seed, but count as two seeds")
        seen.setdefault((run.variant, run.seed), run.name)
    return notes


def different_recipes(runs: "Sequence[Run]") -> list[str]:
    """Notes if recipes differ in more than backbones and levels: then more than these is compared."""
    compared = [run for run in with_equal_fingerprints(runs) if run.recipe]
    of_levels: dict[Any, list[Run]] = {}
    for run in compared:
        of_levels.setdefault(tuple(sorted(run.levels.items())), []).append(run)
    names = dict.fromkeys(name for alike in of_levels.values() for name in _untuned_differences(alike))
    notes = []
    if names:
        notes.append(
            f"the runs were trained with different settings: they differ in {some(list(names), MOST_SHOWN)}; a better"
            " result may come from the recipe instead of the backbone"
        )
    return notes + _confounded(compared, names)


def _untuned_differences(runs: "Sequence[Run]") -> list[str]:
    """Fields in which runs differ that no trials chose; where trials chose, runs differ by design."""
    kinds = [_compared(run) for run in runs]
    return [
        name
        for name in _differing(kinds)
        if _differing([{name: kind.get(name)} for run, kind in zip(runs, kinds, strict=True) if name not in run.tuned])
    ]


def _confounded(runs: "Sequence[Run]", noted: Iterable[str]) -> list[str]:
    """A note on fields that change together with those that were found as factors."""
    factors = dict.fromkeys(factor for run in runs for factor in run.levels)
    fields = [factor for factor in factors if all(factor in _compared(run) for run in runs)]
    if not fields or len(fields) < len(factors):  # a study's factors set what they set; a recipe's name hides nothing
        return []
    others = [name for name in _differing([_compared(run) for run in runs]) if name not in {*fields, *noted}]
    if "head.name" in fields:
        others = [name for name in others if not name.startswith("head.")]  # options of their own
    if not others:
        return []
    return [
        f"runs that differ in {some(fields, MOST_SHOWN)} differ in {some(others, MOST_SHOWN)} too; a better result may"
        " come from either"
    ]


# --------------------------------------------------------------------------------------------------------- kinds


def _kind(run: "Run") -> str | None:
    """Equal for runs that are seeds of one variant; None for a run that has not begun."""
    if not run.recipe:
        return None if run.source == "run" else f"{run.source} {run.name}"
    return json.dumps(_compared(run), sort_keys=True)


def with_equal_fingerprints(runs: "Sequence[Run]") -> "list[Run]":
    """The runs, each with the fingerprint of the first run on the same data: versions know different keys."""
    found = [data for run in runs if isinstance(data := run.environment.get("data"), dict)]
    if all(data == found[0] for data in found):
        return list(runs)
    from facebones.data.training_set import CONTENT_KEYS, same_data  # with OpenCV

    known: list[Mapping[str, Any]] = []

    def first_equal(data: Mapping[str, Any]) -> Mapping[str, Any]:
        for other in known:
            if not {*same_data(data, other)} & {*CONTENT_KEYS}:
                return other
        known.append(data)
        return data

    return [
        replace(run, environment={**run.environment, "data": first_equal(data)}) if isinstance(data, dict) else run
        for run in runs
        for data in [run.environment.get("data")]
    ]


def _compared(run: "Run") -> dict[str, Any]:
    """What runs should have in common, by name: fields of the recipe, and the fingerprint of the training data."""
    fields = {
        f"{section}.{key}": value
        for section, values in run.recipe.items()
        if section not in NOT_TRAINING
        for key, value in fields_of(values).items()
        if key not in NOT_COMPARED.get(section, ())
    }
    data = run.environment.get("data")
    fingerprint = {key: value for key, value in data.items() if key != "path"} if isinstance(data, dict) else None
    return fields | {DATA: fingerprint}


def fields_of(section: Any) -> Mapping[str, Any]:
    """The fields of a recipe's section; a top-level list such as `imports` has none."""
    return section if isinstance(section, Mapping) else {}
