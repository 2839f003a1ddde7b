from itertools import pairwise

import numpy as np
import pytest

from facebones.data.loader import GROUP_BLOCKS, BlockOrder, EpochOrder


class Numbered:
    """A training set of which only the length matters; it notes what is read ahead."""

    def __init__(self, images):
        self.images, self.fetched = images, []

    def __len__(self):
        return self.images

    def read_ahead(self, first, last):
        self.fetched += range(first, last)


def order(first=0, last=12, images=23, **options):
    fields = {"batch_size": 5, "batches_per_epoch": 4, "seed": 3} | options
    return list(EpochOrder(Numbered(images), **fields, first=first, last=last))


BLOCKS = pytest.mark.parametrize("block", [0, 1, 2, 7, 23, 1000])


@BLOCKS
def test_an_epoch_uses_each_image_once_at_most_and_epochs_differ(block):
    batches = order(last=40, block=block)
    epochs = [[index for batch in batches[start : start + 4] for index in batch] for start in range(0, 40, 4)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 20 and set(epoch) <= set(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert set().union(*epochs) == set(range(23)), "what one epoch leaves out, others use"


@pytest.mark.parametrize("first", range(12))
@BLOCKS
def test_the_order_goes_on_from_any_batch(first, block):
    assert order(first=first, block=block) == order(block=block)[first:]


@BLOCKS
def test_a_repeated_order_is_that_of_the_first_epoch_from_any_batch_on(block):
    repeated = order(block=block, repeated=True)
    assert repeated == order(block=block)[:4] * 3
    assert all(order(first=first, block=block, repeated=True) == repeated[first:] for first in range(12))


def test_the_order_follows_the_seed():
    assert order(seed=4) != order() == order()
    assert order(seed=4, block=2) != order(block=2) == order(block=2)


def test_full_order_is_that_of_runs_begun_before_there_were_blocks():
    expected = np.random.default_rng([3, 1]).permutation(23)
    assert order(first=4, last=8) == expected[:20].reshape(4, 5).tolist()


def test_a_group_is_made_of_whole_blocks_of_neighbours_in_any_order():
    block, images = 10, 10 * 200
    found = BlockOrder(images, block, seed=1, epoch=0)
    assert sorted(found.order.tolist()) == list(range(images))
    assert found.ends[-1] == images and len(found.blocks) in (200, 201)
    sizes = np.diff(found.blocks, axis=1).ravel()
    assert (sizes == block).sum() >= 199
    assert (np.abs(np.diff(found.blocks[:, 0])) > 5 * block).mean() > 0.8, "neighbouring blocks are apart"
    starts = [0, *found.ends[GROUP_BLOCKS - 1 :: GROUP_BLOCKS], images]
    assert len(starts) == 5  # groups of 64, 64, 64 and the rest
    for number, (start, end) in enumerate(pairwise(starts)):
        blocks = found.blocks[number * GROUP_BLOCKS : (number + 1) * GROUP_BLOCKS]
        members = {image for first, last in blocks for image in range(first, last)}
        assert set(found.order[start:end].tolist()) == members
        # A batch takes from all over its group: next to no two images in turn are of one block.
        assert (np.abs(np.diff(found.order[start:end])) < block).mean() < 0.1


def test_where_blocks_are_cut_changes_with_the_epoch():
    cuts = {tuple(sorted(BlockOrder(100, 10, 0, epoch).blocks[:, 0] % 10))[-1] for epoch in range(20)}
    assert len(cuts) > 3


def test_a_set_of_one_group_is_shuffled_as_a_whole():
    """Each image is as likely at each place: the mean place of each is the middle, within 5 standard errors."""
    images, epochs = 60, 400
    places = np.array([np.argsort(BlockOrder(images, 7, 0, epoch).order) for epoch in range(epochs)])
    error = places.std() / epochs**0.5
    assert np.abs(places.mean(axis=0) - (images - 1) / 2).max() < 5 * error


@pytest.mark.parametrize("first", [0, 37, 150, 332])
def test_what_is_read_ahead_is_there_before_its_turn_once_and_not_too_early(first):
    block, size = 4, 6
    data = Numbered(2000)
    ahead = []
    batches = EpochOrder(data, batch_size=size, batches_per_epoch=333, first=first, last=333, seed=0, block=block)
    for number, batch in enumerate(batches, start=first):
        assert set(batch) <= set(data.fetched)
        ahead.append(len(data.fetched) - (number - first) * size)
    assert len(data.fetched) == len(set(data.fetched))
    assert max(ahead) <= 2 * GROUP_BLOCKS * block


def test_each_epoch_is_read_ahead():
    data = Numbered(200)
    list(EpochOrder(data, batch_size=6, batches_per_epoch=33, first=0, last=66, seed=0, block=4))
    assert sorted(data.fetched) == sorted([*range(200)] * 2)


def test_full_order_reads_nothing_ahead():
    data = Numbered(200)
    list(EpochOrder(data, batch_size=6, batches_per_epoch=33, first=0, last=66, seed=0))
    assert data.fetched == []
