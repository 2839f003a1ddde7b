"""What was measured of this machine, kept in the user's cache folder, so that it is measured once and decides alike.

One JSON file a kind of measurement, `~/.cache/facebones/KIND.json` or below `$XDG_CACHE_HOME`; in it, a value under the
conditions that it was measured in. Anything may have been written there by others, so whoever recalls a value checks
it.
"""

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from facebones.errors import FaceBonesError
from facebones.system.files import write_json
from facebones.system.progress import say

LARGEST_FILE = 2**20  # bytes


def recall(kind: str, conditions: str) -> Any:
    """What was kept under these conditions, as JSON has it; None where nothing is known."""
    return _read(_file(kind)).get(conditions)


def keep(kind: str, conditions: str, value: Any) -> None:
    """Keep a value that JSON can hold; where that fails, it is said, and nothing else is lost."""
    path = _file(kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            with suppress(OSError):  # some file systems of networks have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)  # of two that measure at once, both keep theirs
            write_json(path, _read(path) | {conditions: value})
    except (FaceBonesError, OSError, ValueError) as error:  # ValueError: another has left NaN there
        say(f"what was measured is not kept: {error}")


def say_ignored(kind: str, what: str) -> None:
    """Say that what was recalled makes no sense."""
    say(f"{_file(kind)}: what it says of {what} is not understood, so ignored; measuring anew")


def _file(kind: str) -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111 (never raises)
    return folder / "facebones" / f"{kind}.json"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("too large")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError):
        say(f"{path}: not understood, so ignored; remove it")
        return {}
    return content
