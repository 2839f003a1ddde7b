"""What tests of several processes share."""

import os
import pickle
import signal
import socket
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.data.pair_bins import write_pairs
from facebones.run_folder import RunFolder
from facebones.system.process_group import joined
from facebones.system.processes import CAN_FORK

SECONDS = 60  # after which a process of a group is ended


@pytest.fixture
def in_group():
    """Do work in several new processes: `in_group(work, size)`."""
    if not CAN_FORK:
        pytest.skip("no fork here")
    return _in_group


def _in_group(work, size, joins=True):
    """Do work(world) in `size` new processes that join, or work(rank) in those that do not.

    Answers what each returned, its error, or the signal that ended it.
    """
    time.sleep(0.1)  # threads that read images hold a lock of OpenCV while they end; a child would wait for it for ever
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        answers = [Path(folder) / str(rank) for rank in range(size)]
        children = []
        for rank in range(size):
            child = os.fork()
            if not child:
                signal.alarm(SECONDS)
                _be(work, joins, rank, size, port, answers[rank])
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return [
            pickle.loads(answer.read_bytes()) if answer.exists() else status
            for answer, status in zip(answers, statuses, strict=True)
        ]


def _be(work, joins, rank, size, port, path):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "FACEBONES_TIME_LIMIT": "20"}
    try:
        try:
            if joins:
                with joined("cpu") as world:
                    answer = work(world)
            else:
                answer = work(rank)
        except Exception as error:  # noqa: BLE001 (what a test asks about)
            answer = f"{type(error).__name__}: {error}"
        path.write_bytes(pickle.dumps(answer))
    finally:
        os._exit(0)


def png(pixels):
    return cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "few.bin"
    pixels = np.random.default_rng(1).integers(0, 256, (40, 112, 112, 3), dtype=np.uint8)
    write_pairs(path, [png(image) for image in pixels], np.tile([True, False], 10))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_backbone):
    folder = tmp_path_factory.mktemp("models") / "run"
    torch.manual_seed(0)
    network = create_backbone(tiny_backbone, 16)
    save_weights(RunFolder(folder), network, {"backbone": tiny_backbone, "embedding_size": 16})
    return folder / "model.safetensors"


@pytest.fixture
def put_images(tmp_path):
    """Write small images, each with content of its own: `put_images(names, folder)`; returns the folder."""

    def put(names, folder="set"):
        for number, name in enumerate(names):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (112, 112, 3), dtype=np.uint8)
            path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        return tmp_path / folder

    return put


@pytest.fixture
def directions():
    """Embeddings in the plane at the given degrees: (N, 1, 2), each of another length."""

    def at(degrees):
        angle = np.radians(degrees)
        rows = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (1 + np.arange(len(angle)))[:, None]
        return rows[:, None].astype(np.float32)

    return at
