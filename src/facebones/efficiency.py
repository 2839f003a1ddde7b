"""The cost of a network that follows from its structure alone: parameters and multiply-accumulates."""

from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones import create_backbone, list_backbones, lookup_backbone
from facebones.backbones.registry import IMAGE_SIZE
from facebones.errors import UnknownNameError


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())


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
        total += output[0].numel() * inputs_per_output

    counted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(add) for module in counted]
    training = network.training
    try:
        network.eval()
        with torch.no_grad():
            device = next(network.parameters()).device
            network(torch.empty(1, 3, image_size, image_size, device=device))
    finally:
        network.train(training)
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
                "macs": count_macs(network),
            }
        )
    return rows
