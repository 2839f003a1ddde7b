"""Training: one recipe, one folder, one loop, which a killed run takes up again bit by bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from facebones.errors import CheckpointError, ConfigError
from facebones.recipe import Recipe
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint
from facebones.system.device import select_device
from facebones.system.progress import say
from facebones.training.autotune import choose_settings
from facebones.training.trainer import Trainer


def train(recipe: Recipe, output: Path, device: str = "auto") -> dict[str, Any]:
    """Train by a recipe into a new run folder.

    The folder holds a checkpoint from before the first step on. What only the way can show, such as a training image
    that cannot be decoded, ends the run after a save: mend it, and resume.

    Args:
        recipe: with `data.path` set.
        output: the run's folder, made here; nothing is written before all input has been checked.
        device: "auto", "cpu", "cuda", ...

    Returns:
        what result.json holds.

    Raises:
        FaceBonesError: input that cannot be used, or a run that failed (RunError).
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    folder = RunFolder(output)
    folder.refuse_existing()
    if not recipe.data.path:
        raise ConfigError("no training data: give --data PATH (a folder with train.rec, or one folder an identity)")
    recipe = with_absolute_paths(recipe)
    trainer = _built(recipe, device)
    if recipe.training.choose:
        computing = trainer.device
        del trainer  # one at a time: a head may take most of the memory
        recipe = choose_settings(recipe, computing)
        trainer = Trainer(recipe, computing)
    with folder.create(recipe):
        return trainer.run(folder)


def resume(output: Path, device: str = "auto", data: str | None = None, workers: int | None = None) -> dict[str, Any]:
    """Go on with a run from its newest checkpoint, to the same weights as without the break.

    Args:
        output: the run's folder.
        device: as for `train`.
        data: where the training data lies now, if it has moved; kept in config.yaml.
        workers: processes that read and decode, if another number than before; likewise.

    Raises:
        CheckpointError: no run there, its checkpoint is lost or damaged, or the data is not what it was trained on.
    """
    folder = RunFolder(output)
    with folder.open() as saved:
        if not saved.data.path:
            raise CheckpointError(f"{folder.config}: names no data (data.path); restore it, or begin a new run")
        given = {"path": None if data is None else str(Path(data).resolve()), "workers": workers}
        changed = {key: value for key, value in given.items() if value is not None}
        recipe = replace(saved, data=replace(saved.data, **cast(Any, changed)))
        trainer = _built(recipe, device)
        if folder.last.is_file():
            trainer.load_state_dict(load_checkpoint(folder.last), folder.last)
        elif folder.begun:
            raise CheckpointError(f"{folder.last}: is gone, though the run had begun; restore it, or begin a new run")
        if recipe != saved:
            folder.write_recipe(recipe)
        say(f"resuming {output} at step {trainer.step} of {trainer.total_steps}")
        return trainer.run(folder)


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe as it can be resumed from any folder; pair sets that are names beside the data stay names."""
    sets = [str(Path(name).absolute()) if Path(name).is_file() else name for name in recipe.validation.sets]
    return replace(
        recipe,
        data=replace(recipe.data, path=str(Path(recipe.data.path).resolve())),
        validation=replace(recipe.validation, sets=sets),
    )


def _built(recipe: Recipe, device: str) -> Trainer:
    """The trainer of a recipe, whose validation sets have been tried."""
    trainer = Trainer(recipe, select_device(device))
    trainer.validation.try_out(trainer.backbone, trainer.device)
    return trainer
