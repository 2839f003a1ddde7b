"""Runs that an older version made resume, and what a newer version added to the recipe does not lock them out."""

import json
import shutil
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

import pytest
import torch

from facebones import recipe as recipes
from facebones.errors import CheckpointError, ConfigError
from facebones.recipe import (
    Recipe,
    TrainingConfig,
    _note_defaults,
    head_config,
    load_config,
    load_recipe,
    older_values,
)
from facebones.run_folder import RunFolder, read_metrics
from facebones.strict_yaml import setting
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.training.run import resume, train

OLDER = Path(__file__).parents[1] / "older" / "v0.2.0.dev0"


@pytest.fixture
def older_run(tmp_path):
    """A copy of a run that was stopped at step 14 of 30."""
    return RunFolder(Path(shutil.copytree(OLDER / "run", tmp_path / "run")))


def finish(folder):
    return resume(folder.path, "cpu", data=str(OLDER / "data"))


def test_a_run_of_the_version_before_resumes_to_the_same_losses(older_run):
    result = finish(older_run)
    expected, found = (read_metrics(path) for path in (OLDER / "whole/metrics.jsonl", older_run.metrics))
    assert len(found) == len(expected) == 18
    for ours, theirs in zip(found, expected, strict=True):
        new = {"head"} if ours["kind"] == "train" and ours["step"] > 14 else set()  # of a version without norms
        assert ours.keys() - {"images_per_second"} == (theirs.keys() - {"images_per_second"}) | new
        numbers = {key for key in ("loss", "gradient_norm", "xnorm", "accuracy") if key in theirs}
        assert {key: ours[key] for key in numbers} == pytest.approx({key: theirs[key] for key in numbers}, rel=1e-5)
    whole = json.loads((OLDER / "whole/result.json").read_text())
    assert result["steps"] == whole["steps"] and result["best"] == whole["best"]
    kept = load_config(older_run.config)
    assert kept.head.name == "combined" and kept.head.options.m2 == 0.2 and kept.data.max_unreadable == 0


def with_field(monkeypatch, name, default, **options):
    """Pretend that a newer version has one field more in the section `training`."""
    newer = make_dataclass(
        "TrainingConfig",
        [(name, type(default), setting(default, "a pretended field", **options))],
        bases=(TrainingConfig,),
        frozen=True,
        kw_only=True,
    )
    monkeypatch.setitem(recipes.SECTIONS, "training", newer)


def test_a_field_whose_default_keeps_the_numbers_does_not_lock_older_runs(older_run, monkeypatch):
    with_field(monkeypatch, "later", 3)
    assert finish(older_run)["steps"] == 30
    assert load_config(older_run.config).training.later == 3
    assert load_checkpoint(older_run.last)["recipe"]["training"]["later"] == 3


def test_a_field_whose_default_changes_the_numbers_is_refused_by_name_until_it_is_written_down(older_run, monkeypatch):
    with_field(monkeypatch, "later", 3, older=0)
    with pytest.raises(CheckpointError, match=r"made before training\.later existed.* 0 .*config\.yaml says 3"):
        finish(older_run)
    text = older_run.config.read_text()
    older_run.config.write_text(text.replace("training:\n", "training:\n  later: 0\n"))
    assert finish(older_run)["steps"] == 30


def test_a_changed_field_of_an_older_run_is_still_refused(older_run):
    older_run.config.write_text(older_run.config.read_text().replace("m2: 0.2", "m2: 0.3"))
    with pytest.raises(CheckpointError, match=r"was made with head\.m2 0\.2, and config\.yaml says 0\.3"):
        finish(older_run)


def test_names_of_fields_of_older_runs_are_translated():
    """In 0.2.0.dev0, heads had no name, and data.max_unreadable was data.unreadable_limit."""
    found = load_checkpoint(OLDER / "run/checkpoints/last.pt")["recipe"]
    assert "name" not in found["head"] and "unreadable_limit" in found["data"]
    now = load_config(OLDER / "run/config.yaml")
    assert older_values(now, found) == now.values()
    assert older_values(Recipe(head=head_config("arcface", margin=0.2)), found)["head.m2"] == 0.2


def test_the_earlier_name_of_a_field_is_accepted_with_a_note(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("data: {unreadable_limit: 3}")
    assert load_recipe(tmp_path / "r.yaml").data.max_unreadable == 3
    assert load_recipe(tmp_path / "r.yaml", {"data.unreadable_limit": "4"}).data.max_unreadable == 4
    assert load_recipe("vggface2_arcface", {"head.m2": "0.4"}).head.options.margin == 0.4
    assert capsys.readouterr().err.count("data.max_unreadable") == 3
    with pytest.raises(ConfigError, match=r"--data\.max_unreadable: .*under another name too"):
        load_recipe(tmp_path / "r.yaml", {"data.unreadable_limit": "4", "data.max_unreadable": "5"})
    (tmp_path / "r.yaml").write_text("data: {unreadable_limit: 3, max_unreadable: 4}")
    with pytest.raises(ConfigError, match=r"unreadable_limit: is the earlier name of data\.max_unreadable"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match=r"--data\.unreadable_limit: 'x' is not a whole number"):
        load_recipe("demo", {"data.unreadable_limit": "x"})


def test_another_head_on_the_command_line_starts_from_its_own_defaults(capsys):
    _note_defaults.cache_clear()  # it is said once in a process
    recipe = load_recipe("demo", {"head.name": "cosface", "head.sample_rate": "0.5"})
    assert recipe.head == head_config("cosface", sample_rate=0.5)
    assert "without arcface's scale 32, margin 0.2" in capsys.readouterr().err
    assert load_recipe("demo", {"head.margin": "0.3"}).head == head_config("arcface", scale=32, margin=0.3)


# ------------------------------------------------------------------------------------------------- error.json


def test_a_failed_run_says_why_and_a_resumed_one_no_longer(break_images, tiny_recipe, tmp_path):
    path, _ = break_images(3)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Exception, match="no readable image") as error:
        train(tiny_recipe(**{"data.path": str(path)}), folder.path, "cpu")
    content = folder.read_error()
    assert content["type"] == "DataError" and content["status"] == 2 and content["message"] == str(error.value)
    assert content["step"] == load_checkpoint(folder.last)["step"] and set(content) == {
        "type", "message", "step", "facebones", "status"
    }  # fmt: skip
    folder.config.write_text(folder.config.read_text().replace("max_unreadable: 0", "max_unreadable: 1"))
    resume(folder.path, "cpu")
    assert not folder.error.exists() and folder.read_error() is None


def test_a_run_of_a_study_that_cannot_be_resumed_says_why(tiny_recipe, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    train(tiny_recipe(), folder.path, "cpu")
    save_checkpoint(folder.last, {})
    with pytest.raises(CheckpointError):
        resume(folder.path, "cpu")
    assert not folder.error.exists(), "a refused resume changes nothing"
    monkeypatch.setenv("FACEBONES_PARENT", "1")
    with pytest.raises(CheckpointError):
        resume(folder.path, "cpu")
    assert folder.read_error()["type"] == "CheckpointError"


def test_what_is_refused_before_the_run_leaves_nothing_but_in_a_study(tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe(**{"training.batch_size": 1000})
    with pytest.raises(ConfigError):
        train(recipe, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("FACEBONES_PARENT", "1")
    with pytest.raises(ConfigError) as error:
        train(recipe, tmp_path / "run", "cpu")
    assert RunFolder(tmp_path / "run").read_error()["message"] == str(error.value)
    monkeypatch.delenv("FACEBONES_PARENT")
    train(tiny_recipe(), tmp_path / "run", "cpu")  # the folder is not taken for a run
    assert RunFolder(tmp_path / "run").read_error() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"type": 3, "message": "", "step": 0, "status": 1}', "[" * 9999])
def test_an_error_file_that_makes_no_sense_is_none(tmp_path, content):
    (tmp_path / "error.json").write_text(content)
    assert RunFolder(tmp_path).read_error() is None


# ------------------------------------------------------------------------------------- what a call leaves behind


def test_training_and_resuming_leave_torch_as_they_found_it(tiny_recipe, tmp_path):
    def state():
        cudnn = torch.backends.cudnn
        flags = (
            cudnn.benchmark,
            cudnn.allow_tf32,
            cudnn.deterministic,
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        )
        return [torch.get_rng_state().tolist(), flags, torch.get_default_dtype()]

    torch.manual_seed(5)
    before = state()
    train(tiny_recipe(**{"training.choose": ["precision"]}), tmp_path / "run", "cpu")
    assert state() == before
    resume(tmp_path / "run", "cpu")
    assert state() == before
    with pytest.raises(ConfigError):
        train(tiny_recipe(**{"validation.sets": ["tiny", "tiny"]}), tmp_path / "other", "cpu")
    assert state() == before


def test_options_of_a_plug_in_are_a_dataclass_of_what_a_recipe_can_hold():
    from facebones.heads import register_head

    @dataclass(frozen=True)
    class Nested:
        inner: dict = field(default_factory=dict)

    for bad in (int, Nested):
        with pytest.raises(ValueError, match="head nested: option"):
            register_head("nested", bad)(object)
    with pytest.raises(ValueError, match="head name taken: arcface"):
        register_head("arcface")(object)
