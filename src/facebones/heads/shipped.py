"""The heads that come with the package: their options, and how each is built. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from facebones.errors import ConfigError
from facebones.heads.registry import HeadOptions, register_head
from facebones.strict_yaml import setting

DEFAULT_HEAD = "combined"  # of a recipe that names none


@dataclass(frozen=True, kw_only=True)
class MarginOptions(HeadOptions):
    """Options of every head with a fixed margin."""

    interclass_filter: float = setting(0.0, "other classes' cosines above this are ignored; 0 is off", minimum=0)
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


@register_head("adaface", AdaFaceOptions)
def _build_adaface(*arguments: Any, **options: Any) -> Any:
    """AdaFace: a margin that follows the image's quality, read from the norm (arXiv 2204.00964)."""
    from facebones.heads.adaptive_margins import AdaFace

    return AdaFace(*arguments, **options)


@register_head("magface", MagFaceOptions)
def _build_magface(options: Any, *arguments: Any, **others: Any) -> Any:
    """MagFace: a margin that grows with the norm, which thereby becomes a quality (arXiv 2103.06627)."""
    from facebones.heads.adaptive_margins import MagFace

    if options.lower_norm >= options.upper_norm:
        raise ConfigError(
            f"head magface: lower_norm {options.lower_norm:g} is not below upper_norm {options.upper_norm:g}"
        )
    return MagFace(options, *arguments, **others)


@register_head("curricularface", CurricularFaceOptions)
def _build_curricularface(*arguments: Any, **options: Any) -> Any:
    """CurricularFace: hard negatives count more as the training progresses (arXiv 2004.00288)."""
    from facebones.heads.adaptive_margins import CurricularFace

    return CurricularFace(*arguments, **options)


@register_head("elasticface", ElasticFaceOptions)
def _build_elasticface(*arguments: Any, **options: Any) -> Any:
    """ElasticFace: a margin drawn for each image of each step (arXiv 2109.09416)."""
    from facebones.heads.adaptive_margins import ElasticFace

    return ElasticFace(*arguments, **options)


@register_head("uce", UnifiedCrossEntropyOptions)
def _build_uce(*arguments: Any, **options: Any) -> Any:
    """Unified cross-entropy of UniFace: one learned threshold between own and other cosines (ICCV 2023)."""
    from facebones.heads.binary import UnifiedCrossEntropy

    return UnifiedCrossEntropy(*arguments, **options)


@register_head("sphereface2", SphereFace2Options)
def _build_sphereface2(options: Any, *arguments: Any, **others: Any) -> Any:
    """SphereFace2: a binary classification for each class (arXiv 2108.01513)."""
    from facebones.heads.binary import SphereFace2

    _refuse_samples("sphereface2", options, "its balance of own and other classes counts all classes")
    return SphereFace2(options, *arguments, **others)


@register_head("subcenter_arcface", SubcenterArcFaceOptions)
def _build_subcenter_arcface(options: Any, *arguments: Any, **others: Any) -> Any:
    """Sub-center ArcFace: several centres a class, for noisy labels (ECCV 2020)."""
    from facebones.heads.subcenters import SubcenterArcFace

    _refuse_samples("subcenter_arcface", options, "a sample holds one centre of a class")
    return SubcenterArcFace(options, *arguments, **others)


def _refuse_samples(name: str, options: Any, reason: str) -> None:
    if options.sample_rate < 1:
        raise ConfigError(f"head {name}: sample_rate {options.sample_rate:g}: {reason}; give 1")
