"""A process of a training is killed, hangs, is told to stop or cannot read: the others say so and end together."""

import json
import re
import signal
import time

import pytest
from groups import Group, training_command, wait_for_step

from facebones.system.processes import CAN_FORK

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="no fork here")

SLOW = {"STEP_SECONDS": "0.2"}


@pytest.fixture
def run(tmp_path, small_data):
    """A folder, and the command line that trains in it."""
    return training_command(tmp_path, small_data)


def resumed(folder, output, size):
    with Group([["resume", str(folder.path)]] * size, output) as group:
        assert group.wait() == [0] * size, [group.all_said(rank) for rank in range(size)]
    assert folder.result.is_file() and folder.weights.is_file() and not folder.error.exists()


def test_a_killed_process_is_named_by_all_others_within_seconds(run, tmp_path):
    folder, argv = run
    with Group([argv] * 3, tmp_path, **SLOW) as group:
        wait_for_step(folder.path, 3, group)
        killed = group.processes[1].pid
        group.signal(signal.SIGKILL, 1)
        begin = time.monotonic()
        assert group.wait(20) == [1, -signal.SIGKILL, 1]
        assert time.monotonic() - begin < 15
        for rank in (0, 2):
            (line,) = group.said(rank)
            assert re.search(rf"process {rank} of 3: process 1 \(\S+, id {killed}\) ended or does not answer", line)
            assert "Traceback" not in "\n".join(group.all_said(rank))
    assert folder.read_error()["type"] == "LostProcessError"
    resumed(folder, tmp_path, 2)


def test_a_killed_first_process_is_named(run, tmp_path):
    """It holds the store in which the others look."""
    folder, argv = run
    with Group([argv] * 2, tmp_path, **SLOW) as group:
        wait_for_step(folder.path, 3, group)
        group.signal(signal.SIGKILL, 0)
        assert group.wait(20) == [-signal.SIGKILL, 1]
        (line,) = group.said(1)
        assert "process 1 of 2: process 0, which started the group, ended or does not answer" in line


@pytest.mark.parametrize("hung", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_hangs_ends_the_others_at_the_time_limit(run, tmp_path, hung):
    """Process 0 holds the store, where no launcher does: then it does not answer either."""
    folder, argv = run
    with Group([argv] * 2, tmp_path, FACEBONES_TIME_LIMIT=3, **SLOW) as group:
        wait_for_step(folder.path, 3, group)
        stopped = group.processes[hung].pid
        group.signal(signal.SIGSTOP, hung)
        begin = time.monotonic()
        assert group.wait(25, 1 - hung) == [1]
        assert time.monotonic() - begin < 20
        (line,) = group.said(1 - hung)
        named = ", which started the group," if hung == 0 else rf" \(\S+, id {stopped}\)"
        assert re.search(rf"process {1 - hung} of 2: process {hung}{named}.* ended or does not answer", line)


@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGTERM, (1,)), (signal.SIGINT, (0, 1)), pytest.param(signal.SIGTERM, (0,), marks=pytest.mark.slow)],
    ids=["second", "both", "first"],
)
def test_a_signal_to_any_stops_all_at_one_step(run, tmp_path, number, ranks):
    folder, argv = run
    with Group([argv] * 2, tmp_path, **SLOW) as group:
        wait_for_step(folder.path, 3, group)
        group.signal(number, *ranks)
        assert group.wait(20) == [128 + number] * 2
        (line,) = group.said(0)
        assert group.said(1) == []
    step = int(re.fullmatch(rf".*stopped by {number.name} after step (\d+), which is saved; .*", line)[1])
    assert step == int((folder.path / "step").read_text()) and line.endswith(f"continue with: {folder.resume_command}")


def test_an_image_that_only_one_process_cannot_read(run, tmp_path, break_images, small_data):
    folder, argv = run
    data, place = break_images(3)
    argv[argv.index("--data") + 1] = str(data)
    with Group([argv] * 2, tmp_path) as group:
        assert group.wait(40) == [2, 2], [group.all_said(0), group.all_said(1)]
        (line,) = group.said(0)
        assert group.said(1) == []
    assert f"byte {place}" in line and "no readable image" in line, line
    assert any(re.search(r"step \d+ is saved; fix the error below", line) for line in group.all_said(0))
    (data / "train.rec").write_bytes((small_data / "train.rec").read_bytes())
    resumed(folder, tmp_path, 2)


@pytest.mark.parametrize("workers", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_an_image_that_is_replaced_is_noted_and_counted_once(run, tmp_path, break_images, workers):
    folder, argv = run
    data, place = break_images(3)
    argv[argv.index("--data") + 1] = str(data)
    with Group([[*argv, "--data.max_unreadable", "2", "--workers", str(workers)]] * 2, tmp_path) as group:
        assert group.wait(40) == [0, 0], [group.all_said(0), group.all_said(1)]
        lines = [line for rank in (0, 1) for line in group.all_said(rank) if "no readable image" in line]
    assert len(lines) == 1 and f"byte {place}" in lines[0] and "1 of 2 allowed" in lines[0], lines
    assert json.loads(folder.result.read_text())["unreadable_images"] == 1


@pytest.mark.slow
def test_one_more_than_allowed_in_all_ends_it_saved(run, tmp_path, break_images):
    folder, argv = run
    data, _ = break_images(3, 12, 20)
    argv[argv.index("--data") + 1] = str(data)
    with Group([[*argv, "--data.max_unreadable", "2"]] * 2, tmp_path) as group:
        assert group.wait(40) == [2, 2], [group.all_said(0), group.all_said(1)]
        (line,) = group.said(0)
    assert "data.max_unreadable is 2, and this is one more" in line
    folder.config.write_text(folder.config.read_text().replace("max_unreadable: 2", "max_unreadable: 3"))
    resumed(folder, tmp_path, 2)
