"""The cost of a network that follows from its structure alone: parameters and multiply-accumulates."""

from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones import create_backbone, list_backbones, lookup_backbone
from facebones.backbones.registry import IMAGE_SIZE, evaluation_mode
from facebones.errors import UnknownNameError


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())


def unused_parameters(network: nn.Module, image_size: int = IMAGE_SIZE) -> list[str]:
    """Names of the trainable parameters that the output does not depend on, so that they never get a gradient.

    Nothing of the network is changed, and it may live on the meta device.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    with evaluation_mode(network), torch.enable_grad():
        output = network(torch.empty(1, 3, image_size, image_size, device=named[0][1].device))
    gradients = torch.autograd.grad(output.sum(), [parameter for _, parameter in named], allow_unused=True)
    return [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]


def count_macs(network: nn.Module, image_size: int = IMAGE_SIZE) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image (FLOPs = 2 x MACs).

    The network may live on the meta device: only shapes are followed. Biases, normalisation, activations, pooling
    and sums are not counted, as in InsightFace's tables.
    """
    total = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)  # noqa: S101 (hooks are registered on these only)
        inputs_per_output = module.weight[0].numel()
        total += output.numel() * inputs_per_output  # of one image, though perhaps in several windows

    counted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(add) for module in counted]
    try:
        with evaluation_mode(network), torch.no_grad():
            device = next(network.parameters()).device
            network(torch.empty(1, 3, image_size, image_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def describe_backbones(pattern: str = "*") -> list[dict[str, Any]]:
    """Name, aliases, summary, parameters and MACs of the registered backbones that match a shell pattern.

    Raises:
        UnknownNameError: none matches.
    """
    names = list_backbones(pattern)
    if not names:
        raise UnknownNameError("backbone", pattern, list_backbones())
    rows = []
    for name in names:
        with torch.device("meta"):  # shapes only: no memory, no random weights
            network = create_backbone(name)
        entry = lookup_backbone(name)
        rows.append(
            {
                "name": name,
                "aliases": list(entry.aliases),
                "summary": entry.summary,
                "parameters": count_parameters(network),
                "unused_parameters": sum(network.get_parameter(key).numel() for key in unused_parameters(network)),
                "macs": count_macs(network),
            }
        )
    return rows
