"""Training: one recipe, one folder, one loop; a killed run is resumed bit by bit."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from facebones.data.joined_sets import absolute
from facebones.errors import CheckpointError, ConfigError, FaceBonesError
from facebones.plugins import import_plugins, imported_plugins
from facebones.recipe import Recipe, load_config, load_recipe
from facebones.run_folder import RunFolder
from facebones.system.device import device_settings, random_state_kept, select_device
from facebones.system.distributed import World
from facebones.system.files import is_file
from facebones.system.process_group import agreed, gather_objects, joined, own_device
from facebones.system.processes import PARENT_VARIABLE, TORCHRUN_VARIABLE
from facebones.system.progress import say
from facebones.system.sharded_checkpoint import load_state, newest
from facebones.training.callbacks import Callback
from facebones.training.loop import TrainingLoop
from facebones.training.run_files import same_training, saved_threads
from facebones.training.start import read_start, same_start, with_absolute_weights
from facebones.training.state import CHANGEABLE_FIELDS
from facebones.training.teaching import check_distillation
from facebones.training.trainer import Trainer


def train(
    recipe: Recipe | str | Path, output: str | Path, device: str = "auto", *, callbacks: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Train by a recipe into a new run folder.

    The folder holds a checkpoint from before the first step on. An error on the way, such as a training image that
    cannot be decoded, ends the run after a save and leaves error.json: fix the cause, and resume.

    Args:
        recipe: with `data.path` set; or the path or name of one.
        output: the run's folder, made here; nothing is written before all input has been checked.
        device: "auto", "cpu", "cuda", ...
        callbacks: called beside the registered ones.

    Started by torchrun or `facebones train --devices N`, the processes train together. A process that torchrun has
    restarted finds the run of the same recipe and continues it.

    Returns:
        The content of result.json.

    Raises:
        FaceBonesError: input that cannot be used, or a run that failed (RunError).
        LostProcessError: another process of the training has ended or does not answer.
        Interrupted: SIGINT or SIGTERM came; the state is saved.

    Torch's random state and the settings of CUDA are the same after the call as before.
    """
    folder = RunFolder(Path(output))
    with joined(device) as world:
        with agreed(world):
            recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
            computing = select_device(own_device(device))
            restarted = TORCHRUN_VARIABLE in os.environ and _holds(folder, recipe)
        if restarted:
            return resume(output, device, callbacks=callbacks)
        with device_settings(computing), random_state_kept(computing), _threads_of(recipe, folder):
            with _errors_noted(folder, world, only_in_study=True):
                with agreed(world):
                    folder.refuse_existing()
                trainer = _begin(recipe, computing, world)
            with _in_first(world, folder.create(trainer.recipe)), _errors_noted(folder, world, trainer):
                return TrainingLoop(trainer, folder, callbacks).run()


def resume(
    output: str | Path,
    device: str = "auto",
    data: str | None = None,
    workers: int | None = None,
    *,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Continue a run from its newest checkpoint, to the same weights as without the interruption.

    Args:
        output: the run's folder.
        device: as for `train`.
        data: where the training data is now, if it has moved; kept in config.yaml.
        workers: another number of processes that read and decode; kept in config.yaml.
        callbacks: as for `train`.

    Returns:
        The content of result.json.

    Raises:
        CheckpointError: no run there, its checkpoint is lost or damaged, or the data is not what it was trained on.
    """
    folder = RunFolder(Path(output))
    given = {"path": None if data is None else absolute(data), "workers": workers}
    changed = {key: value for key, value in given.items() if value is not None}
    with joined(device) as world, _in_first(world, folder.open()) as first_one:
        with agreed(world):
            computing = select_device(own_device(device))
            saved = first_one or load_config(folder.config, run_imports=True)
            recipe = replace(saved, data=replace(saved.data, **cast(Any, changed)))
        with device_settings(computing), random_state_kept(computing), _threads_of(recipe, folder):
            with _errors_noted(folder, world, only_in_study=True):
                trainer = _restore(folder, recipe, computing, world)
                with agreed(world):
                    if recipe != saved and world.is_first:
                        folder.write_recipe(recipe)
            say(f"resuming {output} at step {trainer.step} of {trainer.total_steps}")
            with _errors_noted(folder, world, trainer):
                return TrainingLoop(trainer, folder, callbacks).run()


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with paths that hold in any working folder; pair sets named beside the data keep their names."""
    recipe = with_absolute_weights(recipe)
    sets = [str(Path(name).absolute()) if is_file(name) else name for name in recipe.validation.sets]
    taught = recipe.distillation
    if is_file(taught.embeddings):
        taught = replace(taught, embeddings=str(Path(taught.embeddings).absolute()))
    return replace(
        recipe,
        distillation=taught,
        data=replace(recipe.data, path=absolute(recipe.data.path)),
        validation=replace(recipe.validation, sets=sets),
    )


def _begin(recipe: Recipe, device: torch.device, world: World) -> Trainer:
    """The trainer of a new run, by a recipe that can be resumed: absolute paths, its plug-ins, no choice left open."""
    with agreed(world):
        if not recipe.data.path:
            raise ConfigError("no training data: give --data PATH (a folder with train.rec, or one folder an identity)")
        if recipe.training.stop_below and not recipe.validation.sets:
            raise ConfigError(
                "training.stop_below: nothing is validated; give --validation.sets NAME,..., or leave it out"
            )
        import_plugins(recipe.imports, "import")
        check_distillation(recipe)
        recipe = replace(with_absolute_paths(recipe), imports=_all_imports(recipe))
        start = read_start(recipe)
    same_start(start, world)
    trainer = _build(recipe, device, world)
    if recipe.training.choose:
        from facebones.training.autotune import choose_settings

        del trainer  # one at a time: a head may take most of the memory
        trainer = Trainer(choose_settings(recipe, device), device)
    trainer.start_from(start)
    return trainer


def _restore(folder: RunFolder, recipe: Recipe, device: torch.device, world: World) -> Trainer:
    """The trainer of a run at its newest checkpoint."""
    with agreed(world):
        if not recipe.data.path:
            raise CheckpointError(f"{folder.config}: names no data (data.path); restore it, or start a new run")
    saved = any(gather_objects(world, folder.has_last))
    if not saved and folder.begun:
        raise CheckpointError(f"{folder.last}: is gone, though the run had begun; restore it, or start a new run")
    with agreed(world):
        start = None if saved else read_start(recipe)  # it ended before its first save
    same_start(start, world)
    trainer = _build(recipe, device, world)
    trainer.start_from(start)
    if saved:
        state = load_state(folder.last, folder.last_index, trainer.pattern(), world)
        with agreed(world):
            trainer.load_state_dict(state, newest(folder.last, folder.last_index))
    return trainer


def _build(recipe: Recipe, device: torch.device, world: World) -> Trainer:
    """The trainer of a recipe; its processes train the same, and its validation sets have been checked."""
    with agreed(world):
        trainer = Trainer(recipe, device, world)
    same_training(trainer)
    trainer.validation.try_out(trainer.backbone, trainer.device, trainer.world)
    return trainer


def _holds(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether a folder holds a run of this recipe, as far as the recipe decides numbers."""
    if not folder.config.is_file():
        return False
    then, now = load_config(folder.config, run_imports=True).values(), with_absolute_weights(recipe).values()
    deciding = {*now} - {*CHANGEABLE_FIELDS} | {"backbone.weights"}  # which decides how a run begins
    return all(then.get(name) == now[name] for name in deciding)


@contextmanager
def _in_first(world: World, block: AbstractContextManager[Any]) -> Iterator[Any]:
    """Enter a block in the first process, before any other continues; the others get None."""
    with ExitStack() as stack:
        value = None
        with agreed(world):
            if world.is_first:
                value = stack.enter_context(block)
        yield value


@contextmanager
def _threads_of(recipe: Recipe, folder: RunFolder) -> Iterator[None]:
    """With canonical shards, compute within the block with the threads that the run began with: they decide bits."""
    shards, before = recipe.training.canonical_shards, torch.get_num_threads()
    if shards and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // shards))
    if shards and (threads := saved_threads(folder)) is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _all_imports(recipe: Recipe) -> tuple[str, ...]:
    """The plug-ins of a recipe and of this process, files by absolute path: `resume` imports them again."""
    own = [str(Path(name).resolve()) if name.endswith(".py") else name for name in recipe.imports]
    return (*own, *(name for name in imported_plugins() if name not in own))


@contextmanager
def _errors_noted(
    folder: RunFolder, world: World, trainer: Trainer | None = None, *, only_in_study: bool = False
) -> Iterator[None]:
    """Leave error.json where a run ends by an error; where it is refused before its first step, only in a study.

    A study reads it from its trainings; who starts a single training sees the error, and finds nothing changed. Of
    several processes the first one writes it.
    """
    try:
        yield
    except Exception as error:
        there = trainer is None or folder.path.is_dir()  # a folder that was removed is not made again
        if world.is_first and there and (not only_in_study or PARENT_VARIABLE in os.environ):
            with suppress(FaceBonesError, OSError):  # a full disk: the error itself says more
                folder.write_error(error, trainer.step if trainer else 0)
        raise
