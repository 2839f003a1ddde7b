"""The cost of a network that follows from its structure alone: parameters and multiply-accumulates."""

from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones import create_backbone, list_backbones, lookup_backbone
from facebones.backbones.registry import IMAGE_SIZE, evaluation_mode
from facebones.errors import ConfigError, UnknownNameError
from facebones.progress import track


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())


def unused_parameters(network: nn.Module, image_size: int = IMAGE_SIZE) -> list[str]:
    """Names of the trainable parameters that the output does not depend on, so that they never get a gradient.

    Nothing of the network is changed, and it may live on the meta device.
    """
    device = next(network.parameters()).device
    with evaluation_mode(network), torch.enable_grad():
        output = network(torch.empty(1, 3, image_size, image_size, device=device))
    reached = _leaves(output)
    return [name for name, p in network.named_parameters() if p.requires_grad and id(p) not in reached]


def _leaves(output: Tensor) -> set[int]:
    """Identities of the parameters that a tensor depends on, from its graph alone: no gradient is computed."""
    leaves, seen = set(), set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            leaves.add(id(variable))
        waiting += [function for function, _ in node.next_functions]
    return leaves


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
    """Name, aliases, summary, parameters and MACs of the backbones that match a shell pattern.

    A backbone that cannot be built here, because an extra is not installed or a model of timm does not take 112x112
    images, has None for its figures and the reason under "problem".

    Raises:
        UnknownNameError: none matches.
    """
    names = list_backbones(pattern)
    if not names:
        raise UnknownNameError("backbone", pattern, list_backbones())
    return [_describe(name) for name in track(names, "counting")]


def _describe(name: str) -> dict[str, Any]:
    entry = lookup_backbone(name)
    row: dict[str, Any] = {"name": name, "aliases": list(entry.aliases), "summary": entry.summary, "problem": None}
    try:
        with torch.device("meta"):  # shapes only: no memory, no random weights
            network = create_backbone(name)
    except ConfigError as error:
        return row | {"parameters": None, "unused_parameters": None, "macs": None, "problem": str(error)}
    unused = sum(network.get_parameter(key).numel() for key in unused_parameters(network))
    return row | {
        "parameters": count_parameters(network),
        "unused_parameters": unused,
        "macs": count_macs(network),
    }
