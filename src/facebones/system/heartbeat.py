"""Signs of life for a lease from a thread, while the process works on what it has leased."""

from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Self

from facebones.system.lease import BEATS, Lease, awake_time


class Heartbeat:
    """Keeps a lease within a `with` block; the lease itself is released by the caller.

    Args:
        lease: held by this process.
        lost: called once, from any thread, when another process has taken it up.

    Attributes:
        is_lost: whether that has happened.
    """

    def __init__(self, lease: Lease, lost: Callable[[], None] = lambda: None) -> None:
        self.lease, self.is_lost = lease, False
        self._lost, self._lock, self._stop = lost, Lock(), Event()
        self._last = awake_time()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Ask for the lease at once if there was no sign of life for half of its expiry: the process was suspended."""
        if awake_time() - self._last > self.lease.expiry / 2:
            self._beat()

    def _run(self) -> None:
        while not self._stop.wait(self.lease.expiry / BEATS):
            self._beat()

    def _beat(self) -> None:
        with self._lock:
            if self.is_lost:
                return
            self.is_lost = not self.lease.beat()
            self._last = awake_time()
            if self.is_lost:
                self._lost()
