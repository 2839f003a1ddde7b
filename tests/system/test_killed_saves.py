"""A save that is killed at any moment, or finds the disk full, leaves the older checkpoint or the new one, whole."""

import errno
import os
import random
import select
import signal
import sys
import threading
import time

import pytest
from shared_states import assert_same, blank, files, on_each, shared_state, whole_state

from facebones.errors import RunError
from facebones.system import safetensors_file
from facebones.system.checkpoint_index import remove_leftovers
from facebones.system.distributed import World
from facebones.system.sharded_checkpoint import load_state, newest, save_sharded, save_state

CLASSES = 11


def save(folder, step, size):
    whole = whole_state(CLASSES, step)
    state = (lambda world: shared_state(whole, world)) if size > 1 else (lambda world: whole)
    on_each(size, lambda world: save_state(folder / "last.pt", folder / "last.json", state(world), world))


def read(folder):
    """The step of the newest checkpoint, whose every bit is checked, after the clean-up of an open."""
    remove_leftovers(folder / "last.json")
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    single, index = folder / "last.pt", folder / "last.json"
    found = load_state(single, index, blank(whole_state(CLASSES)), World())
    assert_same(found, whole_state(CLASSES, found["step"]))
    assert len([*folder.iterdir()]) <= 3, "index and parts, and a file of one process that was not removed yet"
    return found["step"]


def in_child(work):
    """Start `work()` in a forked process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os._exit(1)
    return child


def test_killed_at_thirty_random_moments(tmp_path):
    draw = random.Random(1)
    save(tmp_path, 1, 2)
    step = 1
    for _ in range(30):
        told, tell = os.pipe()

        def save_on(first=step + 1, tell=tell):
            for number in range(first, first + 1000):
                save(tmp_path, number, (3, 1, 2, 2)[number % 4])
                os.write(tell, b".")

        child = in_child(save_on)
        try:
            assert select.select([told], [], [], 20)[0], "no save within 20 s"
            time.sleep(draw.uniform(0, 0.06))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        done = len(os.read(told, 10_000))
        os.close(told)
        os.close(tell)
        before, step = step, read(tmp_path)
        assert before + done <= step <= before + done + 1
    assert step > 30


EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "tempfile.mkstemp")


@pytest.mark.parametrize("sizes", [(2, 3), (2, 1), (1, 2)])
def test_killed_at_each_change_of_a_file(tmp_path, sizes):
    """The process ends at the first, second, ... use of a file in the second save."""
    steps, moment, ended = [], 0, False
    while not ended:
        folder = tmp_path / str(moment)
        folder.mkdir()
        save(folder, 1, sizes[0])

        def killed(folder=folder, left=[moment]):  # noqa: B006 (counted down)
            def count(event, arguments):
                if event in EVENTS and str(folder) in str(arguments[0]):
                    left[0] -= 1
                    if left[0] < 0:
                        os._exit(7)

            sys.addaudithook(count)
            save(folder, 2, sizes[1])

        _, status = os.waitpid(in_child(killed), 0)
        assert os.waitstatus_to_exitcode(status) in (0, 7)
        ended = status == 0
        steps.append(read(folder))
        moment += 1
    # The parts are written by threads, so the uses of files need not come in the same order each time.
    assert steps[0] == 1 and steps[-1] == 2 and {*steps} == {1, 2} and moment > 8


@pytest.mark.parametrize("full", [0, 2])
def test_a_full_disk_keeps_the_older_checkpoint_and_leaves_nothing(tmp_path, full, monkeypatch):
    save(tmp_path, 1, 2)
    before = files(tmp_path)
    written = safetensors_file._write_values
    calls, ranks = [], {}

    def write(file, values):
        if ranks[threading.get_ident()] == full:
            calls.append(1)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        written(file, values)

    monkeypatch.setattr(safetensors_file, "_write_values", write)
    whole = whole_state(CLASSES, 2)

    def refused(world):
        ranks[threading.get_ident()] = world.rank
        with pytest.raises(RunError) as error:
            save_sharded(tmp_path / "last.json", shared_state(whole, world), world)
        return str(error.value)

    for rank, message in enumerate(on_each(3, refused)):
        assert message.startswith("process 2: " if full == 2 and rank != 2 else str(tmp_path)), message
        assert f"part-{full}-of-3.safetensors: cannot be written: No space left on device" in message
    assert files(tmp_path) == before and read(tmp_path) == 1


def test_a_full_disk_at_the_index_removes_the_parts(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    before = files(tmp_path)

    def write(*_):
        raise RunError("last.json: cannot be written: No space left on device")

    monkeypatch.setattr("facebones.system.sharded_checkpoint.write_index", write)
    whole = whole_state(CLASSES, 2)

    def refused(world):
        with pytest.raises(RunError, match=r"last\.json: cannot be written"):
            save_sharded(tmp_path / "last.json", shared_state(whole, world), world)

    on_each(2, refused)
    assert files(tmp_path) == before and read(tmp_path) == 1
    assert newest(tmp_path / "last.pt", tmp_path / "last.json").name == "last.json"
