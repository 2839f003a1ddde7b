"""The trainings of a study, some at a time, each in a process of its own, and how a stop reaches them all."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from facebones.study.display import Display
from facebones.study.launchers.local import Child, start_child
from facebones.study.plan import DONE, TO_DO, Plan, PlannedRun
from facebones.system.progress import say
from facebones.system.signals import Interrupted, stop_signals

POLL_SECONDS = 0.2

Errors = dict[str, str]


def train_all(plan: Plan, jobs: int, device: str, errors: Errors, note: Callable[[], object]) -> None:
    """Train what is not done yet; a run that fails does not stop the others.

    Args:
        plan: the runs.
        jobs: how many at a time.
        device: of each, as for `facebones train`.
        errors: gets the error of each run that fails, by the run's name; also where all is broken off later.
        note: called whenever a run has ended.

    Raises:
        Interrupted: SIGINT or SIGTERM came, and the trainings have saved and ended. After a second one they were
            killed, and their last checkpoints stand.
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
        except BaseException:  # a second signal, or a failure of this process: nothing goes on behind its back
            _kill_all(running)
            raise
        if stop.received is not None:
            raise Interrupted(stop.received)


def next_run(waiting: Sequence[PlannedRun], running: Sequence[PlannedRun]) -> PlannedRun | None:
    """The first that can begin; another seed of a backbone waits while the first one chooses settings for both."""
    choosing = {run.backbone for run in running if run.recipe.training.choose and run.state == TO_DO}
    return next((run for run in waiting if run.backbone not in choosing), None)


def _reap(running: list[Child], errors: Errors, display: Display) -> bool:
    """Take note of the trainings that have ended; says whether there was one."""
    ended = [child for child in running if child.process.poll() is not None]
    for child in ended:
        running.remove(child)
        error = child.error()
        if error is not None:
            errors[child.run.name] = error
        display.end(child.run, error)
    return bool(ended)


def _stop_all(running: Sequence[Child], number: signal.Signals | None) -> None:
    """Hand a signal on and wait until every training has saved and ended."""
    if number is not None:
        say(f"stopping: trainings that save and end: {len(running)} (the same signal again kills them)")
        for child in running:
            child.process.send_signal(number)
        for child in running:
            child.process.wait()


def _kill_all(running: Sequence[Child]) -> None:
    for child in running:
        child.process.kill()
    for child in running:
        child.process.wait()
