"""Text logs of InsightFace's arcface_torch and of programs derived from it, as columns of numbers.

A training line gives speed, loss, learning rate, epoch (from 0), global step, gradient scale in fp16, and the hours
left; the oldest logs lack the learning rate, some lack colons, and forks add to the end of the line (arcface_paddle:
the learning rates). A validation is three lines that begin with [set][step]: XNorm, Accuracy-Flip (mean over the folds
+- standard deviation), Accuracy-Highest (since the program started). Logs of MXNet have the first two, and training
lines without a global step. The patterns follow arcface_torch's format strings from 2021 to 2023. They are possessive
(`++`, `?+`) and never backtrack, so a hostile line takes no more time than any other.

A run that was stopped and resumed has written some steps twice, in one file or in the next. The later lines count: when
the step goes back, all earlier lines at this step or beyond are dropped. `facebones resume` does the same to its
metrics.jsonl.
"""

import io
import math
import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from facebones.data.text_lists import shown
from facebones.errors import DataError
from facebones.importers.notices import counts_batches, is_notice
from facebones.system.regular_files import open_regular

LONGEST_LINE = 1 << 16  # characters; a longer line is not from a log
MOST_SHOWN = 3  # lines that are not understood, and places where the step goes back
MOST_SETS, MOST_SETTINGS = 1000, 10_000  # a file with more is an attack on memory
VALUES = ("xnorm", "accuracy", "accuracy_std", "highest")

_FLAGS = re.ASCII | re.IGNORECASE
_NUMBER = r"([-+]?+(?:\d++(?:\.\d*+)?+(?:e[-+]?+\d++)?+|nan|inf(?:inity)?+)(?![\w.]))"
_COUNT = r"(\d{1,15}+)(?:/\d++)?+(?![\w.])"
_IS = r"\s*+[:=]?+\s*+"
_NEXT = r"[\s|,;]++"

_START = re.compile(r"Training:\s*+(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:[,.]\d++)?+\s*+-")
_COLOUR = re.compile(r"\x1b\[[0-9;:?]*+[ -/]*+[@-~]")  # and other orders to a terminal
# What logging, torchrun and cluster tools write before each line: times, levels, names of loggers and ranks.
_PREFIX = re.compile(
    r"(?:[\[(<]?+(?:\d{4}-\d\d-\d\d[ T]?+|\d\d:\d\d:\d\d(?:[.,]\d++)?+Z?+|DEBUG|INFO|WARNING|root"
    r"|(?:rank|default)_?+\d++|\d++)[\])>]?+[\s:|,-]*+)++",
    _FLAGS,
)
_PREFIX_SAYS = re.compile(r"\d{4}-\d\d-\d\d|:\d\d:|INFO|DEBUG|WARNING|\[?(?:rank|default)_?+\d", _FLAGS)
_TRAINING = re.compile(
    rf"\bSpeed{_IS}{_NUMBER}\s*+samples/s(?:ec)?+{_NEXT}Loss{_IS}{_NUMBER}{_NEXT}"
    rf"(?:(?:Learning\s?+Rate|LR){_IS}{_NUMBER}{_NEXT})?+"
    rf"Epoch{_IS}{_COUNT}{_NEXT}Global\s*+Step{_IS}{_COUNT}"
    rf"(?:{_NEXT}Fp16\s*+Grad\s*+Scale{_IS}{_NUMBER})?+"
    rf"(?:{_NEXT}Required{_IS}{_NUMBER}\s*+hours?+([\s,;|(\[].*+)?+)?+\s*+\Z",
    _FLAGS,
)
_RATE_BEHIND = re.compile(rf"\b(?:lr(?:_backbone_value)?+|Learning\s?+Rate){_IS}{_NUMBER}", _FLAGS)
_VALIDATION = re.compile(
    r"(?<![^\s:>-])\[([^\[\]]{1,200}+)\]\s*+\[(\d{1,15}+)\]\s*+"
    rf"(?:(XNorm){_IS}{_NUMBER}|(Accuracy-Flip){_IS}{_NUMBER}\s*+\+-\s*+{_NUMBER}|(Accuracy-Highest){_IS}{_NUMBER})\s*+\Z",
    _FLAGS,
)
_SETTING = re.compile(r":[ \t]++(?=[A-Za-z_])(\S++)(.*)\Z", re.DOTALL)
# Ends of complete lines: without a line feed, only a line with such an end is trusted.
_WRITTEN_OUT = re.compile(r"(?:hours|XNorm: \S++(?<=\.\d{6})|(?:\+-|Highest: )\d\.\d{5})\s*+\Z", _FLAGS)
_SETTING_COLUMN = 25  # values of settings begin here; a longer name is followed by its value without a space


class Training(NamedTuple):
    """The values of a training line; NaN for a missing number."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_scale: float
    images_per_second: float


class Measurement(NamedTuple):
    """One of the three lines of a validation: its values by name, NaN for a missing number."""

    set_name: str
    step: int
    values: dict[str, float]


class Setting(NamedTuple):
    """A line of the configuration, which is printed before a training."""

    name: str
    value: str


class Notice(NamedTuple):
    """A known line without a value to keep.

    Attributes:
        without_step: whether it is a training line that gives no global step.
    """

    without_step: bool = False


Content = Training | Measurement | Setting | Notice


class Message(NamedTuple):
    """One message of a log.

    Attributes:
        text: without the time before it.
        time: "2022-02-17 20:06:49", or "" if missing.
        ended: whether it is known to be complete; a killed program may have cut it.
    """

    text: str
    time: str
    ended: bool


def split_messages(line: str) -> Iterator[Message]:
    r"""Yield the messages of a line: several if a killed program left a part and the next program wrote behind it.

    >>> [message.text for message in split_messages("Speed 31Training: 2022-02-17 20:06:49,083-rank_id: 0\n")]
    ['Speed 31', 'rank_id: 0']
    """
    # A power failure leaves NULs in place of text that was not yet on disk.
    line = _COLOUR.sub("", line) if "\x1b" in line else line
    pieces = line.replace("\0", "").replace("\ufeff", "").rstrip("\n").split("\r")
    for number, piece in enumerate(pieces):
        ended = number + 1 < len(pieces) or line.endswith("\n")
        parts = _START.split(piece)  # text, time, text, time, text, ...
        for place in range(2 if len(parts) > 1 and _is_prefix(parts[0]) else 0, len(parts), 2):
            if text := parts[place].strip():
                yield Message(text, parts[place - 1] if place else "", ended if place + 2 >= len(parts) else False)


def _is_prefix(text: str) -> bool:
    """Whether a text before the first message is what a logger writes before each, rather than a message cut short."""
    return bool(_PREFIX.fullmatch(text.strip()) and _PREFIX_SAYS.search(text))


def read_message(message: Message) -> Content | None:
    """The content of a message; None if it is unknown or may be incomplete."""
    text = message.text
    if not message.ended and not _WRITTEN_OUT.search(text):
        return None
    if found := _TRAINING.search(text):
        speed, loss, rate, epoch, step, scale, _, behind = found.groups()
        if behind and _TRAINING.search(behind):  # two lines in one: which is cut?
            return None
        if rate is None and behind and (late := _RATE_BEHIND.search(behind)):
            rate = late[1]
        return Training(int(step), int(epoch), _finite(loss), _finite(rate), _finite(scale), _finite(speed))
    if found := _VALIDATION.search(text):
        return _measurement(*found.groups())
    if found := _SETTING.match(text):
        return _setting(found[1], found[2])
    if counts_batches(text):
        return Notice(without_step=True)
    return Notice() if is_notice(text) else None


def _measurement(set_name: str, step: str, *groups: str | None) -> Measurement | None:
    has_xnorm, xnorm, has_accuracy, accuracy, deviation, _, highest = groups
    if has_xnorm:
        values = {"xnorm": _finite(xnorm)}
    elif has_accuracy:
        values = {"accuracy": _finite(accuracy), "accuracy_std": _finite(deviation)}
    else:
        values = {"highest": _finite(highest)}
    in_range = all(not math.isfinite(value) or 0 <= value <= 1 for name, value in values.items() if name != "xnorm")
    return Measurement(set_name.strip(), int(step), values) if in_range and set_name.strip().isprintable() else None


def _setting(word: str, rest: str) -> Setting:
    if len(word) > _SETTING_COLUMN and (glued := re.match(r"([A-Za-z_]+)(.*)", word + rest, re.ASCII | re.DOTALL)):
        word, rest = glued.groups()
    return Setting(word, rest.strip())


def _finite(number: str | None) -> float:
    value = float(number) if number else math.nan
    return value if math.isfinite(value) else math.nan


# --------------------------------------------------------------------------------------------------- whole files


class Place(NamedTuple):
    """A line of a file, and its number among all lines read."""

    path: Path
    line: int
    serial: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


@dataclass
class LogFile:
    """The content of one file; `steps` are the first and the last of its training lines."""

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


class TrainingLines:
    """Training lines by rising step, as columns of numbers: a log may have millions."""

    def __init__(self) -> None:
        self.columns: dict[str, array[Any]] = {
            name: array("q" if name in ("step", "epoch") else "d") for name in Training._fields
        }
        self.serials = array("q")

    def __len__(self) -> int:
        return len(self.serials)

    @property
    def last_step(self) -> int:
        """Step of the last line; -1 without lines."""
        return int(self.columns["step"][-1]) if len(self) else -1

    def cut(self, step: int) -> tuple[int, int]:
        """Drop the lines at a step and beyond; return how many, and the serial number of the first."""
        place = bisect_left(self.columns["step"], step)
        removed, first = len(self) - place, self.serials[place]
        for column in (*self.columns.values(), self.serials):
            del column[place:]
        return removed, first

    def append(self, line: Training, serial: int) -> None:
        """Add a line after the last."""
        for column, value in zip(self.columns.values(), line, strict=True):
            column.append(value)
        self.serials.append(serial)


class Validations:
    """Validations by set and rising step.

    A validation counts when its accuracy is known; `highest` may follow, or be missing. `open` holds those that still
    lack their accuracy. The values of a validation are those that are printed; NaN if that is not finite.
    """

    def __init__(self) -> None:
        self.of_set: dict[str, list[tuple[int, int, dict[str, float]]]] = {}  # (serial, step, values)
        self.open: dict[str, tuple[int, dict[str, float]]] = {}
        self.replaced = self.incomplete = self.repeated_lines = 0

    def add(self, line: Measurement, serial: int) -> None:
        """Add one of the three lines of a validation."""
        step, values = self.open.get(line.set_name, (line.step, {}))
        if not values and self._belongs_to_last(line):
            return
        twice = line.values.keys() & values.keys()
        if step == line.step and twice and _same(values, line.values):
            self.repeated_lines += 1
            return
        if step != line.step or twice:  # the program was killed during the open one
            self.incomplete += 1
            values = {}
        values |= line.values
        if "accuracy" in values:
            self.open.pop(line.set_name, None)
            self._append(line.set_name, (serial, line.step, values))
        else:
            self.open[line.set_name] = (line.step, values)

    def cut(self, step: int, serial: int) -> None:
        """Drop validations at a step and beyond that were read after a line."""
        for rows in self.of_set.values():
            while rows and rows[-1][1] >= step and rows[-1][0] > serial:
                rows.pop()
                self.replaced += 1

    def rows(self) -> list[dict[str, Any]]:
        """The validations by step, with the best accuracy of each set so far."""
        rows, best = [], dict.fromkeys(self.of_set, math.nan)
        found = [(row[1], place, row[2]) for place, name in enumerate(self.of_set) for row in self.of_set[name]]
        names = list(self.of_set)
        for step, place, printed in sorted(found, key=lambda each: each[:2]):
            name = names[place]
            # A restarted program forgets its highest accuracy.
            values = dict.fromkeys(VALUES, math.nan) | printed
            highest = [value for value in (best[name], values["highest"], values["accuracy"]) if not math.isnan(value)]
            best[name] = max(highest, default=math.nan)
            rows.append({"set": name, "step": step, **values, "best_accuracy": best[name]})
        return rows

    @property
    def not_finite(self) -> int:
        """Number of validations of which a printed number is not finite."""
        printed = (values for rows in self.of_set.values() for _, _, values in rows)
        return sum(any(math.isnan(value) for value in values.values()) for values in printed)

    def _belongs_to_last(self, line: Measurement) -> bool:
        """Whether the line repeats one of the last validation of its set, or completes it; XNorm begins a new one."""
        rows = self.of_set.get(line.set_name)
        if not rows or "xnorm" in line.values or rows[-1][1] != line.step:
            return False
        values = rows[-1][2]
        if "highest" in line.values and "highest" not in values:
            values |= line.values
            return True
        repeats = _same(values, line.values)
        self.repeated_lines += repeats
        return repeats

    def _append(self, name: str, row: tuple[int, int, dict[str, float]]) -> None:
        rows = self.of_set.setdefault(name, [])
        while rows and rows[-1][1] >= row[1]:
            rows.pop()
            self.replaced += 1
        rows.append(row)


class TrainingLogs:
    """The content of the log files of one run, read one after the other.

    Attributes:
        training: the training lines that count.
        validations: the validations that count.
        configurations: name -> value as printed, one for each start of the program; immediate repetitions count once.
        without_step: number of training lines that give no global step and are left out.
        back: the first few places where the step goes back: (place, from step, to step, lines dropped, lines left).
        not_understood: the first few such lines: (place, printable text).
    """

    def __init__(self) -> None:
        self.files: list[LogFile] = []
        self.training, self.validations = TrainingLines(), Validations()
        self.configurations: list[dict[str, str]] = []
        self.settings = self.settings_left_out = 0
        self.back: list[tuple[Place, int, int, int, int]] = []
        self.times_back = self.replaced = self.without_step = 0
        self.not_understood: list[tuple[Place, str]] = []
        self._serial = 0

    def read(self, path: Path) -> None:
        """Read a file, line by line.

        Raises:
            DataError: it cannot be read, or has no line of a training log.
        """
        found = LogFile(path)
        for found.lines, line in _lines(path):
            self._serial += 1
            self._read_line(line, found, Place(path, found.lines, self._serial))
        if not found.lines:
            raise DataError(f"{path}: is empty; leave it out or give the text log of a training")
        if not found.understood:
            none = "its only line is not" if found.lines == 1 else f"none of its {found.lines} lines is"
            raise DataError(f"{path}: {none} from a known training log; give the text log of a training")
        self.files.append(found)

    def _read_line(self, line: str, found: LogFile, place: Place) -> None:
        bad = [message for message in split_messages(line) if not self._take(message, found, place)]
        if bad:
            found.not_understood += 1
            if len(self.not_understood) < MOST_SHOWN:
                self.not_understood.append((place, shown(bad[0].text.encode())))

    def _take(self, message: Message, found: LogFile, place: Place) -> bool:
        """Add the content of a message; return whether it was understood."""
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
        elif isinstance(content, Notice):
            self.without_step += content.without_step
        if content is not None:
            found.understood += 1
            found.times = [*found.times[:1], message.time] if message.time else found.times
        return content is not None

    def _add_training(self, line: Training, place: Place) -> None:
        last = self.training.last_step
        if line.step <= last:
            removed, serial = self.training.cut(line.step)
            self.replaced += removed
            self.validations.cut(line.step, serial)
            if line.step < last:
                self.times_back += 1
                self.back = [*self.back, (place, last, line.step, removed, len(self.training))][:MOST_SHOWN]
        self.training.append(line, place.serial)

    def _add_setting(self, setting: Setting) -> None:
        current = self.configurations[-1] if self.configurations else None
        if current and current.get(setting.name) == setting.value and next(reversed(current)) == setting.name:
            return  # the program logs to the screen and to the file, and both are here
        if self.settings == MOST_SETTINGS:
            self.settings_left_out += 1
            return
        if current is None or setting.name in current:
            self.configurations.append(current := {})
        current[setting.name] = setting.value
        self.settings += 1


def read_logs(paths: Sequence[Path]) -> TrainingLogs:
    """Read the log files of one run, in the order in which they were written.

    Raises:
        DataError: a file cannot be read, has no line of a training, or is given twice.
    """
    real = [os.path.realpath(path) for path in paths]
    if twice := [path for place, path in enumerate(paths) if real[place] in real[:place]]:
        raise DataError(f"{twice[0]}: given twice; give each log once, in the order of writing")
    logs = TrainingLogs()
    for path in paths:
        logs.read(path)
    if not len(logs.training) and not any(logs.validations.of_set.values()):
        names = ", ".join(str(path) for path in paths[:MOST_SHOWN])
        raise DataError(
            f"{names}: no training line with a global step and no validation; give the log of a training that has begun"
        )
    return logs


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line with its line feed); a line that is too long is cut and lacks it."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the log in it, such as {path / 'training.log'}")
    try:
        with open_regular(path) as raw:
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


def _same(values: dict[str, float], others: dict[str, float]) -> bool:
    """Whether the values that both have are equal; NaN equals NaN."""
    both = values.keys() & others.keys()
    return all(values[key] == others[key] or (math.isnan(values[key]) and math.isnan(others[key])) for key in both)
