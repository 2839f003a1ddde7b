"""Folders in, one `Results` out: studies, runs of ours and of others, evaluations and profiles."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from facebones.errors import ConfigError, FaceBonesError
from facebones.recipe import find_shipped
from facebones.reporting.results import Cost, Figure, Results, Run
from facebones.reporting.run_grouping import counted, different_recipes, repeated_seeds, shared_recipe, told_apart
from facebones.reporting.run_reading import OTHER_SHAPE, number, read_json, read_run, read_study_run, text, unlike
from facebones.run_folder import RunFolder
from facebones.statistics.curves import RocCurve, roc
from facebones.system.files import read_npz

STUDY_FILE = "study.json"
EVALUATION_FILES = ("pairs.json", "templates.json", "identification.json")


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
    places = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(map(Path, folders), places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{folder}: stands twice; leave one out")
        _read_folder(folder, gathered)
    return gathered.results([Path(folder) for folder in folders])


@dataclass
class _Gathered:
    """What has been read so far.

    Attributes:
        names: of the models of the folder that is being read: as it calls them, to what they are called here.
        others: models that no run is here of, by name; they come after all runs.
        costs: as a study tells them, by backbone.
        profiled: as a profile of its own tells them, by the name or file that was profiled.
    """

    runs: list[Run] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    others: dict[str, Run] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    profiled: dict[str, Cost] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    cmc: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def add_run(self, run: Run, label: str) -> None:
        """Add a run; where another one has its name, as the same run of another study, the label is put before it.

        Raises:
            ConfigError: another one has that name, too.
        """
        taken = {other.name: other.folder for other in self.runs}
        name = f"{label}/{run.name}" if run.name in taken else run.name
        if name in taken:
            raise ConfigError(
                f"{run.folder}: is called {name} as {taken[name]} is; rename one of the folders, or report them apart"
            )
        self.names[run.name] = name
        self.runs.append(replace(run, name=name))

    def add_other(self, run: Run, label: str) -> None:
        """Add a model that may be known: by its name, and by where it lies."""
        if run.name in self.names:
            return
        other = self.others.get(run.name)
        name = run.name if other is None or other.folder == run.folder else f"{label}/{run.name}"
        self.names[run.name] = name
        self.others.setdefault(name, replace(run, name=name, backbone=name))

    def called(self, models: Iterable[str]) -> dict[str, str]:
        """Models of the folder that is being read, to their names here."""
        return {model: self.names.get(model, model) for model in models}

    def results(self, folders: Sequence[Path]) -> Results:
        taken = {run.name for run in self.runs}
        found = [*self.runs, *(run for run in self.others.values() if run.name not in taken)]
        runs = told_apart(found)
        costs: dict[str, Cost] = {}
        for before, run in zip(found, runs, strict=True):
            if run.backbone not in costs:
                costs[run.backbone] = self._cost(before.backbone, run)
        return Results(
            title=", ".join(self.titles),
            folders=folders,
            runs=runs,
            costs=costs,
            figures=self.figures,
            curves=self.curves,
            cmc=self.cmc,
            conditions=self.conditions,
            recipe=shared_recipe(runs),
            notes=[
                *self.notes,
                *(_state_note(run) for run in runs if run.state != "done"),
                *repeated_seeds(runs),
                *different_recipes(runs),
            ],
            command="\n".join(self.commands),
        )

    def _cost(self, backbone: str, run: Run) -> Cost:
        """What a backbone costs; what was measured counts only if it was of a network of the same size."""
        known = self.costs.get(backbone)
        if known is not None and known.parameters is not None and run.backbone == backbone:
            return known
        known, built = known or self.profiled.get(backbone) or self.profiled.get(run.name), counted(run)
        if known is None or known.parameters is None or built.parameters is None:
            return _filled(known or Cost(), built)
        if known.parameters != built.parameters:
            self.notes.append(
                f"{run.backbone}: has {built.parameters:,} parameters, and {known.parameters:,} in the profile"
                " (another embedding size?); its latency and memory are left out"
            )
            return built
        return _filled(known, built)


def _filled(known: Cost, built: Cost) -> Cost:
    return replace(
        known,
        parameters=built.parameters if known.parameters is None else known.parameters,
        macs=built.macs if known.macs is None else known.macs,
    )


def _state_note(run: Run) -> str:
    what = {"failed": f"failed: {run.error}", "to do": "is not trained yet"}
    return f"{run.name}: {what.get(run.state, 'is not finished')}"


def _read_folder(folder: Path, gathered: _Gathered) -> None:
    is_study, found = (folder / STUDY_FILE).is_file(), False
    gathered.names = {}
    for is_there, read in (
        (is_study, _read_study),
        (not is_study and _is_run(folder), _read_lone_run),
        (any((folder / name).is_file() for name in EVALUATION_FILES), _read_evaluations),
        (not is_study and (folder / "profile.json").is_file(), _read_lone_profile),
    ):
        if is_there:
            read(folder, gathered)
            found = True
    if not found:
        raise ConfigError(f"{folder}: holds no study, run, evaluation or profile; give a folder that one has made")
    if not is_study:
        gathered.titles.append(folder.resolve().name)


def _is_run(folder: Path) -> bool:
    return RunFolder(folder).metrics.is_file() or RunFolder(folder).config.is_file()


def _read_study(folder: Path, gathered: _Gathered) -> None:
    path = folder / STUDY_FILE
    content = read_json(path)
    try:
        for row in content["runs"]:
            gathered.add_run(_study_run(folder, row, gathered.notes), folder.resolve().name)
        for row in content["summary"]:
            cost = Cost(parameters=_whole(row["parameters"]), macs=_whole(row["macs"]))
            gathered.costs[text(row["backbone"])] = cost
        names = {text(row["name"]) for row in content["runs"]}
        parts = _parts_of(content["evaluation"])
        for name, file in content["models"].items():
            if name not in names:
                left_out = parts.pop(f"model {name}", None)
                gathered.add_other(_trained_by_others(name, Path(file), left_out), folder.resolve().name)
        for name, part in parts.items():
            _read_part(folder, name, part, gathered)
        gathered.commands.append(_study_command(content["study"], folder))
        gathered.titles.append(text(content["study"]["name"]))
    except OTHER_SHAPE as error:
        raise unlike(path, error) from error


def _parts_of(evaluation: Any) -> dict[str, Any]:
    """Entries of a study.json of format 2 as the mapping that format 1 has."""
    if not isinstance(evaluation, list):
        return {**evaluation}
    left_out = {"model_left_out": "model", "set_left_out": "pair set"}
    named = {"pairs": "pairs", "ijb_verification": "templates", "ijb_identification": "identification"}
    parts = {}
    for entry in evaluation:
        kind = left_out.get(entry["kind"]) or named.get(entry.get("protocol"), entry["kind"])
        words = (kind, entry.get("name") or entry.get("set"))
        parts[" ".join(filter(None, words))] = entry
    return parts


def _study_run(folder: Path, row: Mapping[str, Any], notes: list[str]) -> Run:
    run = read_study_run(folder, row)
    if run.state == "done" and not run.folder.is_dir():
        notes.append(f"{run.name}: {run.folder} is gone; only its final accuracy is known")
    return run


def _trained_by_others(name: str, path: Path, left_out: Mapping[str, Any] | None) -> Run:
    """A model that a study has only measured, with the course of its training where that is a run of ours.

    `left_out` says why it could not be measured after all; then nothing is read, as it may be damaged.
    """
    if left_out is not None:
        error = " ".join(text(left_out["error"]).split())
        return Run(name=name, backbone=name, folder=path, source="file", state="failed", error=error)
    if _is_run(path):
        return replace(read_run(path, name), backbone=name)
    return Run(name=name, backbone=name, folder=path, source="file")


def _read_part(folder: Path, name: str, part: Mapping[str, Any], gathered: _Gathered) -> None:
    """A part of a study's evaluation; one that has failed is noted."""
    file = folder / (part.get("file") or "")
    if part["error"]:
        gathered.notes.append(f"{name}: failed: {part['error']}")
    elif not file.is_file():
        gathered.notes.append(f"{name}: {file} is gone; `facebones compare` makes it again")
    elif name == "profile":
        _read_profile(file, gathered, gathered.costs)
    else:
        _read_evaluation(file, gathered)


def _read_lone_run(folder: Path, gathered: _Gathered) -> None:
    run = read_run(folder, folder.resolve().name)
    gathered.add_run(run, folder.resolve().parent.name)
    if run.source == "run":
        file = shlex.quote(str(RunFolder(folder).config))
        gathered.commands.append(f"facebones train {file} --output RUN")


def _read_evaluations(folder: Path, gathered: _Gathered) -> None:
    for name in EVALUATION_FILES:
        if (folder / name).is_file():
            _read_evaluation(folder / name, gathered)


def _read_evaluation(path: Path, gathered: _Gathered) -> None:
    content = read_json(path)
    try:
        known = {run.name for run in gathered.runs}
        for name, model in content["models"].items():
            if name not in known:
                gathered.add_other(_evaluated_only(name, model), path.parent.resolve().name)
        if path.name == "pairs.json":
            _add_pairs(path.parent, content, gathered)
        elif path.name == "templates.json":
            for section in content["verification"]:
                setting = text(section["name"]).removeprefix(content["target"])
                _add_figures(f"{Path(content['data']).name}{setting} 1:1", "templates", section, gathered)
        else:
            section = content["identification"]
            where = f"{Path(content['data']).name} 1:N"
            for model, name in _add_figures(where, "identification", section, gathered).items():
                rates = [number(rate) for rate in section["models"][model]["cmc"]]
                gathered.cmc.setdefault(where, {})[name] = rates
    except OTHER_SHAPE as error:
        raise unlike(path, error) from error


def _evaluated_only(name: str, model: Mapping[str, Any]) -> Run:
    known = {key: model.get(key) for key in ("backbone", "embedding_size")}
    return Run(name=name, backbone=name, folder=Path(model["checkpoint"]), source="file", result=known)


def _add_pairs(folder: Path, content: Mapping[str, Any], gathered: _Gathered) -> None:
    for section in content["sets"]:
        where = text(section["set"])
        curves = gathered.curves.setdefault(where, {})
        for model, name in _add_figures(where, "pairs", section, gathered).items():
            file = folder / f"{model}_{where}_scores.npz"
            if file.is_file():
                curves[name] = _read_roc(file)
            else:
                gathered.notes.append(f"{file}: is gone, so there is no ROC of {name} on {where}")


def _read_roc(file: Path) -> RocCurve:
    try:
        scores = read_npz(file, ("distance", "is_same"))
        return roc(-scores["distance"], scores["is_same"])
    except (*OTHER_SHAPE, OSError) as error:
        raise unlike(file, error) from error


def _add_figures(where: str, kind: str, section: Mapping[str, Any], gathered: _Gathered) -> dict[str, str]:
    """Add the figures of an evaluated set; of one that is there already, those of the models that it lacks.

    Returns:
        the models that were added, as the evaluation calls them, to what they are called here.
    """
    called = gathered.called(section["models"])
    before = [figure for figure in gathered.figures if figure.where == where]
    if before:
        there = {model for figure in before for model in figure.values}
        if again := [name for name in called.values() if name in there]:
            gathered.notes.append(f"{where}: {', '.join(again)} evaluated more than once; the first is shown")
        called = {model: name for model, name in called.items() if name not in there}
        if called:
            gathered.notes.append(f"{where}: evaluated by several studies, and no test joins models of different ones")
    for name, content in section["figures"].items():
        figure = _figure(where, kind, name, content, called)
        place = next((i for i, known in enumerate(gathered.figures) if known.title == figure.title), None)
        if place is None:
            gathered.figures.append(figure)
        else:
            gathered.figures[place] = _joined(gathered.figures[place], figure)
    return called


def _figure(where: str, kind: str, name: str, content: Mapping[str, Any], called: Mapping[str, str]) -> Figure:
    if content["values"] is None:
        return Figure(where=where, name=name, kind=kind, reason=text(content["reason"]))
    tests = [_comparison(test) for test in content["comparisons"]]
    return Figure(
        where=where,
        name=name,
        kind=kind,
        values={called[model]: number(value) for model, value in content["values"].items() if model in called},
        intervals={called[model]: _interval(one) for model, one in content["intervals"].items() if model in called},
        comparisons=[
            {**test, "first": called[test["first"]], "second": called[test["second"]]}
            for test in tests
            if test["first"] in called and test["second"] in called
        ],
    )


def _joined(first: Figure, second: Figure) -> Figure:
    return replace(
        first,
        values={**first.values, **second.values},
        intervals={**first.intervals, **second.intervals},
        comparisons=[*first.comparisons, *second.comparisons],
        reason=first.reason if not second.values else None,
    )


def _interval(content: Mapping[str, Any]) -> dict[str, Any]:
    low, high = number(content["low"]), number(content["high"])
    if low > high:
        raise ValueError(f"{low} to {high} is no interval")
    return {**content, "low": low, "high": high}


def _comparison(content: Mapping[str, Any]) -> dict[str, Any]:
    names = {key: text(content[key]) for key in ("first", "second")}
    numbers = {key: number(content[key]) for key in ("difference", "p_value", "adjusted")}
    return {**content, **names, **numbers, "interval": _interval(content["interval"])}


def _read_lone_profile(folder: Path, gathered: _Gathered) -> None:
    _read_profile(folder / "profile.json", gathered, gathered.profiled)


def _read_profile(path: Path, gathered: _Gathered, costs: dict[str, Cost]) -> None:
    """Read a profile; latency and memory only if they were measured as those of the profiles before."""
    content = read_json(path)
    try:
        conditions = dict(content["conditions"])
        alike = gathered.conditions in ({}, conditions)
        if alike:
            gathered.conditions = conditions
        else:
            gathered.notes.append(f"{path}: measured under other conditions; its latency and memory are left out")
        for row in content["networks"]:
            costs[_profiled_name(row)] = _profiled_cost(row, alike)
    except OTHER_SHAPE as error:
        raise unlike(path, error) from error


def _profiled_name(row: Mapping[str, Any]) -> str:
    """A backbone's name, or that of the run or file that was profiled."""
    name = text(row["name"])
    return name if name == row.get("backbone") or ":" in name else Path(name).name or name


def _profiled_cost(row: Mapping[str, Any], measured: bool) -> Cost:
    cost = Cost(parameters=_whole(row["parameters"]), macs=_whole(row["macs"]))
    if not measured:
        return cost
    return replace(
        cost,
        latency_ms=_known(row["latency_p50_ms"]),
        images_per_second=_known(row["throughput_images_per_second"]),
        memory_bytes=_whole(row.get("peak_memory_bytes")),
    )


def _known(value: Any) -> float | None:
    return None if value is None else number(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(number(value))


def _study_command(study: Mapping[str, Any], folder: Path) -> str:
    """The command that makes the study again from nothing but its data."""
    words = ["facebones", "compare", _study_word(study["name"]), "--output", str(folder)]
    for key in ("recipe", "data", "backbones", "seeds", "pair_sets", "ijb"):
        value = study[key]
        if value or value == 0:
            words += [f"--{key.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, list) else value]
    words += ["--profile", str(study["profile"]["enabled"]).lower()]
    for name, value in study["overrides"].items():
        words += [f"--{name}", value]
    return shlex.join(words)


def _study_word(name: str) -> str:
    """A study's name on the command line; one that does not come with the package was a file of that name."""
    try:
        find_shipped(name, "study", "studies", "studies")
    except FaceBonesError:
        return f"{name}.yaml"
    return name
