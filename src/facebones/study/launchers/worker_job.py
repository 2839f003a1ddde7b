"""A worker of a study as a job of a cluster: the same command in a process of its own, stopped as its job is."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facebones.errors import RunError
from facebones.study.leases import ROUND_VARIABLE
from facebones.system.processes import PARENT_VARIABLE, STOP_SIGNALS, facebones_command

SAVE_SECONDS = 100.0  # for a training to save; Slurm signals two minutes ahead of its limit
KILLED_SECONDS = 600.0
POLL_SECONDS = 0.2


class WorkerJob:
    """Runs a worker, and waits until it ends; a cluster pickles it and calls it on one of its machines.

    Args:
        words: the command line of a worker, from `compare` on.
        launch: names the launch: its workers try a training that fails once, and not once each.
    """

    def __init__(self, words: Sequence[str], launch: str) -> None:
        self.words, self.launch, self.folder = list(words), launch, str(Path.cwd())
        self._process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}

    def __call__(self) -> int:
        """Run the worker.

        Raises:
            RunError: it ended with an error, or by a signal that is not the job's own.
        """
        own = {PARENT_VARIABLE: str(os.getpid()), ROUND_VARIABLE: self.launch}
        self._process = subprocess.Popen(  # noqa: S603 (our own command line)
            facebones_command(self.words),
            cwd=self.folder,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
        )
        try:
            while (status := self._process.poll()) is None:
                time.sleep(POLL_SECONDS)
        except BaseException:  # the job is cancelled
            self.stop()
            raise
        if status - 128 in STOP_SIGNALS:  # the whole job is signalled ahead of its end: wait for that
            time.sleep(KILLED_SECONDS)
        if status != 0:
            raise RunError(f"the worker ended with status {status}; see its output above")
        return status

    def stop(self) -> None:
        """Ask the worker's trainings to save and end, and wait until they have."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        deadline = time.monotonic() + SAVE_SECONDS
        # Not `wait`: this may run in a signal handler while `poll` holds its lock.
        while time.monotonic() < deadline and not _has_ended(self._process.pid):
            time.sleep(POLL_SECONDS)

    def checkpoint(self) -> Any:
        """Called by submitit ahead of a time limit or a pre-emption; the job is queued again with what this returns."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(WorkerJob(self.words, self.launch))


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
