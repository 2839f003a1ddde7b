"""Trains the runs of a study on this machine, a few at a time, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from facebones.errors import RunError
from facebones.plugins import imported_plugins
from facebones.recipe import dump_recipe
from facebones.study.display import Display
from facebones.study.plan import DONE, TO_DO, UNFINISHED, Plan, PlannedRun
from facebones.system.files import atomic_write
from facebones.system.processes import PARENT_VARIABLE, Interrupted, stop_signals
from facebones.system.progress import say

POLL_SECONDS = 0.2
LONGEST_ERROR = 2000

Errors = dict[str, str]


def train_all(plan: Plan, jobs: int, device: str, errors: Errors, note: Callable[[], object]) -> None:
    """Train every run that is not done; a run that fails does not stop the others.

    Args:
        plan: the runs.
        jobs: number of trainings at a time.
        device: device of each training, as for `facebones train`.
        errors: receives the error of each failed run by the run's name, also when the study is stopped later.
        note: called whenever a run has ended.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; the trainings have saved and ended. A second signal kills them, and
            their last checkpoints remain.
    """
    waiting = [run for run in plan.runs if run.state != DONE]
    running: list[Child] = []
    with stop_signals() as stop, closing(Display(plan.runs)) as display:
        try:
            while (waiting or running) and stop.received is None:
                while len(running) < jobs and (run := next_run(waiting, [child.run for child in running])):
                    waiting.remove(run)
                    display.begin(run)
                    slot = min(set(range(jobs)) - {child.slot for child in running})
                    running.append(start_child(run, slot, jobs, device))
                time.sleep(POLL_SECONDS)
                if _reap(running, errors, display):
                    note()
                display.show([child.run for child in running], errors)
            _stop_all(running, stop.received)
        except BaseException:  # a second signal, or a failure of this process: leave no training running
            _kill_all(running)
            raise
        if stop.received is not None:
            raise Interrupted(stop.received)


def next_run(waiting: Sequence[PlannedRun], running: Sequence[PlannedRun]) -> PlannedRun | None:
    """The first run that can start; other seeds of a backbone wait while the first one autotunes for all of them."""
    choosing = {run.backbone for run in running if run.recipe.training.choose and run.state == TO_DO}
    return next((run for run in waiting if run.backbone not in choosing), None)


def _reap(running: list["Child"], errors: Errors, display: Display) -> bool:
    """Remove the trainings that have ended; returns whether there was one."""
    ended = [child for child in running if child.process.poll() is not None]
    for child in ended:
        running.remove(child)
        error = child.error()
        if error is not None:
            errors[child.run.name] = error
        display.end(child.run, error)
    return bool(ended)


def _stop_all(running: Sequence["Child"], number: signal.Signals | None) -> None:
    """Pass a signal on and wait until every training has saved and ended."""
    if number is not None:
        say(f"stopping: {len(running)} training(s) save and end (the same signal again kills them)")
        for child in running:
            child.process.send_signal(number)
        for child in running:
            child.process.wait()


def _kill_all(running: Sequence["Child"]) -> None:
    for child in running:
        child.process.kill()
    for child in running:
        child.process.wait()


# ---------------------------------------------------------------------------------------------------- one child


@dataclass(kw_only=True, eq=False)
class Child:
    """A training in a process of its own.

    Attributes:
        run: the run that it trains.
        slot: its place among the study's parallel trainings, from 0; it decides the GPU.
        process: the process.
    """

    run: PlannedRun
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


def start_child(run: PlannedRun, slot: int, jobs: int, device: str) -> Child:
    """Start a run, or resume it.

    Raises:
        RunError: its files cannot be written.
    """
    if run.state == UNFINISHED:
        if run.accept_version:
            run.write_lacking_fields()
        words = ["resume", str(run.folder.path), "--data", run.recipe.data.path]
    else:
        with atomic_write(run.recipe_file) as file:
            file.write(dump_recipe(run.first_recipe()).encode())
        words = ["train", str(run.recipe_file), "--output", str(run.folder.path)]
    words += [word for name in imported_plugins() for word in ("--import", name)]
    with _open_log(run.log) as log:
        run.folder.error.unlink(missing_ok=True)  # of an earlier attempt
        process = subprocess.Popen(  # noqa: S603 (our own command line)
            [sys.executable, *_safe_path(), "-m", "facebones", *words, "--device", device],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(slot, jobs, device),
            process_group=0,  # Ctrl-C on a terminal reaches this process only, which passes it on once
        )
        return Child(run=run, slot=slot, process=process)


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


def _safe_path() -> list[str]:
    """Keep the current folder, which may hold a code.py, out of the child's search path unless it is in ours."""
    return [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; free space or choose another --output") from error
