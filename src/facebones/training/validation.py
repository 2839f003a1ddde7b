"""The validation sets of a run: found and checked before the first step, measured during training.

Validation computes in the precision of the training, which is faster; `facebones evaluate pairs` computes in fp32, so
its metrics differ slightly after a training in bf16 or fp16.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from facebones.backbones import Backbone
from facebones.backbones.base import IMAGE_SIZE
from facebones.data.folders import find_pair_set
from facebones.data.image_sources import EncodedImages, distinct
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.errors import ConfigError, DataError, some
from facebones.evaluation.embed import ImageEmbeddings, embed_images
from facebones.evaluation.verification import check_pair_set, pair_set_notes, verify_embeddings
from facebones.recipe import Recipe
from facebones.system.distributed import ALONE, World, part_of
from facebones.system.process_group import own_cores
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
            pair_set.name: {"pairs": len(pair_set), "sha256": pair_set.digest()} for pair_set in self.sets
        }

    def try_out(self, backbone: Backbone, device: torch.device, world: World = ALONE) -> None:
        """Decode every image once and embed two batches: bad data fails in the first minute, not in the sixth hour.

        Notes about the sets are said here, once. Several processes divide the images.

        Raises:
            DataError: an image cannot be read, or the sets of two processes differ; in every process.
        """
        _check_alike(self.fingerprint, world)
        for pair_set in self.sets:
            for note in pair_set_notes(pair_set):
                say(f"note: {note}")
            _decode_all(pair_set, world)
            self._embed(pair_set, backbone, device, world, limit_batches=TRIED_BATCHES)

    def measure(self, backbone: Backbone, device: torch.device, world: World = ALONE) -> list[dict[str, Any]]:
        """The name and the `VALIDATION_METRICS` of each set, the same in every process that shares the work.

        The processes must hold the same weights, batch normalisation included; they embed the batches of one process.

        If an embedding has no direction, as after an overflow in fp16, the metrics of its set are NaN, with a note. The
        training continues: its own gradients may be finite.
        """
        rows = [self._measure(pair_set, backbone, device, world) for pair_set in self.sets]
        return list(world.gather_objects(rows)[0])

    def _measure(self, pair_set: PairSet, backbone: Backbone, device: torch.device, world: World) -> dict[str, Any]:
        try:
            embeddings = self._embed(pair_set, backbone, device, world)
            if not world.is_first:
                return {}
            result = verify_embeddings(embeddings, pair_set).to_json()
        except DataError as error:  # the weights: images and labels were checked before the first step
            say(f"note: {error}; no metrics of this set at this step")
            result = dict.fromkeys(VALIDATION_METRICS, math.nan)
        names = [*VALIDATION_METRICS, *([SHUFFLED] if result.get(SHUFFLED) is not None else [])]
        return {"set": pair_set.name, **{name: result[name] for name in names}}

    def _embed(
        self,
        pair_set: PairSet,
        backbone: Backbone,
        device: torch.device,
        world: World,
        limit_batches: int | None = None,
    ) -> ImageEmbeddings:
        return embed_images(
            backbone,
            pair_set.images,
            name=pair_set.name,
            device=device,
            limit_batches=limit_batches,
            world=world,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        training = self._recipe.training
        return {
            "batch_size": self._recipe.validation.batch_size,
            "precision": training.precision,
            "channels_last": training.channels_last,
        }


def _check_alike(fingerprint: Mapping[str, Any], world: World) -> None:
    """Refuse other sets than those of process 0: the error is the same in every process."""
    everyones = world.gather_objects(fingerprint)
    for rank, other in enumerate(everyones):
        if names := [name for name in everyones[0] if other.get(name) != everyones[0][name]]:
            raise DataError(
                f"validation.sets: {some(names)} of process {rank} differs from that of process 0; give all machines"
                " the same files"
            )


def _decode_all(pair_set: PairSet, world: World) -> None:
    images = distinct(EncodedImages(pair_set.name, pair_set.images))
    with world.apart() as stop_if_another_failed, ThreadPoolExecutor(own_cores()) as pool:

        def check(index: int) -> None:
            stop_if_another_failed()
            images.read(index, IMAGE_SIZE)

        list(pool.map(check, part_of(len(images), world.rank, world.size)))


def mean_accuracy(rows: Sequence[dict[str, Any]]) -> float:
    """Mean over the sets, which selects the best checkpoint; NaN if a set has no metrics.

    A set with folds of one kind of pair counts by its accuracy over shuffled folds.
    """
    return math.fsum(row.get(SHUFFLED, row["accuracy"]) for row in rows) / len(rows)
