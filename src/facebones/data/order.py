"""The order of the training images: a pure function of seed and epoch, so a training can resume at any batch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from facebones.data.training_set import Integers, TrainingSet

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
        self.ends = (self.blocks[:, 1] - self.blocks[:, 0]).cumsum()
        self.order = np.concatenate([np.arange(first, end) for first, end in self.blocks.tolist()])
        start = 0
        for end in [*self.ends[GROUP_BLOCKS - 1 :: GROUP_BLOCKS].tolist(), images]:
            self.order[start:end] = random.permutation(self.order[start:end])
            start = end

    def used(self, position: int) -> int:
        """Number of blocks that are used up after `position` images."""
        return int(np.searchsorted(self.ends, position, side="right"))


class EpochOrder(Sampler[list[int]]):
    """The indices of each batch; every epoch has its own order, which depends on seed and epoch alone.

    Args:
        training_set: the images; it is told which ones are read soon.
        batch_size: B; the images after the last whole batch of an epoch are not used in that epoch.
        batches_per_epoch: a new order begins after this number of batches.
        first: number of the first batch, counted from the start of the training.
        last: number of the last batch + 1.
        seed: decides the order of every epoch.
        block: size of the blocks of neighbouring images, see `BlockOrder`; 0 shuffles all images.
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
    ) -> None:
        self.training_set, self.batch_size, self.batches_per_epoch = training_set, batch_size, batches_per_epoch
        self.first, self.last, self.seed, self.block = first, last, seed, block

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        number = self.first
        while number < self.last:
            epoch, position = divmod(number, self.batches_per_epoch)
            end = min(self.batches_per_epoch, position + self.last - number)
            yield from self._epoch(epoch, position, end)
            number += end - position

    def _epoch(self, epoch: int, position: int, end: int) -> Iterator[list[int]]:
        """Batches `position` to `end` - 1 of an epoch."""
        size = self.batch_size
        starts = range(position * size, end * size, size)
        if not self.block:
            order = full_order(len(self.training_set), self.seed, epoch)
            yield from (order[start : start + size].tolist() for start in starts)
            return
        blocks = BlockOrder(len(self.training_set), self.block, self.seed, epoch)
        fetched = blocks.used(starts.start) // GROUP_BLOCKS * GROUP_BLOCKS
        for start in starts:
            # Fetch all of this group, and one block of the next group for each block that is used up.
            wanted = blocks.used(start) + GROUP_BLOCKS
            for first, last in blocks.blocks[fetched:wanted].tolist():
                self.training_set.read_ahead(first, last)
            fetched = wanted
            yield blocks.order[start : start + size].tolist()
