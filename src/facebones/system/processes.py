"""Processes that work for this one: how they start, and that they end with it, whatever signal comes."""

import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from threading import Thread, current_thread, main_thread
from typing import TypeVar

from facebones.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CAN_FORK = hasattr(os, "fork")


def map_forked(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Generator[Result]:
    """Yield `work(item)` for each item, in order, from forked processes; to be closed, which ends them.

    They begin as copies of this process, so they start in milliseconds and nothing is sent to them. Hence `work` keeps
    to files and bytes: the threads of torch, OpenCV or BLAS are not copied, and what needs them would hang.

    Args:
        work: what each process does with an item; its result is pickled.
        items: what there is to do; process k takes every `processes`-th one from the k-th on.
        processes: how many.

    Raises:
        Exception: what `work` raised.
        RunError: a process has died.
    """
    context = get_context("fork")
    started = []
    receivers: list[Connection] = []
    try:
        with signals_deferred(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; see above
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
                raise RunError("a process of this one has died; begin again with the same command") from error
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        for process in started:
            process.terminate()
            process.join()


def _send_results(work: Callable[[Item], Result], items: Sequence[Item], sender: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    leave_signals_to_parent()
    for item in items:
        try:
            sender.send(work(item))
        except Exception as error:  # noqa: BLE001 - it is raised again where the results are read
            sender.send(error)
            return


def leave_signals_to_parent() -> None:
    """In a new process: leave an interrupt that reaches the whole group to the parent; end where that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Keep stop signals waiting while processes are started.

    A process that a signal ends before it is set up can leave the others waiting for it for ever: a new process
    inherits the mask. The mask is not enough here, where other threads take the signal: hence the handlers.
    """
    if current_thread() is not main_thread():  # where Python runs no handlers
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
