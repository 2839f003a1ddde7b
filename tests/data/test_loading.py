import pickle
import subprocess
import sys

import pytest
import torch

from facebones.data.folders import open_training_set
from facebones.data.loading import EpochOrder, training_batches


def order(first=0, last=12, **options):
    return list(
        EpochOrder(
            **{"images": 23, "batch_size": 5, "batches_per_epoch": 4, "seed": 3} | options, first=first, last=last
        )
    )


def test_an_epoch_uses_each_image_once_at_most_and_epochs_differ():
    batches = order(last=40)
    epochs = [[index for batch in batches[start : start + 4] for index in batch] for start in range(0, 40, 4)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 20 and set(epoch) <= set(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert set().union(*epochs) == set(range(23)), "what one epoch leaves out, others use"


@pytest.mark.parametrize("first", range(12))
def test_the_order_goes_on_from_any_batch(first):
    assert order(first=first) == order()[first:]


def test_the_order_follows_the_seed():
    assert order(seed=4) != order() == order()


def collect(small_data, **options):
    defaults = {"batch_size": 6, "batches_per_epoch": 4, "first": 0, "last": 8, "seed": 0, "workers": 0}
    return list(training_batches(open_training_set(small_data), **defaults | options))


def test_batches_are_the_same_for_any_number_of_workers_and_leave_torchs_generator_alone(small_data):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone, helped = collect(small_data), collect(small_data, workers=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(alone) == len(helped) == 8
    for (images, labels), (others, other_labels) in zip(alone, helped, strict=True):
        assert images.dtype == torch.uint8 and images.shape == (6, 112, 112, 3)
        assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_labels_belong_to_their_images(small_data):
    training_set = open_training_set(small_data)
    labels = sorted(label for _, batch in collect(small_data, batch_size=7) for label in batch.tolist())
    assert labels == sorted([*training_set.labels.tolist()] * 2)
    assert pickle.loads(pickle.dumps(training_set)).read(3) == training_set.read(3)


def test_workers_start_after_opencv_has_been_busy_in_this_process(small_data):
    """OpenCV's own threads do not survive a fork: a worker that inherits them hangs."""
    code = f"""
import numpy as np
from facebones.data.folders import open_training_set
from facebones.data.loading import training_batches
import cv2
cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 9)
options = dict(batch_size=6, batches_per_epoch=4, first=0, last=4, seed=0, workers=2)
print(sum(len(labels) for _, labels in training_batches(open_training_set({str(small_data)!r}), **options)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "24\n"
