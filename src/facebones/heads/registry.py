"""Heads by name: what each is called, which options it has, and how it is built. Nothing here imports torch.

A head turns embeddings and labels into a loss while a backbone trains. A recipe chooses it: `head: {name: arcface,
margin: 0.5}`. Another head is a class in a module of the user's, under `@register_head`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from facebones.errors import ConfigError, FaceBonesError, UnknownNameError
from facebones.plugins import import_entry_points
from facebones.strict_yaml import ADMITTED_KINDS, setting

if TYPE_CHECKING:
    from facebones.heads.partial_fc import Head

DEFAULT_HEAD = "combined"  # of a recipe that names none
Build = TypeVar("Build", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Options of every head that is a softmax over class centres."""

    scale: float = setting(64.0, "factor on all cosines", above=0)
    sample_rate: float = setting(1.0, "share of the class centres that takes part in a step", above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class MarginOptions(HeadOptions):
    """Options of every head with a fixed margin."""

    interclass_filter: float = setting(0.0, "other classes' cosines above this count as 0; 0 is off", minimum=0)
    gradient: str = setting(
        "straight_through", "how the margin is differentiated", choices=("straight_through", "exact")
    )


@dataclass(frozen=True, kw_only=True)
class CombinedOptions(MarginOptions):
    """scale (cos(m1 angle + m2) - m3)."""

    m1: float = setting(1.0, "factor on the angle (SphereFace)", above=0)
    m2: float = setting(0.5, "added to the angle, radians (ArcFace)", minimum=0)
    m3: float = setting(0.0, "subtracted from the cosine (CosFace)", minimum=0)

    def combined(self) -> "CombinedOptions":
        """These options."""
        return self


@dataclass(frozen=True, kw_only=True)
class ArcFaceOptions(MarginOptions):
    """scale cos(angle + margin)."""

    margin: float = setting(0.5, "added to the angle, radians", minimum=0, renamed=("m2",))

    def combined(self) -> CombinedOptions:
        """The same margin as options of `combined`."""
        return CombinedOptions(m2=self.margin, **_shared(self))


@dataclass(frozen=True, kw_only=True)
class CosFaceOptions(MarginOptions):
    """scale (cos(angle) - margin)."""

    margin: float = setting(0.4, "subtracted from the cosine", minimum=0, renamed=("m3",))

    def combined(self) -> CombinedOptions:
        """The same margin as options of `combined`."""
        return CombinedOptions(m2=0.0, m3=self.margin, **_shared(self))


@dataclass(frozen=True, kw_only=True)
class AdaFaceOptions(HeadOptions):
    """A margin that grows with the norm of the embedding."""

    margin: float = setting(0.4, "the margin m; the angle's part is -m z, the cosine's is m + m z", minimum=0)
    h: float = setting(0.333, "z = h (norm - mean) / deviation, kept within -1 and 1", minimum=0)
    momentum: float = setting(0.01, "share of a batch in the running mean and deviation", above=0, maximum=1)
    gradient: str = setting("exact", "how the margin is differentiated", choices=("straight_through", "exact"))


@dataclass(frozen=True, kw_only=True)
class MagFaceOptions(HeadOptions):
    """A margin that grows with the norm of the embedding, and a pull on the norm."""

    lower_norm: float = setting(10.0, "norms below count as this", above=0)
    upper_norm: float = setting(110.0, "norms above count as this", above=0)
    lower_margin: float = setting(0.45, "margin at the lower norm, radians", minimum=0)
    upper_margin: float = setting(0.8, "margin at the upper norm, radians", minimum=0)
    regulariser: float = setting(35.0, "factor on the pull towards large norms", minimum=0)
    easy_margin: bool = setting(True, "no margin at a negative cosine; false: a linear one past the turn")


@dataclass(frozen=True, kw_only=True)
class CurricularFaceOptions(HeadOptions):
    """The margin of ArcFace, and negatives that count more the further the training is."""

    margin: float = setting(0.5, "added to the angle, radians", minimum=0)
    momentum: float = setting(0.01, "share of a batch in the running mean of the true cosines", above=0, maximum=1)


@dataclass(frozen=True, kw_only=True)
class ElasticFaceOptions(HeadOptions):
    """A margin that is drawn at random for each image in each step."""

    kind: str = setting("arc", "arc: added to the angle; cos: subtracted from the cosine", choices=("arc", "cos"))
    margin: float = setting(0.5, "mean of the margins (the authors take 0.35 with cos)", minimum=0)
    deviation: float = setting(0.0125, "standard deviation of the margins", minimum=0)
    plus: bool = setting(False, "give the largest margins to the images that are furthest from their centre")


@dataclass(frozen=True, kw_only=True)
class UnifiedCrossEntropyOptions(HeadOptions):
    """A threshold between own and other cosines, instead of a softmax."""

    margin: float = setting(0.4, "subtracted from the cosine of the true class", minimum=0)
    negatives: float = setting(1.0, "factor on the terms of the other classes", minimum=0)


@dataclass(frozen=True, kw_only=True)
class SphereFace2Options(HeadOptions):
    """A binary classification for each class, instead of a softmax."""

    scale: float = setting(40.0, "factor on all cosines", above=0)
    margin: float = setting(0.4, "subtracted from the true class, added to the others", minimum=0)
    alpha: float = setting(0.7, "weight of the true class; the others have 1 - alpha", above=0, maximum=0.999)
    t: float = setting(3.0, "exponent of the similarity 2 ((cos + 1) / 2)^t - 1", above=0)
    loss_weight: float = setting(50.0, "factor on the loss, over the scale", above=0)


@dataclass(frozen=True, kw_only=True)
class SubcenterArcFaceOptions(MarginOptions):
    """Several centres a class, of which the nearest counts."""

    margin: float = setting(0.5, "added to the angle, radians", minimum=0)
    subcenters: int = setting(3, "centres of a class", minimum=1, maximum=16)

    def combined(self) -> CombinedOptions:
        """The same margin as options of `combined`."""
        return CombinedOptions(m2=self.margin, **_shared(self))


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


def check_head(name: str, options: Any, num_classes: int, embedding_size: int) -> None:
    """Refuse options with which a head cannot be built; takes no memory for its centres and draws no number.

    Args:
        name: a registered name.
        options: an instance of the head's options.
        num_classes: C, the number of classes in all.
        embedding_size: D.

    Raises:
        UnknownNameError: no head of that name.
        ConfigError: options that exclude each other, or belong to another head.

    >>> check_head("arcface", ArcFaceOptions(margin=0.3), 1_000_000, 512)
    """
    import torch

    try:
        with torch.device("meta"):
            create_head(name, options, num_classes, embedding_size)
    except FaceBonesError:
        raise
    except Exception:  # noqa: BLE001 (a head of the user's may need values, which tensors on this device have not)
        return


def _check_options(name: str, options: type[Any]) -> None:
    if not is_dataclass(options):
        raise ValueError(f"head {name}: options is {options!r}; give a dataclass")
    for field_name, kind in get_type_hints(options).items():
        if kind not in ADMITTED_KINDS:
            kinds = ", ".join(getattr(kind, "__name__", str(kind)) for kind in ADMITTED_KINDS)
            raise ValueError(f"head {name}: option {field_name} is {kind}; a recipe holds {kinds}")
    options()  # each option needs a default


def _shared(options: MarginOptions) -> Mapping[str, Any]:
    values = asdict(options)
    return {item.name: values[item.name] for item in fields(MarginOptions)}


@register_head("combined", CombinedOptions)
def _build_combined(options: Any, num_classes: int, embedding_size: int, *, shard: range | None = None) -> Any:
    """Softmax over scale (cos(m1 angle + m2) - m3): all three margins (arXiv 1801.07698, equation 4)."""
    from facebones.heads.margins import combined_margin
    from facebones.heads.partial_fc import PartialFC

    values = asdict(options.combined())
    sample_rate = values.pop("sample_rate")
    margin = partial(combined_margin, **values)
    return PartialFC(num_classes, embedding_size, margin, sample_rate=sample_rate, shard=shard)


@register_head("arcface", ArcFaceOptions)
def _build_arcface(*arguments: Any, **options: Any) -> Any:
    """ArcFace: softmax over scale cos(angle + margin) (arXiv 1801.07698)."""
    return _build_combined(*arguments, **options)


@register_head("cosface", CosFaceOptions)
def _build_cosface(*arguments: Any, **options: Any) -> Any:
    """CosFace: softmax over scale (cos(angle) - margin) (arXiv 1801.09414)."""
    return _build_combined(*arguments, **options)


def _register_class(name: str, options: type[Any], place: str, summary: str, *, needs_all: str = "") -> None:
    """Register a class whose module, which needs torch, is imported when a head is built.

    Args:
        name: of the head.
        options: dataclass of its options.
        place: module of this package, and class.
        summary: what it is, with its source.
        needs_all: why the head takes no sample of the centres; empty: it does.
    """
    module, class_name = place.split(".")

    def build(options: Any, num_classes: int, embedding_size: int, *, shard: range | None = None) -> Any:
        if needs_all and options.sample_rate < 1:
            raise ConfigError(f"head {name}: sample_rate {options.sample_rate:g}: {needs_all}; give 1")
        kind = getattr(import_module(f"facebones.heads.{module}"), class_name)
        return kind(options, num_classes, embedding_size, shard=shard)

    build.__doc__ = summary
    register_head(name, options)(build)


_register_class(
    "adaface",
    AdaFaceOptions,
    "adaptive_margins.AdaFace",
    "AdaFace: a margin that follows the image's quality, read from the norm (arXiv 2204.00964)",
)
_register_class(
    "magface",
    MagFaceOptions,
    "adaptive_margins.MagFace",
    "MagFace: a margin that grows with the norm, which thereby becomes a quality (arXiv 2103.06627)",
)
_register_class(
    "curricularface",
    CurricularFaceOptions,
    "adaptive_margins.CurricularFace",
    "CurricularFace: hard negatives count more as the training progresses (arXiv 2004.00288)",
)
_register_class(
    "elasticface",
    ElasticFaceOptions,
    "adaptive_margins.ElasticFace",
    "ElasticFace: a margin drawn for each image of each step (arXiv 2109.09416)",
)
_register_class(
    "uce",
    UnifiedCrossEntropyOptions,
    "binary.UnifiedCrossEntropy",
    "Unified cross-entropy of UniFace: one learned threshold between own and other cosines (ICCV 2023)",
)
_register_class(
    "sphereface2",
    SphereFace2Options,
    "binary.SphereFace2",
    "SphereFace2: a binary classification for each class (arXiv 2108.01513)",
    needs_all="its balance of own and other classes counts all classes",
)
_register_class(
    "subcenter_arcface",
    SubcenterArcFaceOptions,
    "subcenters.SubcenterArcFace",
    "Sub-center ArcFace: several centres a class, for noisy labels (ECCV 2020)",
    needs_all="a sample holds one centre of a class",
)
