"""What does not change about the registered backbones, read from a file, so that listing them needs no torch.

`facebones backbones --catalogue` prints the file anew; a test holds it to be up to date.
"""

import importlib.util
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from facebones.errors import MissingExtraError, UnknownNameError

CATALOGUE = Path(__file__).with_name("catalogue.json")
COUNTS = ("parameters", "unused_parameters", "macs")
KEYS = ("name", "aliases", "summary", *COUNTS, "needs")


def read_catalogue() -> list[dict[str, Any]]:
    """Name, aliases, summary, counts and needed extra (or None) of every backbone, in the order of registration."""
    rows: list[dict[str, Any]] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return rows


def catalogued_backbones(pattern: str = "*") -> list[dict[str, Any]]:
    """What `efficiency.describe_backbones` says of our own backbones that match a shell pattern, or whose alias does.

    A backbone whose extra is not installed has None for its figures and the reason under "problem".

    Raises:
        UnknownNameError: none matches.

    >>> [row["macs"] for row in catalogued_backbones("r50")]
    [6309330944]
    """
    rows = read_catalogue()
    found = [row for row in rows if any(fnmatchcase(known, pattern) for known in (row["name"], *row["aliases"]))]
    if not found:
        raise UnknownNameError("backbone", pattern, [row["name"] for row in rows])
    return [_as_installed(row) for row in found]


def _as_installed(row: Mapping[str, Any]) -> dict[str, Any]:
    needs = row["needs"]
    missing = needs is not None and importlib.util.find_spec(needs) is None
    problem = str(MissingExtraError(needs)) if missing else None
    known = {key: row[key] for key in ("name", "aliases", "summary")} | {"problem": problem}
    return known | {key: None if missing else row[key] for key in COUNTS}


def format_catalogue(rows: Iterable[Mapping[str, Any]]) -> str:
    """The file's content: JSON with a line for each backbone, so that a difference shows where it is."""
    lines = (json.dumps({key: row[key] for key in KEYS}, ensure_ascii=False) for row in rows)
    return "[\n" + ",\n".join(lines) + "\n]\n"
