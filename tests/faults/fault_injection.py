"""Faults at the n-th change of a folder, in the process that makes the changes.

A change is a file opened for writing, a write, an fsync, a rename, a link, a removal, or a folder made or removed.
Python raises audit events for most of them; for the rest the functions of `os` are wrapped, and files opened for
writing get a raw file that counts. What C++ writes goes through Python's files in this package.
"""

import builtins
import errno
import io
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

AUDITED = {
    "os.rename": "rename",
    "os.link": "link",
    "os.remove": "remove",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What fails where no space is left; everything does where a file system has become read-only.
TAKES_SPACE = {"open", "write", "fsync", "mkdir", "link"}
ERRORS = {
    "full": (errno.ENOSPC, TAKES_SPACE, True),
    "quota": (errno.EDQUOT, TAKES_SPACE, False),
    "read-only": (errno.EROFS, {*TAKES_SPACE, "rename", "remove", "rmdir"}, True),
    "failing": (errno.EIO, {"write", "fsync"}, False),
}
SIGNALS = {
    "kill": [signal.SIGKILL],
    "term": [signal.SIGTERM],
    "term twice": [signal.SIGTERM, signal.SIGTERM],
    "int": [signal.SIGINT],
}
DAY = 86400.0


class Injection:
    """Counts the changes below a folder, and brings a fault about at one of them.

    Args:
        folder: the folder.
        fault: one of `ERRORS`, `SIGNALS` and `_ACTIONS`; empty to count only.
        at: the number of the change, from 1 on.
        argument: of the fault, such as the path that is removed.
    """

    def __init__(self, folder: str, fault: str = "", at: int = 0, argument: Any = None) -> None:
        self.folder, self.fault, self.at, self.argument = f"{folder}/", fault, at, argument
        self.changes: list[str] = []
        self._process, self._lock, self._busy = os.getpid(), threading.RLock(), False
        self._sent = self._failed = 0

    def change(self, kind: str, path: Any) -> None:
        """Count a change that is about to be made; raises OSError where it is to fail."""
        if os.getpid() != self._process or not (place := _name(path)).startswith(self.folder):
            return
        with self._lock:
            if self._busy:  # changes that a fault makes
                return
            self.changes.append(f"{kind} {place[len(self.folder) :]}")
            if self.fault and len(self.changes) >= self.at:
                self._busy = True
                try:
                    self._bring_about(kind, place)
                finally:
                    self._busy = False

    def _bring_about(self, kind: str, place: str) -> None:
        if self.fault in SIGNALS:
            if self._sent < len(SIGNALS[self.fault]):
                self._sent += 1
                os.kill(self._process, SIGNALS[self.fault][self._sent - 1])
        elif self.fault in ERRORS:
            number, kinds, lasting = ERRORS[self.fault]
            if kind in kinds and (lasting or not self._failed):
                self._failed += 1
                names = [] if kind in {"write", "fsync"} else [place]
                raise OSError(number, os.strerror(number), *names)
        elif len(self.changes) == self.at:
            _ACTIONS[self.fault](self.argument)


def _name(path: Any) -> str:
    if isinstance(path, int):
        try:
            return os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115 (what is read is no path of ours)
        except OSError:
            return ""
    try:
        return os.path.abspath(os.fsdecode(path))  # noqa: PTH100
    except (TypeError, ValueError):
        return ""


def _remove(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _cut(path: str) -> None:
    os.truncate(path, Path(path).stat().st_size // 2)


def _turn_back_the_clock(_: Any) -> None:
    real = time.time
    time.time = lambda: real() - DAY  # type: ignore[assignment]


def _limit_memory(more: int) -> None:
    # With 1 MB more, Python itself hangs: `Thread.start` waits for a thread that had no memory to begin.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


_ACTIONS: dict[str, Callable[[Any], None]] = {
    "removed": _remove,
    "cut": _cut,
    "gone": os.unlink,
    "clock": _turn_back_the_clock,
    "memory": _limit_memory,
}


def install(injection: Injection) -> None:
    """Let an injection see the changes that this process makes, until it ends."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and not isinstance(path, int):
                injection.change("open", path)
        elif (kind := AUDITED.get(event)) is not None:
            injection.change(kind, arguments[0])

    class CountingRaw(io.FileIO):
        def write(self, content: Any) -> int:
            injection.change("write", self.fileno())
            return super().write(content)

    def counted(name: str, kind: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(file: int, *arguments: Any) -> Any:
            injection.change(kind, file)
            return original(file, *arguments)

        return call

    for name in ("write", "pwrite", "posix_fallocate", "ftruncate", "fsync"):
        setattr(os, name, counted(name, "fsync" if name == "fsync" else "write"))
    io.open = builtins.open = _opener(io.open, CountingRaw)
    np.lib.format.isfileobj = np.lib.format.write_array.__globals__["isfileobj"] = lambda _: False  # C's fwrite else
    sys.addaudithook(hook)


def _opener(original: Callable[..., Any], raw_file: type[io.FileIO]) -> Callable[..., Any]:
    """`open`, with another raw file below the buffers of files for writing."""

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not {*mode} & {*"wax+"} or buffering == 0:
            return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = raw_file(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffer
        text = io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode  # type: ignore[misc]
        return text

    return opened
