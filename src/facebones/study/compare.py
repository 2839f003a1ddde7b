"""`compare`: trains the backbones of a study, measures them all, and writes the report."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from facebones.errors import RunError, UnknownNameError, counted
from facebones.plugins import import_plugins
from facebones.profiling.cost import network_costs
from facebones.recipe_sections import CHOOSABLE
from facebones.reporting.report import PAGE, write_report
from facebones.study.checks import check_trainings, refuse_other_weights
from facebones.study.evaluate import check_evaluation, evaluate_all
from facebones.study.launchers.local import LOOK_SECONDS, train_all
from facebones.study.leases import StudyLeases, check_leases, unfinished
from facebones.study.plan import Plan, make_plan
from facebones.study.planned_run import DONE, TO_DO, UNFINISHED, PlannedRun
from facebones.study.proposals import import_optuna
from facebones.study.record import STUDY_FILE, describe, entry_title, read_entries, write_record
from facebones.study.seed_rounds import check_auto_seeds, decisions, next_round, refuse_auto_seeds, seeds_so_far
from facebones.study.study import Study, load_study
from facebones.study.trials import is_vain
from facebones.system.device import select_device
from facebones.system.lease import EXPIRY_SECONDS, Heartbeat, Lease, LeaseName, Watch, take
from facebones.system.progress import format_seconds, say, track
from facebones.training.autotune import training_rate

REPORT_FOLDER = "report"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What a process of several that work on one study is to do.

    Attributes:
        jobs: number of trainings at a time.
        only: names of the trainings that it may take; none for all.
        wait: whether to wait for the trainings of other workers, and to take up those of dead ones, before the report.
        shared: whether to refuse a file system that workers cannot share, and not just to say so.
        expiry: seconds without a sign of life after which a worker counts as dead.
    """

    jobs: int = 1
    only: Sequence[str] = ()
    wait: bool = True
    shared: bool = False
    expiry: float = EXPIRY_SECONDS


def compare(
    study: Study | str,
    output: str | Path,
    *,
    jobs: int = 1,
    device: str = "auto",
    runtime: str | None = None,
    autotune: bool = False,
    accept_version: bool = False,
    worker: Worker | None = None,
    title: str = "",
) -> dict[str, Any]:
    """Train every backbone, at every level and from every seed, by one recipe, measure all models, and write a report.

    Work that is done already is kept: the same call resumes a study that was stopped, also after an upgrade. Several
    processes, on any machines that share `output`, may make the same call at a time: each takes the next training, and
    one of them measures and reports at the end.

    Args:
        study: a study, its YAML file, or the name of a study in the package.
        output: folder of the study, made here; the report is in its subfolder `report`.
        jobs: number of trainings at a time.
        device: "auto", "cpu", "cuda", ...
        runtime: how models are computed in the evaluation; "auto" measures which way is fastest.
        autotune: let the first training of each backbone choose precision and torch.compile by measuring.
        accept_version: continue runs of an older version even where a field says that this version computes other
            numbers.
        worker: how this process works beside others; replaces `jobs`.
        title: of the report; by default the name of the study.

    Returns:
        The content of study.json, with the sentences of the report ("answer") and the path of its page ("report").
        A run or measurement that failed has its error there; `raise_failures` turns that into a RunError. Where another
        process continues the study, "elsewhere" says which and what it does, and "answer" and "report" are None.

    Raises:
        FaceBonesError: input that cannot be used, or `output` holds runs of another study.
        Interrupted: SIGINT or SIGTERM arrived; all trainings have saved.
    """
    output, worker = Path(output), worker or Worker(jobs=jobs)
    study = study if isinstance(study, Study) else load_study(str(study))
    if worker.only or not worker.wait:
        refuse_auto_seeds(study, "--only" if worker.only else "--worker")
    plan = checked_plan(study, output, device, runtime, autotune=autotune, accept_version=accept_version)
    _refuse_unknown(worker.only, plan)
    for note in plan.notes():
        say(f"note: {note}")
    check_leases(output / STUDY_FILE, shared=worker.shared)
    if not (output / STUDY_FILE).exists():
        write_record(seeds_so_far(plan), {}, [])
    plan, failed = _tune(plan, worker, device, accept_version=accept_version)
    plan, errors, left = _train(plan, failed, worker, device)
    if left:
        return _leave(plan, errors, left)
    with _measuring(output, worker) as busy:
        if busy:
            return _leave(plan, errors, busy)
        content = write_record(plan, errors, evaluate_all(plan, device, runtime, read_entries(output / STUDY_FILE)))
        answer = write_report([output], output / REPORT_FOLDER, title=title, progress=True)["answer"]
    return {**content, "answer": answer, "report": str(output / REPORT_FOLDER / PAGE)}


def _tune(plan: Plan, worker: Worker, device: str, *, accept_version: bool) -> tuple[Plan, dict[str, str]]:
    """Train the trials that have not ended, all backbones' in turn.

    All workers wait for each other's trials, for each depends on those before. After one that fails for a reason that
    another try may not meet (`Tuning.next_run`), its backbone waits for the next call.

    Returns:
        The plan with what the trials have chosen, and why trials have failed, by name.
    """
    failed = dict[str, str]()
    if not plan.ahead:
        return plan, failed
    plan.tunings[0].held_out.write()
    while runs := [run for tuning in plan.tunings if (run := tuning.next_run(failed)) is not None]:
        leases = StudyLeases(runs, expiry=worker.expiry, shared=worker.shared)
        note = partial(_record_errors, seeds_so_far(plan), dict(failed))
        failed |= train_all(leases, note, jobs=worker.jobs, device=device)
    return replace(make_plan(plan.study, plan.output, accept_version=accept_version), unusable=plan.unusable), failed


def _train(whole: Plan, failed: Mapping[str, str], worker: Worker, device: str) -> tuple[Plan, dict[str, str], str]:
    """Train all runs that have not ended; with `seeds: auto` round by round.

    Returns:
        the plan with the seeds that it has come to, why runs and trials have failed, and what other workers still do.
    """
    plan, errors = seeds_so_far(whole), dict(failed)
    for earlier in decisions(plan)[:-1] if plan.study.auto_seeds else ():
        say(f"seeds: {earlier.why}")
    while True:
        leases = StudyLeases(plan.runs, expiry=worker.expiry, shared=worker.shared)
        errors |= train_all(
            leases,
            partial(_record_errors, plan, dict(errors)),
            jobs=worker.jobs,
            device=device,
            only=worker.only,
            wait=worker.wait,
        )
        left = unfinished(leases)
        if left or (decided := next_round(whole, plan)) is None:
            return plan, errors, left
        plan, decision = decided
        say(f"seeds: {decision.why}")
        if not decision.more:
            return plan, errors, left


def _record_errors(plan: Plan, failed: Mapping[str, str], errors: Mapping[str, str]) -> None:
    write_record(plan, {**failed, **errors}, read_entries(plan.output / STUDY_FILE))


def _refuse_unknown(names: Sequence[str], plan: Plan) -> None:
    for name in names:
        if name not in (known := [run.name for run in [*plan.runs, *plan.ahead]]):
            raise UnknownNameError("training", name, known, "--only")


def _leave(plan: Plan, errors: Mapping[str, str], why: str) -> dict[str, Any]:
    """The result of a process that leaves the rest of the study to others; study.json is theirs."""
    content = describe(plan, errors, read_entries(plan.output / STUDY_FILE))
    return {**content, "answer": None, "report": None, "elsewhere": why}


@contextmanager
def _measuring(output: Path, worker: Worker) -> Iterator[str | None]:
    """Be the one process that measures and reports, within the block; yields who does it if it is another one."""
    name = LeaseName(output / "measuring")
    watch = Watch(name)
    lease: Lease | None = None
    while lease is None:
        seen = watch.look()
        if seen.over:
            lease = take(name, seen.number, worker.expiry, shared=worker.shared)
        elif seen.changes > 1:  # it has given a sign of life while this process was looking
            yield f"all trainings have ended; {seen.where} measures the models and writes the report"
            return
        else:
            time.sleep(LOOK_SECONDS)
    try:
        with Heartbeat(lease, lambda: say(f"note: {output}: another worker has taken up the measurements meanwhile")):
            yield None
    finally:
        lease.release()


def preview(
    study: Study | str,
    output: str | Path,
    *,
    device: str = "auto",
    runtime: str | None = None,
    autotune: bool = False,
    accept_version: bool = False,
) -> list[dict[str, Any]]:
    """What `compare` with the same arguments would do: a row for each run. Nothing is trained or written.

    A backbone that no run of the study has timed yet is timed by a few steps here, unless it was before.

    Raises:
        FaceBonesError: as `compare` raises before its first training.
    """
    plan = checked_plan(study, Path(output), device, runtime, autotune=autotune, accept_version=accept_version)
    for note in plan.notes():
        say(f"note: {note}")
    rates = _measured_rates(plan, select_device(device))
    if plan.study.auto_seeds is not None:
        say(f"note: {_least_and_most(plan, rates)}")
    return plan_rows(seeds_so_far(plan), rates)


def _least_and_most(plan: Plan, rates: Mapping[str, float]) -> str:
    """What `seeds: auto` may cost, in words."""
    rows = list(zip([*plan.runs, *plan.ahead], plan_rows(replace(plan, tunings=()), rates), strict=True))
    parts = []
    for seeds in (len(seeds_so_far(plan).study.seeds), len(plan.study.seeds)):
        some = [row for run, row in rows if run.seed < seeds]
        hours = [row["hours"] for row in some]
        left = "unknown time" if None in hours else format_seconds(3600 * sum(hours))
        counts = f"{counted(seeds, 'seed')}, {counted(len(some), 'training')}"
        parts.append(f"{counts}, {sum(row['images'] for row in some):,} images, {left} left")
    return f"seeds: auto: at least {parts[0]}; at most {parts[1]}"


def checked_plan(
    study: Study | str,
    output: Path,
    device: str,
    runtime: str | None,
    *,
    autotune: bool = False,
    accept_version: bool = False,
) -> Plan:
    """The plan of a study, after everything was checked that can be without training.

    Raises:
        FaceBonesError: as `compare` raises before its first training.
    """
    select_device(device)  # refuses an unknown one before anything is read
    study = study if isinstance(study, Study) else load_study(str(study))
    import_plugins(study.imports, "import:")
    if autotune:
        study = replace(study, overrides={"training.choose": ",".join(CHOOSABLE)} | dict(study.overrides))
    plan = make_plan(study, output, accept_version=accept_version)
    check_trainings([*plan.runs, *plan.ahead])
    refuse_other_weights(plan.all_runs)
    check_auto_seeds(plan)
    if plan.ahead:
        import_optuna()
    return replace(plan, unusable=check_evaluation(plan, device, runtime))


def raise_failures(content: Mapping[str, Any]) -> None:
    """Raise RunError if a run or a measurement of the study has failed; the rest of the results is complete."""
    failed = [run["name"] for run in content["runs"] if run["error"]]
    for tuned in content.get("tuning", {}).get("backbones", ()):
        failed += [f"all trials of {tuned['name']}"] if is_vain(tuned) else _unfinished(tuned)
    failed += [entry_title(entry) for entry in content["evaluation"] if entry["error"]]
    if failed:
        raise RunError(
            f"failed: {', '.join(failed)}; the rest is done; {content['file']} has the errors, and the same command"
            " tries again"
        )


def _unfinished(tuned: Mapping[str, Any]) -> list[str]:
    """The trial of a backbone that has failed in this call, so that those after it, and its training, wait."""
    trials = tuned["trials"]
    left = [one for one in trials if one["error"] and one["state"] in (TO_DO, UNFINISHED)]
    return [f"{tuned['name']}_trial{one['trial']}" for one in left]


def _known_rates(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """Images per second by backbone and by variant, from the last line of a run of each."""
    known = [(run, rate) for run in runs if (rate := run.progress()["images_per_second"])]
    return {run.backbone: rate for run, rate in known} | {run.variant: rate for run, rate in known}


def _measured_rates(plan: Plan, device: torch.device) -> dict[str, float]:
    """Images per second by variant, of those of which no run of their backbone has got far enough to tell."""
    known = _known_rates(plan.all_runs)
    waiting = {
        run.variant: run.recipe
        for run in plan.all_runs
        if run.state != DONE
        and not {run.variant, run.backbone} & {*known}
        and network_costs(run.backbone, run.recipe.backbone.embedding_size)["problem"] is None
    }
    shown = track(waiting.items(), "timing a few steps of each backbone", len(waiting))
    return {name: training_rate(recipe, device) for name, recipe in shown}


def plan_rows(plan: Plan, measured: Mapping[str, float] = MappingProxyType({})) -> list[dict[str, Any]]:
    """A row for each run: its network's cost, how far it is, and the hours left.

    "worker" is the process that has the run's lease.
    The hours follow from the last rate of a run of the same backbone, at best of its levels too, in the study's folder,
    or else from a measured rate; None if there is none.

    Args:
        plan: of the study.
        measured: images per second by variant.
    """
    runs = plan.all_runs
    progress = {run.name: run.progress() for run in runs}
    held = StudyLeases(runs).elsewhere()
    rates = {**measured, **_known_rates(runs)}
    rows = []
    for run in runs:
        step = run.steps if run.state == DONE else progress[run.name]["step"]
        left, rate = (
            run.images * (run.steps - step) / max(run.steps, 1),
            rates.get(run.variant, rates.get(run.backbone)),
        )
        rows.append(
            {
                "name": run.name,
                **({"levels": dict(run.levels)} if run.levels else {}),
                **network_costs(run.backbone, run.recipe.backbone.embedding_size),
                "images": run.images,
                "steps": run.steps,
                "state": run.state,
                "step": step,
                "worker": held[run.name].where if run.name in held else None,
                "hours": 0.0 if not left else left / rate / 3600 if rate else None,
                "folder": str(run.folder.path),
                "versions": run.versions(),
            }
        )
    return rows
