"""One training of a study and how far it is, read from its run folder: nothing else records its state."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import facebones
from facebones.data import joined_sets
from facebones.data.training_set import CONTENT_KEYS, same_data
from facebones.errors import ConfigError
from facebones.recipe import Recipe, is_older_meaning, lacking_fields, load_config
from facebones.reporting.variants import variant_name
from facebones.run_folder import RunFolder
from facebones.study.vary import FREE_FIELDS
from facebones.system.environment import git_revision
from facebones.system.regular_files import open_regular, read_regular

DONE, UNFINISHED, TO_DO = "done", "unfinished", "to do"
VERSIONS = ("facebones", "git_revision", "torch")
TAIL_BYTES = 2**16


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
        steps: steps of the whole run; 0 of a trial whose batch the data have too few images for.
        teacher: fingerprint of the embeddings that the recipe names, as they are now; None without a teacher.
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
    teacher: str | None = None
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
    def stopped_early(self) -> bool:
        """Whether it is done because `training.stop_below` ended it; in a study, a trial of a tuning."""
        return self.state == DONE and self.result().get("stopped_early") is True

    def result(self) -> dict[str, Any]:
        """The content of result.json of a run that is done.

        Raises:
            ConfigError: it is damaged.
        """
        try:
            content = json.loads(read_regular(self.folder.result))
            return {**content, "final": [dict(row) for row in content["final"]]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{self.folder.result}: damaged; restore it, or remove the folder to train this run again"
            ) from error

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the recipe that decide the weights, by "section.field"; without those that the run autotunes."""
        chosen = [f"training.{name}" for name in self.recipe.training.choose]
        fields = self.recipe.values().items()
        return {name: value for name, value in fields if not name.startswith(FREE_FIELDS) and name not in chosen}

    @property
    def fingerprint(self) -> str:
        """Digest of what decides the weights: `fields`, `data` and `teacher`, but not the version of the package."""
        deciding = [self.fields, self.data, *filter(None, [self.teacher])]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def first_recipe(self) -> Recipe:
        """The recipe to start with; another seed of the variant may have autotuned its open settings already."""
        for config in sorted(self.folder.path.parent.glob("*/config.yaml")) if self.recipe.training.choose else ():
            known = load_config(config).training
            chosen: dict[str, Any] = {name: getattr(known, name) for name in self.recipe.training.choose}
            return replace(self.recipe, training=replace(self.recipe.training, choose=[], **chosen))
        return self.recipe

    def refuse_another_study(self) -> None:
        """As `refuse_another`, of a run whose recipe no user has written: the study that chose it was another one."""
        try:
            self.refuse_another()
        except ConfigError as error:
            reason = str(error).partition(";")[0]
            raise ConfigError(f"{reason}; give the study as it was, or choose another --output") from error

    def refuse_another(self) -> None:
        """Raise ConfigError if the folder holds a run that this plan would not have made."""
        if self.state == TO_DO:
            return
        lacking = lacking_fields(self.folder.config)
        found = load_config(self.folder.config).values() | lacking
        idle = [f"distillation.{name}" for name in self.recipe.distillation.without_effect()]
        for name, value in self.fields.items():
            if name not in found or found[name] == value or name in idle:
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
        environment = read_environment(self.folder)  # a run that was killed early has none
        self._refuse_other_data(environment.get("data", {}))
        self._refuse_another_teacher(environment.get("teacher"))

    def _refuse_other_data(self, data: Mapping[str, Any]) -> None:
        """As `resume` does: labels and sampled images must agree."""
        for name in same_data(self.data, data) if data else ():
            if name in CONTENT_KEYS:
                known = str(data.get("path", ""))
                differing = joined_sets.differing_parts(self.recipe.data.path, known) or "give --data"
                raise ConfigError(
                    f"{self.folder.path}: holds a run with data of {name} {data.get(name)!s:.60}, and"
                    f" {self.recipe.data.path} has {name} {self.data.get(name)!s:.60}; {differing}, or choose another"
                    " --output"
                )

    def _refuse_another_teacher(self, recorded: Any) -> None:
        """The name of a teacher's embeddings stays where others replace them; older versions recorded the name only."""
        known = recorded.get("fingerprint") if isinstance(recorded, dict) else None
        if self.teacher is not None and known not in (None, self.teacher):
            raise ConfigError(
                f"{self.folder.path}: holds a run with another teacher than {self.recipe.distillation.embeddings} is"
                " now (distillation.embeddings); restore its embeddings, give those of the other teacher another name,"
                " or choose another --output"
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

    def write_places(self) -> None:
        """Complete the config.yaml of a run whose validation sets have moved since, as with the study's folder."""
        recipe, sets = load_config(self.folder.config), self.recipe.validation.sets
        if sets != recipe.validation.sets and [*map(_name, sets)] == [*map(_name, recipe.validation.sets)]:
            self.folder.write_recipe(replace(recipe, validation=replace(recipe.validation, sets=sets)))

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


def versions_here() -> dict[str, str | None]:
    """Versions of facebones, its checkout and torch in this process."""
    return {"facebones": facebones.__version__, "git_revision": git_revision(), "torch": str(torch.__version__)}


def read_environment(folder: RunFolder) -> dict[str, Any]:
    """The content of a run's environment.json; empty if there is none yet.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        content = json.loads(read_regular(folder.environment))
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


def _name(path: str) -> str:
    return Path(path).name


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The last complete lines of a metrics.jsonl; another process may be writing it."""
    try:
        with open_regular(path) as file:
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
