"""What tests of several data formats share."""

import json

import pytest
import torch
from torch.utils.data import DataLoader

from facebones.data import loader as loading
from facebones.data.folders import open_training_set
from facebones.data.loader import EpochOrder, training_batches
from facebones.training.run import train


@pytest.fixture
def assert_a_spawned_worker_gives_the_same_batches(monkeypatch):
    """A check that a worker that inherits nothing gives the batches of this process; returns the latter."""

    def check(order):
        alone = list(training_batches(order, workers=0))
        monkeypatch.setattr(loading, "CAN_INHERIT", False)
        monkeypatch.setattr(
            loading,
            "DataLoader",
            lambda *args, **options: DataLoader(*args, **options | {"multiprocessing_context": "spawn"}),
        )
        spawned = list(training_batches(order, workers=1))
        assert all(torch.equal(a, b) for pair in zip(alone, spawned, strict=True) for a, b in zip(*pair, strict=True))
        return spawned

    return check


@pytest.fixture
def assert_spawned_workers_read_the_same(assert_a_spawned_worker_gives_the_same_batches):
    """A check of the small data in another format: a worker that inherits nothing gives the batches of this process."""

    def check(path):
        data = open_training_set(path)
        order = EpochOrder(data, batch_size=4, batches_per_epoch=7, first=0, last=3, seed=0, block=4)
        assert_a_spawned_worker_gives_the_same_batches(order)

    return check


@pytest.fixture
def assert_trains_as_on_records(tiny_recipe, tmp_path):
    """A check of the small data in another format: a training on it has the losses of one on the records."""

    def check(path, workers):
        options = {"training.epochs": 1, "validation.sets": [], "data.workers": workers}
        train(tiny_recipe(**{"data.path": str(path)}, **options), tmp_path / "other", "cpu")
        train(tiny_recipe(**options), tmp_path / "records", "cpu")
        one, other = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("other", "records"))
        losses = [[json.loads(line).get("loss") for line in text.splitlines()] for text in (one, other)]
        assert losses[0] == losses[1] and any(losses[0])

    return check
