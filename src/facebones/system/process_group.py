"""Joining the processes that torchrun or `facebones train --devices N` started, and what they say if one is lost.

Every process counts the collectives that it has entered, and a thread writes that count into the group's store each
second. If a collective fails or exceeds the time limit, the processes that are left read the counts and name the one
that has ended, hangs, or is behind.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch

import facebones.errors
from facebones.errors import ConfigError, FaceBonesError, RunError, first_line
from facebones.system.device import select_device
from facebones.system.distributed import ALONE, World
from facebones.system.meeting import own_part, within
from facebones.system.progress import silence

TIME_LIMIT_VARIABLE = "FACEBONES_TIME_LIMIT"  # seconds that processes wait for each other
TIME_LIMIT = 600.0
LONGEST_LIMIT = 1e7
BEAT_SECONDS = 1.0
MISSED_BEATS = 4
LOST = "facebones/lost"  # key in the store: which process is missing

_joined: list[tuple[World, Any]] = []  # with a connection to the store


class MeetingError(ConfigError):
    """This process does not find the others; each says so itself, because the first of them may not be there."""


class LostProcessError(RunError):
    """A process of the group has ended, hangs or is behind: the others cannot continue."""


def launched() -> bool:
    """Whether a launcher started this process as one of several.

    Raises:
        MeetingError: its number, or that of all, is none.
    """
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1" and place()[1] > 1


def place() -> tuple[int, int]:
    """The number of this process, and that of all, as the launcher gave them.

    Raises:
        MeetingError: they are none.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        if not value.isascii() or not value.isdigit():
            raise MeetingError(f"{name}={value:.40}: is no number; torchrun or --devices N sets it")
    if int(rank) >= int(size):
        raise MeetingError(f"RANK={rank:.40}: give 0 to {int(size) - 1}, because WORLD_SIZE is {size:.40}")
    return int(rank), int(size)


def world() -> World:
    """The world that this process has joined; `ALONE` if there is none."""
    return _joined[-1][0] if _joined else ALONE


def own_store() -> Any:
    """A connection to what the joined processes share that nothing else uses: a call through another one may block.

    It was made when they met, because nobody can connect once the process that keeps the store has ended.
    """
    return _joined[-1][1]


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the other processes within the block; alone, or within another such block, nothing happens.

    Args:
        device: as for `select_device`; it decides how the processes talk: NCCL on CUDA, else gloo.

    Raises:
        ConfigError: the processes cannot find each other.
        LostProcessError: one of the others has ended, or does not answer within the time limit.
    """
    if _joined or not launched():
        yield world()
        return
    where = select_device(own_device(device))
    watch, store = _begin(where)
    own = World(rank=torch.distributed.get_rank(), size=torch.distributed.get_world_size(), guard=watch.guard)
    _joined.append((own, store))
    try:
        with silence(not own.is_first):
            yield own
    finally:
        _joined.pop()
        watch.stop()
        with suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def own_device(name: str) -> str:
    """The device of this process among those of its machine: GPU number LOCAL_RANK, unless `name` says which.

    Raises:
        ConfigError: this machine has fewer GPUs than processes.
    """
    if not launched() or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    rank, gpus = os.environ.get("LOCAL_RANK", "0"), torch.cuda.device_count()
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    if int(here) > gpus:  # all processes of the machine end, and one of them says why
        kind = MeetingError if rank == "0" else ConfigError
        raise kind(
            f"{socket.gethostname()}: {here} processes for {gpus} GPUs; start one for each, or give --device cpu"
        )
    return f"cuda:{rank}"


def own_cores() -> int:
    """The cores of this machine for each process of the group that it runs; at least 1."""
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]) if launched() else "1"
    return max(1, (os.cpu_count() or 1) // max(1, int(here)))


def share_threads() -> None:
    """Compute with the own share of the cores, where the launcher has not said with how many threads."""
    if launched() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(own_cores())


def time_limit() -> float:
    """Seconds that the processes wait for each other.

    Raises:
        ConfigError: the variable holds no number of seconds.
    """
    given = os.environ.get(TIME_LIMIT_VARIABLE, str(TIME_LIMIT))
    with suppress(ValueError):
        if 0 < float(given) <= LONGEST_LIMIT:
            return float(given)
    raise ConfigError(f"{TIME_LIMIT_VARIABLE}={given}: give seconds, such as 600")


def _begin(device: torch.device) -> "tuple[_Watch, Any]":
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    limit = timedelta(seconds=time_limit())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = within(limit.total_seconds() + 1, lambda: _met(limit))
        store = own_part(store, rank, size, limit.total_seconds())
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        watched, own = store.clone(), store.clone()  # others may block the first connection
    except (RuntimeError, ValueError, OSError) as error:  # torch's DistNetworkError is a RuntimeError
        where = f"{address}:{port}"
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise MeetingError(f"port {port} of {address} is in use; give torchrun another --master-port") from error
        raise MeetingError(
            f"the processes cannot meet at {where}: {first_line(error)[:200]}; check MASTER_ADDR and MASTER_PORT"
        ) from error
    return _Watch(watched, rank, size), own


def _met(limit: timedelta) -> tuple[Any, int, int]:
    """The store at which the processes meet, the number of this one, and that of all."""
    found: tuple[Any, int, int] = next(torch.distributed.rendezvous("env://", timeout=limit))  # type: ignore[attr-defined]
    return found


class _Watch:
    """Tells the others that this process is alive and how far it is, and says which of the others is not.

    Args:
        store: shared by all.
        rank: of this process.
        size: number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._entered = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._tell(0)
        threading.Thread(target=self._beat, daemon=True).start()

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Count a collective; an error in it becomes a line that names the process that is missing."""
        self._entered += 1
        try:
            yield
        except RuntimeError as error:
            if not _is_of_group(error):
                raise
            raise LostProcessError(self._explain(name)) from error

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(BEAT_SECONDS):
            beats += 1
            try:
                self._tell(beats)
            except RuntimeError:  # the store has gone with its process; torch prints a stack each time
                return

    def _tell(self, beats: int) -> None:
        with self._lock:
            text = f"{beats} {self._entered} {os.getpid()} {socket.gethostname()}"
            self._store.set(f"facebones/{self._rank}", text)

    def _explain(self, name: str) -> str:
        """The line about the process that is missing. The first one to know tells the others, before it ends itself."""
        before = self._known()
        if before is not None and not self._told_by_another():
            self._ended.wait(BEAT_SECONDS * MISSED_BEATS)
            if (after := self._known()) is not None:
                self._tell_others(self._missing(before, after))
        if found := self._told_by_another():
            return self._line(found, name)
        keeper = "the launcher" if "TORCHELASTIC_USE_AGENT_STORE" in os.environ else "process 0"
        return self._line(f"{keeper}, which started the group, ended or does not answer", name)

    def _missing(self, before: list[list[str]], after: list[list[str]]) -> str:
        others = [rank for rank in range(self._size) if rank != self._rank]
        if silent := [rank for rank in others if before[rank][0] == after[rank][0]]:
            return f"{_named(silent, after)} ended or does not answer"
        if behind := [rank for rank in others if int(after[rank][1]) < self._entered]:
            return f"{_named(behind, after)} did not come within {time_limit():g} s"
        return "the connection between the processes broke"

    def _told_by_another(self) -> str:
        """What the first process to know has found; empty if none has yet."""

        def ask() -> str:
            with self._lock:
                return self._store.get(LOST).decode() if self._store.check([LOST]) else ""

        return self._in_time(ask) or ""

    def _tell_others(self, found: str) -> None:
        def tell() -> None:
            with self._lock:
                self._store.compare_set(LOST, "", found)

        self._in_time(tell)

    def _line(self, what: str, name: str) -> str:
        return f"process {self._rank} of {self._size}: {what} (waiting in {name})"

    def _known(self) -> list[list[str]] | None:
        """Beats, collectives, process id and host of each process; None if the store has gone."""
        known: list[list[str]] | None = self._in_time(self._read)
        return known

    def _in_time(self, ask: Callable[[], Any]) -> Any:
        """An answer of the store; None if it has gone, or does not give one."""
        with suppress(RuntimeError):
            return within(BEAT_SECONDS * MISSED_BEATS, ask)
        return None

    def _read(self) -> list[list[str]]:
        with self._lock:
            keys = [f"facebones/{rank}" for rank in range(self._size)]
            found = [self._store.get(key).decode() if self._store.check([key]) else "0 0 ? ?" for key in keys]
        return [text.split(" ", 3) for text in found]


def _named(ranks: list[int], known: list[list[str]]) -> str:
    return " and ".join(f"process {rank} ({known[rank][3]}, id {known[rank][2]})" for rank in ranks)


def _is_of_group(error: RuntimeError) -> bool:
    """Whether an error comes from the connection between processes, and not from a wrong call."""
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "broken pipe", "peer")
    return isinstance(error, torch.distributed.DistError) or any(sign in text for sign in signs)


# ------------------------------------------------------------------------------------------------------ agreement


@contextmanager
def agreed(own: World) -> Iterator[None]:
    """Let all processes fail if one fails in the block, which must hold no collective: none waits for the others.

    Raises:
        FaceBonesError: the error of the first process that has one, in every process.
    """
    if own.size == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # noqa: BLE001 (raised again below)
        error = caught
    name = type(error).__name__
    told = None if error is None else (name, str(error) or name, isinstance(error, FaceBonesError))
    answers = gather_objects(own, told)
    rank = next((rank for rank, answer in enumerate(answers) if answer is not None), None)
    if rank is None:
        return
    if error is not None and rank == own.rank:
        raise error
    kind, message, expected = answers[rank]
    where = "" if rank == 0 else f"process {rank}: "
    raise _error_class(kind if expected else "RunError")(f"{where}{message if expected else f'{kind}: {message}'}")


def gather_objects(own: World, value: Any) -> list[Any]:
    """The value of each process, in order; small plain values."""
    if own.size == 1:
        return [value]
    found: list[Any] = [None] * own.size
    with own.guarded("all_gather_object"):
        torch.distributed.all_gather_object(found, value)
    return found


def _error_class(name: str) -> type[FaceBonesError]:
    kind = getattr(facebones.errors, name, RunError)
    plain = isinstance(kind, type) and issubclass(kind, FaceBonesError) and kind.__init__ is Exception.__init__
    return kind if plain else ConfigError if name != "RunError" else RunError
