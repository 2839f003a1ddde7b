"""Checkpoints of several processes: any number writes, any other number reads the same bits."""

import pytest
from shared_states import SIZES, assert_same, blank, files, on_each, shared_state, whole_state

from facebones.errors import CheckpointError
from facebones.system.checkpoint import save_checkpoint
from facebones.system.distributed import World
from facebones.system.sharded_checkpoint import load_sharded, load_state, save_sharded, save_state


@pytest.mark.parametrize("classes", [11, 3])
@pytest.mark.parametrize("written_by", SIZES)
def test_saved_by_any_number_and_read_by_any_other(tmp_path, classes, written_by):
    index, whole = tmp_path / "last.json", whole_state(classes)
    on_each(written_by, lambda world: save_sharded(index, shared_state(whole, world), world))
    assert len(files(tmp_path)) == 1 + written_by
    for read_by in SIZES:
        for canonical in (0, 2 * read_by):

            def read(world):
                expected = shared_state(whole, world)
                return load_sharded(index, blank(expected), world), expected

            for found, expected in on_each(read_by, read, canonical):
                assert_same(found, expected)
    assert_same(load_sharded(index, blank(whole), World()), whole)


@pytest.mark.parametrize("read_by", SIZES)
def test_the_file_of_one_process_is_read_by_any_number(tmp_path, read_by):
    whole = whole_state(11)
    save_state(tmp_path / "last.pt", tmp_path / "last.json", whole, World())
    assert files(tmp_path) == ["last.pt"]

    def read(world):
        expected = shared_state(whole, world)
        return load_state(tmp_path / "last.pt", tmp_path / "last.json", blank(expected), world), expected

    for found, expected in on_each(read_by, read):
        assert_same(found, expected)


def test_the_newer_form_is_read_and_a_save_removes_the_older(tmp_path):
    single, index = tmp_path / "last.pt", tmp_path / "last.json"

    def save(size, step):
        whole = whole_state(11, step)
        on_each(size, lambda world: save_state(single, index, shared_state(whole, world) if size > 1 else whole, world))
        return whole

    def step_read():
        return load_state(single, index, blank(whole_state(11)), World())["step"]

    save(1, 3)
    save(2, 4)
    assert len(files(tmp_path)) == 3 and step_read() == 4
    save_checkpoint(single, whole_state(11, 5))  # killed before the removal
    assert step_read() == 5
    save_checkpoint(single, whole_state(11, 3))
    assert step_read() == 4
    save(1, 6)
    assert files(tmp_path) == ["last.pt"] and step_read() == 6
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    single.unlink()
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot be read"):
        step_read()


def test_each_save_removes_the_one_before(tmp_path):
    index = tmp_path / "last.json"
    for step in (1, 2, 2, 3):
        whole = whole_state(11, step)
        on_each(3, lambda world, whole=whole: save_sharded(index, shared_state(whole, world), world))
        assert len(list(tmp_path.iterdir())) == 2 and len(files(tmp_path)) == 4
        assert_same(load_sharded(index, blank(whole), World()), whole)
