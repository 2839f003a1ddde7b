"""Several workers on one study: each training is trained once, whichever of them dies."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fault_commands import NETWORK
from fork_server import children
from groups import wait_for

from facebones.run_folder import RunFolder, read_metrics
from facebones.study.plan import make_plan
from facebones.study.planned_run import DONE
from facebones.study.study import load_study
from facebones.training.run import train

FAULTS = Path(__file__).parents[1] / "faults"
STUDY = """
recipe: demo
import: [tiny.py]
overrides:
  backbone.embedding_size: 8
  data.workers: 0
  training.batch_size: 14
  training.epochs: {epochs}
  training.checkpoint_every: 1
  validation.sets: ""
  log.every: 1
backbones: [disturbed_net]
seeds: [{seeds}]
data: {data}
profile: false
"""
# A network that trains in a moment, and a journal of which process has made which step.
PLUGIN = f"""{NETWORK}
import os, time
from facebones import register_callback
from facebones.training.callbacks import Callback

@register_callback
class Journal(Callback):
    def on_step(self, run, step):
        line = f"{{run.folder.name}} {{os.getpid()}} {{step}}\\n".encode()
        file = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)
        os.close(file)
        time.sleep(float(os.environ["STEP_SECONDS"]))
"""
# A worker whose trainings are forks of it: they need no start of Python.
WORKER = f"""
import os, sys
sys.path.insert(0, {str(FAULTS)!r})
from fork_server import prepare
prepare(["facebones.training.run", "torch._dynamo"])  # the first step of an optimizer imports that
from facebones.study.launchers import local
from facebones.study.leases import StudyLeases
from facebones.study.plan import make_plan
from facebones.study.study import load_study
from facebones import run_folder
from facebones.system import liveness
from pathlib import Path
from types import SimpleNamespace

if os.environ["MACHINE"]:  # another machine: no process of this one is known there, and no lock
    liveness.process_table = lambda: os.environ["MACHINE"]
    run_folder.fcntl = SimpleNamespace(lockf=lambda *_: None, LOCK_EX=0, LOCK_NB=0)
study, output = load_study(sys.argv[1]), Path(sys.argv[2])
plan = make_plan(study, output)
leases = StudyLeases(plan.runs, expiry=float(sys.argv[3]))
errors = local.train_all(leases, lambda errors: None, jobs=1, device="cpu")
sys.exit(f"failed: {{errors}}" if errors else 0)
"""


@pytest.fixture
def study(tmp_path, small_data):
    """Write a study of tiny trainings; returns its path."""

    def write(trainings, epochs=2):
        (tmp_path / "tiny.py").write_text(PLUGIN)
        seeds = ", ".join(map(str, range(trainings)))
        (tmp_path / "tiny.yaml").write_text(STUDY.format(epochs=epochs, seeds=seeds, data=small_data))
        return tmp_path / "tiny.yaml"

    return write


@pytest.fixture
def worker(tmp_path):
    """Start a worker; it and its trainings are killed at the end of the test."""
    started = []

    def start(study, output, expiry=30, step_seconds=0.0, machine=""):
        journal = tmp_path / f"{output.name}.journal"
        own = {"OMP_NUM_THREADS": "1", "JOURNAL": str(journal), "STEP_SECONDS": str(step_seconds), "MACHINE": machine}
        words = [sys.executable, "-c", WORKER, str(study), str(output), str(expiry)]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | own)
        started.append(process)
        return process

    yield start
    for process in started:
        for child in children(process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.kill()
        process.communicate(timeout=10)


def ended_well(process, seconds):
    said = process.communicate(timeout=seconds)[1]
    assert process.returncode == 0, said


def journal_of(output):
    """The steps in the order in which they were made: training, process, step."""
    lines = output.with_name(f"{output.name}.journal").read_text().splitlines()
    return [(training, int(pid), int(step)) for training, pid, step in map(str.split, lines)]


def trained_at_once(journal):
    """Trainings in which the steps of two processes alternate."""
    found = set()
    for training in {row[0] for row in journal}:
        turns = [pid for pid, _ in itertools.groupby(pid for name, pid, _ in journal if name == training)]
        if len(turns) != len(set(turns)):
            found.add(training)
    return found


def results(output):
    """The weights, the final metrics, and what was measured on the way but for the speed."""
    found = {}
    for folder in map(RunFolder, sorted(output.glob("runs/*/seed*/"))):
        lines = [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(folder.metrics)]
        found[folder.path.name] = (folder.weights.read_bytes(), folder.result.read_bytes(), lines)
    return found


def undisturbed(study, output, monkeypatch):
    """The results of the same trainings in this process, one after another."""
    monkeypatch.setenv("JOURNAL", os.devnull)
    monkeypatch.setenv("STEP_SECONDS", "0")
    for run in make_plan(load_study(str(study)), output).runs:
        train(run.first_recipe(), run.folder.path, "cpu")
    return results(output)


def states(study, output):
    return [run.state for run in make_plan(load_study(str(study)), output).runs]


def kill(process, *, training):
    """Kill a worker, with its training or before it; the training then saves and ends by itself."""
    own = children(process.pid)
    process.kill()
    if training:
        for child in own:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    process.communicate(timeout=10)


def test_a_worker_takes_up_what_a_killed_one_has_left(study, worker, tmp_path, monkeypatch):
    path, output = study(6), tmp_path / "disturbed"
    first, second = (worker(path, output, step_seconds=0.05) for _ in range(2))
    wait_for(lambda: output.with_name("disturbed.journal").exists() and len(journal_of(output)) > 4, 60)
    kill(first, training=True)
    ended_well(second, 60)
    journal = journal_of(output)
    assert states(path, output) == [DONE] * 6 and not trained_at_once(journal)
    assert len({pid for _, pid, _ in journal}) >= 6
    assert results(output) == undisturbed(path, tmp_path / "whole", monkeypatch)


@pytest.mark.slow
def test_of_200_trainings_none_is_lost_or_doubled_whichever_worker_dies(study, worker, tmp_path, monkeypatch):
    path, output = study(200), tmp_path / "disturbed"
    chance, kills = random.Random(16), 0
    workers = [worker(path, output, expiry=10, step_seconds=0.02) for _ in range(4)]
    deadline = time.monotonic() + 3600
    while any(process.poll() is None for process in workers):
        assert time.monotonic() < deadline
        time.sleep(chance.uniform(0.3, 2))
        place = chance.randrange(4)
        if workers[place].poll() is None and children(workers[place].pid) and kills < 24:
            kill(workers[place], training=chance.random() < 0.5)
            workers[place] = worker(path, output, expiry=10, step_seconds=0.02)
            kills += 1
    for process in workers:
        ended_well(process, 10)
    assert kills >= 8
    journal = journal_of(output)
    assert states(path, output) == [DONE] * 200 and not trained_at_once(journal)
    assert len(results(output)) == 200
    assert results(output) == undisturbed(path, tmp_path / "whole", monkeypatch)
    shutil.rmtree(output)


def test_a_training_that_was_suspended_while_another_took_it_up_ends_without_a_save(
    study, worker, tmp_path, monkeypatch
):
    """Both processes of a machine sleep; the other machine cannot know whether they live."""
    path, output = study(1, epochs=10), tmp_path / "suspended"
    first = worker(path, output, expiry=3, step_seconds=0.05, machine="first")
    wait_for(lambda: output.with_name("suspended.journal").exists() and len(journal_of(output)) > 3, 60)
    child = journal_of(output)[-1][1]
    os.kill(first.pid, signal.SIGSTOP)
    os.kill(child, signal.SIGSTOP)
    before = journal_of(output)
    second = worker(path, output, expiry=3, step_seconds=0.05, machine="second")
    wait_for(lambda: len(journal_of(output)) > len(before) + 3, 60)
    os.kill(child, signal.SIGCONT)
    os.kill(first.pid, signal.SIGCONT)
    ended_well(second, 60)
    ended_well(first, 60)
    late = [row for row in journal_of(output)[len(before) :] if row[1] == child]
    assert len(late) <= 1, "it went on"
    said = (output / "runs" / "disturbed_net" / "seed0.log").read_text()
    assert "the lease of this training is lost" in said or not late
    assert results(output) == undisturbed(path, tmp_path / "whole", monkeypatch)
