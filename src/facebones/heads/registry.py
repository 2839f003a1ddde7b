"""Heads by name: what each is called, which options it has, and how it is built. Nothing here imports torch.

A head turns embeddings and labels into a loss while a backbone trains. A recipe chooses it: `head: {name: arcface,
margin: 0.5}`. Another head is a class in a module of the user's, under `@register_head`.
"""

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from facebones.errors import ConfigError, UnknownNameError
from facebones.plugins import import_entry_points
from facebones.strict_yaml import ADMITTED_KINDS, setting

if TYPE_CHECKING:
    from facebones.heads.partial_fc import Head

Build = TypeVar("Build", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Options of every head that is a softmax over class centres."""

    scale: float = setting(64.0, "factor on all cosines", above=0)
    sample_rate: float = setting(1.0, "share of the class centres that takes part in a step", above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class HeadEntry:
    """A row of the registry.

    Attributes:
        name: as in `head.name`.
        options: dataclass of its options.
        build: (options, num_classes, embedding_size, shard=None) -> Head.
        summary: what it is, with its source.
    """

    name: str
    options: type[Any]
    build: Callable[..., Any]
    summary: str


_REGISTRY: dict[str, HeadEntry] = {}


def register_head(name: str, options: type[Any] = HeadOptions) -> Callable[[Build], Build]:
    """Register the decorated head class, or function that builds a head, under a name.

    Args:
        name: as in `head: {name: ...}`.
        options: a dataclass whose fields are the head's options; each has a default. A field made by
            `facebones.strict_yaml.setting` also says its range and its help.

    Raises:
        ValueError: the name is taken, or the options cannot be read from YAML.

    The decorated object is called with (options, num_classes, embedding_size, shard=None); its docstring's first line
    is the summary.
    """

    def register(build: Build) -> Build:
        if name in _REGISTRY:
            raise ValueError(f"head name taken: {name}")
        _check_options(name, options)
        summary = ((build.__doc__ or "").strip().splitlines() or [""])[0].rstrip(".")
        _REGISTRY[name] = HeadEntry(name=name, options=options, build=build, summary=summary)
        return build

    return register


def list_heads() -> list[str]:
    """Names of all heads, in the order of registration.

    >>> list_heads()[:3]
    ['combined', 'arcface', 'cosface']
    """
    import_entry_points()
    return list(_REGISTRY)


def lookup_head(name: str, where: str = "") -> HeadEntry:
    """The entry of a head.

    Raises:
        UnknownNameError: no head of that name; the message offers the nearest.

    >>> lookup_head("arcface").options().margin
    0.5
    """
    if name not in _REGISTRY:
        import_entry_points()
    if name not in _REGISTRY:
        raise UnknownNameError("head", name, _REGISTRY, where)
    return _REGISTRY[name]


def create_head(
    name: str, options: Any, num_classes: int, embedding_size: int, *, shard: range | None = None
) -> "Head":
    """Build a head; its class centres are drawn from torch's global generator.

    Args:
        name: a registered name.
        options: an instance of the head's options.
        num_classes: C, the number of classes in all.
        embedding_size: D.
        shard: the classes whose centres this process holds; None: all.

    Raises:
        UnknownNameError: no head of that name.
        ConfigError: the options belong to another head.
    """
    entry = lookup_head(name)
    if not isinstance(options, entry.options):
        raise ConfigError(f"head {name}: takes {entry.options.__name__}, not {type(options).__name__}")
    from facebones.heads.partial_fc import Head

    head = entry.build(options, num_classes, embedding_size, shard=shard)
    if not isinstance(head, Head):
        raise ConfigError(f"head {name}: built a {type(head).__name__}; derive it from facebones.heads.partial_fc.Head")
    return head


def _check_options(name: str, options: type[Any]) -> None:
    if not is_dataclass(options):
        raise ValueError(f"head {name}: options is {options!r}; give a dataclass")
    for field_name, kind in get_type_hints(options).items():
        if kind not in ADMITTED_KINDS:
            kinds = ", ".join(getattr(kind, "__name__", str(kind)) for kind in ADMITTED_KINDS)
            raise ValueError(f"head {name}: option {field_name} is {kind}; a recipe holds {kinds}")
    options()  # each option needs a default
