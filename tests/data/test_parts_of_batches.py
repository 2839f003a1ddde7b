"""One training on several processes: each reads its rows of every batch, together those of one process."""

import mmap
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from facebones.data.folders import open_training_set
from facebones.data.loader import EpochOrder, training_batches
from facebones.data.record_set import RecordSet
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, RecordFile, pack
from facebones.system.distributed import part_of

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

    def __init__(self, path):
        self.reads = Counter()
        super().__init__(path)
        self.reads.clear()  # opening compares the first image with `property`

    def read(self, index):
        self.reads[index] += 1
        return super().read(index)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 6, 128, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 5, 7, 130])
def test_rows_are_those_of_array_split(batch_size, processes):
    parts = [part_of(batch_size, rank, processes) for rank in range(processes)]
    assert [list(part) for part in parts] == [part.tolist() for part in np.array_split(range(batch_size), processes)]


@pytest.mark.parametrize("part", [(-1, 2), (2, 2), (0, 0)])
def test_a_process_that_does_not_exist_has_no_rows(part):
    with pytest.raises(ValueError, match=f"part {part[0]} of {part[1]}"):
        part_of(8, *part)


@PROCESSES
@ORDERS
def test_parts_of_a_batch_make_up_the_batch_from_any_batch_on(options, processes):
    fields = {**FIELDS, **options, "batch_size": 7, "batches_per_epoch": 6, "last": 14}
    whole = list(EpochOrder(Numbered(45), first=0, **fields))
    for first in range(14):
        orders = [EpochOrder(Numbered(45), first=first, part=(rank, processes), **fields) for rank in range(processes)]
        assert [[*chain(*rows)] for rows in zip(*orders, strict=True)] == whole[first:]


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


class Asked:
    """A mapped file that notes what the system is asked to read ahead."""

    def __init__(self, mapped):
        self.mapped, self.parts = mapped, []

    def size(self):
        return self.mapped.size()

    def madvise(self, option, start, length):
        assert start % mmap.PAGESIZE == 0 and 0 < length <= len(self.mapped) - start
        self.parts.append(range(start, start + length))


@pytest.mark.parametrize("cut", [False, True], ids=["one file", "shards"])
def test_processes_together_read_ahead_little_more_than_the_file_once(tmp_path, cut):
    """Counted in bytes: images of 7 kB on average take whole pages, which two processes may share."""
    sizes = np.random.default_rng(0).integers(4000, 10_000, 1200).tolist()
    for number, part in enumerate(np.array_split(sizes, 3) if cut else [sizes]):
        with RecordWriter(tmp_path / f"{number}.rec") as writer:
            for key, size in enumerate(part):
                writer.write(key, pack(Header(float(key % 400 // 4), key), bytes(size)))
    fields = {"batch_size": 16, "batches_per_epoch": 75, "first": 0, "last": 75, "seed": 0, "block": 16}
    for processes, share in ((1, 1.05), (2, 0.65), (4, 0.36), (8, 0.19)):
        announced = []
        for rank in range(processes):
            data = open_training_set(tmp_path / "*.rec")
            files = [part.records for part in getattr(data, "parts", [data])]
            for file in files:
                file._map = Asked(file.content)
            for batch in EpochOrder(data, part=(rank, processes), **fields):
                for file, place in (place_of(data, index) for index in batch):
                    assert any(place in part for part in file._map.parts), "before its turn"
            announced.append(sum(len(part) for file in files for part in file._map.parts))
        assert max(announced) <= share * sum(file.size for file in files) + 2 * mmap.PAGESIZE * len(files)


def place_of(data, index):
    part, inside = data._place(index) if hasattr(data, "parts") else (None, index)
    data = data if part is None else data.parts[part]
    return data.records, int(data.records.offsets[data.positions[inside]])


def test_the_end_of_a_record_is_found_in_a_file_whose_index_has_another_order(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key in (2, 0, 1):
            writer.write(key, pack(Header(0.0, key), bytes(50_000 + key)))
    index = (tmp_path / "a.idx").read_text().splitlines()
    (tmp_path / "a.idx").write_text("\n".join(sorted(index)) + "\n")
    file = RecordFile(tmp_path / "a.rec")
    file._map = asked = Asked(file.content)
    file.read_ahead(file.positions_of([2]))
    file.read_ahead(file.positions_of([1]))
    first, second = asked.parts
    assert (
        first == range(0, 50_036)
        and second.stop == file.size
        and 96_000 < second.start <= file.offsets[file.positions_of(1)]
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_each_process_is_told_of_its_own_unreadable_images(break_images, workers):
    folder = break_images(9, 10, 20)[0]
    found = {}
    for part in ((0, 1), (0, 3), (1, 3), (2, 3)):
        told = []
        order = EpochOrder(open_training_set(folder), first=0, last=4, part=part, **FIELDS)
        batches = list(training_batches(order, workers=workers, replaced=told.append))
        found[part] = ([*chain(*told)], batches)
        used = {*chain(*order)}
        assert {*found[part][0]} == used & {9, 10, 20}
    whole, *parts = found.values()
    assert sorted(whole[0]) == sorted(chain(*(told for told, _ in parts)))
    for (images, _), *rows in zip(whole[1], *(batches for _, batches in parts), strict=True):
        assert torch.equal(torch.cat([part[0] for part in rows]), images)


def test_a_worker_that_is_spawned_reads_the_same_part(
    small_data, tmp_path, assert_a_spawned_worker_gives_the_same_batches
):
    data = open_training_set(small_data)
    for number in range(2):
        with RecordWriter(tmp_path / f"{number}.rec") as writer:
            for key in range(14):
                image, label = data.read(14 * number + key)
                writer.write(key, pack(Header(float(label), key), image))
    order = EpochOrder(open_training_set(tmp_path / "*.rec"), first=2, last=4, part=(1, 3), block=2, **FIELDS)
    spawned = assert_a_spawned_worker_gives_the_same_batches(order)
    assert [len(labels) for _, labels in spawned] == [2, 2]
