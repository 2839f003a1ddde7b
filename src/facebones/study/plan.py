"""What runs a study has, and how far each is: all of it read from the run folders, so that nothing can disagree."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import facebones
from facebones.data.folders import find_pair_set, open_training_set
from facebones.errors import ConfigError, DataError
from facebones.evaluation.pairs import pair_set_files
from facebones.profiling.networks import Source, find_sources
from facebones.recipe import Recipe, load_config
from facebones.run_folder import RunFolder
from facebones.study.study import Study
from facebones.training.run import with_absolute_paths

# What may differ between a run and its plan: where things lie, how much is said, and measurements on the way.
FREE_FIELDS = ("data.path", "data.workers", "training.checkpoint_every", "training.choose", "validation.", "log.")
DONE, UNFINISHED, TO_DO = "done", "unfinished", "to do"
TAIL_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A training of the study.

    Attributes:
        name: what its model is called: the backbone, with the seed where there are several.
        backbone: name in the registry, or timm:NAME.
        seed: of the training.
        folder: where it is, or will be.
        recipe: resolved.
        data: fingerprint of the training data.
        steps: of the whole run.
    """

    name: str
    backbone: str
    seed: int
    folder: RunFolder
    recipe: Recipe
    data: Mapping[str, Any]
    steps: int

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe, from which the run is begun."""
        return self.folder.path.with_name(f"{self.folder.path.name}.yaml")

    @property
    def log(self) -> Path:
        """What the run said, over all its beginnings."""
        return self.folder.path.with_name(f"{self.folder.path.name}.log")

    @property
    def state(self) -> str:
        """DONE, UNFINISHED or TO_DO, from its folder."""
        if self.folder.result.is_file():
            return DONE
        return UNFINISHED if self.folder.config.is_file() else TO_DO

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides the weights, by name: fields of the recipe, the data, and the version of the package.

        Without what the run is to choose by itself.
        """
        chosen = [f"training.{name}" for name in self.recipe.training.choose]
        decisive = _decisive(self.recipe, self.data, facebones.__version__)
        return {key: value for key, value in decisive.items() if key not in chosen}

    @property
    def fingerprint(self) -> str:
        """Digest of `decisive`."""
        return hashlib.sha256(json.dumps(self.decisive, sort_keys=True).encode()).hexdigest()

    def first_recipe(self) -> Recipe:
        """The recipe to begin with: what it is to choose by measuring is as another seed of the backbone has it."""
        for config in sorted(self.folder.path.parent.glob("seed*/config.yaml")) if self.recipe.training.choose else ():
            known = load_config(config).training
            chosen: dict[str, Any] = {name: getattr(known, name) for name in self.recipe.training.choose}
            return replace(self.recipe, training=replace(self.recipe.training, choose=[], **chosen))
        return self.recipe

    def refuse_another(self) -> None:
        """Raise ConfigError where the folder holds a run that this plan would not have made."""
        if self.state == TO_DO:
            return
        planned, found = self.decisive, _decisive_of(self.folder)
        for name, value in planned.items():
            if name in found and found[name] != value:
                raise ConfigError(
                    f"{self.folder.path}: holds a run with {name} {found[name]!s:.60}, and the study says"
                    f" {value!s:.60}; choose another --output, or remove that folder"
                )

    def progress(self) -> dict[str, Any]:
        """Step, loss, rate and last accuracy, as far as metrics.jsonl tells them."""
        found: dict[str, Any] = {"step": 0, "loss": None, "images_per_second": None, "accuracy": None}
        for line in _last_lines(self.folder.metrics):
            if line.get("kind") == "train":
                found |= {key: line.get(key) for key in ("step", "loss", "images_per_second")}
            elif line.get("kind") == "validation":
                found |= {"accuracy": line.get("accuracy"), "step": max(found["step"], line.get("step") or 0)}
        return found

    @property
    def images(self) -> int:
        """Images that the whole run goes through."""
        return self.steps * self.recipe.training.batch_size * self.recipe.training.accumulation_steps


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a study is to do.

    Attributes:
        study: what was asked for.
        output: the study's folder.
        runs: the trainings, backbone by backbone.
        trained: models that others have trained, by name.
        pair_sets: files.
    """

    study: Study
    output: Path
    runs: Sequence[PlannedRun]
    trained: Mapping[str, Path]
    pair_sets: Sequence[Path]


def make_plan(study: Study, output: Path) -> Plan:
    """Resolve names, find the data, and hold what is in `output` against the study.

    Raises:
        FaceBonesError: a name or a file is missing, or a run there is of another recipe, data or version.
    """
    sources = find_sources(study.backbones)
    networks = [source.name for source in sources if source.path is None]
    recipe = study.resolved_recipe()
    runs = _plan_runs(study, recipe, networks, output) if networks else []
    for run in runs:
        run.refuse_another()
    trained = _trained_models([source for source in sources if source.path is not None], [run.name for run in runs])
    beside = Path(recipe.data.path or ".")
    sets = [find_pair_set(name, beside) for name in study.pair_sets or recipe.validation.sets]
    pair_set_files(sets)  # refuses two of one name now, and not after the trainings
    _check_targets([Path(folder) for folder in study.ijb])
    return Plan(study=study, output=output, runs=runs, trained=trained, pair_sets=sets)


def folder_name(backbone: str) -> str:
    """A backbone's name as that of a folder.

    >>> folder_name("timm:mobilenetv3_small_050.lamb_in1k")
    'timm_mobilenetv3_small_050.lamb_in1k'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", backbone)


def _plan_runs(study: Study, recipe: Recipe, networks: Sequence[str], output: Path) -> list[PlannedRun]:
    if not recipe.data.path:
        raise ConfigError("no training data: give --data PATH (a folder with train.rec, or one folder an identity)")
    data = open_training_set(recipe.data.path)
    step_images = recipe.training.batch_size * recipe.training.accumulation_steps
    steps = len(data) // step_images * recipe.training.epochs
    recipe, fingerprint = with_absolute_paths(recipe), data.fingerprint()
    return [
        PlannedRun(
            name=folder_name(backbone) + (f"_seed{seed}" if len(study.seeds) > 1 else ""),
            backbone=backbone,
            seed=seed,
            folder=RunFolder(output / "runs" / folder_name(backbone) / f"seed{seed}"),
            recipe=replace(
                recipe,
                backbone=replace(recipe.backbone, name=backbone),
                training=replace(recipe.training, seed=seed),
            ),
            data=fingerprint,
            steps=steps,
        )
        for backbone in networks
        for seed in study.seeds
    ]


def _trained_models(sources: Sequence[Source], taken: Sequence[str]) -> dict[str, Path]:
    models: dict[str, Path] = {}
    for source in sources:
        path = source.path or Path()
        name = folder_name(path.resolve().name if path.is_dir() else path.stem)
        if name in taken or name in models:
            raise ConfigError(f"backbones: two models are called {name}; rename the folder or file {path}")
        models[name] = path
    return models


def _check_targets(folders: Sequence[Path]) -> None:
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; `ijb` names IJB-B or IJB-C folders")
        if names.count(name) > 1:
            raise DataError(f"ijb: two folders are called {name}; rename {folder}")


def _decisive(recipe: Recipe, data: Mapping[str, Any], version: str) -> dict[str, Any]:
    fields = {name: value for name, value in recipe.values().items() if not name.startswith(FREE_FIELDS)}
    return fields | {f"data of {key}": value for key, value in data.items()} | {"facebones": version}


def _decisive_of(folder: RunFolder) -> dict[str, Any]:
    """The same of the run that is in a folder; a run that was killed at its very beginning knows no data yet."""
    recipe = load_config(folder.config)
    try:
        environment = json.loads(folder.environment.read_bytes())
        known = {key: value for key, value in environment["data"].items() if key != "path"}
        return _decisive(recipe, known, environment["facebones"])
    except FileNotFoundError:
        unknown = _decisive(recipe, {}, "")
        del unknown["facebones"]
        return unknown
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder.environment}: cannot be read; restore it, or remove the folder to train anew"
        ) from error


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a metrics.jsonl that is perhaps being written."""
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
        except ValueError:  # the first one is cut
            continue
        if isinstance(content, dict):
            found.append(content)
    return found
