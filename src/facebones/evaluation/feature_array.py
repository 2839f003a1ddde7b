"""Features in memory; each process of a group has those of its part, and process 0 gets them all."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from facebones.evaluation.models import Features
from facebones.system.distributed import ALONE, World, part_of
from facebones.system.process_group import gather_objects

PIECE_BYTES = 2**23  # of the rows that are sent at a time


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
        return self._features if self._world.size == 1 else rows_in_first(self._world, self._features)


def rows_in_first(own: World, rows: Any) -> Any:
    """Bring the rows of all processes together in process 0, in order; the others get their own back.

    The rows travel in pieces, straight into their place: process 0 holds nothing twice.

    Args:
        own: the group.
        rows: (n, ...) array of this process; of one type, and of one shape but for n, which may be 0.
    """
    shapes = gather_objects(own, rows.shape)
    if not own.is_first:
        _in_pieces(own, torch.from_numpy(np.ascontiguousarray(rows)), 0, sends=True)
        return rows
    shape = next(shape for shape in shapes if shape[0])
    everything = np.empty((sum(shape[0] for shape in shapes), *shape[1:]), dtype=rows.dtype)
    everything[: len(rows)] = rows
    start = len(rows)
    for rank, (count, *_) in enumerate(shapes[1:], 1):
        _in_pieces(own, torch.from_numpy(everything[start : start + count]), rank, sends=False)
        start += count
    return everything


def _in_pieces(own: World, rows: Tensor, rank: int, *, sends: bool) -> None:
    """Send rows to another process, or receive them from it, a bounded number of bytes at a time."""
    flat = rows.flatten()
    each = PIECE_BYTES // flat.element_size()
    move = torch.distributed.send if sends else torch.distributed.recv
    for start in range(0, len(flat), each):
        with own.guard("the gathering of features") if own.guard is not None else nullcontext():
            move(flat[start : start + each], rank)
