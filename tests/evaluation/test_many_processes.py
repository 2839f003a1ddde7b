"""Passes that several processes share: the same bits as one process, errors in all of them, and resuming."""

import json
import os
import pickle
import signal
import socket
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from facebones.data.image_sources import EncodedImages
from facebones.evaluation import feature_array, feature_store
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Model
from facebones.system import apart
from facebones.system.processes import CAN_FORK
from facebones.system.process_group import joined

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="no fork here")

CPU = torch.device("cpu")
SIZE, IMAGES, BATCH = 16, 59, 4
SECONDS = 60


def in_group(work, size):
    """Do work(world) in `size` new processes that join; what each returned, its error, or the signal that ended it."""
    time.sleep(0.1)  # threads that read images hold a lock of OpenCV while they end; a child would wait for it for ever
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    pipes = [os.pipe() for _ in range(size)]
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            _be(work, rank, size, port, pipes[rank][1])
        children.append(child)
    found = []
    for child, (reading, writing) in zip(children, pipes, strict=True):
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found.append(pickle.loads(answer) if answer else status)
    return found


def _be(work, rank, size, port, writing):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "FACEBONES_TIME_LIMIT": "20"}
    try:
        try:
            with joined("cpu") as world:
                answer = work(world)
        except Exception as error:  # what a test asks about
            answer = f"{type(error).__name__}: {error}"
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
    finally:
        os._exit(0)


def png(pixels):
    return cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def source():
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    images = [png(image) for image in pixels]
    return EncodedImages("made-up", [*images, *images[:6]])


class Small(nn.Module):
    """Its last digits depend on the number of images in a batch."""

    def __init__(self, seed=0, width=5):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(3 * SIZE * SIZE, width, generator=generator))

    def forward(self, x):
        return x.flatten(1) @ self.weights + len(x) * 1e-3


class Dies(Small):
    """Ends its process at the n-th batch, if that is the process of a number; a batch is two passes."""

    def __init__(self, rank, batch, seed=0):
        super().__init__(seed)
        self.rank, self.left = rank, 2 * batch

    def forward(self, x):
        if len(x) > 1 and os.environ.get("RANK") == str(self.rank):  # else it computes the shape
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
        return super().forward(x)


def model(seed=0, network=None):
    return Model(network=network or Small(seed), device=CPU, weights_sha256=f"weights {seed}")


def run(models, source, folder=None, **options):
    return embed(models, source, **{"batch_size": BATCH, "workers": 1, "image_size": SIZE, "folder": folder, **options})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("size", "batch_size"), [(2, 4), (3, 4), (3, 40)])  # of 40: more processes than batches
@pytest.mark.parametrize("on_disk", [False, True])
def test_features_are_those_of_one_process_to_the_bit(source, tmp_path, monkeypatch, size, batch_size, on_disk):
    monkeypatch.setattr(feature_array, "PIECE_BYTES", 64)
    models = {"a": model(1), "b": model(2, Small(2, width=7))}
    folder = tmp_path / "many" if on_disk else None

    def work(world):
        found = run(models, source, folder, batch_size=batch_size, world=world)
        return {name: np.array(rows) for name, rows in found.items()}

    first, *others = in_group(work, size)
    alone = run(models, source, tmp_path / "alone" if on_disk else None, batch_size=batch_size)
    assert others == [{}] * (size - 1)
    assert list(first) == ["a", "b"]
    assert all(np.array_equal(first[name], alone[name]) for name in models)
    if on_disk:
        assert contents(tmp_path / "many") == contents(tmp_path / "alone")


def test_a_broken_image_ends_all_processes_with_its_line(source, tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "BEAT_SECONDS", 0.05)
    images = [*source.images]
    images[40] = b"broken"
    broken, reads = EncodedImages("made-up", images), []

    def work(world):
        run({"a": model(1)}, broken, tmp_path, world=world)

    first, second, third = in_group(work, 3)
    assert first == third == "DataError: process 1: made-up: image 40: no readable image: it holds 6 bytes, beginning"
    assert second == first.replace("process 1: ", "")
