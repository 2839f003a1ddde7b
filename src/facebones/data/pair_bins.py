"""Verification sets: InsightFace's `.bin` files, pickles of encoded images and labels."""

import mmap
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.safe_pickle import PickledArray, read_pickle
from facebones.errors import DataError


@dataclass(frozen=True)
class PairSet:
    """Pairs of face images, each of the same person or of two.

    Attributes:
        name: the set's name, such as "lfw".
        images: 2P encoded images; pair k is images 2k and 2k + 1.
        is_same: (P,) bool, True for a genuine pair.
        path: the file that the set was read from.
    """

    name: str
    images: Sequence[bytes]
    is_same: npt.NDArray[np.bool_]
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.is_same)


def read_pairs(path: str | os.PathLike[str]) -> PairSet:
    """Read a `.bin` file that Python 2 or 3 wrote, without running any code in it.

    Raises:
        DataError: the file is missing, is not a pickle of `(images, is_same)`, or asks for more than plain data.
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
    # A small file can refer to one image a million times: convert it once.
    converted: dict[int, bytes] = {}
    for index, image in enumerate(images):
        if id(image) not in converted:
            converted[id(image)] = _image(path, index, image)
    return PairSet(path.stem, [converted[id(image)] for image in images], same, path)


def write_pairs(path: str | os.PathLike[str], images: Sequence[bytes], is_same: Sequence[bool] | npt.ArrayLike) -> None:
    """Write a `.bin` file that `pickle.load` reads as a list of bytes and a list of booleans.

    Args:
        path: the file; it appears when it is complete.
        images: 2P encoded images.
        is_same: P booleans.

    Raises:
        DataError: there are not two images for each boolean.
        RunError, ConfigError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "pairs.bin"
    >>> write_pairs(path, [b"one", b"another"], [True])
    >>> read_pairs(path).images
    [b'one', b'another']
    """
    from facebones.system.files import atomic_write

    same = [bool(value) for value in np.asarray(is_same)]
    if not same or len(images) != 2 * len(same):
        raise DataError(f"{path}: {len(images)} images for {len(same)} pairs; each pair needs two images")
    with atomic_write(path) as file:
        pickle.dump(([bytes(image) for image in images], same), file, protocol=4)


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
    """Convert a list or array of booleans, or of 0 and 1."""
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
        # Bytes of Python 2 that were read as latin-1 and saved again: each character is a byte.
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
