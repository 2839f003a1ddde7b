import errno
import gc
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from facebones.data import loader as loading
from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.data.loader import BatchMemory, EpochOrder, training_batches
from facebones.errors import DataError, RunError


def collect(small_data, **options):
    workers = options.pop("workers", 0)
    defaults = {"batch_size": 6, "batches_per_epoch": 4, "first": 0, "last": 8, "seed": 0}
    order = EpochOrder(open_training_set(small_data), **defaults | options)
    return list(training_batches(order, workers=workers))


def test_batches_are_the_same_for_any_number_of_workers_and_leave_torchs_generator_alone(small_data):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone, helped = collect(small_data), collect(small_data, workers=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(alone) == len(helped) == 8
    for (images, labels), (others, other_labels) in zip(alone, helped, strict=True):
        assert images.dtype == torch.uint8 and images.shape == (6, 112, 112, 3)
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_more_workers_than_cores_are_no_news(small_data):
    """Here a warning is an error; torch has one for each of the two places at which it looks."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert len(collect(small_data, workers=2)) == 8
    finally:
        os.sched_setaffinity(0, cores)


def test_labels_belong_to_their_images(small_data):
    training_set = open_training_set(small_data)
    labels = sorted(label for _, batch in collect(small_data, batch_size=7) for label in batch.tolist())
    assert labels == sorted([*training_set.labels.tolist()] * 2)
    assert pickle.loads(pickle.dumps(training_set)).read(3) == training_set.read(3)


def test_workers_start_after_opencv_has_been_busy_in_this_process(small_data):
    """OpenCV's own threads do not survive a fork: a worker that inherits them hangs."""
    code = f"""
import numpy as np
from facebones.data import loader as loading
from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.data.loader import BatchMemory, training_batches
from facebones.data.loader import EpochOrder
import cv2
cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 9)
data = open_training_set({str(small_data)!r})
order = EpochOrder(data, batch_size=6, batches_per_epoch=4, first=0, last=4, seed=0)
print(sum(len(labels) for _, labels in training_batches(order, workers=2)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "24\n"


@pytest.mark.parametrize("block", [0, 2])
def test_more_batches_than_there_is_shared_memory_for_can_be_kept(small_data, block):
    """More than the places: 4 a worker and 4 besides."""
    alone = collect(small_data, last=40, block=block)
    kept = collect(small_data, last=40, workers=1, block=block)
    assert len(kept) == 40
    for (images, labels), (others, other_labels) in zip(alone, kept, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_a_place_is_free_again_once_no_tensor_uses_it():
    memory = BatchMemory(2, (3, 1, 1, 3))
    place = memory.take()
    memory.images(place, 2)[:] = 7
    images, labels = pickle.loads(pickle.dumps(memory.filled(place, np.array([4, 5]))))
    assert images.tolist() == [[[[7, 7, 7]]]] * 2 and labels.tolist() == [4, 5]
    part = images[1:]
    assert memory.take() == 1 - place and memory.take() is None
    del images
    gc.collect()
    assert memory.take() is None, "a part of it is in use"
    del part
    gc.collect()
    assert memory.take() == place


@pytest.mark.parametrize("started", [0, 2], ids=["none", "two"])
@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, *(pytest.param(number, marks=pytest.mark.slow) for number in (errno.EMFILE, errno.EAGAIN))],
    ids=errno.errorcode.get,
)
def test_workers_that_cannot_be_started_are_one_line_and_leave_no_process(
    small_data, monkeypatch, capfd, number, started
):
    """No room in /dev/shm, too few file descriptors, too many processes."""
    start, count = multiprocessing.context.ForkProcess.start, itertools.count()

    def limited(self):
        if next(count) == started:
            raise OSError(number, os.strerror(number))
        start(self)

    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", limited)
    with pytest.raises(RunError, match=rf"^4 data workers cannot be started: {os.strerror(number)}; give fewer"):
        collect(small_data, workers=4)
    assert multiprocessing.active_children() == []
    gc.collect()
    assert capfd.readouterr().err == ""


def test_too_much_shared_memory_is_refused_in_one_line():
    with pytest.raises(RunError, match=r"GiB of shared memory for batches cannot be had; give fewer --workers"):
        BatchMemory(2**30, (2**20, 112, 112, 3))


@pytest.mark.skipif(not loading.CAN_INHERIT, reason="workers inherit the memory on Linux only")
def test_shared_memory_is_used_over_and_over(small_data):
    addresses = set()
    data = open_training_set(small_data)
    order = EpochOrder(data, batch_size=6, batches_per_epoch=4, first=0, last=60, seed=0)
    for images, _ in training_batches(order, workers=2):
        addresses.add(images.data_ptr())
    assert len(addresses) <= 12


def test_without_inherited_memory_workers_send_the_same_batches(small_data, monkeypatch):
    alone = collect(small_data)
    monkeypatch.setattr(loading, "CAN_INHERIT", False)
    for (images, labels), (others, other_labels) in zip(alone, collect(small_data, workers=1), strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_takes_the_place_of_one_that_cannot_be_read(break_images, workers):
    told = []
    data = open_training_set(break_images(9, 10)[0])
    order = EpochOrder(data, batch_size=6, batches_per_epoch=4, first=0, last=8, seed=0)
    for number, (images, labels) in enumerate(training_batches(order, workers=workers, replaced=told.append)):
        for row, index in enumerate(list(order)[number]):
            encoded, label = data.read(11 if index in (9, 10) else index)
            assert np.array_equal(images[row].numpy(), decode(encoded, "image")) and labels[row] == label
    assert sorted(index for found in told for index in found) == [9, 9, 10, 10]  # once an epoch
    assert all(f"key {index + 1}, byte" in reason for found in told for index, reason in found.items())


def test_where_no_image_can_be_read_there_is_none_to_take_a_place(small_data, break_images):
    folder, _ = break_images(*range(len(open_training_set(small_data))))
    order = EpochOrder(open_training_set(folder), batch_size=6, batches_per_epoch=4, first=0, last=1, seed=0)
    with pytest.raises(DataError, match="no image of the training set can be read"):
        list(training_batches(order, workers=0, replaced=list))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named(break_images, workers):
    folder, position = break_images(9)
    with pytest.raises(DataError, match=rf"train\.rec, key 10, byte {position}: no readable image") as raised:
        collect(folder, workers=workers)
    assert "\n" not in str(raised.value)
    assert not multiprocessing.active_children()  # though the error is still held
