"""Files of quality scores: a line `image,score` for each image, higher is better; a heading may stand above them.

Fields are separated by a comma, a semicolon, a tab or blanks, so the lists that programs of quality assessment write
are read as they are; behind a semicolon or a tab, a score may have a decimal comma. Images have the names that a file
of groups uses.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facebones.data.text_lists import SHOWN_CHARACTERS, decimal, line_blocks
from facebones.errors import DataError, counted


def read_quality(path: Path, images: Sequence[str], set_name: str) -> npt.NDArray[np.float64]:
    """Read the score of each image.

    Args:
        path: the file, UTF-8.
        images: (N,) names of the images of the set.
        set_name: for errors.

    Returns:
        (N,) scores.

    Raises:
        DataError: the file is missing or broken, names what the set does not have, or lacks an image; names the line.
    """
    places = {name: place for place, name in enumerate(images)}
    found = np.full(len(images), np.nan)
    for first, block in line_blocks(path):
        for number, line in enumerate(block[:-1].split(b"\n"), first):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8 text; save the file as UTF-8") from error
            if not text:
                continue
            name, score = _fields(text)
            if score is None and number == 1 and not np.isfinite(found).any():
                continue  # a heading
            where = f"{path}, line {number}"
            if score is None or not math.isfinite(score):
                raise DataError(f"{where}: {text[:SHOWN_CHARACTERS]!r} is not 'image,score'; correct the line")
            place = places.get(name, places.get(name.removeprefix("./")))
            if place is None:
                raise DataError(
                    f"{where}: no image {name[:SHOWN_CHARACTERS]!r} in {set_name}; write names like {images[0]!r}"
                )
            if not np.isnan(found[place]):
                raise DataError(f"{where}: {name!r} has a score already; remove one of the lines")
            found[place] = score
    lacking = np.flatnonzero(np.isnan(found))
    if lacking.size:
        raise DataError(
            f"{path}: no score for {counted(lacking.size, 'image')} of {set_name}, such as {images[lacking[0]]!r};"
            " add them"
        )
    if found.min() == found.max():
        raise DataError(f"{path}: all scores are {found[0]:g}, which says nothing; give scores that differ")
    return found


def _fields(line: str) -> tuple[str, float | None]:
    """Name and score of a line; None where the last field is no number.

    >>> _fields("a.jpg;0,95"), _fields("a;b.jpg,0.95"), _fields('"a b.jpg" 3')
    (('a.jpg', 0.95), ('a;b.jpg', 0.95), ('a b.jpg', 3.0))
    """
    for separator in (";", "\t", ",", None):
        name, *rest = line.rsplit(separator, 1)
        if rest:
            with suppress(ValueError):
                return name.strip().strip('"'), float(rest[0]) if separator == "," else decimal(rest[0])
    return line, None
