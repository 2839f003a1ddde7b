"""The built-in backbones without building them: names, summaries and counts from a file, so that no torch is needed.

`facebones backbones --catalogue` prints the file; tests fail if it is out of date.
"""

import importlib.util
import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from facebones.errors import MissingExtraError, UnknownNameError

CATALOGUE = Path(__file__).with_name("catalogue.json")
PUBLISHED = Path(__file__).with_name("published_costs.json")
COUNTS = ("parameters", "unused_parameters", "macs")
KEYS = ("name", "aliases", "summary", *COUNTS, "needs", "family")


@cache
def read_catalogue() -> tuple[dict[str, Any], ...]:
    """The rows of the file, in the order of registration.

    Each has "name", "aliases", "summary", the counts of the network with 512-d embeddings ("parameters",
    "unused_parameters", "macs"), "needs" (the extra that it needs, or None) and "family" (the file that builds it).
    """
    text = CATALOGUE.read_text(encoding="utf-8")
    return tuple(json.loads(text or "[]"))  # empty while `backbones --catalogue > FILE` runs


@cache
def read_published() -> Mapping[str, Any]:
    """What others have published of the cost of the backbones: facts as they are printed, each with its source.

    "sources" are by key; each of "rows" has "backbone", "source" (a key), "parameters" and "flops" as printed (such as
    "0.99 M"), None for what is not printed, and perhaps "embedding_size" (512 if absent), "called" (the source's name
    of the network) and "remark".
    """
    content: Mapping[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return content


def catalogued_backbones(pattern: str = "*") -> list[dict[str, Any]]:
    """The built-in backbones whose name or alias matches a shell pattern, as `profiling.cost.describe_backbones`.

    A backbone whose extra is not installed has None for its counts and the reason under "problem".

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
    """The file's text: JSON with one backbone per line, so that diffs are readable."""
    lines = (json.dumps({key: row[key] for key in KEYS}, ensure_ascii=False) for row in rows)
    return "[\n" + ",\n".join(lines) + "\n]\n"
