"""A file that is mapped into memory in each process that reads it, and refused if it is cut meanwhile."""

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.system.files import stand_in
from facebones.system.regular_files import open_regular

MANY_BYTES = 2**28  # of a scanned file, between two calls of `forget`
READ_AHEAD_BYTES = 2**17  # Linux fetches no more for one call

Integers = npt.NDArray[np.int64]


class MappedFile:
    """A memory-mapped file of images. Instances can be pickled; each process maps the file on its first read.

    Args:
        path: the file.

    Attributes:
        path: the file.
        size: bytes, when it was opened.

    Raises:
        DataError: the file is missing or empty, or a pointer or web page stands in its place.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        try:
            self.size = self.path.stat().st_size
            instead = stand_in(self.path) if self.path.is_file() else "not a file; name the file of the images"
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
        if instead or not self.size:
            raise DataError(f"{path}: {instead or 'the file is empty; restore it from its source'}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    @property
    def content(self) -> mmap.mmap:
        """The mapped file. One that was cut meanwhile is refused: the system kills who reads beyond its end.

        Raises:
            DataError: the file was cut or replaced, or cannot be mapped.
        """
        if self._map is None:
            self._map = self._mapped()
        if self._map.size() < self.size:  # of the file; it may also have grown
            raise DataError(
                f"{self.path}: the file was cut to {self._map.size()} bytes while it was read, from {self.size};"
                " restore it"
            )
        return self._map

    def forget(self) -> None:
        """Let go of the pages that were read; they stay in the system's cache, and here they count as memory."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def fetch(self, starts: Integers, ends: Integers) -> None:
        """Have the system fetch parts of the file in the background, (M,) first and last byte + 1 of each.

        What lies between two parts is not fetched.
        """
        if not hasattr(mmap, "MADV_WILLNEED") or not len(starts):
            return
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order] // mmap.PAGESIZE * mmap.PAGESIZE, ends[order]
        cuts = np.flatnonzero(starts[1:] > ends[:-1]) + 1
        for first, end in zip(starts[np.append(0, cuts)].tolist(), ends[np.append(cuts, 0) - 1].tolist(), strict=True):
            for start in range(first, end, READ_AHEAD_BYTES):
                self.content.madvise(mmap.MADV_WILLNEED, start, min(READ_AHEAD_BYTES, end - start))

    def _mapped(self) -> mmap.mmap:
        try:
            with open_regular(self.path) as file:
                if os.fstat(file.fileno()).st_size != self.size:
                    raise DataError(f"{self.path}: the file has changed since it was opened; start again")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # keeps a descriptor open
        except OSError as error:
            fix = "raise the limit (ulimit -n)" if error.errno == errno.EMFILE else "check the file"
            raise DataError(f"{self.path}: cannot be mapped into memory: {error.strerror}; {fix}") from error
