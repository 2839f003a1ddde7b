"""Encoded images through a backbone: the embedding of each image and of its mirror image."""

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from facebones.backbones.registry import evaluation_mode
from facebones.data.images import decode
from facebones.data.normalize import to_network_input
from facebones.errors import DataError
from facebones.progress import track

Precision = Literal["fp32", "bf16", "fp16"]
Batch = npt.NDArray[np.uint8]

AUTOCAST_TYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_DECODERS = 4


@dataclass(frozen=True, eq=False)
class ImageEmbeddings:
    """What a backbone answers, neither summed nor normalised.

    Attributes:
        name: the images' name in errors.
        plain: (N, D) float32, embeddings of the images.
        mirrored: (N, D) float32, embeddings of the images flipped left to right.
    """

    name: str
    plain: npt.NDArray[np.float32]
    mirrored: npt.NDArray[np.float32]


def embed_images(
    backbone: nn.Module,
    images: Sequence[bytes],
    *,
    name: str,
    device: torch.device,
    batch_size: int,
    image_size: int = 112,
    precision: Precision = "fp32",
    channels_last: bool = False,
    limit_batches: int | None = None,
    progress: bool = False,
) -> ImageEmbeddings:
    """Embed encoded images and their mirror images.

    The backbone works in eval mode and is given back with every module in the mode it was in. torch's random state
    is not touched, so that a validation in mid-training changes nothing of the training.

    Args:
        backbone: network on `device`; (B, 3, image_size, image_size) float32 in [-1, 1] -> (B, D).
        images: N encoded images; those of another size are resized.
        name: what to call the images in errors and in the progress display.
        device: where the backbone is.
        batch_size: images at a time; the last batch holds the rest.
        image_size: height and width of the network's input, pixels.
        precision: fp32, or the type of torch's autocast.
        channels_last: feed the network in the channels-last memory format.
        limit_batches: stop after so many batches, to try whether the set can be embedded at all.
        progress: show the progress on stderr.

    Raises:
        DataError: there are no images, or one cannot be read: then the message names the set and the image's index.
        ValueError: `batch_size` or `limit_batches` is below 1.
    """
    if batch_size < 1 or (limit_batches is not None and limit_batches < 1):
        raise ValueError(f"batch_size {batch_size}, limit_batches {limit_batches}: give at least 1")
    if not images:
        raise DataError(f"{name}: no images to embed; check the file that the set was read from")
    starts = range(0, len(images), batch_size)[:limit_batches]
    count = min(len(images), len(starts) * batch_size)
    batches = _decoded_batches(images, starts, batch_size, image_size, name)
    autocast = torch.autocast(device.type, AUTOCAST_TYPE[precision], enabled=precision != "fp32")
    # One array from the start: small results kept between the large inputs would tear the heap (1 GB for LFW).
    answers = np.empty((2, count, 0), dtype=np.float32)  # D is known after the first batch
    with closing(batches), torch.inference_mode(), evaluation_mode(backbone), autocast:
        shown = track(batches, f"embedding {name} (batches)", len(starts)) if progress else batches
        for start, batch in zip(starts, shown, strict=True):
            x = to_network_input(torch.from_numpy(batch).to(device), channels_last)  # (B, 3, H, W)
            for side, view in enumerate((x, x.flip(3))):
                embeddings = backbone(view).float().cpu().numpy()  # (B, D)
                if not answers.size:
                    answers = np.empty((2, count, embeddings.shape[1]), dtype=np.float32)
                answers[side, start : start + len(batch)] = embeddings
    return ImageEmbeddings(name, plain=answers[0], mirrored=answers[1])


def flip_sum_normalised(embeddings: ImageEmbeddings) -> npt.NDArray[np.float64]:
    """Add the embedding of each image to that of its mirror image and scale the sum to length 1.

    Returns:
        (N, D) float64; sum and norm are taken in double precision, as the published evaluation does.

    Raises:
        DataError: a sum is zero or not finite, so it has no direction; the first such image is named.
    """
    total = embeddings.plain.astype(np.float64) + embeddings.mirrored
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
    """XNorm: the mean length of the embeddings before summing and normalising, over images and mirror images."""
    both = (embeddings.plain, embeddings.mirrored)
    return float(np.mean([np.linalg.norm(part.astype(np.float64), axis=1) for part in both]))


def _decoded_batches(
    images: Sequence[bytes], starts: range, batch_size: int, image_size: int, name: str
) -> Generator[Batch]:
    """Yield (B, H, W, 3) batches in order, decoded in threads a few batches ahead of the network."""

    def decode_batch(start: int) -> Batch:
        indices = range(start, min(start + batch_size, len(images)))
        return np.stack([decode(images[index], f"{name}: image {index}", image_size) for index in indices])

    workers = min(MOST_DECODERS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Batch]] = deque()
    try:
        for start in starts:
            waiting.append(pool.submit(decode_batch, start))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
