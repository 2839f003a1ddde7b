"""The launchers themselves, `--devices` and torchrun: what they say and leave when one of their processes dies."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from groups import Group, outcome, training_command

from facebones.system.processes import CAN_FORK

pytestmark = [pytest.mark.skipif(not CAN_FORK, reason="no fork here"), pytest.mark.slow]

FACEBONES = [sys.executable, "-m", "facebones"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
START_SECONDS = 120


class Launched:
    """A command line in a process group of its own; all that it started is killed at the end."""

    def __init__(self, argv, output, **environment):
        self.output = output
        own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        own |= {"OMP_NUM_THREADS": "1", "STEP_SECONDS": "0.3", "FACEBONES_TIME_LIMIT": "60", **environment}
        self.mark = f"MARK_OF_TEST={output}"
        own["MARK_OF_TEST"] = str(output)
        with output.open("wb") as file:
            self.process = subprocess.Popen(argv, stdout=file, stderr=file, env=own, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in [self.process.pid, *self.left()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def left(self):
        """The processes that it has started, directly or not, and that are still there, with their environments."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                content = path.read_bytes().split(b"\0")  # empty for one that has ended
                if self.mark.encode() in content and int(path.parent.name) != self.pid:
                    found[int(path.parent.name)] = content
        return found

    def rank(self, number):
        """The process id of one of those that train."""
        for pid, environment in self.left().items():
            if f"RANK={number}".encode() in environment:
                return pid
        raise AssertionError(f"no process {number}: {self.text()}")

    def wait_for_step(self, folder, step):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                if int((folder.path / "step").read_text()) >= step:
                    return
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)
        raise AssertionError(self.text())

    def wait_for_rest(self, seconds=20):
        """The processes of a launcher that was killed end by themselves."""
        end = time.monotonic() + seconds
        while self.left() and time.monotonic() < end:
            time.sleep(0.1)
        assert not self.left(), self.text()

    @property
    def pid(self):
        return self.process.pid

    def text(self):
        return self.output.read_text()

    def lines(self):
        return [line for line in self.text().splitlines() if line.startswith("facebones: ")]


@pytest.fixture
def run(tmp_path, small_data):
    return training_command(tmp_path, small_data)


def undisturbed(argv, tmp_path, size):
    """The weights of the same training with nothing lost."""
    argv = [str(tmp_path / "whole") if word == str(tmp_path / "run") else word for word in argv]
    with Group([argv] * size, tmp_path) as group:
        assert group.wait() == [0] * size, group.all_said(0)
    return (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_devices_a_killed_process_ends_the_others_and_resume_goes_on(run, tmp_path):
    folder, argv = run
    expected = undisturbed(argv, tmp_path, 2)
    with Launched([*FACEBONES, *argv, "--devices", "2"], tmp_path / "said") as launched:
        launched.wait_for_step(folder, 3)
        killed = launched.rank(1)
        os.kill(killed, signal.SIGKILL)
        assert launched.process.wait(15) == 1
        assert not launched.left()
        line, last = launched.lines()
        assert f"process 1 ({os.uname().nodename}, id {killed}) ended or does not answer" in line
        assert last == f"facebones: continue with: {folder.resume_command} --devices 2"
        assert "Traceback" not in launched.text()
    with Launched([*FACEBONES, "resume", str(folder.path), "--devices", "2"], tmp_path / "said") as launched:
        assert launched.process.wait(START_SECONDS) == 0, launched.text()
    assert folder.weights.read_bytes() == expected


@pytest.mark.parametrize("to_group", [False, True], ids=["SIGTERM", "Ctrl-C"])
def test_devices_a_signal_to_the_launcher_saves_and_ends(run, tmp_path, to_group):
    folder, argv = run
    with Launched([*FACEBONES, *argv, "--devices", "2"], tmp_path / "said") as launched:
        launched.wait_for_step(folder, 3)
        if to_group:
            os.killpg(launched.process.pid, signal.SIGINT)
        else:
            launched.process.send_signal(signal.SIGTERM)
        assert launched.process.wait(20) == (130 if to_group else 143), launched.text()
        assert not launched.left()
        (line,) = launched.lines()
    name = "SIGINT" if to_group else "SIGTERM"
    step = (folder.path / "step").read_text()
    assert f"stopped by {name} after step {step}, which is saved; continue with: {folder.resume_command}" in line
    assert line.endswith(" --devices 2")


def test_devices_a_signal_during_the_start_ends_all_in_one_line(run, tmp_path):
    folder, argv = run
    with Launched([*FACEBONES, *argv, "--devices", "2"], tmp_path / "said") as launched:
        end = time.monotonic() + START_SECONDS
        while len(launched.left()) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        launched.process.send_signal(signal.SIGTERM)
        assert launched.process.wait(30) == 143, launched.text()
        assert launched.lines() == ["facebones: stopped by SIGTERM"], launched.text()
        assert not launched.left() and not folder.path.exists()


def test_devices_a_process_that_hangs_is_named_and_killed(run, tmp_path):
    folder, argv = run
    command = [*FACEBONES, *argv, "--devices", "2"]
    with Launched(command, tmp_path / "said", FACEBONES_TIME_LIMIT="8") as launched:
        launched.wait_for_step(folder, 3)
        stopped = launched.rank(1)
        os.kill(stopped, signal.SIGSTOP)
        assert launched.process.wait(60) == 1
        line, last = launched.lines()
        assert f"id {stopped}) ended or does not answer" in line
        assert last.startswith(f"facebones: continue with: {folder.resume_command}")
        assert not launched.left()


def test_devices_a_killed_launcher_takes_all_with_it_and_they_save(run, tmp_path):
    folder, argv = run
    with Launched([*FACEBONES, *argv, "--devices", "2"], tmp_path / "said") as launched:
        launched.wait_for_step(folder, 3)
        launched.process.kill()
        launched.process.wait(5)
        launched.wait_for_rest()
        assert "Traceback" not in launched.text()


def test_devices_one_line_of_bad_input_and_not_one_of_each(run, tmp_path):
    folder, argv = run
    for more in (["--no-such-option", "1"], ["--training.canonical_shards", "3", "--batch-size", "9"]):
        with Launched([*FACEBONES, *argv, "--devices", "2", *more], tmp_path / "said") as launched:
            assert launched.process.wait(START_SECONDS) == 2
            assert len(launched.lines()) == 1 and "Traceback" not in launched.text(), launched.text()
    assert not folder.path.exists()


def test_torchrun_restarts_and_the_run_goes_on_by_itself(run, tmp_path):
    folder, argv = run
    expected = undisturbed(argv, tmp_path, 2)
    command = [*TORCHRUN, "--max-restarts", "3", "-m", "facebones", *argv]
    with Launched(command, tmp_path / "said") as launched:
        for number, rank in enumerate((1, 0), start=1):
            launched.wait_for_step(folder, 3 * number)
            killed = launched.rank(rank)
            begin = time.monotonic()
            os.kill(killed, signal.SIGKILL)
            while launched.text().count("resuming ") < number and time.monotonic() < begin + START_SECONDS:
                time.sleep(0.1)
            (folder.path / "step").unlink()
        assert launched.process.wait(START_SECONDS) == 0, launched.text()
    assert launched.text().count("resuming ") == 2
    assert folder.weights.read_bytes() == expected
    steps = [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()]
    assert steps == sorted(steps)


def test_torchrun_a_signal_saves_and_ends(run, tmp_path):
    folder, argv = run
    with Launched([*TORCHRUN, "-m", "facebones", *argv], tmp_path / "said") as launched:
        launched.wait_for_step(folder, 3)
        launched.process.send_signal(signal.SIGTERM)
        launched.process.wait(40)
        (line,) = launched.lines()
        assert re.search(r"stopped by SIGTERM after step \d+, which is saved", line)
        assert not launched.left()


def test_devices_random_kills_change_no_bit(run, tmp_path):
    """Of the launcher or of one of its processes, between 1, 2 and 4 of them."""
    folder, argv = run
    argv += ["--training.canonical_shards", "4", "--epochs", "6"]
    undisturbed(argv, tmp_path, 1)
    draw, done = random.Random(5), []
    while len(done) < 6:
        begun = folder.config.exists()
        size = draw.choice([1, 2, 4])
        command = [*FACEBONES, *(["resume", str(folder.path)] if begun else argv), "--devices", str(size)]
        with Launched(command, tmp_path / "said") as launched:
            (folder.path / "step").unlink(missing_ok=True)
            launched.wait_for_step(folder, 1)
            time.sleep(draw.uniform(0, 0.8))
            what = draw.choice(["launcher killed", "launcher stopped", "process killed"])
            if what == "launcher stopped":
                launched.process.terminate()
            else:
                os.kill(launched.rank(draw.randrange(size)) if what[0] == "p" and size > 1 else launched.pid, 9)
            launched.process.wait(30)
            launched.wait_for_rest()
            done.append((what, size))
            assert "Traceback" not in launched.text(), done
            if folder.result.exists():
                break
    if not folder.result.exists():
        with Group([["resume", str(folder.path)]], tmp_path) as group:
            assert group.wait() == [0]
    assert outcome(folder.path) == outcome(tmp_path / "whole"), done
