"""Run folders as `Run` records, checked on reading; and which runs are seeds of one backbone."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from facebones.errors import DataError, FaceBonesError, some
from facebones.recipe import load_config
from facebones.reporting.results import Cost, Run
from facebones.run_folder import RunFolder, read_metrics

OTHER_SHAPE = (KeyError, TypeError, AttributeError, ValueError, IndexError)  # raised by content of another shape
NUMBERS = ("step", "epoch", "loss", "learning_rate", "accuracy", "accuracy_std", "best_accuracy", "auc", "eer", "xnorm")
VERSIONS = ("facebones", "git_revision", "torch")

# Runs of one backbone that differ only in these recipe fields are its seeds.
NOT_COMPARED = {"backbone": ("name",), "training": ("seed", "checkpoint_every"), "data": ("path", "workers")}
NOT_SHARED = {"backbone": ("name",), "training": ("seed",)}
NOT_TRAINING = ("validation", "log")  # sections that do not change the weights
DATA = "the training data"
MOST_SHOWN = 6  # fields in which recipes differ


# -------------------------------------------------------------------------------------------------------- checks


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); restore it or create it again") from error


def unexpected(path: Path | str, error: Exception) -> FaceBonesError:
    """The error for a file whose content is not what facebones writes; one line."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return DataError(f"{path}: unexpected content ({reason:.200}); restore it or create it again")


def number(value: Any) -> float:
    """A finite number.

    Raises:
        TypeError: the value is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r:.40} is not a number")
    return value


def text(value: Any) -> str:
    """A string.

    Raises:
        TypeError: the value is anything else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a string")
    return value


def known_versions(content: Mapping[str, Any]) -> dict[str, Any]:
    """The versions that a file or a section of it names; "commit" is the older name of "git_revision"."""
    named = {"git_revision": content.get("commit"), **content}
    return {key: named[key] for key in VERSIONS if isinstance(named.get(key), str)}


# ------------------------------------------------------------------------------------------------------- reading


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return RunFolder(folder).metrics.is_file() or RunFolder(folder).config.is_file()


def read_run(folder: Path, name: str) -> Run:
    """Read a run's files; a run that has just begun lacks some of them.

    Raises:
        FaceBonesError: a file is damaged.
    """
    files = RunFolder(folder)
    recipe = load_config(files.config).to_dict() if files.config.is_file() else {}
    done = files.result.is_file()
    environment = _environment(files.environment) if files.environment.is_file() else {}
    error = None if done else _recorded_error(folder / "error.json")
    return Run(
        name=name,
        backbone=recipe["backbone"]["name"] if recipe else name,
        seed=recipe["training"]["seed"] if recipe else None,
        folder=folder,
        source="log" if (folder / "source.json").is_file() else "run",
        state="done" if done else "failed" if error else "unfinished" if folder.is_dir() else "to do",
        error=error,
        recipe=recipe,
        environment=environment,
        versions=known_versions(environment),
        lines=_lines(files.metrics) if files.metrics.is_file() else (),
        result=_result(files.result) if done else {},
    )


def read_study_run(folder: Path, row: Mapping[str, Any]) -> Run:
    """Read a run of a study, with what only study.json knows: its backbone, seed, error and versions.

    If the folder of a finished run is gone, its final accuracies come from study.json.
    """
    run = _read_failed_or_not(folder / text(row["folder"]), row)
    state = run.state
    error = " ".join(text(row["error"]).split()) if row["error"] else None
    if state == "to do" and row["state"] == "done":
        state = "done"
        run = replace(run, result=checked_result({"final": row["final"], "steps": row["steps"]}))
    if state == "done":
        error = None
    return replace(
        run,
        backbone=text(row["backbone"]),
        seed=None if row["seed"] is None else int(number(row["seed"])),
        state="failed" if error else state,
        error=error or run.error,
        versions=known_versions(row.get("versions") or {}) or run.versions,
    )


def _read_failed_or_not(folder: Path, row: Mapping[str, Any]) -> Run:
    """A run's files. Damaged files of a failed run are ignored: they may be why it failed."""
    name = text(row["name"])
    try:
        return read_run(folder, name)
    except FaceBonesError:
        if not row["error"]:
            raise
        return Run(name=name, backbone=name, folder=folder, state="unfinished")


def _recorded_error(path: Path) -> str | None:
    """What error.json says of a failed run; one line."""
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        return " ".join(text(content["message"]).split()) or text(content["type"])
    except OTHER_SHAPE as error:
        raise unexpected(path, error) from error


def _environment(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise unexpected(path, TypeError("not an object"))
    return content


def _result(path: Path) -> dict[str, Any]:
    try:
        return checked_result(read_json(path))
    except OTHER_SHAPE as error:
        raise unexpected(path, error) from error


def checked_result(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of result.json, its final and best metrics checked.

    Raises:
        KeyError: or another of OTHER_SHAPE, if the content has another shape.
    """
    final = [_checked_row(row) for row in content.get("final") or ()]
    best = content.get("best") or {}
    sets = {name: None if value is None else number(value) for name, value in (best.get("sets") or {}).items()}
    steps = content.get("steps")
    return {
        **content,
        "final": final,
        "best": {**best, "sets": sets},
        "steps": None if steps is None else number(steps),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, checked."""
    checked: list[dict[str, Any]] = []
    lines = read_metrics(path)
    try:
        for line in lines:
            checked.append(_checked_line(line))
    except OTHER_SHAPE as error:
        raise unexpected(f"{path}, line {len(checked) + 1}", error) from error
    return checked


def _checked_line(line: Mapping[str, Any]) -> dict[str, Any]:
    text(line["kind"])
    number(line["step"])
    return _checked_row(line) if line["kind"] == "validation" else _checked_numbers(line)


def _checked_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A validation."""
    text(row["set"])
    return {"accuracy": None, **_checked_numbers(row)}


def _checked_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None for NaN and infinities; what should be a number is one."""
    found = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    for key in NUMBERS:
        if found.get(key) is not None:
            number(found[key])
    return found


# ------------------------------------------------------------------------------------------------------ grouping


def split_by_recipe(runs: Sequence[Run]) -> list[Run]:
    """The runs, with those of one backbone but different recipes or training data as different backbones.

    Such a backbone is named after its first run: "mobilefacenet (long)".
    """
    kinds: dict[str, dict[str, str]] = {}
    compared = _with_equal_fingerprints(runs)
    for run in compared:
        if (kind := _kind(run)) is not None:
            kinds.setdefault(run.backbone, {}).setdefault(kind, run.name)
    labels = [_label(run, kinds.get(run.backbone, {})) for run in compared]
    return [replace(run, backbone=label) for run, label in zip(runs, labels, strict=True)]


def repeated_seeds(runs: Sequence[Run]) -> list[str]:
    """A note on each run that repeats another one's training: it tells nothing about the spread over seeds."""
    notes: list[str] = []
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        if run.seed is None:
            continue
        if other := seen.get((run.backbone, run.seed)):
            notes.append(f"{run.name} and {other} have the same recipe and seed, but count as two seeds")
        seen.setdefault((run.backbone, run.seed), run.name)
    return notes


def different_recipes(runs: Sequence[Run]) -> list[str]:
    """A note if the recipes differ, because then more than the backbones is compared."""
    found = [_compared(run) for run in _with_equal_fingerprints(runs) if run.recipe]
    names = list(dict.fromkeys(name for fields in found for name in fields))
    names = [name for name in names if any(fields.get(name) != found[0].get(name) for fields in found)]
    if not names:
        return []
    return [
        f"the runs were trained with different settings: they differ in {some(names, MOST_SHOWN)}; a better"
        " result may come from the recipe instead of the backbone"
    ]


def shared_recipe(runs: Sequence[Run]) -> dict[str, Any]:
    """Section to field to value of what all recipes have in common, without backbone and seed."""
    recipes = [run.recipe for run in runs if run.recipe]
    shared = {}
    for section, values in recipes[0].items() if recipes else ():
        kept = {
            key: value
            for key, value in _fields(values).items()
            if key not in NOT_SHARED.get(section, ())
            and all(_fields(recipe.get(section)).get(key) == value for recipe in recipes)
        }
        if kept:
            shared[section] = kept
    return shared


def counted_cost(run: Run) -> Cost:
    """Parameters and MACs of a run's network; empty if the network cannot be built here."""
    from facebones.profiling.cost import network_costs  # imports torch

    source = run.recipe.get("backbone") or {"name": run.result.get("backbone"), **run.result}
    name, size = source.get("name"), source.get("embedding_size")
    if not isinstance(name, str) or not isinstance(size, int) or size < 1:
        return Cost()
    row = network_costs(name, size)
    return Cost(parameters=row["parameters"], macs=row["macs"])


def _kind(run: Run) -> str | None:
    """Equal for runs that are seeds of one backbone; None for a run that has not begun."""
    if not run.recipe:
        return None if run.source == "run" else f"{run.source} {run.name}"
    return json.dumps(_compared(run), sort_keys=True)


def _with_equal_fingerprints(runs: Sequence[Run]) -> list[Run]:
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


def _compared(run: Run) -> dict[str, Any]:
    """What runs should have in common, by name: fields of the recipe, and the fingerprint of the training data."""
    fields = {
        f"{section}.{key}": value
        for section, values in run.recipe.items()
        if section not in NOT_TRAINING
        for key, value in _fields(values).items()
        if key not in NOT_COMPARED.get(section, ())
    }
    data = run.environment.get("data")
    fingerprint = {key: value for key, value in data.items() if key != "path"} if isinstance(data, dict) else None
    return fields | {DATA: fingerprint}


def _fields(section: Any) -> Mapping[str, Any]:
    """The fields of a recipe's section; a top-level list such as `imports` has none."""
    return section if isinstance(section, Mapping) else {}


def _label(run: Run, kinds: dict[str, str]) -> str:
    if len(kinds) < 2:
        return run.backbone
    kind = _kind(run)
    first = next(iter(kinds.values())) if kind is None else kinds[kind]
    return f"{run.backbone} ({first})"
