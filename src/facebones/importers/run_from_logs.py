"""Text logs of other trainers, converted to a run folder that reports can read.

The folder has no environment.json, because a log does not tell versions, device and data, and no config.yaml, which
would mark a run that can be resumed.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from facebones import __version__
from facebones.errors import ConfigError, counted
from facebones.importers.text_logs import Training, TrainingLines, TrainingLogs, read_logs
from facebones.run_folder import RunFolder
from facebones.system.files import atomic_write, check_writable, write_json
from facebones.system.progress import say
from facebones.system.regular_files import read_regular

KIND = "text logs"  # marks a folder made here, in source.json
TRAINING_FILE, VALIDATION_FILE, SOURCE_FILE = "training_metrics.json", "validation_metrics.json", "source.json"
NOT_IN_LOGS = ("tar_at_far_1e3", "far_reached", "auc", "eer", "epoch")


def convert_logs(paths: Sequence[Path], output: Path) -> dict[str, Any]:
    """Read the log files of one run and write a run folder.

    Args:
        paths: in the order of writing.
        output: created if missing. The files of an earlier call are replaced; a run of facebones is refused.

    Returns:
        the summary: files, training lines, steps, epochs, sets, and counts of the lines that are repeated,
        incomplete, left out or unknown.

    Raises:
        DataError: as `read_logs`.
        ConfigError: the folder holds a run, or cannot be written.
    """
    folder = RunFolder(output)
    _check_output(folder)
    logs = read_logs(paths)
    rows = logs.validations.rows()
    summary = _summary(logs, rows)
    _say_notes(logs, summary)
    write_json(output / SOURCE_FILE, _source(logs, summary))  # first, because it marks what a second call may replace
    with atomic_write(folder.metrics) as file:
        _write_metrics(file, logs.training, rows)
    _write_objects(output / TRAINING_FILE, _training_objects(logs.training))
    _write_objects(output / VALIDATION_FILE, _validation_objects(rows))
    write_json(folder.result, _result(logs, rows))
    return {**summary, "output": str(output)}


def _check_output(folder: RunFolder) -> None:
    """Refuse a folder that holds anything but the files of an earlier call."""
    if _is_converted(folder.path / SOURCE_FILE):
        for path in (folder.config, folder.environment, *folder.checkpoints, folder.weights, folder.card):
            if path.exists():
                raise ConfigError(f"{path}: already exists, because the folder holds a run; choose another --output")
    else:
        folder.refuse_existing()
    for name in (TRAINING_FILE, VALIDATION_FILE, SOURCE_FILE, folder.metrics.name, folder.result.name):
        check_writable(folder.path / name)


def _is_converted(source: Path) -> bool:
    """Whether source.json was written here; any other file of that name is not replaced."""
    if not source.exists():
        return False
    try:
        content = json.loads(read_regular(source))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ConfigError(f"{source}: already exists, and `facebones logs` did not write it; choose another --output")
    return True


def _training_objects(training: TrainingLines) -> Iterator[dict[str, Any]]:
    """Training lines under the keys of the study's scripts, which need a loss; those without one are left out."""
    for values in zip(*training.columns.values(), strict=True):
        line = Training(*values)
        if not math.isnan(line.loss):
            scale = _or_none(line.gradient_scale)
            yield {
                "Loss": line.loss,
                "LearningRate": _or_none(line.learning_rate),
                "Epoch": line.epoch,
                "GlobalStep": line.step,
                "Fp16GradScale": int(scale) if scale is not None and scale.is_integer() else scale,
            }


def _validation_objects(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Validations under the keys of the study's scripts, which need an accuracy; those without one are left out."""
    names = ("set", "step", "xnorm", "accuracy", "accuracy_std", "highest")
    keys = ("Dataset", "Step", "XNorm", "AccuracyFlip", "AccuracyFlipStd", "AccuracyHighest")
    for row in rows:
        if not math.isnan(row["accuracy"]):
            yield {key: _or_none(row[name]) for key, name in zip(keys, names, strict=True)}


def _write_objects(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list of objects, one at a time to save memory."""
    with atomic_write(path) as file:
        file.write(b"[")
        for number, row in enumerate(rows):
            file.write(f"{',' if number else ''}\n  {json.dumps(row, allow_nan=False)}".encode())
        file.write(b"\n]\n")


def _write_metrics(file: IO[bytes], training: TrainingLines, rows: Sequence[dict[str, Any]]) -> None:
    """Write metrics.jsonl by step, as a training does; what the log does not tell is null."""
    place = 0
    for values in zip(*training.columns.values(), strict=True):
        line = Training(*values)
        while place < len(rows) and rows[place]["step"] < line.step:
            _write_line(file, "validation", _validation_values(rows[place]))
            place += 1
        numbers = {**line._asdict(), "epoch": line.epoch + 1, "gradient_norm": None, "skipped_steps": None}
        _write_line(file, "train", numbers)
    for row in rows[place:]:
        _write_line(file, "validation", _validation_values(row))


def _write_line(file: IO[bytes], kind: str, values: dict[str, Any]) -> None:
    line = {"kind": kind, **{key: _or_none(value) for key, value in values.items()}}
    file.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def _validation_values(row: dict[str, Any]) -> dict[str, Any]:
    known = {key: _or_none(value) for key, value in row.items() if key != "highest"}
    return known | dict.fromkeys(NOT_IN_LOGS)


def _result(logs: TrainingLogs, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The content of result.json: the last and the best accuracies of each set."""
    last = {row["set"]: row for row in rows}
    sets = {name: _or_none(row["best_accuracy"]) for name, row in last.items()}
    return {
        "steps": logs.training.last_step if len(logs.training) else None,
        "final": [_validation_values(row) for row in last.values()],
        "best": {**_best_mean(rows, len(last)), "sets": sets},
    }


def _best_mean(rows: Sequence[dict[str, Any]], sets: int) -> dict[str, Any]:
    """The step with the best mean accuracy, among those that measured all sets."""
    at_step: dict[int, list[float]] = {}
    for row in rows:
        at_step.setdefault(row["step"], []).append(row["accuracy"])
    means = {step: math.fsum(values) / sets for step, values in at_step.items() if len(values) == sets}
    means = {step: mean for step, mean in means.items() if math.isfinite(mean)}
    best = max(means, key=lambda step: means[step], default=None)
    return {"mean_accuracy": None if best is None else means[best], "step": best}


def _summary(logs: TrainingLogs, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    training, validations = logs.training, logs.validations
    last = {row["set"]: row for row in rows}
    return {
        "files": [found.to_json() for found in logs.files],
        "training_lines": len(training),
        "first_step": training.columns["step"][0] if len(training) else None,
        "last_step": training.last_step if len(training) else None,
        "epochs": training.columns["epoch"][-1] + 1 if len(training) else None,
        "sets": [
            {
                "set": name,
                "validations": len(validations.of_set[name]),
                "final_step": row["step"],
                "final_accuracy": _or_none(row["accuracy"]),
                "final_accuracy_std": _or_none(row["accuracy_std"]),
                "best_accuracy": _or_none(row["best_accuracy"]),
            }
            for name, row in last.items()
        ],
        "losses_not_finite": sum(math.isnan(value) for value in training.columns["loss"]),
        "validations_not_finite": validations.not_finite,
        "training_lines_without_step": logs.without_step,
        "times_back": logs.times_back,
        "training_lines_replaced": logs.replaced,
        "validations_replaced": validations.replaced,
        "validation_lines_repeated": validations.repeated_lines,
        "validations_incomplete": validations.incomplete + len(validations.open),
        "lines_not_understood": sum(found.not_understood for found in logs.files),
    }


def _source(logs: TrainingLogs, summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": KIND,
        "facebones": __version__,
        **summary,
        "configurations": logs.configurations,
        "first_not_understood": [{"where": str(place), "text": text} for place, text in logs.not_understood],
    }


def _say_notes(logs: TrainingLogs, summary: dict[str, Any]) -> None:
    """Say on stderr what was dropped or is irregular."""
    count = summary["lines_not_understood"]
    for number, (place, text) in enumerate(logs.not_understood):
        say(f"  {place}: {text}" if number else f"note: {_lines_of(count)} not understood, first: {place}: {text}")
    for place, before, after, removed, left in logs.back:
        hint = "" if left else ", which are all lines before it; give the files in the order of writing"
        say(f"note: {place}: the step goes back from {before} to {after}: {_lines_of(removed)} dropped{hint}")
    if logs.times_back > len(logs.back):
        say(f"note: the step goes back at {logs.times_back - len(logs.back)} more places")
    notes = {
        "training_lines_replaced": "training lines replaced by later ones",
        "validations_replaced": "validations replaced by later ones",
        "validation_lines_repeated": "repeated validation lines",
        "validations_incomplete": "incomplete validations (was the program killed?), dropped",
        "losses_not_finite": f"losses that are not finite, null in metrics.jsonl and left out of {TRAINING_FILE}",
        "validations_not_finite": "validations with a number that is not finite, null in metrics.jsonl; left out of"
        f" {VALIDATION_FILE} if it is the accuracy",
        "training_lines_without_step": "training lines of MXNet, which give no global step, left out",
    }
    for key, text in notes.items():
        if summary[key]:
            say(f"note: {text}: {summary[key]}")
    if logs.settings_left_out:
        say(f"note: configuration: {counted(logs.settings_left_out, 'line')} dropped, {logs.settings} kept")
    if not summary["training_lines"]:
        say("note: no training line, so there is no plot of the loss")


def _lines_of(count: int) -> str:
    return f"{count} line{'s' if count != 1 else ''}"


def _or_none(value: Any) -> Any:
    """The value, with None for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
