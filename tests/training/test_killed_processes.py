"""Processes that train together are killed at random moments and continue in another number: the bits stay the same."""

import random
import signal
import time

import pytest
from groups import RECIPE, Group, outcome

from facebones.system.processes import CAN_FORK

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="no fork here")

SHARDS = 4
SIZES = [1, 2, 4]


def train_line(recipe, output, data, *more):
    canonical = ["--training.canonical_shards", str(SHARDS)]
    return ["train", str(recipe), "--output", str(output), "--data", str(data), *canonical, *more]


def next_line(recipe, run, data, *more):
    """How a person goes on with a run that may not have begun."""
    return ["resume", str(run)] if (run / "config.yaml").exists() else train_line(recipe, run, data, *more)


def step_of(run):
    return int((run / "step").read_text() or 0) if (run / "step").exists() else 0


def kill_at_random(draw, group, run):
    """Kill one process or all, or ask them to stop, early or in the middle; returns what was done."""
    if draw.random() < 0.25:
        time.sleep(draw.uniform(0, 1.5))
    else:
        before = step_of(run)
        end = time.monotonic() + 30
        while step_of(run) == before and time.monotonic() < end and group.running:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    ranks = draw.choice([[draw.randrange(len(group.processes))], list(range(len(group.processes)))])
    group.signal(number, *ranks)
    return f"{number.name} to {ranks} of {len(group.processes)}"


def killed_until(kills, draw, recipe, data, folder, epochs):
    """Train again and again with random kills, until there were so many; returns the folders of the runs."""
    runs, done = [], []
    while len(done) < kills or not (runs[-1] / "result.json").exists():
        if not runs or (runs[-1] / "result.json").exists():
            runs.append(folder / f"run{len(runs)}")
        argv = next_line(recipe, runs[-1], data, "--epochs", str(epochs))
        with Group([argv] * draw.choice(SIZES), folder, STEP_SECONDS="0.05") as group:
            if len(done) < kills:
                done.append(kill_at_random(draw, group, runs[-1]))
            statuses = group.wait(40)
            told = [group.all_said(rank) for rank in range(len(statuses))]
            assert None not in statuses, (done, statuses, told)
            lawful = {0, 1, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}
            assert {*statuses} <= lawful, (done, statuses, told)
            assert not [line for lines in told for line in lines if "Traceback" in line], (done, told)
    print(done)
    return runs


@pytest.mark.parametrize(
    ("kills", "epochs"), [(1, 2), pytest.param(40, 13, marks=pytest.mark.slow)], ids=["one", "forty"]
)
def test_random_kills_and_changes_of_the_number_change_no_bit(small_data, tmp_path, kills, epochs):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    with Group([train_line(recipe, tmp_path / "whole", small_data, "--epochs", str(epochs))], tmp_path) as group:
        assert group.wait() == [0], group.all_said(0)
    for run in killed_until(kills, random.Random(kills), recipe, small_data, tmp_path, epochs):
        assert outcome(run) == outcome(tmp_path / "whole"), run
