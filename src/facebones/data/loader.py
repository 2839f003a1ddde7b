"""Batches for a training, numbered from its first step, so that a resumed run starts at any of them.

The order of the training images: a pure function of seed and epoch, so a training can resume at any batch.
"""

import gc
import math
import mmap
import os
import pickle
import signal
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.images import decode
from facebones.data.training_set import Integers, TrainingSet
from facebones.errors import DataError, RunError
from facebones.plugins import import_plugins, imported_plugins
from facebones.system.distributed import part_of

GROUP_BLOCKS = 64


def block_size(shuffle: str) -> int:
    """The N of `data.shuffle: block:N`; 0 for "full".

    >>> block_size("block:1024")
    1024
    """
    return int(shuffle.removeprefix("block:")) if shuffle != "full" else 0


def full_order(images: int, seed: int, epoch: int) -> Integers:
    """Indices of all images in a uniformly random order, (images,)."""
    return np.random.default_rng([seed, epoch]).permutation(images)


class BlockOrder:
    """Shuffled blocks of neighbouring images, with the images of each 64 blocks shuffled together.

    So only 64 blocks of a file need to be in memory at a time, and each is read in one piece. Every epoch cuts the
    blocks at other places, so two images do not share a block in every epoch.

    Attributes:
        blocks: (K, 2) first image and last + 1 of each block, in the order of use.
        ends: (K,) number of images up to the end of each block.
        order: (images,) all images, in the order of use.
    """

    def __init__(self, images: int, block: int, seed: int, epoch: int) -> None:
        random = np.random.default_rng([seed, epoch])
        inner = np.arange(random.integers(1, block, endpoint=True), images, block)
        edges = np.concatenate([[0], inner, [images]])
        self.blocks = random.permutation(np.column_stack([edges[:-1], edges[1:]]))
        lengths = self.blocks[:, 1] - self.blocks[:, 0]
        self.ends = lengths.cumsum()
        self.order = np.repeat(self.blocks[:, 0] - (self.ends - lengths), lengths)
        self.order += np.arange(images)
        start = 0
        for end in [*self.ends[GROUP_BLOCKS - 1 :: GROUP_BLOCKS].tolist(), images]:
            self.order[start:end] = random.permutation(self.order[start:end])
            start = end

    def used(self, position: int) -> int:
        """Number of blocks that are used up after `position` images."""
        return int(np.searchsorted(self.ends, position, side="right"))


class EpochOrder(Sampler[list[int]]):
    """The indices of each batch, or of one process's rows of it; an epoch's order depends on seed and epoch alone.

    Args:
        training_set: the images; it is told which ones are read soon.
        batch_size: B; the images after the last whole batch of an epoch are not used in that epoch.
        batches_per_epoch: a new order begins after this number of batches.
        first: number of the first batch, counted from the start of the training.
        last: number of the last batch + 1.
        seed: decides the order of every epoch.
        block: size of the blocks of neighbouring images, see `BlockOrder`; 0 shuffles all images.
        repeated: every epoch has the order of the first one, instead of its own.
        part: rank of this process, and the number of processes that share each batch.

    Attributes:
        rows: the rows of each batch that this process reads.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        *,
        batch_size: int,
        batches_per_epoch: int,
        first: int,
        last: int,
        seed: int,
        block: int = 0,
        repeated: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.training_set, self.batch_size, self.batches_per_epoch = training_set, batch_size, batches_per_epoch
        self.first, self.last, self.seed, self.block, self.repeated = first, last, seed, block, repeated
        self.rows = part_of(batch_size, *part)

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        number = self.first
        while number < self.last:
            epoch, position = divmod(number, self.batches_per_epoch)
            end = min(self.batches_per_epoch, position + self.last - number)
            yield from self._epoch(0 if self.repeated else epoch, position, end)
            number += end - position

    def _epoch(self, epoch: int, position: int, end: int) -> Iterator[list[int]]:
        """This process's rows of batches `position` to `end` - 1 of an epoch."""
        size = self.batch_size
        starts = range(position * size, end * size, size)
        if not self.block:
            order = full_order(len(self.training_set), self.seed, epoch)
            yield from (self._own(order, start) for start in starts)
            return
        blocks = BlockOrder(len(self.training_set), self.block, self.seed, epoch)
        read = self._read_of(blocks.order, starts)
        fetched = blocks.used(starts.start) // GROUP_BLOCKS * GROUP_BLOCKS
        for start in starts:
            # Fetch all of this group, and one block of the next group for each block that is used up.
            wanted = blocks.used(start) + GROUP_BLOCKS
            for first, last in blocks.blocks[fetched:wanted].tolist():
                if read is None:
                    self.training_set.read_ahead(first, last)
                else:
                    self.training_set.read_ahead_some(first + np.flatnonzero(read[first:last]))
            fetched = wanted
            yield self._own(blocks.order, start)

    def _own(self, order: Integers, start: int) -> list[int]:
        """This process's rows of the batch that starts at a place of the order."""
        indices: list[int] = order[start + self.rows.start : start + self.rows.stop].tolist()
        return indices

    def _read_of(self, order: Integers, starts: range) -> npt.NDArray[np.bool_] | None:
        """(images,) whether this process reads an image in these batches; None where it reads every row.

        The processes announce disjoint images: on one machine they share its memory for files, and on several machines
        each one fetches its part of a file rather than all of it.
        """
        if len(self.rows) == self.batch_size:
            return None
        read = np.zeros(len(order), np.bool_)
        batches = order[starts.start : starts.stop].reshape(-1, self.batch_size)
        read[batches[:, self.rows.start : self.rows.stop]] = True
        return read


Batch = tuple[Tensor, Tensor]
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Augment = Callable[[Images, int, int], object]  # rows of a batch, changed in place; its number; the first row

IMAGE_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
PREFETCH = 4  # batches that each worker is ahead
SPARE = 3  # batches besides those ahead and those that the training holds
CAN_INHERIT = sys.platform == "linux"  # elsewhere it is unsafe to fork a process with threads, such as those of torch

_numbers = count()
_known: "weakref.WeakValueDictionary[int, BatchMemory]" = weakref.WeakValueDictionary()


class BatchMemory:
    """Shared memory for batches of images: the workers fill it, the training reads it, and it is reused.

    New shared memory for every batch, torch's default, costs a sixth of the decoding time: each page is cleared and
    faulted in on both sides, and a socket is opened to pass it on (`benchmarks/data_path.py`). This memory is
    anonymous and inherited by the forked workers, so a killed process leaves nothing in /dev/shm, whose size is no
    limit either. Only the process that created it hands out places and takes them back.

    Args:
        places: the number of batches that fit.
        shape: (B, H, W, 3) of a batch.

    Raises:
        RunError: the memory cannot be allocated.
    """

    def __init__(self, places: int, shape: tuple[int, int, int, int]) -> None:
        size = math.prod(shape)
        try:
            memory = mmap.mmap(-1, places * size)  # pages are allocated on first use
        except (OSError, OverflowError) as error:
            needed = f"{places * size / 2**30:.1f} GiB of shared memory for batches"
            raise RunError(f"{needed} cannot be had; give fewer --workers or a smaller --batch-size") from error
        self._images = np.frombuffer(memory, np.uint8).reshape(places, *shape)
        # Last in, first out: the pages of the last place are allocated, and may still be in the cache.
        self._free = deque(range(places))
        self._number = next(_numbers)
        _known[self._number] = self

    def take(self) -> int | None:
        """Take a free place; None if there is none."""
        return self._free.pop() if self._free else None

    def images(self, place: int, count: int) -> Images:
        """Memory of the first `count` images of a place, (count, H, W, 3)."""
        return self._images[place, :count]

    def filled(self, place: int, labels: Labels) -> "FilledPlace":
        """Message of a worker that has written into a place."""
        return FilledPlace(self._number, place, labels)

    def batch(self, place: int, labels: Labels) -> Batch:
        """Images (B, H, W, 3) and labels (B,) as tensors; the place is free once no tensor uses the images."""
        images = self.images(place, len(labels))
        # torch keeps this array alive as long as any tensor shares its memory.
        weakref.finalize(images, self._free.append, place).atexit = False
        return torch.from_numpy(images), torch.from_numpy(labels)


class FilledPlace:
    """Message of a worker; unpickling it in the process that created the memory gives the batch itself."""

    def __init__(self, memory: int, place: int, labels: Labels) -> None:
        self.content = (memory, place, labels)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _arrived, self.content


def _arrived(memory: int, place: int, labels: Labels) -> Batch:
    return _known[memory].batch(place, labels)


def training_batches(
    order: EpochOrder,
    *,
    workers: int,
    held: int = 1,
    pin_memory: bool = False,
    replaced: Callable[[Mapping[int, str]], object] | None = None,
    augment: Augment | None = None,
) -> Iterator[Batch]:
    """Read, decode and yield the batches of an order, or the rows of them that belong to this process.

    Args:
        order: the training set, and the indices of each batch.
        workers: processes that read and decode; 0 decodes in this process.
        held: batches that the caller keeps at a time.
        pin_memory: return page-locked memory, which copies to a GPU faster.
        replaced: called before a batch with the images that cannot be read, {index: reason}; the next readable image
            replaces each of them. Without it, the first unreadable image raises. Each process is told of its own rows.
        augment: changes the images in place, given the number of the batch and the row of the first one in it. It runs
            in the worker, and is pickled where workers do not fork.

    Yields:
        images (R, 112, 112, 3) uint8 RGB, and labels (R,) int64, of the R = len(order.rows) rows; R may be 0.

    Raises:
        DataError: an image cannot be read.
        RunError: a worker was killed, or the memory for batches cannot be allocated.
    """
    memory, before = None, active_children()
    if workers and CAN_INHERIT and order.rows:
        memory = BatchMemory(PREFETCH * workers + SPARE + held, (len(order.rows), *IMAGE_SHAPE))
    try:
        # No variable holds the iterator: the traceback of a caught error would keep it alive, and its workers too.
        images = _DecodedImages(order.training_set, memory, replaced is not None, augment)
        for loaded in _loaded(order, images, workers, pin_memory):
            if isinstance(loaded, DataError):
                raise loaded
            if isinstance(loaded, _WithReplaced):
                assert replaced is not None  # noqa: S101 (images are replaced only then)
                replaced(loaded.unreadable)
                yield cast(Batch, loaded.batch)
            else:
                yield loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        _kill_workers(before)
        raise RunError("a data worker was killed, perhaps for lack of memory; resume with fewer --workers") from error


def _loaded(order: EpochOrder, images: "_DecodedImages", workers: int, pin_memory: bool) -> Iterator[Any]:
    """Batches and errors from the workers, in the order of the requests."""
    with warnings.catch_warnings():
        # More workers than cores do no harm: they mostly wait for the training.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = DataLoader(
            images,
            sampler=_Requests(order, images.memory),
            batch_size=None,  # a request is a whole batch
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=partial(_start_worker, os.getpid()),
            pin_memory=pin_memory,
            # Not torch's global generator: the training saves the state of that one.
            generator=torch.Generator(),
            prefetch_factor=PREFETCH if workers else None,
            multiprocessing_context="fork" if workers and CAN_INHERIT else None,
        )
        with _dead_workers_found_by_the_next_batch():
            return _started(loader)


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """The iterator of a loader, whose workers have started.

    Raises:
        RunError: the system has no more processes, files or memory for them; those that have started are gone.
    """
    before = active_children()
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # torch's half-built iterator fails in its __del__
    try:
        return iter(loader)
    except OSError as error:
        reason = error.strerror
    finally:
        sys.unraisablehook = hook
    _kill_workers(before)
    raise RunError(f"{loader.num_workers} data workers cannot be started: {reason}; give fewer --workers, or 0")


def _kill_workers(before: Sequence[BaseProcess]) -> None:
    """End the child processes that have started since: Python would wait for them at its end.

    They ignore SIGTERM, and one may wait for ever for a lock that a killed one held.
    """
    for worker in active_children():
        if worker not in before:
            worker.kill()
            worker.join()


@contextmanager
def _dead_workers_found_by_the_next_batch() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, which it sets where workers start.

    It raises for a dead worker wherever this process is, such as in the middle of a step, whose weights would then be
    half-updated. Without it, the wait for the next batch finds the death within five seconds, between two steps.
    """
    if current_thread() is not main_thread():  # torch sets none there
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class _Request(NamedTuple):
    """Indices of a batch, the place in shared memory for its images, its number, and its first row here."""

    indices: list[int]
    place: int | None
    number: int
    first_row: int


class _Requests(Sampler[_Request]):
    """The batches of an order, each with a place while places are free."""

    def __init__(self, order: EpochOrder, memory: BatchMemory | None) -> None:
        self.order, self.memory = order, memory

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[_Request]:
        first_row = self.order.rows.start
        for number, indices in enumerate(self.order, start=self.order.first):
            yield _Request(indices, self.memory.take() if self.memory else None, number, first_row)


class _WithReplaced(NamedTuple):
    """A batch in which other images replace unreadable ones."""

    batch: Batch | FilledPlace
    unreadable: dict[int, str]


class _DecodedImages(Dataset[Batch | FilledPlace | _WithReplaced | DataError]):
    """Decodes each batch straight into one array.

    An error is returned as a value: if a worker raised it, torch would wrap it in the traceback of that process. A
    worker that starts without a fork imports the plug-ins of this process first: they may define the training set.
    """

    def __init__(
        self, training_set: TrainingSet, memory: BatchMemory | None, replace: bool, augment: Augment | None = None
    ) -> None:
        self.training_set, self.memory, self.replace, self.augment = training_set, memory, replace, augment

    def __reduce__(self) -> tuple[Callable[..., "_DecodedImages"], tuple[Any, ...]]:
        others = (self.memory, self.replace, self.augment)
        return _unpickled, (imported_plugins(), pickle.dumps(self.training_set), *others)

    def __getitem__(self, request: _Request) -> Batch | FilledPlace | _WithReplaced | DataError:
        unreadable: dict[int, str] = {}
        try:
            batch = self._read(request, unreadable)
        except DataError as error:
            return error
        return _WithReplaced(batch, unreadable) if unreadable else batch

    def _read(self, request: _Request, unreadable: dict[int, str]) -> Batch | FilledPlace:
        count, place = len(request.indices), request.place
        if self.memory is None or place is None:
            images = np.empty((count, *IMAGE_SHAPE), np.uint8)
            return torch.from_numpy(images), torch.from_numpy(self._fill(images, request, unreadable))
        return self.memory.filled(place, self._fill(self.memory.images(place, count), request, unreadable))

    def _fill(self, images: Images, request: _Request, unreadable: dict[int, str]) -> Labels:
        """Decode and augment the images of a request into an array (B, 112, 112, 3); returns the labels (B,)."""
        labels = self._decode(request.indices, images, unreadable)
        if self.augment is not None:
            self.augment(images, request.number, request.first_row)
        return labels

    def _decode(self, indices: list[int], images: Images, unreadable: dict[int, str]) -> Labels:
        """Decode images into an array (B, 112, 112, 3), note replaced ones, and return the labels (B,)."""
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
        """Decode the next readable image; it shows the same person where the images of a person are neighbours."""
        total = len(self.training_set)
        for other in range(index + 1, index + total):
            with suppress(DataError):
                return self._decode_one(other % total, image)
        raise DataError("no image of the training set can be read; restore it")


def _unpickled(
    plugins: list[str], training_set: bytes, memory: BatchMemory | None, replace: bool, augment: Augment | None
) -> _DecodedImages:
    import_plugins(plugins)
    return _DecodedImages(pickle.loads(training_set), memory, replace, augment)  # noqa: S301 (from the parent process)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(training: int, _: int) -> None:
    """Prepare a worker of the process with this id."""
    from facebones.system.malloc import trim_malloc
    from facebones.system.processes import die_with_parent

    # A terminal or a scheduler signals the whole process group, but only the training process decides when to stop. If
    # it dies, so do the workers: torch's watchdog misses a death that came before its first look.
    die_with_parent(training)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The threads of OpenCV do not survive a fork: a worker that waits for them hangs.
    cv2.setNumThreads(0)
    # Keep inherited pages shared: garbage collection must not touch inherited objects.
    gc.freeze()
    trim_malloc()
