"""Long work that the processes of a group do apart, each its part.

A collective ends by a time limit, but the parts of a long pass may differ by hours: by the speed of the machines, or
because an earlier pass was stopped. So the processes wait for the end of all parts without a limit, as long as those
that work show that they live. If one fails, the others stop soon after it instead of finishing their parts.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from facebones.system.distributed import World
from facebones.system.process_group import LostProcessError, agreed, gather_objects, own_store

BEAT_SECONDS = 1.0
SILENT_SECONDS = 15.0  # after which a process counts as lost
_WORKS, _DONE, _FAILED, _LEFT = "works", "done", "failed", "left"


class _OtherFailed(Exception):  # noqa: N818 (a signal, not an error)
    """Another process has failed: its error will be told to all."""


@contextmanager
def apart(own: World) -> Iterator[Callable[[], None]]:
    """Do a part of some work in the block, which must hold no collective; wait for the parts of all others at its end.

    Yields:
        a function to call now and then: it ends the block if another process has failed.

    Raises:
        FaceBonesError: the error of the first process that has one, in every process; see `process_group.agreed`.
        LostProcessError: another process has ended, or was stopped.
    """
    if own.size == 1:
        yield _nothing
        return
    others = _Others(own)
    failure: Exception | None = None
    try:
        yield others.look
    except _OtherFailed:
        pass
    except LostProcessError:
        others.end(_FAILED)
        raise
    except Exception as error:  # noqa: BLE001 (raised again below)
        failure = error
    except BaseException:
        others.end(_LEFT)
        raise
    others.end(_DONE if failure is None else _FAILED)
    others.wait()
    with agreed(own):
        if failure is not None:
            raise failure


def _nothing() -> None:
    pass


class _Others:
    """What the other processes of a group are doing: each writes its state into the group's store every second."""

    def __init__(self, own: World) -> None:
        self._own = own
        with agreed(own):
            self._store = own_store()
        self._name = f"facebones/apart/{gather_objects(own, secrets.token_hex(8))[0]}"
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._tell(_WORKS, 0)
        # When all have answered, all have written their first state.
        self._who = gather_objects(own, f"{socket.gethostname()}, id {os.getpid()}")
        self._looked = time.monotonic()
        self._seen = [("", self._looked)] * own.size  # the state of each, and when it was new
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Raise if another process has failed or is lost; looks once a second at most."""
        if time.monotonic() - self._looked >= BEAT_SECONDS and _FAILED in self._states():
            raise _OtherFailed

    def wait(self) -> None:
        """Wait until all others have ended their parts."""
        while _WORKS in self._states():
            time.sleep(BEAT_SECONDS / 10)

    def end(self, state: str) -> None:
        """Say how the own part ended."""
        self._ended.set()
        self._thread.join()
        self._tell(state, 0)

    def _states(self) -> list[str]:
        texts = self._read()
        self._looked = now = time.monotonic()
        self._seen = [old if old[0] == text else (text, now) for old, text in zip(self._seen, texts, strict=True)]
        states = [text.split()[0] for text in texts]
        for rank, state in enumerate(states):
            silent = state == _WORKS and now - self._seen[rank][1] > SILENT_SECONDS
            if rank != self._own.rank and (silent or state == _LEFT):
                what = "ended or does not answer" if silent else "was stopped"
                raise LostProcessError(
                    f"process {self._own.rank} of {self._own.size}: process {rank} ({self._who[rank]}) {what}"
                )
        return states

    def _read(self) -> list[str]:
        try:
            with self._lock:
                found = self._store.multi_get([f"{self._name}/{rank}" for rank in range(self._own.size)])
        except RuntimeError as error:
            raise LostProcessError(
                f"process {self._own.rank} of {self._own.size}: the process that started the group has ended"
            ) from error
        return [text.decode() for text in found]

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(BEAT_SECONDS):
            beats += 1
            self._tell(_WORKS, beats)

    def _tell(self, state: str, beats: int) -> None:
        with suppress(RuntimeError), self._lock:  # the store has gone with its process
            self._store.set(f"{self._name}/{self._own.rank}", f"{state} {beats}")
