"""Folders as studies, runs, evaluations and profiles leave them, small and without training; for tests of reports."""

import json
from itertools import combinations
from unittest.mock import patch

import numpy as np

from facebones.backbones import list_backbones
from facebones.recipe import dump_recipe, recipe_from_dict

SMALL, MIDDLE, LARGE = "shufflefacenet_0_5", "shufflefacenet_1_0", "shufflefacenet_1_5"
STEPS = 4
PARAMETERS = {SMALL: 500_000, MIDDLE: 1_500_000, LARGE: 2_500_000}


def default_accuracy(place, seed):
    """Two points fewer for each backbone, a tenth more for each seed."""
    return round(0.95 - 0.02 * place + 0.001 * seed, 6)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def validation(set_name, step, accuracy, best):
    known = {"accuracy_std": 0.01, "tar_at_far_1e3": 0.5, "far_reached": 0.001, "auc": 0.98, "eer": 0.05, "xnorm": 20.0}
    return {"set": set_name, "accuracy": accuracy, **known, "step": step, "epoch": 1, "best_accuracy": best}


def make_run(folder, backbone=SMALL, seed=0, *, accuracy=0.95, sets=("lfw",), done=True, best=0.96, data="a", **recipe):
    """Write a run of STEPS steps; the best accuracy is that of the first validation.

    Args:
        folder: of the run.
        backbone: name.
        seed: of the training.
        accuracy: the final one, of each set.
        sets: that were validated.
        done: whether there are final metrics; else the run was stopped after two steps.
        best: accuracy of each set at half of the steps.
        data: fingerprint of the training data.
        recipe: "section__field" to value.
    """
    sections = {"backbone": {"name": backbone, "embedding_size": 16}, "training": {"seed": seed, "batch_size": 8}}
    for name, value in recipe.items():
        section, key = name.split("__")
        sections.setdefault(section, {})[key] = value
    write(folder / "config.yaml", dump_recipe(recipe_from_dict(sections)))
    environment = {"facebones": "0.1.0", "device": "cpu", "data": {"path": "faces", "images": 9, "labels_sha256": data}}
    write(folder / "environment.json", environment)
    lines = []
    for step in range(1, (STEPS if done else STEPS // 2) + 1):
        lines.append({"kind": "train", "step": step, "epoch": 1, "loss": 10.0 - step, "learning_rate": 0.1})
        if step == STEPS // 2:
            lines += [{"kind": "validation", **validation(name, step, best, best)} for name in sets]
    final = [validation(name, STEPS, accuracy, max(best, accuracy)) for name in sets]
    if done:
        lines += [{"kind": "validation", **row} for row in final]
        known = {"backbone": backbone, "embedding_size": 16, "steps": STEPS, "skipped_steps": 0, "final": final}
        best_sets = {"mean_accuracy": best, "step": STEPS // 2, "sets": dict.fromkeys(sets, max(best, accuracy))}
        write(folder / "result.json", {**known, "best": best_sets})
    write(folder / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def interval(low, high):
    low, high = round(low, 6), round(high, 6)
    return {"low": low, "high": high, "level": 0.95, "method": "bootstrap", "resampled": "pairs", "replicates": 100}


def metric_json(name, values, p=0.001, *, at=None, **changes):
    """A measured metric: intervals of +- one point, 20 points of a difference that is not significant, and tests.

    Args:
        name: of the metric.
        values: by model.
        p: of every test, or by (first, second), otherwise 0.001; the same after Holm's correction.
        at: operating point.
        changes: of other fields.
    """
    tests = []
    for first, second in combinations(values, 2):
        found = p.get((first, second), 0.001) if isinstance(p, dict) else p
        difference = values[first] - values[second]
        half = 0.01 if found <= 0.05 else 0.2
        ends = interval(difference - half, difference + half)
        test = {"first": first, "second": second, "difference": difference, "interval": ends}
        tests.append({**test, "p_value": found, "adjusted": found, "method": "McNemar mid-p"})
    intervals = {model: interval(value - 0.01, value + 0.01) for model, value in values.items()}
    marks = {"best": max(values, key=values.get), "not_different_from_best": []}
    measured = {"values": dict(values), "intervals": intervals, "comparisons": tests, **marks}
    return {**_identity(name, at), "reason": None, **measured, **changes}


def unmeasured_json(name, reason="too few pairs", *, at=None):
    nothing = {"values": {}, "intervals": {}, "comparisons": [], "best": None, "not_different_from_best": []}
    return {**_identity(name, at), "main": False, "reason": reason, **nothing}


def _identity(name, at):
    at = at or {}
    is_main = name == "accuracy" or at == {"rank": 1}
    known = {"name": name, "at": at, "rule": "strict" if name in ("tar", "tpir") else ""}
    return {**known, "higher_is_better": name != "eer", "chance": 0.5 if name == "accuracy" else None, "main": is_main}


def models_json(names, backbone=None):
    return {
        name: {"backbone": backbone or name, "embedding_size": 16, "checkpoint": f"/models/{name}.safetensors"}
        for name in names
    }


def write_evaluation(path, protocol, sections, models, **changes):
    """Write the file of an evaluation; `sections` are those of "results" without the protocol."""
    results = [{"protocol": protocol, "setting": "", "sizes": {}, "curves": {}, **section} for section in sections]
    known = {"format": 2, "facebones": "0.1.0", "git_revision": None, "protocol": protocol}
    write(path, {**known, "models": models_json(models), "options": {}, "results": results, **changes})


def write_pairs(folder, sets, models=None, **changes):
    """Write pairs.json and the scores.

    Args:
        folder: of the evaluation.
        sets: name to the JSON of its metrics.
        models: names, by default those of the first metrics.
        changes: of the file.
    """
    names = models or list(dict.fromkeys(name for metrics in sets.values() for name in metrics[0]["values"]))
    files = {name: {model: f"{model}_{name}_scores.npz".replace("/", "_") for model in names} for name in sets}
    sections = [
        {
            "set": name,
            "metrics": metrics,
            "details": {model: {"pairs": 20} for model in names},
            "curves": {"roc": files[name]},
        }
        for name, metrics in sets.items()
    ]
    write_evaluation(folder / "pairs.json", "pairs", sections, names, **changes)
    distance = np.arange(20) / 20
    for name in sets:
        for file in files[name].values():
            np.savez(folder / file, distance=distance, is_same=distance < 0.4)
    return folder


def write_ijb(folder, values, p=0.001, unmeasured=(1e-6,), main=1e-4):
    """Write templates.json and identification.json of a target called IJBC.

    Args:
        folder: of the evaluation.
        values: by model.
        p: see `metric_json`.
        unmeasured: FARs that could not be measured.
        main: FAR by which backbones are chosen.
    """
    rates = [unmeasured_json("tar", at={"far": far}) for far in unmeasured]
    rates += [
        metric_json("tar", values, p, at={"far": far}, main=far == main)
        for far in (1e-5, 1e-4, 1e-3)
        if far not in unmeasured
    ]
    metrics = [*rates, metric_json("auc", values, p), metric_json("eer", values, p)]
    where = {"set": "IJBC", "setting": "N1D1F1", "details": {model: {} for model in values}}
    write_evaluation(folder / "templates.json", "ijb_verification", [{**where, "metrics": metrics}], values)
    searches = [metric_json("rank", values, p, at={"rank": rank}) for rank in (1, 5)]
    searches.append(metric_json("tpir", values, p, at={"fpir": 0.1}))
    curves = {"cmc": {model: [value, 1.0] for model, value in values.items()}}
    section = {**where, "metrics": searches, "curves": curves}
    write_evaluation(folder / "identification.json", "ijb_identification", [section], values)
    return folder


def write_profile(folder, backbones, batch_size=32, parameters=None):
    """Write profile.json: a millisecond for each place among the backbones."""
    conditions = {"device": "cpu", "processor": "a processor", "threads": 1, "precision": "fp32"}
    networks = [
        {
            "name": name,
            "backbone": name,
            "parameters": (parameters or PARAMETERS)[name],
            "macs": 100 * (parameters or PARAMETERS)[name],
            "latency_p50_ms": float(place),
            "throughput_images_per_second": 1000.0 / place,
            "peak_memory_bytes": place * 2**20,
        }
        for place, name in enumerate(backbones, 1)
    ]
    write(folder / "profile.json", {"conditions": {**conditions, "batch_size": batch_size}, "networks": networks})
    return folder


def make_study(
    folder,
    *,
    backbones=(SMALL, MIDDLE),
    seeds=(0, 1),
    failed=(),
    unfinished=(),
    to_do=(),
    accuracy=default_accuracy,
    p=0.001,
    sets=("lfw",),
    name="demo",
    failed_parts=(),
):
    """Write a study with its runs, evaluations and profile.

    Args:
        folder: of the study.
        backbones: of PARAMETERS.
        seeds: of each.
        failed: names of runs, such as "shufflefacenet_0_5_seed1", that have failed after two steps.
        unfinished: of those that were stopped.
        to_do: of those that have not begun.
        accuracy: of the backbone's place and the seed.
        p: see `metric_json`.
        sets: pair sets.
        name: of the study.
        failed_parts: of "pairs", "ijb_verification", "ijb_identification" and "profile".
    """
    rows, values = [], {}
    for place, backbone in enumerate(backbones):
        for seed in seeds:
            run = backbone + (f"_seed{seed}" if len(seeds) > 1 else "")
            done = run not in (*failed, *unfinished, *to_do)
            state = "done" if done else "to do" if run in to_do else "unfinished"
            inside = f"runs/{backbone}/seed{seed}"
            final = [validation(each, STEPS, accuracy(place, seed), 0.96) for each in sets] if done else []
            known = {"name": run, "backbone": backbone, "seed": seed, "folder": inside, "state": state, "steps": STEPS}
            rows.append({**known, "error": "no memory left" if run in failed else None, "final": final})
            if run not in to_do:
                make_run(folder / inside, backbone, seed, accuracy=accuracy(place, seed), sets=sets, done=done)
            if done:
                values[run] = accuracy(place, seed)
    pairs = [
        metric_json("accuracy", values, p),
        unmeasured_json("tar", at={"far": 1e-3}),
        metric_json("auc", values, p),
        metric_json("eer", {run: 1 - value for run, value in values.items()}, p),
    ]
    write_pairs(folder / "evaluation", dict.fromkeys(sets, pairs))
    write_ijb(folder / "evaluation" / "IJBC", values, p)
    write_profile(folder, backbones)
    parts = (
        ("protocol", "pairs", None, "evaluation/pairs.json"),
        ("protocol", "ijb_verification", "IJBC", "evaluation/IJBC/templates.json"),
        ("protocol", "ijb_identification", "IJBC", "evaluation/IJBC/identification.json"),
        ("profile", "profile", None, "profile.json"),
    )
    entries = [
        {"kind": kind, "protocol": protocol, "set": target, "file": file, "inputs": "0"}
        | {"error": "no memory left" if protocol in failed_parts else None}
        for kind, protocol, target, file in parts
    ]
    asked = {"name": name, "recipe": "demo", "overrides": {"training.epochs": "2"}, "backbones": list(backbones)}
    asked |= {"seeds": list(seeds), "data": "faces", "pair_sets": list(sets), "ijb": ["IJBC"]}
    content = {
        "format": 2,
        "study": {**asked, "profile": {"enabled": True}},
        "models": {row["name"]: str(folder / row["folder"]) for row in rows if row["state"] == "done"},
        "runs": rows,
        "evaluation": entries,
        "summary": [{"backbone": each, "parameters": PARAMETERS[each], "macs": 7} for each in backbones],
    }
    write(folder / "study.json", content)
    return folder


LARGE_STEPS, LARGE_SETS = 100_000, ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")


def make_large_study(folder):
    """A study of 14 backbones, three seeds and five sets, with 100,000 steps each."""
    names = [name for name in list_backbones() if not name.startswith("timm")][:14]
    with patch.dict(PARAMETERS, {name: 500_000 * place for place, name in enumerate(names, 1)}):
        study = make_study(folder, backbones=names, seeds=(0, 1, 2), sets=LARGE_SETS)
    for run in study.glob("runs/*/*"):
        _write_lines(run)
    return study


def _write_lines(run):
    """A line each ten steps, and the sets a hundred times."""
    line = (
        '{"kind": "train", "step": %d, "epoch": 1, "loss": %.15g, "learning_rate": 0.0186888, "gradient_norm": 555.5}\n'
    )
    with (run / "metrics.jsonl").open("w") as file:
        for start in range(0, LARGE_STEPS, 1000):
            file.write("".join(line % (step, 9 + step % 97 / 300) for step in range(start + 10, start + 1001, 10)))
            for name in LARGE_SETS:
                row = validation(name, start + 1000, 0.5 + start / 3e5, 0.95)
                file.write(json.dumps({"kind": "validation", **row}) + "\n")
    result = json.loads((run / "result.json").read_text())
    write(run / "result.json", result | {"steps": LARGE_STEPS})
