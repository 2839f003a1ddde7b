"""Authors whose files of weights are known by their form: what their networks compute with beyond the weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from facebones.backbones.base import Backbone
from facebones.backbones.registry import lookup_backbone
from facebones.backbones.state_dicts import COUNTER, Match
from facebones.errors import CheckpointError
from facebones.system.progress import say
from facebones.system.regular_files import open_regular

MAGFACE_EPS = 2e-5  # of all batch normalisation in MagFace's iResNets, whose files have "features." before the names
MAGFACE_INPUT = {"mean": 0, "scale": 255, "colour": "bgr"}
ADAFACE_INPUT = {"colour": "bgr"}
ADAFACE_HEAD = ("head.kernel", "head.t", "head.batch_mean")  # tensors of the head that its Lightning files hold
GHOSTFACENET_INPUT = {"mean": 127.5, "scale": 128}  # 128, not 127.5
CVLFACE_SETTINGS = "model.yaml"  # beside CVLface's model.pt
MOST_SETTINGS = 65_536  # bytes of it that are read


def take_known_author(backbone: Backbone, match: Match, path: Path) -> None:
    """Give a network the settings of the author whose form its file has, with a note; other files change nothing.

    Args:
        backbone: the network, with the weights of the file.
        match: how they were found.
        path: the file.

    Raises:
        CheckpointError: the settings beside the file name an unknown channel order.
    """
    family, modules = lookup_backbone(backbone.name).family, match.wrapper.split(".")
    if family == "iresnet" and "features" in modules:
        _take_for_magface(backbone, path)
    elif family == "ir" and modules == ["model", ""]:
        _take(backbone, path, _why_adaface(match), ADAFACE_INPUT)
    elif family in ("ir", "iresnet") and modules[-2:-1] == ["net"]:
        _take_for_cvlface(backbone, path)
    elif family == "ghostfacenet" and not any(key.endswith(COUNTER) for key in match.tensors):
        why = "has no counters of batch normalisation, as weights from Keras: its input is (x - 127.5) / 128"
        _take(backbone, path, why, GHOSTFACENET_INPUT)


def _take(backbone: Backbone, path: Path, why: str, known: Mapping[str, Any]) -> None:
    backbone.known_input = known
    say(f"note: {path}: {why}")


def _why_adaface(match: Match) -> str:
    """Why IR weights under "model." are taken for AdaFace's."""
    if match.place == "state_dict":
        return "is a Lightning file of an IR network, as AdaFace's are: BGR"
    if not set(ADAFACE_HEAD).isdisjoint(match.beside):
        return "has 'model.' before the names and a head beside the network, as AdaFace's state dicts have: BGR"
    return (
        "has 'model.' before the names of an IR network, as AdaFace's state dicts have, but does not say more: BGR is"
        " likely; `evaluate` has --colour"
    )


def _take_for_magface(backbone: Backbone, path: Path) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = MAGFACE_EPS
    why = "has 'features.' before the names, as MagFace's files have: batch normalisation computes with"
    _take(backbone, path, f"{why} its eps {MAGFACE_EPS:g}", MAGFACE_INPUT)


def _take_for_cvlface(backbone: Backbone, path: Path) -> None:
    """The channel order stands in the settings beside the file, under `color_space`; CVLface's own default is RGB."""
    why = "has 'net.' before the names, as CVLface's files have"
    settings = path.with_name(CVLFACE_SETTINGS)
    try:
        with open_regular(settings) as file:
            text = file.read(MOST_SETTINGS).decode("utf-8", "replace")
    except OSError:
        say(
            f"note: {path}: {why}, but no {CVLFACE_SETTINGS} with its channel order is beside it: it is taken for RGB;"
            " `evaluate` has --colour"
        )
        return
    stated = re.search(r"""^color_space: *["']?(\w+)""", text, re.MULTILINE)
    if stated is None:
        say(f"note: {path}: {why}: {CVLFACE_SETTINGS} states no color_space, and CVLface's default is RGB")
        return
    colour = stated[1].lower()
    if colour not in ("rgb", "bgr"):
        raise CheckpointError(f"{settings}: color_space is {colour!r:.40}; it must be RGB or BGR")
    known = {"colour": "bgr"} if colour == "bgr" else {}
    _take(backbone, path, f"{why}: {CVLFACE_SETTINGS} says {colour.upper()}", known)
