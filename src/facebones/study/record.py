"""study.json: what ran, what failed, and what was measured; files of older versions are translated when read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from facebones.plugins import imported_plugins
from facebones.profiling.cost import network_costs
from facebones.reporting.evaluations import read_evaluation
from facebones.reporting.format1 import translate_study
from facebones.reporting.runs import read_json
from facebones.reporting.words import headline
from facebones.statistics.significance import over_seeds
from facebones.study.plan import Plan
from facebones.study.planned_run import DONE, PlannedRun, versions_here
from facebones.study.seed_rounds import decisions
from facebones.system.files import write_json
from facebones.system.regular_files import read_regular

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
    content = describe(plan, errors, evaluation)
    write_json(plan.output / STUDY_FILE, content)
    return content


def describe(plan: Plan, errors: Mapping[str, str], evaluation: Sequence[Entry]) -> dict[str, Any]:
    """The content of study.json as things stand; see `write_record`."""
    here = versions_here()
    runs = [_run_row(plan, run, errors.get(run.name)) for run in plan.runs]
    return {
        "format": FORMAT,
        "facebones": here["facebones"],
        "git_revision": here["git_revision"],
        "file": str(plan.output / STUDY_FILE),
        "study": plan.study.to_json(),
        "plugins": imported_plugins(),
        "recipe": plan.study.resolved_recipe().to_dict(),
        "models": {name: str(path) for name, path in finished_models(plan).items()},
        **({"tuning": _tuning(plan, errors)} if plan.tunings else {}),
        **({"auto_seeds": [one.to_json() for one in decisions(plan)]} if plan.study.auto_seeds else {}),
        "runs": runs,
        "evaluation": list(evaluation),
        "summary": _summary(plan, runs, evaluation),
    }


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
        content = json.loads(read_regular(path))
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
        **({"levels": dict(run.levels)} if run.levels else {}),
        "seed": run.seed,
        "folder": str(run.folder.path.relative_to(plan.output)),
        "log": str(run.log.relative_to(plan.output)),
        "state": run.state,
        "error": None if done else error,
        "fingerprint": run.fingerprint,
        "versions": run.versions(),
        "steps": run.steps,
        "step": run.steps if done else run.progress()["step"],
        "final": run.result()["final"] if done else [],
    }


def _tuning(plan: Plan, errors: Mapping[str, str]) -> dict[str, Any]:
    held_out = plan.tunings[0].held_out
    return {
        "people": held_out.data.num_identities - held_out.trained.num_identities,
        "pairs": held_out.count,
        "backbones": [tuning.to_json(errors) for tuning in plan.tunings],
    }


def _summary(plan: Plan, runs: Sequence[Mapping[str, Any]], evaluation: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each backbone, at each of its levels: its cost, its main metrics over the seeds, and its errors."""
    measured = list(_headline_metrics(plan.output, evaluation))
    left_out = {entry["name"]: entry["error"] for entry in evaluation if entry["kind"] == MODEL_LEFT_OUT}
    latency = _latencies(plan.output, evaluation)
    variants: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        variants.setdefault(run.variant, []).append(run)
    described = {row["name"]: row for row in runs}
    rows = []
    for planned in variants.values():
        first, own = planned[0], [described[run.name] for run in planned]
        errors = [row["error"] or left_out.get(row["name"]) for row in own]
        done = [row["name"] for row in own if row["state"] == DONE]
        row: Entry = {"backbone": first.backbone} | ({"levels": dict(first.levels)} if first.levels else {})
        row |= network_costs(first.backbone, first.recipe.backbone.embedding_size)
        row |= {"latency_ms": latency.get(first.network), "planned": len(own), "done": len(done)}
        rows.append(row | {"metrics": _over_seeds(measured, done), "errors": list(dict.fromkeys(filter(None, errors)))})
    for name in plan.trained:
        row = {"backbone": name, "parameters": None, "macs": None, "problem": None}
        row |= {"latency_ms": latency.get(name), "planned": 1}
        errors = [left_out[name]] if name in left_out else []
        rows.append({**row, "done": 1 - len(errors), "metrics": _over_seeds(measured, [name]), "errors": errors})
    return rows


def _latencies(output: Path, evaluation: Sequence[Entry]) -> dict[str, float]:
    """Median latency of one image, ms, of each network that was profiled."""
    files = [output / one["file"] for one in evaluation if one["kind"] == PROFILE and not one["error"]]
    rows = [row for file in files if file.is_file() for row in read_json(file)["networks"]]
    return {row["name"]: row["latency_p50_ms"] for row in rows}


def _headline_metrics(output: Path, evaluation: Sequence[Entry]) -> Iterator[Mapping[str, Any]]:
    """The metrics that tables show first; all measured ones of a set that names none as main."""
    for entry in evaluation:
        if entry["kind"] != PROTOCOL or entry["error"] or not (output / entry["file"]).is_file():
            continue
        for result in read_evaluation(output / entry["file"])["results"]:
            measured = [metric for metric in result["metrics"] if metric["values"]]
            for metric in headline(measured) or measured:
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
