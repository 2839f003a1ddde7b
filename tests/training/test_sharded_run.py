"""A run whose checkpoint several processes have written."""

from pathlib import Path

import pytest
import torch
from shared_states import on_each
from torch import Tensor

from facebones.backbones.weights import load_backbone
from facebones.errors import CheckpointError, ConfigError
from facebones.recipe import load_config
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.system.distributed import World
from facebones.system.rows import Rows
from facebones.system.sharded_checkpoint import load_state, save_sharded
from facebones.training.optimizer import materialise_optimizer_state
from facebones.training.run import resume, train
from facebones.training.state import check_structure
from facebones.training.trainer import Trainer


def spread(value, world, shape):
    """A state in which the tensors of this shape are spread over processes."""
    if isinstance(value, dict):
        return {key: spread(inner, world, shape) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(spread(inner, world, shape) for inner in value)
    if not isinstance(value, Tensor) or value.shape != shape:
        return value
    ranges = world.class_ranges(len(value))
    return Rows([value[rows.start : rows.stop].clone() for rows in ranges], ranges[0].start, len(value))


@pytest.fixture
def stopped(tiny_recipe, tmp_path, monkeypatch):
    """A run that ended after step 8 with its last save at step 6, which three processes then wrote."""
    original = Trainer.train_step

    def step(self, batches):
        if self.step == 8:
            raise KeyboardInterrupt
        original(self, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", step)
        train(tiny_recipe(**{"optimizer.name": "adamw"}), tmp_path / "run", "cpu")
    folder = RunFolder(tmp_path / "run")
    state = load_checkpoint(folder.last)
    shape = state["head"]["centres"].shape
    on_each(3, lambda world: save_sharded(folder.last_index, spread(state, world, shape), world))
    assert folder.has_last and not folder.last.exists()
    return folder


def test_another_number_of_processes_continues_it_to_the_same_weights(stopped, tiny_recipe, tmp_path):
    trainer = Trainer(load_config(stopped.config), torch.device("cpu"))
    materialise_optimizer_state(trainer.optimizer)
    pattern = trainer.state_dict(0)
    shape = pattern["head"]["centres"].shape

    def load(world):
        own = spread(pattern, world, shape)
        found = load_state(stopped.last, stopped.last_index, own, world)
        check_structure(own["head"], found["head"], "head")
        for key, entry in found["optimizer"]["state"].items():  # parameters without a gradient have none
            check_structure(own["optimizer"]["state"][key], entry, str(key))

    on_each(2, load)
    state = load_state(stopped.last, stopped.last_index, pattern, World())
    trainer.load_state_dict(state, stopped.last_index)
    assert trainer.step == 6
    save_checkpoint(stopped.last, state)
    resume(stopped.path, "cpu")
    train(tiny_recipe(**{"optimizer.name": "adamw"}), tmp_path / "whole", "cpu")
    assert stopped.weights.read_bytes() == RunFolder(tmp_path / "whole").weights.read_bytes()


def test_its_backbone_is_read_before_it_ends(stopped):
    state = load_state(stopped.last, stopped.last_index, None, World())
    for model in (stopped.path, stopped.last_index):
        backbone, path = load_backbone(model)
        assert path == stopped.last_index
        assert all(torch.equal(value, state["backbone"][key]) for key, value in backbone.state_dict().items())
    next(stopped.path.glob("checkpoints/last-6-*/part-0-of-3.safetensors")).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"part-0-of-3\.safetensors: has 0 bytes instead of"):
        load_backbone(stopped.path)


def test_a_backbone_is_read_while_the_training_replaces_it(stopped, monkeypatch):
    """The parts that the index named may be gone when they are opened."""
    from facebones.system import sharded_reader

    state = load_state(stopped.last, stopped.last_index, None, World())
    read, replaced = sharded_reader.read_index, []

    def read_index(path: Path):
        index = read(path)
        if not replaced:
            replaced.append(1)
            on_each(2, lambda world: save_sharded(path, {**plain(state), "step": 7}, world))
        return index

    monkeypatch.setattr(sharded_reader, "read_index", read_index)
    assert load_backbone(stopped.path)[1] == stopped.last_index and replaced


def plain(state):
    return {key: state[key] for key in ("recipe", "backbone")}


def test_its_folder_is_one_that_has_begun_and_is_cleaned(stopped):
    for index in (stopped.last_index, stopped.best_index):
        leftover = index.with_name(f"{index.stem}-9-abcdef")
        leftover.mkdir()
        (leftover / "part-0-of-2.safetensors").write_bytes(b"half")
    other = stopped.last.parent / "last-notes"
    other.mkdir()
    with stopped.open():
        names = sorted(path.name for path in stopped.last.parent.iterdir() if path.suffix != ".pt")
    (parts,) = stopped.last.parent.glob("last-6-*")
    assert names == sorted([parts.name, "last-notes", "last.json"])
    for path in (stopped.best_index, stopped.last_index):
        (other / path.name).mkdir(parents=True)
        held = RunFolder(other / path.name)
        (held.path / "checkpoints").mkdir()
        (held.path / "checkpoints" / path.name).write_text("{}")
        assert held.begun == (path == stopped.best_index)
        with pytest.raises(ConfigError, match=rf"{path.name}: is there already"):
            held.refuse_existing()


def test_parts_are_kept_where_the_index_cannot_be_read(stopped):
    stopped.last_index.write_bytes(b"{")
    with stopped.open():
        assert [*stopped.last.parent.glob("last-6-*/part-2-of-3.safetensors")]
