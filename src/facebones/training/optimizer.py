"""The optimizer of a recipe."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facebones.heads.partial_fc import Head
from facebones.heads.sampled_centres import SampledCentres, lazy_zeros
from facebones.recipe import OptimizerConfig


def build_optimizer(config: OptimizerConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of the modules, and over the sampled centres of a head.

    With `decay_norm_and_prelu` off, parameters of fewer than two dimensions (normalisation, PReLU, biases) are not
    decayed. The training step sets the learning rate. A step is one fused pass over each parameter, which
    `skip_step_if_nonfinite` can skip on the device.
    """
    sampled = [m.sampled for m in modules if isinstance(m, Head) and m.sampled is not None]
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    parameters += [rows.leaf for rows in sampled]
    decayed = [p for p in parameters if config.decay_norm_and_prelu or p.ndim >= 2]
    others = [p for p in parameters if not config.decay_norm_and_prelu and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
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
