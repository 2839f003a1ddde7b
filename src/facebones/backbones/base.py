"""What a backbone is: its input and output, its base class, and its row in the registry."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

IMAGE_SIZE = 112
LARGEST_EMBEDDING = 2**16
TIMM_PREFIX = "timm:"  # of the names of timm's models


class Backbone(nn.Module):
    """Base class of the backbones: aligned faces (B, 3, 112, 112), RGB in [-1, 1], to embeddings (B, D).

    Embeddings are float32, also under autocast, and not normalised.

    Attributes:
        name: the name in the registry.
        embedding_size: D, the length of an embedding.
        known_input: another input that its weights were trained with, known from the form of their file: "mean",
            "scale" and "colour" of a `Preprocessing`, as far as they differ from ours; empty if none does.
        stage_ends: the module that ends each stage but the last (`stages.stages_of`), by name and in the order of
            computing.
        only_in_training: names of the parameters that the embedding depends on in training alone.
        evaluates_as: the registered network that computes the same in evaluation and differs in training alone, if one
            does.
        is_deployed: whether it is in deploy form.
    """

    name: str = ""
    known_input: Mapping[str, Any] | None = None
    stage_ends: Sequence[str] = ()
    only_in_training: Sequence[str] = ()
    evaluates_as: str = ""
    is_deployed: bool = False
    embedding_size: int

    def forward(self, x_B3HW: Tensor) -> Tensor:
        raise NotImplementedError

    def deploy(self) -> "Backbone":
        """The deploy form: another network, in eval mode, that gives the same embeddings with fewer layers.

        A network that is trained and used in one form, such as most, returns itself.
        """
        return self

    def unmoved_by_sgd(self) -> str:
        """What SGD would leave as it is, because its gradient is as good as 0 at the present weights; "" if nothing."""
        return ""


def deploy_form(network: Backbone) -> Backbone:
    """The deploy form of a network (`Backbone.deploy`); a plug-in's network may be any module, and is its own."""
    return network.deploy() if isinstance(network, Backbone) else network


def is_deployed(network: Backbone) -> bool:
    """Whether a network, which may be a plug-in's, is in deploy form."""
    return isinstance(network, Backbone) and network.is_deployed


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """A row of the registry.

    Attributes:
        name: the name in recipes and commands.
        build: builds the network with new weights; takes `embedding_size` and, if it has dropout, `dropout`.
        summary: one line that says what it is, with its source.
        aliases: its names in other code of the field.
        needs: the extra that must be installed to build it.
    """

    name: str
    build: Callable[..., nn.Module]
    summary: str
    aliases: tuple[str, ...] = ()
    needs: str | None = None

    @property
    def family(self) -> str:
        """The name of the file that builds it: "iresnet", or "my_net" for a plug-in my_net.py."""
        module = self.build.__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            return module.rpartition(".")[2]
        path = Path(file)
        return path.parent.name if path.stem == "__init__" else path.stem


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode for the block, then restore the mode of each: frozen parts stay frozen."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
