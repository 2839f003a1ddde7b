"""Verification sets: the `.bin` files of the field, and pair lists in text."""

import mmap
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.folders import IMAGE_SUFFIXES
from facebones.data.pickles import PickledArray, read_pickle
from facebones.errors import DataError
from facebones.files import atomic_write


@dataclass(frozen=True)
class PairSet:
    """Pairs of face images to be told apart: same person or not.

    Attributes:
        name: the set's name, such as "lfw".
        images: 2P encoded images; pair k is images 2k and 2k + 1.
        is_same: (P,) whether a pair is genuine.
        path: the file that it was read from.
    """

    name: str
    images: Sequence[bytes]
    is_same: npt.NDArray[np.bool_]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.is_same)


def read_pairs(path: str | os.PathLike[str]) -> PairSet:
    """Read a `.bin` file, as Python 2 or 3 wrote it, without running anything that it may hold.

    Raises:
        DataError: the file is missing, is no pickle of `(images, is_same)`, or asks for more than plain data.
    """
    path = Path(path)
    content = _pickled(path)
    if not isinstance(content, list | tuple) or len(content) != 2:
        _refuse(path, f"holds {_kind(content)} instead of a pair (images, is_same)")
    images, is_same = content
    if not isinstance(images, list | tuple):
        _refuse(path, f"the images are {_kind(images)} instead of a list")
    same = _booleans(path, is_same)
    if not images:
        _refuse(path, "holds no image")
    if len(images) % 2:
        _refuse(path, f"{len(images)} images, an odd number; each pair needs two")
    if len(images) != 2 * len(same):
        _refuse(path, f"{len(images)} images for {len(same)} pairs; each pair needs two images")
    # A small file can name one image a million times: it is converted once.
    converted: dict[int, bytes] = {}
    for index, image in enumerate(images):
        if id(image) not in converted:
            converted[id(image)] = _image(path, index, image)
    return PairSet(path.stem, [converted[id(image)] for image in images], same, path)


def write_pairs(path: str | os.PathLike[str], images: Sequence[bytes], is_same: Sequence[bool] | npt.ArrayLike) -> None:
    """Write a `.bin` file that `pickle.load` reads as a list of bytes and a list of booleans.

    Args:
        path: where to write; the file appears when it is whole.
        images: 2P encoded images.
        is_same: P booleans.

    Raises:
        DataError: there are not two images for each boolean.
        RunError: the file cannot be written.
    """
    same = [bool(value) for value in np.asarray(is_same)]
    if not same or len(images) != 2 * len(same):
        raise DataError(f"{path}: {len(images)} images for {len(same)} pairs; each pair needs two images")
    with atomic_write(path) as file:
        pickle.dump(([bytes(image) for image in images], same), file, protocol=4)


def read_pair_list(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> PairSet:
    """Read a list of pairs in text, and the images it names.

    Two forms are known. LFW's `pairs.txt` starts with a line `folds pairs` (or `pairs` alone) and goes on with lines
    `name n m` (genuine) and `name n other m` (impostor), in each fold as many of the one as of the other; image n of
    a person is `root/name/name_000n.jpg`, or another image ending. Any other list has a line `image image 0|1` for
    each pair, with paths inside `root`, separated by tabs, commas or blanks.

    Raises:
        DataError: the list is missing, empty or broken, or an image is missing; with the line's number.
    """
    path, root = Path(path), Path(root)
    lines = [(number, fields) for number, line in enumerate(_text(path).splitlines(), 1) if (fields := _fields(line))]
    if not lines:
        raise DataError(f"{path}: holds no pair; a line is 'image image 0|1'")
    if all(field.isdecimal() for field in lines[0][1]) and len(lines[0][1]) <= 2:
        _check_count(path, lines[0][1], len(lines) - 1)
        pairs = [(number, *_lfw_pair(path, number, fields, root)) for number, fields in lines[1:]]
    else:
        pairs = [(number, *_plain_pair(path, number, fields)) for number, fields in lines]
    seen: dict[str, bytes] = {}
    images = []
    for number, first, second, _ in pairs:
        for name in (first, second):
            if name not in seen:
                seen[name] = _read_image(path, number, root, name)
            images.append(seen[name])
    return PairSet(path.stem, images, np.array([same for *_, same in pairs], dtype=np.bool_), path)


def _pickled(path: Path) -> object:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                _refuse(path, "the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return read_pickle(content, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _booleans(path: Path, values: object) -> npt.NDArray[np.bool_]:
    """Take a list or array of booleans, or of 0 and 1."""
    if isinstance(values, PickledArray):
        values = values.values.ravel().tolist()
    if not isinstance(values, list | tuple):
        _refuse(path, f"is_same is {_kind(values)} instead of a list")
    for index, value in enumerate(values):
        if not isinstance(value, int) or value not in (0, 1):
            shown = value if isinstance(value, int) else _kind(value)
            _refuse(path, f"is_same, pair {index}: {shown} instead of True or False")
    return np.array(values, dtype=np.bool_)


def _image(path: Path, index: int, image: object) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, PickledArray) and image.values.dtype == np.uint8:
        return image.values.tobytes()
    if isinstance(image, str):
        # A file of Python 2 that was read as latin-1 and saved again: each character is a byte.
        try:
            return image.encode("latin-1")
        except UnicodeEncodeError:
            pass
    _refuse(path, f"image {index} is {_kind(image)} instead of bytes")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise DataError(f"{path}: {reason}; not a verification set, or a broken one")


def _kind(value: object) -> str:
    if isinstance(value, PickledArray):
        return f"a numpy array of {value.values.dtype}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if value is not None else "None"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: not UTF-8 text; a pair list is a text file") from error


def _fields(line: str) -> list[str]:
    for separator in ("\t", ","):
        if separator in line:
            return [field.strip() for field in line.split(separator)]
    return line.split()


def _check_count(path: Path, header: list[str], pairs: int) -> None:
    counts = [int(field) for field in header]
    promised = 2 * (counts[0] * counts[1] if len(counts) == 2 else counts[0])
    if promised != pairs:
        raise DataError(f"{path}, line 1: promises {promised} pairs, but {pairs} lines follow; restore the list")


def _lfw_pair(path: Path, number: int, fields: list[str], root: Path) -> tuple[str, str, bool]:
    if len(fields) not in (3, 4) or not (fields[1].isdecimal() and fields[-1].isdecimal()):
        _fail_line(path, number, fields, "'name n m' or 'name n other m'")
    first, second = (fields[0], fields[1]), (fields[-2] if len(fields) == 4 else fields[0], fields[-1])
    return _lfw_image(root, *first), _lfw_image(root, *second), len(fields) == 3


def _lfw_image(root: Path, name: str, number: str) -> str:
    """Path inside `root` of a person's image; ends in .jpg where there is none, for the error to name."""
    stem = f"{name}/{name}_{int(number):04d}"
    endings = (".jpg", *sorted(IMAGE_SUFFIXES))
    return next((stem + ending for ending in endings if (root / (stem + ending)).is_file()), stem + ".jpg")


def _plain_pair(path: Path, number: int, fields: list[str]) -> tuple[str, str, bool]:
    if len(fields) != 3 or fields[2] not in ("0", "1"):
        _fail_line(path, number, fields, "'image image 0|1'")
    return fields[0], fields[1], fields[2] == "1"


def _fail_line(path: Path, number: int, fields: list[str], wanted: str) -> NoReturn:
    raise DataError(f"{path}, line {number}: {' '.join(fields)[:60]!r} is not {wanted}")


def _read_image(path: Path, number: int, root: Path, name: str) -> bytes:
    # The list may come from a stranger: it has no business with files outside of the folder it is used with.
    place = Path(os.path.normpath(root / name))
    if not place.is_relative_to(os.path.normpath(root)):
        raise DataError(f"{path}, line {number}: {name} leads out of {root}; name a folder that holds all images")
    try:
        return place.read_bytes()
    except OSError as error:
        raise DataError(f"{path}, line {number}: {place} cannot be read: {error.strerror}") from error
