"""From a backbone's name to the network: built-in families, models of timm, and plug-ins.

A built-in family is imported when one of its names is first looked up. Plug-ins register with the same decorator, from
a module of the user's.
"""

import inspect
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from facebones.backbones.base import (
    IMAGE_SIZE,
    LARGEST_EMBEDDING,
    TIMM_PREFIX,
    Backbone,
    BackboneEntry,
    evaluation_mode,
)
from facebones.backbones.catalogue import read_catalogue
from facebones.errors import ConfigError, FaceBonesError, UnknownNameError, first_line
from facebones.plugins import import_entry_points

# The files of this folder that register backbones, in the order in which these are listed.
FAMILIES = (
    "edgeface",
    "facelivt",
    "ghostfacenet",
    "ir",
    "iresnet",
    "mixfacenet",
    "mobilefacenet",
    "mobilenet",
    "pocketnet",
    "shufflefacenet",
    "study",
    "vit",
)
BUILT_IN = [f"{__package__}.{name}" for name in (*FAMILIES, "timm_models")]

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
_REGISTRY: dict[str, BackboneEntry] = {}


def register_backbone(*aliases: str, needs: str | None = None) -> Callable[[Builder], Builder]:
    """Register the decorated builder, a function or an `nn.Module` class, under its own name.

    The builder takes `embedding_size` and, if the network has dropout, `dropout`. It returns a network with new weights
    that maps faces (B, 3, 112, 112), RGB in [-1, 1], to embeddings (B, embedding_size), float32, not normalised. The
    first line of its docstring is the summary in listings.

    Args:
        aliases: further names.
        needs: the extra of this package that must be installed to build it.

    Raises:
        ConfigError: a name or alias is taken; built-in backbones cannot be replaced.

    >>> from torch import nn
    >>> @register_backbone()
    ... def mean_colour(embedding_size: int) -> nn.Module:
    ...     '''A linear map of the mean colour.'''
    ...     return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, embedding_size))
    >>> create_backbone("mean_colour", embedding_size=8).embedding_size
    8
    >>> _ = _REGISTRY.pop("mean_colour")
    """

    def register(build: Builder) -> Builder:
        name = build.__name__
        summary = (build.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        entry = BackboneEntry(name=name, build=build, summary=summary, aliases=aliases, needs=needs)
        _refuse_taken_names(entry)
        _REGISTRY[name] = entry
        return build

    return register


def _refuse_taken_names(entry: BackboneEntry) -> None:
    taken = {known: row.name for row in _REGISTRY.values() for known in (row.name, *row.aliases)}
    if not is_built_in(entry):  # built-in families may not be imported yet
        taken |= {known: row["name"] for row in read_catalogue() for known in (row["name"], *row["aliases"])}
    for name in (entry.name, *entry.aliases):
        if name in taken:
            raise ConfigError(f"backbone name '{name}' is taken by {taken[name]}; rename yours")


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the backbones whose name or alias matches a shell pattern: built-in ones first, then plug-ins.

    A pattern that begins with "timm:" searches the models of timm instead.

    >>> list_backbones("mobilenet_v3*")
    ['mobilenet_v3_small', 'mobilenet_v3_large']
    """
    if pattern.startswith(TIMM_PREFIX):
        from facebones.backbones.timm_models import timm_names

        return timm_names(pattern)
    _import_families()
    import_entry_points()
    entries = sorted(_REGISTRY.values(), key=_place)
    return [row.name for row in entries if any(fnmatchcase(known, pattern) for known in (row.name, *row.aliases))]


def lookup_backbone(name: str) -> BackboneEntry:
    """The entry of a backbone, by name or alias; "timm:NAME" is a model of timm.

    Raises:
        UnknownNameError: no such backbone; the message offers the nearest name.
        ConfigError: it is a model of timm, and timm is not installed.

    >>> lookup_backbone("r50").name
    'iresnet50'
    """
    if name.startswith(TIMM_PREFIX):
        from facebones.backbones.timm_models import timm_entry

        return timm_entry(name)
    # The cheapest first: one family, all families, the plug-ins of installed packages.
    for load in (partial(_import_family_of, name), _import_families, import_entry_points, None):
        if found := [entry for entry in _REGISTRY.values() if name in (entry.name, *entry.aliases)]:
            return found[0]
        if load is not None:
            load()
    raise UnknownNameError("backbone", name, _REGISTRY, hint=_hint_at_size(name))


def _hint_at_size(name: str) -> str:
    """What to give instead of a name with an embedding size behind it, such as "pocketnet_s_128"; "" for other names.

    It is no alias: a network under it would have 512 elements, because an embedding size comes from the caller.
    """
    network, _, size = name.rpartition("_")
    if not size.isdecimal() or all(network not in (entry.name, *entry.aliases) for entry in _REGISTRY.values()):
        return ""
    return f"give {network}: files of weights show the embedding size {size:.5}, and backbone.embedding_size sets it"


def create_backbone(name: str, embedding_size: int = 512, dropout: float = 0.0) -> Backbone:
    """Build a backbone with new random weights, drawn from torch's global generator.

    Args:
        name: a name or alias, such as "iresnet50" or "r50".
        embedding_size: length D of the embedding.
        dropout: probability of dropping an element before the last linear layer, in training.

    Returns:
        the network, (B, 3, 112, 112) float32 -> (B, D) float32.

    Raises:
        UnknownNameError: no such backbone.
        ConfigError: an impossible embedding size or dropout, a missing extra, or a plug-in that breaks the contract of
            `register_backbone`.

    >>> create_backbone("mobilefacenet", embedding_size=128).embedding_size
    128
    """
    entry = lookup_backbone(name)
    if not 1 <= embedding_size <= LARGEST_EMBEDDING:
        raise ConfigError(f"embedding size {embedding_size} is not in 1 to {LARGEST_EMBEDDING}; 512 is usual")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout {dropout} is not in [0, 1); 0 is usual")
    if is_built_in(entry):
        backbone = cast(Backbone, entry.build(embedding_size=embedding_size, dropout=dropout))
    else:
        backbone = _build_plugin(entry, embedding_size, dropout)
    backbone.name = entry.name
    return backbone


def _build_plugin(entry: BackboneEntry, embedding_size: int, dropout: float) -> Backbone:
    """Build a plug-in's network, and embed one image to show that it keeps the contract.

    Raises:
        ConfigError: it does not.
    """
    options = {"embedding_size": embedding_size, "dropout": dropout}
    if not _takes_dropout(entry.build):
        if dropout:
            raise ConfigError(f"{entry.name} has no dropout; set backbone.dropout to 0")
        del options["dropout"]
    try:
        network = entry.build(**options)
        if not isinstance(network, nn.Module):
            raise ConfigError(f"{entry.name}: its builder returned {type(network).__name__}, not an nn.Module")
        _check_embedding(network, entry.name, embedding_size)
    except FaceBonesError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{entry.name}: cannot be built or cannot embed a 112x112 image: {reason}") from error
    backbone = cast(Backbone, network)
    backbone.embedding_size = embedding_size
    return backbone


def _takes_dropout(build: Callable[..., nn.Module]) -> bool:
    parameters = inspect.signature(build).parameters.values()
    return any(p.name == "dropout" or p.kind is p.VAR_KEYWORD for p in parameters)


def _check_embedding(network: nn.Module, name: str, embedding_size: int) -> None:
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return
    with evaluation_mode(network), torch.no_grad(), torch.random.fork_rng(devices=[]):
        answer = network(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device))
    found = f"{tuple(answer.shape)} {answer.dtype}" if isinstance(answer, Tensor) else type(answer).__name__
    if found != (wanted := f"{(1, embedding_size)} {torch.float32}"):
        raise ConfigError(f"{name}: forward returned {found} for one image; it must return {wanted}")


def _import_families(names: Iterable[str] = FAMILIES) -> None:
    for name in names:
        import_module(f"{__package__}.{name}")


def _import_family_of(name: str) -> None:
    _import_families({row["family"] for row in read_catalogue() if name in (row["name"], *row["aliases"])})


def _place(entry: BackboneEntry) -> int:
    """Where a backbone stands in listings; within a place, in the order of registration."""
    return BUILT_IN.index(entry.build.__module__) if is_built_in(entry) else len(BUILT_IN)


def is_built_in(entry: BackboneEntry) -> bool:
    """Whether this package builds the backbone; otherwise a plug-in registered it."""
    return entry.build.__module__ in BUILT_IN
