"""SIGINT and SIGTERM end a training between two steps, after a save."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType

PARENT_VARIABLE = "FACEBONES_PARENT"  # the process that started this one and without which it is not to go on
PARENT_SECONDS = 1.0


class Interrupted(BaseException):
    """A signal asked for the end, and the state is saved.

    Attributes:
        signal: which one.
        step: the step of the saved state.
    """

    def __init__(self, number: signal.Signals, step: int = 0) -> None:
        super().__init__(f"{number.name} after step {step}, which is saved" if step else number.name)
        self.signal = number
        self.step = step


class StopRequest:
    """Whether a signal came; raised at once where nothing is lost by it, noted elsewhere."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at_once = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; a second one ends the process without another save.

        Not so in a training of a study: a scheduler signals all processes, and the study hands its own signal on. A
        second one that the user sends reaches the study, which ends its trainings for good.
        """
        again = self.received is not None and PARENT_VARIABLE not in os.environ
        self.received = signal.Signals(number)
        if self._at_once or again:
            raise Interrupted(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal may break off, because the state before it is saved."""
        if self.received is not None:
            raise Interrupted(self.received)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM within the block."""
    request = StopRequest()
    before = {number: signal.signal(number, request.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """Where the environment names this process's parent: stop, as on SIGTERM, once that one is gone."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None:
        Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: str) -> None:
    while str(os.getppid()) == parent:
        time.sleep(PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
