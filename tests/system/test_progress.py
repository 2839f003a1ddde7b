"""Progress: a plain line now and then; on a terminal, a bar."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from facebones.system import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves; each item prints a line."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.0)
    return clock


def test_a_slow_first_item_does_not_count_in_the_estimate(clock, capsys):
    for number in progress.track(range(4), "embedding", 400, size=100, unit="images"):
        clock.now += 300 if number == 0 else 10
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 100/400",
        "embedding: 200/400, 20s left, 10.0 images/s",
        "embedding: 300/400, 10s left, 10.0 images/s",
    ]


def on_terminal(columns, program):
    """What a program writes on a terminal of so many columns."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment):
        os.close(follower)
        written = b""
        with suppress(OSError):  # how the end of a terminal reads
            while part := os.read(leader, 65536):
                written += part
    os.close(leader)
    return written.decode()


NESTED = """
import time
from facebones.system import progress
progress.BAR_SECONDS = 0.0
with progress.shown("training", 100) as bar:
    progress.say("a line of the training")
    bar.update(40, "2m05s left  224 images/s  loss 12.5  accuracy 83.20 %")
    for batch in progress.track(range(3), "embedding lfw", 300, size=100, unit="images"):
        progress.say(f"line {batch}")
progress.say("the end")
"""


@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal_lines_stand_above_the_bar_and_a_bar_within_it_is_a_second_row(columns):
    written = on_terminal(columns, NESTED)
    rows = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written))
    assert any(re.fullmatch(r"training +\S+ +40/100 +2m05s left .* accuracy 83\.20 % *", row) for row in rows)
    assert any(re.fullmatch(r"embedding lfw +\S+ +200/300 +\S+ images/s +\S+ left *", row) for row in rows)
    for line in ("a line of the training", "line 0", "line 2", "the end"):
        assert sum(row.rstrip() == line for row in rows) == 1
    assert all(len(row) <= columns for row in rows)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again


def test_elsewhere_and_where_silent_there_is_no_bar():
    with progress.shown("training", 10) as bar:
        assert bar is None
