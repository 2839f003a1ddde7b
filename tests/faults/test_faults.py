"""A command that is disturbed and given again ends as if nothing had happened, or says in one line what is lost."""

import random
import sys

import fault_driver
import pytest
from fault_commands import COMMANDS, KILLED
from fault_driver import kill_again_and_again

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and /proc of Linux")


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    with fault_driver.harness(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.parametrize("name", KILLED)
@pytest.mark.parametrize("kills", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_again_and_again_ends_equal_to_the_bit(harness, name, kills):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    print(kill_again_and_again(harness, COMMANDS[name], kills, random.Random(seed)))
