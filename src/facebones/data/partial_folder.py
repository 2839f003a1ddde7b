"""A folder that is filled as NAME.partial and gets its name when it is complete, so that a broken-off run can go on."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from facebones.errors import DataError, RunError


def partial_path(destination: Path) -> Path:
    """Where a folder is filled; what an interrupted run leaves is there."""
    return destination.with_name(f"{destination.name}.partial")


class PartialFolder:
    """A folder that is filled as NAME.partial and gets its name when it is complete.

    Attributes:
        path: the folder to write into, while the block lasts.
        kept: files that were there already, and right.
    """

    def __init__(self, destination: Path, resume: bool, mark: str, work: str) -> None:
        """Name the folder to make.

        Args:
            destination: where it is when it is complete.
            resume: whether to go on with what an earlier run has left, or to complete what it has made.
            mark: a name by which a folder of this kind is known; if it is a folder, it is written anew each time.
            work: what makes it, such as "conversion".
        """
        self.destination = destination
        self.work = work
        self.path = partial_path(destination)
        self.mark = mark
        self._prefix = f"{self.path}/"
        self.resume = resume
        self.kept = 0
        self._placed: set[str] = set()

    def __enter__(self) -> Self:
        if is_occupied(self.destination):
            self._reopen()
        if self.path.exists() and not self.resume:
            raise DataError(f"{self.path}: left by an interrupted {self.work}; continue with --resume or remove it")
        if (marked := self.path / self.mark).is_dir():  # a killed run may have left a half there
            shutil.rmtree(marked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        if self.resume:
            self._refuse_strangers()
        if self.destination.exists():
            self.destination.rmdir()
        self.path.rename(self.destination)

    def place(self, name: str, content: bytes) -> None:
        """Write a file, unless it is there with this content; errors as in `put`."""
        self.count(name, self.put(name, content))

    def put(self, name: str, content: bytes) -> bool:
        """Write a file, also from another process, which then leaves the counting to this one.

        Returns:
            Whether it was there already, with this content.

        Raises:
            RunError: it cannot be written.
        """
        path = self._prefix + name
        if self.resume and _holds(path, content):
            return True
        try:
            _write(path, content)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}; mend it and go on with --resume") from error
        return False

    def count(self, name: str, kept: bool) -> None:
        """Know a file that has been put as one of this source."""
        if self.resume:
            self._placed.add(name)
            self.kept += kept

    def keep(self, name: str, is_right: Callable[[str], bool]) -> bool:
        """Whether a file is there from an earlier run, so that its content need not be made again.

        Args:
            name: path inside the folder.
            is_right: tells by the path of a file whether it is whole.
        """
        if not self.resume or not is_right(self._prefix + name):
            return False
        self._placed.add(name)
        self.kept += 1
        return True

    def _reopen(self) -> None:
        """Take up a folder that an earlier run has made, to complete it."""
        if not self.resume:
            refuse_existing(self.destination)
        if not (self.destination / self.mark).exists() or self.path.exists():
            a_work = f"{'an' if self.work[0] in 'aeiou' else 'a'} {self.work}"
            raise DataError(f"{self.destination}: not {a_work} to continue; remove it or choose another name")
        self.destination.rename(self.path)

    def _refuse_strangers(self) -> None:
        for folder, folders, files in os.walk(self.path):
            if self.mark in folders:
                folders.remove(self.mark)
            for file in files:
                name = os.path.relpath(f"{folder}/{file}", self.path)
                if name not in self._placed:
                    raise DataError(f"{self.path}/{name}: does not come from this source; remove it and resume")


def is_occupied(destination: Path) -> bool:
    """Whether something is there that is not an empty folder."""
    return destination.exists() and not (destination.is_dir() and not any(destination.iterdir()))


def refuse_existing(path: Path) -> None:
    """Raise DataError where something is there."""
    if path.exists():
        raise DataError(f"{path}: exists already; remove it or choose another name")


def _holds(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(len(content) + 1) == content
    except FileNotFoundError:
        return False


def _write(path: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(path.rpartition("/")[0], exist_ok=True)  # noqa: PTH103
        descriptor = os.open(path, flags, 0o666)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
