"""The network that is exported, with the input that every exported file states."""

from pathlib import Path

from torch import Tensor

from facebones.backbones.base import Backbone, deploy_form, is_deployed
from facebones.backbones.weights import load_backbone
from facebones.data.preprocessing import OURS, Preprocessing


def load_for_export(model: Path, name: str | None) -> tuple[Backbone, Path]:
    """Load the backbone of a run or a file of weights; it takes our input whatever it was trained with.

    Returns:
        the network, in eval mode on the CPU, and the path of the file that was read.

    Raises:
        CheckpointError, UnknownNameError: as `load_backbone`.
    """
    network, path = load_backbone(model, name)
    known = getattr(network, "known_input", None)  # a plug-in's network may be any module
    if known:
        network = _TakesOurs(network, Preprocessing(**known)).eval()
    return network, path


class _TakesOurs(Backbone):
    """A network that was trained with another input, with our input."""

    def __init__(self, network: Backbone, theirs: Preprocessing) -> None:
        super().__init__()
        self.name, self.embedding_size, self.is_deployed = network.name, network.embedding_size, is_deployed(network)
        self.network, self._theirs = network, theirs

    def forward(self, x_B3HW: Tensor) -> Tensor:
        theirs = self._theirs
        x = x_B3HW.flip(1) if theirs.colour != OURS.colour else x_B3HW
        embeddings: Tensor = self.network(x * (OURS.scale / theirs.scale) + (OURS.mean - theirs.mean) / theirs.scale)
        return embeddings

    def deploy(self) -> Backbone:
        form = deploy_form(self.network)
        return self if form is self.network else _TakesOurs(form, self._theirs).eval()
