"""The lease of a training that a study has started, in the training's own process.

The training gives signs of life beside its worker's, so a worker that dies or is suspended leaves no training that
another machine starts again. A training that has lost its lease, because the whole machine was suspended, ends at once
and without a save: another process trains it now.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from facebones.system.lease import Heartbeat, Lease, LeaseName, join
from facebones.system.processes import PARENT_VARIABLE
from facebones.system.progress import say
from facebones.training.callbacks import Callback, RunInfo, register_callback

LEASE_VARIABLE = "FACEBONES_LEASE"
LOST_STATUS = 75  # exit status of a training that has lost its lease


def lease_words(lease: Lease) -> str:
    """The value of LEASE_VARIABLE for a training."""
    return json.dumps([str(lease.name.path.absolute()), lease.number, lease.token, lease.expiry])


@contextmanager
def lease_held() -> Iterator[None]:
    """Help to hold the lease that the environment names, within the block."""
    path, number, token, expiry = json.loads(os.environ.pop(LEASE_VARIABLE))  # processes of our own have none
    lease = join(LeaseName(Path(path)), number, token, expiry)
    if lease is None:
        _end()
        return
    with Heartbeat(lease, _end) as heartbeat:
        register_callback(lambda: CheckLease(heartbeat))
        yield
    orphaned = str(os.getppid()) != os.environ.get(PARENT_VARIABLE)
    lease.close()
    if orphaned:  # the worker is gone, and nobody else will give it back
        _release_for_worker(lease)


class CheckLease(Callback):
    """Asks for the lease after a step during which the machine was suspended, before the next save."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def on_step(self, run: RunInfo, step: int) -> None:
        """See the class."""
        self._heartbeat.check()


def _end() -> None:
    say("the lease of this training is lost: another process trains it now; this one ends without a save")
    os._exit(LOST_STATUS)


def _release_for_worker(lease: Lease) -> None:
    if lease.is_held():
        Lease(lease.name, lease.number, lease.token, 0, lease.expiry).release(outcome="stopped")
