"""The trials of a tuning as runs in the study's folder: which have ended, what they have shown, and what is next."""

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
from facebones.errors import ConfigError
from facebones.recipe import Recipe, flat_fields, load_config
from facebones.run_folder import TRAIN_LINE, RunFolder, read_metrics
from facebones.study.planned_run import DONE, TO_DO, UNFINISHED, PlannedRun
from facebones.study.proposals import ENDED, FAILED, STOPPED, Trial, best_trial, propose, thresholds
from facebones.study.tuning import FACTOR, TUNED, Dimension, TuneSettings, with_fields
from facebones.study.vary import Fields

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
    def count(self) -> int:
        """The number of pairs.

        Raises:
            DataError: the people are too few.
            ConfigError: they do not give twenty pairs.
        """
        people = held_out_only(self.data, self.share)
        what = f"{self.data.path}: a share of {self.share:g} of the people (tune.held_out)"
        most = most_pairs(people.labels, PAIR_SEED, what)
        sample_pairs(people.labels, count := min(self.pairs // 20 * 20, max(most, 20)), PAIR_SEED, what)
        return count

    @property
    def path(self) -> Path:
        """The file of the pairs."""
        return self.folder / f"held_out_{self.count}.bin"

    def write(self) -> None:
        """Write the pairs, unless they are there."""
        if self.path.exists():
            return
        people = held_out_only(self.data, self.share)
        pairs = sample_pairs(people.labels, self.count, PAIR_SEED, str(self.data.path))
        encoded = {index: people.read(index)[0] for pair in pairs for index in pair[:2]}
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
        steps = recipe.training.steps_per_epoch(len(data), data.path) * recipe.training.epochs
        recipe = replace(
            recipe,
            data=replace(recipe.data, held_out=self.settings.held_out),
            training=replace(recipe.training, stop_below=list(stop_below)),
            validation=replace(
                recipe.validation,
                sets=[str(self.held_out.path.absolute())],
                every=math.ceil(steps / self.settings.validations),
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

    def runs(self) -> list[PlannedRun]:
        """All trials; those whose fields are not drawn yet have the recipe's own."""
        return [self._begun(number) or self.planned(number, {}) for number in range(self.settings.trials)]

    def next_run(self, failed: Collection[str]) -> PlannedRun | None:
        """The first trial that has not ended; None if there is none.

        Args:
            failed: names of trials that have failed, and are not to be tried again.
        """
        history: list[Trial] = []
        for number in range(self.settings.trials):
            begun = self._begun(number)
            if begun is None:
                fields = propose(self.space, history, self.settings.seed)
                stop_early = self.settings.stop_early
                return self.planned(
                    number, fields, thresholds(history, self.settings.validations) if stop_early else []
                )
            if begun.state != DONE and begun.name not in failed:
                return begun
            history.append(self._trial(number, begun))
        return None

    def history(self) -> list[Trial]:
        """The trials that have ended, failed ones included."""
        begun = [(number, self._begun(number)) for number in range(self.settings.trials)]
        trials = [self._trial(number, run) for number, run in begun if run is not None]
        return [trial for trial in trials if trial.state != UNFINISHED]

    def chosen(self) -> Trial | None:
        """The best trial, once all have ended; None before, and if all have failed."""
        history = self.history()
        return best_trial(history) if len(history) == self.settings.trials else None

    def to_json(self) -> dict[str, Any]:
        """What study.json says of it: every trial, and the chosen one's number."""
        rows = []
        for run, number in zip(self.runs(), range(self.settings.trials), strict=True):
            trial = self._trial(number, run) if run.state != TO_DO else Trial(number, {}, [], TO_DO)
            row = {"trial": number, "fields": dict(trial.fields), "state": trial.state}
            step = run.steps if trial.state == ENDED else run.progress()["step"]
            accuracy = trial.accuracies[-1] if trial.accuracies else None
            rows.append({**row, "accuracy": accuracy, "steps": run.steps, "step": step, "error": _error(run)})
        chosen = self.chosen()
        return {
            "name": self.stem,
            "backbone": self.default.backbone,
            "levels": dict(self.default.levels),
            "chosen": None if chosen is None else chosen.number,
            "trials": rows,
        }

    def decides(self, run: PlannedRun) -> bool:
        """Whether the trials decide the recipe of a training."""
        return (run.backbone, run.levels) == (self.default.backbone, {**self.default.levels, FACTOR: TUNED})

    def tuned(self, recipe: Recipe) -> Recipe:
        """A recipe with the chosen fields; as it is while none is chosen."""
        chosen = self.chosen()
        return recipe if chosen is None else with_fields(recipe, chosen.fields)

    def _folder(self, number: int) -> RunFolder:
        return RunFolder(self.held_out.folder / self.stem / f"trial{number}")

    def _begun(self, number: int) -> PlannedRun | None:
        """A trial whose recipe has been written; None if there is none.

        Raises:
            ConfigError: it is a trial of another study.
        """
        file = self.planned_file(number)
        if not file.is_file():
            return None
        recipe = load_config(file)
        run = self.planned(number, self._fields_of(recipe, file) if number else {}, recipe.training.stop_below)
        if _looks(recipe) != _looks(run.recipe):
            raise ConfigError(
                f"{file}: a trial that is validated on {' '.join(_looks(recipe))} steps, and the study says"
                f" {' '.join(_looks(run.recipe))} steps; give tune.pairs and tune.validations as they were, or choose"
                " another --output"
            )
        run.refuse_another()
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
            return Trial(number, fields, accuracies, STOPPED if run.stopped_early else ENDED)
        return Trial(number, fields, _accuracies(run.folder), FAILED if _error(run) else UNFINISHED)


def is_vain(tuned: Mapping[str, Any]) -> bool:
    """Whether all trials of a tuning, as `to_json` describes it, have failed."""
    return all(trial["state"] == FAILED for trial in tuned["trials"])


def _looks(recipe: Recipe) -> list[str]:
    """When and on what a trial is validated; its pairs are in the study's folder, wherever that is."""
    return [*(Path(name).name for name in recipe.validation.sets), "every", str(recipe.validation.every)]


def _error(run: PlannedRun) -> str | None:
    recorded = run.folder.read_error() if run.state != DONE else None
    return None if recorded is None else str(recorded["message"])


def _accuracies(folder: RunFolder) -> list[float]:
    """The accuracy at each validation; 0 where an embedding had no direction."""
    lines = read_metrics(folder.metrics, without=TRAIN_LINE) if folder.metrics.exists() else []
    return [line.get("accuracy") or 0.0 for line in lines if line.get("kind") == "validation"]
