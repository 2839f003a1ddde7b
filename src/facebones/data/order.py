"""In which order a training sees its images: a pure function of seed and epoch, so that it goes on from any batch."""

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
    """All images, each order as likely as any other; (images,)."""
    return np.random.default_rng([seed, epoch]).permutation(images)


class BlockOrder:
    """Blocks of neighbouring images in any order; of 64 blocks at a time, the images in any order.

    So only 64 blocks of a file need to be in memory at a time, and each is read in one go. Every epoch cuts the blocks
    at other places, so that no two images are in one block for ever.

    Attributes:
        blocks: (K, 2) first image and last + 1 of each block, in the order of their use.
        ends: (K,) how many images are in the blocks up to each.
        order: (images,) all images, in the order of their use.
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
        """How many blocks are used up once `position` images are."""
        return int(np.searchsorted(self.ends, position, side="right"))


class EpochOrder(Sampler[list[int]]):
    """The indices of each batch; every epoch has its own order, drawn from seed and epoch alone.

    Args:
        training_set: what the indices are of; it is told what will be read soon.
        batch_size: B; what is left of an epoch after the last whole batch is not used in that epoch.
        batches_per_epoch: after so many, a new order begins.
        first: number of the first batch, counted from the start of the training.
        last: number of the batch before which to end.
        seed: decides the order of every epoch.
        block: neighbouring images that stay together, see `BlockOrder`; 0 for none.
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
        """The batches `position` to `end` - 1 of an epoch."""
        size = self.batch_size
        starts = range(position * size, end * size, size)
        if not self.block:
            order = full_order(len(self.training_set), self.seed, epoch)
            yield from (order[start : start + size].tolist() for start in starts)
            return
        blocks = BlockOrder(len(self.training_set), self.block, self.seed, epoch)
        fetched = blocks.used(starts.start) // GROUP_BLOCKS * GROUP_BLOCKS
        for start in starts:
            # All of this group is to be there, and a block of the next for each one that is used up.
            wanted = blocks.used(start) + GROUP_BLOCKS
            for first, last in blocks.blocks[fetched:wanted].tolist():
                self.training_set.read_ahead(first, last)
            fetched = wanted
            yield blocks.order[start : start + size].tolist()
