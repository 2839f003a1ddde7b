"""data.max_unreadable: a long training survives some broken images, and says so."""

import json

import pytest
import torch

from facebones.errors import CheckpointError, DataError
from facebones.recipe import load_recipe
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.training.run import resume, train
from facebones.training.trainer import UnreadableImages


def run(recipe, output):
    train(recipe, output, "cpu")
    return load_checkpoint(RunFolder(output).last)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_goes_on_without_them_and_counts_them(break_images, tiny_recipe, tmp_path, capsys, workers):
    folder, place = break_images(3)
    recipe = tiny_recipe(**{"data.path": str(folder), "data.max_unreadable": 2, "data.workers": workers})
    state = run(recipe, tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "no readable image" in line]
    assert len(said) == 1 and f"key 4, byte {place}" in said[0]
    assert said[0].endswith("the next image takes its place (1 of 2 allowed)")
    assert state["unreadable"] == [3]
    assert json.loads(RunFolder(tmp_path / "run").result.read_text())["unreadable_images"] == 1


def test_one_more_than_allowed_ends_it_saved_and_a_higher_limit_goes_on_bit_by_bit(break_images, tiny_recipe, tmp_path):
    path = str(break_images(3, 5)[0])
    expected = run(tiny_recipe(**{"data.path": path, "data.max_unreadable": 2}), tmp_path / "whole")
    folder = RunFolder(tmp_path / "parts")
    with pytest.raises(DataError, match=r"data\.max_unreadable is 1, and this is one more"):
        run(tiny_recipe(**{"data.path": path, "data.max_unreadable": 1}), folder.path)
    assert load_recipe(folder.config).data.max_unreadable == 1
    folder.config.write_text(folder.config.read_text().replace("max_unreadable: 1", "max_unreadable: 2"))
    resume(folder.path, "cpu")
    found = load_checkpoint(folder.last)
    assert sorted(found["unreadable"]) == [3, 5]
    assert all(torch.equal(tensor, found["backbone"][key]) for key, tensor in expected["backbone"].items())


@pytest.mark.parametrize("forged", [3, [True], [-1], [10**6], ["a"]])
def test_a_checkpoint_with_anything_else_than_indices_is_refused(tiny_recipe, tmp_path, forged):
    folder = RunFolder(tmp_path / "run")
    state = run(tiny_recipe(**{"data.max_unreadable": 1}), folder.path)
    save_checkpoint(folder.last, state | {"unreadable": forged})
    with pytest.raises(CheckpointError, match="unreadable: holds no indices of images"):
        resume(folder.path, "cpu")


def test_an_image_is_counted_once(capsys):
    unreadable = UnreadableImages(limit=1, total=9)
    for _ in range(3):
        unreadable.add({4: "a.jpg: broken"})
    assert unreadable.images == [4] and capsys.readouterr().err.count("a.jpg") == 1
