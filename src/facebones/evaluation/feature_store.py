"""Features that outgrow the memory or must survive a stop: written to disk as they come, and taken up again.

`NAME.features.npy` has its full size from the start, so that a full disk shows in the first minute. Beside it,
`NAME.features.json` says what the features are of, and how many images are complete. That number is written after the
rows are safe on the disk, so what it promises is there, whenever the process or the machine dies.

Files of other weights, images or settings are refused, not replaced: they may have taken hours, and the difference may
be a slip of the pen.
"""

import fcntl
import io
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from facebones.errors import ConfigError
from facebones.system.files import cannot_write, check_writable, map_array, write_json

Features = npt.NDArray[np.float32]

SYNC_SECONDS = 10.0  # of work that a stop can cost
LARGEST_RECORD = 2**16


class FeatureArray:
    """Features in memory.

    Args:
        images: N.

    Attributes:
        complete: images that have their features.
    """

    def __init__(self, images: int) -> None:
        self.complete = 0
        self._images = images
        # One array from the start: small results kept between the large inputs would tear the heap (1 GB for LFW).
        self._features = np.empty((images, 0, 0), dtype=np.float32)  # (N, V, D), known after the first batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def append(self, answers: Features) -> None:
        """Take the features (B, V, D) of the next B images."""
        if not self._features.size:
            self._features = np.empty((self._images, *answers.shape[1:]), dtype=np.float32)
        self._features[self.complete : self.complete + len(answers)] = answers
        self.complete += len(answers)

    def features(self) -> Features:
        """All features, (N, V, D)."""
        return self._features


class FeatureFile:
    """Features on disk, written by one process at a time; what is there of the same kind is taken up.

    Args:
        folder: where the two files are.
        name: what they begin with.
        images: N.
        batch_size: images that `append` takes at a time; the last time it takes the rest.
        settings: what else decides about the features, as plain values.

    Attributes:
        path: the `.npy` file.
        complete: images that have their features.

    Raises:
        ConfigError: there are files of something else, or broken ones, or another process writes them, or the place
            cannot be written.
        RunError: the disk is full.
    """

    def __init__(self, folder: Path, name: str, images: int, batch_size: int, settings: Mapping[str, Any]) -> None:
        if not name or Path(name).name != name:
            raise ConfigError(f"'{name}' cannot begin the name of a file in {folder}; call the model something else")
        self.path = folder / f"{name}.features.npy"
        self.complete = 0
        self._record_path = self.path.with_suffix(".json")
        self._record: dict[str, Any] = {"images": images, "batch_size": batch_size, **settings}
        self._shape = (images, 0, 0)  # (N, V, D), known after the first batch
        self._offset = 0  # of the first row, in bytes
        self._file: int | None = None
        self._synced, self._synced_at = 0, time.monotonic()

    def __enter__(self) -> Self:
        if self._record_path.exists():
            self._take_up()
        elif self.path.exists() and self.path.stat().st_size:
            self._refuse(f"{self._record_path.name}, which says what it holds, is missing")
        else:
            check_writable(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            try:
                self._sync()
            finally:
                os.close(self._file)

    def append(self, answers: Features) -> None:
        """Take the features (B, V, D) of the next B images; errors as for the class."""
        if not self.complete:
            self._begin((self._shape[0], *answers.shape[1:]))
        if answers.shape[1:] != self._shape[1:]:
            self._refuse(f"holds features of shape {self._shape[1:]}, not {answers.shape[1:]}")
        self._write(self._offset + self.complete * answers[0].nbytes, answers.tobytes())
        self.complete += len(answers)
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self._sync()

    def features(self) -> Features:
        """All features, (N, V, D), as a memory map that cannot be written to."""
        features: Features = self._load()
        return features

    def _take_up(self) -> None:
        record = self._read_record()
        if other := [key for key, value in self._record.items() if key not in record or record[key] != value]:
            self._refuse(f"holds features of other {', '.join(other)}")
        complete, images, batch_size = record.get("complete"), self._shape[0], self._record["batch_size"]
        if type(complete) is not int or not 0 <= complete <= images or (complete % batch_size and complete != images):
            self._refuse(f"{self._record_path.name} promises {complete!r:.40} complete images of {images}")
        if not complete:
            return
        features = self._load()
        if record.get("shape") != list(features.shape[1:]):
            self._refuse(f"has shape {features.shape}, but {self._record_path.name} says another")
        self._shape, self._offset = features.shape, features.offset
        self.complete = self._synced = complete
        if complete < images:  # a whole one is only read, perhaps from a place that cannot be written
            self._open()

    def _begin(self, shape: tuple[int, int, int]) -> None:
        """Make the file in its full size. The record comes first: whoever finds the file knows what it is."""
        self._open()
        write_json(self._record_path, self._record | {"complete": 0})
        header = io.BytesIO()
        kind = np.lib.format.dtype_to_descr(np.dtype(np.float32))
        np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
        self._shape, self._offset = shape, header.tell()
        self._reserve(self._offset + 4 * math.prod(shape))
        self._write(0, header.getvalue())

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise ConfigError(f"{self.path}: another process is writing it; wait, or choose another folder") from error
        except OSError:  # a file system without locks
            pass
        self._file = file

    def _reserve(self, size: int) -> None:
        file = self._opened()
        try:
            os.ftruncate(file, 0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size)
            else:
                os.ftruncate(file, size)
        except OSError as error:
            os.ftruncate(file, 0)  # what there was of space is given back
            raise cannot_write(self.path, error) from error

    def _write(self, offset: int, content: bytes) -> None:
        # Not through the memory map: there, a full disk is a signal that kills the process.
        left = memoryview(content)
        try:
            while left:
                written = os.pwrite(self._opened(), left, offset)
                left, offset = left[written:], offset + written
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _sync(self) -> None:
        if self.complete > self._synced:
            try:
                os.fsync(self._opened())
            except OSError as error:
                raise cannot_write(self.path, error) from error
            write_json(self._record_path, self._record | {"complete": self.complete, "shape": list(self._shape[1:])})
            self._synced, self._synced_at = self.complete, time.monotonic()

    def _opened(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path}: is not open; use it within its `with` block")
        return self._file

    def _read_record(self) -> dict[str, Any]:
        try:
            with self._record_path.open("rb") as file:
                content = json.loads(file.read(LARGEST_RECORD))
        except OSError as error:
            self._refuse(f"{self._record_path.name} cannot be read: {error.strerror}")
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            self._refuse(f"{self._record_path.name} is no record of features")
        return content

    def _load(self) -> Any:
        try:
            features = map_array(self.path)
        except (OSError, ValueError) as error:
            self._refuse(f"cannot be read ({error!s:.80})".replace("\n", " "))
        fits = isinstance(features, np.memmap) and features.dtype == np.float32 and features.flags.c_contiguous
        if not fits or features.ndim != 3 or len(features) != self._shape[0]:
            self._refuse(f"does not hold the features of {self._shape[0]} images")
        return features

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self.path}: {reason}; remove it with its .json, or choose another folder")
