"""The cost that follows from a network's structure: parameters, multiply-accumulates, FLOPs, activations."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from facebones.backbones.base import IMAGE_SIZE, TIMM_PREFIX, evaluation_mode
from facebones.backbones.catalogue import read_catalogue
from facebones.backbones.registry import create_backbone, is_built_in, list_backbones, lookup_backbone
from facebones.errors import ConfigError, FaceBonesError, UnknownNameError
from facebones.system.progress import track


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, frozen ones included.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in network.parameters())


def unused_parameters(network: nn.Module) -> list[str]:
    """Names of the trainable parameters that the output does not depend on: they never get a gradient.

    The network is not changed. It may be on the meta device.
    """
    device = next(network.parameters()).device
    with evaluation_mode(network), torch.enable_grad():
        output = network(torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device))
    reached, trained = _leaves(output), set(getattr(network, "only_in_training", ()))
    unused = [name for name, p in network.named_parameters() if p.requires_grad and id(p) not in reached]
    return [name for name in unused if name not in trained]


def _leaves(output: Tensor) -> set[int]:
    """Ids of the parameters that a tensor depends on, from its autograd graph; no gradient is computed."""
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
    """Multiply-accumulates for one image: `OperationCounts.macs`."""
    return count_operations(network, image_size).macs


def weights_bytes(network: nn.Module) -> int:
    """Size of the state dict in bytes: weights and running statistics, in the network's own precision."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


@dataclass(frozen=True, kw_only=True)
class OperationCounts:
    """The operations of a network for one image.

    Attributes:
        macs: multiply-accumulates of the convolutions and linear layers, as in InsightFace's tables. Biases,
            normalisation, activations, pooling, and sums and products of two maps (attention too) are not counted.
        attention: multiply-accumulates of the matrix products of two activations, as in attention; not in the MACs.
        activations: output elements of the convolutions and linear layers (R. Dollar et al., arXiv 2103.06877). Memory
            traffic, and often latency, grows with them.
        biases: additions of biases in these layers, one per output element.
        normalised: input elements of batch normalisations.
        activated: output elements of activation functions (PReLU, swish, sigmoid, ...).
        pooled: input elements of poolings, including the mean in squeeze-and-excitation.
    """

    macs: int
    attention: int
    activations: int
    biases: int
    normalised: int
    activated: int
    pooled: int

    @property
    def flops(self) -> int:
        """2 x MACs, the convention of ShuffleFaceNet and EdgeFace."""
        return 2 * self.macs

    @property
    def flops_mixfacenet(self) -> int:
        """FLOPs by the convention of the MixFaceNet paper (arXiv 2107.13046, table 2).

        2 x MACs, 1 per added bias, 2 per element of a batch normalisation, 1 per element of an activation (including
        the sigmoid of squeeze-and-excitation), 1 per input element of a pooling. The product of squeeze-and-excitation,
        residual sums, shuffles and other normalisations count nothing.
        """
        return 2 * self.macs + self.biases + 2 * self.normalised + self.activated + self.pooled


def count_operations(network: nn.Module, image_size: int = IMAGE_SIZE) -> OperationCounts:
    """Count a network's operations for one image; only shapes matter, so it may be on the meta device."""
    counts: Counter[str] = Counter()

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)  # noqa: S101 (hooks are registered on these only)
        # Of one image: the batch may hold several windows of it.
        counts["macs"] += output.numel() * module.weight[0].numel()
        counts["activations"] += output.numel()
        counts["biases"] += output.numel() if module.bias is not None else 0

    counted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(add) for module in counted]
    try:
        with evaluation_mode(network), torch.no_grad(), _ElementCounter(counts):
            device = next(network.parameters()).device
            network(torch.empty(1, 3, image_size, image_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return OperationCounts(**{kind: counts[kind] for kind in OperationCounts.__dataclass_fields__})


# Operators, not modules, are counted, so that functional calls in a forward pass count as well.
_BATCH_NORMS = {"native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training"}
_ACTIVATIONS = {"_prelu_kernel", "relu", "leaky_relu", "elu", "hardtanh", "gelu", "silu", "mish"}
_ACTIVATIONS |= {"hardswish", "hardsigmoid", "sigmoid", "tanh"}
_POOLINGS = {"avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d"}


class _ElementCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the elements of batch normalisations, activations and poolings while it is active."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = counts

    def __torch_dispatch__(
        self,
        operator: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = operator.__name__.partition(".")[0].removesuffix("_")  # "silu_.default" writes in place
        if name in _BATCH_NORMS:
            self.counts["normalised"] += args[0].numel()
        elif name in _ACTIVATIONS:
            self.counts["activated"] += args[0].numel()
        elif name in _POOLINGS or (name == "mean" and args[0].ndim == 4):  # the mean of a map is a pooling
            self.counts["pooled"] += args[0].numel()
        elif name == "bmm":
            self.counts["attention"] += args[0].numel() * args[1].shape[2]
        elif name.startswith("_scaled_dot_product"):  # queries by keys, and their weights by as many values
            self.counts["attention"] += 2 * args[0].numel() * args[1].shape[2]
        return operator(*args, **(kwargs or {}))


def describe_backbones(pattern: str = "*") -> list[dict[str, Any]]:
    """Build the backbones that match a shell pattern and count them: names, summary, parameters and MACs.

    A backbone that cannot be built here has None for its counts and the reason under "problem": an extra is not
    installed, or a model of timm does not take 112x112 images. `backbones.catalogue` has the counts of the built-in
    backbones without building them.

    Raises:
        UnknownNameError: none matches.
    """
    names = list_backbones(pattern)
    if not names:
        timm = pattern.startswith(TIMM_PREFIX)
        raise UnknownNameError("backbone", pattern, list_backbones(f"{TIMM_PREFIX}*" if timm else "*"))
    return [_describe(name) for name in track(names, "counting")]


def describe_plugins(pattern: str = "*") -> list[dict[str, Any]]:
    """The rows of `describe_backbones` for the backbones of plug-ins that match a shell pattern; may be empty."""
    built_in = {row["name"] for row in read_catalogue()}
    return [_describe(name) for name in list_backbones(pattern) if name not in built_in]


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


@cache  # reports ask repeatedly, and building a network takes time
def network_costs(backbone: str, embedding_size: int) -> Mapping[str, Any]:
    """Parameters and MACs of a backbone; None, with the reason under "problem", if it cannot be built here."""
    try:
        with torch.device("meta"):
            network = create_backbone(backbone, embedding_size)
    except FaceBonesError as error:
        return {"parameters": None, "macs": None, "problem": str(error)}
    return {"parameters": count_parameters(network), "macs": count_macs(network), "problem": None}


def count_catalogue() -> list[dict[str, Any]]:
    """The rows of the catalogue: every built-in backbone is built and counted, which takes some seconds.

    Raises:
        ConfigError: an extra is missing, so that a backbone cannot be counted.
    """
    entries = [lookup_backbone(name) for name in list_backbones("*")]
    rows = [
        _describe(entry.name) | {"needs": entry.needs, "family": entry.family}
        for entry in track([entry for entry in entries if is_built_in(entry)], "counting")
    ]
    if problems := [row["problem"] for row in rows if row["problem"]]:
        raise ConfigError(f"the catalogue needs every backbone: {problems[0]}")
    return rows
