"""A pipe, a device or a link in the place of a file, as archives may hold: nothing waits or is lost."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from facebones.cli.main import main
from facebones.data.pair_bins import read_pairs
from facebones.data.pair_lists import read_pair_set
from facebones.data.text_lists import line_blocks
from facebones.datatools.landmarks import LandmarkTable
from facebones.errors import FaceBonesError
from facebones.evaluation.calibrate import read_thresholds
from facebones.evaluation.overlap import KnownOverlap
from facebones.importers.run_from_logs import convert_logs
from facebones.run_folder import RunFolder
from facebones.strict_yaml import read_yaml
from facebones.system.checkpoint import load_checkpoint
from facebones.system.files import map_array, read_npz
from facebones.system.regular_files import open_regular
from facebones.training.run import resume, train

REFUSED = "not a file, but a pipe or a device"


@pytest.fixture(params=["pipe", "device"])
def no_file(request):
    """Puts a pipe, or a link to a device without an end, in a place."""

    def put(path):
        path.unlink(missing_ok=True)
        os.mkfifo(path) if request.param == "pipe" else path.symlink_to("/dev/zero")
        return path

    return put


@pytest.mark.parametrize("command", ["data inspect", "data convert"])
def test_a_pipe_or_device_among_the_images_is_named(command, noisy, no_file, tmp_path):
    for person in range(2):
        (tmp_path / "data" / str(person)).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "data" / str(person) / f"{number}.jpg").write_bytes(noisy(person, number))
    no_file(tmp_path / "data" / "1" / "1.jpg")
    words = [*command.split(), tmp_path / "data", *([tmp_path / "a.rec"] if command == "data convert" else [])]
    # in a process of its own: what waits for a pipe cannot be stopped otherwise
    done = subprocess.run(
        [sys.executable, "-m", "facebones", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == (0 if command == "data inspect" else 2)
    assert f"1.jpg: cannot be read: {REFUSED}" in done.stdout + done.stderr


READERS = {
    "landmarks": LandmarkTable,
    "pair list": lambda path: read_pair_set(path, path.parent),
    "pairs": read_pairs,
    "list": lambda path: list(line_blocks(path)),
    "overlap": KnownOverlap,
    "calibration": lambda path: read_thresholds(path, "ab", "a.pt"),
    "log": lambda path: convert_logs([path], path.parent / "run"),
    "recipe": read_yaml,
    "checkpoint": load_checkpoint,
    "array": map_array,
    "arrays": lambda path: read_npz(path, ("a",)),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_refuse_a_pipe_or_device(reader, no_file, tmp_path):
    with pytest.raises((FaceBonesError, OSError), match=r"cannot be read|not a file, but a pipe or a device"):
        READERS[reader](no_file(tmp_path / "a.txt"))


def test_a_folder_and_a_missing_file_are_said_as_ever(tmp_path):
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "a")


@pytest.fixture
def stopped(tiny_recipe, tmp_path):
    train(tiny_recipe(**{"training.epochs": 1}), tmp_path / "run", "cpu")
    (tmp_path / "run" / "result.json").unlink()
    return RunFolder(tmp_path / "run")


def test_resuming_never_writes_through_a_link(stopped, tmp_path, capsys):
    """The metrics are cut back to the last checkpoint: through a link, that would cut any file of the user."""
    mine = tmp_path / "mine.txt"
    mine.write_text("precious\n" * 1000)
    stopped.metrics.unlink()
    stopped.metrics.symlink_to(mine)
    assert main(["resume", str(stopped.path), "--device", "cpu"]) == 1
    assert "metrics.jsonl: cannot be written: is a link to another place; " in capsys.readouterr().err
    assert mine.read_text() == "precious\n" * 1000


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock"])
def test_resuming_does_not_wait_for_a_pipe(stopped, no_file, name):
    no_file(stopped.path / name)
    with pytest.raises(FaceBonesError, match=rf"cannot be written: ({REFUSED}|is a link to another place)"):
        resume(stopped.path, "cpu")


def command_line(*words):
    return [sys.executable, "-m", "facebones", *map(str, words)]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_neither_status_nor_files(closed, small_data, tmp_path):
    """Without care, the sheet would have the number of stderr, and libjpeg would warn into it."""
    sheet = tmp_path / "sheet.png"
    words = shlex.join(command_line("data", "inspect", small_data, "--output", sheet))
    assert subprocess.run(["sh", "-c", f"{words} {closed}"], capture_output=True, check=False).returncode == 0
    assert cv2.imread(str(sheet)) is not None
    wrong = shlex.join(command_line("data", "inspect", tmp_path / "none"))
    done = subprocess.run(["sh", "-c", f"{wrong} {closed}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert bool(done.stderr) == ("2>&-" not in closed)


def test_a_table_whose_reader_goes_away_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command_line("recipes"), stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_removed_present_folder_is_one_line(small_data, tmp_path):
    words = shlex.join(command_line("data", "convert", small_data, "faces"))
    (tmp_path / "gone").mkdir()
    script = f"cd {shlex.quote(str(tmp_path / 'gone'))} && rmdir ../gone && {words}"
    found = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(each).resolve()) for each in sys.path if each)}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, env=found)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("facebones: the present folder was removed")
    assert done.stderr.count("\n") == 1
