"""Errors that a user can mend: each message is one line that says what, where and how to mend it."""

import difflib
from collections.abc import Iterable
from typing import ClassVar

MOST_NAMES = 12  # that an error lists


class FaceBonesError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""

    exit_status: ClassVar[int] = 2


class ConfigError(FaceBonesError):
    """A recipe or an option holds a value that cannot be used."""


class MissingExtraError(ConfigError):
    """A package is not installed, which the extra of its name brings."""

    def __init__(self, extra: str) -> None:
        super().__init__(f"{extra} is not installed; pip install 'facebones[{extra}]'")


class DataError(FaceBonesError):
    """A data set, pair list or image is missing, broken or unfit."""


class CheckpointError(FaceBonesError):
    """A checkpoint or run folder is missing, broken or belongs to another network."""


class UnknownNameError(FaceBonesError):
    """A name that is not among the known ones; the message offers the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(known[:MOST_NAMES])}{more}"
        place = f"{where}: " if where else ""
        super().__init__(f"{place}unknown {kind} '{name}'; {hint}")


class RunError(FaceBonesError):
    """The input was fine, but the run itself failed (non-finite loss, full disk while saving)."""

    exit_status = 1


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
