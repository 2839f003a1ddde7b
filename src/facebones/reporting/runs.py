"""Run folders as `Run` records, checked on reading; and what their recipes have in common."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from facebones.errors import DataError, FaceBonesError
from facebones.recipe import load_config
from facebones.reporting.results import Cost, Run
from facebones.reporting.run_lines import run_lines
from facebones.reporting.variants import fields_of
from facebones.reporting.words import listed
from facebones.run_folder import RunFolder
from facebones.system.files import is_file, is_folder
from facebones.system.regular_files import read_regular

OTHER_SHAPE = (KeyError, TypeError, AttributeError, ValueError, IndexError)  # raised by content of another shape
NUMBERS = ("step", "epoch", "loss", "learning_rate", "accuracy", "accuracy_std", "best_accuracy", "auc", "eer", "xnorm")
VERSIONS = ("facebones", "git_revision", "torch")
MOST_EXACT = 2**53
SHORT_REVISION = 9  # digits

NOT_SHARED = {"backbone": ("name",), "training": ("seed",)}


# -------------------------------------------------------------------------------------------------------- checks


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); restore it or create it again") from error


def unexpected(path: Path | str, error: Exception) -> FaceBonesError:
    """The error for a file whose content is not what facebones writes; one line."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return DataError(f"{path}: unexpected content ({reason:.200}); restore it or create it again")


def number(value: Any) -> float:
    """A finite number, as a float where it is beyond what floats count exactly: JSON has whole numbers of any size.

    Raises:
        TypeError: the value is anything else.

    >>> number(7), number(10**30)
    (7, 1e+30)
    """
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value if abs(value) <= MOST_EXACT else float(value)
    except OverflowError:  # a whole number beyond all floats
        raise TypeError("a number too large") from None
    raise TypeError(f"{value!r:.40} is not a number")


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


def different_versions(results: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Notes where results were made with different versions of facebones or torch; unknown ones are skipped.

    >>> different_versions([("a", {"facebones": "0.2.0"}), ("b", {"facebones": "0.3.0"}), ("c", {})])
    ['results come from different versions of facebones: 0.2.0 for a; 0.3.0 for b']
    """
    known = list(results)
    notes = []
    for package in ("facebones", "torch"):
        groups: dict[str, list[str]] = {}
        for label, versions in known:
            if package in versions:
                groups.setdefault(_version_words(package, versions), []).append(label)
        if len(groups) > 1:
            parts = "; ".join(
                f"{version} for {listed(list(dict.fromkeys(names)))}" for version, names in groups.items()
            )
            notes.append(f"results come from different versions of {package}: {parts}")
    return notes


def _version_words(package: str, versions: Mapping[str, Any]) -> str:
    revision = versions.get("git_revision") if package == "facebones" else None
    return f"{versions[package]} at {revision[:SHORT_REVISION]}" if revision else str(versions[package])


# ------------------------------------------------------------------------------------------------------- reading


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return is_file(RunFolder(folder).metrics) or is_file(RunFolder(folder).config)


def read_run(folder: Path, name: str) -> Run:
    """Read a run's files; a run that has just begun lacks some of them.

    Raises:
        FaceBonesError: a file is damaged.
    """
    files = RunFolder(folder)
    recipe = load_config(files.config).to_dict() if is_file(files.config) else {}
    done = is_file(files.result)
    environment = _environment(files.environment) if is_file(files.environment) else {}
    error = None if done else _recorded_error(folder / "error.json")
    return Run(
        name=name,
        backbone=recipe["backbone"]["name"] if recipe else name,
        seed=recipe["training"]["seed"] if recipe else None,
        folder=folder,
        source="log" if is_file(folder / "source.json") else "run",
        state="done" if done else "failed" if error else "unfinished" if is_folder(folder) else "to do",
        error=error,
        recipe=recipe,
        environment=environment,
        versions=known_versions(environment),
        lines=_lines(files.metrics) if is_file(files.metrics) else (),
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
        levels=checked_levels(row),
        seed=None if row["seed"] is None else int(number(row["seed"])),
        state="failed" if error else state,
        error=error or run.error,
        versions=known_versions(row.get("versions") or {}) or run.versions,
    )


def checked_levels(row: Mapping[str, Any]) -> dict[str, str]:
    """The levels of a row of study.json; none without factors.

    Raises:
        TypeError: they are not factors with a level each.
    """
    return {text(factor): text(level) for factor, level in dict(row.get("levels") or {}).items()}


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
    if not is_file(path):
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
    """The lines of metrics.jsonl that are shown, checked."""

    def checked(number: int, line: Any) -> dict[str, Any]:
        try:
            return _checked_line(line)
        except OTHER_SHAPE as error:
            raise unexpected(f"{path}, line {number}", error) from error

    return run_lines(path, checked)


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
            found[key] = number(found[key])
    return found


def shared_recipe(runs: Sequence[Run]) -> dict[str, Any]:
    """Section to field to value of what all recipes have in common, without backbone and seed."""
    recipes = [run.recipe for run in runs if run.recipe]
    shared = {}
    for section, values in recipes[0].items() if recipes else ():
        kept = {
            key: value
            for key, value in fields_of(values).items()
            if key not in NOT_SHARED.get(section, ())
            and all(fields_of(recipe.get(section)).get(key) == value for recipe in recipes)
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
