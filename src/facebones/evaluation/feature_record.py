"""The records beside a file of features: which images are complete.

One process keeps `NAME.features.json`. Several processes leave it as it was at their start, and each keeps a record
`NAME.features.RANK.json` of its own part; the next pass, of any number of processes, joins them all. Each pass has an
identifier in all of its records, so that a part of an earlier pass is never taken for one of the present file.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from facebones.system.regular_files import open_regular

Ranges = list[tuple[int, int]]  # [start, stop) of images: ascending, apart from each other

LARGEST_RECORD = 2**20
MOST_PARTS = 10_000


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges that cover the same numbers, ascending and apart.

    >>> merged([(8, 12), (0, 4), (4, 8), (20, 22)])
    [(0, 12), (20, 22)]
    """
    found: Ranges = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        elif start < stop:
            found.append((start, stop))
    return found


def prefix(ranges: Ranges) -> int:
    """The number of images from the first on that ranges cover.

    >>> prefix([(0, 12), (20, 22)]), prefix([(4, 8)])
    (12, 0)
    """
    return ranges[0][1] if ranges and ranges[0][0] == 0 else 0


def read_ranges(value: object, images: int, batch_size: int) -> Ranges:
    """Ranges of whole batches, from a file.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, list):
        raise ValueError("no list")
    ranges = []
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):
            raise ValueError("no ranges")
        start, stop = pair
        if not 0 <= start < stop <= images or start % batch_size or (stop % batch_size and stop != images):
            raise ValueError("no whole batches")
        ranges.append((start, stop))
    return merged(ranges)


def read_record(path: Path) -> dict[str, Any]:
    """The object in a file of JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no object.
    """
    with open_regular(path) as file:
        text = file.read(LARGEST_RECORD)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError("is not a record of features")
    return content


def part_path(record: Path, rank: int) -> Path:
    """The record of one process's part: beside the record of the whole."""
    return record.with_name(f"{record.stem}.{rank}.json")


def part_paths(record: Path) -> list[Path]:
    """The records of parts that are there."""
    pattern = re.compile(re.escape(record.stem) + r"\.\d{1,6}\.json")
    with os.scandir(record.parent) as entries:
        names = sorted(entry.name for entry in entries if pattern.fullmatch(entry.name))
    return [record.with_name(name) for name in names[:MOST_PARTS]]
