"""Starts the workers of a study elsewhere, and shows what they do: the study's folder is all that they share."""

import json
import re
import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from facebones.errors import ConfigError, RunError
from facebones.reporting.report import PAGE, RESULTS
from facebones.study.compare import REPORT_FOLDER, checked_plan
from facebones.study.display import Display
from facebones.study.launchers.options import PREFIX, LauncherOptions
from facebones.study.launchers.ray_tasks import check_ray, run_on_ray
from facebones.study.launchers.slurm import FOLDER, check_slurm, submit
from facebones.study.launchers.worker_job import WorkerJob
from facebones.study.leases import StudyLeases, check_leases
from facebones.study.plan import Plan, make_plan
from facebones.study.planned_run import DONE
from facebones.study.record import STUDY_FILE
from facebones.study.seed_rounds import refuse_auto_seeds, seeds_so_far
from facebones.study.study import Study
from facebones.system.lease import EXPIRY_SECONDS
from facebones.system.progress import say

LOOK_SECONDS = 1.0


def launch(
    study: Study,
    output: Path,
    launcher: str,
    options: LauncherOptions,
    words: Sequence[str],
    *,
    device: str = "auto",
    runtime: str | None = None,
    accept_version: bool = False,
) -> list[str]:
    """Start workers on a cluster, or say how to start them.

    Args:
        study: what the user asked for.
        output: the study's folder, on a file system that all workers share.
        launcher: "slurm", "ray" or "print".
        options: of the launcher.
        words: the command line, from `compare` on; workers get the same without its launcher.
        device: as for `compare`; so are the others.
        runtime: likewise.
        accept_version: likewise.

    Returns:
        lines for the user.

    Raises:
        FaceBonesError: input that cannot be used, the launcher is not installed, or the file system has no leases.
    """
    refuse_auto_seeds(study, f"--launcher {launcher}")
    {"slurm": lambda: check_slurm(options), "ray": check_ray}.get(launcher, lambda: None)()
    plan = checked_plan(study, output, device, runtime, accept_version=accept_version)
    if plan.ahead and launcher == "print":
        raise ConfigError("--launcher print: trials depend on each other (tune); use another launcher, or --jobs")
    todo = [run.name for run in [*plan.runs, *plan.ahead] if run.state != DONE]
    expiry = [] if options.expiry == EXPIRY_SECONDS else [f"--{PREFIX}expiry", f"{options.expiry:g}"]
    own = [*without_launcher(words), "--worker", *expiry]
    if launcher == "print":
        here = shlex.quote(str(Path.cwd()))
        each = [["--only", name] for name in todo] or [[]]
        return [f"cd {here} && facebones {shlex.join([*own, *only])}" for only in each]
    check_leases(output / STUDY_FILE, shared=True)
    job = WorkerJob(own, uuid.uuid4().hex)
    workers = options.workers or max(1, len(todo))
    if launcher == "slurm":
        number = submit(job, workers, output, options)
        return [
            f"submitted job {number} with {workers} worker(s) for {len(todo)} training(s); logs: {output / FOLDER}",
            f"progress: facebones {shlex.join([*without_launcher(words), '--watch'])}",
        ]
    with closing(Progress(plan)) as progress:
        for error in run_on_ray(job, workers, options, progress.show):
            say(f"a worker has failed: {error}")
    return []


def without_launcher(words: Sequence[str]) -> list[str]:
    """A command line without the options of its launcher.

    >>> without_launcher(["compare", "s", "--launcher", "slurm", "--launcher.gpus=1", "--jobs", "2"])
    ['compare', 's', '--jobs', '2']
    """
    kept, rest = [], iter(words)
    for word in rest:
        if not re.match(r"--launcher($|[=.])", word):
            kept.append(word)
        elif "=" not in word:
            next(rest, None)
    return kept


class Progress:
    """Shows trainings that other processes do, from the files in the study's folder."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._leases, self._display = StudyLeases(plan.all_runs, watching=True), Display(plan.all_runs)

    def show(self) -> bool:
        """Look and show; returns whether a training is not done and has not failed."""
        self._leases.look()
        elsewhere = {name: seen.where for name, seen in self._leases.elsewhere().items()}
        self._display.show([], self._leases.errors(), elsewhere)
        return bool(elsewhere or self._leases.waiting())

    @property
    def has_worker(self) -> bool:
        """Whether a worker held a training at the last look."""
        return bool(self._leases.elsewhere())

    @property
    def trials_have_ended(self) -> bool:
        """Whether the trainings that trials decide can be planned, or will not be."""
        return all(tuning.complete for tuning in self._plan.tunings)

    def close(self) -> None:
        """Remove the table."""
        self._display.close()


def watch(study: Study, output: Path, wait: Callable[[float], object] = time.sleep) -> None:
    """Show the progress of a study that other processes work on, until all trainings have ended; nothing is written.

    Raises:
        FaceBonesError: the study cannot be used.
    """
    said = False
    while True:
        whole = make_plan(study, output)
        plan = seeds_so_far(whole)
        with closing(Progress(plan)) as progress:
            while (more := progress.show()) and not (plan.ahead and progress.trials_have_ended):
                if not progress.has_worker and not said:
                    said = True
                    say(f"note: no worker trains in {output} now; the same command without --watch starts one")
                wait(LOOK_SECONDS)
        grown = len(seeds_so_far(whole).runs) > len(plan.runs)
        if not grown and not (more and plan.ahead):
            break
    say(f"all trainings have ended; the report: {output / REPORT_FOLDER / PAGE}")


def result_of(output: Path) -> dict[str, Any]:
    """What `compare` has returned in the worker that made the report.

    Raises:
        RunError: no worker has come so far.
    """
    try:
        content: dict[str, Any] = json.loads((output / STUDY_FILE).read_bytes())
        results = json.loads((output / REPORT_FOLDER / RESULTS).read_bytes())
        return {**content, "answer": list(results["answer"]), "report": str(output / REPORT_FOLDER / PAGE)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{output}: its workers have ended without a report; the same command continues") from error
