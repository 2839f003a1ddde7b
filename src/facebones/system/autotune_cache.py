"""Measurements of this machine, cached for the user: each is made once, and later runs decide the same.

There is one JSON file per kind of measurement, `~/.cache/facebones/KIND.json` (or under `$XDG_CACHE_HOME`). It maps the
conditions of a measurement to its value. Anyone may edit these files, so the caller checks what it loads.
"""

import fcntl
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from facebones.errors import FaceBonesError
from facebones.system.files import cache_folder, write_json
from facebones.system.progress import say

LARGEST_FILE = 2**20  # bytes


def load_measurement(kind: str, conditions: str) -> Any:
    """Load the value that was measured under these conditions, decoded from JSON; None if there is none."""
    return _read(_file(kind)).get(conditions)


def save_measurement(kind: str, conditions: str, value: Any) -> None:
    """Save a value that JSON can hold; a failure is printed, not raised."""
    path = _file(kind)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)  # processes that measure at the same time keep each other's values
            write_json(path, _read(path) | {conditions: value})
    except (FaceBonesError, OSError, ValueError) as error:  # ValueError: the file holds NaN
        say(f"the measurement is not saved: {error}")


def warn_unusable(kind: str, what: str) -> None:
    """Print that a loaded value makes no sense and is measured again."""
    say(f"{_file(kind)}: its entry for {what} is not understood and is ignored; measuring again")


def _file(kind: str) -> Path:
    return cache_folder() / f"{kind}.json"


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
        say(f"{path}: not understood and ignored; remove it")
        return {}
    return content
