"""One set with pairs, embedded by several models, with a threshold for each: how groups and quality are measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facebones.errors import ConfigError, DataError
from facebones.evaluation.calibrate import check_rate
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Features, Model, open_models
from facebones.evaluation.protocol import Protocol, protocols_with_pairs
from facebones.evaluation.runtimes import with_runtime
from facebones.statistics.calibration import ScoredPairs
from facebones.statistics.resampling import TOLERANCE
from facebones.system.number_format import small_rate


@dataclass(frozen=True)
class ThresholdRule:
    """The cosine from which the pairs of a set are accepted, as it was asked for.

    Attributes:
        threshold: this one.
        false_match_rate: instead, the one with this FMR on all pairs of the set.

    Without both, it is the one that `calibrate` has kept beside the weights.

    Raises:
        ConfigError: both are given, or the rate is none, or the threshold no cosine.
    """

    threshold: float | None
    false_match_rate: float | None

    def __post_init__(self) -> None:
        if self.threshold is not None and self.false_match_rate is not None:
            raise ConfigError("a threshold and a false match rate: give one of them")
        if self.false_match_rate is not None:
            check_rate(self.false_match_rate)
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold:g}: is no cosine, which lies between -1 and 1")

    def check(self, protocol: Protocol) -> None:
        """Refuse a rate that the pairs of a set are too few for, before any image is embedded.

        Raises:
            DataError: the rate is below 1 / impostor pairs.
        """
        if self.false_match_rate is not None:
            made_up_NxVxD = np.random.default_rng(0).standard_normal((len(protocol.images()), 2, 2), dtype=np.float32)
            # Which pairs there are needs no model.
            threshold_at(protocol.scored_pairs(made_up_NxVxD), self.false_match_rate)

    def of_model(self, name: str, model: Model, flip: bool) -> float | None:
        """The threshold of a model before its pairs are scored; None where they decide it.

        Raises:
            ConfigError: none was asked for, and not exactly one is kept beside the weights.
        """
        if self.threshold is not None or self.false_match_rate is not None:
            return self.threshold
        return _kept_threshold(name, model, flip)


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddedSet:
    """The embeddings of a set by several models.

    Attributes:
        protocol: the set.
        models: by name, as they were computed.
        flip: whether image and mirror image are added.
        rule: of the thresholds.
        thresholds: of each model; None where its pairs decide.
        features: of each model; `scored` drops them one after the other.
    """

    protocol: Protocol
    models: Mapping[str, Model]
    flip: bool
    rule: ThresholdRule
    thresholds: Mapping[str, float | None]
    features: dict[str, Features]

    def scored(self) -> Iterator[tuple[str, Features, ScoredPairs, float]]:
        """Each model's name, embeddings, pairs and threshold."""
        for name in self.models:
            rows = self.features.pop(name)
            pairs, threshold = self.protocol.scored_pairs(rows), self.thresholds[name]
            rate = self.rule.false_match_rate
            yield name, rows, pairs, threshold_at(pairs, rate or 0.0) if threshold is None else threshold


def embed_set(
    models: Mapping[str, Model | Path | str] | Model | Path | str,
    protocol: Protocol,
    rule: ThresholdRule,
    *,
    flip: bool,
    batch_size: int,
    workers: int | None,
    runtime: str | None,
    progress: bool,
    **opening: Any,
) -> EmbeddedSet:
    """Open the models, find their thresholds, and embed a set by all of them.

    Args:
        models: a model or several by name, or what `load_model` opens.
        protocol: the set.
        rule: of the thresholds.
        flip: whether image and mirror image are added; always where the set needs it.
        batch_size: images per forward pass.
        workers: threads that read images; None uses all cores.
        runtime: name of `evaluation.runtimes`; None runs PyTorch, and ONNX files by ONNX Runtime.
        progress: show the progress on stderr.
        opening: further options of `open_models`.

    Raises:
        FaceBonesError: a model or the set cannot be used, or a model has no threshold.
    """
    opened = open_models(models if isinstance(models, Mapping) else {"model": models}, **opening)
    flip, images = flip or protocol.needs_flip, protocol.images()
    if runtime is not None:
        opened = with_runtime(opened, runtime, [images], batch_size=batch_size, flip=flip)
    thresholds = {name: rule.of_model(name, model, flip) for name, model in opened.items()}
    features = embed(opened, images, flip=flip, batch_size=batch_size, workers=workers, progress=progress)
    return EmbeddedSet(protocol=protocol, models=opened, flip=flip, rule=rule, thresholds=thresholds, features=features)


def one_set_with_pairs(data: Protocol | Path | str) -> Protocol:
    """The only set with pairs.

    Raises:
        FaceBonesError: there is none, or several.
    """
    found = protocols_with_pairs(data)
    if len(found) != 1:
        raise ConfigError(
            f"{data}: {len(found)} sets with pairs; name one, since files of groups and of scores belong to a set"
        )
    return found[0]


def threshold_at(pairs: ScoredPairs, false_match_rate: float) -> float:
    """The lowest threshold that accepts no more than this share of the impostor pairs.

    Raises:
        DataError: the rate is below 1 / impostor pairs.

    >>> pairs = ScoredPairs(np.array([0.9, 0.5, 0.4, 0.3, 0.2]), np.array([True, False, False, False, False]))
    >>> 0.4 < threshold_at(pairs, 0.25) <= 0.5
    True
    """
    impostors = np.sort(pairs.score[~pairs.is_same])[::-1]
    accepted = int(false_match_rate * impostors.size * (1 + TOLERANCE))
    if not accepted:
        raise DataError(
            f"a false match rate of {small_rate(false_match_rate)} is below 1 / {impostors.size:,} impostor pairs; give"
            " a higher --fmr, or --threshold"
        )
    if accepted >= impostors.size:
        return float(impostors[-1])
    return float(np.nextafter(impostors[accepted], np.inf))


def _kept_threshold(name: str, model: Model, flip: bool) -> float:
    """The threshold that `calibrate` has kept beside the weights."""
    calibration = model.calibration
    if calibration is None:
        raise ConfigError(f"{name}: no threshold; give --threshold or --fmr, or run `facebones calibrate` first")
    kept = [float(one["threshold"]) for one in calibration["thresholds"]]
    if len(kept) != 1:
        shown = ", ".join(
            f"{one['threshold']:.4f} (FMR {small_rate(one['false_match_rate'])})" for one in calibration["thresholds"]
        )
        raise ConfigError(f"{name}: {len(kept)} calibrated thresholds, {shown}; give one of them by --threshold")
    if calibration["flip"] != flip:
        made = "with" if calibration["flip"] else "without"
        raise ConfigError(
            f"{name}: its threshold was made {made} mirror images; evaluate likewise, or give --threshold"
        )
    return kept[0]
