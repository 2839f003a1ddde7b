"""A run that is stopped or killed and resumed ends as if nothing had happened."""

import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.errors import CheckpointError, DataError, RunError
from facebones.heads import list_heads
from facebones.run_folder import RunFolder, read_metrics
from facebones.system.checkpoint import load_checkpoint
from facebones.system.processes import Interrupted
from facebones.training.run import resume, train
from facebones.training.trainer import Trainer

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
        assert repr(expected) == repr(found), where  # as text: the norm of a skipped step may be NaN


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS], ids=lambda number: number.name)
@pytest.mark.parametrize("killed", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["one worker", "both workers"])
def test_a_dead_data_worker_ends_the_training_between_two_steps_after_a_save(
    tmp_path, tiny_recipe, monkeypatch, capsys, number, killed
):
    """torch's own handler raises in whatever runs when a worker dies, such as the update of the weights."""
    recipe = tiny_recipe(**{"data.workers": 2, "training.batch_size": 2})
    train(recipe, tmp_path / "whole", "cpu")
    original = Trainer.train_step

    def step(self, batches):
        if self.step == 2:
            for worker in multiprocessing.active_children()[:killed]:
                os.kill(worker.pid, number)
                worker.join(60)
        original(self, batches)  # a handler of SIGCHLD has run by its first line

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(RunError, match="a data worker was killed, perhaps for lack of memory"):
        train(recipe, tmp_path / "parts", "cpu")
    monkeypatch.undo()
    assert multiprocessing.active_children() == [], "none waits for a lock that a dead one held"
    (saved,) = re.findall(r"step (\d+) is saved; fix the error below, then continue with: ", capsys.readouterr().err)
    assert int(saved) >= 3 and load_checkpoint(RunFolder(tmp_path / "parts").last)["step"] == int(saved)
    resume(tmp_path / "parts", "cpu")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_record_file_that_is_cut_while_training_ends_it_after_a_save(
    tmp_path, small_data, tiny_recipe, monkeypatch, capsys, workers
):
    """The system kills a process that reads a mapped file beyond its end (SIGBUS)."""
    data = tmp_path / "data"
    shutil.copytree(small_data, data)
    recipe = tiny_recipe(**{"data.path": str(data), "data.workers": workers})
    train(recipe, tmp_path / "whole", "cpu")
    original, content = Trainer.train_step, (data / "train.rec").read_bytes()

    def step(self, batches):
        original(self, batches)
        if self.step == 2:
            os.truncate(data / "train.rec", 4096)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(DataError, match=r"train.rec: the file was cut to 4096 bytes while it was read, from \d+"):
        train(recipe, tmp_path / "parts", "cpu")
    monkeypatch.undo()
    assert re.search(r"step \d+ is saved; fix the error below", capsys.readouterr().err)
    (data / "train.rec").write_bytes(content)
    resume(tmp_path / "parts", "cpu")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


OPTIONS = {
    "plain": {},
    "workers, held out": {"data.workers": 2, "data.held_out": 0.25},
    "blocks": {"data.shuffle": "block:3", "data.workers": 1},
    "accumulation": {"training.accumulation_steps": 3, "training.batch_size": 2},
    "adamw cosine": {"optimizer.name": "adamw", "schedule.name": "cosine", "schedule.warmup_epochs": 1},
    "few centres": {"head.sample_rate": 0.3, "training.batch_size": 2},
    "few centres adamw": {"head.sample_rate": 0.3, "training.batch_size": 2, "optimizer.name": "adamw"},
    "as the study ran": {
        **{"data.order": "repeated", "data.flip_draw": "repeated", "data.jpeg_quality": 75, "data.workers": 1},
        **{"schedule.one_step_ahead": True, "training.clip_norm": 1, "training.clip_of": "backbone"},
    },
    "augmentations": {
        **{"data.crop": 0.5, "data.low_resolution": 0.5, "data.photometric": 0.5, "data.erasing": 0.5},
        **{"training.accumulation_steps": 2, "training.batch_size": 3, "data.workers": 1},
    },
    "elasticface plus": {"head.name": "elasticface", "head.plus": True, "head.sample_rate": 0.3},
    "teacher": {"distillation.loss": "embedding_cosine", "data.workers": 1},
    "adadistill, no head, held out": {
        **{"distillation.loss": "adadistill", "distillation.alone": True, "data.held_out": 0.25},
    },
    "from weights": {"backbone.weights": "first.pth", "backbone.frozen": 1, "optimizer.layer_decay": 0.5},
    "from weights, teacher": {
        **{"backbone.weights": "first.pth", "backbone.frozen": 1, "optimizer.layer_decay": 0.5},
        **{"distillation.loss": "adadistill", "optimizer.name": "adamw"},
    },
    "fp16": {"training.precision": "fp16"},
    "bf16": {"training.precision": "bf16"},
}


OF_HEADS = {
    f"head {name}": {"head.name": name, "head.sample_rate": 1.0, "training.batch_size": 2} for name in list_heads()[3:]
}


@pytest.mark.parametrize(
    "options",
    [
        *(pytest.param(options, id=name) for name, options in OPTIONS.items()),
        *(pytest.param(options, id=name, marks=pytest.mark.slow) for name, options in OF_HEADS.items()),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, tiny_recipe, teacher, monkeypatch, options):
    taught = {"distillation.embeddings": teacher} if "distillation.loss" in options else {}
    recipe = tiny_recipe(**options, **taught)
    monkeypatch.chdir(tmp_path)
    torch.save(create_backbone(recipe.backbone.name, recipe.backbone.embedding_size).state_dict(), "first.pth")
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


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ("b a c", r"the same parts in another order: part 1 was \S*/a and is \S*/b; give --data \S*/a.\S*/b.\S*/c$"),
        ("a c b", r"the same parts in another order: part 2 was \S*/b and is \S*/c"),
        ("a b", r"the run had the parts \S*/a, \S*/b, \S*/c, and these are \S*/a, \S*/b: \S*/c is missing"),
        ("a b c d", r"these are .*: \S*/d is new"),
        ("a b d", r"these are .*: \S*/c is missing, \S*/d is new"),
        ("moved/c moved/b moved/a", r"the same parts in another order: part 1 was \S*/a and is \S*/moved/c"),
        ("a", r"these are \S*/a: \S*/b, \S*/c are missing"),
        ("?", r"the run had the parts \S*/a, \S*/b, \S*/c, and these are \S*/\?$"),
    ],
)
def test_what_differs_in_the_parts_of_the_data_is_said(tmp_path, tiny_recipe, monkeypatch, now, message):
    for number, name in enumerate("abcd"):
        for place in (tmp_path / name, tmp_path / "moved" / name):
            for person in range(2):
                (place / str(person)).mkdir(parents=True)
                for image in range(number + 2):
                    pixels = np.random.default_rng([number, person, image]).integers(0, 255, (16, 16, 3), np.uint8)
                    cv2.imwrite(str(place / str(person) / f"{image}.png"), pixels)
    joined = {words: os.pathsep.join(str(tmp_path / word) for word in words.split()) for words in ("a b c", now)}
    stopped_after(monkeypatch, 1)
    options = {"data.path": joined["a b c"], "validation.sets": [], "head.sample_rate": 1.0}
    with pytest.raises(Interrupted):
        train(tiny_recipe(**options), tmp_path / "run", "cpu")
    with pytest.raises(CheckpointError, match=r"was trained on other data") as error:
        resume(tmp_path / "run", "cpu", data=joined[now])
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)
    with pytest.raises(Interrupted):
        stopped_after(monkeypatch, 3)
        resume(tmp_path / "run", "cpu", data=os.pathsep.join(str(tmp_path / "moved" / name) for name in "abc"))


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


KILLS, EPOCHS, EPOCH_STEPS = 20, 16, 7
TOTAL_STEPS = EPOCHS * EPOCH_STEPS


# Imports everything once, then forks a process for each command: twenty imports of torch take longer than the rest.
SERVER = """
import json, os, sys
import facebones.training.run
from facebones.cli.main import main

for line in sys.stdin:
    if (pid := os.fork()) == 0:
        os.dup2(2, 1)
        os._exit(main(json.loads(line)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture
def start(small_data):
    """Start a process of its own that begins or resumes a run in a folder; returns its number and how to await it."""
    options = [
        "--data", small_data, "--backbone", "shufflefacenet_0_5", "--backbone.embedding_size", 32, "--workers", 2,
        "--batch-size", 4, "--training.epochs", EPOCHS, "--training.checkpoint_every", 2, "--log.every", 1,
        "--validation.sets", "tiny", "--validation.every", 10,
    ]  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def run(output):
        begun = (output / "config.yaml").exists()
        words = ["resume", output] if begun else ["train", "demo", "--output", output, *options]
        print(json.dumps([*map(str, words), "--device", "cpu"]), file=server.stdin, flush=True)
        return int(server.stdout.readline()), lambda: int(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait()
    server.stdout.close()


def step_in(folder):
    """The step of the last whole line of the metrics."""
    lines = read_metrics(folder.metrics) if folder.metrics.exists() else []
    return lines[-1]["step"] if lines else 0


@pytest.mark.slow
def test_twenty_sigkills_change_nothing(tmp_path, start):
    """Killed at random places of the whole run, at a random time of a step; every second one within a save."""
    begin = time.monotonic()
    assert start(tmp_path / "whole")[1]() == 0
    step_seconds = (time.monotonic() - begin) / TOTAL_STEPS
    chance, parts, steps, in_a_save = random.Random(7), RunFolder(tmp_path / "parts"), [], 0
    for number in range(KILLS):
        target = (number + chance.random()) / KILLS * 0.95 * TOTAL_STEPS
        process, status = start(parts.path)
        starting_up = number in (5, 15)
        while Path(f"/proc/{process}").exists() and step_in(parts) < target and not starting_up:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5 * step_seconds))
        while Path(f"/proc/{process}").exists() and number % 2 == 0 and not list(parts.last.parent.glob(".*.tmp")):
            time.sleep(0.0002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        assert status() == -signal.SIGKILL, f"the run ended by itself after {number} kills"
        in_a_save += bool(list(parts.last.parent.glob(".*.tmp")))  # that it stays half-written proves it
        steps.append(load_checkpoint(parts.last)["step"])
    assert start(parts.path)[1]() == 0
    print(f"killed at steps {', '.join(map(str, steps))} of {TOTAL_STEPS}; {in_a_save} while a save was being written")
    assert in_a_save >= KILLS // 4
    assert len(set(steps)) >= KILLS // 2
    assert {step * 4 // TOTAL_STEPS for step in steps} == {0, 1, 2, 3}  # in each quarter of the run
    assert len({step % EPOCH_STEPS for step in steps}) >= 4
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
