"""Errors that a user can fix: each message is one line that says what is wrong, where, and how to fix it."""

import difflib
from collections.abc import Iterable
from typing import ClassVar

MOST_NAMES = 12  # in the list of an error
LONGEST_START, LONGEST_END = 2000, 1000  # letters of a message: it may quote a file, and must not be as long as one


class FaceBonesError(Exception):
    """Base of all errors that the command line prints as one line without a traceback.

    >>> str(DataError("a.csv: " + "x" * 10_000 + "; name it"))[1990:2040]
    'xxxxxxxxxx [... 7,016 letters ...] xxxxxxxxxxxxxxx'
    """

    exit_status: ClassVar[int] = 2

    def __str__(self) -> str:
        message = super().__str__()
        left_out = len(message) - LONGEST_START - LONGEST_END
        if left_out <= 0:
            return message
        return f"{message[:LONGEST_START]} [... {left_out:,} letters ...] {message[-LONGEST_END:]}"


class ConfigError(FaceBonesError):
    """A recipe or an option has an invalid value."""


class MissingExtraError(ConfigError):
    """An optional package is not installed; the extra of its name installs it."""

    def __init__(self, extra: str) -> None:
        super().__init__(f"{extra} is not installed; pip install 'facebones[{extra}]'")


class DataError(FaceBonesError):
    """A data set, pair list or image is missing, broken or unsuitable."""


class CheckpointError(FaceBonesError):
    """A checkpoint or run folder is missing, broken or belongs to another network."""


class UnknownNameError(FaceBonesError):
    """An unknown name; the message offers the nearest known one, or gives another hint."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "", hint: str = "") -> None:
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = hint or (f"did you mean '{nearest[0]}'?" if nearest else f"known: {some(known, MOST_NAMES)}")
        place = f"{where}: " if where else ""
        super().__init__(f"{place}unknown {kind} '{name:.100}'; {hint}")


class RunError(FaceBonesError):
    """The input is valid, but the run failed (non-finite loss, full disk)."""

    exit_status = 1


class DivergedError(RunError):
    """A loss or gradient is not finite: the same training would fail again."""


class UntrainedError(RunError):
    """No step of a training has changed the weights: the same training would end so again."""


def first_line(error: BaseException) -> str:
    """First line of the message of another library's error; the name of its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def some(names: Iterable[object], shown: int = 3) -> str:
    """The first names, and how many more there are.

    >>> some("abcde")
    'a, b, c and 2 more'
    """
    listed = [str(name) for name in names]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things.

    >>> counted(1, "image"), counted(2, "image"), counted(2, "identity", "identities")
    ('1 image', '2 images', '2 identities')
    """
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
