"""Folders in, one `Results` out: studies, runs, imported logs, evaluations and profiles."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.errors import ConfigError, FaceBonesError
from facebones.reporting.costs import Costs
from facebones.reporting.evaluations import (
    check_format,
    evaluated_set,
    evaluation_files,
    fold_thresholds,
    hit_rates,
    metric_results,
    read_evaluation,
    read_roc,
    trust_files,
)
from facebones.reporting.overlap_words import OverlapAudits, is_audit
from facebones.reporting.results import Cost, EvaluatedSet, MetricResult, Results, Run, ScoreFile
from facebones.reporting.runs import (
    OTHER_SHAPE,
    different_versions,
    is_run,
    known_versions,
    read_json,
    read_run,
    read_study_run,
    shared_recipe,
    text,
    unexpected,
)
from facebones.reporting.variants import different_recipes, repeated_seeds, with_factors
from facebones.reporting.words import listed, set_words
from facebones.run_folder import RunFolder
from facebones.strict_yaml import find_shipped
from facebones.system.files import is_file, is_folder
from facebones.system.progress import track

if TYPE_CHECKING:
    from facebones.reporting.added_seeds import AddedSeeds
    from facebones.reporting.tables import Table
    from facebones.reporting.tuning import Tuning

STUDY_FILE, PROFILE_FILE = "study.json", "profile.json"
STUDY_FIELDS = ("recipe", "data", "backbones", "seeds", "evaluate", "pair_sets", "ijb")


def load_results(*folders: str | Path, progress: bool = False) -> Results:
    """Read what trainings, studies, evaluations and profiles have written.

    Args:
        folders: each a study, a run (of facebones, or imported by `facebones logs`), or a folder with the JSON files of
            evaluations or of a profile.
        progress: show the progress on stderr.

    Returns:
        the runs, costs and metrics: the content of a report, also for notebooks.

    Raises:
        ConfigError: a folder holds none of these, or two runs have one name.
        DataError: a file is damaged.
    """
    if not folders:
        raise ConfigError("nothing to report: give at least one folder of a study or a run")
    reader = _Reader(progress=progress)
    places = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(map(Path, folders), places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{folder}: given twice; leave one out")
        reader.read(folder)
    return reader.results([Path(folder) for folder in folders])


@dataclass
class _Reader:
    """What has been read so far.

    Attributes:
        names: models of the current folder: their names there, to their names in the report.
        others: models without a run, by name; they follow all runs.
        costs: what the variants cost.
        versions: what each result was made with: label of the result, and its versions.
        overlap: audits of training data, and the sets that they are compared with.
    """

    runs: list[Run] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    others: dict[str, Run] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    metrics: list[MetricResult] = field(default_factory=list)
    curves: dict[EvaluatedSet, dict[str, Any]] = field(default_factory=dict)
    cmc: dict[EvaluatedSet, dict[str, list[float]]] = field(default_factory=dict)
    pair_scores: dict[EvaluatedSet, dict[str, ScoreFile]] = field(default_factory=dict)
    versions: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    tunings: list["Tuning"] = field(default_factory=list)
    progress: bool = False
    trust: list["Table"] = field(default_factory=list)
    overlap: OverlapAudits = field(default_factory=OverlapAudits)
    added_seeds: list["AddedSeeds"] = field(default_factory=list)

    def read(self, folder: Path) -> None:
        """Read all that a folder holds.

        Raises:
            ConfigError: it holds nothing to report.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; name a study, a run, or a folder of results")
        self.names = {}
        is_study, evaluations, trusted = (folder / STUDY_FILE).is_file(), evaluation_files(folder), trust_files(folder)
        is_lone_run = not is_study and is_run(folder)
        has_profile = not is_study and (folder / PROFILE_FILE).is_file()
        if not (is_study or is_lone_run or evaluations or has_profile or trusted):
            raise ConfigError(f"{folder}: holds no study, run, evaluation or profile; give a folder that holds one")
        if is_study:
            self._read_study(folder)
        if is_lone_run:
            self._read_lone_run(folder)
        for path in evaluations:
            self._read_evaluation(path)
        if has_profile:
            self.costs.read_profile(folder / PROFILE_FILE, self.costs.profiled)
        if trusted:
            from facebones.reporting.trust_tables import read_trust  # few folders hold such files

            for path in trusted:
                if is_audit(path):
                    self.overlap.add(path, read_trust(path))
                else:
                    self.trust += read_trust(path)
        if not is_study:
            self.titles.append(folder.resolve().name)

    def results(self, folders: Sequence[Path]) -> Results:
        """Everything that was read, with the notes on it."""
        taken = {run.name for run in self.runs}
        found = [*self.runs, *(run for run in self.others.values() if run.name not in taken)]
        runs = with_factors(found)
        costs: dict[str, Cost] = {}
        for before, run in zip(found, runs, strict=True):
            if run.variant not in costs:
                costs[run.variant] = self.costs.of(before.variant, run)
        return Results(
            title=", ".join(self.titles),
            folders=folders,
            runs=runs,
            costs=costs,
            metrics=self.metrics,
            curves=self.curves,
            cmc=self.cmc,
            pair_scores=self.pair_scores,
            trust=[*self.trust, *self.overlap.tables(runs)],
            overlap=self.overlap.sentences(runs, folders[0]),
            added_seeds=self.added_seeds,
            conditions=self.costs.conditions,
            recipe=shared_recipe(runs),
            notes=[
                *self.notes,
                *self.costs.notes,
                *(_state_note(run) for run in runs if run.state != "done"),
                *repeated_seeds(runs),
                *different_recipes(runs),
                *different_versions([*((run.name, run.versions) for run in runs), *self.versions]),
            ],
            command="\n".join(self.commands),
            tunings=self.tunings,
        )

    def _tracked(self, rows: Iterable[Any], words: str) -> Iterable[Any]:
        return track(rows, words) if self.progress else rows

    # ------------------------------------------------------------------------------------------ runs and studies

    def _add_run(self, run: Run, label: str) -> None:
        """Add a run; if its name is taken, as by the same run of another study, prefix it with the label.

        Raises:
            ConfigError: that name is taken, too.
        """
        taken = {other.name: other.folder for other in self.runs}
        name = f"{label}/{run.name}" if run.name in taken else run.name
        if name in taken:
            raise ConfigError(
                f"{run.folder}: has the name {name}, as {taken[name]} has; rename a folder or report them separately"
            )
        self.names[run.name] = name
        self.runs.append(replace(run, name=name))

    def _add_other(self, run: Run, label: str) -> None:
        """Add a model without a run, unless one of its name and path is known."""
        if run.name in self.names:
            return
        other = self.others.get(run.name)
        name = run.name if other is None or other.folder == run.folder else f"{label}/{run.name}"
        self.names[run.name] = name
        self.others.setdefault(name, replace(run, name=name, backbone=name))

    def _read_lone_run(self, folder: Path) -> None:
        run = read_run(folder, folder.resolve().name)
        self._add_run(run, folder.resolve().parent.name)
        if run.source == "run":
            self.commands.append(f"facebones train {shlex.quote(str(RunFolder(folder).config))} --output RUN")

    def _read_study(self, folder: Path) -> None:
        path = folder / STUDY_FILE
        content = read_json(path)
        try:
            if content.get("format") is None:
                from facebones.reporting.format1 import translate_study

                content = translate_study(content)
            check_format(content)
            self._read_study_content(folder, content)
        except OTHER_SHAPE as error:
            raise unexpected(path, error) from error

    def _read_study_content(self, folder: Path, content: Mapping[str, Any]) -> None:
        label = folder.resolve().name
        tuning = _tuning(content)
        if tuning is not None:
            self.tunings.append(tuning)
        if content.get("auto_seeds"):
            from facebones.reporting.added_seeds import read_added_seeds  # few studies add seeds

            self.added_seeds.append(read_added_seeds(content))
        for row in self._tracked(content["runs"], "reading runs"):
            run = read_study_run(folder, row)
            if tuning is not None:
                run = replace(run, tuned=tuning.fields_of(run.levels))
            if run.state == "done" and not is_folder(run.folder):
                self.notes.append(f"{run.name}: {run.folder} is missing; only its final accuracy is known")
            self._add_run(run, label)
        self.costs.add_counts(content["summary"])
        entries = content["evaluation"]
        if not isinstance(entries, list):
            raise TypeError("'evaluation' is not a list")
        left_out = {one["name"]: one for one in entries if one["kind"] == "model_left_out"}
        trained = {text(row["name"]) for row in content["runs"]}
        for name, file in content["models"].items():
            if name not in trained:
                self._add_other(_only_measured(name, Path(file), left_out.pop(name, None)), label)
        for entry in entries:
            if entry["kind"] != "model_left_out" or entry["name"] in left_out:
                self._read_entry(folder, entry)
        self.costs.share_profiles(content["summary"])
        self.commands.append(_study_command(content["study"], folder, content.get("plugins", ())))
        self.titles.append(text(content["study"]["name"]))

    def _read_entry(self, folder: Path, entry: Mapping[str, Any]) -> None:
        """One entry of a study's evaluation; an error becomes a note."""
        label = _entry_words(entry)
        file = folder / text(entry["file"]) if entry.get("file") else None
        if entry["error"]:
            self.notes.append(f"{label}: failed: {entry['error']}")
        elif file is None:
            raise KeyError("file")
        elif not is_file(file):
            self.notes.append(f"{label}: {file} is missing; run `facebones compare` again to create it")
        elif entry["kind"] == "profile":
            self.costs.read_profile(file, self.costs.studied)
        else:
            self._read_evaluation(file, entry.get("versions"))

    # ----------------------------------------------------------------------------------------------- evaluations

    def _read_evaluation(self, path: Path, versions: Any = None) -> None:
        content = read_evaluation(path)
        try:
            known = {run.name for run in self.runs}
            for name, model in content["models"].items():
                if name not in known:
                    self._add_other(_only_evaluated(name, model), path.parent.resolve().name)
            for section in self._tracked(content["results"], f"reading {path.name}"):
                self._add_section(path.parent, section)
            label = ", ".join(dict.fromkeys(set_words(evaluated_set(one)) for one in content["results"]))
            self.versions.append((f"the evaluation on {label}", known_versions(versions or content)))
        except OTHER_SHAPE as error:
            raise unexpected(path, error) from error

    def _add_section(self, folder: Path, section: Mapping[str, Any]) -> None:
        """Add an evaluated set with its curves."""
        where, curves = evaluated_set(section), section.get("curves", {})
        self.overlap.add_set(section)
        self.notes += [note for note in map(text, section.get("notes", ())) if note not in self.notes]
        for model, name in self._add_metrics(where, section).items():
            rates = hit_rates(curves, model)
            if rates is not None:
                self.cmc.setdefault(where, {})[name] = rates
            file = curves.get("roc", {}).get(model)
            if not isinstance(file, str) or not file.endswith(".npz"):
                continue
            path = folder / Path(file).name
            if is_file(path):
                self.curves.setdefault(where, {})[name] = read_roc(path)
                if where.protocol == "pairs":
                    scored = ScoreFile(path, fold_thresholds(section.get("details", {}).get(model)))
                    self.pair_scores.setdefault(where, {})[name] = scored
            else:
                self.notes.append(f"{path}: is missing, so there is no ROC of {name} on {set_words(where)}")

    def _add_metrics(self, where: EvaluatedSet, section: Mapping[str, Any]) -> dict[str, str]:
        """Add the metrics of an evaluated set; if the set is known, those of the models that it lacks.

        Returns:
            the models that were added: their names in the evaluation, to their names in the report.
        """
        models = {model: self.names.get(model, model) for model in _models(section)}
        before = [metric for metric in self.metrics if metric.evaluated_set == where]
        if before:
            there = {model for metric in before for model in metric.values}
            if again := [name for name in models.values() if name in there]:
                self.notes.append(f"{set_words(where)}: {listed(again)} evaluated more than once; the first is shown")
            models = {model: name for model, name in models.items() if name not in there}
            if models:
                self.notes.append(
                    f"{set_words(where)}: evaluated several times with different models; no test compares models of"
                    " different evaluations"
                )
        for metric in metric_results(section, models):
            self._add_metric(metric)
        return models

    def _add_metric(self, metric: MetricResult) -> None:
        for place, known in enumerate(self.metrics):
            if known.identity == metric.identity:
                self.metrics[place] = _joined(known, metric)
                return
        self.metrics.append(metric)


def _state_note(run: Run) -> str:
    what = {"failed": f"failed: {run.error}", "to do": "is not trained yet"}
    return f"{run.name}: {what.get(run.state, 'is not finished')}"


def _only_measured(name: str, path: Path, left_out: Mapping[str, Any] | None) -> Run:
    """A model that a study measured but did not train, with its training curves if it is a run.

    `left_out` says why it could not be measured; then nothing is read, because it may be damaged.
    """
    if left_out is not None:
        error = " ".join(text(left_out["error"]).split())
        return Run(name=name, backbone=name, folder=path, source="file", state="failed", error=error)
    if is_run(path):
        return replace(read_run(path, name), backbone=name)
    return Run(name=name, backbone=name, folder=path, source="file")


def _only_evaluated(name: str, model: Mapping[str, Any]) -> Run:
    known = {key: model.get(key) for key in ("backbone", "embedding_size")}
    place = model["scores"] if "scores" in model else model["checkpoint"]
    return Run(name=name, backbone=name, folder=Path(place), source="file", result=known)


def _models(section: Mapping[str, Any]) -> list[str]:
    """The models of an evaluated set, also if nothing could be measured."""
    measured = [model for metric in section["metrics"] for model in metric["values"]]
    return list(dict.fromkeys([*section.get("details", {}), *measured]))


def _tuning(content: Mapping[str, Any]) -> "Tuning | None":
    """The tuning of a study; None if it has none."""
    if "tuning" not in content:
        return None
    from facebones.reporting.tuning import read_tuning  # few studies are tuned

    return read_tuning(content)


def _entry_words(entry: Mapping[str, Any]) -> str:
    kind = text(entry["kind"])
    if kind == "protocol":
        where = {"protocol": text(entry["protocol"]), "set": text(entry.get("set") or ""), "setting": ""}
        return set_words(where) or where["protocol"]
    return kind if kind == "profile" else text(entry["name"])


def _joined(first: MetricResult, second: MetricResult) -> MetricResult:
    return replace(
        first,
        main=first.main or second.main,
        values={**first.values, **second.values},
        intervals={**first.intervals, **second.intervals},
        comparisons=[*first.comparisons, *second.comparisons],
        reason=first.reason if not second.values else None,
    )


def _study_command(study: Mapping[str, Any], folder: Path, plugins: Sequence[str]) -> str:
    """The command that repeats the study from nothing but its data."""
    words = ["facebones", "compare", _study_word(study["name"]), "--output", str(folder)]
    for key in STUDY_FIELDS:
        value = study.get(key)
        if value or value == 0:
            words += [f"--{key.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, list) else value]
    words += [word for name in plugins for word in ("--import", text(name))]
    words += ["--profile", str(study["profile"]["enabled"]).lower()]
    for name, value in study["overrides"].items():
        words += [f"--{name}", value]
    return shlex.join(words)


def _study_word(name: str) -> str:
    """A study's name on the command line; a study that is not shipped was a file of that name."""
    try:
        find_shipped(name, "study", "studies", "studies")
    except FaceBonesError:
        return f"{name}.yaml"
    return name
