"""The embedding pass that all protocols share: images and their mirror images through one or several models.

Features on disk, which may exceed memory and survive a stop: written batch by batch, resumed later.

`NAME.features.npy` has its full size from the start, so that a full disk fails in the first minute. Beside it,
`NAME.features.json` records what the features belong to, and how many images are complete. That number is written after
the rows are synced, so it holds whenever the process or the machine dies.

Files of other weights, images or settings are refused, not replaced: they may have taken hours, and the difference may
be a typing error.
"""

import fcntl
import io
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from facebones.backbones.base import IMAGE_SIZE, evaluation_mode
from facebones.data.image_sources import EncodedImages, ImageSource, read_batches
from facebones.errors import ConfigError, DataError
from facebones.evaluation.models import Batch, Features, Model, Precision
from facebones.system.files import cannot_write, check_writable, map_array, write_json

SYNC_SECONDS = 10.0  # of work that a stop can cost
LARGEST_RECORD = 2**16


class FeatureFile:
    """Features on disk, written by one process at a time; matching features that exist are resumed.

    Args:
        folder: where the two files are.
        name: beginning of their names.
        images: N.
        batch_size: images per call of `append`; the last call has the rest.
        settings: what else decides the features, as plain values.

    Attributes:
        path: the `.npy` file.
        complete: number of images with features.

    Raises:
        ConfigError: the files are broken or of something else, another process writes them, or the folder cannot be
            written.
        RunError: the disk is full.
    """

    def __init__(self, folder: Path, name: str, images: int, batch_size: int, settings: Mapping[str, Any]) -> None:
        if not name or Path(name).name != name:
            raise ConfigError(f"'{name}' cannot begin the name of a file in {folder}; rename the model")
        self.path = folder / f"{name}.features.npy"
        self.complete = 0
        self._record_path = self.path.with_suffix(".json")
        self._record: dict[str, Any] = {"images": images, "batch_size": batch_size, **settings}
        self._shape = (images, 0, 0)  # (N, V, D), known after the first batch
        self._offset = 0  # of the first row, in bytes
        self._file: int | None = None
        self._synced, self._synced_at = 0, time.monotonic()

    def __enter__(self) -> Self:
        if self._record_path.exists():
            self._resume()
        elif self.path.exists() and self.path.stat().st_size:
            self._refuse(f"{self._record_path.name}, which says what it holds, is missing")
        else:
            check_writable(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            try:
                self._sync()
            finally:
                os.close(self._file)

    def append(self, answers: Features) -> None:
        """Write the features (B, V, D) of the next B images; errors as for the class."""
        if not self.complete:
            self._begin((self._shape[0], *answers.shape[1:]))
        if answers.shape[1:] != self._shape[1:]:
            self._refuse(f"holds features of shape {self._shape[1:]}, not {answers.shape[1:]}")
        self._write(self._offset + self.complete * answers[0].nbytes, answers.tobytes())
        self.complete += len(answers)
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self._sync()

    def features(self) -> Features:
        """Return all features, (N, V, D), as a read-only memory map."""
        features: Features = self._load()
        return features

    def _resume(self) -> None:
        record = self._read_record()
        if other := [key for key, value in self._record.items() if key not in record or record[key] != value]:
            self._refuse(f"holds features of other {', '.join(other)}")
        complete, images, batch_size = record.get("complete"), self._shape[0], self._record["batch_size"]
        if type(complete) is not int or not 0 <= complete <= images or (complete % batch_size and complete != images):
            self._refuse(f"{self._record_path.name} promises {complete!r:.40} complete images of {images}")
        if not complete:
            return
        features = self._load()
        if record.get("shape") != list(features.shape[1:]):
            self._refuse(f"has shape {features.shape}, but {self._record_path.name} says another")
        self._shape, self._offset = features.shape, features.offset
        self.complete = self._synced = complete
        if complete < images:  # a complete file is only read, and may be read-only
            self._open()

    def _begin(self, shape: tuple[int, int, int]) -> None:
        """Create the file in its full size. The record is written first, so that the file is never without one."""
        self._open()
        write_json(self._record_path, self._record | {"complete": 0})
        header = io.BytesIO()
        kind = np.lib.format.dtype_to_descr(np.dtype(np.float32))
        np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
        self._shape, self._offset = shape, header.tell()
        self._reserve(self._offset + 4 * math.prod(shape))
        self._write(0, header.getvalue())

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise ConfigError(f"{self.path}: another process is writing it; wait, or choose another folder") from error
        except OSError:  # a file system without locks
            pass
        self._file = file

    def _reserve(self, size: int) -> None:
        file = self._opened()
        try:
            os.ftruncate(file, 0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, size)
            else:
                os.ftruncate(file, size)
        except OSError as error:
            os.ftruncate(file, 0)  # release the space that was reserved
            raise cannot_write(self.path, error) from error

    def _write(self, offset: int, content: bytes) -> None:
        # Not through the memory map: there, a full disk kills the process by a signal.
        left = memoryview(content)
        try:
            while left:
                written = os.pwrite(self._opened(), left, offset)
                left, offset = left[written:], offset + written
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _sync(self) -> None:
        if self.complete > self._synced:
            try:
                os.fsync(self._opened())
            except OSError as error:
                raise cannot_write(self.path, error) from error
            write_json(self._record_path, self._record | {"complete": self.complete, "shape": list(self._shape[1:])})
            self._synced, self._synced_at = self.complete, time.monotonic()

    def _opened(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path}: is not open; use it within its `with` block")
        return self._file

    def _read_record(self) -> dict[str, Any]:
        try:
            with self._record_path.open("rb") as file:
                content = json.loads(file.read(LARGEST_RECORD))
        except OSError as error:
            self._refuse(f"{self._record_path.name} cannot be read: {error.strerror}")
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            self._refuse(f"{self._record_path.name} is not a record of features")
        return content

    def _load(self) -> Any:
        try:
            features = map_array(self.path)
        except (OSError, ValueError) as error:
            self._refuse(f"cannot be read ({error!s:.80})".replace("\n", " "))
        fits = isinstance(features, np.memmap) and features.dtype == np.float32 and features.flags.c_contiguous
        if not fits or features.ndim != 3 or len(features) != self._shape[0]:
            self._refuse(f"does not hold the features of {self._shape[0]} images")
        return features

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self.path}: {reason}; remove it with its .json, or choose another folder")


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
    progress: bool = False,
) -> dict[str, Features]:
    """Embed images and their mirror images with several models; each image is decoded and aligned once.

    The networks compute in eval mode; every module is then put back into the mode it was in. torch's random state is
    unchanged, so a validation during training does not change the training.

    With a folder, a stopped pass (even by SIGKILL) resumes where it was, repeats at most 10 s of work, and gives the
    same features; finished models are only read.

    Args:
        models: by name; with a folder, the names begin file names and each model needs a `weights_sha256`.
        source: N images.
        batch_size: images per forward pass; the last batch holds the rest.
        workers: threads that read images; None uses all cores.
        image_size: height and width of the networks' input, pixels.
        flip: embed the mirror images too.
        folder: where to write the features, as `NAME.features.npy`; None keeps them in memory.
        progress: show the progress on stderr.

    Returns:
        for each model (N, 2, D) float32: [:, 0] the embeddings of the images, [:, 1] those of their mirror images;
        (N, 1, D) without `flip`. With a folder, they are read-only memory maps.

    Raises:
        DataError: there are no images, or one cannot be read; the message names it.
        ConfigError: the folder holds features with these names of other images, weights or settings.
        RunError: the disk is full.
        ValueError: `batch_size` or `workers` is below 1, or a model has no `weights_sha256`.
    """
    workers = workers if workers is not None else os.cpu_count() or 1
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size {batch_size}, workers {workers}: give at least 1")
    if not len(source):
        raise DataError(f"{source.name}: no images to embed; check the file that the set was read from")
    stores = _stores(models, source, batch_size, {"image_size": image_size, "flip": flip}, folder)
    with ExitStack() as stack:
        for name, model in models.items():
            stack.enter_context(stores[name])
            stack.enter_context(evaluation_mode(model.network))
        first = min((store.complete for store in stores.values()), default=len(source))
        batches = stack.enter_context(closing(read_batches(source, first, batch_size, image_size, workers)))
        shown = _with_progress(batches, source, first, batch_size) if progress else batches
        for start, batch in zip(range(first, len(source), batch_size), shown, strict=True):
            for name, model in models.items():
                if stores[name].complete == start:  # else an earlier pass got further with this model
                    stores[name].append(model(batch, flip))
    return {name: store.features() for name, store in stores.items()}


def _with_progress(batches: Iterable[Batch], source: ImageSource, first: int, batch_size: int) -> Iterable[Batch]:
    from facebones.system.progress import track

    what = f"embedding {source.name}{f', from image {first}' if first else ''}"
    return track(batches, what, len(source) - first, size=batch_size, unit="images")


class FeatureArray:
    """Features in memory.

    Args:
        images: N.

    Attributes:
        complete: number of images with features.
    """

    def __init__(self, images: int) -> None:
        self.complete = 0
        self._images = images
        # One array from the start: small results between large inputs would fragment the heap (1 GB for LFW).
        self._features = np.empty((images, 0, 0), dtype=np.float32)  # (N, V, D), known after the first batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def append(self, answers: Features) -> None:
        """Store the features (B, V, D) of the next B images."""
        if not self._features.size:
            self._features = np.empty((self._images, *answers.shape[1:]), dtype=np.float32)
        self._features[self.complete : self.complete + len(answers)] = answers
        self.complete += len(answers)

    def features(self) -> Features:
        """Return all features, (N, V, D)."""
        return self._features


def _stores(
    models: Mapping[str, Model],
    source: ImageSource,
    batch_size: int,
    options: dict[str, object],
    folder: Path | None,
) -> "dict[str, FeatureArray] | dict[str, FeatureFile]":
    if folder is None:
        return {name: FeatureArray(len(source)) for name in models}
    from facebones.evaluation.embed import FeatureFile

    if unknown := [name for name, model in models.items() if not model.weights_sha256]:
        raise ValueError(f"model {unknown[0]} has no weights_sha256; features on disk need one")
    # The batch size is among the settings: it can change the last digit of an embedding.
    options = {"source": source.fingerprint(), **options}
    return {
        name: FeatureFile(folder, name, len(source), batch_size, options | model.settings())
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
    )
    return ImageEmbeddings.of(name, features[""])


def flip_sum_normalised(embeddings: ImageEmbeddings) -> npt.NDArray[np.float64]:
    """Add the embedding of each image to that of its mirror image, if there is one, and scale the sum to length 1.

    Returns:
        (N, D) float64; sum and norm are computed in double precision, as in the published evaluation.

    Raises:
        DataError: a sum is zero or not finite; the message names the first such image.
    """
    total = embeddings.plain.astype(np.float64)
    if embeddings.mirrored is not None:
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
