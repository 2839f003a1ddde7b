"""Leases: which process works on something in a folder that many machines share.

Why it is safe, also on NFS:

* A lease is a file `.NAME.lease.N`; the largest N is in force. It appears whole, by a hard link from a complete file,
  which the server carries out for one of all that try (`link` fails if the name exists; its answer may be lost, so the
  number of links is read). Nothing is renamed over a lease, and the largest N is never removed: who takes up a lease
  adds N + 1, and of all that try one succeeds.
* Its holder adds to a counter in the file through the descriptor that it has open: this can touch no later lease. It
  holds the lease as long as no larger N exists.
* Others judge by watching: the lease is over if the counter has stood still for the lease's expiry by the watcher's own
  monotonic clock. No two clocks are compared. A look that comes late counts for `LONGEST_LOOK` seconds only, so that
  a watcher that was suspended, or cut off from the server, gives the holder time to write.
* Of a holder on this very machine it is known whether it lives (`liveness.fate`), however long it is silent.
* A holder that was suspended finds a larger N when it wakes, and stops.
"""

import errno
import json
import os
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Self

from facebones.errors import ConfigError
from facebones.system.files import cannot_write, temporary_folder
from facebones.system.liveness import ALIVE, DEAD, fate, this_process

EXPIRY_SECONDS = 60.0
BEATS = 6  # within the expiry
LONGEST_LOOK = 5.0
RECORD = 4096  # bytes of each of the two records: the worker's and its training's
LONGEST_NOTE = 1500  # letters
WORKER, TRAINING = 0, 1
HELD, FREE = "held", "free"
LEASE_FILE = re.compile(r"\.(.+)\.lease\.([1-9][0-9]{0,14})", re.DOTALL)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


@dataclass(frozen=True)
class LeaseName:
    """The thing that is leased: its leases are files in one folder, beside it.

    >>> LeaseName(Path("runs/mbf/seed0")).file(2)
    PosixPath('runs/mbf/.seed0.lease.2')
    """

    path: Path

    def file(self, number: int) -> Path:
        """The file of the lease of that number."""
        return self.path.with_name(f".{self.path.name}.lease.{number}")

    def numbers(self) -> list[int]:
        """The numbers of all leases there are, in order.

        Raises:
            ConfigError: the folder cannot be read.
        """
        return leases_in(self.path.parent).get(self.path.name, [])


def leases_in(folder: Path) -> dict[str, list[int]]:
    """The numbers of all leases in a folder, in order, by the name of what is leased.

    Raises:
        ConfigError: the folder cannot be read.
    """
    found = defaultdict[str, list[int]](list)
    try:
        for entry in folder.iterdir():
            if match := LEASE_FILE.fullmatch(entry.name):
                found[match[1]].append(int(match[2]))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror}; check its permissions") from error
    return {name: sorted(numbers) for name, numbers in found.items()}


class Lease:
    """A lease that this process holds, or helps to hold: a worker and its training write a record each.

    Args:
        name: the leased thing.
        number: of the lease.
        token: what its first record must hold.
        record: WORKER or TRAINING.
        expiry: seconds without a sign of life after which others may take it up.
    """

    def __init__(self, name: LeaseName, number: int, token: str, record: int, expiry: float) -> None:
        self.name, self.number, self.token, self.expiry = name, number, token, expiry
        self._record = record
        self._content: dict[str, Any] = {"token": token, "expiry": expiry, **this_process(), "state": HELD}
        self._beat = 0
        self._last = awake_time()
        self._file = os.open(name.file(number), os.O_RDWR | getattr(os, "O_CLOEXEC", 0))

    @property
    def due(self) -> bool:
        """Whether it is time for the next sign of life."""
        return awake_time() - self._last >= self.expiry / BEATS

    def beat(self) -> bool:
        """Write a sign of life; returns whether the lease is still held."""
        self._beat += 1
        try:
            self._write()
        except OSError:  # such as ESTALE: the file was removed on another machine
            return self.is_held()
        self._last = awake_time()
        return self.is_held()

    def is_held(self) -> bool:
        """Whether no other process has taken it up. Where the folder cannot be read, nothing can be written either."""
        try:
            if max(self.name.numbers(), default=0) != self.number:
                return False
        except ConfigError:
            return True
        found = _decode(_read(self.name.file(self.number))[:RECORD]).get("token", self.token)
        return bool(found == self.token)

    def release(self, **notes: Any) -> None:
        """Give the lease back, with notes for whoever looks next; harmless if it is lost."""
        self._content |= {"state": FREE, **notes}
        with suppress(OSError):
            self._write()
        self.close()

    def close(self) -> None:
        """Stop giving signs of life, and leave the rest to the other holder."""
        with suppress(OSError):
            os.close(self._file)

    def _write(self) -> None:
        os.pwrite(self._file, _encode(self._content | {"beat": self._beat}), self._record * RECORD)
        os.fsync(self._file)  # on NFS: send it to the server now


def take(name: LeaseName, after: int, expiry: float = EXPIRY_SECONDS, *, shared: bool = True) -> Lease | None:
    """Take the lease that follows number `after`, which is over; None if another process was quicker.

    Args:
        name: what to lease.
        after: the largest number that was seen; 0 if there was none.
        expiry: seconds without a sign of life after which others may take it up.
        shared: whether the lease must hold against other machines; if not, a file system without hard links will do.

    Raises:
        ConfigError: the file system has no way to take a lease atomically, or the place cannot be written.
    """
    number, token = after + 1, uuid.uuid4().hex
    content = {"token": token, "expiry": expiry, **this_process(), "state": HELD, "beat": 0}
    try:
        name.path.parent.mkdir(parents=True, exist_ok=True)
        if not _create(name, number, _encode(content) + _encode({}), shared):
            return None
    except OSError as error:
        raise cannot_write(name.file(number), error) from error
    numbers = name.numbers()
    if number != max(numbers, default=0):  # `after` was no longer the largest number
        name.file(number).unlink(missing_ok=True)
        return None
    for older in numbers[:-1]:
        with suppress(OSError):
            name.file(older).unlink()
    try:
        return Lease(name, number, token, WORKER, expiry)
    except FileNotFoundError:  # this process was suspended for longer than the expiry
        return None


def links_work(place: Path) -> bool:
    """Whether a file system makes hard links, once for each name; nothing is left behind.

    Raises:
        ConfigError, RunError: the folder of `place` cannot be made or written.
    """
    try:
        with temporary_folder(place) as folder:  # the next command removes what a killed one has left of it
            draft, target = folder / "draft", folder / "target"
            _write_new(draft, b"")
            return _link(draft, target) is True and target.exists()
    except OSError as error:
        raise cannot_write(place.parent, error) from error


def _create(name: LeaseName, number: int, content: bytes, shared: bool) -> bool:
    """Make the file of a lease, whole and once; returns whether this process did."""
    target = name.file(number)
    with temporary_folder(name.path) as folder:
        draft = folder / "draft"
        _write_new(draft, content)
        linked = _link(draft, target)
        if linked is not None:
            # The answer to a first try may have been lost, and this was the second.
            return linked or draft.stat().st_nlink == 2
        if shared:
            raise ConfigError(f"{target.parent}: no hard link can be made, by which workers share a study")
        with suppress(FileExistsError):
            _write_new(target, content)
            return True
        return False


def _link(draft: Path, target: Path) -> bool | None:
    """Give a file a second name; False if that name exists, None if the file system has no such links."""
    try:
        os.link(draft, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return None
    return True


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet; closing it makes NFS send it to the server."""
    with path.open("xb") as file:
        file.write(content)


def join(name: LeaseName, number: int, token: str, expiry: float) -> Lease | None:
    """Help to hold a lease, as the training that its taker has started; None if it is lost already."""
    try:
        lease = Lease(name, number, token, TRAINING, expiry)
    except OSError:
        return None
    if lease.beat():
        return lease
    lease.close()
    return None


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


# ------------------------------------------------------------------------------------------------------ watching


@dataclass(kw_only=True)
class Seen:
    """A lease as others see it.

    Attributes:
        number: of the lease; 0 if the thing was never leased.
        over: whether it can be taken up.
        holder: content of its first record; empty if it cannot be read.
        changes: how often its signs of life have changed since the watch began.
    """

    number: int = 0
    over: bool = True
    holder: Mapping[str, Any] = field(default_factory=dict)
    changes: int = 0

    @property
    def where(self) -> str:
        """The holder in words."""
        host, pid = (str(self.holder.get(key, "?"))[:80] for key in ("host", "pid"))
        return f"{host if host.isprintable() else '?'}, process {pid}"


class Watch:
    """Watches the leases of one thing, by this process's own clock.

    Args:
        name: what is leased.
    """

    def __init__(self, name: LeaseName) -> None:
        self._name = name
        self._content: tuple[int, bytes] = (0, b"")
        self._still = self._looked = 0.0
        self._changes = 0

    def look(self, numbers: list[int] | None = None) -> Seen:
        """The lease in force as things stand.

        Args:
            numbers: of the leases that there are, if the folder was listed already.
        """
        number = max(self._name.numbers() if numbers is None else numbers, default=0)
        if number == 0:
            return Seen()
        content = _read(self._name.file(number))
        worker, training = (_decode(content[start : start + RECORD]) for start in (0, RECORD))
        expiry = worker.get("expiry", EXPIRY_SECONDS)
        fates = {fate(one) for one in (worker, training) if "pid" in one}
        stood_still = self._stood_still(number, content) >= expiry
        over = worker.get("state") == FREE or fates == {DEAD} or (stood_still and ALIVE not in fates)
        return Seen(number=number, over=over, holder=worker, changes=self._changes)

    def _stood_still(self, number: int, content: bytes) -> float:
        """Seconds of watching in which nothing has changed."""
        now = time.monotonic()
        if (number, content) == self._content:
            self._still += min(now - self._looked, LONGEST_LOOK)
        else:
            self._content, self._still = (number, content), 0.0
            self._changes += 1
        self._looked = now
        return self._still


def awake_time() -> float:
    """Seconds of a clock that runs while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def _read(path: Path) -> bytes:
    """The records of a lease; opening the file anew makes NFS ask the server for its content."""
    try:
        with path.open("rb") as file:
            return file.read(2 * RECORD)
    except OSError:
        return b""


def _encode(content: Mapping[str, Any]) -> bytes:
    """A record: JSON, filled up with blanks."""
    text, length = b" " * RECORD, LONGEST_NOTE
    while len(text) > RECORD - 1:  # a note may hold much that JSON escapes
        shown = {key: value[:length] if key == "note" else value for key, value in content.items()}
        text, length = json.dumps(shown, ensure_ascii=False).encode(errors="backslashreplace"), length // 2
    return text.ljust(RECORD - 1) + b"\n"


def _decode(record: bytes) -> dict[str, Any]:
    """The content of a record; empty if it cannot be read, whoever wrote it."""
    try:
        content = json.loads(record)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    expiry = content.get("expiry", EXPIRY_SECONDS)
    usable = type(expiry) in (int, float) and 0 < expiry <= 24 * 3600
    return content | {"expiry": float(expiry) if usable else EXPIRY_SECONDS}
