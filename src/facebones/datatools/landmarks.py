"""A table of landmarks that somebody has already: which five points an image is to be aligned by."""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.alignment import five_of_68
from facebones.data.images import ImageArray
from facebones.errors import DataError

POINTS = (5, 68)
FIELDS = tuple(1 + 2 * points for points in POINTS)


class LandmarkTable:
    """Landmarks from a CSV file: rows `path,x1,y1,x2,y2,...` with 5 or 68 points.

    Paths start from the folder of images. x goes to the right and y down, in pixels of the image as it is displayed,
    that is after the rotation that its EXIF data asks for; the centre of the first pixel is (0, 0). Five points are in
    the order of `align.REFERENCE`, 68 in that of the 300-W annotation. The first line may be a heading.

    Attributes:
        missing: why an image has no landmarks.

    Raises:
        DataError: the file is missing or no such table; with the line's number.
    """

    missing = "no landmarks"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
        self._fingerprint = hashlib.sha256(content).hexdigest()
        self._points = _read(self.path, content)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the landmarks."""
        return {"landmarks": self._fingerprint}

    def names(self) -> list[str]:
        """The paths of the table, in its order."""
        return list(self._points)

    def find(self, name: str, image_HxWx3: ImageArray) -> tuple[npt.NDArray[np.float64] | None, int]:
        """Look up an image.

        Args:
            name: its path inside the folder of images.
            image_HxWx3: not needed here.

        Returns:
            Landmarks (5, 2), or None; and of how many faces there was a choice.
        """
        points = self._points.get(name)
        return points, int(points is not None)


def _read(path: Path, content: bytes) -> dict[str, npt.NDArray[np.float64]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: not UTF-8 text; landmarks are a CSV file") from error
    found: dict[str, npt.NDArray[np.float64]] = {}
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for place, row in enumerate(row for row in reader if row):
            if place == 0 and _is_heading(row):
                continue
            name, points = _row(path, reader.line_num, row)
            if name in found:
                _fail(path, reader.line_num, f"{name} stands in the table twice; keep one face of an image")
            found[name] = points
    except csv.Error as error:
        _fail(path, reader.line_num, f"{error}; landmarks are a CSV file")
    if not found:
        raise DataError(f"{path}: holds no landmarks; a line is 'path,x1,y1,x2,y2,...' with 5 or 68 points")
    return found


def _is_heading(row: Sequence[str]) -> bool:
    """Whether no field after the first is a number."""
    return len(row) > 1 and all(_number(field) is None for field in row[1:])


def _row(path: Path, line: int, row: Sequence[str]) -> tuple[str, npt.NDArray[np.float64]]:
    name = os.path.normpath(row[0].strip())
    if len(row) not in FIELDS:
        wanted = " or ".join(f"{fields} ({points} points)" for fields, points in zip(FIELDS, POINTS, strict=True))
        _fail(path, line, f"{len(row)} fields instead of {wanted}")
    values = [_number(field) for field in row[1:]]
    if None in values:
        _fail(path, line, f"{row[1 + values.index(None)][:40]!r} is not a number")
    points = np.array(values, dtype=np.float64).reshape(-1, 2)
    return name, five_of_68(points) if len(points) == 68 else points


def _number(field: str) -> float | None:
    """The finite number that a field holds."""
    try:
        number = float(field)
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None


def _fail(path: Path, line: int, reason: str) -> NoReturn:
    raise DataError(f"{path}, line {line}: {reason}")
