"""--speed auto: what it takes, what it refuses, and that a run keeps what it took."""

import json
from dataclasses import replace

import pytest
import torch

from facebones.cli.main import main
from facebones.errors import RunError
from facebones.recipe import load_recipe
from facebones.run_folder import RunFolder
from facebones.study.launchers.local import next_run
from facebones.study.plan import make_plan
from facebones.study.study import load_study
from facebones.training import autotune
from facebones.training.autotune import COMPILING_SECONDS, Trial, choose_settings, measure
from facebones.training.run import TrainingLoop, resume, train
from facebones.training.trainer import Trainer

CPU = torch.device("cpu")
LONG, SHORT = 100 * COMPILING_SECONDS, COMPILING_SECONDS
GRADIENT = torch.ones(4, dtype=torch.double)


def trial(precision, compile, total_seconds, *, loss=10.0, gradient=GRADIENT):
    return Trial(
        precision=precision,
        compile=compile,
        loss=loss,
        gradient=gradient,
        step_seconds=1.0,
        total_seconds=total_seconds,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep what is measured out of the user's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "facebones" / "autotune.json"


@pytest.fixture
def measured(monkeypatch):
    """Replace the measurement by given trials; returns the settings that were asked for."""
    asked = []

    def use(*trials):
        known = {(found.precision, found.compile): found for found in trials}

        def answer(recipe, device):
            assert recipe.training.choose == []
            asked.append((recipe.training.precision, recipe.training.compile))
            return known[asked[-1]]

        monkeypatch.setattr(autotune, "measure", answer)
        return asked

    return use


def chosen(recipe, choose=("precision", "compile"), **training):
    result = choose_settings(replace(recipe, training=replace(recipe.training, choose=list(choose), **training)), CPU)
    assert result.training.choose == []
    return result.training.precision, result.training.compile


@pytest.mark.parametrize("best", [("fp32", False), ("bf16", False), ("fp32", True), ("bf16", True)])
def test_the_fastest_is_taken(tiny_recipe, measured, capsys, best):
    every = [("fp32", False), ("bf16", False), ("fp32", True), ("bf16", True)]
    asked = measured(*(trial(*setting, LONG - (setting == best)) for setting in every))
    assert chosen(tiny_recipe()) == best and asked == every
    assert f"autotune: uses {best[0]}{' compiled' if best[1] else ''}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad", [{"gradient": torch.tensor([1.0, 1, 1, -1]).double()}, {"loss": 10.2}, {"gradient": GRADIENT * torch.nan}]
)
def test_what_computes_something_else_is_not_taken(tiny_recipe, measured, capsys, bad):
    measured(trial("fp32", False, SHORT), trial("bf16", False, SHORT / 2, **bad))
    assert chosen(tiny_recipe()) == ("fp32", False)
    assert "autotune: bf16: 1 s a step, 30s in total, but its gradient differs\n" in capsys.readouterr().err


def test_a_short_training_is_not_compiled_for(tiny_recipe, measured, capsys):
    asked = measured(trial("fp32", False, LONG), trial("bf16", False, SHORT))
    assert chosen(tiny_recipe()) == ("bf16", False) and len(asked) == 2
    assert "the training is too short to compile for" in capsys.readouterr().err


def test_a_quick_setting_that_computes_something_else_does_not_keep_others_from_being_compiled(tiny_recipe, measured):
    wrong = trial("bf16", False, SHORT, gradient=-GRADIENT)
    measured(trial("fp32", False, LONG), wrong, trial("fp32", True, SHORT), trial("bf16", True, LONG))
    assert chosen(tiny_recipe()) == ("fp32", True)


def test_what_is_not_left_open_stays(tiny_recipe, measured):
    asked = measured(trial("bf16", False, LONG), trial("bf16", True, LONG - 1))
    assert chosen(tiny_recipe(), ["compile"], precision="bf16") == ("bf16", True)
    assert asked == [("bf16", False), ("bf16", True)]


def test_with_compiling_given_both_precisions_are_held_against_the_plain_way(tiny_recipe, measured):
    asked = measured(*(trial(p, c, LONG - (p == "bf16") - c) for p in ("fp32", "bf16") for c in (False, True)))
    assert chosen(tiny_recipe(), ["precision"], compile=True) == ("bf16", True)
    assert asked == [("fp32", False), ("fp32", True), ("bf16", True)]


def test_what_was_chosen_is_known_the_next_time_and_for_other_seeds(tiny_recipe, measured, capsys):
    asked = measured(trial("fp32", False, SHORT), trial("bf16", False, SHORT - 1))
    for seed in (0, 0, 1):
        assert chosen(tiny_recipe(), seed=seed) == ("bf16", False)
    assert len(asked) == 2 and "autotune: uses bf16, as measured here before\n" in capsys.readouterr().err
    chosen(tiny_recipe(), batch_size=8)
    assert len(asked) == 4


@pytest.mark.parametrize("content", ["x", "[]", '"KEY": 1', '"KEY": {"precision": "fp64", "compile": false}'])
def test_what_others_left_in_the_cache_is_ignored_and_said(tiny_recipe, measured, cache, capsys, content):
    asked = measured(trial("fp32", False, SHORT), trial("bf16", False, SHORT - 1))
    chosen(tiny_recipe())
    (key,) = json.loads(cache.read_bytes())
    cache.write_text("{" + content.replace('"KEY"', json.dumps(key)) + "}" if "KEY" in content else content)
    assert chosen(tiny_recipe()) == ("bf16", False) and len(asked) == 4
    assert f"{cache}: " in (said := capsys.readouterr().err) and "ignored" in said
    assert chosen(tiny_recipe()) == ("bf16", False) and len(asked) == 4


def test_a_given_compiling_stays_also_where_the_plain_way_is_quicker_or_the_training_short(tiny_recipe, measured):
    measured(trial("fp32", False, SHORT), trial("fp32", True, LONG), trial("bf16", True, LONG - 1))
    assert chosen(tiny_recipe(), ["precision"], compile=True) == ("bf16", True)


@pytest.mark.parametrize("error", [RunError("step 1: loss nan"), RuntimeError("no C++ compiler\nand more")])
def test_a_setting_that_cannot_be_measured_is_left_out(tiny_recipe, monkeypatch, capsys, error):
    def answer(recipe, device):
        if recipe.training.precision == "bf16":
            raise error
        return trial("fp32", False, SHORT)

    monkeypatch.setattr(autotune, "measure", answer)
    assert chosen(tiny_recipe()) == ("fp32", False)
    assert f"autotune: skips bf16: {str(error).splitlines()[0]}\n" in capsys.readouterr().err


def test_where_nothing_agrees_the_recipe_stays(tiny_recipe, measured, cache):
    off = {"gradient": -GRADIENT}
    measured(trial("fp32", False, SHORT), trial("fp32", True, SHORT, **off), trial("bf16", True, SHORT, **off))
    assert chosen(tiny_recipe(), ["precision"], compile=True) == ("fp32", True)
    assert not cache.exists()


def test_a_training_of_fewer_steps_than_are_measured_can_be_measured(tiny_recipe):
    recipe = tiny_recipe(**{"training.epochs": 1, "training.batch_size": 14, "schedule.power": 1.5})
    assert Trainer(recipe, CPU).total_steps == 2 and measure(recipe, CPU).step_seconds > 0


def test_precisions_agree_on_a_real_step_and_other_data_does_not(tiny_recipe):
    plain, half = (measure(tiny_recipe(**{"training.precision": precision}), CPU) for precision in ("fp32", "bf16"))
    assert half.agrees(plain) and plain.step_seconds > 0
    assert not torch.equal(half.gradient, plain.gradient)
    assert not measure(tiny_recipe(**{"training.seed": 1}), CPU).agrees(plain)
    scaled = measure(tiny_recipe(**{"training.precision": "fp16"}), CPU)  # its first steps are left out
    assert scaled.agrees(plain)


def test_measuring_leaves_the_training_what_it_was(tiny_recipe, tmp_path):
    recipe = tiny_recipe(**{"training.epochs": 1})
    open_recipe = replace(recipe, training=replace(recipe.training, choose=["precision"]))
    train(open_recipe, tmp_path / "open", "cpu")
    kept = load_recipe(tmp_path / "open" / "config.yaml")
    assert kept.training.choose == []
    train(
        replace(recipe, training=replace(recipe.training, precision=kept.training.precision)), tmp_path / "set", "cpu"
    )
    first, second = (RunFolder(tmp_path / name).weights.read_bytes() for name in ("open", "set"))
    assert first == second


def test_a_resumed_run_does_not_choose_again(tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe(**{"training.epochs": 1, "training.choose": ["precision"]})
    original = TrainingLoop.run

    def stop(self):
        raise RunError("stopped here")

    monkeypatch.setattr(TrainingLoop, "run", stop)
    with pytest.raises(RunError, match="stopped here"):
        train(recipe, tmp_path / "run", "cpu")
    monkeypatch.setattr(TrainingLoop, "run", original)
    monkeypatch.setattr(autotune, "measure", None)
    assert resume(tmp_path / "run", "cpu")["steps"] == 7


def test_on_the_command_line_what_is_given_stays(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "facebones.training.run.train", lambda recipe, *_: seen.append(recipe.training) or {"final": []}
    )
    words = ["train", "small_data", "--output", str(tmp_path / "run")]
    for more in ([], ["--speed", "auto"], ["--speed", "auto", "--training.precision", "bf16"]):
        assert main(words + more) == 0
    assert [(training.choose, training.precision) for training in seen] == [
        ([], "fp32"),
        (["precision", "compile"], "fp32"),
        (["compile"], "bf16"),
    ]


def test_a_study_accepts_what_its_runs_have_chosen_and_nothing_else(small_data, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("recipe: small_data\nbackbones: shufflefacenet_0_5\nprofile: false\n")
    given = {"data": str(small_data), "pair_sets": "tiny"}
    fields = {"training.batch_size": "4", "training.choose": "precision"}

    def plan(overrides):
        return make_plan(load_study(str(file), overrides=overrides, **given), tmp_path / "out")

    (run,) = plan(fields).runs
    kept = replace(run.recipe, training=replace(run.recipe.training, choose=[], precision="bf16"))
    run.folder.path.mkdir(parents=True)
    run.folder.write_recipe(kept)
    assert plan(fields).runs[0].state == "unfinished"
    assert plan({"training.batch_size": "4", "training.precision": "bf16"}).runs
    with pytest.raises(Exception, match=r"training\.precision bf16, and the study says fp32"):
        plan({"training.batch_size": "4"})


def test_the_seeds_of_a_study_are_trained_with_what_the_first_of_them_has_chosen(small_data, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("recipe: small_data\nbackbones: [shufflefacenet_0_5, shufflefacenet_1_0]\nseeds: [0, 1]\n")
    fields = {"training.batch_size": "4", "training.choose": "precision"}
    study = load_study(str(file), overrides=fields, data=str(small_data), pair_sets="tiny")
    first, second, other, _ = runs = make_plan(study, tmp_path / "out").runs
    assert next_run(runs, []) is first and next_run([second, other], [first]) is other
    assert next_run([second], [first]) is None and second.first_recipe() == second.recipe
    first.folder.path.mkdir(parents=True)
    chosen_fields = replace(first.recipe.training, choose=[], precision="bf16")
    first.folder.write_recipe(replace(first.recipe, training=chosen_fields))
    assert next_run([second, other], [first]) is second
    assert second.first_recipe().training == replace(chosen_fields, seed=1)
    assert other.first_recipe() == other.recipe
