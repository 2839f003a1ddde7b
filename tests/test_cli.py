"""The command line as people meet it: help, bad input in one line, the exit status, and nothing left behind."""

import contextlib
import errno
import json
import os
import pickle
import re
import resource
import shlex
import signal
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.cli.main import COMMANDS, main
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.recipe import load_recipe
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint
from facebones.system.processes import Interrupted
from facebones.training import run
from facebones.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
MAGIC = struct.pack("<I", 0xCED7230A)


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command line that must fail with one line; check that it leaves nothing, and return the line."""

    def run(*words, status=2, leaves=()):
        before = sorted(tmp_path.rglob("*"))
        assert main([str(word) for word in words]) == status
        assert sorted(tmp_path.rglob("*")) == sorted([*before, *leaves])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("facebones: ")]
        assert len(lines) == 1 and captured.err.splitlines()[-1] == lines[0]
        return lines[0]

    return run


@pytest.fixture
def train_words(small_data, tiny_backbone, tmp_path):
    """A command line that trains for a moment; later words override earlier ones."""

    def words(*more, data=small_data, backbone=tiny_backbone, output=None):
        common = [
            "train", "demo", "--data", data, "--backbone", backbone, "--output", output or tmp_path / "run",
            "--workers", "0", "--batch-size", "4", "--device", "cpu", "--validation.sets", "tiny",
            "--backbone.embedding_size", "16", "--training.epochs", "1",
        ]  # fmt: skip
        return [*common, *more]

    return words


@pytest.fixture
def trained(train_words, tmp_path, capsys):
    """A finished run."""
    assert main([str(word) for word in train_words()]) == 0
    capsys.readouterr()
    return tmp_path / "run"


@pytest.fixture
def copied(small_data, tmp_path):
    """A copy of the small data to break."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for path in small_data.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


# -------------------------------------------------------------------------------------------------------- help


def test_help_imports_no_torch():
    code = "import sys, facebones.cli.main as cli; cli._build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"example:\n  facebones {name}" in text
    assert "?." not in text  # a question has no full stop behind it


def test_help_of_train_names_the_fields_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--optimizer.learning_rate VALUE" in capsys.readouterr().out


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("examples/README.md", "SECURITY.md", "CONTRIBUTING.md")),
]


def command_lines(page):
    """The lines of a page's code blocks that call facebones."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(code for language, code in blocks if language in {"", "sh"}).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("facebones ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_in_the_documentation_is_understood(page, capsys):
    from facebones.cli.main import _parse

    for words in command_lines(page):
        _parse(words)
    assert capsys.readouterr().err == ""  # no old names


def test_the_documentation_shows_every_command():
    from facebones.cli.main import _parse

    shown = {_parse(words).command_name for page in PAGES for words in command_lines(page)}
    assert shown == set(COMMANDS)
    assert len(command_lines(ROOT / "README.md")) >= 8


def test_links_in_the_readme_are_absolute_and_lead_to_files():
    """The package page shows the README, too."""
    here = "https://github.com/facebones/facebones/blob/main/"
    raw = "https://raw.githubusercontent.com/facebones/facebones/main/"
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://")
        if link.startswith((here, raw)):
            assert (ROOT / link.removeprefix(here).removeprefix(raw)).is_file(), link


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_links_between_pages_lead_to_files(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


# --------------------------------------------------------------------------------------------------- bad input


def test_missing_and_empty_data(refused, train_words, tmp_path):
    assert "nowhere" in refused(*train_words(data=tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(*train_words(data=tmp_path / "empty"))
    line = refused("train", "demo", "--output", tmp_path / "run")
    assert "no training data: give --data PATH" in line


def test_missing_validation_set_names_those_that_are_there(refused, train_words):
    line = refused(*train_words("--validation.sets", "lfw"))
    assert "lfw" in line and "tiny.bin" in line


def test_records_cut_short_name_the_offset(refused, train_words, copied):
    path = copied / "train.rec"
    path.write_bytes(path.read_bytes()[:-100])
    assert re.search(r"train\.(rec|idx).* (byte|offset) ?\d+", refused(*train_words(data=copied)))


def test_records_with_a_bad_magic_name_the_offset(refused, train_words, copied):
    path = copied / "train.rec"
    content = bytearray(path.read_bytes())
    second = content.index(MAGIC, 4)
    content[second : second + 4] = b"junk"
    path.write_bytes(content)
    (copied / "train.idx").unlink()
    line = refused(*train_words(data=copied))
    assert "train.rec" in line and str(second) in line and "magic" in line


def test_an_unreadable_training_image_stops_the_run_and_is_named(refused, train_words, copied):
    path = copied / "train.rec"
    whole = path.read_bytes()
    content = bytearray(whole)
    jpeg = content.index(b"\xff\xd8\xff")
    content[jpeg : jpeg + 200] = bytes(200)
    path.write_bytes(content)
    run = RunFolder(copied.parent / "run")
    files = [
        run.path,
        run.path / ".lock",
        run.config,
        run.environment,
        run.metrics,
        run.last.parent,
        run.last,
        run.error,
    ]
    assert "train.rec, key 1" in refused(*train_words(data=copied), leaves=files)
    assert "train.rec, key 1" in refused("resume", run.path, "--device", "cpu")
    path.write_bytes(whole)
    assert main(["resume", str(run.path), "--device", "cpu"]) == 0
    reference = train_words(data=copied, output=copied.parent / "reference")
    assert main([str(word) for word in reference]) == 0
    assert run.weights.read_bytes() == (copied.parent / "reference" / "model.safetensors").read_bytes()


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


PAIR_FILES = {
    "no pickle": (b"\x00\x01\x02 nothing like it", "pickle"),
    "cut short": (pickle.dumps(([b"x"] * 40, [True] * 20))[:-20], "pickle"),
    "holds numbers": (pickle.dumps(([1.5] * 40, [True] * 20)), "a float instead of bytes"),
    "holds text as labels": (pickle.dumps(([b"x"] * 40, ["yes"] * 20)), "true"),
    "odd": (pickle.dumps(([b"x"] * 41, [True] * 20)), "41"),
    "empty": (pickle.dumps(([], [])), "no"),
}


@pytest.mark.parametrize(("content", "word"), PAIR_FILES.values(), ids=PAIR_FILES)
def test_pair_files_that_hold_anything_else_are_refused(refused, train_words, copied, content, word):
    (copied / "tiny.bin").write_bytes(content)
    line = refused(*train_words(data=copied))
    assert "tiny.bin" in line and word in line.lower()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(refused, train_words, copied, monkeypatch, protocol):
    monkeypatch.chdir(copied.parent)
    (copied / "tiny.bin").write_bytes(pickle.dumps(([b"x", b"y"], [Bomb()]), protocol))
    line = refused(*train_words(data=copied))  # `refused` sees that the file "exploded" was not made
    assert "system" in line
    assert "system" in refused("evaluate", "pairs", "--model", "x", "--data", copied / "tiny.bin")
    assert "system" in refused("data", "inspect", copied / "tiny.bin")
    assert "system" in refused("data", "convert", copied / "tiny.bin", copied.parent / "out")


def test_a_broken_validation_image_is_named_before_the_first_step(refused, train_words, copied):
    pairs = read_pairs(copied / "tiny.bin")
    images = [*pairs.images[:-1], b"no image"]
    write_pairs(copied / "tiny.bin", images, pairs.is_same)
    assert "tiny: image 39" in refused(*train_words(data=copied))


def test_fewer_pairs_than_folds(refused, train_words, copied):
    pairs = read_pairs(copied / "tiny.bin")
    write_pairs(copied / "tiny.bin", pairs.images[:18], pairs.is_same[:9])
    assert f"{copied}/tiny.bin: 9 pairs cannot fill the 10 folds" in refused(*train_words(data=copied))


def test_one_identity_only(refused, train_words, tmp_path, small_data):
    pairs = read_pairs(small_data / "tiny.bin")
    (tmp_path / "faces" / "one").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "faces" / "one" / f"{number}.jpg").write_bytes(pairs.images[number])
    assert "identit" in refused(*train_words(data=tmp_path / "faces"))


def test_a_batch_larger_than_the_data(refused, train_words):
    for batch_size, accumulation, advice in (
        (20, 2, "--training.batch_size 14 or less"),
        (29, 1, "_size 28 or less"),
        (4, 20, "_size 2 --training.accumulation_steps 14 or less"),
    ):
        words = ("--batch-size", batch_size, "--training.accumulation_steps", accumulation)
        line = refused(*train_words(*words))
        assert "more than the 28 images" in line and line.endswith(advice)


def test_unknown_names(refused, train_words, tmp_path):
    assert "did you mean 'mobilefacenet'" in refused(*train_words(backbone="mobilefacenett"))
    assert "did you mean 'adamw'" in refused(*train_words("--optimizer.name", "adam"))
    assert "did you mean 'learning_rate'" in refused(*train_words("--optimizer.learning_rte", "1"))
    assert "unknown option or argument: --foo" in refused("backbones", "--foo")
    assert "invalid choice: 'trains'" in refused("trains")
    assert "arguments are required: --output; see facebones train --help" in refused("train", "demo")
    assert "unknown backbone 'x*'" in refused("backbones", "x*")
    assert "--device tpu: no such device; available here: cpu" in refused(*train_words("--device", "tpu"))
    assert "--batch-size and --training.batch_size are the same" in refused(*train_words("--training.batch_size", "8"))
    assert "a value is missing" in refused(*train_words("--data.flip"))
    first, rest = train_words()[0], train_words()[1:]
    assert "unknown key 'epoch'" in refused(first, "--training.epoch", "4", "--training.seed=3", *rest)
    for words in (["--batch-size", "x"], ["--batch-size", "2.5"]):
        line = refused("evaluate", "pairs", "--model", "x", "--data", "y", *words)
        assert f"argument --batch-size: '{words[1]}' is not a whole number; see" in line
    assert "argument --seed: 'x' is not a whole number" in refused("data", "synthesize", tmp_path / "x", "--seed", "x")
    large = refused("data", "synthesize", tmp_path / "x", "--seed", 10**20)
    assert f"argument --seed: {10**20} is too large; give {2**63 - 1} or less" in large
    assert "--seed: -1 is out of range" in refused(*train_words("--seed", "-1"))
    assert "embedding size 70000 is not in 1 to 65536" in refused(*train_words("--backbone.embedding_size", "70000"))
    assert "unknown recipe 'demmo'; did you mean 'demo'" in refused("train", "demmo", "--output", tmp_path / "run")


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "model.safetensors", "model.json",
                                  "environment.json", "checkpoints/last.pt", "checkpoints/best.pt"])  # fmt: skip
def test_files_that_a_run_would_replace_are_refused(refused, train_words, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert f"{path}: is there already" in refused(*train_words())
    assert path.read_text() == "mine"


def test_a_tracker_that_is_not_installed(refused, train_words, monkeypatch):
    monkeypatch.setattr("facebones.training.trackers.find_spec", lambda package: None)
    assert "pip install 'facebones[wandb]'" in refused(*train_words("--log", "wandb"))


def test_a_run_folder_that_holds_a_run_is_refused(refused, train_words, trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert f"facebones resume {trained}" in refused(*train_words())
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_resuming_where_there_is_no_run(refused, tmp_path):
    assert "holds no run" in refused("resume", tmp_path / "nothing")


def test_resuming_takes_whole_workers(refused, trained):
    assert "--workers: -1 is negative" in refused("resume", trained, "--workers", "-1")


@pytest.mark.parametrize("words", [("train", "demo", "--output", ""), ("data", "inspect", ""), ("report", "run", "")])
def test_an_empty_name_is_not_the_present_folder(refused, words):
    assert "an empty name; '.' is the present folder" in refused(*words)


def test_a_place_below_a_file_is_bad_input(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = refused("data", "synthesize", tmp_path / "file" / "faces")
    assert line.endswith("choose another place") and "free space" not in line


def test_a_place_that_became_read_only_is_named(refused, trained, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    line = refused("resume", trained, "--device", "cpu")
    assert "last.pt: cannot be written: Read-only file system" in line
    (trained / ".lock").unlink()
    monkeypatch.setattr("facebones.run_folder.open_in_place", read_only)
    assert "run: cannot be written: Read-only file system" in refused("resume", trained, "--device", "cpu")


def test_resuming_with_a_checkpoint_of_another_backbone_or_size_or_data(refused, trained, tiny_recipe, copied):
    folder = RunFolder(trained)
    text = folder.config.read_text()
    folder.config.write_text(text.replace("name: tiny_for_tests", "name: shufflefacenet_0_5"))
    line = refused("resume", trained, "--device", "cpu")
    assert "made with backbone.name tiny_for_tests, and config.yaml says shufflefacenet_0_5" in line
    folder.config.write_text(text.replace("embedding_size: 16", "embedding_size: 32"))
    assert "backbone.embedding_size 16" in refused("resume", trained, "--device", "cpu")
    folder.config.write_text(text)
    records = copied / "train.rec"
    other = records.parent.parent / "other"
    for identity in range(2):
        (other / str(identity)).mkdir(parents=True)
        for number in range(4):
            image = read_pairs(copied / "tiny.bin").images[number]
            (other / str(identity) / f"{number}.jpg").write_bytes(image)
    (other / "tiny.bin").write_bytes((copied / "tiny.bin").read_bytes())
    assert "trained on other data (28 images of 4 identities)" in refused("resume", trained, "--data", other)


def test_evaluating_weights_of_another_backbone_or_none(refused, trained, small_data, tmp_path):
    pairs = ["--data", small_data / "tiny.bin", "--device", "cpu"]
    evaluate = ["evaluate", "pairs", *pairs, "--model"]
    assert "holds tiny_for_tests, not r50" in refused(*evaluate, trained, "--backbone", "r50")
    assert "no such run or file" in refused(*evaluate, tmp_path / "x.pt")
    torch.save(create_backbone("shufflefacenet_0_5", 32).state_dict(), tmp_path / "foreign.pth")
    line = refused(*evaluate, tmp_path / "foreign.pth")
    assert "does not say which backbone it is; its names and shapes are those of shufflefacenet_0_5" in line
    line = refused(*evaluate, tmp_path / "foreign.pth", "--backbone", "mobilefacenet")
    assert "not the weights of mobilefacenet: it lacks stem" in line
    (tmp_path / "broken.pt").write_bytes((trained / "checkpoints" / "last.pt").read_bytes()[:5000])
    assert "cut short" in refused(*evaluate, tmp_path / "broken.pt")
    (tmp_path / "broken.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:500])
    assert "cut short" in refused(*evaluate, tmp_path / "broken.safetensors")
    (tmp_path / "text.pt").write_text("hello")
    assert "text.pt" in refused(*evaluate, tmp_path / "text.pt")


def test_a_checkpoint_that_would_run_code_is_refused(refused, small_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):  # torch warns of most of these, where only the one line is wanted
        (tmp_path / "odd.pt").write_bytes(pickle.dumps({"backbone": Bomb()}, protocol))
        with warnings.catch_warnings(action="error"):
            assert "odd.pt: " in refused("evaluate", "pairs", "--model", "odd.pt", "--data", small_data / "tiny.bin")
    torch.save({"backbone": Bomb(), "recipe": {}}, tmp_path / "bomb.pt")
    line = refused("evaluate", "pairs", "--model", "bomb.pt", "--data", small_data / "tiny.bin")
    assert "nothing in it was run" in line


@contextlib.contextmanager
def unprivileged():
    """Root may write everywhere: be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission_to_write(tiny_recipe, tmp_path, capsys):
    from facebones.errors import ConfigError

    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    folder = RunFolder(closed / "run")
    denied = pytest.raises(ConfigError, match="closed/run: cannot be written: Permission denied")
    with unprivileged(), denied, folder.create(tiny_recipe()):
        pass
    assert list(closed.iterdir()) == []


def test_no_permission_to_read(tmp_path, capsys):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    for command in (["data", "inspect"], ["evaluate", "pairs", "--model", "x", "--data"]):
        with unprivileged():
            assert main([*command, str(closed / "faces.bin")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "faces.bin" in lines[0] and "Permission denied" in lines[0]


def test_an_output_that_cannot_be_a_folder(refused, train_words, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written: Not a directory" in refused(*train_words(output=tmp_path / "file" / "run"))


def test_a_full_disk_while_saving_keeps_the_older_checkpoint(train_words, tmp_path, capsys, monkeypatch):
    real, calls = os.fsync, []

    def full_at_the_third_save(descriptor):
        calls.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        if sum("last.pt" in name for name in calls) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_third_save)
    words = [str(word) for word in train_words("--training.checkpoint_every", "2")]
    assert main(words) == 1
    *_, before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("facebones: ") and "last.pt: cannot be written: No space left on device" in line
    folder = RunFolder(tmp_path / "run")
    assert before == f"the save before is whole; fix the error below, then continue with: {folder.resume_command}"
    assert load_checkpoint(folder.last)["step"] == 2  # the first save is that of step 0
    assert [path.name for path in folder.last.parent.iterdir()] == ["last.pt"]
    monkeypatch.undo()
    assert main(["resume", str(folder.path), "--device", "cpu"]) == 0


@pytest.mark.slow
def test_a_file_size_limit_of_the_system_is_a_full_disk(small_data, tmp_path):
    words = [
        "train", "demo", "--data", small_data, "--output", tmp_path / "run", "--batch-size", "4", "--workers", "0",
        "--training.epochs", "1", "--validation.sets", "tiny", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "facebones", *map(str, words)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "last.pt: cannot be written: File too large" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_that_is_not_finite_stops_before_the_update(train_words, tmp_path, capsys):
    words = [str(word) for word in train_words("--optimizer.learning_rate", "1e30", "--log.every", "1")]
    assert main(words) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"facebones: step \d+: loss .*not applied; .*try a lower --optimizer.learning_rate", line)
    assert not RunFolder(tmp_path / "run").result.exists()


# ---------------------------------------------------------------------------------------------------- results


def test_a_run_folder_holds_what_the_readme_says(trained):
    folder = RunFolder(trained)
    for path in (folder.config, folder.metrics, folder.result, folder.environment, folder.last, folder.best):
        assert path.stat().st_size > 0
    card = json.loads((trained / "model.json").read_text())
    assert (card["backbone"], card["embedding_size"], card["training_identities"]) == ("tiny_for_tests", 16, 4)
    result = json.loads(folder.result.read_text())
    assert result["final"][0]["set"] == "tiny" and 0 <= result["final"][0]["accuracy"] <= 1


def test_evaluate_pairs_agrees_with_the_run_and_writes_its_files(trained, small_data, tmp_path, capsys):
    words = ["evaluate", "pairs", "--model", trained, "--data", small_data / "tiny.bin"]
    words += ["--output", tmp_path / "out", "--device", "cpu", "--json"]
    assert main([str(word) for word in words]) == 0
    printed = json.loads(capsys.readouterr().out)
    final = json.loads((trained / "result.json").read_text())["final"][0]
    for key in ("accuracy", "accuracy_std", "tar_at_far_1e3", "auc", "eer"):
        assert printed["results"][0]["details"]["run"][key] == pytest.approx(final[key], abs=1e-9)
    assert json.loads((tmp_path / "out" / "pairs.json").read_text()) == printed
    assert (tmp_path / "out" / "roc.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "out" / "run_tiny_scores.npz") as scores:
        assert len(scores["distance"]) == len(scores["is_same"]) == 20


def test_a_signal_before_the_run_exists_names_no_run_to_resume(train_words, tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(run, "_begin", stop)
    assert main([str(word) for word in train_words()]) == 143
    assert not (tmp_path / "run").exists()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "facebones: stopped by SIGTERM; there is no run to continue; run the same command again"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(train_words, tmp_path, capsys, monkeypatch, number, status):
    original = Trainer.train_step

    def step(self, batches):
        original(self, batches)
        if self.step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", step)
    assert main([str(word) for word in train_words()]) == status
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"facebones: stopped by {number.name} after step 3, which is saved;"
        f" continue with: facebones resume {tmp_path}/run --device cpu"
    )
    assert load_checkpoint(RunFolder(tmp_path / "run").last)["step"] == 3
    monkeypatch.undo()
    assert main(["resume", str(tmp_path / "run"), "--device", "cpu"]) == 0


def test_a_second_signal_while_saving_keeps_the_checkpoint_before_and_is_one_line(
    train_words, tmp_path, capsys, monkeypatch
):
    original, save = Trainer.train_step, torch.save

    def step(self, batches):
        original(self, batches)
        if self.step == 3:
            monkeypatch.setattr(torch, "save", interrupted)
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupted(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except BaseException as error:  # as the writer of torch's archives does
            raise RuntimeError("unexpected pos 64 vs 0") from error

    monkeypatch.setattr(Trainer, "train_step", step)
    assert main([str(word) for word in train_words()]) == 143
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"facebones: stopped by SIGTERM; continue with: facebones resume {tmp_path}/run --device cpu"
    monkeypatch.setattr(torch, "save", save)
    assert load_checkpoint(RunFolder(tmp_path / "run").last)["step"] == 0
    monkeypatch.undo()
    assert main(["resume", str(tmp_path / "run"), "--device", "cpu"]) == 0


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_trains(recipe, train_words, tmp_path, capsys, teacher):
    # In fp16 the first steps go to finding a scale for the gradients.
    more = ("--training.accumulation_steps", "1", "--training.epochs", "4")
    if load_recipe(recipe).distillation.alone:
        more += ("--distillation.embeddings", str(teacher))
    words = [recipe if word == "demo" else str(word) for word in train_words(*more)]
    assert main(words) == 0
    assert "tiny: accuracy" in capsys.readouterr().out


def test_backbones_are_listed_for_people_and_programs(capsys):
    assert main(["backbones", "mobile*"]) == 0
    assert "mobilefacenet_wide" in capsys.readouterr().out
    assert main(["backbones", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name": "iresnet50", "parameters": 43_590_848}.items() <= next(
        r for r in rows if r["name"] == "iresnet50"
    ).items()


@pytest.mark.parametrize("asked", [("--log", "tensorboard"), ("--log.tensorboard", "true")])
def test_tensorboard_where_asked(train_words, tmp_path, asked):
    words = train_words(*asked, "--log.every", "1")
    assert main([str(word) for word in words]) == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_page_is_whole_and_an_alias_is_a_name(refused, capsys):
    for words in (("mobile*", "--markdown"), ("--markdown", "--json"), ("--markdown", "--catalogue")):
        assert "--markdown prints the whole page" in refused("backbones", *words)
    for words in (("mobile*", "--catalogue"), ("--catalogue", "--json")):
        assert "--catalogue prints the whole file" in refused("backbones", *words)
    assert main(["backbones", "r50"]) == 0
    assert "iresnet50" in capsys.readouterr().out
    line = refused("backbones", "nope*")
    assert "known: edgeface_base, " in line and " more" in line and len(line) < 300


def test_a_stop_that_a_library_takes_for_its_own_failure_is_still_a_stop(monkeypatch, capsys):
    def run(_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except BaseException as error:
            raise RuntimeError("cannot be exported") from error

    monkeypatch.setattr("facebones.backbones.catalogue.catalogued_backbones", run)
    assert main(["backbones"]) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_a_stopped_command_says_what_remains_of_its_output(tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        (out / "scores.npz").write_bytes(b"whole")
        os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("facebones.evaluation.groups.evaluate_groups", stop)
    command = ["evaluate", "groups", "--model", "a.onnx", "--data", "lfw.bin", "--output", str(out)]
    assert main(command) == 143
    end = f"each file in {out} is whole, but some may be missing; run the same command again"
    assert capsys.readouterr().err.splitlines()[-1] == f"facebones: stopped by SIGTERM; {end}"
