"""Who trains what: the leases of a study's trainings, as one of its workers sees them."""

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from facebones.errors import ConfigError, counted, some
from facebones.study.planned_run import DONE, PlannedRun
from facebones.system.lease import EXPIRY_SECONDS, Lease, LeaseName, Seen, Watch, leases_in, links_work, take
from facebones.system.progress import say

ROUND_VARIABLE = "FACEBONES_ROUND"  # workers of one launch share it
TRAINED, FAILED, STOPPED = "done", "failed", "stopped"


class StudyLeases:
    """The leases of a study's trainings.

    A training that failed is tried once by each call of the command, and not by each of its workers: its lease keeps
    the launch in which it failed.

    Args:
        runs: all trainings of the study.
        expiry: seconds without a sign of life after which others may take up a training.
        shared: whether the leases must hold against other machines (see `lease.take`).
        watching: whether this process takes none, so that a training that has failed is not to be tried again.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        *,
        expiry: float = EXPIRY_SECONDS,
        shared: bool = False,
        watching: bool = False,
    ) -> None:
        self._watching = watching
        self.runs, self.expiry, self.shared = runs, expiry, shared
        self.round = os.environ.get(ROUND_VARIABLE) or uuid.uuid4().hex
        self._watches = {run.name: Watch(LeaseName(run.folder.path)) for run in runs}
        self._seen: dict[str, Seen] = {}
        self._first: dict[str, int] = {}
        self.look()

    def look(self) -> None:
        """Read the leases of all trainings that are not done, with one listing of each folder."""
        listed: dict[Path, dict[str, list[int]]] = {}
        self._seen = {}
        for run in self.runs:
            folder = run.folder.path.parent
            if folder not in listed:
                listed[folder] = leases_in(folder)
            if run.state != DONE:
                numbers = listed[folder].get(run.folder.path.name, [])
                seen = self._watches[run.name].look(numbers)
                self._seen[run.name] = seen
                self._first.setdefault(run.name, seen.number)

    def waiting(self) -> list[PlannedRun]:
        """The trainings that can be taken, as of the last look."""
        return [run for run in self.runs if self._can_be_taken(run)]

    def elsewhere(self, own: Sequence[PlannedRun] = ()) -> dict[str, Seen]:
        """The trainings that other workers hold, as of the last look, by the run's name."""
        names = {run.name for run in own}
        return {name: seen for name, seen in self._seen.items() if not seen.over and name not in names}

    def errors(self) -> dict[str, str]:
        """Why trainings failed in this call, in any worker, by the run's name; as of the last look."""
        return {
            name: str(seen.holder.get("note", ""))
            for name, seen in self._seen.items()
            if self._is_new(seen, FAILED, name)
        }

    def take(self, run: PlannedRun) -> Lease | None:
        """Take a training that was free at the last look; None if another worker was quicker."""
        lease = take(LeaseName(run.folder.path), self._seen[run.name].number, self.expiry, shared=self.shared)
        if lease is None:
            return None
        with suppress(OSError):
            list(run.folder.path.iterdir())  # makes NFS look again before the state is read
        if run.state == DONE:
            lease.release(outcome=TRAINED, round=self.round)
            return None
        return lease

    def give_back(self, lease: Lease, outcome: str, error: str | None = None) -> None:
        """Release a lease with what became of the training."""
        lease.release(outcome=outcome, round=self.round, note=error or "")

    def _can_be_taken(self, run: PlannedRun) -> bool:
        seen = self._seen.get(run.name)
        if seen is None or not seen.over:
            return False
        return not (self._is_new(seen, FAILED, run.name) or self._is_new(seen, TRAINED, run.name))

    def _is_new(self, seen: Seen, outcome: str, name: str) -> bool:
        """Whether a training has ended so since this call of the command, or launch, began."""
        if not seen.over or seen.holder.get("outcome") != outcome:
            return False
        return self._watching or seen.number != self._first[name] or seen.holder.get("round") == self.round


def unfinished(leases: StudyLeases) -> str:
    """What is still to train, and who does, in words; empty if every training is done or has failed in this call."""
    leases.look()
    held, waiting = leases.elsewhere(), leases.waiting()
    parts = [f"{name} is trained on {seen.where}" for name, seen in held.items()]
    if waiting:
        parts.append(f"{counted(len(waiting), 'training')} left for other workers")
    return f"{some(parts)}; the last worker measures and reports" if parts else ""


def check_leases(place: Path, *, shared: bool) -> None:
    """Check before any training that leases can be taken beside a file; nothing is left behind.

    Raises:
        ConfigError: the folder cannot be made or written, or, if it is shared, has no way to take a lease atomically.
    """
    if not links_work(place):
        reason = f"{place.parent}: this file system has no hard links, by which workers share a study"
        if shared:
            raise ConfigError(f"{reason}; put --output on another, such as ext4, XFS, NFS, Lustre or APFS")
        say(f"note: {reason}: make sure that no other machine works here")
