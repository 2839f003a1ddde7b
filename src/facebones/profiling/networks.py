"""What is profiled: from the words of a command line to networks that are ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from facebones.backbones import Backbone, create_backbone, list_backbones, lookup_backbone
from facebones.errors import CheckpointError, ConfigError, UnknownNameError
from facebones.evaluation.models import open_backbone
from facebones.system.device import select_device
from facebones.system.progress import say

SUFFIXES = {".onnx", ".pt", ".pth", ".safetensors"}


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        name: what the table calls it: the backbone, or the path as it was given.
        path: a run, a file of weights or an ONNX file; None for a backbone with new weights.
        backbone: its name, for files that do not say it.
    """

    name: str
    path: Path | None = None
    backbone: str | None = None

    @property
    def is_onnx(self) -> bool:
        """Whether ONNX Runtime computes it."""
        return self.path is not None and self.path.suffix == ".onnx"


def find_sources(words: Sequence[str], backbone: str | None = None) -> list[Source]:
    """Sources of the networks that are meant, each once, in the order named.

    Args:
        words: names, aliases and shell patterns of backbones; paths of runs, weights and ONNX files. What is both a
            name and a path is a name; `./NAME` is the path.
        backbone: of the files that do not say it.

    Raises:
        UnknownNameError: no such name.
        CheckpointError: no such file.
    """
    found = [source for word in words for source in _sources_of(word, backbone)]
    return list(dict.fromkeys(found))


def _sources_of(word: str, backbone: str | None) -> list[Source]:
    names = list_backbones(word)
    if names:
        return [Source(name) for name in names if len(names) == 1 or _is_buildable(name)]
    try:
        return [Source(lookup_backbone(word).name)]
    except UnknownNameError:
        path = Path(word)
        if path.exists():
            return [Source(word, path, backbone)]
        if path.suffix in SUFFIXES or len(path.parts) > 1:
            raise CheckpointError(f"{word}: no such run or file; check the path") from None
        raise


def _is_buildable(name: str) -> bool:
    """Whether a backbone that a pattern means can be built here; says so where it cannot."""
    try:
        with torch.device("meta"):
            create_backbone(name)
    except ConfigError as error:
        say(f"note: {name} is left out: {error}")
        return False
    return True


def open_network(source: Source, device: str) -> tuple[Backbone, torch.device]:
    """The network in eval mode, and the device for its input.

    Raises:
        FaceBonesError: broken, unfit, or no such device.
    """
    if source.path is not None:
        network, _, computing = open_backbone(source.path, source.backbone, device)
        return network, computing
    computing = select_device(device)
    return create_backbone(source.name).eval().to(computing), computing


def family_of(network: Backbone) -> str:
    """The family of a backbone: the file that builds it. Networks that are not in the registry are "onnx"."""
    try:
        return str(lookup_backbone(network.name).build.__module__).rpartition(".")[2]
    except UnknownNameError:
        return "onnx"
