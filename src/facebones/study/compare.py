"""`facebones compare`: a study from its file to `study.json`, which says what ran, what failed, and what came out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import facebones
from facebones.errors import RunError
from facebones.profiling.cost import network_costs
from facebones.run_folder import folder_lock
from facebones.statistics.significance import over_seeds
from facebones.study.evaluate import check_evaluation, evaluate_all, finished_models
from facebones.study.plan import DONE, UNFINISHED, Plan, PlannedRun, make_plan
from facebones.study.runner import train_all
from facebones.study.study import MODEL_PART, Study
from facebones.system.environment import git_revision
from facebones.system.files import write_json
from facebones.system.progress import format_seconds

STUDY_FILE = "study.json"


def compare(
    study: Study, output: Path, *, jobs: int = 1, device: str = "auto", runtime: str | None = None
) -> dict[str, Any]:
    """Train every backbone from every seed by one recipe, and measure them all; what is done already is kept.

    Args:
        study: what to compare.
        output: folder of the study, made here.
        jobs: trainings at a time.
        device: "auto", "cpu", "cuda", ...
        runtime: of the evaluation, as in `runtime_choice.with_runtime`.

    Returns:
        what study.json holds; `reporting.report.write_report` makes a report of it.

    Raises:
        FaceBonesError: input that cannot be used, or a run in `output` that another study has made.
        Interrupted: SIGINT or SIGTERM came; all trainings have saved. The same call goes on.
    """
    plan = make_plan(study, output)
    check_evaluation(plan, device, runtime)
    with folder_lock(output, "compares"):
        for run in plan.runs:  # since they were last asked, another process may have been here
            run.refuse_another()
        before = _evaluation_before(output / STUDY_FILE)
        errors: dict[str, str] = {}
        try:
            train_all(plan, jobs, device, errors, lambda: _write(plan, errors, before))
        finally:
            _write(plan, errors, before)
        return _write(plan, errors, evaluate_all(plan, device, runtime, before))


def raise_failures(content: Mapping[str, Any]) -> None:
    """Raise RunError where a run or a part of the evaluation has failed: the rest stands, but it is not the whole."""
    failed = [run["name"] for run in content["runs"] if run["error"]]
    failed += [name for name, part in content["evaluation"].items() if part["error"]]
    if failed:
        raise RunError(
            f"failed: {', '.join(failed)}; the rest is done, and the same command tries again; {content['file']} has"
            " the errors"
        )


def study_table(content: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Column names and rows for people: a backbone each, with its accuracy on each pair set over the seeds."""
    sets = list(dict.fromkeys(name for row in content["summary"] for name in row["accuracy"]))
    rows: list[Sequence[str]] = []
    for row in content["summary"]:
        cost = ["-" if row["parameters"] is None else f"{row['parameters']:,}"]
        cost.append("-" if row["macs"] is None else f"{row['macs'] / 1e6:,.1f} M")
        cells = [_spread(row["accuracy"].get(name)) for name in sets]
        rows.append((row["backbone"], *cost, *cells, f"{row['done']}/{row['planned']}", "; ".join(row["errors"])))
    return ("backbone", "parameters", "MACs", *(f"{name}: accuracy" for name in sets), "seeds", "error"), rows


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """What `--dry-run` tells of each run; nothing is trained or written.

    The hours that are left follow from the rate that a run of the same backbone, in this study's folder, had last; they
    are None where there is none.
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
            }
        )
    return rows


def plan_table(rows: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Column names and rows of a plan, for people."""
    return ("run", "parameters", "MACs", "images", "steps", "left", "state"), [_plan_cells(row) for row in rows]


def _plan_cells(row: Mapping[str, Any]) -> Sequence[str]:
    known = row["problem"] is None
    state = f"to resume after step {row['step']}" if row["state"] == UNFINISHED else row["state"]
    return (
        row["name"],
        f"{row['parameters']:,}" if known else "-",
        f"{row['macs'] / 1e6:,.1f} M" if known else "-",
        f"{row['images']:,}",
        f"{row['steps']:,}",
        "unknown" if row["hours"] is None else format_seconds(3600 * row["hours"]),
        state if known else f"{state}; cannot be built: {row['problem']}",
    )


def _write(plan: Plan, errors: Mapping[str, str], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Write study.json as things stand; returns its content."""
    runs = [_run_json(plan, run, errors.get(run.name)) for run in plan.runs]
    content = {
        "facebones": facebones.__version__,
        "commit": git_revision(),
        "file": str(plan.output / STUDY_FILE),
        "study": plan.study.to_json(),
        "recipe": plan.study.resolved_recipe().to_dict(),
        "pair_sets": [str(path) for path in plan.pair_sets],
        "models": {name: str(path) for name, path in finished_models(plan).items()},
        "runs": runs,
        "evaluation": dict(evaluation),
        "summary": _summary(plan, runs, evaluation),
    }
    write_json(plan.output / STUDY_FILE, content)
    return content


def _run_json(plan: Plan, run: PlannedRun, error: str | None) -> dict[str, Any]:
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
        "steps": run.steps,
        "step": run.steps if done else run.progress()["step"],
        "final": json.loads(run.folder.result.read_bytes())["final"] if done else [],
    }


def _summary(plan: Plan, runs: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each backbone: cost, accuracies over its seeds, errors."""
    measured = _accuracies(plan.output, evaluation)
    left_out = {run["name"]: _left_out(evaluation, run["name"]) for run in runs}
    size = plan.study.resolved_recipe().backbone.embedding_size
    rows = []
    for backbone in dict.fromkeys(run["backbone"] for run in runs):
        own = [run for run in runs if run["backbone"] == backbone]
        rows.append(
            {
                "backbone": backbone,
                **network_costs(backbone, size),
                "planned": len(own),
                "done": sum(run["state"] == DONE for run in own),
                "accuracy": _over_seeds(measured, [run["name"] for run in own if run["state"] == DONE]),
                "errors": list(dict.fromkeys(filter(None, (run["error"] or left_out[run["name"]] for run in own)))),
            }
        )
    for name in plan.trained:
        error = _left_out(evaluation, name)
        known: dict[str, Any] = {
            "parameters": None,
            "macs": None,
            "problem": None,
            "planned": 1,
            "done": int(error is None),
            "errors": [] if error is None else [error],
        }
        rows.append({"backbone": name, **known, "accuracy": _over_seeds(measured, [name])})
    return rows


def _left_out(evaluation: Mapping[str, Any], model: str) -> str | None:
    """Why a model could not be measured."""
    row = evaluation.get(f"{MODEL_PART}{model}")
    return row and row["error"]


def _accuracies(output: Path, evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Set to model to accuracy, from pairs.json, where that is as good as the present models."""
    part = evaluation.get("pairs")
    if not part or part["error"] or not (output / part["file"]).is_file():
        return {}
    content = json.loads((output / part["file"]).read_bytes())
    return {
        section["set"]: {name: model["accuracy"] for name, model in section["models"].items()}
        for section in content["sets"]
    }


def _over_seeds(measured: Mapping[str, Mapping[str, float]], models: Sequence[str]) -> dict[str, Any]:
    found = {}
    for pair_set, accuracies in measured.items():
        values = [accuracies[name] for name in models if name in accuracies]
        if values:
            spread = over_seeds(values)
            interval = spread.interval and {"low": spread.interval.low, "high": spread.interval.high}
            found[pair_set] = {
                "mean": spread.mean,
                "deviation": spread.deviation,
                "interval": interval,
                "values": values,
            }
    return found


def _spread(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return "-"
    deviation = accuracy["deviation"]
    return f"{accuracy['mean']:.2%}" + ("" if deviation is None else f" +- {deviation:.2%}")


def _evaluation_before(path: Path) -> dict[str, Any]:
    """The evaluation of an earlier call; a file that says nothing of it is written anew."""
    try:
        evaluation = json.loads(path.read_bytes())["evaluation"]
        return {str(name): dict(part) for name, part in evaluation.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
