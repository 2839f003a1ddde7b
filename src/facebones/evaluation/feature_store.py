"""Features on disk, which may exceed memory and survive a stop: written batch by batch, resumed later.

`NAME.features.npy` has its full size from the start, so that a full disk fails in the first minute. Beside it,
`NAME.features.json` records what the features belong to, and which images are complete; `feature_record` says how
several processes do it. A record is written after its rows are synced, so it holds whenever the process or the machine
dies.

Files of other weights, images or settings are refused, not replaced: they may have taken hours, and the difference may
be a typing error.
"""

import bisect
import fcntl
import io
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from facebones.errors import ConfigError, RunError
from facebones.evaluation.feature_record import Ranges, merged, part_path, part_paths, prefix, read_ranges, read_record
from facebones.evaluation.models import Features
from facebones.system.distributed import ALONE, World
from facebones.system.files import cannot_write, check_writable, map_array, write_json

SYNC_SECONDS = 10.0  # of work that a stop can cost


class FeatureFile:
    """Features on disk, written by one process or one group of them at a time; matching features are resumed.

    Args:
        folder: where the files are; on a file system that all processes share.
        name: beginning of their names.
        images: N.
        batch_size: images per call of `write`; the last batch has the rest.
        settings: what else decides the features, as plain values; with "dtype": "float16" they are stored as such.
        world: the processes that share the pass; entering, `begin` and `features` are collectives.

    Attributes:
        path: the `.npy` file.

    Raises:
        ConfigError: the files are broken or of something else, another process writes them, or the folder cannot be
            written.
        RunError: the disk is full, or the file was removed meanwhile.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        images: int,
        batch_size: int,
        settings: Mapping[str, Any],
        *,
        world: World = ALONE,
    ) -> None:
        if not name or Path(name).name != name:
            raise ConfigError(f"'{name}' cannot begin the name of a file in {folder}; rename the model")
        self.path = folder / f"{name}.features.npy"
        self._world = world
        self._record_path = self.path.with_suffix(".json")
        self._record: dict[str, Any] = {"images": images, "batch_size": batch_size, **settings}
        self._kind = np.dtype(settings.get("dtype", "float32"))
        self._found: Ranges = []  # complete when the pass began
        self._written: Ranges = []  # by this process
        self._pass = ""  # identifies the records of a pass of several processes
        self._shape = (images, 0, 0)  # (N, V, D), known after the first batch
        self._offset = 0  # of the first row, in bytes
        self._file: int | None = None
        self._unsynced, self._synced_at = False, time.monotonic()

    def __enter__(self) -> Self:
        with self._world.agreed():
            if self._world.is_first:
                self._find()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            try:
                self.sync()
            finally:
                os.close(self._file)
                self._file = None

    def begin(self, shape: Callable[[], tuple[int, int]]) -> None:
        """Let several processes write; process 0 creates what is not there. One process does so at its first batch.

        Args:
            shape: computes the shape (V, D) of an image's features.
        """
        if self._world.size == 1:
            return
        with self._world.agreed():
            if self._world.is_first and not self._is_complete:
                if not self._found:
                    self._create((self._shape[0], *shape()))
                self._begin_parts()
        told = (self._found, self._shape, self._offset, self._pass)
        self._found, self._shape, self._offset, self._pass = self._world.gather_objects(told)[0]
        with self._world.agreed():
            if not self._world.is_first and not self._is_complete:
                self._follow()

    def lacks(self, start: int) -> bool:
        """Whether the features of the batch of images from `start` on were not there when the pass began."""
        place = bisect.bisect_right(self._found, (start, self._shape[0])) - 1
        return place < 0 or start >= self._found[place][1]

    def write(self, start: int, answers: Features) -> None:
        """Write the features (B, V, D) of the B images from `start` on; errors as for the class."""
        if self._file is None:
            self._create((self._shape[0], *answers.shape[1:]))
        if answers.shape[1:] != self._shape[1:]:
            self._refuse(f"holds features of shape {self._shape[1:]}, not {answers.shape[1:]}")
        with np.errstate(over="ignore"):
            stored = answers.astype(self._kind, copy=False)
        if self._kind == np.float16 and not np.isfinite(stored).all():
            place = start + int(np.flatnonzero(~np.isfinite(stored).all(axis=(1, 2)))[0])
            reason = f"cannot hold the embedding of image {place}, which is no finite number of float16"
            self._refuse(reason, advice="; remove the file and its .json, and take another model")
        self._write(self._offset + start * stored[0].nbytes, stored.tobytes())
        self._written = merged([*self._written, (start, start + len(answers))])
        self._unsynced = True
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Put on the disk what was written, and then record it."""
        if not self._unsynced:
            return
        try:
            os.fsync(self._opened())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if self._world.size == 1:
            self._write_record(merged([*self._found, *self._written]))
        else:
            self._write_json(
                part_path(self._record_path, self._world.rank), {"pass": self._pass, "done": _listed(self._written)}
            )
        self._unsynced, self._synced_at = False, time.monotonic()

    def features(self) -> Features:
        """All features, (N, V, D), as a read-only memory map; of several processes, only the first opens it."""
        features: Features = np.empty((0, 0, 0), np.float32)
        with self._world.agreed():
            if self._world.is_first:
                if self._world.size > 1 and not self._is_complete:
                    self._write_record([(0, self._shape[0])])
                    self._remove_parts()
                features = self._load()
        return features

    @property
    def _is_complete(self) -> bool:
        return self._found == [(0, self._shape[0])]

    def _find(self) -> None:
        """Resume what is there."""
        if self._record_path.exists():
            self._resume()
        elif self.path.exists() and self.path.stat().st_size:
            self._refuse(f"{self._record_path.name}, which says what it holds, is missing")
        else:
            check_writable(self.path)

    def _resume(self) -> None:
        record = self._read(self._record_path)
        if other := [key for key, value in self._record.items() if key not in record or record[key] != value]:
            self._refuse(f"holds features of other {', '.join(other)}")
        complete, images, batch_size = record.get("complete"), self._shape[0], self._record["batch_size"]
        if type(complete) is not int or not 0 <= complete <= images or (complete % batch_size and complete != images):
            self._refuse(f"{self._record_path.name} promises {complete!r:.40} complete images of {images}")
        if complete == images:
            self._check_shape(record)  # a complete file is only read, and may be read-only
            self._found = [(0, images)]
            return
        self._found = merged([(0, complete), *self._ranges(record, self._record_path), *self._parts(record)])
        if self._found:
            self._check_shape(record)
            self._open()
            self._lock(shared=False)
            if "pass" in record and (self._world.size == 1 or self._is_complete):  # the parts are joined
                self._write_record(self._found)
                self._remove_parts()

    def _check_shape(self, record: Mapping[str, Any]) -> None:
        features = self._load()
        if record.get("shape") != list(features.shape[1:]):
            self._refuse(f"has shape {features.shape}, but {self._record_path.name} says another")
        self._shape, self._offset = features.shape, features.offset

    def _parts(self, record: Mapping[str, Any]) -> Ranges:
        """What the processes of the last pass have done."""
        if "pass" not in record:
            return []
        found: Ranges = []
        for path in part_paths(self._record_path):
            part = self._read(path)
            if part.get("pass") == record["pass"]:
                found += self._ranges(part, path)
        return found

    def _ranges(self, record: Mapping[str, Any], path: Path) -> Ranges:
        try:
            return read_ranges(record.get("done", []), self._shape[0], self._record["batch_size"])
        except ValueError:
            self._refuse(f"{path.name} promises images that are no whole batches")

    def _create(self, shape: tuple[int, int, int]) -> None:
        """Create the file in its full size. The record is written first, so that the file is never without one."""
        self._open()
        self._lock(shared=False)
        self._write_json(self._record_path, self._record | {"complete": 0})
        self._remove_parts()
        header = io.BytesIO()
        kind = np.lib.format.dtype_to_descr(self._kind)
        np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
        self._shape, self._offset = shape, header.tell()
        self._reserve(self._offset + self._kind.itemsize * math.prod(shape))
        self._write(0, header.getvalue())

    def _begin_parts(self) -> None:
        """Join the records of the last pass, and let the other processes in."""
        try:
            os.fsync(self._opened())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._pass = secrets.token_hex(8)
        self._write_record(self._found)
        self._remove_parts()
        self._lock(shared=True)

    def _follow(self) -> None:
        """Write into the file that process 0 has opened."""
        if not self._record_path.exists() or self._read(self._record_path).get("pass") != self._pass:
            self._refuse("is not the file that process 0 writes; choose a folder that all machines share", advice="")
        self._open()
        self._lock(shared=True)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _lock(self, *, shared: bool) -> None:
        """Keep others out; the processes of one group share the lock."""
        try:
            fcntl.flock(self._opened(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._opened())
            self._file = None
            raise ConfigError(f"{self.path}: another process is writing it; wait, or choose another folder") from error
        except OSError:  # a file system without locks
            pass

    def _reserve(self, size: int) -> None:
        file = self._opened()
        try:
            os.ftruncate(file, 0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size)
            else:
                os.ftruncate(file, size)
        except OSError as error:
            with suppress(OSError):  # a disk that has become read-only
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

    def _write_record(self, done: Ranges) -> None:
        """Record what is complete; a version without several processes understands it, and resumes at `complete`."""
        complete = prefix(done)
        record = self._record | {"complete": complete, "shape": list(self._shape[1:])}
        beyond = [one for one in done if one[0] > complete]
        if beyond:
            record["done"] = _listed(beyond)
        if self._pass and complete < self._shape[0]:
            record["pass"] = self._pass
        self._write_json(self._record_path, record)

    def _write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a record, but not of a file that was removed meanwhile: the next pass would miss it."""
        if self._file is not None and os.fstat(self._file).st_nlink == 0:
            raise RunError(f"{self.path}: was removed while it was written; run the same command again")
        write_json(path, content)

    def _remove_parts(self) -> None:
        for path in part_paths(self._record_path):
            path.unlink(missing_ok=True)

    def _opened(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path}: is not open; use it within its `with` block")
        return self._file

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            return read_record(path)
        except OSError as error:
            self._refuse(f"{path.name} cannot be read: {error.strerror}")
        except ValueError as error:
            self._refuse(f"{path.name} {error}")

    def _load(self) -> Any:
        try:
            features = map_array(self.path)
        except (OSError, ValueError) as error:
            self._refuse(f"cannot be read ({error!s:.80})".replace("\n", " "))
        fits = isinstance(features, np.memmap) and features.dtype == self._kind and features.flags.c_contiguous
        if not fits or features.ndim != 3 or len(features) != self._shape[0]:
            self._refuse(f"does not hold the features of {self._shape[0]} images")
        return features

    def _refuse(self, reason: str, advice: str = "; remove it with its .json, or choose another folder") -> NoReturn:
        raise ConfigError(f"{self.path}: {reason}{advice}")


def _listed(ranges: Ranges) -> list[list[int]]:
    return [list(one) for one in ranges]
