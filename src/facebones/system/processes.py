"""Child processes: they start safely, and end with their parent whatever signal comes.

SIGINT and SIGTERM stop a training between two steps, after a save. So do SIGUSR1 and SIGUSR2, which schedulers send
ahead of a time limit, often to all processes of a job.
"""

import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from facebones.errors import RunError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Item = TypeVar("Item")
Result = TypeVar("Result")

PR_SET_PDEATHSIG = 1  # man 2 prctl
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
CAN_FORK = hasattr(os, "fork")


def map_forked(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Generator[Result]:
    """Yield `work(item)` for each item, in order, from forked processes; close the generator to end them.

    The processes are copies of this one: they start in milliseconds, and nothing is sent to them. `work` must not use
    torch, OpenCV or BLAS, because their threads are not copied: a call that needs these threads hangs.

    Args:
        work: called in the processes; its result is pickled.
        items: process k takes every `processes`-th item, from the k-th on.
        processes: number of processes.

    Raises:
        Exception: raised by `work`.
        RunError: a process died.
    """
    from multiprocessing import get_context  # here, as in all of this module: `facebones --help` needs none of it

    context = get_context("fork")
    started = []
    receivers: list[Connection] = []
    try:
        with signals_deferred(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads; see above
            for number in range(processes):
                receiver, sender = context.Pipe(duplex=False)
                share = items[number::processes]
                process = context.Process(target=_send_results, args=(work, share, sender), daemon=True)
                process.start()
                sender.close()
                started.append(process)
                receivers.append(receiver)
        for index in range(len(items)):
            try:
                result = receivers[index % processes].recv()
            except EOFError as error:
                raise RunError("a child process died; run the same command again") from error
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        for process in started:
            process.terminate()
            process.join()


def _send_results(work: Callable[[Item], Result], items: Sequence[Item], sender: "Connection") -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    leave_signals_to_parent()
    for item in items:
        try:
            sender.send(work(item))
        except Exception as error:  # noqa: BLE001 (raised again in the parent)
            sender.send(error)
            return


def leave_signals_to_parent() -> None:
    """Call in a new process: ignore interrupts of the process group, which the parent handles; end if it is killed."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def die_with_parent(parent: int) -> None:
    """Call first in a new process that holds nothing: the system kills it when its parent dies, however that dies.

    A watchdog that asks later who the parent is takes whoever has adopted the process for it. Systems other than Linux
    only notice a parent that is dead by now.

    Args:
        parent: id of the process that has started this one.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # before the system was asked
        os._exit(1)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer SIGINT and SIGTERM while processes are started.

    A new process that a signal ends during its start can leave the others waiting for it for ever. New processes
    inherit the signal mask. In this process the mask does not stop other threads from taking the signal, so handlers
    defer it.
    """
    if current_thread() is not main_thread():  # Python runs handlers in the main thread only
        yield
        return
    waiting: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    handlers = {number: signal.signal(number, lambda number, _: waiting.append(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


# --------------------------------------------------- SIGINT and SIGTERM stop a training between two steps, after a save


def facebones_command(words: Sequence[object]) -> list[str]:
    """The command line that runs facebones with these words by this Python, as it runs here.

    The current folder, which may hold a code.py, is kept out of the search path unless it is in ours.
    """
    safe_path = [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]
    return [sys.executable, *safe_path, "-m", "facebones", *map(str, words)]


PARENT_VARIABLE = "FACEBONES_PARENT"  # id of the study that started this training: stop when it is gone
LAUNCHER_VARIABLE = "FACEBONES_LAUNCHER"  # id of the process that started this one of several: likewise
TORCHRUN_VARIABLE = "TORCHELASTIC_RUN_ID"  # in the processes that torchrun starts
PARENT_SECONDS = 1.0


class Interrupted(BaseException):
    """A signal stopped the training, and the state is saved.

    Attributes:
        signal: the signal.
        step: step of the saved state.
    """

    def __init__(self, number: signal.Signals, step: int = 0) -> None:
        super().__init__(f"{number.name} after step {step}, which is saved" if step else number.name)
        self.signal = number
        self.step = step


class StopRequest:
    """Whether a signal came: raised at once inside `at_once`, only recorded elsewhere."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.raised: Interrupted | None = None
        self._at_once = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; a second one ends the process without another save.

        In a training of a study, and in one of several processes, a second signal changes nothing: a scheduler signals
        all processes, and the study or the launcher passes its own signal on. If the user sends a second one, they
        kill what they have started.
        """
        again = self.received is not None and not os.environ.keys() & {PARENT_VARIABLE, LAUNCHER_VARIABLE}
        self.received = signal.Signals(number)
        if self._at_once or again:
            self.raised = Interrupted(self.received)
            raise self.raised

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Interrupted at once in this block, because the state before it is saved."""
        if self.received is not None:
            raise Interrupted(self.received)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Catch the signals that stop a training in the block."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in STOP_SIGNALS}
    try:
        yield request
    except Exception as error:
        if request.raised is None:
            raise
        raise request.raised from error  # a library has made an error of its own of it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """If the environment names a parent process, or torchrun is the parent, stop as on SIGTERM once it is gone."""
    torchrun = str(os.getppid()) if TORCHRUN_VARIABLE in os.environ else None
    parent = torchrun or os.environ.get(LAUNCHER_VARIABLE) or os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: str) -> None:
    while str(os.getppid()) == parent:
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
