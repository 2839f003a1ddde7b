"""The example head and the example callback, in a recipe's `import` and in Python."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from facebones.errors import ConfigError, UnknownNameError
from facebones.plugins import import_plugins
from facebones.recipe import head_config, load_config, load_recipe
from facebones.run_folder import RunFolder, read_metrics
from facebones.system.checkpoint import load_checkpoint
from facebones.system.processes import Interrupted
from facebones.training import callbacks
from facebones.training.callbacks import Callback
from facebones.training.run import resume, train
from facebones.training.trainer import Trainer

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD, CALLBACK = EXAMPLES / "norm_head.py", EXAMPLES / "print_callback.py"


@pytest.mark.parametrize("path", [HEAD, CALLBACK], ids=lambda path: path.stem)
def test_an_example_has_at_most_sixty_lines(path):
    assert len(path.read_text().splitlines()) <= 60


@pytest.fixture
def norm_head():
    import_plugins([str(HEAD)])
    return head_config("norm_margin", scale=16, sample_rate=0.7)


def facebones(*words):
    command = [sys.executable, "-m", "facebones", *map(str, words), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def test_a_recipe_names_head_and_callback_and_its_run_resumes_in_another_process(small_data, tmp_path):
    content = {
        "import": [os.path.relpath(HEAD, tmp_path), os.path.relpath(CALLBACK, tmp_path)],  # relative to the recipe
        "backbone": {"name": "shufflefacenet_0_5", "embedding_size": 16},
        "head": {"name": "norm_margin", "scale": 16},
        "data": {"path": str(small_data), "workers": 0},
        "training": {"epochs": 1, "batch_size": 4},
        "validation": {"sets": ["tiny"]},
        "log": {"every": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    done = facebones("train", tmp_path / "recipe.yaml", "--output", tmp_path / "run", "--head.margin", 0.2)
    folder = RunFolder(tmp_path / "run")
    said = [line for line in done.stdout.splitlines() if line.startswith("callback: ")]
    assert len(said) == 4 + 1 + 1 and "callback: step 2 of 7: loss" in said[0]
    assert said[-1] == f"callback: 7 steps of shufflefacenet_0_5 in {folder.path}"
    lines = [line for line in read_metrics(folder.metrics) if line["kind"] == "train"]
    assert all(line["head"]["mean_norm"] > 0 for line in lines) and "mean_norm" in done.stderr
    assert set(load_checkpoint(folder.last)["head"]) == {"centres", "mean_norm"}
    kept = yaml.safe_load(folder.config.read_text())
    assert kept["head"] == {"name": "norm_margin", "scale": 16.0, "sample_rate": 1.0, "margin": 0.2, "decay": 0.9}
    assert kept["import"] == [str(HEAD), str(CALLBACK)]
    again = facebones("resume", folder.path)
    assert f"callback: 0 steps of shufflefacenet_0_5 in {folder.path}" in again.stdout


def test_the_state_of_a_head_resumes_bit_by_bit(tiny_recipe, norm_head, tmp_path, monkeypatch):
    recipe = replace(tiny_recipe(), head=norm_head)
    train(recipe, tmp_path / "whole", "cpu")
    original = Trainer.train_step

    def step(self, batches):
        if self.step == 9:
            raise KeyboardInterrupt
        original(self, batches)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, Interrupted)):
        patch.setattr(Trainer, "train_step", step)
        train(recipe, tmp_path / "parts", "cpu")
    resume(tmp_path / "parts", "cpu")
    whole, parts = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    assert whole.weights.read_bytes() == parts.weights.read_bytes()
    heads = [load_checkpoint(folder.last)["head"] for folder in (whole, parts)]
    assert torch.equal(heads[0]["mean_norm"], heads[1]["mean_norm"]) and heads[0]["mean_norm"] != 20
    lines = [[line.get("head") for line in read_metrics(folder.metrics)] for folder in (whole, parts)]
    assert lines[0] == lines[1]


def test_options_of_a_head_are_its_own(norm_head, tmp_path):
    assert norm_head.options.margin == 0.3
    (tmp_path / "r.yaml").write_text("head: {name: norm_margin, margn: 0.2}")
    with pytest.raises(UnknownNameError, match=r"head\.margn: unknown option of head norm_margin 'margn'; .*'margin'"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("head: {name: norm_margin, m2: 0.2}")
    with pytest.raises(ConfigError, match=r"head norm_margin has no option 'm2'; `head\.name: combined` has it"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("head: {name: norm_margn}")
    with pytest.raises(UnknownNameError, match=r"unknown head 'norm_margn'; did you mean 'norm_margin'"):
        load_recipe(tmp_path / "r.yaml")


def test_reading_a_run_does_not_run_its_plug_ins(tmp_path):
    (tmp_path / "plug.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    (tmp_path / "config.yaml").write_text("import: plug.py\nhead: {name: of_the_plug_in, x: 3}\n")
    recipe = load_config(tmp_path / "config.yaml")
    assert recipe.head.to_dict() == {"name": "of_the_plug_in", "x": "3"}
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UnknownNameError, match="of_the_plug_in"):
        load_config(tmp_path / "config.yaml", run_imports=True)
    assert (tmp_path / "ran").exists()


def test_a_recipe_and_a_run_say_which_plug_ins_they_run(tmp_path, capsys):
    plug, recipe = tmp_path / "said.py", tmp_path / "r.yaml"
    plug.write_text("import sys\nprint('runs', file=sys.stderr)\n")
    recipe.write_text("import: [said.py, said.py]\n")
    load_recipe(recipe)
    note, runs = capsys.readouterr().err.splitlines()
    assert note.startswith("note: ") and str(recipe) in note and note.count(str(plug)) == 1 and runs == "runs"
    load_recipe(recipe)
    assert capsys.readouterr().err == ""
    again = tmp_path / "again.py"
    again.touch()
    (tmp_path / "config.yaml").write_text(f"import: [said.py, {again}]\n")
    with RunFolder(tmp_path).open():
        note = capsys.readouterr().err
    assert note.count("\n") == 1 and str(tmp_path / "config.yaml") in note and str(again) in note
    assert str(plug) not in note


class Meddler(Callback):
    """Draws random numbers and changes what it gets."""

    calls = ()

    def on_step(self, run, step):
        torch.rand(7)
        self.calls += ("step",)

    def on_log(self, run, values):
        torch.manual_seed(99)
        values["loss"] = 0
        self.calls += ("log",)

    def on_validation(self, run, rows):
        rows[0]["accuracy"] = 1
        self.calls += ("validation",)

    def on_end(self, run, result):
        result.clear()
        self.calls += ("end",)


def test_a_callback_sees_everything_and_changes_nothing(tiny_recipe, tmp_path):
    meddler = Meddler()
    results = [train(tiny_recipe(), tmp_path / "plain", "cpu")]
    results.append(train(tiny_recipe(), tmp_path / "watched", "cpu", callbacks=[meddler]))
    assert results[0] == results[1] and results[0]["steps"] == 28
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "watched/model.safetensors").read_bytes()
    counts = {kind: meddler.calls.count(kind) for kind in ("step", "log", "validation", "end")}
    assert counts == {"step": 28, "log": 14, "validation": 6, "end": 1}


def test_a_registered_callback_is_made_for_each_training(tiny_recipe, tmp_path):
    @callbacks.register_callback
    class Counter(Callback):
        made = 0

        def __init__(self):
            Counter.made += 1

    for name in ("a", "b"):
        train(tiny_recipe(**{"training.epochs": 1}), tmp_path / name, "cpu")
    assert Counter.made == 2
