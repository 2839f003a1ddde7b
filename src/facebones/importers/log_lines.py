"""What one line of the text log of InsightFace's arcface_torch says, or of programs derived from it.

A training line gives speed, loss, learning rate, epoch (from 0), global step, gradient scale in fp16, and the hours
left; the oldest have no learning rate, some no colons. A validation is three lines that begin with [set][step]: XNorm,
Accuracy-Flip (mean over the folds +- standard deviation), Accuracy-Highest (since the program was started). Read from
arcface_torch's format strings as of 2021 to 2023.

The patterns never try a second way through the same characters (`++`, `?+`), so that a hostile line costs no more time
than another.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_FLAGS = re.ASCII | re.IGNORECASE
_NUMBER = r"([-+]?+(?:\d++(?:\.\d*+)?+(?:e[-+]?+\d++)?+|nan|inf(?:inity)?+)(?![\w.]))"
_COUNT = r"(\d{1,15}+)(?:/\d++)?+(?![\w.])"
_IS = r"\s*+[:=]?+\s*+"
_NEXT = r"[\s|,;]++"

_START = re.compile(r"Training:\s*+(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:[,.]\d++)?+\s*+-")
_TRAINING = re.compile(
    rf"\bSpeed{_IS}{_NUMBER}\s*+samples/s(?:ec)?+{_NEXT}Loss{_IS}{_NUMBER}{_NEXT}"
    rf"(?:(?:Learning\s?+Rate|LR){_IS}{_NUMBER}{_NEXT})?+"
    rf"Epoch{_IS}{_COUNT}{_NEXT}Global\s*+Step{_IS}{_COUNT}"
    rf"(?:{_NEXT}Fp16\s*+Grad\s*+Scale{_IS}{_NUMBER})?+(?:{_NEXT}Required{_IS}{_NUMBER}\s*+hours?+)?+\s*+\Z",
    _FLAGS,
)
_VALIDATION = re.compile(
    r"(?<![^\s:>-])\[([^\[\]]{1,200}+)\]\s*+\[(\d{1,15}+)\]\s*+"
    rf"(?:(XNorm){_IS}{_NUMBER}|(Accuracy-Flip){_IS}{_NUMBER}\s*+\+-\s*+{_NUMBER}|(Accuracy-Highest){_IS}{_NUMBER})\s*+\Z",
    _FLAGS,
)
_SETTING = re.compile(r":[ \t]++(?=[A-Za-z_])(\S++)(.*)\Z", re.DOTALL)
_NOTICE = re.compile(
    r"rank_id: \d++\Z|Reducer buckets have been rebuilt in this iteration\.?+\Z|testing verification\.*+\Z"
    r"|\(\d++, \d++\)\Z|infer time \d++(?:\.\d++)?+\Z",
    _FLAGS,
)
# How lines end that were written to their end: only these are trusted where the line feed behind them is missing.
_WRITTEN_OUT = re.compile(r"(?:hours|XNorm: \S++(?<=\.\d{6})|(?:\+-|Highest: )\d\.\d{5})\s*+\Z", _FLAGS)
_SETTING_COLUMN = 25  # values of settings begin here; a name that reaches it is followed by its value without a blank


class Training(NamedTuple):
    """The figures of a training line; NaN where there is no number."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_scale: float
    images_per_second: float


class Measurement(NamedTuple):
    """One of the three lines of a validation: its figures by name, NaN where there is no number."""

    set_name: str
    step: int
    figures: dict[str, float]


class Setting(NamedTuple):
    """A line of the configuration that is printed before a training."""

    name: str
    value: str


class Notice(NamedTuple):
    """A line that is known and holds no figure that we keep."""


Content = Training | Measurement | Setting | Notice


class Message(NamedTuple):
    """What was written at once.

    Attributes:
        text: without the time before it.
        time: "2022-02-17 20:06:49", or "" where there is none.
        ended: whether its end is known; that of a killed program may be missing.
    """

    text: str
    time: str
    ended: bool


def split_messages(line: str) -> Iterator[Message]:
    r"""Yield the messages of a line: several where a killed program left one half and the next one wrote behind it.

    >>> [message.text for message in split_messages("Speed 31Training: 2022-02-17 20:06:49,083-rank_id: 0\n")]
    ['Speed 31', 'rank_id: 0']
    """
    # A power failure leaves NULs where the file system had not yet put the text.
    pieces = line.replace("\0", "").replace("\ufeff", "").rstrip("\n").split("\r")
    for number, piece in enumerate(pieces):
        ended = number + 1 < len(pieces) or line.endswith("\n")
        parts = _START.split(piece)  # text, time, text, time, text, ...
        for place in range(0, len(parts), 2):
            if text := parts[place].strip():
                yield Message(text, parts[place - 1] if place else "", ended if place + 2 >= len(parts) else False)


def read_message(message: Message) -> Content | None:
    """What a message says, or None where it is not understood, or may be cut short."""
    text = message.text
    if not message.ended and not _WRITTEN_OUT.search(text):
        return None
    if found := _TRAINING.search(text):
        speed, loss, rate, epoch, step, scale, _ = found.groups()
        return Training(int(step), int(epoch), _finite(loss), _finite(rate), _finite(scale), _finite(speed))
    if found := _VALIDATION.search(text):
        return _measurement(*found.groups())
    if found := _SETTING.match(text):
        return _setting(found[1], found[2])
    return Notice() if _NOTICE.match(text) else None


def _measurement(set_name: str, step: str, *groups: str | None) -> Measurement | None:
    has_xnorm, xnorm, has_accuracy, accuracy, deviation, _, highest = groups
    if has_xnorm:
        figures = {"xnorm": _finite(xnorm)}
    elif has_accuracy:
        figures = {"accuracy": _finite(accuracy), "accuracy_std": _finite(deviation)}
    else:
        figures = {"highest": _finite(highest)}
    in_range = all(not math.isfinite(value) or 0 <= value <= 1 for name, value in figures.items() if name != "xnorm")
    return Measurement(set_name.strip(), int(step), figures) if in_range and set_name.strip().isprintable() else None


def _setting(word: str, rest: str) -> Setting:
    if len(word) > _SETTING_COLUMN and (glued := re.match(r"([A-Za-z_]+)(.*)", word + rest, re.ASCII | re.DOTALL)):
        word, rest = glued.groups()
    return Setting(word, rest.strip())


def _finite(number: str | None) -> float:
    value = float(number) if number else math.nan
    return value if math.isfinite(value) else math.nan
