"""Folders in, one `Results` out: studies, runs of ours and of others, evaluations and profiles."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from facebones.config import load_recipe
from facebones.errors import ConfigError, DataError, FaceBonesError
from facebones.evaluation.curves import roc
from facebones.reporting.results import Cost, Figure, Results, Run
from facebones.run_folder import RunFolder
from facebones.training.logs import read_metrics

STUDY_FILE = "study.json"
EVALUATION_FILES = ("pairs.json", "templates.json", "identification.json")
# What makes two runs of one backbone seeds of one another: all of the recipe but these.
NOT_COMPARED = {"backbone": ("name",), "training": ("seed",), "data": ("path", "workers")}


def load_results(*folders: str | Path) -> Results:
    """Read what trainings, studies, evaluations and profiles have left.

    Args:
        folders: each a study, a run (ours, or made by `facebones logs`), or a folder of evaluations or of a profile.

    Returns:
        the runs, costs and figures, for `report` and for notebooks.

    Raises:
        ConfigError: a folder holds none of these, or two runs have one name.
        DataError: a file is damaged.
    """
    if not folders:
        raise ConfigError("nothing to report: give at least one folder of a study or a run")
    gathered = _Gathered()
    for folder in map(Path, folders):
        _read_folder(folder, gathered)
    return gathered.results([Path(folder) for folder in folders])


@dataclass
class _Gathered:
    """What has been read so far."""

    runs: list[Run] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    cmc: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def add_run(self, run: Run) -> None:
        """Add a run.

        Raises:
            ConfigError: another one has its name.
        """
        for other in self.runs:
            if other.name == run.name:
                raise ConfigError(f"{run.folder}: is called {run.name} as {other.folder} is; rename one of the folders")
        self.runs.append(run)

    def results(self, folders: Sequence[Path]) -> Results:
        runs = _told_apart(self.runs)
        costs = {name: self.costs.get(name) or _counted(runs, name) for name in dict.fromkeys(r.backbone for r in runs)}
        return Results(
            title=", ".join(self.titles),
            folders=folders,
            runs=runs,
            costs=costs,
            figures=self.figures,
            curves=self.curves,
            cmc=self.cmc,
            conditions=self.conditions,
            recipe=_shared_recipe(runs),
            notes=self.notes,
            command="\n".join(self.commands),
        )


def _read_folder(folder: Path, gathered: _Gathered) -> None:
    found = False
    for is_there, read in (
        ((folder / STUDY_FILE).is_file(), _read_study),
        (RunFolder(folder).metrics.is_file() or RunFolder(folder).config.is_file(), _read_lone_run),
        (any((folder / name).is_file() for name in EVALUATION_FILES), _read_evaluations),
        ((folder / "profile.json").is_file() and not (folder / STUDY_FILE).is_file(), _read_lone_profile),
    ):
        if is_there:
            read(folder, gathered)
            found = True
    if not found:
        raise ConfigError(f"{folder}: holds no study, run, evaluation or profile; give a folder that one has made")
    gathered.titles.append(folder.resolve().name)


def _read_study(folder: Path, gathered: _Gathered) -> None:
    path = folder / STUDY_FILE
    content = read_json(path)
    try:
        for row in content["runs"]:
            gathered.add_run(_study_run(folder, row, gathered.notes))
        for row in content["summary"]:
            gathered.costs[row["backbone"]] = Cost(parameters=row["parameters"], macs=row["macs"])
        names = {run.name for run in gathered.runs}
        for name, file in content["models"].items():
            if name not in names:
                gathered.add_run(Run(name=name, backbone=name, folder=Path(file), source="file"))
        for name, part in content["evaluation"].items():
            _read_part(folder, name, part, gathered)
        gathered.commands.append(_study_command(content["study"], folder))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _unlike(path, error) from error


def _read_part(folder: Path, name: str, part: Mapping[str, Any], gathered: _Gathered) -> None:
    """A part of a study's evaluation; one that has failed is noted."""
    file = folder / part["file"]
    if part["error"]:
        gathered.notes.append(f"{name}: failed: {part['error']}")
    elif not file.is_file():
        gathered.notes.append(f"{name}: {file} is gone; `facebones compare` makes it again")
    elif name == "profile":
        _read_profile(file, gathered)
    else:
        _read_evaluation(file, gathered)


def _study_run(folder: Path, row: Mapping[str, Any], notes: list[str]) -> Run:
    run = _read_run(folder / row["folder"], row["name"], notes)
    state = "failed" if row["error"] else row["state"]
    return Run(**{**vars(run), "backbone": row["backbone"], "seed": row["seed"], "state": state, "error": row["error"]})


def _read_lone_run(folder: Path, gathered: _Gathered) -> None:
    run = _read_run(folder, folder.resolve().name, gathered.notes)
    gathered.add_run(run)
    if run.source == "run":
        file = shlex.quote(str(RunFolder(folder).config))
        gathered.commands.append(f"facebones train {file} --output RUN")


def _read_run(folder: Path, name: str, notes: list[str]) -> Run:
    """A run's files; each may be missing, of a run that has only begun."""
    files = RunFolder(folder)
    recipe = load_recipe(files.config).to_dict() if files.config.is_file() else {}
    try:
        lines = read_metrics(files.metrics) if files.metrics.is_file() else []
    except ValueError as error:
        raise _unlike(files.metrics, error) from error
    is_log = (folder / "source.json").is_file()
    done = files.result.is_file()
    if not done and folder.exists():
        notes.append(f"{name}: is not finished")
    return Run(
        name=name,
        backbone=recipe["backbone"]["name"] if recipe else name,
        seed=recipe["training"]["seed"] if recipe else None,
        folder=folder,
        source="log" if is_log else "run",
        state="done" if done else "unfinished",
        recipe=recipe,
        environment=read_json(files.environment) if files.environment.is_file() else {},
        lines=lines,
        result=read_json(files.result) if done else {},
    )


def _read_evaluations(folder: Path, gathered: _Gathered) -> None:
    for name in EVALUATION_FILES:
        if (folder / name).is_file():
            _read_evaluation(folder / name, gathered)


def _read_evaluation(path: Path, gathered: _Gathered) -> None:
    content = read_json(path)
    try:
        if path.name == "pairs.json":
            _add_pairs(path.parent, content, gathered)
        elif path.name == "templates.json":
            for section in content["verification"]:
                setting = section["name"].removeprefix(content["target"])
                _add_figures(f"{Path(content['data']).name}{setting} 1:1", "templates", section, gathered)
        else:
            section = content["identification"]
            where = f"{Path(content['data']).name} 1:N"
            _add_figures(where, "identification", section, gathered)
            gathered.cmc[where] = {name: model["cmc"] for name, model in section["models"].items()}
        known = {run.name for run in gathered.runs}
        for name in content["models"]:
            if name not in known:
                gathered.add_run(_evaluated_only(name, content["models"][name]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _unlike(path, error) from error


def _evaluated_only(name: str, model: Mapping[str, Any]) -> Run:
    return Run(name=name, backbone=name, folder=Path(model["checkpoint"]), source="file")


def _add_pairs(folder: Path, content: Mapping[str, Any], gathered: _Gathered) -> None:
    for section in content["sets"]:
        _add_figures(section["set"], "pairs", section, gathered)
        curves = {}
        for model in section["models"]:
            file = folder / f"{model}_{section['set']}_scores.npz"
            if not file.is_file():
                gathered.notes.append(f"{file}: is gone, so there is no ROC of {model} on {section['set']}")
                continue
            with np.load(file, allow_pickle=False) as scores:
                curves[model] = roc(-scores["distance"], scores["is_same"])
        gathered.curves[section["set"]] = curves


def _add_figures(where: str, kind: str, section: Mapping[str, Any], gathered: _Gathered) -> None:
    if any(figure.where == where for figure in gathered.figures):
        gathered.notes.append(f"{where}: evaluated more than once; the first is shown, for the two were not compared")
        return
    for name, figure in section["figures"].items():
        if figure["values"] is None:
            gathered.figures.append(Figure(where=where, name=name, kind=kind, reason=figure["reason"]))
            continue
        gathered.figures.append(
            Figure(
                where=where,
                name=name,
                kind=kind,
                values=figure["values"],
                intervals=figure["intervals"],
                comparisons=figure["comparisons"],
            )
        )


def _read_lone_profile(folder: Path, gathered: _Gathered) -> None:
    _read_profile(folder / "profile.json", gathered)


def _read_profile(path: Path, gathered: _Gathered) -> None:
    content = read_json(path)
    try:
        gathered.conditions |= content["conditions"]
        for row in content["networks"]:
            gathered.costs[row["name"]] = Cost(
                parameters=row["parameters"],
                macs=row["macs"],
                latency_ms=row["latency_p50_ms"],
                images_per_second=row["throughput_images_per_second"],
                memory_bytes=row.get("peak_memory_bytes"),
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise _unlike(path, error) from error


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, where those of one backbone by different recipes count as backbones of their own, after their names."""
    recipes: dict[str, list[str]] = {}
    for run in runs:
        recipes.setdefault(run.backbone, []).append(_compared(run))
    return [
        Run(**{**vars(run), "backbone": f"{run.backbone} ({run.name})"})
        if run.recipe and len(set(recipes[run.backbone])) > 1
        else run
        for run in runs
    ]


def _compared(run: Run) -> str:
    kept = {
        section: {key: value for key, value in values.items() if key not in NOT_COMPARED.get(section, ())}
        for section, values in run.recipe.items()
        if section not in ("validation", "log")
    }
    return json.dumps(kept, sort_keys=True)


def _counted(runs: Sequence[Run], backbone: str) -> Cost:
    """Parameters and MACs of a backbone that no profile has; nothing of what cannot be built here."""
    from facebones.study.plan import network_costs

    run = next(run for run in runs if run.backbone == backbone)
    if not run.recipe:
        return Cost()
    row = network_costs(run.recipe["backbone"]["name"], run.recipe["backbone"]["embedding_size"])
    return Cost(parameters=row["parameters"], macs=row["macs"])


def _shared_recipe(runs: Sequence[Run]) -> dict[str, Any]:
    """Section to field to value, of what all runs of ours have alike."""
    recipes = [run.recipe for run in runs if run.recipe]
    return {
        section: kept
        for section in (recipes[0] if recipes else ())
        if (
            kept := {
                key: value
                for key, value in recipes[0][section].items()
                if all(recipe.get(section, {}).get(key) == value for recipe in recipes)
            }
        )
    }


def _study_command(study: Mapping[str, Any], folder: Path) -> str:
    """The command that makes the study again from nothing but its data."""
    words = ["facebones", "compare", study["name"], "--output", str(folder)]
    for key in ("recipe", "data", "backbones", "seeds", "pair_sets", "ijb"):
        value = study[key]
        if value or value == 0:
            words += [f"--{key.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, list) else value]
    words += ["--profile", str(study["profile"]["enabled"]).lower()]
    for name, value in study["overrides"].items():
        words += [f"--{name}", value]
    return shlex.join(words)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); restore it, or make it again") from error


def _unlike(path: Path, error: Exception) -> FaceBonesError:
    return DataError(f"{path}: is not as facebones writes it ({type(error).__name__}: {error}); make it again")
