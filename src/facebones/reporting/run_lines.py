"""The lines of a run's metrics.jsonl that a report shows: all of a short file, some hundred of a long one.

A training of months logs millions of lines, and a plot is a thousand points wide. So a long file is cut into buckets of
equal size, and of each one the first and the last line and those of the lowest and the highest loss are kept. Other
lines are matched to a pattern instead of being parsed, which takes a tenth of the time.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from facebones.run_folder import TRAIN_LINE, metrics_lines, parsed_line

WHOLE_BYTES = 2**20  # of a file whose lines are all kept: about 5,000
BUCKETS = 250  # of a longer file
MOST_VALIDATIONS = 4000  # of a run, unless it has hundreds of sets

Row = dict[str, Any]
Numbered = tuple[int, float | None, Row | bytes]  # number in the file, loss or accuracy, and the line itself
Check = Callable[[int, Any], Row]

# A line as the training writes it. JSON in another form is as good, and parsed.
_NUMBER = rb"-?\d{1,30}(?:\.\d{0,30})?(?:e[-+]?\d{1,3})?"
_TRAINED = re.compile(
    re.escape(TRAIN_LINE) + rb'"step": \d{1,15}, (?:"epoch": \d{1,15}, )?"loss": (' + _NUMBER + rb")(?:, [ -~]*)?\}\n"
)


def run_lines(path: Path, check: Check) -> list[Row]:
    """Read the lines of a metrics.jsonl, or those that show its course; the same file gives the same lines.

    The first and the last line and the extremes of the loss are always among them, and so are all validations, up to
    MOST_VALIDATIONS; of more, the extremes of the accuracy on each set are kept. Memory does not grow with the file.

    Args:
        path: the file.
        check: takes the number and the content of a line, raises if a report cannot use it, and returns it as it is
            shown. Lines that are left out are checked for their beginning and the loss alone.

    Raises:
        DataError: the file cannot be read, or a line is not JSON; names the line.
    """
    size = path.stat().st_size
    width = size / BUCKETS if size > WHOLE_BYTES else 0.0
    kept: list[Numbered] = []
    validations: list[Numbered] = []
    bucket: list[Numbered] = []
    position, end = 0, width
    for number, line in metrics_lines(path):
        found = _TRAINED.fullmatch(line)
        if found:
            bucket.append((number, float(found[1]), line))
        else:
            row = check(number, parsed_line(path, number, line))
            if row["kind"] == "validation":
                validations.append((number, row["accuracy"], row))
            else:
                bucket.append((number, row.get("loss"), row))
        position += len(line)
        if position >= end:
            kept += [_parsed(path, each, check) for each in course(bucket)]
            bucket, end = [], max(end + width, position)
            if len(validations) > 2 * MOST_VALIDATIONS:
                validations = _fewer(validations)
    kept += [_parsed(path, each, check) for each in course(bucket)]
    if len(validations) > MOST_VALIDATIONS:
        validations = _fewer(validations)
    return [row for _, _, row in sorted([*kept, *validations], key=lambda each: each[0]) if isinstance(row, dict)]


def course(lines: Sequence[Numbered]) -> list[Numbered]:
    """The first and the last line, the last one with a value, and those of the lowest and the highest value.

    >>> course([(number, value, {}) for number, value in enumerate([5, 9, 7, 3, 4, 6, None])])
    [(0, 5, {}), (1, 9, {}), (3, 3, {}), (5, 6, {}), (6, None, {})]
    """
    valued = [(value, place) for place, (_, value, _) in enumerate(lines) if value is not None]
    places = {0, len(lines) - 1} if lines else set()
    if valued:
        places |= {min(valued)[1], max(valued)[1], valued[-1][1]}
    return [lines[place] for place in sorted(places)]


def _fewer(validations: Sequence[Numbered]) -> list[Numbered]:
    """Half of MOST_VALIDATIONS, in the order of the sets."""
    sets: dict[str, list[Numbered]] = {}
    for line in validations:
        sets.setdefault(line[2]["set"], []).append(line)  # type: ignore[call-overload] # a row
    each = max(1, MOST_VALIDATIONS // (8 * len(sets)))  # buckets of a set
    return [line for own in sets.values() for bucket in _cut(own, each) for line in course(bucket)]


def _cut(lines: Sequence[Numbered], parts: int) -> Iterator[Sequence[Numbered]]:
    return (lines[part * len(lines) // parts : (part + 1) * len(lines) // parts] for part in range(parts))


def _parsed(path: Path, line: Numbered, check: Check) -> Numbered:
    number, value, content = line
    return (number, value, check(number, parsed_line(path, number, content)) if isinstance(content, bytes) else content)
