"""SIGINT and SIGTERM stop a training between two steps, after a save."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType

PARENT_VARIABLE = "FACEBONES_PARENT"  # id of the process that started this one: stop when it is gone
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
        self._at_once = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; a second one ends the process without another save.

        In a training of a study, a second signal changes nothing: a scheduler signals all processes, and the study
        passes its own signal on. If the user sends a second one, the study kills its trainings.
        """
        again = self.received is not None and PARENT_VARIABLE not in os.environ
        self.received = signal.Signals(number)
        if self._at_once or again:
            raise Interrupted(self.received)

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
    """Catch SIGINT and SIGTERM in the block."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """If the environment names a parent process, stop as on SIGTERM once it is gone."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: str) -> None:
    while str(os.getppid()) == parent:
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
