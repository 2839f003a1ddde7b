"""Text logs of others' trainings, read into columns of numbers.

A run that was stopped and went on has written some steps twice, in one file or in the next. What counts is what came
later: where the step goes back, all that was written before at this step or beyond is left out, as `facebones resume`
cuts its own metrics.jsonl.
"""

import io
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from facebones.data.text_lists import shown
from facebones.errors import DataError
from facebones.importers.log_lines import (
    Measurement,
    Message,
    Setting,
    Training,
    read_message,
    split_messages,
)

LONGEST_LINE = 1 << 16  # characters; what is longer is no line of a log
MOST_SHOWN = 3  # lines that are not understood, and places where a run goes back
MOST_SETS, MOST_SETTINGS = 1000, 10_000  # a file that holds more is made to fill memories
FIGURES = ("xnorm", "accuracy", "accuracy_std", "highest")


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


def _same(figures: dict[str, float], others: dict[str, float]) -> bool:
    """Whether the figures that both have are equal, NaN to NaN."""
    both = figures.keys() & others.keys()
    return all(figures[key] == others[key] or (math.isnan(figures[key]) and math.isnan(others[key])) for key in both)
