"""The optimizer of a recipe."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facebones.heads import PartialFC
from facebones.heads.sampled_centres import StepRows, lazy_zeros
from facebones.recipe import OptimizerConfig


def build_optimizer(config: OptimizerConfig, *modules: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of the modules; of a sampled head, over the rows of each step.

    With `decay_norm_and_prelu` off, parameters of fewer than two dimensions (normalisation, PReLU, biases) are not
    decayed. The learning rate is set anew at each step. A step is one pass over each parameter (fused), which
    `leave_out_unless` can turn into none.
    """
    sampled = [m.rows for m in modules if isinstance(m, PartialFC) and m.rows is not None]
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    parameters += [rows.leaf for rows in sampled]
    decayed = [p for p in parameters if config.decay_norm_and_prelu or p.ndim >= 2]
    others = [p for p in parameters if not config.decay_norm_and_prelu and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    # Only there can a step be left out without the host knowing.
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


def leave_out_unless(optimizer: torch.optim.Optimizer, usable: Tensor) -> None:
    """Have the optimizer's next step do nothing where `usable` is false; if it is fused, the device finds that out.

    A gradient scaler that is in use says the same in its own way, of the gradients alone.
    """
    if not optimizer.defaults["fused"]:
        if not usable:
            optimizer.zero_grad(set_to_none=True)
        return
    optimizer.found_inf = usable.logical_not().float()  # type: ignore[attr-defined]


def _begin_momentum(optimizer: torch.optim.Optimizer, sampled: Sequence[StepRows]) -> None:
    """Give SGD its momentum at 0: where it lacks one, torch's fused step leaves it undefined if it is left out."""
    matrices = {rows.leaf: rows.matrix for rows in sampled}
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            whole = matrices.get(parameter)
            momentum = torch.zeros_like(parameter) if whole is None else lazy_zeros(whole)
            optimizer.state[parameter]["momentum_buffer"] = momentum


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer the state that it has after a first step, here one of no gradient at a rate of 0."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            # Of a leaf without rows, zeros_like keeps strides that CUDA's fused step refuses beside its momentum's.
            parameter.grad = torch.zeros_like(parameter) if parameter.numel() else parameter.new_zeros(parameter.shape)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
