"""The fastest of the settings that change no more than rounding, found by measuring a few steps of the very training.

What the recipe leaves to choose (`training.choose`) is tried on its own data, batch size and device. A setting is taken
only where its first gradient agrees with that of the plain way within AGREEMENT and LOSS_DIFFERENCE: in bfloat16,
compact networks reach cosines of 0.87 to 0.96, which is far more than the gradients of two batches have in common. The
choice goes into the run's config.yaml, so that a resumed run does not choose again and stays bit-exact. It is also kept
under its conditions in the user's cache folder, for the next run.
"""

import hashlib
import json
import math
import statistics
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import facebones
from facebones.data.folders import open_training_set
from facebones.errors import first_line
from facebones.recipe import Recipe
from facebones.system.autotune_cache import load_measurement, save_measurement, warn_unusable
from facebones.system.environment import git_revision, processor_model
from facebones.system.progress import format_seconds, say
from facebones.training.trainer import Trainer

AGREEMENT = 0.8  # least cosine between the gradients of the backbone
LOSS_DIFFERENCE = 0.01  # largest, relative
MEASURED = 5  # steps
CACHE = "speed"
# About what it takes (40 to 95 s on two cores); tried where the quickest way without it takes ten times as long.
COMPILING_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a few steps of a setting came to.

    Attributes:
        precision: of the backbone.
        compile: whether it was compiled.
        loss: of the first step that counts.
        gradient: (P,) of the backbone in that step.
        step_seconds: median of the steps after the first ones.
        total_seconds: what the whole training would take, the beginning included.
    """

    precision: str
    compile: bool
    loss: float
    gradient: Tensor
    step_seconds: float
    total_seconds: float

    def __str__(self) -> str:
        return _named(self.precision, self.compile)

    def agrees(self, plain: "Trial") -> bool:
        """Whether it computes what the plain way computes, within the bounds."""
        cosine = functional.cosine_similarity(self.gradient, plain.gradient, dim=0).item()
        return cosine >= AGREEMENT and abs(self.loss - plain.loss) <= LOSS_DIFFERENCE * abs(plain.loss)


def choose_settings(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with what `training.choose` names set to what is fastest here, and nothing left to choose.

    Raises:
        FaceBonesError: the data cannot be used, or the loss of the plain way is not finite.
    """
    key = _conditions(recipe, device)
    if (known := _recalled(recipe, device, key)) is not None:
        say(f"speed: takes {_named(*known)}, as was measured here before")
        return _with(recipe, *known)
    plain = measure(_with(recipe, "fp32" if "precision" in recipe.training.choose else None, False), device)
    trials: list[Trial] = []
    usable: list[Trial] = []
    for precision, compile in _settings(recipe, device):
        quickest = min((trial.total_seconds for trial in usable), default=math.inf)
        if compile and "compile" in recipe.training.choose and quickest < 10 * COMPILING_SECONDS:
            say("speed: too short a training to compile for")
            break
        is_plain = (precision, compile) == (plain.precision, plain.compile)
        trial = plain if is_plain else _try(_with(recipe, precision, compile), device)
        if trial is None:
            continue
        trials.append(trial)
        if is_plain or trial.agrees(plain):
            usable.append(trial)
    for trial in trials:
        note = "" if trial in usable else ", but its gradient is another"
        say(f"speed: {trial}: {trial.step_seconds:.3g} s a step, {format_seconds(trial.total_seconds)} in all{note}")
    if not usable:
        say("speed: takes none of them, and leaves the recipe as it is")
        return _with(recipe, None, recipe.training.compile)
    best = min(usable, key=lambda trial: trial.total_seconds)
    say(f"speed: takes {best}")
    save_measurement(CACHE, key, {"precision": best.precision, "compile": best.compile})
    return _with(recipe, best.precision, best.compile)


def _try(recipe: Recipe, device: torch.device) -> Trial | None:
    """Measure a setting that may not work here; None where it does not."""
    try:
        return measure(recipe, device)
    except Exception as error:  # noqa: BLE001 (no compiler, no memory, no finite loss: of all kinds)
        named = _named(recipe.training.precision, recipe.training.compile)
        say(f"speed: leaves out {named}: {first_line(error)[:200]}")
        return None


def measure(recipe: Recipe, device: torch.device) -> Trial:
    """Train a few steps, all on the first batch and with the same random draws, so that all settings see the same.

    Raises:
        FaceBonesError: the data cannot be used, or the loss is not finite.
    """
    recipe = replace(
        recipe,
        data=replace(recipe.data, workers=0),
        validation=replace(recipe.validation, sets=[]),
        log=replace(recipe.log, tensorboard=False),
    )
    say(f"speed: measures {_named(recipe.training.precision, recipe.training.compile)}")
    trainer = Trainer(recipe, device)
    with closing(trainer.step_batches()) as steps:
        batches = next(steps)

    def step() -> float:
        torch.manual_seed(recipe.training.seed)  # mirrored images, dropout, the sample of a head
        trainer.step = 0  # a training may have fewer steps than are measured
        start = time.perf_counter()
        trainer.train_step(batches)
        trainer.settle()  # waits for the device
        return time.perf_counter() - start

    gradient = torch.empty(0)

    def note_gradient(*_: Any) -> None:
        nonlocal gradient
        gradient = torch.cat([p.grad.flatten() for p in trainer.backbone.parameters() if p.grad is not None])

    hook = trainer.optimizer.register_step_pre_hook(note_gradient)
    first = step()
    while trainer.meter.loss is None:  # a scaler that looks for its scale
        step()
    hook.remove()
    loss = trainer.meter.loss
    step()
    step_seconds = statistics.median(step() for _ in range(MEASURED))
    return Trial(
        precision=recipe.training.precision,
        compile=recipe.training.compile,
        loss=loss,
        gradient=gradient.cpu().double(),  # MPS has no float64
        step_seconds=step_seconds,
        total_seconds=first + trainer.total_steps * step_seconds,
    )


def _conditions(recipe: Recipe, device: torch.device) -> str:
    """All that decides what is fastest, but the seed: trainings of one backbone from several seeds choose alike."""
    sections = recipe.to_dict()
    sections = {name: sections[name] for name in ("backbone", "head", "optimizer", "training")}
    for free in ("seed", "checkpoint_every"):
        del sections["training"][free]
    sections["data"] = open_training_set(recipe.data.path).fingerprint()
    digest = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()
    computes = f"{device.type} {processor_model(device)}, threads {torch.get_num_threads()}"
    versions = f"torch {torch.__version__}, {facebones.__version__}, commit {git_revision()}"
    return f"{recipe.backbone.name}, {computes}, {versions}, recipe {digest}"


def _recalled(recipe: Recipe, device: torch.device, key: str) -> tuple[str, bool] | None:
    """What was chosen under these conditions; None where nothing was, or nothing that could be chosen."""
    found = load_measurement(CACHE, key)
    if found is None:
        return None
    for precision, compile in _settings(recipe, device):
        if found == {"precision": precision, "compile": compile}:
            return precision, compile
    warn_unusable(CACHE, recipe.backbone.name)
    return None


def _named(precision: str, compile: bool) -> str:
    return precision + (" compiled" if compile else "")


def _settings(recipe: Recipe, device: torch.device) -> list[tuple[str, bool]]:
    """Pairs of precision and compile, those that need no compiling first."""
    precisions, compiling = [recipe.training.precision], [recipe.training.compile]
    if "precision" in recipe.training.choose:
        # Older GPUs compute in bf16 too, but by emulation.
        half = "fp16" if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) else "bf16"
        precisions = ["fp32", half]
    if "compile" in recipe.training.choose:
        compiling = [False, True]
    return [(precision, compile) for compile in compiling for precision in precisions]


def _with(recipe: Recipe, precision: str | None, compile: bool) -> Recipe:
    training = replace(recipe.training, precision=precision or recipe.training.precision, compile=compile, choose=[])
    return replace(recipe, training=training)
