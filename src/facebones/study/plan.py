"""Everything that a study is to do: its trainings, its trained models and its data sets."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from facebones.backbones import lookup_backbone
from facebones.data import joined_sets
from facebones.data.folders import find_pair_set
from facebones.data.training_set import TrainingSet
from facebones.data.wrapped_sets import without_held_out
from facebones.errors import ConfigError, DataError
from facebones.evaluation.protocol import Protocol, find_protocols, lookup_protocol
from facebones.profiling.networks import Source, find_sources
from facebones.recipe import Recipe
from facebones.reporting.tuning import DEFAULT, FACTOR, TUNED
from facebones.reporting.variants import level_words, variant_name
from facebones.run_folder import RunFolder
from facebones.study.planned_run import TO_DO, PlannedRun, folder_name, versions_here
from facebones.study.study import Study
from facebones.study.trials import FOLDER as TRIALS
from facebones.study.trials import HeldOut, Tuning
from facebones.study.tuning import read_space, with_fields
from facebones.system.hub import is_hub_address, parse_address
from facebones.training.run import with_absolute_paths
from facebones.training.teaching import check_distillation, open_all_people, read_teachers

IJB_PROTOCOLS = ("ijb_verification", "ijb_identification")
LONGEST_NAME = 200  # letters; file systems take 255, endings included


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a study is to do.

    Attributes:
        study: what the user asked for.
        output: the study's folder.
        runs: the trainings, backbone by backbone and level by level.
        trained: models that are already trained, by name.
        protocols: the data sets that all models are measured on.
        unusable: why some of `trained` cannot be used, by name.
        tunings: the trials of each backbone at each of its levels, if the study tunes.
        ahead: trainings whose recipes are known after these trials, here with the recipe as it is.
    """

    study: Study
    output: Path
    runs: Sequence[PlannedRun]
    trained: Mapping[str, Path]
    protocols: Sequence[Protocol]
    unusable: Mapping[str, str] = field(default_factory=dict)
    tunings: Sequence[Tuning] = ()
    ahead: Sequence[PlannedRun] = ()

    @property
    def all_runs(self) -> list[PlannedRun]:
        """Trials, then `runs`, then `ahead`."""
        return [*(run for tuning in self.tunings for run in tuning.runs()), *self.runs, *self.ahead]

    def notes(self) -> list[str]:
        """A line for each other version of facebones or torch that has worked on runs in the study's folder."""
        now, others = versions_here(), defaultdict(list)
        for run in self.runs:
            found = run.versions()
            for package in ("facebones", "torch"):
                if found and found[package] != now[package]:
                    others[package, found[package]].append(run.name)
        return [
            f"trained by {package} {version}, and this is {now[package]}: {', '.join(names)}"
            for (package, version), names in others.items()
        ]


def make_plan(study: Study, output: Path, *, accept_version: bool = False) -> Plan:
    """Resolve names, find the data, and compare the runs in `output` with the study.

    Args:
        study: what the user asked for.
        output: the study's folder; nothing is written.
        accept_version: see `compare`.

    Raises:
        FaceBonesError: a name or a file is missing, or a run in `output` is of another recipe or other data.
    """
    sources = find_sources(study.backbones)
    networks = [source.name for source in sources if source.path is None]
    for name in networks:
        if lookup_backbone(name).build.__module__ == "__main__":
            raise ConfigError(
                f"{name}: is registered in the script itself, which the trainings do not run; move it to a file, and"
                " name that file by `import` or --import"
            )
    recipe = study.resolved_recipe()
    planned = _plan_runs(study, networks, output, accept_version) if networks else _Planned()
    for run in planned.runs:
        if study.tune is not None and run.levels[FACTOR] == TUNED:
            run.refuse_another_study()
        else:
            run.refuse_another()
    taken = [run.name for run in planned.everything]
    return Plan(
        study=study,
        output=output,
        runs=planned.runs,
        trained=_trained_models([source for source in sources if source.path is not None], taken),
        protocols=find_sets(study, recipe),
        tunings=planned.tunings,
        ahead=planned.ahead,
    )


def find_sets(study: Study, recipe: Recipe) -> list[Protocol]:
    """The data sets of `evaluate`, `pair_sets` and `ijb`; the recipe's validation sets if no pair set is named.

    Raises:
        FaceBonesError: a set or a protocol is missing, or two sets of a protocol have one name.
    """
    beside = joined_sets.beside(recipe.data.path or ".")
    pair_sets = study.pair_sets or ([] if study.evaluate else recipe.validation.sets)
    found = [one for item in study.evaluate for one in _sets_of(item, beside)]
    try:
        found += [lookup_protocol("pairs")(find_pair_set(name, beside)) for name in pair_sets]
    except DataError as error:
        raise DataError(f"{'pair_sets' if study.pair_sets else 'validation.sets'}: {error}") from error
    found += [lookup_protocol(name)(_ijb_folder(path)) for path in study.ijb for name in IJB_PROTOCOLS]
    once = {(one.name, one.path.resolve()): one for one in reversed(found)}
    sets: dict[tuple[str, str], Protocol] = {}
    for one in reversed(once.values()):
        if (other := sets.setdefault((one.name, one.set), one)) is not one:
            raise DataError(f"two sets are called {one.set}: {other.path} and {one.path}; rename one of them")
    return list(sets.values())


def _sets_of(item: str, beside: Path) -> list[Protocol]:
    """The sets that an item of `evaluate` names: a path, a name beside the data, or PROTOCOL=PATH."""
    name, equals, place = item.partition("=")
    if not equals or Path(item).exists():
        return find_protocols(_place(item, beside))
    lookup_protocol(name)  # a wrong name is said before a wrong path
    return find_protocols(_place(place, beside), name)


def _place(name: str, beside: Path) -> Path:
    return next((path for path in (Path(name), beside / name) if path.exists()), None) or find_pair_set(name, beside)


def _ijb_folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder; `ijb` names IJB-B or IJB-C folders")
    return Path(path)


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """The trainings of a plan; `undecided` ones have no recipe, because all their trials have diverged."""

    runs: list[PlannedRun] = field(default_factory=list)
    ahead: list[PlannedRun] = field(default_factory=list)
    undecided: list[PlannedRun] = field(default_factory=list)
    tunings: list[Tuning] = field(default_factory=list)

    @property
    def everything(self) -> list[PlannedRun]:
        """All that have a name."""
        return [*self.runs, *self.ahead, *self.undecided]


def _plan_runs(study: Study, networks: Sequence[str], output: Path, accept_version: bool) -> _Planned:
    """All trainings that are reported, and the tunings, which decide the recipes of some of them."""
    if not study.data:
        raise ConfigError("no training data: give --data PATH (a folder with train.rec, or one folder an identity)")
    recipes = [(levels, with_absolute_paths(recipe)) for levels, recipe in study.recipes()]
    _check_distillation(recipes)
    whole = open_all_people(*(recipe for _, recipe in recipes))
    teachers = read_teachers([recipe for _, recipe in recipes], whole)
    seeds, planned = _Seeds(study, output, whole, teachers, accept_version), _Planned()
    if study.tune is not None:
        held_out = HeldOut(data=whole, share=study.tune.held_out, pairs=study.tune.pairs, folder=output / TRIALS)
        _ = held_out.count  # too few people are refused before anything else
    for backbone, (levels, recipe) in itertools.product(networks, recipes):
        runs = seeds.plan(backbone, levels, recipe)
        if study.tune is None:
            planned.runs.extend(runs)
            continue
        tuning = Tuning(
            stem=_stem(backbone, levels),
            settings=study.tune,
            space=read_space(study.tune, recipe, study.vary, "tune"),
            held_out=held_out,
            default=runs[0],
        )
        tuning.check()
        planned.tunings.append(tuning)
        _plan_both_levels(planned, tuning, seeds, recipe)
    if study.vary or study.tune:
        _check_names(planned.everything)
    return planned


def _check_distillation(recipes: Sequence[tuple[Mapping[str, str], Recipe]]) -> None:
    for levels, recipe in recipes:
        try:
            check_distillation(recipe)
        except ConfigError as error:
            words = ", ".join(f"{factor} {level}" for factor, level in levels.items())
            raise ConfigError(f"vary: {words}: {error}" if levels else str(error)) from error


def _plan_both_levels(planned: _Planned, tuning: Tuning, seeds: "_Seeds", recipe: Recipe) -> None:
    """Add the trainings of a backbone by the recipe as it is, and by the fields that its trials have chosen."""
    backbone, levels, chosen = tuning.default.backbone, tuning.default.levels, tuning.chosen()
    defaults = seeds.plan(backbone, {**levels, FACTOR: DEFAULT}, recipe)
    own = recipe if chosen is None else with_fields(recipe, chosen.fields)
    tuned = seeds.plan(backbone, {**levels, FACTOR: TUNED}, own)
    planned.runs.extend(defaults)
    if chosen is None:
        if begun := [run for run in tuned if run.state != TO_DO]:
            raise ConfigError(
                f"{begun[0].folder.path}: its fields were chosen by other trials; give `tune` as it was, restore the"
                " trials, or choose another --output"
            )
        (planned.undecided if tuning.complete else planned.ahead).extend(tuned)
    elif chosen.fields:
        planned.runs.extend(tuned)
    else:  # the same recipe is trained once
        planned.runs.extend(replace(run, folder=default.folder) for run, default in zip(tuned, defaults, strict=True))


class _Seeds:
    """Plans one training from each seed of a study.

    Args:
        study: what the user asked for.
        output: the study's folder.
        whole: the training set with all people.
        teachers: fingerprints of teachers, by what recipes call their embeddings.
        accept_version: see `compare`.
    """

    def __init__(
        self, study: Study, output: Path, whole: TrainingSet, teachers: Mapping[str, str], accept_version: bool
    ) -> None:
        self._study, self._output, self._whole, self._accept_version = study, output, whole, accept_version
        self._teachers = teachers
        self._trained_on: dict[float, TrainingSet] = {}  # by the share of people that is held out

    def plan(self, backbone: str, levels: Mapping[str, str], recipe: Recipe) -> list[PlannedRun]:
        """The trainings of a backbone by a recipe.

        Raises:
            ConfigError: the recipe cannot train on the data.
        """
        try:
            if (share := recipe.data.held_out) not in self._trained_on:
                self._trained_on[share] = without_held_out(self._whole, share)
            data = self._trained_on[share]
            steps = recipe.training.steps_per_epoch(len(data), data.path) * recipe.training.epochs
        except ConfigError as error:
            raise ConfigError(f"vary: {variant_name(backbone, levels)}: {error}" if levels else str(error)) from error
        seeds, stem = self._study.seeds, _stem(backbone, levels)
        return [
            PlannedRun(
                name=stem + (f"_seed{seed}" if len(seeds) > 1 else ""),
                backbone=backbone,
                seed=seed,
                folder=RunFolder(self._output / "runs" / stem / f"seed{seed}"),
                recipe=replace(
                    recipe,
                    backbone=replace(recipe.backbone, name=backbone),
                    training=replace(recipe.training, seed=seed),
                ),
                data=data.fingerprint(),
                steps=steps,
                teacher=self._teachers.get(recipe.distillation.embeddings),
                levels=levels,
                builds_another=self._study.builds_others,
                accept_version=self._accept_version,
            )
            for seed in seeds
        ]


def _stem(backbone: str, levels: Mapping[str, str]) -> str:
    """What names of files begin with."""
    return folder_name("_".join([backbone, *(level_words(factor, level) for factor, level in levels.items())]))


def _check_names(runs: Sequence[PlannedRun]) -> None:
    """Refuse levels whose trainings cannot have folders of their own, also where letters have one case."""
    known: dict[str, PlannedRun] = {}
    for run in runs:
        if len(run.name) > LONGEST_NAME:
            raise ConfigError(f"vary: {run.name:.60}... is too long for the name of a folder; shorten the levels")
        if (other := known.setdefault(run.name.lower(), run)) is not run:
            raise ConfigError(f"vary: {other.variant} and {run.variant} would share a folder; rename a level")


def _trained_models(sources: Sequence[Source], taken: Sequence[str]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for source in sources:
        path = source.path or Path()
        published = parse_address(source.name).name if is_hub_address(source.name) else None
        name = folder_name(published or (path.resolve().name if path.is_dir() else path.stem))
        if name in taken or name in models:
            raise ConfigError(f"backbones: two models are called {name}; rename the folder or file {path}")
        models[name] = path
    return models
