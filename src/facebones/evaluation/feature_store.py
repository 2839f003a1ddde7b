"""Features on disk, which may exceed memory and survive a stop: written batch by batch, resumed later.

`NAME.features.npy` has its full size from the start, so that a full disk fails in the first minute. Beside it,
`NAME.features.json` records what the features belong to, and how many images are complete. That number is written after
the rows are synced, so it holds whenever the process or the machine dies.

Files of other weights, images or settings are refused, not replaced: they may have taken hours, and the difference may
be a typing error.
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

from facebones.errors import ConfigError
from facebones.evaluation.models import Features
from facebones.system.files import cannot_write, check_writable, map_array, write_json

SYNC_SECONDS = 10.0  # of work that a stop can cost
LARGEST_RECORD = 2**16


class FeatureFile:
    """Features on disk, written by one process at a time; matching features that exist are resumed.

    Args:
        folder: where the two files are.
        name: beginning of their names.
        images: N.
        batch_size: images per call of `append`; the last call has the rest.
        settings: what else decides the features, as plain values.

    Attributes:
        path: the `.npy` file.
        complete: number of images with features.

    Raises:
        ConfigError: the files are broken or of something else, another process writes them, or the folder cannot be
            written.
        RunError: the disk is full.
    """

    def __init__(self, folder: Path, name: str, images: int, batch_size: int, settings: Mapping[str, Any]) -> None:
        if not name or Path(name).name != name:
            raise ConfigError(f"'{name}' cannot begin the name of a file in {folder}; rename the model")
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
            self._resume()
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
        """Write the features (B, V, D) of the next B images; errors as for the class."""
        if not self.complete:
            self._begin((self._shape[0], *answers.shape[1:]))
        if answers.shape[1:] != self._shape[1:]:
            self._refuse(f"holds features of shape {self._shape[1:]}, not {answers.shape[1:]}")
        self._write(self._offset + self.complete * answers[0].nbytes, answers.tobytes())
        self.complete += len(answers)
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self._sync()

    def features(self) -> Features:
        """Return all features, (N, V, D), as a read-only memory map."""
        features: Features = self._load()
        return features

    def _resume(self) -> None:
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
        if complete < images:  # a complete file is only read, and may be read-only
            self._open()

    def _begin(self, shape: tuple[int, int, int]) -> None:
        """Create the file in its full size. The record is written first, so that the file is never without one."""
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
            os.ftruncate(file, 0)  # release the space that was reserved
            raise cannot_write(self.path, error) from error

    def _write(self, offset: int, content: bytes) -> None:
        # Not through the memory map: there, a full disk kills the process by a signal.
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
            self._refuse(f"{self._record_path.name} is not a record of features")
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
