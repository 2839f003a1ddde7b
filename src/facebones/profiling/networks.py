"""Networks by name or path: backbones, runs, files of weights, ONNX files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from facebones.backbones.base import Backbone, deploy_form
from facebones.backbones.registry import create_backbone, list_backbones, lookup_backbone
from facebones.backbones.weights import MODEL_SUFFIXES, local_model
from facebones.errors import CheckpointError, ConfigError, UnknownNameError
from facebones.evaluation.models import open_backbone
from facebones.system.device import select_device
from facebones.system.hub import is_hub_address, origin
from facebones.system.progress import say


@dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        name: its name in tables: the backbone, the path as given, or the address of a published model at its commit.
        path: a run, a file of weights or an ONNX file; None for a backbone with random weights.
        backbone: its name, for files that do not state it.
    """

    name: str
    path: Path | None = None
    backbone: str | None = None

    @property
    def is_onnx(self) -> bool:
        """Whether ONNX Runtime runs it."""
        return self.path is not None and self.path.suffix == ".onnx"


def find_sources(words: Sequence[str], backbone: str | None = None) -> list[Source]:
    """Find the networks that words name, each once, in the order named.

    Args:
        words: names, aliases and shell patterns of backbones; paths of runs, weights and ONNX files; addresses of
            published models (hf:owner/name). A word that is both a name and a path is taken as a name; `./NAME` is the
            path.
        backbone: its name, for files that do not state it.

    Raises:
        UnknownNameError: no such name.
        CheckpointError: no such file.

    >>> [source.name for source in find_sources(["mbf", "shufflefacenet_[01]*"])]
    ['mobilefacenet_wide', 'shufflefacenet_0_5', 'shufflefacenet_1_0', 'shufflefacenet_1_5']
    """
    found = [source for word in words for source in _sources_of(word, backbone)]
    return list(dict.fromkeys(found))


def _sources_of(word: str, backbone: str | None) -> list[Source]:
    if is_hub_address(word):
        path = local_model(word)
        return [Source(origin(path), path, backbone)]
    names = list_backbones(word)
    if names:
        return [Source(name) for name in names if len(names) == 1 or _is_buildable(name)]
    try:
        return [Source(lookup_backbone(word).name)]
    except UnknownNameError:
        path = Path(word)
        if path.exists():
            return [Source(word, path, backbone)]
        if path.suffix in MODEL_SUFFIXES or len(path.parts) > 1:
            raise CheckpointError(f"{word}: no such run or file; check the path") from None
        raise


def _is_buildable(name: str) -> bool:
    """Whether a backbone that matches a pattern can be built here; prints a note if it cannot."""
    try:
        with torch.device("meta"):
            create_backbone(name)
    except ConfigError as error:
        say(f"note: {name} is left out: {error}")
        return False
    return True


def open_network(source: Source, device: str) -> tuple[Backbone, torch.device]:
    """Build or load the network, in eval mode and in deploy form; returns it and the device for its input.

    Raises:
        FaceBonesError: a broken or unfit file, or an unavailable device.
    """
    network, computing = open_as_trained(source, device)
    return in_deploy_form(network, computing), computing


def in_deploy_form(network: Backbone, device: torch.device) -> Backbone:
    """The deploy form of a network, on a device; the network itself if it has one form."""
    return deploy_form(network.cpu()).to(device)  # on the CPU, because folding takes float64


def open_as_trained(source: Source, device: str) -> tuple[Backbone, torch.device]:
    """As `open_network`, in the form that the source has."""
    if source.path is not None:
        network, _, computing = open_backbone(source.path, source.backbone, device)
        return network, computing
    computing = select_device(device)
    with torch.random.fork_rng(devices=[]):  # profiling leaves the caller's random state as it was
        return create_backbone(source.name).eval().to(computing), computing


def family_of(network: Backbone) -> str:
    """The family of a backbone: the file that builds it. A network that is not registered has the family "onnx"."""
    try:
        return lookup_backbone(network.name).family
    except UnknownNameError:
        return "onnx"
