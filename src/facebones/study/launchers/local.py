"""A training in a process of its own: how it is started, stopped, and what it says of its end."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from facebones.errors import RunError
from facebones.recipe import dump_recipe
from facebones.study.plan import UNFINISHED, PlannedRun
from facebones.system.files import atomic_write
from facebones.system.signals import PARENT_VARIABLE

LONGEST_ERROR = 2000
TAIL_BYTES = 2**14


@dataclass(kw_only=True, eq=False)
class Child:
    """A running training.

    Attributes:
        run: what it trains.
        slot: which of the study's places it has, from 0: decides its GPU.
        begin: length of the log before it.
    """

    run: PlannedRun
    slot: int
    process: "subprocess.Popen[bytes]" = field(repr=False)
    begin: int

    def error(self) -> str | None:
        """Why it ended; None where it is done, and asked only once it has ended."""
        status = self.process.returncode
        if status == 0 and self.run.folder.result.is_file():
            return None
        if status < 0:
            name = signal.Signals(-status).name
            return f"killed by {name}{', perhaps for want of memory' if status == -signal.SIGKILL else ''}"
        return _last_error(self.run.log, self.begin) or f"exit status {status}, and nothing said; see {self.run.log}"


def start_child(run: PlannedRun, slot: int, jobs: int, device: str) -> Child:
    """Begin a run, or go on with it.

    Raises:
        RunError: its files cannot be written.
    """
    if run.state == UNFINISHED:
        words = ["resume", str(run.folder.path), "--data", run.recipe.data.path]
    else:
        with atomic_write(run.recipe_file) as file:
            file.write(dump_recipe(run.first_recipe()).encode())
        words = ["train", str(run.recipe_file), "--output", str(run.folder.path)]
    with _open_log(run.log) as log:
        begin = log.tell()
        process = subprocess.Popen(  # noqa: S603 (our own command line)
            [sys.executable, *_safe_path(), "-m", "facebones", *words, "--device", device],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(slot, jobs, device),
            process_group=0,  # Ctrl-C on a terminal reaches this process only, which hands it on once
        )
        return Child(run=run, slot=slot, process=process, begin=begin)


def child_environment(slot: int, jobs: int, device: str) -> dict[str, str]:
    """The environment of a child: its parent, and its share of the processors or its own GPU."""
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
    """Keep the present folder out of the child's search path, unless this process has it too: it may hold a code.py."""
    return [] if sys.path[0] in ("", str(Path.cwd())) else ["-P"]


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; free space or choose another --output") from error


def _last_error(log: Path, begin: int) -> str:
    """The last line of an error since `begin`, or else the last line at all."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(begin, size - TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError as error:
        return f"{log}: cannot be read: {error.strerror}"
    errors = [line.removeprefix("facebones: ") for line in lines if line.startswith("facebones: ")]
    return ([*lines[-1:], *errors] or [""])[-1][:LONGEST_ERROR]
