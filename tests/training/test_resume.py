"""A run that is stopped or killed and resumed ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from facebones.run_folder import RunFolder
from facebones.training.checkpoint import load_checkpoint
from facebones.training.interrupts import Interrupted
from facebones.training.logs import read_metrics
from facebones.training.loop import Trainer, resume, train

TIMES = ("images_per_second",)


def without_times(path):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(path)]


def assert_same(expected, found, where="state"):
    """Compare nested states; tensors bit by bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found), where
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys(), where
        for key in expected:
            assert_same(expected[key], found[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found), where
        for index, pair in enumerate(zip(expected, found, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert expected == found, where


def assert_same_run(expected, found):
    expected, found = RunFolder(expected), RunFolder(found)
    assert without_times(expected.metrics) == without_times(found.metrics)
    assert expected.weights.read_bytes() == found.weights.read_bytes()
    assert expected.result.read_bytes() == found.result.read_bytes()
    for name in ("last", "best"):
        states = [load_checkpoint(getattr(folder, name)) for folder in (expected, found)]
        for state in states:
            del state["metrics_bytes"]  # the length of the lines depends on the times in them
        assert_same(*states)


def stopped_after(monkeypatch, steps, number=signal.SIGTERM):
    """Send a signal to this process in the given step."""
    original = Trainer.train_step

    def step(self, batches):
        original(self, batches)
        if self.step == steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", step)


OPTIONS = {
    "plain": {},
    "workers": {"data.workers": 2},
    "accumulation": {"training.accumulation_steps": 3, "training.batch_size": 2},
    "adamw cosine": {"optimizer.name": "adamw", "schedule.name": "cosine", "schedule.warmup_epochs": 1},
    "fp16": {"training.precision": "fp16"},
    "bf16": {"training.precision": "bf16"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, tiny_recipe, monkeypatch, options):
    recipe = tiny_recipe(**options)
    train(recipe, tmp_path / "whole", "cpu")
    for steps in (4, 5, 9, 13):  # in mid-interval, at a validation, in mid-epoch
        stopped_after(monkeypatch, steps)
        with pytest.raises(Interrupted) as stop:
            (train(recipe, tmp_path / "parts", "cpu") if steps == 4 else resume(tmp_path / "parts", "cpu"))
        assert stop.value.signal is signal.SIGTERM and stop.value.step == steps
        monkeypatch.undo()
    resume(tmp_path / "parts", "cpu")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_in_a_validation_stops_at_once_and_it_is_done_again(tmp_path, tiny_recipe, monkeypatch):
    recipe = tiny_recipe()
    train(recipe, tmp_path / "whole", "cpu")
    measure = "facebones.training.validation.Validation.measure"
    monkeypatch.setattr(measure, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "parts", "cpu")
    monkeypatch.undo()
    assert load_checkpoint(RunFolder(tmp_path / "parts").last)["step"] == 5
    resume(tmp_path / "parts", "cpu")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(tmp_path, tiny_recipe):
    train(tiny_recipe(), tmp_path / "run", "cpu")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    resume(tmp_path / "run", "cpu")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}


def test_a_half_written_line_and_file_of_a_killed_process_are_cleared(tmp_path, tiny_recipe, monkeypatch):
    recipe = tiny_recipe()
    train(recipe, tmp_path / "whole", "cpu")
    stopped_after(monkeypatch, 8)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "parts", "cpu")
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "parts")
    with folder.metrics.open("a") as file:
        file.write('{"kind": "train", "step": 10, "lo')
    leftover = folder.last.with_name(".last.pt.abc.tmp")
    leftover.write_bytes(b"half")
    resume(folder.path, "cpu")
    assert not leftover.exists()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_twenty_sigkills_change_nothing(tmp_path, small_data):
    """Whole processes with workers, killed at random moments; some moments fall into saves."""
    options = [
        "--data", small_data, "--backbone", "shufflefacenet_0_5", "--backbone.embedding_size", "32", "--workers", "2",
        "--batch-size", "4", "--training.epochs", "40", "--training.checkpoint_every", "1", "--log.every", "3",
        "--validation.sets", "tiny", "--validation.every", "10", "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(output):
        words = (
            ["resume", output] if (output / "config.yaml").exists() else ["train", "demo", "--output", output, *options]
        )
        command = [sys.executable, "-m", "facebones", *map(str, words)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0
    chance, kills, in_a_save, steps = random.Random(7), 0, 0, []
    parts = RunFolder(tmp_path / "parts")
    while kills < 20:
        process = start(parts.path)
        first = parts.last.stat().st_mtime_ns if parts.last.exists() else 0
        while process.poll() is None and (parts.last.stat().st_mtime_ns if parts.last.exists() else 0) == first:
            time.sleep(0.005)  # until this process has saved once: it is at work
        moment = time.monotonic() + chance.uniform(0, 0.3)
        while time.monotonic() < moment and not (kills % 2 and list(parts.last.parent.glob(".*.tmp"))):
            time.sleep(0.0005)  # every second kill waits for a save in progress
        in_a_save += bool(list(parts.last.parent.glob(".*.tmp")))
        assert process.poll() is None, f"the run ended after {kills} kills; give it more steps"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        steps.append(json.dumps(load_checkpoint(parts.last)["step"]))
    final = start(parts.path)
    assert final.wait() == 0
    print(f"killed at steps {', '.join(steps)} of 280; {in_a_save} while a save was being written")
    assert in_a_save > 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
