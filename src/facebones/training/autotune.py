"""Benchmark precision and torch.compile on the first batch; keep the fastest setting whose gradient matches fp32.

`training.choose` names what may be chosen; each setting runs on the recipe's own data, batch size and device. A setting
qualifies if its first gradient agrees with that of the plain setting within AGREEMENT and LOSS_DIFFERENCE: in bfloat16,
compact networks reach cosines of 0.87 to 0.96, far more than the gradients of two batches have in common. The choice is
written to config.yaml, so a resumed run does not choose again and stays bit-exact. It is also cached for the next run
under the same conditions.
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
from facebones.errors import first_line
from facebones.recipe import Recipe
from facebones.system.autotune_cache import load_measurement, save_measurement, warn_unusable
from facebones.system.environment import git_revision, processor_model
from facebones.system.progress import format_seconds, say
from facebones.training.teaching import open_training_data
from facebones.training.trainer import Trainer

AGREEMENT = 0.8  # smallest cosine between the gradients of the backbone
LOSS_DIFFERENCE = 0.01  # largest relative difference of the loss
MEASURED = 5  # steps
CACHE = "autotune"
RATES = "training_rates"
# Compiling takes 40 to 95 s on two cores; it is tried if the fastest run without it takes ten times as long.
COMPILING_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Measurement of a few steps of a setting.

    Attributes:
        precision: of the backbone.
        compile: whether it was compiled.
        loss: of the first step that is not skipped.
        gradient: (P,) of the backbone in that step.
        step_seconds: median of the later steps.
        total_seconds: estimate for the whole training, with its start.
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
        """Whether loss and gradient equal those of the plain setting, within the bounds."""
        cosine = functional.cosine_similarity(self.gradient, plain.gradient, dim=0).item()
        return cosine >= AGREEMENT and abs(self.loss - plain.loss) <= LOSS_DIFFERENCE * abs(plain.loss)


def choose_settings(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with the settings that `training.choose` names set to the fastest, and nothing left to choose.

    Raises:
        FaceBonesError: the data cannot be used, or the loss of the plain setting is not finite.
    """
    key = _conditions(recipe, device)
    if (known := _recalled(recipe, device, key)) is not None:
        say(f"autotune: uses {_named(*known)}, as measured here before")
        return _with(recipe, *known)
    plain = measure(_with(recipe, "fp32" if "precision" in recipe.training.choose else None, False), device)
    trials: list[Trial] = []
    usable: list[Trial] = []
    for precision, compile in _settings(recipe, device):
        quickest = min((trial.total_seconds for trial in usable), default=math.inf)
        if compile and "compile" in recipe.training.choose and quickest < 10 * COMPILING_SECONDS:
            say("autotune: the training is too short to compile for")
            break
        is_plain = (precision, compile) == (plain.precision, plain.compile)
        trial = plain if is_plain else _try(_with(recipe, precision, compile), device)
        if trial is None:
            continue
        trials.append(trial)
        if is_plain or trial.agrees(plain):
            usable.append(trial)
    for trial in trials:
        note = "" if trial in usable else ", but its gradient differs"
        seconds, total = f"{trial.step_seconds:.3g} s a step", f"{format_seconds(trial.total_seconds)} in total"
        say(f"autotune: {trial}: {seconds}, {total}{note}")
    if not usable:
        say("autotune: no setting qualifies; the recipe stays as it is")
        return _with(recipe, None, recipe.training.compile)
    best = min(usable, key=lambda trial: trial.total_seconds)
    say(f"autotune: uses {best}")
    save_measurement(CACHE, key, {"precision": best.precision, "compile": best.compile})
    return _with(recipe, best.precision, best.compile)


def training_rate(recipe: Recipe, device: torch.device) -> float:
    """Images per second of the steps of a training, from a few of them, or as measured here before.

    The first step is left out, and with it the compiling; settings that are still to be chosen are measured as they
    are. Reading the images of later batches is not part of it: the loader works beside the steps.

    Raises:
        FaceBonesError: the data cannot be used, or the loss is not finite.
    """
    recipe = _with(recipe, None, recipe.training.compile)
    key = _conditions(recipe, device)
    found = load_measurement(RATES, key)
    if isinstance(found, float) and 0 < found < math.inf:
        return found
    rate = recipe.training.step_images / measure(recipe, device, steps=2, aim="").step_seconds
    save_measurement(RATES, key, rate)
    return rate


def _try(recipe: Recipe, device: torch.device) -> Trial | None:
    """Measure a setting; None if it does not work here."""
    try:
        return measure(recipe, device)
    except Exception as error:  # noqa: BLE001 (no compiler, no memory, no finite loss: any type)
        named = _named(recipe.training.precision, recipe.training.compile)
        say(f"autotune: skips {named}: {first_line(error)[:200]}")
        return None


def measure(recipe: Recipe, device: torch.device, *, steps: int = MEASURED, aim: str = "autotune") -> Trial:
    """Time a few steps, all on the first batch and with the same random numbers, so that settings are comparable.

    Args:
        recipe: with the settings to measure.
        device: where it computes.
        steps: number that are timed, after two that are not.
        aim: what a line on stderr says it is for; empty: no line.

    Raises:
        FaceBonesError: the data cannot be used, or the loss is not finite.
    """
    recipe = replace(
        recipe,
        data=replace(recipe.data, workers=0),
        validation=replace(recipe.validation, sets=[]),
        log=replace(recipe.log, trackers=[]),
    )
    if aim:
        say(f"{aim}: measuring {_named(recipe.training.precision, recipe.training.compile)}")
    trainer = Trainer(recipe, device)
    with closing(trainer.step_batches()) as drawn:
        batches = next(drawn)

    def step() -> float:
        torch.manual_seed(recipe.training.seed)  # mirrored images, dropout, sampled centres
        trainer.step = 0  # the training may have fewer steps than are measured
        start = time.perf_counter()
        trainer.train_step(batches)
        trainer.read_back_metrics()  # waits for the device
        return time.perf_counter() - start

    gradient = torch.empty(0)

    def note_gradient(*_: Any) -> None:
        nonlocal gradient
        gradient = torch.cat([p.grad.flatten() for p in trainer.backbone.parameters() if p.grad is not None])

    hook = trainer.optimizer.register_step_pre_hook(note_gradient)
    first = step()
    while trainer.meter.loss is None:  # the scaler still searches its scale
        step()
    hook.remove()
    loss = trainer.meter.loss
    step()
    step_seconds = statistics.median(step() for _ in range(steps))
    return Trial(
        precision=recipe.training.precision,
        compile=recipe.training.compile,
        loss=loss,
        gradient=gradient.cpu().double(),  # MPS has no float64
        step_seconds=step_seconds,
        total_seconds=first + trainer.total_steps * step_seconds,
    )


def _conditions(recipe: Recipe, device: torch.device) -> str:
    """Everything that decides what is fastest, except seed and early stop: all seeds of a backbone choose alike."""
    sections = recipe.to_dict()
    sections = {name: sections[name] for name in ("backbone", "head", "distillation", "optimizer", "training")}
    for free in ("seed", "checkpoint_every", "stop_below"):
        del sections["training"][free]
    sections["data"] = open_training_data(recipe).fingerprint()
    digest = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()
    computes = f"{device.type} {processor_model(device)}, threads {torch.get_num_threads()}"
    versions = f"torch {torch.__version__}, {facebones.__version__}, commit {git_revision()}"
    return f"{recipe.backbone.name}, {computes}, {versions}, recipe {digest}"


def _recalled(recipe: Recipe, device: torch.device, key: str) -> tuple[str, bool] | None:
    """The cached choice for these conditions; None if there is none, or none that is possible."""
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
    """Pairs of precision and compile; those without compiling first."""
    precisions, compiling = [recipe.training.precision], [recipe.training.compile]
    if "precision" in recipe.training.choose:
        # Older GPUs only emulate bf16.
        half = "fp16" if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) else "bf16"
        precisions = ["fp32", half]
    if "compile" in recipe.training.choose:
        compiling = [False, True]
    return [(precision, compile) for compile in compiling for precision in precisions]


def _with(recipe: Recipe, precision: str | None, compile: bool) -> Recipe:
    training = replace(recipe.training, precision=precision or recipe.training.precision, compile=compile, choose=[])
    return replace(recipe, training=training)
