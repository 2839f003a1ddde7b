"""The optimizer of a recipe.

Learning rates as pure functions of the step, so that a resumed run needs no state for them.

A step is one update of the optimizer, over all its accumulated forward passes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones.stages import layer_factors
from facebones.errors import ConfigError
from facebones.heads.partial_fc import Head
from facebones.heads.sampled_centres import SampledCentres, lazy_zeros
from facebones.recipe_sections import OptimizerConfig, ScheduleConfig

RATE_FACTOR = "lr_factor"  # of a parameter group whose learning rate is another than the schedule's


def build_optimizer(config: OptimizerConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of the modules, and over the sampled centres of a head.

    With `decay_norm_and_prelu` off, parameters of fewer than two dimensions (normalisation, PReLU, biases) are not
    decayed. With `layer_decay`, each stage of the first module, the backbone, has a rate of its own. The training step
    sets the learning rate. A step is one fused pass over each parameter, which `skip_step_if_nonfinite` can skip on the
    device.
    """
    heads = [part for module in modules for part in module.modules() if isinstance(part, Head)]
    sampled = [head.sampled for head in heads if head.sampled is not None]
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    parameters += [rows.leaf for rows in sampled]
    groups = _groups(
        config, parameters, layer_factors(modules[0], config.layer_decay) if config.layer_decay < 1 else {}
    )
    # Only fused optimizers can skip a step without the host reading a value.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    optimizer: torch.optim.Optimizer
    if config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=fused)
        _begin_momentum(optimizer, sampled)
    for rows in sampled:
        rows.follow(optimizer)
    return optimizer


def _groups(
    config: OptimizerConfig, parameters: Sequence[Tensor], factors: Mapping[Any, float]
) -> list[dict[str, Any]]:
    """Parameters by the factor of their learning rate, 1 where none is given, and by whether they are decayed."""
    by_group: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter in parameters:
        decayed = config.decay_norm_and_prelu or parameter.ndim >= 2
        by_group.setdefault((factors.get(parameter, 1.0), decayed), []).append(parameter)
    return [
        {"params": found, "weight_decay": config.weight_decay if decayed else 0.0}
        | ({RATE_FACTOR: factor} if factors else {})
        for (factor, decayed), found in sorted(by_group.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]


def skip_step_if_nonfinite(optimizer: torch.optim.Optimizer, value: Tensor) -> None:
    """Make the next step of the optimizer do nothing if `value`, a scalar on the device, is not finite.

    A fused optimizer checks on the device; others make the host wait. A gradient scaler in use decides by itself, from
    the gradients alone.
    """
    usable = value.isfinite()
    if not optimizer.defaults["fused"]:
        if not usable:
            optimizer.zero_grad(set_to_none=True)
        return
    optimizer.found_inf = usable.logical_not().float()  # type: ignore[attr-defined]


def _begin_momentum(optimizer: torch.optim.Optimizer, sampled: Sequence[SampledCentres]) -> None:
    """Start SGD's momentum at 0: torch's fused step leaves a missing momentum undefined if the step is skipped."""
    matrices = {rows.leaf: rows.matrix for rows in sampled}
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            whole = matrices.get(parameter)
            momentum = torch.zeros_like(parameter) if whole is None else lazy_zeros(whole)
            optimizer.state[parameter]["momentum_buffer"] = momentum


def materialise_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the state that the optimizer has after its first step, by a step of zero gradient and rate 0."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            # For a leaf without rows, zeros_like keeps strides that CUDA's fused step refuses.
            parameter.grad = torch.zeros_like(parameter) if parameter.numel() else parameter.new_zeros(parameter.shape)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# --------------------------- Learning rates as pure functions of the step, so that a resumed run needs no state for the


Schedule = Callable[[int], float]


def polynomial_decay(progress: float, power: float) -> float:
    """Factor that falls from 1 at progress 0 to 0 at progress 1: (1 - progress) ** power.

    >>> polynomial_decay(0.5, power=2)
    0.25
    """
    return float((1.0 - progress) ** power)


def cosine_decay(progress: float) -> float:
    """Factor that falls from 1 at progress 0 to 0 at progress 1 along half a cosine (arXiv 1608.03983).

    >>> round(cosine_decay(0.5), 6)
    0.5
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def step_decay(epoch: float, milestones: Sequence[float], factor: float) -> float:
    """Factor that is multiplied by `factor` at each milestone, in epochs.

    >>> step_decay(12.0, milestones=[10, 18], factor=0.1)
    0.1
    """
    return float(factor ** sum(epoch >= milestone for milestone in milestones))


def build_schedule(config: ScheduleConfig, learning_rate: float, steps_per_epoch: int, epochs: int) -> Schedule:
    """The learning rate of step 0, 1, ... steps_per_epoch * epochs - 1.

    The first step of a warm-up has a rate above 0. The decay runs over the steps after the warm-up; `one_step_ahead`
    moves it one step forward, so that no step has the full rate.

    Raises:
        ConfigError: a warm-up as long as the training, or `step` without milestones.
    """
    total, warmup = steps_per_epoch * epochs, round(config.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        given = f"schedule.warmup_epochs {config.warmup_epochs:g}"
        raise ConfigError(f"{given} leaves nothing of training.epochs {epochs}; give a shorter warm-up or more epochs")
    if config.name == "step" and not config.milestones:
        raise ConfigError("schedule.name step needs schedule.milestones, the epochs at which the rate falls: 10,16")

    def schedule(step: int) -> float:
        if step < warmup:
            return learning_rate * (step + 1) / warmup
        ahead = int(config.one_step_ahead)
        progress = (step - warmup + ahead) / (total - warmup + ahead)
        if config.name == "polynomial":
            return learning_rate * polynomial_decay(progress, config.power)
        if config.name == "cosine":
            return learning_rate * cosine_decay(progress)
        return learning_rate * step_decay(step / steps_per_epoch, config.milestones, config.factor)

    return schedule
