"""Text logs of others' trainings, made into a run folder that plots and tables understand.

A run that was stopped and went on has written some steps twice, in one file or in the next. What counts is what came
later: where the step goes back, all that was written before at this step or beyond is left out, as `facebones resume`
cuts its own metrics.jsonl. A log does not tell versions, device and data, so there is no environment.json, and no
config.yaml, which would mark a run that can be resumed.
"""

import io
import json
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from facebones import __version__
from facebones.data.text_lists import shown
from facebones.errors import ConfigError, DataError
from facebones.files import atomic_write, check_writable, write_json
from facebones.run_folder import RunFolder
from facebones.training.foreign_log_lines import (
    Measurement,
    Message,
    Setting,
    Training,
    read_message,
    split_messages,
)
from facebones.training.logs import say

KIND = "text logs"  # what source.json says of a folder made here
TRAINING_FILE, VALIDATION_FILE, SOURCE_FILE = "training_metrics.json", "validation_metrics.json", "source.json"
LONGEST_LINE = 1 << 16  # characters; what is longer is no line of a log
MOST_SHOWN = 3  # lines that are not understood, and places where a run goes back
MOST_SETS, MOST_SETTINGS = 1000, 10_000  # a file that holds more is made to fill memories
FIGURES = ("xnorm", "accuracy", "accuracy_std", "highest")
NOT_IN_LOGS = ("tar_at_far_1e3", "far_reached", "auc", "eer", "epoch")


class Place(NamedTuple):
    """A line of a file, and its place among all lines read."""

    path: Path
    line: int
    serial: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


@dataclass
class LogFile:
    """What was found in one file; the steps are those of its training lines, the first and the last."""

    path: Path
    lines: int = 0
    understood: int = 0
    training_lines: int = 0
    not_understood: int = 0
    steps: list[int] = field(default_factory=list)
    times: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For source.json."""
        return {**vars(self), "path": str(self.path.absolute())}


class Course:
    """Training lines by rising step, in columns of numbers: a log may have millions."""

    def __init__(self) -> None:
        self.columns: dict[str, array[Any]] = {
            name: array("q" if name in ("step", "epoch") else "d") for name in Training._fields
        }
        self.serials = array("q")

    def __len__(self) -> int:
        return len(self.serials)

    @property
    def last_step(self) -> int:
        """Of the last line; -1 before the first."""
        return int(self.columns["step"][-1]) if len(self) else -1

    def cut(self, step: int) -> tuple[int, int]:
        """Leave out the lines at a step and beyond; returns how many, and the serial number of the first."""
        place = bisect_left(self.columns["step"], step)
        removed, first = len(self) - place, self.serials[place]
        for column in (*self.columns.values(), self.serials):
            del column[place:]
        return removed, first

    def append(self, line: Training, serial: int) -> None:
        """Add a line beyond the last."""
        for column, value in zip(self.columns.values(), line, strict=True):
            column.append(value)
        self.serials.append(serial)

    def numbers(self, name: str) -> list[float | None]:
        """A column as JSON has it."""
        return [_or_none(value) for value in self.columns[name]]


class Validations:
    """Validations by set and rising step, each complete; `open` are those that lack a line so far."""

    def __init__(self) -> None:
        self.of_set: dict[str, list[tuple[int, int, dict[str, float]]]] = {}  # (serial, step, figures)
        self.open: dict[str, tuple[int, dict[str, float]]] = {}
        self.replaced = self.incomplete = self.repeated_lines = 0

    def add(self, line: Measurement, serial: int) -> None:
        """Add one of the three lines of a validation."""
        step, figures = self.open.get(line.set_name, (line.step, {}))
        if not figures and self._repeats_complete(line):
            self.repeated_lines += 1
            return
        twice = line.figures.keys() & figures.keys()
        if step == line.step and twice and _same(figures, line.figures):
            self.repeated_lines += 1
            return
        if step != line.step or twice:  # the program was killed inside of the open one
            self.incomplete += 1
            figures = {}
        figures |= line.figures
        if len(figures) == len(FIGURES):
            self.open.pop(line.set_name, None)
            self._append(line.set_name, (serial, line.step, figures))
        else:
            self.open[line.set_name] = (line.step, figures)

    def cut(self, step: int, serial: int) -> None:
        """Leave out what was measured at a step and beyond, and read after a line."""
        for rows in self.of_set.values():
            while rows and rows[-1][1] >= step and rows[-1][0] > serial:
                rows.pop()
                self.replaced += 1

    def rows(self) -> list[dict[str, Any]]:
        """The validations by step, with the best accuracy of each set so far."""
        rows, best = [], dict.fromkeys(self.of_set, math.nan)
        found = [(row[1], place, row[2]) for place, name in enumerate(self.of_set) for row in self.of_set[name]]
        names = list(self.of_set)
        for step, place, figures in sorted(found, key=lambda each: each[:2]):
            name = names[place]
            # The program counts its highest anew when it is started again.
            highest = [
                value for value in (best[name], figures["highest"], figures["accuracy"]) if not math.isnan(value)
            ]
            best[name] = max(highest, default=math.nan)
            rows.append({"set": name, "step": step, **figures, "best_accuracy": best[name]})
        return rows

    def _repeats_complete(self, line: Measurement) -> bool:
        """Whether it says again what the last complete validation of its set said; XNorm begins another."""
        rows = self.of_set.get(line.set_name)
        if not rows or "xnorm" in line.figures:
            return False
        _, step, figures = rows[-1]
        return step == line.step and _same(figures, line.figures)

    def _append(self, name: str, row: tuple[int, int, dict[str, float]]) -> None:
        rows = self.of_set.setdefault(name, [])
        while rows and rows[-1][1] >= row[1]:
            rows.pop()
            self.replaced += 1
        rows.append(row)


class ForeignLogs:
    """What the log files of one run hold, read one after the other.

    Attributes:
        course: the training lines that count.
        validations: likewise.
        configurations: name -> value as printed, one for each start of the program, without immediate repetitions.
        back: where the step goes back: (place, from step, to step, lines left out, lines left), the first few.
        not_understood: the first few lines: (place, text as it may be shown).
    """

    def __init__(self) -> None:
        self.files: list[LogFile] = []
        self.course, self.validations = Course(), Validations()
        self.configurations: list[dict[str, str]] = []
        self.settings = self.settings_left_out = 0
        self.back: list[tuple[Place, int, int, int, int]] = []
        self.times_back = self.replaced = 0
        self.not_understood: list[tuple[Place, str]] = []
        self._serial = 0

    def read(self, path: Path) -> None:
        """Read a file, line by line.

        Raises:
            DataError: it cannot be read, or holds no line of a training log.
        """
        found = LogFile(path)
        for found.lines, line in _lines(path):
            self._serial += 1
            self._read_line(line, found, Place(path, found.lines, self._serial))
        if not found.lines:
            raise DataError(f"{path}: is empty; leave it out, or give the text log of a training")
        if not found.understood:
            raise DataError(
                f"{path}: none of its {found.lines} lines is of a training log; give the text log of a training"
            )
        self.files.append(found)

    def _read_line(self, line: str, found: LogFile, place: Place) -> None:
        bad = [message for message in split_messages(line) if not self._take(message, found, place)]
        if bad:
            found.not_understood += 1
            if len(self.not_understood) < MOST_SHOWN:
                self.not_understood.append((place, shown(bad[0].text.encode())))

    def _take(self, message: Message, found: LogFile, place: Place) -> bool:
        """Take up what a message says; returns whether it was understood."""
        content = read_message(message)
        if isinstance(content, Measurement):
            sets = self.validations
            if len(sets.of_set.keys() | sets.open.keys() | {content.set_name}) > MOST_SETS:
                return False
            sets.add(content, place.serial)
        elif isinstance(content, Training):
            self._add_training(content, place)
            found.training_lines += 1
            found.steps = [*found.steps[:1], content.step]
        elif isinstance(content, Setting):
            self._add_setting(content)
        if content is not None:
            found.understood += 1
            found.times = [*found.times[:1], message.time] if message.time else found.times
        return content is not None

    def _add_training(self, line: Training, place: Place) -> None:
        last = self.course.last_step
        if line.step <= last:
            removed, serial = self.course.cut(line.step)
            self.replaced += removed
            self.validations.cut(line.step, serial)
            if line.step < last:
                self.times_back += 1
                self.back = [*self.back, (place, last, line.step, removed, len(self.course))][:MOST_SHOWN]
        self.course.append(line, place.serial)

    def _add_setting(self, setting: Setting) -> None:
        current = self.configurations[-1] if self.configurations else None
        if current and current.get(setting.name) == setting.value and next(reversed(current)) == setting.name:
            return  # the program logs to the screen and to the file, and both went here
        if self.settings == MOST_SETTINGS:
            self.settings_left_out += 1
            return
        if current is None or setting.name in current:
            self.configurations.append(current := {})
        current[setting.name] = setting.value
        self.settings += 1


def read_logs(paths: Sequence[Path]) -> ForeignLogs:
    """Read the log files of one run, in the order in which they were written.

    Raises:
        DataError: a file cannot be read, holds nothing of a training, or is given twice.
    """
    real = [os.path.realpath(path) for path in paths]
    if twice := [path for place, path in enumerate(paths) if real[place] in real[:place]]:
        raise DataError(f"{twice[0]}: is given twice; give each log once, in the order in which they were written")
    logs = ForeignLogs()
    for path in paths:
        logs.read(path)
    if not len(logs.course) and not any(logs.validations.of_set.values()):
        names = ", ".join(str(path) for path in paths[:MOST_SHOWN])
        raise DataError(f"{names}: no training line and no whole validation; give logs of a training that had begun")
    return logs


def convert_logs(paths: Sequence[Path], output: Path) -> dict[str, Any]:
    """Read the log files of one run and write a run folder.

    Args:
        paths: in the order in which they were written.
        output: made where it is missing. What an earlier call wrote there is replaced; a run of ours is refused.

    Returns:
        the summary: files, training lines, steps, epochs, sets, and what was repeated, incomplete or not understood.

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
    write_json(output / SOURCE_FILE, _source(logs, summary))  # the first: it marks what a second call may replace
    with atomic_write(folder.metrics) as file:
        _write_metrics(file, logs.course, rows)
    _write_columns(output / TRAINING_FILE, _training_columns(logs.course))
    _write_columns(output / VALIDATION_FILE, _validation_columns(rows))
    write_json(folder.result, _result(logs, rows))
    return {**summary, "output": str(output)}


# ------------------------------------------------------------------------------------------------------ reading


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line with its line feed); one that is too long is cut, and so has none."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the log in it, such as {path / 'training.log'}")
    try:
        with path.open("rb") as raw:
            encoding = "utf-16" if raw.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"  # PowerShell's `>`
            yield from enumerate(_bounded_lines(raw, encoding), 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _bounded_lines(raw: IO[bytes], encoding: str) -> Iterator[str]:
    with io.TextIOWrapper(raw, encoding, errors="replace", newline="\n") as file:
        while line := file.readline(LONGEST_LINE):
            rest = line
            while len(rest) == LONGEST_LINE and not rest.endswith("\n"):
                rest = file.readline(LONGEST_LINE)
            yield line


# ------------------------------------------------------------------------------------------------------ writing


def _check_output(folder: RunFolder) -> None:
    """Refuse a folder that holds something else than what an earlier call wrote."""
    if _is_converted(folder.path / SOURCE_FILE):
        for path in (folder.config, folder.environment, folder.last, folder.best, folder.weights, folder.card):
            if path.exists():
                raise ConfigError(f"{path}: is there already: the folder holds a run; choose another --output")
    else:
        folder.refuse_existing()
    for name in (TRAINING_FILE, VALIDATION_FILE, SOURCE_FILE, folder.metrics.name, folder.result.name):
        check_writable(folder.path / name)


def _is_converted(source: Path) -> bool:
    """Whether it is a source.json written here; another's is not replaced."""
    if not source.exists():
        return False
    try:
        content = json.loads(source.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ConfigError(f"{source}: is there already, and is not of `facebones logs`; choose another --output")
    return True


def _training_columns(course: Course) -> Iterator[tuple[str, list[Any]]]:
    names = ("loss", "learning_rate", "epoch", "step", "gradient_scale")
    keys = ("Loss", "LearningRate", "Epoch", "GlobalStep", "Fp16GradScale")
    for key, name in zip(keys, names, strict=True):
        yield key, course.numbers(name)


def _validation_columns(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[Any]]]:
    names = ("set", "step", "xnorm", "accuracy", "accuracy_std", "highest")
    keys = ("Dataset", "Step", "XNorm", "AccuracyFlip", "AccuracyFlipStd", "AccuracyHighest")
    return ((key, [_or_none(row[name]) for row in rows]) for key, name in zip(keys, names, strict=True))


def _write_columns(path: Path, columns: Iterable[tuple[str, list[Any]]]) -> None:
    """Write a JSON object of lists, one at a time: together they may be large."""
    with atomic_write(path) as file:
        for number, (key, values) in enumerate(columns):
            file.write(f"{',' if number else '{'}\n  {json.dumps(key)}: {json.dumps(values, allow_nan=False)}".encode())
        file.write(b"\n}\n")


def _write_metrics(file: IO[bytes], course: Course, rows: Sequence[dict[str, Any]]) -> None:
    """Write lines of metrics.jsonl by step, as a training of ours writes them; what the log does not say is null."""
    place = 0
    for values in zip(*course.columns.values(), strict=True):
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


def _result(logs: ForeignLogs, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What result.json can hold: the last figures of each set, and the best ones."""
    last = {row["set"]: row for row in rows}
    sets = {name: _or_none(row["best_accuracy"]) for name, row in last.items()}
    return {
        "steps": logs.course.last_step if len(logs.course) else None,
        "final": [_validation_values(row) for row in last.values()],
        "best": {**_best_mean(rows, len(last)), "sets": sets},
    }


def _best_mean(rows: Sequence[dict[str, Any]], sets: int) -> dict[str, Any]:
    """The step with the best mean accuracy, among those at which all sets were measured."""
    at_step: dict[int, list[float]] = {}
    for row in rows:
        at_step.setdefault(row["step"], []).append(row["accuracy"])
    means = {step: math.fsum(values) / sets for step, values in at_step.items() if len(values) == sets}
    means = {step: mean for step, mean in means.items() if math.isfinite(mean)}
    best = max(means, key=lambda step: means[step], default=None)
    return {"mean_accuracy": None if best is None else means[best], "step": best}


def _summary(logs: ForeignLogs, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    course, validations = logs.course, logs.validations
    last = {row["set"]: row for row in rows}
    return {
        "files": [found.to_json() for found in logs.files],
        "training_lines": len(course),
        "first_step": course.columns["step"][0] if len(course) else None,
        "last_step": course.last_step if len(course) else None,
        "epochs": course.columns["epoch"][-1] + 1 if len(course) else None,
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
        "losses_not_finite": sum(math.isnan(value) for value in course.columns["loss"]),
        "times_back": logs.times_back,
        "training_lines_replaced": logs.replaced,
        "validations_replaced": validations.replaced,
        "validation_lines_repeated": validations.repeated_lines,
        "validations_incomplete": validations.incomplete + len(validations.open),
        "lines_not_understood": sum(found.not_understood for found in logs.files),
    }


def _source(logs: ForeignLogs, summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": KIND,
        "facebones": __version__,
        **summary,
        "configurations": logs.configurations,
        "first_not_understood": [{"where": str(place), "text": text} for place, text in logs.not_understood],
    }


def _say_notes(logs: ForeignLogs, summary: dict[str, Any]) -> None:
    """Say on stderr all that was left out or is not as it should be."""
    count = summary["lines_not_understood"]
    for number, (place, text) in enumerate(logs.not_understood):
        say(f"  {place}: {text}" if number else f"note: {_lines_of(count)} not understood, first: {place}: {text}")
    for place, before, after, removed, left in logs.back:
        hint = "" if left else ", which is all before it; give files in the order in which they were written"
        say(f"note: {place}: the step goes back from {before} to {after}: {_lines_of(removed)} left out{hint}")
    if logs.times_back > len(logs.back):
        say(f"note: the step goes back at {logs.times_back - len(logs.back)} more places")
    notes = {
        "training_lines_replaced": "training lines replaced by later ones",
        "validations_replaced": "validations replaced by later ones",
        "validation_lines_repeated": "validation lines that say again what was said",
        "validations_incomplete": "incomplete validations (was the program killed in them?), left out",
        "losses_not_finite": "losses that are no finite number, null in the JSON",
    }
    for key, text in notes.items():
        if summary[key]:
            say(f"note: {text}: {summary[key]}")
    if logs.settings_left_out:
        say(f"note: {logs.settings_left_out} lines of configuration are left out; {MOST_SETTINGS} are kept")
    if not summary["training_lines"]:
        say("note: no training line, so the course of the loss cannot be drawn")


def _lines_of(count: int) -> str:
    return f"{count} line{'s' if count != 1 else ''}"


def _same(figures: dict[str, float], others: dict[str, float]) -> bool:
    """Whether the figures that both have are equal, NaN to NaN."""
    both = figures.keys() & others.keys()
    return all(figures[key] == others[key] or (math.isnan(figures[key]) and math.isnan(others[key])) for key in both)


def _or_none(value: Any) -> Any:
    """The value, NaN as None."""
    return None if isinstance(value, float) and math.isnan(value) else value
