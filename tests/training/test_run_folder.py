"""A run folder that was moved, damaged, forged, half-made, or is in use."""

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import facebones
from facebones import load_results
from facebones.cli.main import _parse
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.errors import CheckpointError, ConfigError
from facebones.recipe import load_recipe
from facebones.reporting.plots.report_plots import report_plots
from facebones.run_folder import RunFolder, read_metrics
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.training.run import TrainingLoop, resume, train
from facebones.training.trainer import Trainer


@pytest.fixture
def stopped(tiny_recipe, tmp_path, monkeypatch):
    """Begin a run and stop it by an error after so many steps, with its last save at step 6."""

    def begin(recipe=None, steps=8):
        original = Trainer.train_step

        def step(self, batches):
            if self.step == steps:
                raise KeyboardInterrupt
            original(self, batches)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", step)
            with pytest.raises(KeyboardInterrupt):
                train(recipe or tiny_recipe(), tmp_path / "run", "cpu")
        return RunFolder(tmp_path / "run")

    return begin


def stop(*_):
    raise KeyboardInterrupt


def finish(folder):
    return resume(folder.path, "cpu")


# ------------------------------------------------------------------------------------------------------ moves


def test_a_pair_set_at_a_relative_path_is_found_from_any_folder(
    stopped, tiny_recipe, small_data, tmp_path, monkeypatch
):
    (tmp_path / "other.bin").symlink_to(small_data / "tiny.bin")
    monkeypatch.chdir(tmp_path)
    folder = stopped(tiny_recipe(**{"validation.sets": ["tiny", "other.bin"]}))
    monkeypatch.chdir("/")
    assert load_recipe(folder.config).validation.sets == ["tiny", str(tmp_path / "other.bin")]
    assert [row["set"] for row in finish(folder)["final"]] == ["tiny", "other"]


def test_pair_sets_may_move_but_not_change(stopped, tiny_recipe, small_data, tmp_path):
    place = tmp_path / "sets" / "tiny.bin"
    place.parent.mkdir()
    pairs = read_pairs(small_data / "tiny.bin")
    write_pairs(place, pairs.images, pairs.is_same)
    folder = stopped(tiny_recipe(**{"validation.sets": [str(place)]}))
    recipe = load_recipe(folder.config)
    for images, is_same in (
        ([*pairs.images[2:], *pairs.images[:2]], pairs.is_same),
        (pairs.images, ~pairs.is_same),
        (pairs.images[:-2], pairs.is_same[:-1]),
    ):
        write_pairs(place, images, is_same)
        with pytest.raises(CheckpointError, match="validated on other sets than tiny as they are now"):
            finish(folder)
    place.unlink()
    folder.write_recipe(replace(recipe, validation=replace(recipe.validation, sets=["tiny"])))
    assert finish(folder)["steps"] == 28


def test_where_the_data_has_moved_to_and_the_workers_are_kept(stopped, tiny_recipe, small_data, tmp_path):
    folder = stopped()
    folder.write_recipe(tiny_recipe(**{"data.path": "/gone"}))
    other = tmp_path / "other"
    other.mkdir()
    for path in small_data.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        resume(folder.path, "cpu", data=str(other), workers=1)
    data = load_recipe(folder.config).data
    assert (data.path, data.workers) == (str(other), 1)
    assert finish(folder)["steps"] == 28


def test_the_hint_can_be_typed_as_it_stands(tmp_path):
    folder = RunFolder(tmp_path / "my run; it's $HOME")
    assert _parse(shlex.split(folder.resume_command)[1:]).run_folder == folder.path


def test_the_interval_of_checkpoints_may_be_changed(stopped, tiny_recipe):
    folder = stopped()
    folder.write_recipe(tiny_recipe(**{"training.checkpoint_every": 1}))
    assert finish(folder)["steps"] == 28


# ----------------------------------------------------------------------------------------------- lost and broken


def test_a_run_that_has_done_nothing_begins_and_one_that_has_lost_its_checkpoint_does_not(stopped, tiny_recipe):
    folder = stopped(steps=0)
    assert load_checkpoint(folder.last)["step"] == 0
    folder.last.unlink()  # as after a kill before the first save
    folder.environment.unlink()
    assert finish(folder)["steps"] == 28 and folder.environment.is_file()
    folder.last.unlink()
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    for lost in ([], [folder.metrics], [folder.result, folder.weights, folder.card]):
        for path in lost:
            path.unlink()
            del before[path]
        with pytest.raises(CheckpointError, match=r"last\.pt: is gone"):
            finish(folder)
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kept", ["nothing", "two lines and a half", "an edited file"])
def test_lost_metrics_are_noted_and_the_run_goes_on(stopped, tiny_recipe, tmp_path, capsys, kept):
    folder = stopped()
    content = folder.metrics.read_bytes()
    lines = content.splitlines(keepends=True)
    if kept == "nothing":
        folder.metrics.unlink()
    elif kept == "two lines and a half":
        folder.metrics.write_bytes(b"".join(lines[:2]) + lines[2][:9])
    else:
        folder.metrics.write_bytes(content.replace(b": ", b":  "))
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:  # killed with a line unsaved
        patch.setattr(
            TrainingLoop, "_log_interval", lambda self, log: stop(log.write("train", {"step": self.trainer.step}))
        )
        finish(folder)
    assert "metrics.jsonl: lines are missing" in capsys.readouterr().err
    finish(folder)
    assert "lines are missing" not in capsys.readouterr().err
    found = read_metrics(folder.metrics)
    train_steps = [line["step"] for line in found if line["kind"] == "train"]
    assert train_steps[-11:] == list(range(8, 29, 2)) and len(set(train_steps)) == len(train_steps)
    pictures = report_plots(load_results(folder.path))
    assert {"loss", "accuracy_tiny"} <= {name for name in pictures if pictures[name].axes}


def test_a_finished_run_without_its_metrics_can_be_resumed(stopped, capsys):
    folder = stopped()
    finish(folder)
    weights = folder.weights.read_bytes()
    folder.metrics.unlink()
    finish(folder)
    assert folder.weights.read_bytes() == weights
    assert "lines are missing" in capsys.readouterr().err


FORGED = {
    "step is text": {"step": "7"},
    "step is a truth value": {"step": True},
    "step beyond the end": {"step": 35, "epoch": 5, "position": 0},
    "step below zero": {"step": -7, "epoch": -1, "position": 0},
    "no meter": {"meter": None},
    "meter of text": {"meter": {"loss_sum": "1", "counted": 1, "skipped": 0}},
    "meter lacks": {"meter": {"loss_sum": 1.0}},
    "no optimizer": {"optimizer": None},
    "optimizer lacks": {"optimizer": {"state": {}}},
    "optimizer of one group": {"optimizer": {"state": {}, "param_groups": []}},
    "optimizer state of text": {"optimizer": {"state": {0: "x"}, "param_groups": []}},
    "no generator": {"rng": None},
    "generator lacks": {"rng": {}},
    "generator of numbers": {"rng": {"cpu": torch.zeros(3)}},
    "generator of bytes": {"rng": {"cpu": torch.zeros(5056, dtype=torch.uint8)}},
    "best lacks": {"best": {"step": 3}},
    "best of other sets": {"best": {"step": 3, "mean_accuracy": 0.5, "sets": {"lfw": 0.5}}},
    "latest lacks": {"latest": {}},
    "final is text": {"final": "abc"},
    "final of numbers": {"final": [3]},
    "final lacks": {"final": [{"set": "tiny"}]},
    "recipe is a list": {"recipe": [1]},
    "recipe of lists": {"recipe": {"backbone": [1]}},
    "recipe of tensors": {"recipe": {"backbone": {"name": torch.ones(3)}}},
    "recipe of a head of lists": {"recipe": {"head": {"name": [1], "m2": [2]}}},
    "head metrics of text": {"meter": {"loss_sum": 1.0, "counted": 1, "skipped": 0, "head": {"norm": "1"}}},
    "no data": {"data": None},
    "data lacks": {"data": {"images": 28}},
    "data of tensors": {"data": {"images": torch.ones(2), "identities": 4, "labels_sha256": ""}},
    "no sets": {"validation": None},
    "sets of tensors": {"validation": {"tiny": {"pairs": torch.ones(3), "sha256": ""}}},
    "no backbone": {"backbone": None},
    "backbone of numbers": {"backbone": {"conv.weight": 3}},
    "no head": {"head": {}},
    "head of another shape": {"head": {"centres": torch.zeros(4, 8)}},
    "head of whole numbers": {"head": {"centres": torch.zeros(4, 16, dtype=torch.int64)}},
    "scaler has more": {"scaler": {"scale": 1.0}},
    "validated at text": {"validated_step": "5"},
    "metrics of text": {"metrics_bytes": "5"},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_forged_state_is_refused_and_nothing_is_changed(stopped, forged):
    folder = stopped()
    save_checkpoint(folder.last, load_checkpoint(folder.last) | forged)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"last\.pt: ") as refused:
        finish(folder)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_damaged_generator_of_a_head_is_refused(stopped, tiny_recipe):
    folder = stopped(tiny_recipe(**{"head.name": "elasticface"}))
    state = load_checkpoint(folder.last)
    head = state["head"] | {"_extra_state": torch.zeros_like(state["head"]["_extra_state"])}
    save_checkpoint(folder.last, state | {"head": head})
    with pytest.raises(CheckpointError, match=r"last\.pt: head elasticface: no state of a random generator; damaged"):
        finish(folder)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizer_state_of_other_shapes_is_refused(stopped, tiny_recipe, name):
    folder = stopped(tiny_recipe(**{"optimizer.name": name}))
    state = load_checkpoint(folder.last)
    key = {"sgd": "momentum_buffer", "adamw": "exp_avg"}[name]
    for broken in (torch.zeros(3), None, "x"):
        entries = state["optimizer"]["state"]
        wrong = {**entries, 2: {**entries[2], key: broken}}
        save_checkpoint(folder.last, state | {"optimizer": {**state["optimizer"], "state": wrong}})
        with pytest.raises(CheckpointError, match=rf"optimizer\.state\.2\.{key}: holds .* instead of a tensor"):
            finish(folder)
    save_checkpoint(folder.last, state)
    assert finish(folder)["steps"] == 28


# --------------------------------------------------------------------------------------------------- the lock

HOLD = """
import os, sys, time
from pathlib import Path
from facebones.run_folder import RunFolder

with RunFolder(Path(sys.argv[1])).open():
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    print(child, flush=True)
    time.sleep(600)
"""


def test_a_folder_in_use_is_refused_until_its_process_dies_though_its_workers_live(stopped, tiny_recipe):
    folder = stopped()
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        before = folder.metrics.read_bytes()
        with pytest.raises(ConfigError, match="another process trains here"):
            finish(folder)
        with pytest.raises(ConfigError, match="another process trains here"), folder.create(tiny_recipe()):
            pass
        assert folder.metrics.read_bytes() == before
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives
        assert finish(folder)["steps"] == 28
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_where_locks_are_unknown_this_is_said_and_the_run_goes_on(stopped, monkeypatch, capsys):
    def unknown(*_):
        raise OSError(37, "No locks available")

    folder = stopped()
    monkeypatch.setattr("fcntl.lockf", unknown)
    assert finish(folder)["steps"] == 28
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_what_the_environment_says(stopped, small_data):
    environment = json.loads(stopped().environment.read_text())
    assert environment["validation"]["tiny"]["pairs"] == 20
    assert Path(environment["data"]["path"]) == small_data


def test_the_environment_keeps_what_was_not_as_before_when_the_run_went_on(stopped, monkeypatch, capsys):
    folder = stopped()
    first = json.loads(folder.environment.read_text())
    finish(folder)
    assert json.loads(folder.environment.read_text()) == first
    assert "changed since the run started" not in capsys.readouterr().err

    folder.result.unlink()
    monkeypatch.setattr(facebones, "__version__", "7.0")
    for _ in range(2):  # the second time, this is as before
        finish(folder)
        assert json.loads(folder.environment.read_text()) == first | {"resumed": {"step 28": {"facebones": "7.0"}}}
    said = [line for line in capsys.readouterr().err.splitlines() if "changed since the run started" in line]
    assert said == [f"note: changed since the run started: facebones 7.0, was {first['facebones']}"]


def test_a_recipe_without_data_is_not_taken_for_the_present_folder(stopped):
    folder = stopped()
    folder.config.write_text("")
    with pytest.raises(CheckpointError, match=r"config\.yaml: names no data"):
        finish(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"resumed": 3}', '{"resumed": {"step 1": 3}}'])
def test_an_environment_that_is_not_understood_is_left_as_it_is(stopped, capsys, content):
    folder = stopped()
    folder.environment.write_text(content)
    assert finish(folder)["steps"] == 28
    assert folder.environment.read_text() == content
    assert "environment.json: not understood, and left as it is" in capsys.readouterr().err
