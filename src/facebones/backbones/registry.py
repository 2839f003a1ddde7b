"""From a backbone's name to the network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from torch import Tensor, nn

from facebones.errors import ConfigError, UnknownNameError

IMAGE_SIZE = 112
LARGEST_EMBEDDING = 2**16
TIMM_PREFIX = "timm:"


class Backbone(nn.Module):
    """Base of all backbones: aligned faces (B, 3, 112, 112), RGB in [-1, 1], to embeddings (B, D).

    Embeddings are float32 and not normalised, also under autocast.

    Attributes:
        name: the name in the registry.
        embedding_size: D, the length of an embedding.
    """

    name: str = ""
    embedding_size: int

    def forward(self, x_B3HW: Tensor) -> Tensor:
        raise NotImplementedError


class BackboneBuilder(Protocol):
    """What is registered: builds a backbone with new weights."""

    def __call__(self, embedding_size: int, dropout: float) -> Backbone: ...


@dataclass(frozen=True, kw_only=True)
class BackboneEntry:
    """A row of the registry.

    Attributes:
        name: our name.
        build: the builder.
        summary: what it is, with its source.
        aliases: the names that other code of the field uses for it.
        needs: the extra without which it cannot be built.
    """

    name: str
    build: BackboneBuilder
    summary: str
    aliases: tuple[str, ...] = ()
    needs: str | None = None


_REGISTRY: dict[str, BackboneEntry] = {}


def register_backbone(*aliases: str, needs: str | None = None) -> Callable[[BackboneBuilder], BackboneBuilder]:
    """Register the decorated builder under its own name; its docstring's first line is the summary."""

    def register(build: BackboneBuilder) -> BackboneBuilder:
        name = build.__name__  # type: ignore[attr-defined]  # builders are plain functions
        taken = {known for entry in _REGISTRY.values() for known in (entry.name, *entry.aliases)}
        if clash := taken & {name, *aliases}:
            raise ValueError(f"backbone name taken: {', '.join(sorted(clash))}")
        summary = (build.__doc__ or "").strip().splitlines()[0].rstrip(".")
        _REGISTRY[name] = BackboneEntry(name=name, build=build, summary=summary, aliases=aliases, needs=needs)
        return build

    return register


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the registered backbones that match a shell pattern, or whose alias does, in the order of registration.

    A pattern that begins with "timm:" goes over the models of timm instead.

    >>> list_backbones("mobile*")
    ['mobilefacenet', 'mobilefacenet_wide', 'mobilefacenet_large']
    """
    if pattern.startswith(TIMM_PREFIX):
        from facebones.backbones.timm_models import timm_names

        return timm_names(pattern)
    return [
        name
        for name, entry in _REGISTRY.items()
        if any(fnmatchcase(known, pattern) for known in (name, *entry.aliases))
    ]


def lookup_backbone(name: str) -> BackboneEntry:
    """The entry of a backbone, by its name or an alias; "timm:NAME" is a model of timm.

    Raises:
        UnknownNameError: no backbone of that name; the message offers the nearest.
        ConfigError: it is a model of timm, and timm is not installed.
    """
    if name.startswith(TIMM_PREFIX):
        from facebones.backbones.timm_models import timm_entry

        return timm_entry(name)
    for entry in _REGISTRY.values():
        if name == entry.name or name in entry.aliases:
            return entry
    raise UnknownNameError("backbone", name, _REGISTRY)


def create_backbone(name: str, embedding_size: int = 512, dropout: float = 0.0) -> Backbone:
    """Build a backbone with newly drawn weights (from torch's global generator).

    Args:
        name: a registered name or alias, such as "iresnet50" or "r50".
        embedding_size: length of the embedding.
        dropout: probability that an element before the last linear layer is dropped in training.

    Raises:
        UnknownNameError: no backbone of that name.
        ConfigError: an embedding size or dropout that makes no network.

    >>> create_backbone("mobilefacenet", embedding_size=128).embedding_size
    128
    """
    entry = lookup_backbone(name)
    if not 1 <= embedding_size <= LARGEST_EMBEDDING:
        raise ConfigError(f"embedding size {embedding_size} is not in 1 to {LARGEST_EMBEDDING}; 512 is usual")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout {dropout} is not in [0, 1); 0 is usual")
    backbone = entry.build(embedding_size=embedding_size, dropout=dropout)
    backbone.name = entry.name
    return backbone


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and back: a part that was frozen in eval mode stays frozen."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
