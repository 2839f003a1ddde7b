"""`compare`: trains the backbones of a study, measures them all, and writes the report.

study.json: what ran, what failed, and what was measured; files of older versions are translated when read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from facebones.errors import RunError
from facebones.plugins import import_plugins, imported_plugins
from facebones.profiling.cost import network_costs
from facebones.recipe import CHOOSABLE
from facebones.reporting.evaluations import read_evaluation
from facebones.reporting.format1 import translate_study
from facebones.reporting.report import PAGE, write_report
from facebones.run_folder import folder_lock
from facebones.statistics.significance import over_seeds
from facebones.study.evaluate import check_evaluation, evaluate_all
from facebones.study.launchers.local import train_all
from facebones.study.plan import DONE, Plan, PlannedRun, make_plan, versions_here
from facebones.study.study import Study, load_study
from facebones.system.device import select_device
from facebones.system.files import write_json
from facebones.system.progress import say

REPORT_FOLDER = "report"


def compare(
    study: Study | str,
    output: str | Path,
    *,
    jobs: int = 1,
    device: str = "auto",
    runtime: str | None = None,
    autotune: bool = False,
    accept_version: bool = False,
) -> dict[str, Any]:
    """Train every backbone from every seed by one recipe, measure all models, and write a report.

    Work that is done already is kept: the same call resumes a study that was stopped, also after an upgrade.

    Args:
        study: a study, its YAML file, or the name of a study in the package.
        output: folder of the study, made here; the report is in its subfolder `report`.
        jobs: number of trainings at a time.
        device: "auto", "cpu", "cuda", ...
        runtime: how models are computed in the evaluation; "auto" measures which way is fastest.
        autotune: let the first training of each backbone choose precision and torch.compile by measuring.
        accept_version: continue runs of an older version even where a field says that this version computes other
            numbers.

    Returns:
        The content of study.json, with the sentences of the report ("answer") and the path of its page ("report").
        A run or measurement that failed has its error there; `raise_failures` turns that into a RunError.

    Raises:
        FaceBonesError: input that cannot be used, or `output` holds runs of another study.
        Interrupted: SIGINT or SIGTERM arrived; all trainings have saved.
    """
    output = Path(output)
    plan = _checked_plan(study, output, device, runtime, autotune=autotune, accept_version=accept_version)
    for note in plan.notes():
        say(f"note: {note}")
    with folder_lock(output, "compares"):
        for run in plan.runs:  # another process may have worked here in the meantime
            run.refuse_another()
        before = read_entries(output / STUDY_FILE)
        errors: dict[str, str] = {}
        try:
            train_all(plan, jobs, device, errors, lambda: write_record(plan, errors, before))
        finally:
            write_record(plan, errors, before)
        content = write_record(plan, errors, evaluate_all(plan, device, runtime, before))
        answer = write_report([output], output / REPORT_FOLDER)["answer"]
    return {**content, "answer": answer, "report": str(output / REPORT_FOLDER / PAGE)}


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

    Raises:
        FaceBonesError: as `compare` raises before its first training.
    """
    plan = _checked_plan(study, Path(output), device, runtime, autotune=autotune, accept_version=accept_version)
    for note in plan.notes():
        say(f"note: {note}")
    return plan_rows(plan)


def _checked_plan(
    study: Study | str, output: Path, device: str, runtime: str | None, *, autotune: bool, accept_version: bool
) -> Plan:
    select_device(device)  # refuses an unknown one before anything is read
    study = study if isinstance(study, Study) else load_study(str(study))
    import_plugins(study.imports, "import:")
    if autotune:
        study = replace(study, overrides={"training.choose": ",".join(CHOOSABLE)} | dict(study.overrides))
    plan = make_plan(study, output, accept_version=accept_version)
    check_evaluation(plan, device, runtime)
    return plan


def raise_failures(content: Mapping[str, Any]) -> None:
    """Raise RunError if a run or a measurement of the study has failed; the rest of the results is complete."""
    failed = [run["name"] for run in content["runs"] if run["error"]]
    failed += [entry_title(entry) for entry in content["evaluation"] if entry["error"]]
    if failed:
        raise RunError(
            f"failed: {', '.join(failed)}; the rest is done; {content['file']} has the errors, and the same command"
            " tries again"
        )


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """A row for each run: its network's cost, how far it is, and the hours left.

    The hours follow from the last rate of a run of the same backbone in the study's folder; None if there is none.
    """
    progress = {run.name: run.progress() for run in plan.runs}
    rates = {run.backbone: rate for run in plan.runs if (rate := progress[run.name]["images_per_second"])}
    rows = []
    for run in plan.runs:
        step = run.steps if run.state == DONE else progress[run.name]["step"]
        left, rate = run.images * (run.steps - step) / max(run.steps, 1), rates.get(run.backbone)
        rows.append(
            {
                "name": run.name,
                **network_costs(run.backbone, run.recipe.backbone.embedding_size),
                "images": run.images,
                "steps": run.steps,
                "state": run.state,
                "step": step,
                "hours": 0.0 if not left else left / rate / 3600 if rate else None,
                "folder": str(run.folder.path),
                "versions": run.versions(),
            }
        )
    return rows


# ----------------------------------------------------------------------------------------------------------- study.json


STUDY_FILE = "study.json"
FORMAT = 2
# Kinds of entries of "evaluation".
PROTOCOL, PROFILE, MODEL_LEFT_OUT, SET_LEFT_OUT = "protocol", "profile", "model_left_out", "set_left_out"

MEASUREMENT = {"kind", "file", "error", "inputs", "versions"}  # keys of its entry

Entry = dict[str, Any]


def write_record(plan: Plan, errors: Mapping[str, str], evaluation: Sequence[Entry]) -> dict[str, Any]:
    """Write study.json as things stand; returns its content.

    Args:
        plan: the study.
        errors: why runs have failed, by the run's name.
        evaluation: an entry for each measurement, and for each model or set that was left out.
    """
    here = versions_here()
    runs = [_run_row(plan, run, errors.get(run.name)) for run in plan.runs]
    content = {
        "format": FORMAT,
        "facebones": here["facebones"],
        "git_revision": here["git_revision"],
        "file": str(plan.output / STUDY_FILE),
        "study": plan.study.to_json(),
        "plugins": imported_plugins(),
        "recipe": plan.study.resolved_recipe().to_dict(),
        "models": {name: str(path) for name, path in finished_models(plan).items()},
        "runs": runs,
        "evaluation": list(evaluation),
        "summary": _summary(plan, runs, evaluation),
    }
    write_json(plan.output / STUDY_FILE, content)
    return content


def finished_models(plan: Plan) -> dict[str, Path]:
    """Models that can be measured: name to run folder or file."""
    return {run.name: run.folder.path for run in plan.runs if run.state == DONE} | dict(plan.trained)


def entry_title(entry: Entry) -> str:
    """What an entry is about, in a message.

    >>> entry_title({"kind": "protocol", "protocol": "ijb_verification", "set": "IJBC"})
    'ijb_verification IJBC'
    """
    match entry["kind"]:
        case "protocol":
            return " ".join(filter(None, (entry["protocol"], entry["set"])))
        case "model_left_out":
            return f"model {entry['name']}"
        case "set_left_out":
            return f"set {entry['name']}"
    return str(entry["kind"])


def read_entries(path: Path) -> list[Entry]:
    """The measurements in an earlier study.json, also of an older format; empty if none can be used."""
    try:
        content = json.loads(path.read_bytes())
        if "format" in content:
            return [entry for entry in map(dict, content["evaluation"]) if _is_measurement(entry)]
        versions = {"facebones": str(content["facebones"]), "git_revision": content.get("commit"), "torch": None}
        translated = [{**entry, "versions": versions} for entry in translate_study(content)["evaluation"]]
        return [entry for entry in translated if _is_measurement(entry)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _is_measurement(entry: Entry) -> bool:
    return entry.keys() >= MEASUREMENT and isinstance(entry["versions"], dict)


# ------------------------------------------------------------------------------------------------ rows and summary


def _run_row(plan: Plan, run: PlannedRun, error: str | None) -> dict[str, Any]:
    done = run.state == DONE
    return {
        "name": run.name,
        "backbone": run.backbone,
        "seed": run.seed,
        "folder": str(run.folder.path.relative_to(plan.output)),
        "log": str(run.log.relative_to(plan.output)),
        "state": run.state,
        "error": None if done else error,
        "fingerprint": run.fingerprint,
        "versions": run.versions(),
        "steps": run.steps,
        "step": run.steps if done else run.progress()["step"],
        "final": json.loads(run.folder.result.read_bytes())["final"] if done else [],
    }


def _summary(plan: Plan, runs: Sequence[Mapping[str, Any]], evaluation: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each backbone: its cost, its main metrics over the seeds, and its errors."""
    measured = list(_main_metrics(plan.output, evaluation))
    left_out = {entry["name"]: entry["error"] for entry in evaluation if entry["kind"] == MODEL_LEFT_OUT}
    size = plan.study.resolved_recipe().backbone.embedding_size
    rows = []
    for backbone in dict.fromkeys(run["backbone"] for run in runs):
        own = [run for run in runs if run["backbone"] == backbone]
        errors = [run["error"] or left_out.get(run["name"]) for run in own]
        done = [run["name"] for run in own if run["state"] == DONE]
        row = {"backbone": backbone, **network_costs(backbone, size), "planned": len(own), "done": len(done)}
        rows.append(row | {"metrics": _over_seeds(measured, done), "errors": list(dict.fromkeys(filter(None, errors)))})
    for name in plan.trained:
        row = {"backbone": name, "parameters": None, "macs": None, "problem": None, "planned": 1}
        errors = [left_out[name]] if name in left_out else []
        rows.append({**row, "done": 1 - len(errors), "metrics": _over_seeds(measured, [name]), "errors": errors})
    return rows


def _main_metrics(output: Path, evaluation: Sequence[Entry]) -> Iterator[Mapping[str, Any]]:
    """The metrics by which backbones are chosen; all measured ones of a set that names none as such."""
    for entry in evaluation:
        if entry["kind"] != PROTOCOL or entry["error"] or not (output / entry["file"]).is_file():
            continue
        for result in read_evaluation(output / entry["file"])["results"]:
            measured = [metric for metric in result["metrics"] if metric["values"]]
            for metric in [metric for metric in measured if metric["main"]] or measured:
                yield {key: result[key] for key in ("protocol", "set", "setting")} | metric


def _over_seeds(measured: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for metric in measured:
        values = [metric["values"][name] for name in models if name in metric["values"]]
        if values:
            spread = over_seeds(values)
            interval = spread.interval and {"low": spread.interval.low, "high": spread.interval.high}
            identity = {key: metric[key] for key in ("protocol", "set", "setting", "name", "at", "rule")}
            numbers = {"mean": spread.mean, "deviation": spread.deviation, "interval": interval, "values": values}
            found.append({**identity, "higher_is_better": metric["higher_is_better"], **numbers})
    return found
