"""Which runs are seeds of one another, what their recipes have alike, and what their networks cost."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from facebones.reporting.results import Cost, Run

# What makes two runs of one backbone seeds of one another: all of the recipe but these.
NOT_COMPARED = {"backbone": ("name",), "training": ("seed", "checkpoint_every"), "data": ("path", "workers")}
DATA = "the training data"
MOST_SHOWN = 6  # fields in which recipes differ
NOT_SHARED = {"backbone": ("name",), "training": ("seed",)}


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, where those of one backbone by different recipes, or on different data, count as different backbones.

    Such a backbone is called after the first of its runs: "mobilefacenet (long)".
    """
    kinds: dict[str, dict[str, str]] = {}
    for run in runs:
        if (kind := _kind(run)) is not None:
            kinds.setdefault(run.backbone, {}).setdefault(kind, run.name)
    return [replace(run, backbone=_label(run, kinds.get(run.backbone, {}))) for run in runs]


def repeated_seeds(runs: Sequence[Run]) -> list[str]:
    """A note on each run that is the same training as another: it says nothing of the spread over seeds."""
    notes: list[str] = []
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        if run.seed is None:
            continue
        if other := seen.get((run.backbone, run.seed)):
            notes.append(f"{run.name} and {other} are of the same recipe and seed, and count as two seeds")
        seen.setdefault((run.backbone, run.seed), run.name)
    return notes


def different_recipes(runs: Sequence[Run]) -> list[str]:
    """A note where the runs were not trained alike, so that the backbones are not all that was compared."""
    found = [_compared(run) for run in runs if run.recipe]
    names = list(dict.fromkeys(name for fields in found for name in fields))
    names = [name for name in names if any(fields.get(name) != found[0].get(name) for fields in found)]
    if not names:
        return []
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return [
        f"the runs were not trained alike: they differ in {', '.join(names[:MOST_SHOWN])}{more}; what is better may be"
        " the recipe and not the backbone"
    ]


def shared_recipe(runs: Sequence[Run]) -> dict[str, Any]:
    """Section to field to value, of what all runs that have a recipe have alike; without backbone and seed."""
    recipes = [run.recipe for run in runs if run.recipe]
    shared = {}
    for section, values in recipes[0].items() if recipes else ():
        kept = {
            key: value
            for key, value in values.items()
            if key not in NOT_SHARED.get(section, ())
            and all(recipe.get(section, {}).get(key) == value for recipe in recipes)
        }
        if kept:
            shared[section] = kept
    return shared


def counted(run: Run) -> Cost:
    """Parameters and MACs of a run's network; nothing of what cannot be built here."""
    from facebones.profiling.cost import network_costs  # torch

    source = run.recipe.get("backbone") or {"name": run.result.get("backbone"), **run.result}
    name, size = source.get("name"), source.get("embedding_size")
    if not isinstance(name, str) or not isinstance(size, int) or size < 1:
        return Cost()
    row = network_costs(name, size)
    return Cost(parameters=row["parameters"], macs=row["macs"])


def _kind(run: Run) -> str | None:
    """Equal for runs that are seeds of one another; None of a run of which nothing is there yet."""
    if not run.recipe:
        return None if run.source == "run" else f"{run.source} {run.name}"
    return json.dumps(_compared(run), sort_keys=True)


def _compared(run: Run) -> dict[str, Any]:
    """What should be alike, by name: fields of the recipe, and what the data are told by."""
    fields = {
        f"{section}.{key}": value
        for section, values in run.recipe.items()
        if section not in ("validation", "log")
        for key, value in values.items()
        if key not in NOT_COMPARED.get(section, ())
    }
    data = run.environment.get("data")
    fingerprint = {key: value for key, value in data.items() if key != "path"} if isinstance(data, dict) else None
    return fields | {DATA: fingerprint}


def _label(run: Run, kinds: dict[str, str]) -> str:
    if len(kinds) < 2:
        return run.backbone
    kind = _kind(run)
    first = next(iter(kinds.values())) if kind is None else kinds[kind]
    return f"{run.backbone} ({first})"
