"""Saves that a thread writes during the training."""

import threading

import pytest
import torch
from shared_states import assert_same, blank, files, on_each, shared_state, whole_state

from facebones.errors import RunError
from facebones.system import background_save, sharded_checkpoint
from facebones.system.background_save import BackgroundSave
from facebones.system.checkpoint import load_checkpoint
from facebones.system.distributed import World
from facebones.system.rows import Rows
from facebones.system.sharded_checkpoint import load_sharded, load_state

CLASSES = 11


class Disk:
    """A disk that writes only while it is `open`, and fails for the processes in `full`."""

    def __init__(self, patch):
        self.open = threading.Event()
        self.full = set()
        self.write_part, self.save_checkpoint = sharded_checkpoint.Save.write_part, background_save.save_checkpoint
        patch.setattr(sharded_checkpoint.Save, "write_part", lambda save: self.part(save))  # noqa: PLW0108
        patch.setattr(background_save, "save_checkpoint", self.single)

    def wait(self, rank):
        assert self.open.wait(20)
        if rank in self.full:
            raise RunError(f"part {rank}: cannot be written: No space left on device")

    def part(self, save):
        self.wait(save.rank)
        self.write_part(save)

    def single(self, path, state):
        self.wait(0)
        self.save_checkpoint(path, state)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk(monkeypatch)
    yield disk
    disk.open.set()


def saving_in(folder, world):
    return BackgroundSave(folder / "last.pt", folder / "last.json", world)


def test_the_state_at_the_begin_is_what_is_saved(tmp_path, disk):
    """Though the training changes its tensors, lists and dictionaries before the disk is ready."""

    def work(world):
        saving, state = saving_in(tmp_path, world), shared_state(whole_state(CLASSES), world)
        saving.begin(state)
        assert saving.begun and not saving.finished and not (tmp_path / "last.json").exists()
        if world.is_first:
            state["backbone"]["half"].zero_()
            state["numbers"].append(3)
            state["recipe"]["training"]["flag"] = False
        state["head"]["weight"].blocks[0].zero_()
        disk.open.set()
        saving.wait()
        assert saving.finished and not saving.failed
        assert not (tmp_path / "last.json").exists(), "only the commit makes it the checkpoint"
        return saving

    savings = on_each(3, work)
    for saving in reversed(savings):
        saving.commit()
        assert saving.finished and not saving.begun
    assert_same(load_sharded(tmp_path / "last.json", blank(whole_state(CLASSES)), World()), whole_state(CLASSES))


def test_one_process_saves_its_file_in_the_background(tmp_path, disk):
    saving, state = saving_in(tmp_path, World()), whole_state(CLASSES)
    saving.begin(state)
    state["head"]["weight"].zero_()
    assert not saving.finished and files(tmp_path) == []
    disk.open.set()
    saving.complete()
    assert files(tmp_path) == ["last.pt"]
    assert_same(load_checkpoint(tmp_path / "last.pt"), whole_state(CLASSES))


def test_a_second_begin_completes_the_first(tmp_path, disk):
    disk.open.set()

    def work(world):
        saving = saving_in(tmp_path, world)
        for step in (1, 2, 3):
            saving.begin(shared_state(whole_state(CLASSES, step), world))
            if step > 1 and world.is_first:
                assert load_sharded(tmp_path / "last.json", None, World())["step"] == step - 1
        saving.complete()
        saving.complete()

    on_each(2, work)
    found = load_state(tmp_path / "last.pt", tmp_path / "last.json", blank(whole_state(CLASSES)), World())
    assert_same(found, whole_state(CLASSES, 3))
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize("call", ["begin", "complete"])
def test_an_error_of_one_thread_is_raised_in_all_and_the_older_checkpoint_stays(tmp_path, disk, call):
    disk.open.set()
    before = []

    def work(world):
        saving, state = saving_in(tmp_path, world), shared_state(whole_state(CLASSES, 1), world)
        saving.begin(state)
        saving.complete()
        disk.full.add(1)
        saving.begin(state | {"step": 2})
        with pytest.raises(RunError, match="part 1: cannot be written") as refused:
            saving.begin(state | {"step": 3}) if call == "begin" else saving.complete()
        before.append(str(refused.value))
        assert saving.finished and not saving.begun
        disk.full.clear()
        return saving, state

    savings = on_each(3, work)
    assert sorted(before) == ["part 1: cannot be written: No space left on device"] + 2 * [
        "process 1: part 1: cannot be written: No space left on device"
    ]
    assert load_sharded(tmp_path / "last.json", None, World())["step"] == 1
    assert len([*tmp_path.iterdir()]) == 2, "the parts of the failed save are gone"
    assert all(not saving.failed for saving, _ in savings)


@pytest.mark.parametrize("call", ["wait", "commit", "begin", "complete"])
def test_an_error_of_the_only_thread_is_raised_by_the_next_call_and_once(tmp_path, disk, call):
    saving = saving_in(tmp_path, World())
    disk.full.add(0)
    saving.begin(whole_state(CLASSES))
    disk.open.set()
    saving._pending.thread.join()
    assert saving.finished and saving.failed
    with pytest.raises(RunError, match="No space left"):
        getattr(saving, call)(*([whole_state(CLASSES)] if call == "begin" else []))
    disk.full.clear()
    saving.begin(whole_state(CLASSES))
    saving.complete()
    assert files(tmp_path) == ["last.pt"]


def test_a_disk_that_does_not_answer_ends_the_wait(tmp_path, disk, monkeypatch):
    monkeypatch.setenv("FACEBONES_TIME_LIMIT", "0.2")

    def work(world):
        saving = saving_in(tmp_path, world)
        saving.begin(shared_state(whole_state(CLASSES), world))
        with pytest.raises(RunError, match=r"last\.json: its part is not written after 0\.2 s; check the disk"):
            saving.complete()

    on_each(2, work)
    assert files(tmp_path) == []


def test_a_commit_without_the_parts_of_others_is_refused(tmp_path, disk):
    disk.open.set()
    disk.full.add(1)

    def work(world):
        saving = saving_in(tmp_path, world)
        saving.begin(shared_state(whole_state(CLASSES), world))
        while not saving.finished:
            pass
        return saving

    first = on_each(2, work)[0]
    with pytest.raises(RunError, match=r"part-1-of-2\.safetensors: process 1 has written it, but it is not here"):
        first.commit()
    assert files(tmp_path) == []


def test_a_copy_shares_no_memory_with_the_state_and_takes_that_of_the_copy_before():
    copy = background_save.HostCopy()
    first = whole_state(CLASSES, 1)
    first["rows"] = Rows([torch.ones(2, 3), torch.ones(0, 3)], 0, 2)
    made = copy.of(first)
    assert_same(made, first)
    place = made["head"]["weight"].data_ptr()
    assert place != first["head"]["weight"].data_ptr() and made["numbers"] is not first["numbers"]
    assert made["rows"].blocks[0].data_ptr() != first["rows"].blocks[0].data_ptr()
    second = whole_state(CLASSES, 2)
    second["backbone"]["half"] = torch.ones(6)
    made = copy.of(second)
    assert_same(made, second)
    assert made["head"]["weight"].data_ptr() == place


def test_parameters_are_copied_without_their_gradients():
    parameter = torch.nn.Parameter(torch.ones(3))
    copy = background_save.HostCopy().of({"a": parameter})["a"]
    assert not copy.requires_grad and copy.data_ptr() != parameter.data_ptr()
