"""A command that is disturbed and given again ends as if nothing had happened, or says in one line what is lost."""

import random
import sys

import fault_driver
import pytest
from fault_commands import COMMANDS, KILLED
from fault_driver import STATUSES, disturb, kill_a_worker, kill_again_and_again, run_twice_at_once

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and /proc of Linux")


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    with fault_driver.harness(tmp_path_factory.mktemp("faults")) as made:
        yield made


# Fifty kills in the quick tests; one of a training with workers takes twice as long.
@pytest.mark.parametrize(
    ("name", "kills"),
    [*zip(KILLED, (35, 15), strict=True), *(pytest.param(name, 500, marks=pytest.mark.slow) for name in KILLED)],
)
def test_a_training_that_is_killed_again_and_again_ends_equal_to_the_bit(harness, name, kills):
    print(kill_again_and_again(harness, COMMANDS[name], kills, random.Random(kills)))


# A run takes a fraction of a second, one or two seconds, and more.
SHORT = ["train", "convert to folder", "convert to records", "align", "embed"]
LONG = [
    *("evaluate pairs", "evaluate folder", "evaluate groups", "calibrate", "find overlap", "convert from LMDB"),
    *("embed photos", "export", "export in formats", "push to a folder", "report", "compare"),
]


def spread(changes, times, chance):
    """Numbers of changes, evenly spread from a random one on."""
    step = max(1, len(changes) // times)
    return range(1 + chance.randrange(step), len(changes) + 1, step)


@pytest.mark.parametrize("fault", STATUSES)
@pytest.mark.parametrize(
    ("name", "times"),
    [
        *((name, 1) for name in SHORT),
        *(pytest.param(name, 8, marks=pytest.mark.slow) for name in SHORT),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in LONG),
    ],
)
def test_a_command_that_is_disturbed_at_a_change_to_the_disk_ends_well_or_is_given_again(harness, name, fault, times):
    command = COMMANDS[name]
    changes = harness.undisturbed(command).changes
    found = {}
    for at in spread(changes, times, random.Random(times)):
        if flaw := disturb(harness, command, fault, at):
            found[at, changes[at - 1]] = flaw
    assert not found


@pytest.mark.parametrize("name", ["train", "convert to folder", "embed"])
def test_two_processes_with_one_output(harness, name):
    assert not run_twice_at_once(harness, COMMANDS[name])


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_data_worker_that_is_killed_at_any_moment(harness, times):
    command, chance = COMMANDS[KILLED[-1]], random.Random(times)
    for _ in range(times):
        after = chance.uniform(0, harness.undisturbed(command).seconds)
        assert not (flaw := kill_a_worker(harness, command, after)), f"after {after:.3f} s: {flaw}"
