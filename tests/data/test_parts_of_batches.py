"""One training on several processes: each reads its rows of every batch, and together they read those of one process."""

from collections import Counter

import numpy as np
import pytest
import torch

from facebones.data.folders import RecordSet, open_training_set
from facebones.data.loader import EpochOrder, rows_of, training_batches

FIELDS = {"batch_size": 6, "batches_per_epoch": 4, "seed": 0}
ORDERS = pytest.mark.parametrize("options", [{}, {"block": 2}, {"repeated": True}], ids=["full", "block", "repeated"])
PROCESSES = pytest.mark.parametrize("processes", range(1, 6))


class Numbered:
    """A training set of which only the length matters; it notes what is read ahead."""

    def __init__(self, images):
        self.images, self.fetched = images, []

    def __len__(self):
        return self.images

    def read_ahead(self, first, last):
        self.fetched += range(first, last)

    def read_ahead_some(self, indices):
        self.fetched += indices.tolist()


class Counted(RecordSet):
    """Records that count how often each image is read."""

    def read(self, index):
        self.__dict__.setdefault("reads", Counter())[index] += 1
        return super().read(index)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 6, 128, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5, 7, 130])
def test_rows_are_those_of_array_split(batch_size, processes):
    parts = [rows_of(batch_size, rank, processes) for rank in range(processes)]
    assert [list(part) for part in parts] == [part.tolist() for part in np.array_split(range(batch_size), processes)]


@pytest.mark.parametrize("part", [(-1, 2), (2, 2), (0, 0)])
def test_a_process_that_does_not_exist_has_no_rows(part):
    with pytest.raises(ValueError, match=f"process {part[0]} of {part[1]}"):
        rows_of(8, *part)


@PROCESSES
@ORDERS
def test_parts_of_a_batch_make_up_the_batch_from_any_batch_on(options, processes):
    fields = {**FIELDS, **options, "batch_size": 7, "batches_per_epoch": 6, "last": 14}
    whole = list(EpochOrder(Numbered(45), first=0, **fields))
    for first in range(14):
        orders = [EpochOrder(Numbered(45), first=first, part=(rank, processes), **fields) for rank in range(processes)]
        assert [sum(rows, []) for rows in zip(*orders, strict=True)] == whole[first:]


@pytest.mark.parametrize("workers", [0, 2])
@PROCESSES
@ORDERS
def test_processes_read_the_batches_of_one_process_each_its_own_images(small_data, options, processes, workers):
    path, fields = small_data / "train.rec", {**FIELDS, **options, "last": 8}
    whole = list(training_batches(EpochOrder(open_training_set(path), first=3, **fields), workers=0))
    parts = []
    for rank in range(processes):
        data = Counted(path)
        order = EpochOrder(data, first=3, part=(rank, processes), **fields)
        parts.append(list(training_batches(order, workers=workers)))
        if not workers:
            assert data.reads == Counter(index for batch in order for index in batch)
    for (images, labels), *rows in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part[0] for part in rows]), images)
        assert torch.equal(torch.cat([part[1] for part in rows]), labels)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_without_a_row_has_empty_batches(small_data, workers):
    order = EpochOrder(open_training_set(small_data), first=0, last=3, part=(6, 7), **FIELDS)
    batches = list(training_batches(order, workers=workers))
    assert [(images.shape, labels.shape) for images, labels in batches] == [((0, 112, 112, 3), (0,))] * 3


@pytest.mark.parametrize("first", [0, 37, 150])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_each_image_is_announced_by_the_process_that_reads_it_alone(first, processes):
    fields = {"batch_size": 6, "batches_per_epoch": 333, "last": 333, "seed": 0, "block": 4}
    announced = []
    for rank in range(processes):
        data, used = Numbered(2000), []
        for batch in EpochOrder(data, first=first, part=(rank, processes), **fields):
            used += batch
            assert set(batch) <= set(data.fetched)
        assert sorted(data.fetched) == sorted(used)
        announced += data.fetched
    assert len(announced) == len(set(announced)) == (333 - first) * 6
