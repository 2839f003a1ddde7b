"""From a training set to batches, numbered through the whole training: a resumed run takes up at any of them."""

import gc
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.batch_memory import Batch, BatchMemory, FilledPlace, Images, Labels
from facebones.data.folders import TrainingSet
from facebones.data.images import decode
from facebones.data.order import EpochOrder
from facebones.errors import DataError, RunError
from facebones.system.malloc import give_back_freed_memory

IMAGE_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
PREFETCH = 4  # batches that each worker is ahead
SPARE = 3  # batches beside those and what the training uses at a time
CAN_INHERIT = sys.platform == "linux"  # elsewhere a process with threads, as any with torch, is not to be forked


def training_batches(
    order: EpochOrder,
    *,
    workers: int,
    held: int = 1,
    pin_memory: bool = False,
    replaced: Callable[[Mapping[int, str]], object] | None = None,
) -> Iterator[Batch]:
    """Yield the batches of an order.

    Args:
        order: of which images of which training set, batch by batch.
        workers: processes that read and decode; with 0 this process does.
        held: batches that are used at a time.
        pin_memory: give page-locked memory, from which copies to a GPU are faster.
        replaced: is told, before a batch comes, of images that cannot be read and why, by index; the next image that
            can be read stands in their place. Without it, the first of them is an error.

    Yields:
        images (B, 112, 112, 3) uint8 RGB, and labels (B,) int64.

    Raises:
        DataError: an image cannot be read.
    """
    memory = None
    if workers and CAN_INHERIT:
        memory = BatchMemory(PREFETCH * workers + SPARE + held, (order.batch_size, *IMAGE_SHAPE))
    try:
        # Without a name: an error that someone keeps would keep it, and so the workers, from ending.
        for loaded in _loaded(order, memory, workers, pin_memory, replaced is not None):
            if isinstance(loaded, DataError):
                raise loaded
            if isinstance(loaded, _WithReplaced):
                assert replaced is not None  # noqa: S101 (only then are images replaced)
                replaced(loaded.unreadable)
                yield cast(Batch, loaded.batch)
            else:
                yield loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError("a data worker was killed, perhaps for want of memory; resume with fewer --workers") from error


def _loaded(
    order: EpochOrder, memory: BatchMemory | None, workers: int, pin_memory: bool, replace: bool
) -> Iterator[Any]:
    """What the workers make of an order: batches and errors."""
    with warnings.catch_warnings():
        # More workers than cores do no harm: most of the time they wait for the training.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = DataLoader(
            _DecodedImages(order.training_set, memory, replace),
            sampler=_Requests(order, memory),
            batch_size=None,  # a request is for a whole batch
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
            # A generator of its own: torch's global one belongs to the training, whose state is saved.
            generator=torch.Generator(),
            prefetch_factor=PREFETCH if workers else None,
            multiprocessing_context="fork" if workers and CAN_INHERIT else None,
        )
        return iter(loader)


class _Request(NamedTuple):
    """What a worker is to do: the images of a batch, and where in the shared memory to put them."""

    indices: list[int]
    place: int | None


class _Requests(Sampler[_Request]):
    """The batches of an order, with a place for each as long as there are free ones."""

    def __init__(self, order: EpochOrder, memory: BatchMemory | None) -> None:
        self.order, self.memory = order, memory

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[_Request]:
        for indices in self.order:
            yield _Request(indices, self.memory.take() if self.memory else None)


class _WithReplaced(NamedTuple):
    """A batch in which other images stand for some that cannot be read."""

    batch: Batch | FilledPlace
    unreadable: dict[int, str]


class _DecodedImages(Dataset[Batch | FilledPlace | _WithReplaced | DataError]):
    """Decodes a batch at a time straight into one array.

    An error is handed over as a value: raised in a worker, torch would wrap it in that process's traceback.
    """

    def __init__(self, training_set: TrainingSet, memory: BatchMemory | None, replace: bool) -> None:
        self.training_set, self.memory, self.replace = training_set, memory, replace

    def __getitem__(self, request: _Request) -> Batch | FilledPlace | _WithReplaced | DataError:
        unreadable: dict[int, str] = {}
        try:
            batch = self._read(request, unreadable)
        except DataError as error:
            return error
        return _WithReplaced(batch, unreadable) if unreadable else batch

    def _read(self, request: _Request, unreadable: dict[int, str]) -> Batch | FilledPlace:
        indices, place = request
        if self.memory is None or place is None:
            images = np.empty((len(indices), *IMAGE_SHAPE), np.uint8)
            return torch.from_numpy(images), torch.from_numpy(self._decode(indices, images, unreadable))
        return self.memory.filled(place, self._decode(indices, self.memory.images(place, len(indices)), unreadable))

    def _decode(self, indices: list[int], images: Images, unreadable: dict[int, str]) -> Labels:
        """Decode images into an array (B, 112, 112, 3); returns their labels (B,), and notes what was replaced."""
        labels = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            try:
                labels[row] = self._decode_one(index, images[row])
            except DataError as error:
                if not self.replace:
                    raise
                unreadable[index] = str(error)
                labels[row] = self._decode_following(index, images[row])
        return labels

    def _decode_one(self, index: int, image: Images) -> int:
        encoded, label = self.training_set.read(index)
        image[:] = decode(encoded, partial(self.training_set.describe, index), IMAGE_SIZE)
        return label

    def _decode_following(self, index: int, image: Images) -> int:
        """Decode the next image that can be read: where those of a person stand together, one of the same person."""
        total = len(self.training_set)
        for other in range(index + 1, index + total):
            with suppress(DataError):
                return self._decode_one(other % total, image)
        raise DataError("no image of the training set can be read; restore it")


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    # A terminal or a scheduler signals the whole group: the training process alone decides when to stop. Should it
    # die, torch's watchdog ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What this process shares with that one stays shared: no collection of garbage walks through inherited objects.
    gc.freeze()
    give_back_freed_memory()
