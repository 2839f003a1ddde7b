"""Real processes that save and load together over gloo."""

import multiprocessing
import os
import resource
import signal
import socket

import pytest
from shared_states import assert_same, blank, shared_state, whole_state

from facebones.errors import RunError
from facebones.system.background_save import BackgroundSave
from facebones.system.process_group import joined
from facebones.system.sharded_checkpoint import load_state, save_state


def run(size, work, *arguments):
    """Call `work(world, ...)` in each process of a group, in forked processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=joined_work, args=(rank, size, port, work, arguments)) for rank in range(size)]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(60)
        assert [process.exitcode for process in started] == [0] * size
    finally:
        for process in started:
            process.kill()
            process.join()


def joined_work(rank, size, port, work, arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), FACEBONES_TIME_LIMIT="30")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with joined("cpu") as world:
        work(world, *arguments)


def save_in_three_ways(world, single, index):
    state = shared_state(whole_state(11, 4), world)
    save_state(single, index, state, world)
    saving = BackgroundSave(single, index, world)
    saving.begin(state | {"step": 5})
    saving.complete()
    if world.rank == 1:  # the disk is full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    line = "part-1-of-3.safetensors: cannot be written: File too large"
    with pytest.raises(RunError, match=line) as refused:
        save_state(single, index, state | {"step": 6}, world)
    assert str(refused.value).startswith("process 1: ") == (world.rank != 1)


def load(world, single, index):
    state = shared_state(whole_state(11, 4) | {"step": 5}, world)
    assert_same(load_state(single, index, blank(state), world), state)


def test_three_processes_save_and_two_load(tmp_path):
    places = (tmp_path / "last.pt", tmp_path / "last.json")
    run(3, save_in_three_ways, *places)
    assert len([*tmp_path.iterdir()]) == 2, "nothing is left of the failed save"
    run(2, load, *places)
