"""A run's files in, one `Run` out; what facebones would not have written is refused, with the file's name."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from facebones.errors import DataError, FaceBonesError
from facebones.recipe import load_config
from facebones.reporting.results import Run
from facebones.run_folder import RunFolder
from facebones.training.logs import finite_or_none, read_metrics

# What files of another shape raise when they are taken apart.
OTHER_SHAPE = (KeyError, TypeError, AttributeError, ValueError, IndexError)
NUMBERS = ("step", "epoch", "loss", "learning_rate", "accuracy", "accuracy_std", "best_accuracy", "auc", "eer", "xnorm")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); restore it, or make it again") from error


def unlike(path: Path, error: Exception) -> FaceBonesError:
    """The error of a file of another shape than facebones gives it; one line."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return DataError(f"{path}: is not as facebones writes it ({reason:.200}); make it again")


def number(value: Any) -> float:
    """A finite number.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r:.40} is no number")
    return value


def text(value: Any) -> str:
    """A text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def read_run(folder: Path, name: str) -> Run:
    """Read a run's files; each may be missing, of a run that has only begun.

    Raises:
        FaceBonesError: a file is damaged.
    """
    files = RunFolder(folder)
    recipe = load_config(files.config).to_dict() if files.config.is_file() else {}
    done = files.result.is_file()
    return Run(
        name=name,
        backbone=recipe["backbone"]["name"] if recipe else name,
        seed=recipe["training"]["seed"] if recipe else None,
        folder=folder,
        source="log" if (folder / "source.json").is_file() else "run",
        state="done" if done else "unfinished" if folder.is_dir() else "to do",
        recipe=recipe,
        environment=_environment(files.environment) if files.environment.is_file() else {},
        lines=_lines(files.metrics) if files.metrics.is_file() else (),
        result=_result(files.result) if done else {},
    )


def read_study_run(folder: Path, row: Mapping[str, Any]) -> Run:
    """Read a run of a study, with what only study.json knows: the backbone, the seed, and why the run failed.

    Where the folder of a finished run is gone, the final figures are those that study.json has.
    """
    run = _read_failed_or_not(folder / text(row["folder"]), row)
    state, error = run.state, row["error"] and " ".join(text(row["error"]).split())
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
        error=error or None,
    )


def _read_failed_or_not(folder: Path, row: Mapping[str, Any]) -> Run:
    """A run's files, or none of a failed run's that cannot be read: they may be why it failed."""
    name = text(row["name"])
    try:
        return read_run(folder, name)
    except FaceBonesError:
        if not row["error"]:
            raise
        return Run(name=name, backbone=name, folder=folder, state="unfinished")


def _environment(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise unlike(path, TypeError("no object"))
    return content


def _result(path: Path) -> dict[str, Any]:
    try:
        return checked_result(read_json(path))
    except OTHER_SHAPE as error:
        raise unlike(path, error) from error


def checked_result(content: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json holds, its final and best figures checked.

    Raises:
        KeyError: as all of OTHER_SHAPE: it is of another shape.
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
    try:
        return [_checked_line(line) for line in read_metrics(path)]
    except (*OTHER_SHAPE, OSError, RecursionError) as error:
        raise unlike(path, error) from error


def _checked_line(line: Mapping[str, Any]) -> dict[str, Any]:
    text(line["kind"])
    number(line["step"])
    return _checked_row(line) if line["kind"] == "validation" else _checked_numbers(line)


def _checked_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a validation."""
    text(row["set"])
    return {"accuracy": None, **_checked_numbers(row)}


def _checked_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values; a number is finite, or None."""
    found = finite_or_none(values)
    for key in NUMBERS:
        if found.get(key) is not None:
            number(found[key])
    return found
