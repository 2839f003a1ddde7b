"""`training.stop_below` ends a training whose accuracy is too low, at a validation and as if it were the last one."""

import json
import math

import pytest
import torch
from groups import RECIPE, Group, outcome

from facebones.backbones.weights import load_backbone
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.errors import ConfigError
from facebones.run_folder import RunFolder, read_metrics
from facebones.system.checkpoint import load_checkpoint
from facebones.system.processes import CAN_FORK
from facebones.training import loop
from facebones.training.run import resume, train
from facebones.training.trainer import Trainer

ACCURACIES = {5: 0.6, 10: 0.55, 15: 0.7, 20: math.nan, 25: 0.5, 28: 0.1}


@pytest.fixture
def measured(monkeypatch):
    """Let a run have these mean accuracies, by step."""

    def change(accuracies):
        monkeypatch.setattr(loop, "mean_accuracy", lambda rows: accuracies[rows[0]["step"]])

    change(ACCURACIES)
    return change


@pytest.mark.parametrize(
    ("limits", "step"),
    [
        ([], 28),
        ([0.61], 5),
        ([0.6], 28),
        ([0.6, 0.61, 0.9], 10),
        ([0.6, 0.6, 0.7, 0.7, 0.71, 1.0], 25),
        ([0.6, 0.6, 0.7, 0.7, 0.7, 1.0, 1.0, 1.0], 28),  # more than validations
    ],
)
def test_a_training_ends_at_the_first_validation_that_is_below_its_number(
    tiny_recipe, tmp_path, measured, capsys, limits, step
):
    result = train(tiny_recipe(**{"training.stop_below": limits}), tmp_path / "run", "cpu")
    folder, early = RunFolder(tmp_path / "run"), step < 28
    assert json.loads(folder.result.read_bytes()) == result and result["steps"] == step
    assert ("stopped_early" in result) == early and result.get("stopped_early", True) is True
    validated = [line["step"] for line in read_metrics(folder.metrics) if line["kind"] == "validation"]
    assert validated == [each for each in ACCURACIES if each <= step]
    assert [row["step"] for row in result["final"]] == [step]
    state, weights = load_checkpoint(folder.last), load_backbone(folder.weights)[0].state_dict()
    assert state["step"] == state["validated_step"] == step
    assert all(torch.equal(value, state["backbone"][name]) for name, value in weights.items())
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped early" in line]
    assert len(said) == early and all(
        f"stopped early at step {step} of 28: at validation {step // 5} the best" in line for line in said
    )


@pytest.mark.parametrize(("limit", "step"), [(0.0, 28), (1e-6, 5)])
def test_an_accuracy_that_is_no_number_is_below_any_but_zero(tiny_recipe, tmp_path, measured, limit, step):
    measured(dict.fromkeys(ACCURACIES, math.nan))
    assert train(tiny_recipe(**{"training.stop_below": [limit]}), tmp_path / "run", "cpu")["steps"] == step


def test_the_validation_of_the_last_step_stops_nothing(tiny_recipe, tmp_path, measured):
    measured(dict.fromkeys((14, 28), 0.5))
    recipe = tiny_recipe(**{"training.stop_below": [0.5, 1.0], "validation.every": 14})
    result = train(recipe, tmp_path / "run", "cpu")
    assert result["steps"] == result["final"][0]["step"] == 28 and "stopped_early" not in result


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("killed", ["before the save", "after the save"])
def test_killed_at_that_validation_it_ends_the_same(tiny_recipe, tmp_path, measured, monkeypatch, killed):
    recipe = tiny_recipe(**{"training.stop_below": [0.6, 0.61]})
    train(recipe, tmp_path / "whole", "cpu")

    def kill(*_):
        raise KeyboardInterrupt

    save = loop.TrainingLoop._save

    def save_or_die(self, *args, **options):
        (kill if self.trainer.validated_step == 10 else save)(self, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if killed == "before the save":
            patch.setattr(loop.TrainingLoop, "_save", save_or_die)
        else:
            patch.setattr(loop, "write_result", kill)
        train(recipe, tmp_path / "parts", "cpu")
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    assert load_checkpoint(parts.last)["step"] == 10 and not parts.result.exists()
    resume(parts.path, "cpu")
    assert parts.result.read_bytes() == whole.result.read_bytes()
    assert parts.weights.read_bytes() == whole.weights.read_bytes()
    validations = [
        [line for line in read_metrics(run.metrics) if line["kind"] == "validation"] for run in (whole, parts)
    ]
    assert validations[0] == validations[1]
    before = contents(parts.path)
    monkeypatch.setattr(Trainer, "train_step", kill)
    assert resume(parts.path, "cpu")["stopped_early"] and contents(parts.path) == before


def test_without_a_validation_there_is_nothing_to_be_below(tiny_recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"^training.stop_below: nothing is validated; give --validation.sets"):
        train(tiny_recipe(**{"training.stop_below": [0.5], "validation.sets": []}), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not CAN_FORK, reason="no fork here")
def test_two_processes_stop_together_where_one_does(small_data, tmp_path):
    pairs, runs = read_pairs(small_data / "tiny.bin"), []
    write_pairs(tmp_path / "hard.bin", pairs.images, [pair % 4 < 2 for pair in range(len(pairs))])  # half are wrong
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    given = {"data": small_data, "validation.sets": tmp_path / "hard.bin", "training.stop_below": "0,0.99"}
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    for size in (1, 2):
        runs.append(tmp_path / f"run{size}")
        line = ["train", str(tmp_path / "recipe.yaml"), "--output", str(runs[-1]), "--training.canonical_shards", "2"]
        with Group([[*line, *options]] * size, tmp_path) as group:
            assert group.wait() == [0] * size, group.all_said(0)
    results = [json.loads((run / "result.json").read_bytes()) for run in runs]
    assert results[0] == results[1] and (results[0]["steps"], results[0]["stopped_early"]) == (10, True)
    assert outcome(runs[0]) == outcome(runs[1])
