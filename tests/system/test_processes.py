"""Forked processes: their results, their errors, their end."""

import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from facebones.errors import DataError, RunError
from facebones.system.processes import CAN_FORK, die_with_parent, map_forked, signals_deferred

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="no fork here")


def refuse_seven(item):
    if item == 7:
        raise DataError("item 7: broken")
    return item


def die_at_seven(item):
    if item == 7:
        os._exit(1)
    return item


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_order_from_other_processes(processes):
    results = list(map_forked(lambda item: (item * item, os.getpid()), range(20), processes))
    assert [square for square, _ in results] == [item * item for item in range(20)]
    found = {process for _, process in results}
    assert len(found) == processes and os.getpid() not in found


def test_an_error_is_raised_after_the_results_before_it():
    done = []
    with pytest.raises(DataError, match="item 7: broken"):
        for item in map_forked(refuse_seven, range(20), 2):
            done.append(item)
    assert done == list(range(7))


def test_a_dead_process_is_named_at_once():
    with pytest.raises(RunError, match="child process died"):
        list(map_forked(die_at_seven, range(20), 2))


def test_closing_ends_the_processes():
    with closing(map_forked(lambda _: os.getpid(), range(10**6), 2)) as results:
        processes = {next(results), next(results)}
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.fixture
def interruptible():
    """SIGINT as Python takes it by default; a job in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_waits_until_the_processes_stand():
    with pytest.raises(KeyboardInterrupt), signals_deferred():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        waited = True
    assert waited
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def _ended(process, seconds=10.0):
    """Whether a process that is not ours ends in this time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
            if ") Z" in Path(f"/proc/{process}/stat").read_text():  # nobody has asked for its status yet
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="the system kills children on Linux")
@pytest.mark.parametrize("died_before", [False, True])
def test_a_process_dies_with_its_parent_even_if_that_died_before_it_looked(died_before):
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        me = os.getpid()
        if os.fork() == 0:
            os.write(writer, os.getpid().to_bytes(8, "little"))
            while died_before and os.getppid() == me:
                time.sleep(0.001)
            die_with_parent(me)
            os.write(writer, b"r")
            time.sleep(60)
            os._exit(0)
        if not died_before:
            time.sleep(60)
        os._exit(0)
    child = int.from_bytes(os.read(reader, 8), "little")
    if not died_before:
        assert os.read(reader, 1) == b"r"
        os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert _ended(child)
    os.close(writer)
    os.close(reader)
