"""Leases, taken and lost by real processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from facebones.errors import ConfigError
from facebones.system import lease, liveness
from facebones.system.lease import LeaseName, Watch, join, take
from facebones.system.liveness import ALIVE, DEAD, UNKNOWN, fate, this_process

HOLD = """
import sys, time
from pathlib import Path
from facebones.system.lease import LeaseName, take
held = take(LeaseName(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]))
print("held", flush=True)
while held.beat():
    time.sleep(0.05)
print("lost", flush=True)
"""


@pytest.fixture
def name(tmp_path):
    return LeaseName(tmp_path / "runs" / "mbf" / "seed0")


@pytest.fixture
def holder(name):
    """Start a process that takes a lease and gives signs of life until it has lost it."""
    started = []

    def start(after=0, expiry=1.0):
        words = [sys.executable, "-c", HOLD, str(name.path), str(after), str(expiry)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        process.stdout.close()


def wait_until_over(watch, seconds):
    begin = time.monotonic()
    while not watch.look().over:
        assert time.monotonic() - begin < seconds
        time.sleep(0.02)
    return time.monotonic() - begin


def elsewhere(monkeypatch):
    """Be on another machine, where nobody can tell whether a process lives."""
    monkeypatch.setattr(lease, "fate", lambda process: "unknown")


def test_a_lease_is_taken_once_and_again_when_it_was_given_back(name):
    assert Watch(name).look().over and lease.links_work(name.path)
    first = take(name, 0)
    assert first.number == 1 and first.is_held() and take(name, 0) is None
    seen = Watch(name).look()
    assert not seen.over and seen.number == 1 and seen.where == f"{liveness.HOST}, process {os.getpid()}"
    first.release(outcome="failed", note="no memory: ü" * 2000)
    seen = Watch(name).look()
    assert seen.over and seen.holder["outcome"] == "failed" and seen.holder["note"].startswith("no memory: ü")
    second = take(name, seen.number)
    assert second.number == 2 and name.numbers() == [2]
    second.release()


def take_often(path, rounds, start, won):
    name = LeaseName(Path(path))
    start.wait()
    for number in range(rounds):
        if (held := take(name, number)) is not None:
            won.put(number)
            held.close()
        while max(name.numbers(), default=0) <= number:
            time.sleep(0)
    won.put(None)


def test_of_many_that_try_one_takes_each_lease(name):
    context, rounds, processes = multiprocessing.get_context("fork"), 60, 4
    start, won = context.Event(), context.Queue()
    children = [
        context.Process(target=take_often, args=(name.path, rounds, start, won), daemon=True) for _ in range(processes)
    ]
    for child in children:
        child.start()
    start.set()
    taken, ended = [], 0
    while ended < processes:
        found = won.get(timeout=30)
        ended += found is None
        taken += [] if found is None else [found]
    for child in children:
        child.join(10)
    assert len(taken) == len(set(taken)) and max(taken) == rounds - 1
    assert not list(name.path.parent.glob("*.tmp"))


def test_a_slow_taker_that_saw_an_older_lease_takes_nothing(name):
    """The lease that it saw was given back, taken up by another, and its file removed, before its own try."""
    take(name, 0).release()
    held = take(name, 1)
    assert take(name, 0) is None and take(name, 1) is None
    assert held.is_held() and name.numbers() == [2]
    held.release()


def test_a_dead_holder_on_this_machine_is_known_at_once(name, holder):
    process = holder(expiry=600)
    watch = Watch(name)
    assert not watch.look().over
    process.kill()  # it stays in the table of processes until its parent has asked for its status
    assert wait_until_over(watch, 5) < 5
    process.wait()
    assert Watch(name).look().over


def test_a_training_that_lives_keeps_the_lease_of_its_dead_worker(name, holder):
    process = holder(expiry=600)
    token = Watch(name).look().holder["token"]
    training = join(name, 1, token, 600)
    process.kill()
    process.wait()
    assert not Watch(name).look().over
    training.release()
    assert join(name, 1, "another", 600) is None


def test_on_another_machine_a_lease_ends_when_its_signs_of_life_stand_still(name, holder, monkeypatch):
    elsewhere(monkeypatch)
    process = holder(expiry=1.0)
    watch = Watch(name)
    for _ in range(30):
        assert not watch.look().over, "its holder lives"
        time.sleep(0.05)
    assert watch.look().changes > 5
    process.send_signal(signal.SIGSTOP)
    assert 0.7 < wait_until_over(watch, 5) < 2
    taken = take(name, watch.look().number)
    assert taken.is_held()
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == "lost\n" and process.wait(5) == 0
    assert taken.beat()
    taken.release()


@pytest.mark.parametrize("hours", [-1000, 1000])
def test_clocks_that_differ_change_nothing(name, holder, monkeypatch, hours):
    """Neither the clock of the watcher nor the times of the files are asked."""
    elsewhere(monkeypatch)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600 * hours)
    holder(expiry=1.0)
    watch = Watch(name)
    for _ in range(25):
        os.utime(name.file(1), (now + 3600 * hours, now + 3600 * hours))
        assert not watch.look().over
        time.sleep(0.05)


def test_a_watcher_that_slept_lets_the_holder_speak_first(name, monkeypatch):
    elsewhere(monkeypatch)
    held, watch = take(name, 0, 60), Watch(name)
    assert not watch.look().over
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    assert not watch.look().over
    assert held.beat() and not watch.look().over
    for later in range(3600, 3700, 4):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        over = watch.look().over
    assert over
    held.release()


@pytest.mark.parametrize("again", [lambda name: take(name, 0).release(), lambda name: lease.links_work(name.path)])
def test_what_a_killed_process_left_of_a_lease_is_removed(name, again):
    left = name.path.parent / ".seed0.a1b2c3d4.tmp"
    left.mkdir(parents=True)
    (left / "draft").write_bytes(b"{}")
    again(name)
    assert not list(name.path.parent.glob(".*.tmp"))


@pytest.mark.parametrize("step", ["_write_new", "_link"])
def test_a_process_killed_while_it_takes_a_lease_leaves_what_the_next_removes(name, step):
    code = (
        "import os, sys; from pathlib import Path; from facebones.system import lease\n"
        f"done = lease.{step}\n"
        f"def killed(*words): done(*words); os.kill(os.getpid(), 9)\n"
        f"lease.{step} = killed\n"
        "lease.take(lease.LeaseName(Path(sys.argv[1])), 0)"
    )
    assert subprocess.run([sys.executable, "-c", code, name.path], check=False).returncode == -signal.SIGKILL
    assert list(name.path.parent.glob(".seed0.*.tmp"))
    assert lease.links_work(name.path) and not list(name.path.parent.glob(".*.tmp"))


def test_a_file_system_without_hard_links_is_said(name, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(ConfigError, match="no hard link can be made") as caught:
        take(name, 0)
    assert "\n" not in str(caught.value) and name.numbers() == []
    assert not lease.links_work(name.path) and not list(name.path.parent.iterdir())
    alone = take(name, 0, shared=False)
    assert alone.is_held() and take(name, 0, shared=False) is None
    alone.release()


def test_an_answer_that_was_lost_counts(name, monkeypatch):
    """The server has made the link, and the client asks again."""
    link = os.link

    def twice(*names):
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", twice)
    held = take(name, 0)
    assert held is not None and held.is_held()
    held.release()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be"):
        take(LeaseName(tmp_path / "file" / "seed0"), 0)


HOSTILE = [
    b"",
    b"\x00" * 9000,
    b"[" * 100_000,
    b"[1]",
    b'{"expiry": 1e999, "pid": 1, "table": "x"}',
    b'{"expiry": "soon"}',
    b'{"expiry": -1, "pid": -1, "host": 7}',
    json.dumps({"pid": 10**30, "table": "here", "host": "a\nb"}).encode(),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_damaged_lease_holds_until_it_has_stood_still(name, content, monkeypatch):
    if b"here" in content:
        content = content.replace(b'"here"', json.dumps(liveness.process_table()).encode())
    name.path.parent.mkdir(parents=True)
    name.file(7).write_bytes(content)
    watch = Watch(name)
    seen = watch.look()
    assert not seen.over and seen.number == 7 and "\n" not in seen.where
    now = time.monotonic()
    for later in range(0, 70, 4):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        over = watch.look().over
    assert over


def test_a_process_number_that_was_given_again_is_another_process():
    here = this_process()
    assert fate(here) == ALIVE and fate({**here, "start": "1"}) == DEAD
    assert fate({**here, "start": "1", "table": "another machine"}) == UNKNOWN
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 10
    while fate({**here, "pid": child.pid, "start": "1"}) != DEAD:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.wait()
    assert fate({**here, "pid": child.pid, "start": "1"}) == DEAD


def test_a_holder_on_this_machine_that_lives_is_waited_for(name, holder, monkeypatch):
    process = holder(expiry=1.0)
    process.send_signal(signal.SIGSTOP)
    watch = Watch(name)
    watch.look()
    now = time.monotonic()
    for later in range(0, 70, 4):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        assert not watch.look().over
    monkeypatch.undo()
