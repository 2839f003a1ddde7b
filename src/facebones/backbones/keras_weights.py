"""Weights of GhostFaceNets as their authors publish them: `.h5` files of Keras 2.

V2's layers have names. V1's are only numbered, in the order of their creation, and begin at any number: a session
that built other models before goes on counting. So they are taken by their order among the layers of a kind. The last
layers of both are named. A file may hold the weights alone or a whole model, with its optimizer.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from facebones.backbones.hdf5_file import Array, read_hdf5
from facebones.backbones.registry import create_backbone
from facebones.errors import CheckpointError

WHOLE_MODEL = "model_weights/"
NOT_WEIGHTS = "optimizer_weights/"
HEAD = {
    "GDC_dw": "head.depthwise",
    "GDC_batchnorm": "head.depthwise_bn",
    "GDC_conv": "head.linear",
    "pre_embedding": "head.bn",
}
# V2's other layers; those of unit N stand after "stackN_".
OUTSIDE = {f"{theirs}_{part}": f"{ours}.{part}" for theirs, ours in (("stem", "stem"), ("pre", "tail"))
           for part in ("conv", "bn", "prelu")}  # fmt: skip
INSIDE = {
    **{f"ghost_{n}_prim_{part}": f"ghost{n}.primary.{part}" for n in (1, 2) for part in ("conv", "bn", "prelu")},
    **{f"ghost_{n}_cheap_{part}": f"ghost{n}.cheap.{part}" for n in (1, 2) for part in ("bn", "prelu")},
    **{f"ghost_{n}_cheap_dw_conv": f"ghost{n}.cheap.conv" for n in (1, 2)},
    **{"down_dw_conv": "down.conv", "down_bn": "down.bn"},
    **{"se_1_conv": "se.reduce", "se_prelu": "se.prelu", "se_relu": "se.prelu", "se_2_conv": "se.expand"},
    **{"short_1_dw_conv": "shortcut.depthwise", "short_1_bn": "shortcut.depthwise_bn"},
    **{"short_2_conv": "shortcut.conv", "short_2_bn": "shortcut.bn"},
    **{"ghost_1_short_1_conv": "gate.conv", "ghost_1_short_1_bn": "gate.bn"},
    **{"ghost_1_short_2_dw_conv": "gate.row_conv", "ghost_1_short_2_bn": "gate.row_bn"},
    **{"ghost_1_short_3_dw_conv": "gate.column_conv", "ghost_1_short_3_bn": "gate.column_bn"},
}
# Of V1, by what Keras calls them: the authors' PReLUs keep the name of the activation that they replace.
KINDS = {
    "conv2d": "convolutions",
    "depthwise_conv2d": "depthwise convolutions",
    "batch_normalization": "normalisations",
    "activation": "PReLUs",
    "p_re_lu": "PReLUs",
    "re_lu": "PReLUs",
}
ROLES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "alpha": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

Layers = dict[str, dict[str, Array]]  # by Keras' name, then by that of the weight


def read_keras(path: Path) -> dict[str, Tensor]:
    """Read a GhostFaceNet's weights under our names and in torch's layout.

    Layers that a GhostFaceNet does not have, such as a classifier, keep their names. A network that was trained with
    ReLU has no weights of PReLUs, and one with a bias before the embedding's normalisation has "head.linear.bias"
    (`equivalent_forms`).

    Raises:
        CheckpointError: no HDF5 file of Keras, or not of a GhostFaceNet.
    """
    layers = _layers_of(read_hdf5(path))
    if not layers.keys() >= HEAD.keys():
        raise CheckpointError(
            f"{path}: is of Keras, but no GhostFaceNet, which has the layers {', '.join(HEAD)}; of Keras' files, only"
            " GhostFaceNets can be read"
        )
    is_v2 = any(layer.startswith("stack") for layer in layers)
    modules = HEAD | (_modules_of_v2(layers) if is_v2 else _modules_of_v1(layers, path))
    weights: dict[str, Tensor] = {}
    for layer, held in layers.items():
        for name, array in held.items():
            role = ROLES.get(name) if layer in modules else None
            key = f"{modules[layer]}.{role}" if role else f"{layer}.{name}"
            weights[key] = _in_torch_layout(layer, name, array)
    return weights


def _layers_of(arrays: Mapping[str, Array]) -> Layers:
    layers: Layers = defaultdict(dict)
    for place, array in arrays.items():
        if not place.startswith(NOT_WEIGHTS):
            layer, _, rest = place.removeprefix(WHOLE_MODEL).partition("/")
            layers[layer][rest.rpartition("/")[2].partition(":")[0]] = array
    return dict(layers)


def _modules_of_v2(layers: Iterable[str]) -> dict[str, str]:
    """Our modules by Keras' layers, as far as these are known."""
    found = {}
    for layer in layers:
        unit = re.fullmatch(r"stack(\d{1,2})_(\w+)", layer)
        if unit and unit[2] in INSIDE:
            found[layer] = f"blocks.{int(unit[1]) - 1}.{INSIDE[unit[2]]}"
        elif layer in OUTSIDE:
            found[layer] = OUTSIDE[layer]
    return found


def _modules_of_v1(layers: Layers, path: Path) -> dict[str, str]:
    """The same for V1, by the order of the layers of each kind.

    Raises:
        CheckpointError: there are more or fewer of a kind than V1 has.
    """
    theirs: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for layer in layers:
        numbered = re.fullmatch(r"([a-z0-9_]*?[a-z0-9])(?:_(\d{1,9}))?", layer)
        if numbered and numbered[1] in KINDS:
            theirs[KINDS[numbered[1]]].append((int(numbered[2] or 0), layer))
    found: dict[str, str] = {}
    for kind, modules in _kinds_of_v1().items():
        ordered = [layer for _, layer in sorted(theirs[kind])]
        if not ordered and kind == "PReLUs":  # trained with ReLU, which has no weights
            continue
        if len(ordered) != len(modules):
            raise CheckpointError(
                f"{path}: has {len(ordered)} {kind}, not the {len(modules)} of a GhostFaceNetV1; take other weights"
            )
        found |= dict(zip(ordered, modules, strict=True))
    return found


def _kinds_of_v1() -> dict[str, list[str]]:
    """Our modules of each kind in the order of Keras' layers, which is that of our state dict; all widths are alike."""
    with torch.device("meta"):
        network = create_backbone("ghostfacenet_v1_0_5_s2")
    found: dict[str, list[str]] = {kind: [] for kind in KINDS.values()}
    for name, module in network.named_modules():
        if name.startswith("head."):
            continue
        if isinstance(module, nn.Conv2d):
            found["depthwise convolutions" if module.groups > 1 else "convolutions"].append(name)
        elif isinstance(module, nn.BatchNorm2d):
            found["normalisations"].append(name)
        elif isinstance(module, nn.PReLU):
            found["PReLUs"].append(name)
    return found


def _in_torch_layout(layer: str, name: str, array: Array) -> Tensor:
    """A convolution's (kh, kw, in, out) as (out, in, kh, kw), a depthwise one's (kh, kw, C, 1) as (C, 1, kh, kw)."""
    if name.endswith("kernel") and array.ndim == 4:
        is_depthwise = "dw" in layer.split("_") or layer.startswith("depthwise")  # Keras 3 names both "kernel"
        array = array.transpose(2, 3, 0, 1) if is_depthwise else array.transpose(3, 2, 0, 1)
    elif name == "alpha":
        array = array.reshape(-1)  # (1, 1, C)
    return torch.from_numpy(np.array(array, np.float32, order="C"))
