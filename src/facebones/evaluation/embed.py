"""The embedding pass that all protocols share: images and their mirror images through one or several models."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from facebones.backbones.base import IMAGE_SIZE, evaluation_mode
from facebones.data.image_sources import DistinctImages, EncodedImages, ImageSource, distinct, read_batches
from facebones.errors import CheckpointError, DataError, first_line
from facebones.evaluation.models import Batch, Features, Model, Precision, states_input
from facebones.system.distributed import ALONE, World, part_of

if TYPE_CHECKING:
    from facebones.evaluation.feature_store import FeatureFile


# Images whose pixels differ by more than this on average, at least so many, whose embeddings have nearly one direction.
LEAST_DIFFERENCE, FEWEST_DIFFERENT, SAME_DIRECTION = 5, 3, 0.9999


@dataclass(frozen=True, eq=False)
class ImageEmbeddings:
    """Embeddings of images and of their mirror images, neither summed nor normalised.

    Attributes:
        name: of the images, for errors.
        plain: (N, D) float32, embeddings of the images.
        mirrored: (N, D) float32, embeddings of the images flipped left to right, or None.
    """

    name: str
    plain: Features
    mirrored: Features | None

    @classmethod
    def of(cls, name: str, features_NxVxD: Features) -> "ImageEmbeddings":
        """Split the result of `embed`, (N, 2, D) or (N, 1, D), without a copy."""
        plain, *mirrored = (features_NxVxD[:, view] for view in range(features_NxVxD.shape[1]))
        return cls(name, plain, mirrored[0] if mirrored else None)


def embed(
    models: Mapping[str, Model],
    source: ImageSource,
    *,
    batch_size: int,
    workers: int | None = None,
    image_size: int = IMAGE_SIZE,
    flip: bool = True,
    folder: Path | None = None,
    half: bool = False,
    progress: bool = False,
    world: World = ALONE,
) -> dict[str, Features]:
    """Embed images and their mirror images with several models; each image is decoded and aligned once.

    Encoded images that are equal byte for byte are embedded once (see `image_sources.distinct`).

    The networks compute in eval mode; every module is then put back into the mode it was in. torch's random state is
    unchanged, so a validation during training does not change the training.

    With a folder, a stopped pass (even by SIGKILL) resumes where it was, repeats at most 10 s of work, and gives the
    same features; finished models are only read. Its files have one row for each place, and images that are named
    several times are embedded as often.

    Several processes share the batches of one process, so that the features are the same bits; all of them call this
    function with the same arguments. If one of them fails, all of them raise its error. With a folder, a stopped pass
    resumes on any number of processes.

    Args:
        models: by name; with a folder, the names begin file names and each model needs a `weights_sha256`.
        source: N images.
        batch_size: images per forward pass; the last batch holds the rest.
        workers: threads that read images; None uses all cores, or the share of each process in them.
        image_size: height and width of the networks' input, pixels.
        flip: embed the mirror images too.
        folder: where to write the features, as `NAME.features.npy`; None keeps them in memory. Several processes need a
            file system that all of them see.
        half: store float16 in the folder.
        progress: show the progress on stderr.
        world: the processes that share the work; see `process_group.joined`.

    Returns:
        for each model (N, 2, D) float32: [:, 0] the embeddings of the images, [:, 1] those of their mirror images;
        (N, 1, D) without `flip`. With a folder, they are read-only memory maps. Of several processes, the first gets
        them; the others get an empty mapping.

    Raises:
        DataError: there are no images, or one cannot be read; the message names it.
        ConfigError: the folder holds features with these names of other images, weights or settings.
        RunError: the disk is full; another process is lost.
        ValueError: `batch_size` or `workers` is below 1, or a model has no `weights_sha256`.
    """
    workers = workers if workers is not None else _cores(world)
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size {batch_size}, workers {workers}: give at least 1")
    if not len(source):
        raise DataError(f"{source.name}: no images to embed; check the file that the set was read from")
    images = distinct(source, batch_size) if folder is None else source
    with world.agreed():
        options: dict[str, object] = {"image_size": image_size, "flip": flip} | ({"dtype": "float16"} if half else {})
        stores = _stores(models, images, batch_size, options, folder=folder, world=world)
    _fill(stores, models, images, batch_size, workers, image_size=image_size, flip=flip, progress=progress, world=world)
    features = {name: store.features() for name, store in stores.items()}
    if not world.is_first:
        return {}
    if isinstance(images, DistinctImages) and images is not source:
        return {name: images.at_places(rows) for name, rows in features.items()}
    return features


def _fill(
    stores: "Mapping[str, FeatureArray | FeatureFile]",
    models: Mapping[str, Model],
    source: ImageSource,
    batch_size: int,
    workers: int,
    *,
    image_size: int,
    flip: bool,
    progress: bool,
    world: World,
) -> None:
    """Embed what the stores of the models lack: this process its part of the batches."""
    with ExitStack() as stack:
        for name, model in models.items():
            stack.enter_context(evaluation_mode(model.network))
            stack.enter_context(stores[name])
            stores[name].begin(partial(_shape, name, model, image_size, flip))
        starts = range(0, len(source), batch_size)
        lacking = [start for start in starts if any(store.lacks(start) for store in stores.values())]
        own = [lacking[place] for place in part_of(len(lacking), world.rank, world.size)]
        stop_if_another_failed = stack.enter_context(world.apart())
        batches = stack.enter_context(closing(read_batches(source, own, batch_size, image_size, workers)))
        shown = _with_progress(batches, source, own, batch_size, world) if progress and own else batches
        for start, batch in zip(own, shown, strict=True):
            stop_if_another_failed()
            for name, model in models.items():
                if stores[name].lacks(start):  # else an earlier pass got further with this model
                    answers = _answers(name, model, batch, flip, world)
                    stores[name].write(start, answers)
                    if start == own[0] and _are_alike(answers[:, 0], batch) and not states_input(model):
                        _note_alike(name, model.path)
        for store in stores.values():
            store.sync()


def _cores(world: World) -> int:
    if world.size == 1:
        return os.cpu_count() or 1
    from facebones.system.process_group import own_cores

    return own_cores()


def _answers(name: str, model: Model, batch: Batch, flip: bool, world: World) -> Features:
    """Features of a batch; of several processes, torch's errors get a type that all of them can raise."""
    try:
        return model(batch, flip)
    except RuntimeError as error:
        if world.size == 1:
            raise
        raise CheckpointError(f"{name}: {first_line(error)}") from error


def _shape(name: str, model: Model, image_size: int, flip: bool) -> tuple[int, int]:
    """Number of views of an image, and embedding size."""
    _, views, size = _answers(name, model, np.zeros((1, image_size, image_size, 3), np.uint8), flip, ALONE).shape
    return views, size


def _are_alike(features_BxD: Features, images: Batch) -> bool:
    """Whether images that differ have nearly the same direction, all of them."""
    differs = np.abs(images.astype(np.int16) - images[0]).mean(axis=(1, 2, 3)) > LEAST_DIFFERENCE
    rows = features_BxD.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    if differs.sum() < FEWEST_DIFFERENT or not np.isfinite(norms).all() or not norms.all():
        return False
    rows /= norms[:, None]
    return bool((rows[differs] @ rows[0]).min() > SAME_DIRECTION)


@cache  # a model is embedded on several sets
def _note_alike(name: str, path: Path | None) -> None:
    from facebones.system.progress import say

    say(
        f"note: {name} gives nearly the same embedding for different images; is the input right (--mean, --scale,"
        " --colour)?"
    )


def _with_progress(
    batches: Iterable[Batch], source: ImageSource, own: Sequence[int], batch_size: int, world: World
) -> Iterable[Batch]:
    from facebones.system.progress import track

    first, total = own[0], min(len(own) * batch_size, len(source) - own[0])
    what = f"embedding {source.name}{f', from image {first}' if first else ''}"
    if isinstance(source, DistinctImages) and len(source) < len(source.row):
        what += f" ({len(source.row)} images, equal ones once)"
    if world.size > 1:
        what += f", part of process 0 of {world.size}"
    return track(batches, what, total, size=batch_size, unit="images")


class FeatureArray:
    """Features in memory, in the order in which they are written.

    Args:
        images: N.
        batch_size: images per batch.
        world: the processes that share the pass; each writes its part of the batches, in their order.
    """

    def __init__(self, images: int, batch_size: int, world: World = ALONE) -> None:
        self._world = world
        batches = part_of(-(-images // batch_size), world.rank, world.size)
        self._images = min(images, batches.stop * batch_size) - min(images, batches.start * batch_size)
        self._written = 0
        # One array from the start: small results between large inputs would fragment the heap (1 GB for LFW).
        self._features = np.empty((0, 0, 0), dtype=np.float32)  # (n, V, D), known after the first batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, shape: Callable[[], tuple[int, int]]) -> None:
        """Nothing is to be prepared; see `FeatureFile`."""

    def lacks(self, start: int) -> bool:
        """Whether the batch of images from `start` on is to be embedded."""
        return True

    def write(self, start: int, answers: Features) -> None:
        """Store the features (B, V, D) of the next B images of this process."""
        if not self._features.size:
            self._features = np.empty((self._images, *answers.shape[1:]), dtype=np.float32)
        self._features[self._written : self._written + len(answers)] = answers
        self._written += len(answers)

    def sync(self) -> None:
        """Nothing is to be done; see `FeatureFile`."""

    def features(self) -> Features:
        """All features, (N, V, D), in process 0; a collective. The other processes get their own."""
        if self._world.size == 1:
            return self._features
        from facebones.evaluation.many_processes import rows_in_first

        features: Features = rows_in_first(self._world, self._features)
        return features


def _stores(
    models: Mapping[str, Model],
    source: ImageSource,
    batch_size: int,
    options: dict[str, object],
    *,
    folder: Path | None,
    world: World,
) -> "dict[str, FeatureArray] | dict[str, FeatureFile]":
    if folder is None:
        return {name: FeatureArray(len(source), batch_size, world) for name in models}
    from facebones.evaluation.feature_store import FeatureFile

    if unknown := [name for name, model in models.items() if not model.weights_sha256]:
        raise ValueError(f"model {unknown[0]} has no weights_sha256; features on disk need one")
    # The batch size is among the settings: it can change the last digit of an embedding.
    options = {"source": source.fingerprint(), **options}
    return {
        name: FeatureFile(folder, name, len(source), batch_size, options | model.settings(), world=world)
        for name, model in models.items()
    }


def embed_images(
    backbone: nn.Module,
    images: Sequence[bytes],
    *,
    name: str,
    device: torch.device,
    batch_size: int,
    image_size: int = IMAGE_SIZE,
    precision: Precision = "fp32",
    channels_last: bool = False,
    limit_batches: int | None = None,
    flip: bool = True,
    progress: bool = False,
    world: World = ALONE,
) -> ImageEmbeddings:
    """Embed encoded images in memory with one backbone, as `embed` does.

    Args:
        backbone: network on `device`; (B, 3, image_size, image_size) float32 in [-1, 1] -> (B, D).
        images: N encoded images; those of another size are resized.
        name: of the images, for errors and the progress display.
        device: where the backbone is.
        batch_size: images at a time; the last batch holds the rest.
        image_size: height and width of the network's input, pixels.
        precision: fp32, or the type of torch's autocast.
        channels_last: feed the network in the channels-last memory format.
        limit_batches: stop after this number of batches, to test that the set can be embedded.
        flip: embed the mirror images too.
        progress: show the progress on stderr.
        world: the processes that share the work.

    Returns:
        the embeddings; in other processes than the first, those of no image.

    Raises:
        DataError: there are no images, or one cannot be read; the message names the set and the index of the image.
        ValueError: `batch_size` or `limit_batches` is below 1.
    """
    if limit_batches is not None:
        if limit_batches < 1:
            raise ValueError(f"limit_batches {limit_batches}: give at least 1")
        images = images[: limit_batches * batch_size]
    model = Model(network=backbone, device=device, precision=precision, channels_last=channels_last)
    features = embed(
        {"": model},
        EncodedImages(name, images),
        batch_size=batch_size,
        image_size=image_size,
        flip=flip,
        progress=progress,
        world=world,
    )
    return ImageEmbeddings.of(name, features.get("", np.empty((0, 1, 0), np.float32)))


def flip_sum_normalised(embeddings: ImageEmbeddings) -> npt.NDArray[np.float64]:
    """Add the embedding of each image to that of its mirror image, if there is one, and scale the sum to length 1.

    Returns:
        (N, D) float64; sum and norm are computed in double precision, as in the published evaluation.

    Raises:
        DataError: a sum is zero or not finite; the message names the first such image.
    """
    total = embeddings.plain.astype(np.float64)
    if embeddings.mirrored is not None:
        with np.errstate(invalid="ignore"):  # refused below
            total += embeddings.mirrored
    norm = np.linalg.norm(total, axis=1)
    usable = np.isfinite(norm) & (norm > 0)
    if not usable.all():
        index = int(np.argmin(usable))
        raise DataError(
            f"{embeddings.name}: image {index}: the embedding has norm {norm[index]}, so no direction; "
            "check the image, the weights and the precision"
        )
    return np.asarray(total / norm[:, None])


def mean_norm(embeddings: ImageEmbeddings) -> float:
    """XNorm: mean length of the embeddings of images and mirror images, before summing and normalising."""
    parts = [part for part in (embeddings.plain, embeddings.mirrored) if part is not None]
    return float(np.mean([np.linalg.norm(part.astype(np.float64), axis=1) for part in parts]))
