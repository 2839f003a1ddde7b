"""Where results go: a place that cannot take them is refused before the work, and a stop leaves nothing behind."""

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import facebones
from facebones.cli.main import main
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack
from facebones.datatools import contact_sheet as contact_sheets
from facebones.datatools.convert import convert
from facebones.errors import ConfigError, DataError
from facebones.evaluation import pairs
from facebones.evaluation import run as evaluation
from facebones.reporting.console import print_evaluation, print_items, print_table
from facebones.system.files import atomic_write, temporary_folder
from facebones.system.progress import say, tell
from facebones.training.run import train


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tiny_recipe, tmp_path):
    """A finished run."""
    train(tiny_recipe(**{"training.epochs": 1}), tmp_path / "run", "cpu")
    return tmp_path / "run"


@pytest.fixture
def no_work(monkeypatch):
    """Fails where a command begins its work."""
    for module, name in ((evaluation, "open_models"), (pairs, "read_pairs")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("the work has begun"))
    monkeypatch.setattr("facebones.datatools.inspect._open", lambda _: pytest.fail("the work has begun"))


def test_an_evaluation_never_overwrites_a_run(run, small_data):
    before = files_below(run)
    words = ["evaluate", "pairs", "--model", run, "--data", small_data, "--device", "cpu", "--output", run]
    for _ in range(2):  # an earlier evaluation's output may be replaced
        assert main([str(word) for word in words]) == 0
    assert files_below(run).items() >= before.items()


def make_unfit(folder, kind, monkeypatch):
    """Make `folder` a place that no result can be written to; returns why."""
    if kind == "file":
        folder.write_text("mine")
        return "cannot be written: Not a directory"
    if kind == "folder":
        (folder / "x_tiny_scores.npz").mkdir(parents=True)
        (folder / "sheet.png").mkdir()
        return "is a folder; name a file"

    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("facebones.system.files.tempfile.TemporaryFile", refuse)  # root may write everywhere else
    return "cannot be written: Read-only file system; choose another place"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("kind", ["file", "folder", "read-only"])
@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path, small_data, capsys, monkeypatch, command, kind):
    output = tmp_path / "out"
    reason = make_unfit(output, kind, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    words = {
        "evaluate": ["evaluate", "pairs", "--model", "x", "--data", small_data, "--output", output],
        "inspect": ["data", "inspect", small_data, "--output", output / "sheet.png"],
    }[command]
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and reason in lines[0] and str(output) in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_work")
def test_a_contact_sheet_does_not_overwrite_data(small_data, capsys):
    before = files_below(small_data)
    assert main(["data", "inspect", str(small_data), "--output", str(small_data / "tiny.bin")]) == 2
    assert "tiny.bin: a contact sheet is a PNG; name it tiny.png" in capsys.readouterr().err
    assert files_below(small_data) == before


@pytest.mark.usefixtures("no_work")
def test_a_contact_sheet_does_not_overwrite_an_image(small_data, tmp_path, capsys):
    images = tmp_path / "images"
    for name in ("a/1.png", "b/1.png", "sheet.png", "flat/1.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"mine")
    (tmp_path / "link").symlink_to(images / "a")
    flat = images / "flat"
    for data, sheet in ((images, images / "a/1.png"), (images, tmp_path / "link/1.png"), (flat, flat / "1.png")):
        assert main(["data", "inspect", str(data), "--output", str(sheet)]) == 2
        told = f"facebones: {sheet}: is an image of {data}, which would be lost; choose another place\n"
        assert capsys.readouterr().err == told
    contact_sheets.refuse_image_of(images, images / "sheet.png", beside_folders=True)  # an earlier sheet
    contact_sheets.refuse_image_of(images, images / "a/2.png")  # a new one


def test_a_bad_set_among_several_is_found_before_the_first_is_embedded(small_data, tmp_path, monkeypatch):
    tiny = read_pairs(small_data / "tiny.bin")
    write_pairs(tmp_path / "few.bin", tiny.images[:18], tiny.is_same[:9])
    monkeypatch.setattr(evaluation, "open_models", lambda *_, **__: pytest.fail("the work has begun"))
    sets = pairs.pair_protocols([small_data / "tiny.bin", tmp_path / "few.bin"])
    with pytest.raises(DataError) as error:
        evaluation.run_protocols({"model": tmp_path}, sets, device="cpu")
    mend = "give a set of 10 pairs or more, or leave this one out"
    assert str(error.value) == f"{tmp_path}/few.bin: 9 pairs cannot fill the 10 folds of the protocol; {mend}"


# ------------------------------------------------------------------------------------------------------ stdout


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names are Unicode here")
def test_names_that_are_no_unicode(small_data, tiny_recipe, tmp_path, capsys):
    data, run, output = (tmp_path / os.fsdecode(name) for name in (b"d\xff", b"r\xff", b"o\xff"))
    shutil.copytree(small_data, data)
    train(tiny_recipe(**{"training.epochs": 1, "data.path": str(data)}), run, "cpu")
    assert json.loads((run / "model.json").read_text())["training_data"] == "d\udcff"
    words = ["evaluate", "pairs", "--model", run, "--data", data, "--output", output, "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    assert r"r\udcff/model.safetensors" in capsys.readouterr().out
    (model,) = json.loads((output / "pairs.json").read_text())["models"].values()
    assert model["checkpoint"] == str(run / "model.safetensors")


def strict_json(text):
    """What a parser reads that takes neither NaN nor half a character."""
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    json.dumps(content, ensure_ascii=False).encode()  # fails for a lone surrogate
    text.encode("ascii")
    return content


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names are Unicode here")
def test_json_is_valid_for_names_that_are_no_unicode(small_data, run, tmp_path, capsys):
    photos = tmp_path / os.fsdecode(b"p\xff")
    for number, image in enumerate(read_pairs(small_data / "tiny.bin").images[:4]):
        place = photos / "person" / os.fsdecode(b"%d\xe9.jpg" % number)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image)
    (photos / "person" / os.fsdecode(b"\xfe.jpg")).write_bytes(b"no image")
    first, second, *_ = sorted(photos.rglob("[0-9]*.jpg"))
    common = ["--model", run, "--aligned", "--device", "cpu", "--json"]
    for words in (
        ["match", first, second, *common],
        ["search", first, "--gallery", photos, *common],
        ["data", "inspect", photos, "--json"],
    ):
        assert main([str(word) for word in words]) == 0
        content = strict_json(capsys.readouterr().out)
        if words[0] in {"match", "search"}:
            named = content["faces"][0] if words[0] == "match" else content["photo"]
            assert named["photo"].endswith(r"/p\udcff/person/0\udce9.jpg")  # as on the terminal
        else:
            assert r"p\udcff" in json.dumps(content).replace("\\\\", "\\")


def test_every_command_prints_json_by_one_function():
    for path in (Path(facebones.__file__).parent / "cli").glob("*.py"):
        text = path.read_text()
        assert text.count("json.dumps(") == (path.name == "options.py"), path
        assert ("json_option(" in text) <= ("print_json(" in text), path


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["backbones", "mobilefacenet"], ["backbones", "mobilefacenet", "--json"]])
def test_a_full_disk_behind_stdout(words):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "facebones", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "facebones: standard output: No space left on device; free space or send it elsewhere\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stderr_changes_neither_the_status_nor_the_work(tmp_path, small_data):
    train = ["train", "demo", "--data", small_data, "--backbone", "shufflefacenet_0_5", "--output", tmp_path / "run"]
    train += ["--batch-size", "14", "--epochs", "1", "--validation.sets", "tiny", "--device", "cpu", "--workers", "0"]
    for words, status in ((["train", "nope"], 2), (train, 0)):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "facebones", *map(str, words)], stderr=full, stdout=subprocess.PIPE, check=False
            )
        assert done.returncode == status
    assert (tmp_path / "run" / "result.json").is_file()


def test_an_error_stays_one_line_whatever_it_quotes(capsys):
    assert main(["backbones", "a\nb\x1b[31m"]) == 2
    assert capsys.readouterr().err.startswith(r"facebones: unknown backbone 'a\nb\x1b[31m'; known: ")


def test_a_line_feed_in_a_name_makes_no_line_of_its_own(capsys):
    """A photo of such a name could otherwise say that two people are one."""
    name = "ok.jpg\nscore 1.0000: the same person"
    print_table(["rank", "photo"], [["1", name]])
    say(name)
    tell(name)
    said = "".join(capsys.readouterr())
    assert said.count(r"ok.jpg\nscore 1.0000") == 3 and "\nscore" not in said


TITLE = "\x1b]0;title\x07\x9b2J\u202e"


@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_of_foreign_files_do_not_reach_the_terminal(capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "30")
    models = {f"a{TITLE}": {"backbone": f"b{TITLE}", "checkpoint": f"c{TITLE}"}}
    metric = {"name": "accuracy", "at": {}, "reason": f"d{TITLE}", "values": {}, "intervals": {}, "comparisons": []}
    section = {"protocol": "pairs", "set": f"e{TITLE}", "setting": "", "metrics": [metric], "notes": [f"f{TITLE}"]}
    print_evaluation({"models": models, "results": [section]})
    print_table(["first", f"g{TITLE}"], [["first", f"h{TITLE}"]], title=f"i{TITLE}")
    print_items([f"j{TITLE}"])
    say(f"k{TITLE}")
    tell(f"l{TITLE}")
    said = "".join(capsys.readouterr())
    plain = re.sub(r"\x1b\[[0-9;]*m|\s", "", said)  # rich's own styles
    assert all(f"{letter}\\x1b]0" in plain for letter in "abcdefghijkl")
    assert not any(control in said for control in ("\x1b]", "\x07", "\x9b", "\u202e"))


def test_control_characters_in_the_names_of_a_data_set(tmp_path, capsys):
    folder = tmp_path / f"a{TITLE}"
    folder.mkdir()
    with RecordWriter(folder / "train.rec") as writer:
        for key in (1, 2):
            writer.write(key, pack(Header(2.0 * key, key), b"no image"))
    assert main(["data", "inspect", str(folder)]) == 0
    said = "".join(capsys.readouterr())
    assert r"\x1b]0;title" in said and "\x1b" not in said


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory; use smaller batches"),
        (MemoryError("Unable to allocate 9.0 GiB for an array"), "out of memory: Unable to allocate 9.0 GiB"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
            "out of memory: [enf",
        ),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of memory: libtorch_cpu.so"),
        (RuntimeError("can't start new thread"), "can't start new thread: out of memory or of processes; raise"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory; use smaller batches"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "Resource temporarily unavailable; raise the lim"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; raise the limit of open files"),
    ],
)
def test_an_allocation_that_fails_is_one_line(capsys, monkeypatch, error, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("facebones.datatools.inspect.inspect_data", fail)
    assert main(["data", "inspect", "a"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"facebones: {line}") and said.count("\n") == 1


def test_a_library_fault_is_a_lack_of_memory_where_memory_is_limited_only(capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("could not create a primitive")  # oneDNN

    monkeypatch.setattr("facebones.datatools.inspect.inspect_data", fail)
    with pytest.raises(RuntimeError, match="primitive"):
        main(["data", "inspect", "a"])
    monkeypatch.setattr("resource.getrlimit", lambda _: (2**30, 2**30))
    assert main(["data", "inspect", "a"]) == 1
    assert capsys.readouterr().err.startswith("facebones: out of memory: could not create a primitive")


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [150, 500, 800, 1200, 1500])
@pytest.mark.parametrize(
    "words",
    [
        "train demo --data {data} --output {output} --workers 0 --device cpu --training.epochs 1 --batch-size 16",
        "evaluate pairs --model shufflefacenet_0_5 --data {data}/tiny.bin --output {output} --device cpu",
        "data inspect {data}",
        "data convert {data} {output}",
    ],
    ids=lambda words: words.split(" --")[0],
)
def test_memory_that_ends_anywhere_is_one_line(small_data, tmp_path, words, mebibytes):
    command = words.format(data=small_data, output=tmp_path / "out").split()
    limit = (mebibytes * 2**20, mebibytes * 2**20)
    done = subprocess.run(
        [sys.executable, "-m", "facebones", *command],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )
    lines = done.stderr.splitlines()
    assert done.returncode in (0, 1, 2)
    assert "Traceback" not in done.stderr
    ends = ("facebones: ", "OpenBLAS error: ")  # NumPy's OpenBLAS ends the process itself, while it is imported
    assert done.returncode == 0 or [line for line in lines if line.startswith(ends)] == lines[-1:]


# ----------------------------------------------------------------------------------------------------- signals


def start(*words):
    command = [sys.executable, "-m", "facebones", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def processes_of(session):
    """Ids of the living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended since
            state, _, _, its_session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(its_session) == session and state not in "ZX":
                found.append(int(entry.name))
    return found


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("send", [os.kill, pytest.param(os.killpg, marks=pytest.mark.slow)], ids=["one", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_drawing_leaves_no_process_and_no_folder(tmp_path, number, send):
    drawing = start("data", "synthesize", tmp_path / "set", "--identities", "400", "--images-per-identity", "40")
    wait_for(lambda: list(tmp_path.glob(".set.*/faces/*/*.jpg")))
    send(drawing.pid, number)
    _, errors = drawing.communicate(timeout=60)
    wait_for(lambda: not processes_of(drawing.pid))
    if number != signal.SIGKILL:
        assert drawing.returncode == 128 + number
        assert errors.splitlines()[-1] == (
            f"facebones: stopped by {number.name}; no partial output is left; run the same command again"
        )
        assert "Traceback" not in errors
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_signal_while_the_drawing_processes_start(tmp_path, number, processes):
    drawing = start("data", "synthesize", tmp_path / "set", "--identities", "400", "--images-per-identity", "40")
    wait_for(lambda: len(processes_of(drawing.pid)) >= processes)
    os.killpg(drawing.pid, number)
    _, errors = drawing.communicate(timeout=60)
    assert drawing.returncode == 128 + number
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    wait_for(lambda: not processes_of(drawing.pid))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_conversion_by_several_processes_is_stopped_and_goes_on(tmp_path, number):
    source, target = tmp_path / "train.rec", tmp_path / "images"
    with RecordWriter(source) as writer:
        for key in range(40_000):
            writer.write(key, pack(Header(float(key % 7), key), b"\xff\xd8\xff" + key.to_bytes(4, "big")))
    converting = start("data", "convert", source, target)
    wait_for(lambda: len(processes_of(converting.pid)) > 1 and list(tmp_path.glob("images.partial/*/*.jpg")))
    os.killpg(converting.pid, number) if number != signal.SIGKILL else os.kill(converting.pid, number)
    _, errors = converting.communicate(timeout=60)
    wait_for(lambda: not processes_of(converting.pid))
    assert converting.returncode in (128 + number, -signal.SIGKILL)
    assert "Traceback" not in errors
    assert not target.exists()
    assert main(["data", "convert", str(source), str(target), "--resume"]) == 0
    assert {path.stem for path in target.glob("*/*.jpg")} == {f"{key:05d}" for key in range(40_000)}


@pytest.fixture
def stopped(monkeypatch):
    """Send this process a signal when a conversion comes to its n-th image or record."""

    def after(images, number):
        def track(items, *_):
            for done, item in enumerate(items):
                if done == images:
                    os.kill(os.getpid(), number)
                yield item

        monkeypatch.setattr("facebones.datatools.convert.track", track)

    return after


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_conversion_to_a_folder_says_how_to_go_on(small_data, tmp_path, capsys, stopped, monkeypatch, number):
    stopped(9, number)
    target = tmp_path / "some images"
    assert main(["data", "convert", str(small_data), str(target)]) == 128 + number
    line = capsys.readouterr().err.splitlines()[-1]
    command = f"facebones data convert {small_data} '{target}' --resume"
    assert line == f"facebones: stopped by {number.name}; continue with: {command}"
    monkeypatch.undo()
    assert main(["data", "convert", str(small_data), str(target), "--resume"]) == 0
    assert "10 of them kept" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("target", ["again", "again.rec"])
def test_a_stopped_conversion_to_records_leaves_nothing(small_data, tmp_path, capsys, stopped, target):
    convert(small_data, tmp_path / "images")
    stopped(9, signal.SIGTERM)
    assert main(["data", "convert", str(tmp_path / "images"), str(tmp_path / target)]) == 143
    assert capsys.readouterr().err.splitlines()[-1].endswith("no partial output is left; run the same command again")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_the_check_of_a_place_names_what_is_wrong(tmp_path):
    from facebones.system.files import check_writable

    check_writable(tmp_path / "a" / "b" / "c.json")
    for path, reason in ((tmp_path, "is a folder"), (tmp_path / ("n" * 300) / "x", "File name too long")):
        with pytest.raises(ConfigError, match=reason):
            check_writable(path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_no_folder_that_it_made(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "old" / "new" / "deep" / "x"):
        raise ZeroDivisionError
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "old"]
    with atomic_write(tmp_path / "old" / "new" / "x") as file:
        file.write(b"x")
    assert (tmp_path / "old" / "new" / "x").read_bytes() == b"x"


def in_child(work):
    """Run `work()` in a forked process that is killed in the end, at a place that `work` chooses or at its end."""
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            work()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def killed_while_writing(path):
    with atomic_write(path) as file:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def killed_while_filling(path):
    with temporary_folder(path) as folder:
        (folder / "a").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_removed_by_the_next_write_and_what_is_in_use_stays(tmp_path):
    path = tmp_path / "x.json"
    for work in (killed_while_writing, killed_while_filling):
        in_child(lambda work=work: work(path))
        assert len(list(tmp_path.glob(".x.json.????????.tmp"))) == 1
        for name in (".y.json.abcdefgh.tmp", ".x.json.mine.tmp"):  # of another file, and not of ours
            (tmp_path / name).touch()
        with atomic_write(path) as first, atomic_write(path) as second, temporary_folder(path) as folder:
            assert folder.is_dir(), "it is in use, as are the files"
            first.write(b"1"), second.write(b"2")
        assert {one.name for one in tmp_path.iterdir()} == {"x.json", ".y.json.abcdefgh.tmp", ".x.json.mine.tmp"}
        assert path.read_bytes() == b"1"


def test_an_evaluation_beside_the_leftovers_of_a_killed_one(run, small_data, tmp_path):
    output = tmp_path / "results"
    output.mkdir()
    for name in ("roc.pdf", "pairs.json"):
        in_child(lambda name=name: killed_while_writing(output / name))
    words = ["evaluate", "pairs", "--model", run, "--data", small_data, "--device", "cpu", "--output", output]
    assert main([str(word) for word in words]) == 0
    assert not list(output.glob(".*"))


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    in_child(lambda: killed_while_writing(tmp_path / "x"))
    monkeypatch.setattr("fcntl.flock", refuse)
    with atomic_write(tmp_path / "x") as file:
        file.write(b"whole")
    assert len(list(tmp_path.iterdir())) == 2
