"""Every failure of a reader so far stays mended; the fuzzer itself finds what it is for."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus import CASES
from harness import Finding, run_inputs, smaller
from mutators import mutate
from targets import TARGETS

from facebones.errors import DataError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def outcomes():
    """What came of each case, in a process of its own: a child of this one might inherit a lock of its threads."""
    path = os.pathsep.join([str(HERE.parents[1] / "src"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, HERE / "corpus.py"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_failures_so_far_are_refused_in_one_line_and_within_the_limits(outcomes, name):
    kind, words = outcomes[name]
    assert kind in ("read", "refused"), words
    assert CASES[name][2] in words
    assert kind == "refused" or not CASES[name][2]
    assert "\n" not in words


def _wait(_):
    while True:
        time.sleep(0.01)


def _compute(_):
    while True:
        pass


def _grow(_):
    return bytearray(2**30)


PLANTED = [
    ("raised", lambda folder: int((folder / "a.txt").read_text())),
    ("died", lambda _: os.kill(os.getpid(), signal.SIGKILL)),
    ("hung", _wait),
    ("hung", _compute),
    ("memory", _grow),
]


@pytest.mark.parametrize(("kind", "fault"), PLANTED)
def test_the_harness_tells_each_kind_of_fault_and_goes_on_with_the_next_input(kind, fault):
    def read(folder):
        content = (folder / "a.txt").read_bytes()
        if content == b"refused":
            raise DataError("no")
        if content == b"fault":
            fault(folder)

    inputs = [{"a.txt": content} for content in (b"sound", b"fault", b"refused", b"sound")]
    found = [outcome.kind for outcome in run_inputs(read, inputs, seconds=1)]
    assert found == ["read", kind, "refused", "read"]


def test_a_found_input_is_made_smaller_and_written_with_its_command(tmp_path):
    def read(folder):
        if b"x" in (folder / "a.txt").read_bytes():
            raise KeyError("x")

    files = {"a.txt": b"a" * 40 + b"x" + b"b" * 40}
    (outcome,) = run_inputs(read, [files])
    files = smaller(read, files, outcome, fixed=("kept/",))
    assert files == {"a.txt": b"x"}
    place = Finding("logs", outcome, files, 7).save(tmp_path)
    assert (place / "input" / "a.txt").read_bytes() == b"x"
    assert "--target logs --replay" in json.loads((place / "found.json").read_text())["replay"]


def test_a_seed_names_an_input():
    seeds = [{"a.json": b'{"a": [1, 2.5, "b"]}', "b.bin": b"\x80\x04K\x01."}]

    def inputs():
        rng = random.Random("seed")
        return [mutate(seeds[0], seeds, rng) for _ in range(300)]

    first = inputs()
    assert first == inputs()
    assert len({str(one) for one in first}) > 250


def test_every_target_has_a_case_or_found_nothing_so_far():
    without = {"features", "gallery", "hub_config", "ijb", "keras", "landmarks", "logs"}
    assert {target for target, _, _ in CASES.values()} == TARGETS.keys() - without
