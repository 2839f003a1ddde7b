"""Trains the runs of a study on this machine, a few at a time, each in a process of its own.

Other workers, here or on other machines, may train runs of the same study at the same time: each run has a lease.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from facebones.errors import RunError
from facebones.plugins import imported_plugins
from facebones.recipe import dump_recipe
from facebones.study.display import Display
from facebones.study.leases import FAILED, STOPPED, TRAINED, StudyLeases
from facebones.study.planned_run import DONE, TO_DO, UNFINISHED, PlannedRun
from facebones.study.training_lease import LEASE_VARIABLE, lease_words
from facebones.system.files import atomic_write
from facebones.system.lease import Lease, Seen
from facebones.system.processes import PARENT_VARIABLE, Interrupted, facebones_command, stop_signals
from facebones.system.progress import say

POLL_SECONDS = 0.2
LOOK_SECONDS = 1.0  # between looks for trainings that other workers have left
LONGEST_ERROR = 2000

Errors = dict[str, str]


def train_all(
    leases: StudyLeases,
    note: Callable[[dict[str, str]], object],
    *,
    jobs: int,
    device: str,
    only: Sequence[str] = (),
    wait: bool = True,
) -> Errors:
    """Train every run that is not done and that no other worker has; a run that fails does not stop the others.

    Args:
        leases: those of the runs.
        note: called with the errors so far whenever a run of this worker has ended.
        jobs: number of trainings at a time.
        device: device of each training, as for `facebones train`.
        only: names of the runs to train; none for all.
        wait: whether to wait for the trainings of other workers, and to take up those of dead ones; if not, the worker
            ends once nothing is left to take and all others have shown that they live.

    Returns:
        The error of each failed run by the run's name, those of other workers included.

    Raises:
        Interrupted: SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 arrived; the trainings have saved and ended. A second signal
            kills them, and their last checkpoints remain.
    """
    with stop_signals() as stop, closing(Display(leases.runs)) as display:
        worker = LocalWorker(leases, note, display, jobs=jobs, device=device, only=only)
        try:
            while stop.received is None and worker.work(wait=wait):
                time.sleep(POLL_SECONDS)
            worker.stop(stop.received)
        except BaseException:  # a second signal, or a failure of this process: leave no training running
            worker.kill()
            raise
        if stop.received is not None:
            raise Interrupted(stop.received)
        return worker.errors


def next_run(waiting: Sequence[PlannedRun], running: Sequence[PlannedRun]) -> PlannedRun | None:
    """The first run that can start; other seeds of a variant wait while the first one autotunes for all of them."""
    choosing = {run.variant for run in running if run.recipe.training.choose and run.state == TO_DO}
    return next((run for run in waiting if run.variant not in choosing), None)


class LocalWorker:
    """The trainings of this process; see `train_all`."""

    def __init__(
        self,
        leases: StudyLeases,
        note: Callable[[dict[str, str]], object],
        display: Display,
        *,
        jobs: int,
        device: str,
        only: Sequence[str],
    ) -> None:
        self._leases, self._note, self._display = leases, note, display
        self._jobs, self._device, self._only = jobs, device, only
        self._running: list[Child] = []
        self._own_errors: Errors = {}
        self._next_look = 0.0
        self._first_changes: dict[str, int] = {}  # of others' leases, when this worker found no run to train

    @property
    def errors(self) -> Errors:
        """Why runs failed, here and elsewhere."""
        return self._leases.errors() | self._own_errors

    def work(self, *, wait: bool) -> bool:
        """One round: note what ended, give signs of life, take what is free; returns whether there is more to do."""
        if self._reap():
            self._next_look = 0.0
        self._beat()
        more = bool(self._running)
        if len(self._running) < self._jobs and time.monotonic() >= self._next_look:
            more = self._take_more(wait=wait)
            self._next_look = time.monotonic() + LOOK_SECONDS
        elif len(self._running) < self._jobs:
            more = True
        elsewhere = {name: seen.where for name, seen in self._elsewhere().items()}
        self._display.show([child.run for child in self._running], self.errors, elsewhere)
        return more

    def stop(self, number: signal.Signals | None) -> None:
        """Pass a signal on and wait until every training has saved and ended."""
        if number is None:
            return
        say(f"stopping: {len(self._running)} training(s) save and end (the same signal again kills them)")
        for child in self._running:
            child.process.send_signal(number)
        for child in self._running:
            child.process.wait()
        self._note(self.errors)
        for child in self._running:
            self._leases.give_back(child.lease, STOPPED if child.run.state != DONE else TRAINED)

    def kill(self) -> None:
        """End every training at once."""
        for child in self._running:
            child.process.kill()
        for child in self._running:
            child.process.wait()
            self._leases.give_back(child.lease, STOPPED)

    def _elsewhere(self) -> dict[str, Seen]:
        return self._leases.elsewhere([child.run for child in self._running])

    def _take_more(self, *, wait: bool) -> bool:
        """Start trainings while there are places and runs; returns whether there is more to do."""
        self._leases.look()
        own = [child.run for child in self._running]
        waiting = [run for run in self._leases.waiting() if run not in own and run.name in (self._only or [run.name])]
        held = self._elsewhere()
        busy = [run for run in self._leases.runs if run.name in held]
        more = bool(waiting)
        while len(self._running) < self._jobs and (run := next_run(waiting, busy + own)):
            waiting.remove(run)
            lease = self._leases.take(run)
            if lease is not None:
                self._start(run, lease)
                own.append(run)
        if own or more:
            return True
        return bool(held) and (wait or not self._all_give_signs(held))

    def _all_give_signs(self, held: Mapping[str, Seen]) -> bool:
        """Whether each training of other workers has shown a sign of life since this worker had no run to train."""
        for name, seen in held.items():
            self._first_changes.setdefault(name, seen.changes)
        return all(seen.changes > self._first_changes[name] for name, seen in held.items())

    def _start(self, run: PlannedRun, lease: Lease) -> None:
        self._display.begin(run)
        slot = min(set(range(self._jobs)) - {child.slot for child in self._running})
        try:
            self._running.append(start_child(run, lease, slot, self._jobs, self._device))
        except BaseException:
            self._leases.give_back(lease, STOPPED)
            raise

    def _beat(self) -> None:
        """Give signs of life; end a training whose lease is lost, without a save: another worker has it."""
        for child in self._running:
            if child.lease.due and not child.lease.beat():
                child.process.kill()

    def _reap(self) -> bool:
        """Remove the trainings that have ended; returns whether there was one."""
        ended = [child for child in self._running if child.process.poll() is not None]
        for child in ended:
            self._running.remove(child)
            if not child.lease.is_held():
                child.lease.close()
                self._display.lost(child.run)
                continue
            error = child.error()
            if error is not None:
                self._own_errors[child.run.name] = error
            self._display.end(child.run, error)
            self._note(self.errors)
            self._leases.give_back(child.lease, TRAINED if error is None else FAILED, error)
        return bool(ended)


# ---------------------------------------------------------------------------------------------------- one child


@dataclass(kw_only=True, eq=False)
class Child:
    """A training in a process of its own.

    Attributes:
        run: the run that it trains.
        lease: of the run, which this process holds.
        slot: its place among the study's parallel trainings, from 0; it decides the GPU.
        process: the process.
    """

    run: PlannedRun
    lease: Lease
    slot: int
    process: "subprocess.Popen[bytes]" = field(repr=False)

    def error(self) -> str | None:
        """Why the process ended, or None if the run is done; only for a process that has ended."""
        status = self.process.returncode
        if status == 0 and self.run.folder.result.is_file():
            return None
        if (recorded := self.run.folder.read_error()) is not None:
            return str(recorded["message"])[:LONGEST_ERROR]
        if status < 0:
            name = next((one.name for one in signal.Signals if one == -status), f"signal {-status}")
            return f"killed by {name}{', perhaps for lack of memory' if status == -signal.SIGKILL else ''}"
        return f"exit status {status} without an error message; see {self.run.log}"


def start_child(run: PlannedRun, lease: Lease, slot: int, jobs: int, device: str) -> Child:
    """Start a run, or resume it.

    Raises:
        RunError: its files cannot be written.
    """
    if run.state == UNFINISHED:
        if run.accept_version:
            run.write_lacking_fields()
        run.write_places()
        words = ["resume", str(run.folder.path), "--data", run.recipe.data.path]
    else:
        with atomic_write(run.recipe_file) as file:
            file.write(dump_recipe(run.first_recipe()).encode())
        words = ["train", str(run.recipe_file), "--output", str(run.folder.path)]
    words += [word for name in imported_plugins() for word in ("--import", name)]
    with _open_log(run.log) as log:
        run.folder.error.unlink(missing_ok=True)  # of an earlier attempt
        process = subprocess.Popen(  # noqa: S603 (our own command line)
            facebones_command([*words, "--device", device]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(slot, jobs, device) | {LEASE_VARIABLE: lease_words(lease)},
            process_group=0,  # Ctrl-C on a terminal reaches this process only, which passes it on once
        )
        return Child(run=run, lease=lease, slot=slot, process=process)


def child_environment(slot: int, jobs: int, device: str) -> dict[str, str]:
    """Environment variables of a child: its parent, and its share of the processors or its own GPU."""
    environment = os.environ | {PARENT_VARIABLE: str(os.getpid())}
    if jobs == 1:
        return environment
    share = max(1, (os.cpu_count() or 1) // jobs)
    given = os.environ.get("OMP_NUM_THREADS", "")
    environment["OMP_NUM_THREADS"] = str(min(share, int(given)) if given.isdigit() and int(given) else share)
    if device in ("auto", "cuda") and (gpus := torch.cuda.device_count()):
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        environment["CUDA_VISIBLE_DEVICES"] = (visible or [str(number) for number in range(gpus)])[slot % gpus]
    return environment


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; free space or choose another --output") from error
