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
        stage_ends: the module that ends each stage but the last (`stages.stages_of`), by name and in order.
        only_in_training: names of the parameters that the embedding depends on in training alone.
    """

    name: str = ""
    known_input: Mapping[str, Any] | None = None
    stage_ends: Sequence[str] = ()
    only_in_training: Sequence[str] = ()
    embedding_size: int

    def forward(self, x_B3HW: Tensor) -> Tensor:
        raise NotImplementedError


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
