"""The runs of a study and how far each one is, read from the run folders: nothing else records their state."""

import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import facebones
from facebones.backbones import lookup_backbone
from facebones.data import joined_sets
from facebones.data.folders import find_pair_set
from facebones.data.training_set import CONTENT_KEYS, TrainingSet, same_data
from facebones.data.wrapped_sets import without_held_out
from facebones.errors import ConfigError, DataError
from facebones.evaluation.protocol import Protocol, find_protocols, lookup_protocol
from facebones.profiling.networks import Source, find_sources
from facebones.recipe import Recipe, is_older_meaning, lacking_fields, load_config
from facebones.reporting.variants import level_words, variant_name
from facebones.run_folder import RunFolder
from facebones.study.study import Study
from facebones.study.vary import FREE_FIELDS, sets_section
from facebones.system.environment import git_revision
from facebones.training.run import with_absolute_paths
from facebones.training.teaching import check_teachers, open_all_people

DONE, UNFINISHED, TO_DO = "done", "unfinished", "to do"
VERSIONS = ("facebones", "git_revision", "torch")
IJB_PROTOCOLS = ("ijb_verification", "ijb_identification")
TAIL_BYTES = 2**16
LONGEST_NAME = 200  # letters; file systems take 255, endings included


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training of the study.

    Attributes:
        name: name of its model: the backbone and its levels, with the seed if there are several.
        backbone: name in the registry, or timm:NAME.
        levels: its level of each factor of the study.
        builds_another: whether a factor sets fields of `backbone`, so that levels may be different networks.
        seed: seed of the training.
        folder: where the run is, or will be.
        recipe: the resolved recipe.
        data: fingerprint of the training data.
        steps: steps of the whole run.
        accept_version: accept a run in the folder that an older version made, when a field that decides numbers did
            not exist.
    """

    name: str
    backbone: str
    seed: int
    folder: RunFolder
    recipe: Recipe
    data: Mapping[str, Any]
    steps: int
    levels: Mapping[str, str] = field(default_factory=dict)
    builds_another: bool = False
    accept_version: bool = False

    @property
    def variant(self) -> str:
        """What it is a seed of: the backbone with its levels."""
        return variant_name(self.backbone, self.levels)

    @property
    def network(self) -> str:
        """What is profiled once: the backbone, or the variant if its levels change the network itself."""
        return self.variant if self.builds_another else self.backbone

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe that the run starts from."""
        return self.folder.path.with_name(f"{self.folder.path.name}.yaml")

    @property
    def log(self) -> Path:
        """Output of the run's processes, appended at each start."""
        return self.folder.path.with_name(f"{self.folder.path.name}.log")

    @property
    def state(self) -> str:
        """DONE, UNFINISHED or TO_DO, from its folder."""
        if self.folder.result.is_file():
            return DONE
        return UNFINISHED if self.folder.config.is_file() else TO_DO

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the recipe that decide the weights, by "section.field"; without those that the run autotunes."""
        chosen = [f"training.{name}" for name in self.recipe.training.choose]
        fields = self.recipe.values().items()
        return {name: value for name, value in fields if not name.startswith(FREE_FIELDS) and name not in chosen}

    @property
    def fingerprint(self) -> str:
        """Digest of what decides the weights: `fields` and `data`, but not the version of the package."""
        return hashlib.sha256(json.dumps([self.fields, self.data], sort_keys=True).encode()).hexdigest()

    def first_recipe(self) -> Recipe:
        """The recipe to start with; another seed of the variant may have autotuned its open settings already."""
        for config in sorted(self.folder.path.parent.glob("seed*/config.yaml")) if self.recipe.training.choose else ():
            known = load_config(config).training
            chosen: dict[str, Any] = {name: getattr(known, name) for name in self.recipe.training.choose}
            return replace(self.recipe, training=replace(self.recipe.training, choose=[], **chosen))
        return self.recipe

    def refuse_another(self) -> None:
        """Raise ConfigError if the folder holds a run that this plan would not have made."""
        if self.state == TO_DO:
            return
        lacking = lacking_fields(self.folder.config)
        found = load_config(self.folder.config).values() | lacking
        for name, value in self.fields.items():
            if name not in found or found[name] == value:
                continue
            if self.accept_version and (name in lacking or is_older_meaning(name, found[name])):
                continue
            was = f"{found[name]!s:.60}"
            if name in lacking:
                raise ConfigError(
                    f"{self.folder.path}: holds a run from before {name} existed, when runs did what {was} does, and"
                    f" the study says {value!s:.60}; set {name} to {was}, accept the older run by --accept-version, or"
                    " choose another --output"
                )
            raise ConfigError(
                f"{self.folder.path}: holds a run with {name} {was}, and the study says {value!s:.60};"
                f" set {name} to {was}, or choose another --output"
            )
        self._refuse_other_data()

    def _refuse_other_data(self) -> None:
        """As `resume` does: labels and sampled images must agree; a run that was killed early has recorded none."""
        data = read_environment(self.folder).get("data", {})
        for name in same_data(self.data, data) if data else ():
            if name in CONTENT_KEYS:
                known = str(data.get("path", ""))
                differing = joined_sets.differing_parts(self.recipe.data.path, known) or "give --data"
                raise ConfigError(
                    f"{self.folder.path}: holds a run with data of {name} {data.get(name)!s:.60}, and"
                    f" {self.recipe.data.path} has {name} {self.data.get(name)!s:.60}; {differing}, or choose another"
                    " --output"
                )

    def write_lacking_fields(self) -> None:
        """Complete the config.yaml of an older run, so that it continues as it began and not by today's defaults."""
        recipe, sections = load_config(self.folder.config), defaultdict[str, dict[str, Any]](dict)
        for name, value in lacking_fields(self.folder.config).items():
            section, _, key = name.partition(".")
            if getattr(getattr(recipe, section), key) != value:
                sections[section][key] = value
        changed: dict[str, Any] = {name: replace(getattr(recipe, name), **part) for name, part in sections.items()}
        if changed:
            self.folder.write_recipe(replace(recipe, **changed))

    def versions(self) -> dict[str, str | None]:
        """Versions of facebones, its checkout and torch that last worked on the run; empty before it has started."""
        environment = read_environment(self.folder)
        for change in environment.get("resumed", {}).values():
            environment = environment | change
        found = {"git_revision": environment.get("commit")} | environment  # its name until 0.2.0.dev0
        return {name: found.get(name) for name in VERSIONS} if environment else {}

    def progress(self) -> dict[str, Any]:
        """Step, loss, rate and last accuracy from metrics.jsonl."""
        found: dict[str, Any] = {"step": 0, "loss": None, "images_per_second": None, "accuracy": None}
        for line in _last_lines(self.folder.metrics):
            if line.get("kind") == "train":
                found |= {key: line.get(key) for key in ("step", "loss", "images_per_second")}
            elif line.get("kind") == "validation":
                # Over shuffled folds, if those of the set hold one kind of pair.
                accuracy = line.get("accuracy_shuffled", line.get("accuracy"))
                found |= {"accuracy": accuracy, "step": max(found["step"], line.get("step") or 0)}
        return found

    @property
    def images(self) -> int:
        """Number of images that the whole run reads."""
        return self.steps * self.recipe.training.step_images


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
    """

    study: Study
    output: Path
    runs: Sequence[PlannedRun]
    trained: Mapping[str, Path]
    protocols: Sequence[Protocol]
    unusable: Mapping[str, str] = field(default_factory=dict)

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
    runs = _plan_runs(study, networks, output, accept_version) if networks else []
    for run in runs:
        run.refuse_another()
    trained = _trained_models([source for source in sources if source.path is not None], [run.name for run in runs])
    return Plan(study=study, output=output, runs=runs, trained=trained, protocols=find_sets(study, recipe))


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
    found = lookup_protocol(name).find(path := _place(place, beside))
    if not found:
        raise DataError(f"evaluate: {path}: holds no set of the protocol {name}; check the path")
    return list(found)


def _place(name: str, beside: Path) -> Path:
    return next((path for path in (Path(name), beside / name) if path.exists()), None) or find_pair_set(name, beside)


def _ijb_folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder; `ijb` names IJB-B or IJB-C folders")
    return Path(path)


def versions_here() -> dict[str, str | None]:
    """Versions of facebones, its checkout and torch in this process."""
    return {"facebones": facebones.__version__, "git_revision": git_revision(), "torch": str(torch.__version__)}


def read_environment(folder: RunFolder) -> dict[str, Any]:
    """The content of a run's environment.json; empty if there is none yet.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        content = json.loads(folder.environment.read_bytes())
        return {**content, "data": dict(content["data"]), "resumed": dict(content.get("resumed", {}))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{folder.environment}: cannot be read; restore it, or choose another --output") from error


def folder_name(backbone: str) -> str:
    """A backbone's name with only the characters that every file system accepts.

    >>> folder_name("timm:mobilenetv3_small_050.lamb_in1k")
    'timm_mobilenetv3_small_050.lamb_in1k'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", backbone)


def _plan_runs(study: Study, networks: Sequence[str], output: Path, accept_version: bool) -> list[PlannedRun]:
    if not study.data:
        raise ConfigError("no training data: give --data PATH (a folder with train.rec, or one folder an identity)")
    recipes = [(levels, with_absolute_paths(recipe)) for levels, recipe in study.recipes()]
    whole = open_all_people(*(recipe for _, recipe in recipes))
    check_teachers((recipe for _, recipe in recipes), whole)
    varies_networks, runs = sets_section(study.vary, "backbone"), []
    trained_on: dict[float, TrainingSet] = {}  # by the share that is held out
    for backbone, (levels, recipe) in itertools.product(networks, recipes):
        try:
            if (share := recipe.data.held_out) not in trained_on:
                trained_on[share] = without_held_out(whole, share)
            data = trained_on[share]
            steps = recipe.training.steps_per_epoch(len(data), data.path) * recipe.training.epochs
        except ConfigError as error:
            raise ConfigError(f"vary: {variant_name(backbone, levels)}: {error}" if levels else str(error)) from error
        stem = folder_name("_".join([backbone, *(level_words(factor, level) for factor, level in levels.items())]))
        runs += [
            PlannedRun(
                name=stem + (f"_seed{seed}" if len(study.seeds) > 1 else ""),
                backbone=backbone,
                seed=seed,
                folder=RunFolder(output / "runs" / stem / f"seed{seed}"),
                recipe=replace(
                    recipe,
                    backbone=replace(recipe.backbone, name=backbone),
                    training=replace(recipe.training, seed=seed),
                ),
                data=data.fingerprint(),
                steps=steps,
                levels=levels,
                builds_another=varies_networks,
                accept_version=accept_version,
            )
            for seed in study.seeds
        ]
    if study.vary:
        _check_names(runs)
    return runs


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
        name = folder_name(path.resolve().name if path.is_dir() else path.stem)
        if name in taken or name in models:
            raise ConfigError(f"backbones: two models are called {name}; rename the folder or file {path}")
        models[name] = path
    return models


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The last complete lines of a metrics.jsonl; another process may be writing it."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines[:-1]:
        try:
            content = json.loads(line)
        except ValueError:  # the first line is incomplete
            continue
        if isinstance(content, dict):
            found.append(content)
    return found
