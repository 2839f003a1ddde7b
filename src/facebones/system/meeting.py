"""How the processes of a group find each other, at a store that may still hold what an earlier group wrote.

torchrun keeps its store when it restarts the processes. Without a prefix of their own in it, new ones would look for
the dead ones at their old addresses.
"""

import json
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import torch

POLL_SECONDS = 0.05
CURRENT = "facebones/current"  # key of the name of the newest group


def own_part(store: Any, rank: int, size: int, seconds: float) -> Any:
    """The part of a store that only the processes of this group use, once all of them are there.

    Process 0 writes a new name. Each process answers under that name with a number drawn by itself; process 0 confirms
    all of these numbers. One that finds the name of an earlier group does not find its own number there, and looks on.

    Args:
        store: of torch.distributed.
        rank: of this process.
        size: number of processes.
        seconds: how long to wait for the others.

    Raises:
        RuntimeError: they did not come in time.
    """
    own, end, names = secrets.token_hex(8), time.monotonic() + seconds, [""]
    if rank == 0:
        store.set(CURRENT, own)
    while time.monotonic() < end:
        name = store.get(CURRENT).decode() if store.check([CURRENT]) else ""
        if name and name != names[-1]:
            names.append(name)
            store.set(f"facebones/{name}/{rank}", own)
        if name and rank == 0 and store.check(answers := [f"facebones/{name}/{other}" for other in range(size)]):
            store.set(f"facebones/{name}", json.dumps([store.get(key).decode() for key in answers]))
        if name and store.check([f"facebones/{name}"]):
            confirmed = json.loads(store.get(f"facebones/{name}"))
            if len(confirmed) == size and confirmed[rank] == own:
                return torch.distributed.PrefixStore(f"facebones/{name}/", store)  # type: ignore[attr-defined]
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"not all of the {size} came within {seconds:g} s")


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work()` returns, if it does in time: torch waits for ever for a program that listens and says nothing.

    Raises:
        RuntimeError: it did not.
    """
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except Exception as error:  # noqa: BLE001 (raised by `result`)
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(seconds)
    except FutureTimeoutError as error:
        raise RuntimeError(f"no answer within {seconds:g} s") from error
