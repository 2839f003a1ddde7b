"""A checkpoint on the disk needs no second copy in memory."""

import sys
import tracemalloc
from pathlib import Path

import torch

from facebones.system.checkpoint import load_checkpoint, save_checkpoint

STATE = {"weight": torch.arange(1_000_000.0), "step": 3}


def test_it_is_written_and_read_without_a_copy_in_memory(tmp_path):
    path = tmp_path / "last.pt"
    tracemalloc.start()
    save_checkpoint(path, STATE)
    found = load_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2
    assert torch.equal(found["weight"], STATE["weight"]) and found["step"] == 3
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text()


def test_what_is_read_can_be_changed_and_leaves_the_file_alone(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    content = path.read_bytes()
    load_checkpoint(path)["weight"] += 1
    assert path.read_bytes() == content


def test_checkpoints_of_older_torch_are_read(tmp_path):
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(tmp_path / "old.pt")["weight"], STATE["weight"])
