"""The validation sets of a run: found and checked before the first step, measured during training.

Validation computes in the precision of the training, which is faster; `facebones evaluate pairs` computes in fp32, so
its metrics differ slightly after a training in bf16 or fp16.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from facebones.backbones import Backbone
from facebones.backbones.base import IMAGE_SIZE
from facebones.data.folders import find_pair_set
from facebones.data.image_sources import EncodedImages, distinct
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.errors import ConfigError, DataError
from facebones.evaluation.embed import embed_images
from facebones.evaluation.verification import check_pair_set, evaluate_pair_set, pair_set_notes
from facebones.recipe import Recipe
from facebones.system.progress import say
from facebones.training.logs import SHUFFLED

TRIED_BATCHES = 2
VALIDATION_METRICS = ("accuracy", "accuracy_std", "tar_at_far_1e3", "far_reached", "auc", "eer", "xnorm")


class Validation:
    """The pair sets of a recipe.

    Args:
        recipe: names the sets.
        data: the training data; sets given by name are beside it.

    Attributes:
        sets: in the order of the recipe.
        fingerprint: identifies the sets wherever they are: numbers of pairs, and digests of all images and labels.

    Raises:
        DataError: a set is missing, or one of its images cannot be read.
    """

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self._recipe = recipe
        beside = data if data.is_dir() else data.parent
        self.sets = [read_pairs(find_pair_set(name, beside)) for name in recipe.validation.sets]
        for pair_set in self.sets:
            check_pair_set(pair_set)
        names = [pair_set.name for pair_set in self.sets]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"validation.sets: two sets are called {', '.join(twice)}; rename a file")
        self.fingerprint = {
            pair_set.name: {"pairs": len(pair_set), "sha256": _digest(pair_set)} for pair_set in self.sets
        }

    def try_out(self, backbone: Backbone, device: torch.device) -> None:
        """Decode every image once and embed two batches: bad data fails in the first minute, not in the sixth hour.

        Notes about the sets are said here, once.
        """
        for pair_set in self.sets:
            for note in pair_set_notes(pair_set):
                say(f"note: {note}")
            _decode_all(pair_set)
            self._embed_some(pair_set, backbone, device)

    def measure(self, backbone: Backbone, device: torch.device) -> list[dict[str, Any]]:
        """The name and the `VALIDATION_METRICS` of each set.

        If an embedding has no direction, as after an overflow in fp16, the metrics of its set are NaN, with a note. The
        training continues: its own gradients may be finite.
        """
        return [self._measure(pair_set, backbone, device) for pair_set in self.sets]

    def _measure(self, pair_set: PairSet, backbone: Backbone, device: torch.device) -> dict[str, Any]:
        try:
            result = evaluate_pair_set(backbone, pair_set, device=device, **self._options()).to_json()
        except DataError as error:  # the weights: images and labels were checked before the first step
            say(f"note: {error}; no metrics of this set at this step")
            result = dict.fromkeys(VALIDATION_METRICS, math.nan)
        names = [*VALIDATION_METRICS, *([SHUFFLED] if result.get(SHUFFLED) is not None else [])]
        return {"set": pair_set.name, **{name: result[name] for name in names}}

    def _embed_some(self, pair_set: PairSet, backbone: Backbone, device: torch.device) -> None:
        embed_images(
            backbone,
            pair_set.images,
            name=pair_set.name,
            device=device,
            limit_batches=TRIED_BATCHES,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        training = self._recipe.training
        return {
            "batch_size": self._recipe.validation.batch_size,
            "precision": training.precision,
            "channels_last": training.channels_last,
        }


def _decode_all(pair_set: PairSet) -> None:
    images = distinct(EncodedImages(pair_set.name, pair_set.images))

    def check(index: int) -> None:
        images.read(index, IMAGE_SIZE)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(check, range(len(images))))


def _digest(pair_set: PairSet) -> str:
    digest = hashlib.sha256(pair_set.is_same.tobytes())
    for image in pair_set.images:
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()


def mean_accuracy(rows: Sequence[dict[str, Any]]) -> float:
    """Mean over the sets, which selects the best checkpoint; NaN if a set has no metrics.

    A set with folds of one kind of pair counts by its accuracy over shuffled folds.
    """
    return math.fsum(row.get(SHUFFLED, row["accuracy"]) for row in rows) / len(rows)
