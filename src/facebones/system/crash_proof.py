"""Work that may crash its process, in a process of its own: a crash ends a piece of the work, not the command."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from facebones.errors import FaceBonesError, RunError, first_line
from facebones.system.processes import leave_signals_to_parent, signals_deferred

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Result = TypeVar("Result")
Given = ParamSpec("Given")
State = dict[str, Any]  # what the process keeps between two pieces of work
LONGEST_REASON = 300
PATIENCE_SECONDS = 5.0


class CrashedError(RunError):
    """The process ended in the middle of a piece of work, which cannot be done."""


class CrashProof:
    """A process that does pieces of work, one after another; where one crashes it, the next starts a new process.

    Args:
        log: file for what libraries print there.

    >>> import tempfile
    >>> with CrashProof(Path(tempfile.mkdtemp()) / "log.txt") as process:
    ...     process.do(dict.setdefault, "a", 1), process.do(dict.get, "a")
    (1, 1)
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def is_new(self) -> bool:
        """Whether nothing has been done yet in the present process: its state is empty."""
        return self._process is None

    def do(
        self, work: Callable[Concatenate[State, Given], Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Call `work(state, ...)` in the process; all of it is pickled, and so is the result.

        Raises:
            CrashedError: the process ended.
            RunError: an exception of any kind in it.
        """
        if self._process is None:
            self._start()
        assert self._pipe is not None  # noqa: S101 (started)
        try:
            self._pipe.send((work, args, kwargs))
            is_done, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            ended = _how(self._process.exitcode)
            self.close()
            raise CrashedError(f"crashed: its process {ended}") from error
        if not is_done:
            raise RunError(answer)
        result: Result = answer
        return result

    def close(self, patience: float = PATIENCE_SECONDS) -> None:
        """Let the process end by itself, which removes what its libraries share; kill it after so many seconds."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.join(patience)
            self._process.kill()
            self._process.join()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(PATIENCE_SECONDS if kind is None else 0)  # after Ctrl-C it may still be at work

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would have the threads' locks, not the threads
        self._pipe, other = context.Pipe()
        with signals_deferred():
            self._process = context.Process(target=_serve, args=(other, self._log), daemon=True)
            self._process.start()
        other.close()


def _how(status: int) -> str:
    """How a process ended.

    >>> _how(-11), _how(3)
    ('was ended by SIGSEGV', 'ended with status 3')
    """
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _serve(pipe: "Connection", log: Path) -> None:
    leave_signals_to_parent()
    _print_into(log)
    state: State = {}
    while True:
        try:
            work, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, work(state, *args, **kwargs)
        except FaceBonesError as error:
            answer = False, str(error)
        except Exception as error:  # noqa: BLE001 (exporters and runtimes raise errors of many kinds)
            answer = False, first_line(error)[:LONGEST_REASON]
        pipe.send(answer)


def _print_into(log: Path) -> None:
    """Send both streams of this process into a file, also those of libraries in C."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
