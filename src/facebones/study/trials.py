"""The trials of a tuning as runs in the study's folder: which have ended, what they have shown, and what is next."""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from facebones.data.pair_bins import write_pairs
from facebones.data.training_set import TrainingSet
from facebones.data.wrapped_sets import held_out_only, without_held_out
from facebones.datatools.sample_pairs import most_pairs, sample_pairs
from facebones.errors import ConfigError, DataError, DivergedError, FaceBonesError, UntrainedError
from facebones.recipe import Recipe, flat_fields, load_config
from facebones.recipe_sections import TIMM_WEIGHTS
from facebones.reporting.tuning import FAILED, STOPPED
from facebones.run_folder import TRAIN_LINE, RunFolder, read_metrics
from facebones.study.checks import check_head_of
from facebones.study.planned_run import DONE, TO_DO, UNFINISHED, PlannedRun
from facebones.study.proposals import Trial, best_trial, propose, thresholds
from facebones.study.tuning import Dimension, TuneSettings, with_fields
from facebones.study.vary import Fields
from facebones.training.optimizer import build_schedule
from facebones.training.start import read_start
from facebones.training.teaching import check_distillation

FOLDER = "tuning"  # of all trials, in the study's folder
PAIR_SEED = 0


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The people that no trial trains on, and the pairs of them that decide.

    Attributes:
        data: the whole training set.
        share: of its people.
        pairs: at most so many.
        folder: where the pairs are written.
    """

    data: TrainingSet
    share: float
    pairs: int
    folder: Path

    @cached_property
    def trained(self) -> TrainingSet:
        """What trials train on."""
        return without_held_out(self.data, self.share)

    @cached_property
    def people(self) -> TrainingSet:
        """The images of the people that decide."""
        return held_out_only(self.data, self.share)

    @cached_property
    def count(self) -> int:
        """The number of pairs.

        Raises:
            DataError: the people are too few.
            ConfigError: they do not give twenty pairs.
        """
        what = f"{self.data.path}: a share of {self.share:g} of the people"
        try:
            most = most_pairs(self.people.labels, PAIR_SEED, what)
            sample_pairs(self.people.labels, count := min(self.pairs // 20 * 20, max(most, 20)), PAIR_SEED, what)
        except DataError as error:
            raise DataError(f"{error}; raise tune.held_out") from error
        return count

    @property
    def path(self) -> Path:
        """The file of the pairs; its name tells which people and pairs they are."""
        content = json.dumps([self.data.fingerprint(), self.share, self.count], sort_keys=True)
        return self.folder / f"held_out_{self.count}_{hashlib.sha256(content.encode()).hexdigest()[:8]}.bin"

    def write(self) -> None:
        """Write the pairs; always the same bytes, so what is there may have been damaged or removed."""
        pairs = sample_pairs(self.people.labels, self.count, PAIR_SEED, str(self.data.path))
        encoded = {index: self.people.read(index)[0] for pair in pairs for index in pair[:2]}
        self.folder.mkdir(parents=True, exist_ok=True)
        images = [encoded[index] for pair in pairs for index in pair[:2]]
        write_pairs(self.path, images, [pair.same for pair in pairs])


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The trials of one backbone, at one level of each factor.

    Attributes:
        stem: name of the backbone and its levels, as a part of file names.
        settings: of the study's tuning.
        space: what trials choose from.
        held_out: the people that decide.
        default: a training by the recipe as it is.
    """

    stem: str
    settings: TuneSettings
    space: Mapping[str, Dimension]
    held_out: HeldOut
    default: PlannedRun

    def planned(self, number: int, fields: Fields, stop_below: Sequence[float] = ()) -> PlannedRun:
        """A trial as a training.

        Args:
            number: of the trial.
            fields: what it sets.
            stop_below: see `proposals.thresholds`.
        """
        recipe, data = with_fields(self.default.recipe, fields), self.held_out.trained
        try:
            steps = recipe.training.steps_per_epoch(len(data), data.path) * recipe.training.epochs
        except ConfigError:  # together, the fields ask for too large a step: this trial will fail when it begins
            steps = 0
        recipe = replace(
            recipe,
            data=replace(recipe.data, held_out=self.settings.held_out),
            training=replace(recipe.training, stop_below=list(stop_below)),
            validation=replace(
                recipe.validation,
                sets=[str(self.held_out.path.absolute())],
                every=max(1, math.ceil(steps / self.settings.validations)),
            ),
        )
        return replace(
            self.default,
            name=f"{self.stem}_trial{number}",
            folder=self._folder(number),
            recipe=recipe,
            data=data.fingerprint(),
            steps=steps,
        )

    def check(self) -> None:
        """Try the recipe as it is, every listed value, and both ends of every range, without training.

        Values are tried one by one. A trial may still draw some that exclude each other: it has failed then.

        Raises:
            ConfigError: a value with which no training can begin.
        """
        levels = self.default.levels
        self._try({}, f"vary: {self.default.variant}: " if levels else "")
        for name, dimension in self.space.items():
            for text in dimension.ends:
                self._try({name: text}, f"tune.space.{name}: {text}: ")

    def _try(self, fields: Fields, place: str) -> None:
        """Raise ConfigError, which begins with `place`, if a training with these fields cannot begin."""
        data = self.held_out.trained
        try:
            recipe = self.planned(0, fields).recipe
            steps = recipe.training.steps_per_epoch(len(data), data.path)
            build_schedule(recipe.schedule, recipe.optimizer.learning_rate, steps, recipe.training.epochs)
            check_distillation(recipe)
            if not self._heads_differ_by_several:
                check_head_of(recipe, data.num_identities)
            if any(name.startswith("backbone.") for name in fields) and recipe.backbone.weights != TIMM_WEIGHTS:
                read_start(recipe)
        except FaceBonesError as error:
            raise ConfigError(f"{place}{error}") from error

    @property
    def _heads_differ_by_several(self) -> bool:
        """Whether trials choose several options of the head, of which one alone may not fit the recipe's others."""
        return sum(name.startswith("head.") for name in self.space) > 1

    def runs(self) -> list[PlannedRun]:
        """All trials; those whose fields are not drawn yet have the recipe's own."""
        return [self._begun(number) or self.planned(number, {}) for number in range(self.settings.trials)]

    def next_run(self, failed: Collection[str]) -> PlannedRun | None:
        """The first trial that has not ended; None if there is none.

        Args:
            failed: names of trials that have failed in this call: those after one of them depend on it, and wait.
        """
        history: list[Trial] = []
        for number in range(self.settings.trials):
            begun = self._begun(number)
            if begun is None:
                fields = propose(self.space, history, self.settings.seed)
                validations = self.settings.validations if self.settings.stop_early else 0
                return self.planned(number, fields, thresholds(history, validations))
            trial = self._trial(number, begun)
            if trial.state == UNFINISHED:
                return None if begun.name in failed else begun
            history.append(trial)
        return None

    def history(self) -> list[Trial]:
        """The trials that have ended, those that have failed included."""
        begun = [(number, self._begun(number)) for number in range(self.settings.trials)]
        trials = [self._trial(number, run) for number, run in begun if run is not None]
        return [trial for trial in trials if trial.state != UNFINISHED]

    @property
    def complete(self) -> bool:
        """Whether all trials have ended, from the files in their folders alone: `--watch` asks every second."""
        return all(
            self._folder(number).result.is_file() or self._failure(number) for number in range(self.settings.trials)
        )

    def chosen(self) -> Trial | None:
        """The best trial, once all have ended; None before, and if all have failed."""
        return best_trial(self.history()) if self.complete else None

    def to_json(self, errors: Mapping[str, str]) -> dict[str, Any]:
        """What study.json says of it: every trial, and the chosen one's number.

        Args:
            errors: why trainings have failed in this call, by name.
        """
        rows = []
        for run, number in zip(self.runs(), range(self.settings.trials), strict=True):
            known = run.state != TO_DO or self._failure(number)
            trial = self._trial(number, run) if known else Trial(number, {}, [], TO_DO)
            row = {"trial": number, "fields": dict(trial.fields), "state": trial.state}
            step = run.steps if trial.state == DONE else run.progress()["step"]
            accuracy = trial.accuracies[-1] if trial.accuracies else None
            rows.append({**row, "accuracy": accuracy, "steps": run.steps, "step": step})
            rows[-1]["error"] = None if run.state == DONE else errors.get(run.name) or self._failure(number)
        chosen = self.chosen()
        return {
            "name": self.stem,
            "backbone": self.default.backbone,
            "levels": dict(self.default.levels),
            "chosen": None if chosen is None else chosen.number,
            "trials": rows,
        }

    def _folder(self, number: int) -> RunFolder:
        return RunFolder(self.held_out.folder / self.stem / f"trial{number}")

    def _begun(self, number: int) -> PlannedRun | None:
        """A trial whose recipe has been written; None if there is none.

        Raises:
            ConfigError: it is a trial of another study.
        """
        file = self._folder(number).config
        file = file if file.is_file() else self.planned_file(number)
        if not file.is_file():
            if self._folder(number).result.is_file():
                raise ConfigError(f"{self._folder(number).path}: has no config.yaml; restore it, or remove the folder")
            return None
        recipe = load_config(file)
        run = self.planned(number, self._fields_of(recipe, file) if number else {}, recipe.training.stop_below)
        if _looks(recipe) != _looks(run.recipe):
            raise ConfigError(
                f"{file}: a trial that is validated on {_looks(recipe)}, and the study says {_looks(run.recipe)}; give"
                " `tune`, the data, the epochs and the batch size as they were, or choose another --output"
            )
        run.refuse_another_study()
        return run

    def planned_file(self, number: int) -> Path:
        """The recipe of a trial, which is written when it begins."""
        return replace(self.default, folder=self._folder(number)).recipe_file

    def _fields_of(self, recipe: Recipe, file: Path) -> dict[str, str]:
        own, fields = flat_fields(recipe.to_dict()), dict[str, str]()
        for name, dimension in self.space.items():
            text = dimension.text_of(own.get(name))
            if text is None:
                raise ConfigError(
                    f"{file}: a trial with {name} {own.get(name)!s:.60}, which the study's space does not have; give"
                    " the space as it was, or choose another --output"
                )
            fields[name] = text
        return fields

    def _trial(self, number: int, run: PlannedRun) -> Trial:
        """What a trial has shown so far; its state is UNFINISHED if it has not ended."""
        fields = self._fields_of(run.recipe, self.planned_file(number)) if number else {}
        if run.state == DONE:
            accuracies = _accuracies(run.folder)
            return Trial(number, fields, accuracies, STOPPED if run.stopped_early else DONE)
        return Trial(number, fields, _accuracies(run.folder), FAILED if self._failure(number) else UNFINISHED)

    def _failure(self, number: int) -> str | None:
        """Why a trial cannot end, so that it counts as one that has failed; None if it can be tried again.

        A loss that is not finite will not be the next time. Fields that were drawn may exclude each other, too; where
        the recipe as it is cannot be trained, that is an error of the study. What failed for another reason, such as a
        full disk, is tried again.
        """
        folder = self._folder(number)
        recorded, lasting = folder.read_error(), [DivergedError.__name__]
        if number:
            lasting.append(UntrainedError.__name__)
            if not folder.config.is_file():  # it has not begun
                lasting.append(ConfigError.__name__)
        return str(recorded["message"]) if recorded and recorded["type"] in lasting else None


def is_vain(tuned: Mapping[str, Any]) -> bool:
    """Whether all trials of a tuning, as `to_json` describes it, have failed."""
    return all(trial["state"] == FAILED for trial in tuned["trials"])


def _looks(recipe: Recipe) -> str:
    """When and on what a trial is validated; its pairs are in the study's folder, wherever that is."""
    names = ", ".join(Path(name).name for name in recipe.validation.sets)
    return f"{names} every {recipe.validation.every} steps"


def _accuracies(folder: RunFolder) -> list[float]:
    """The accuracy at each validation; 0 where an embedding had no direction.

    Raises:
        DataError: damaged, or a trial that has ended has none.
    """
    lines = read_metrics(folder.metrics, without=TRAIN_LINE) if folder.metrics.exists() else []
    found = [line for line in lines if isinstance(line, dict) and line.get("kind") == "validation"]
    accuracies = [line.get("accuracy") or 0.0 for line in found]
    if not all(isinstance(one, float | int) for one in accuracies) or (folder.result.exists() and not accuracies):
        raise DataError(f"{folder.metrics}: has no accuracies; restore it, or remove the folder to train it again")
    return accuracies
