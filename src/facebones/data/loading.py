"""From a training set to batches, in an order that is a pure function of seed and epoch.

Batches are numbered through the whole training, so that a resumed run takes up at any of them, also in mid-epoch.
"""

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from facebones.backbones.registry import IMAGE_SIZE
from facebones.data.folders import TrainingSet
from facebones.data.images import decode
from facebones.errors import DataError, RunError

Batch = tuple[Tensor, Tensor]


def training_batches(
    training_set: TrainingSet,
    *,
    batch_size: int,
    batches_per_epoch: int,
    first: int,
    last: int,
    seed: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the batches numbered `first` to `last` - 1.

    Args:
        training_set: encoded images and their labels.
        batch_size: B; what is left of an epoch after the last whole batch is not used in that epoch.
        batches_per_epoch: after so many, a new order begins.
        first: number of the first batch, counted from the start of the training.
        last: number of the batch before which to end.
        seed: decides the order of every epoch.
        workers: processes that read and decode; with 0 this process does.
        pin_memory: give page-locked memory, from which copies to a GPU are faster.

    Yields:
        images (B, 112, 112, 3) uint8 RGB, and labels (B,) int64.

    Raises:
        DataError: an image cannot be read.
    """
    order = EpochOrder(
        images=len(training_set),
        batch_size=batch_size,
        batches_per_epoch=batches_per_epoch,
        first=first,
        last=last,
        seed=seed,
    )
    loader = DataLoader(
        _DecodedImages(training_set),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        # A generator of its own: torch's global one belongs to the training, whose state is saved.
        generator=torch.Generator(),
        prefetch_factor=4 if workers else None,
    )
    try:
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError("a data worker was killed, perhaps for want of memory; resume with fewer --workers") from error


class EpochOrder(Sampler[list[int]]):
    """The indices of each batch; every epoch has its own order, drawn from seed and epoch alone."""

    def __init__(
        self, *, images: int, batch_size: int, batches_per_epoch: int, first: int, last: int, seed: int
    ) -> None:
        self.images, self.batch_size, self.batches_per_epoch = images, batch_size, batches_per_epoch
        self.first, self.last, self.seed = first, last, seed

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        order, order_epoch = np.empty(0, np.int64), -1
        for number in range(self.first, self.last):
            epoch, position = divmod(number, self.batches_per_epoch)
            if epoch != order_epoch:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
                order_epoch = epoch
            yield order[position * self.batch_size : (position + 1) * self.batch_size].tolist()


class _DecodedImages(Dataset[Batch | DataError]):
    """Decodes a batch at a time straight into one array.

    An error is handed over as a value: raised in a worker, torch would wrap it in that process's traceback.
    """

    def __init__(self, training_set: TrainingSet) -> None:
        self.training_set = training_set

    def __getitems__(self, indices: list[int]) -> Batch | DataError:
        try:
            return self._read(indices)
        except DataError as error:
            return error

    def _read(self, indices: list[int]) -> Batch:
        images = np.empty((len(indices), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        labels = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            encoded, labels[row] = self.training_set.read(index)
            images[row] = decode(encoded, self.training_set.describe(index), IMAGE_SIZE)
        return torch.from_numpy(images), torch.from_numpy(labels)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    # A terminal or a scheduler signals the whole group: the training process alone decides when to stop. Should it
    # die, torch's watchdog ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
