"""State dicts of GhostFaceNet variants that a registered GhostFaceNet computes exactly, rewritten as its own.

The authors trained some networks with a bias before the last batch normalisation (`use_bias=True`), and some with ReLU.
Batch normalisation subtracts its running mean, so the bias goes into that; ReLU is PReLU with weight 0.
"""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from facebones.backbones.state_dicts import Tensors

OF_GHOSTFACENET = ("stem.conv.weight", "blocks.0.ghost1.primary.conv.weight", "head.depthwise.weight")
# What a PReLU follows: some of the normalisations, and the first convolution of squeeze-and-excitation.
BEFORE_PRELU = re.compile(
    r"(.*\.)?((?:stem|tail|blocks\.\d{1,3}\.ghost1\.(?:primary|cheap))\.)bn\.weight"
    r"|(.*\.)?(blocks\.\d{1,3}\.se\.)reduce\.weight"
)
PRELU = "prelu.weight"
BIAS_NOTE = "the bias before its last batch normalisation is subtracted from the running mean there, which is the same"
PRELU_NOTE = "has no PReLU weights: trained with ReLU, which is PReLU with weight 0"


def as_registered(tensors: Tensors) -> tuple[Tensors, dict[str, list[str]]]:
    """A state dict with each of its GhostFaceNets in the registered form; any other state dict as it is.

    Args:
        tensors: by their names in the file, under any wrapper.

    Returns:
        the tensors; and by wrapper what was done, for notes.
    """
    end = OF_GHOSTFACENET[0]
    wrappers = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    found = [wrapper for wrapper in wrappers if all(wrapper + key in tensors for key in OF_GHOSTFACENET)]
    if not found:
        return tensors, {}
    changed, done = dict(tensors), defaultdict(list)
    places = _places_of_prelus(tensors)
    for wrapper in found:
        if _without_bias(changed, f"{wrapper}head."):
            done[wrapper].append(BIAS_NOTE)
        if zeros := _zero_prelus(tensors, places.get(wrapper, {})):
            changed |= zeros
            done[wrapper].append(PRELU_NOTE)
    return changed, done


def _without_bias(tensors: dict[str, Tensor], head: str) -> bool:
    """Take the bias of the embedding's convolution into the normalisation behind it; whether there was one."""
    bias, mean = tensors.get(f"{head}linear.bias"), tensors.get(f"{head}bn.running_mean")
    if bias is None or mean is None or bias.shape != mean.shape or not (_is_plain(bias) and _is_plain(mean)):
        return False
    tensors[f"{head}bn.running_mean"] = (mean.double() - bias.double()).to(mean.dtype)
    del tensors[f"{head}linear.bias"]
    return True


def _places_of_prelus(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """By wrapper: the names of the PReLUs' weights, each with the tensor before it, whose length it has."""
    places: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if matched := BEFORE_PRELU.fullmatch(name):
            wrapper, part = matched[1] or matched[3] or "", matched[2] or matched[4]
            places[wrapper][f"{wrapper}{part}{PRELU}"] = tensor
    return places


def _zero_prelus(tensors: Tensors, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 0 for all PReLUs of a network that has no weights for any; with weights for some, it is damaged."""
    if any(name in tensors for name in places) or not all(before.ndim for before in places.values()):
        return {}
    return {name: torch.zeros(1).expand(len(before)) for name, before in places.items()}  # a file may state any length


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta
