"""The cost of a network that follows from its structure alone: parameters, multiply-accumulates, FLOPs, activations."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from facebones.backbones import create_backbone, list_backbones, lookup_backbone
from facebones.backbones.registry import IMAGE_SIZE, TIMM_PREFIX, evaluation_mode
from facebones.errors import ConfigError, FaceBonesError, UnknownNameError
from facebones.system.progress import track


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
    """Multiply-accumulates of the convolutions and linear layers for one image: `OperationCounts.macs`."""
    return count_operations(network, image_size).macs


def weights_bytes(network: nn.Module) -> int:
    """Size of the state dict: the weights, fp32 unless the network was cast, and the running statistics."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


@dataclass(frozen=True, kw_only=True)
class OperationCounts:
    """What a network does for one image.

    Attributes:
        macs: multiply-accumulates of the convolutions and linear layers, as in InsightFace's tables. Biases,
            normalisation, activations, pooling, sums and products of two maps (attention too) are not counted.
        activations: elements of the outputs of the convolutions and linear layers (R. Dollar et al., arXiv
            2103.06877): what memory traffic, and so often latency, grows with.
        biases: those additions that a bias of these layers makes, one an element of the output.
        normalised: elements that a batch normalisation goes over.
        activated: elements of the outputs of activation functions (PReLU, swish, sigmoid, ...).
        pooled: elements that go into a pooling, the mean inside squeeze-and-excitation too.
    """

    macs: int
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
        """The convention behind the FLOPs of the MixFaceNet paper (arXiv 2107.13046, table 2).

        2 x MACs + 1 per bias added + 2 per element of each batch normalisation + 1 per element of each activation, the
        sigmoid of squeeze-and-excitation too + 1 per element that goes into a pooling. The product of
        squeeze-and-excitation, residual sums and shuffles are free, and so are normalisations of other kinds.
        """
        return 2 * self.macs + self.biases + 2 * self.normalised + self.activated + self.pooled


def count_operations(network: nn.Module, image_size: int = IMAGE_SIZE) -> OperationCounts:
    """Count what a network does for one image; it may live on the meta device, for only shapes are followed."""
    counts: Counter[str] = Counter()

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)  # noqa: S101 (hooks are registered on these only)
        counts["macs"] += output.numel() * module.weight[0].numel()  # of one image, though perhaps in several windows
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


# By the operator and not by the module, so that what a forward pass calls without a module is counted as well.
_BATCH_NORMS = {"native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training"}
_ACTIVATIONS = {"_prelu_kernel", "relu", "leaky_relu", "elu", "hardtanh", "gelu", "silu", "mish"}
_ACTIVATIONS |= {"hardswish", "hardsigmoid", "sigmoid", "tanh"}
_POOLINGS = {"avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d"}


class _ElementCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the elements that batch normalisations, activations and poolings go over while it is active."""

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
        return operator(*args, **(kwargs or {}))


def describe_backbones(pattern: str = "*") -> list[dict[str, Any]]:
    """Build the backbones that match a shell pattern; name, aliases, summary, parameters and MACs of each.

    A backbone that cannot be built here, because an extra is not installed or a model of timm does not take 112x112
    images, has None for its figures and the reason under "problem". `backbones.catalogue` knows those that are
    registered without building them.

    Raises:
        UnknownNameError: none matches.
    """
    names = list_backbones(pattern)
    if not names:
        timm = pattern.startswith(TIMM_PREFIX)
        raise UnknownNameError("backbone", pattern, list_backbones(f"{TIMM_PREFIX}*" if timm else "*"))
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


@cache  # asked again and again, and a network takes a while to build
def network_costs(backbone: str, embedding_size: int) -> Mapping[str, Any]:
    """Parameters and MACs; None, with the problem, of what cannot be built here."""
    try:
        with torch.device("meta"):
            network = create_backbone(backbone, embedding_size)
    except FaceBonesError as error:
        return {"parameters": None, "macs": None, "problem": str(error)}
    return {"parameters": count_parameters(network), "macs": count_macs(network), "problem": None}


def count_catalogue() -> list[dict[str, Any]]:
    """The rows of the catalogue, counted anew: all backbones are built, which takes torch and some seconds.

    Raises:
        ConfigError: an extra is missing, so that a backbone cannot be counted.
    """
    rows = describe_backbones()
    if problems := [row["problem"] for row in rows if row["problem"]]:
        raise ConfigError(f"the catalogue needs every backbone: {problems[0]}")
    return [row | {"needs": lookup_backbone(row["name"]).needs} for row in rows]
