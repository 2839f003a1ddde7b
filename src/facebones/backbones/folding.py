"""Deploy form: layers that only training needs are folded into the layers beside them, and embeddings stay the same.

Batch normalisation with running statistics is a scale and a shift per channel, so it disappears in the convolution or
linear layer before or behind it. Parallel convolutions of one input are one convolution. The arithmetic is in float64;
the folded weights have the precision of those that they replace.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from facebones.backbones.base import Backbone

Network = TypeVar("Network", bound=Backbone)
Norm = nn.BatchNorm2d | nn.BatchNorm1d


class Foldable(nn.Module):
    """A part of a network that has a deploy form of its own."""

    def folded(self) -> nn.Module:
        """The deploy form: a module with weights of its own that answers as this one does in eval mode."""
        raise NotImplementedError


def deploy_copy(network: Network) -> Network:
    """A copy of a network in eval mode whose `Foldable` parts are in deploy form."""
    deployed = copy.deepcopy(network).eval()
    with torch.no_grad():
        fold_inside(deployed)
    deployed.is_deployed = True
    return deployed


def fold_inside(module: nn.Module) -> None:
    """Replace the `Foldable` parts of a module by their deploy form."""
    for name, child in module.named_children():
        if isinstance(child, Foldable):
            setattr(module, name, child.folded().eval())
        else:
            fold_inside(child)


def scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    """What a batch normalisation does to each channel in eval mode, in float64: (C,) and (C,)."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101 (all of ours track them)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def with_weights(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    """A layer as another one, with these weights and this bias in the precision of that one's."""
    changed = copy.deepcopy(layer)
    changed.weight, changed.bias = (nn.Parameter(tensor.to(layer.weight.dtype)) for tensor in (weight, bias))
    return changed


def fold_norm_behind(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution and the batch normalisation of its output, as one convolution."""
    scale, shift = scale_and_shift(norm)
    bias = shift if conv.bias is None else shift + conv.bias.double() * scale
    return with_weights(conv, conv.weight.double() * scale[:, None, None, None], bias)


def fold_norm_before(norm: nn.BatchNorm1d, linear: nn.Linear) -> nn.Linear:
    """A batch normalisation and the linear layer that takes its output, as one linear layer."""
    scale, shift = scale_and_shift(norm)
    weight = linear.weight.double()
    bias = weight @ shift if linear.bias is None else weight @ shift + linear.bias.double()
    return with_weights(linear, weight * scale, bias)
