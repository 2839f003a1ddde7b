"""What `benchmarks/scaling.py` counts."""

import importlib
import socket
import sys
from pathlib import Path

import pytest

from facebones.backbones import create_backbone

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("scaling")
    for name in ("scaling", "scaling_heads"):
        sys.modules.pop(name, None)


def test_the_least_bytes_of_a_step(scaling):
    parameters = sum(p.numel() for p in create_backbone("mobilefacenet", 512, 0.0).parameters())
    two, four = (scaling.least_bytes("mobilefacenet", processes, 64, 2, "whole") for processes in (2, 4))
    assert two["gradients"] == 2 * 4 * parameters
    assert two["embeddings"] == 64 * 512 * 2 and two["embedding_gradients"] == 64 * 512 * 4
    assert two["softmax"] == 2 * 3 * 64 * 4 and two["labels"] == 64 * 8
    assert four == {name: 3 * size for name, size in two.items()}
    assert not any(scaling.least_bytes("mobilefacenet", 1, 64, 2, "whole").values())
    assert scaling.least_bytes("mobilefacenet", 2, 64, 2, "own") == two | {"batch_norm": 0} and two["batch_norm"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts these bytes")
def test_bytes_over_the_loopback_device_are_counted(scaling):
    before, sent = scaling.loopback_bytes(), bytes(100_000)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other = server.accept()[0]
        with other:
            one.sendall(sent)
            received = 0
            while received < 100_000:
                received += len(other.recv(65_536))
    assert scaling.loopback_bytes() - before >= 100_000


def test_a_head_that_does_not_fit_is_said(scaling, monkeypatch):
    heads = importlib.import_module("scaling_heads")
    monkeypatch.setattr(heads, "available", lambda: heads.MARGIN + 10 * 2**30)
    monkeypatch.setattr(heads, "run", lambda kind, classes, size: [classes * 512 * 4 // size])
    assert heads.measure("build", 10_000_000, 1)["not_run"] == "needs 19 GiB, and 10 are free"
    row = heads.measure("build", 10_000_000, 2)
    assert row["kind"] == "centres" and row["share"] == 0.5
    assert heads.measure("build", 10_000_000, 4)["kind"] == "build"
    assert "not_run" in heads.measure("step", 10_000_000, 4)


def test_too_few_cores_are_said(scaling):
    with pytest.raises(scaling.NoRunError, match="1000 processes need as many cores"):
        scaling.own_cores(1000, "cpu")
