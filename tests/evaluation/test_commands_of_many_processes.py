"""Commands that several processes share: what they write, print and refuse."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.cli.main import main as cli
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.evaluation.many_processes import open_in_all
from facebones.evaluation.run import evaluate
from facebones.reporting import evaluation_plots
from facebones.run_folder import RunFolder
from facebones.synthetic.dataset import synthesize


@pytest.fixture(scope="module")
def ijb(tmp_path_factory):
    """An IJB-C style folder of 12 people."""
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    synthesize(folder, identities=2, images_per_identity=1, pairs=20, template_subjects=12, workers=1)
    return folder / "ijb"


def commands_in_group(in_group, words, size, folder):
    """Run a command line in each process of a group: the exit statuses, and what each printed to stdout and stderr."""
    folder.mkdir()

    def work(rank):
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY), number)
        with (
            open(1, "w", closefd=False) as sys.stdout,
            open(2, "w", closefd=False) as sys.stderr,
        ):  # pytest's are its own
            return cli(words)

    statuses = in_group(work, size, joins=False)
    return statuses, *([(folder / f"{rank}.{name}").read_text() for rank in range(size)] for name in ("out", "err"))


def words(command, weights, data, *more):
    start = ["evaluate", command, "--model", f"m={weights}", "--data", str(data), "--device", "cpu"]
    return [*start, "--bootstrap", "100", "--batch-size", "8", *map(str, more)]


@pytest.mark.parametrize(("command", "size"), [("pairs", 2), ("templates", 3), ("identification", 2)])
def test_a_command_writes_and_prints_what_one_process_does(
    in_group, ijb, pair_file, weights, tmp_path, capfd, monkeypatch, command, size
):
    monkeypatch.setattr(evaluation_plots, "write_evaluation_plots", lambda *_: None)  # seconds, in process 0 alone
    data = pair_file if command == "pairs" else ijb
    assert cli(words(command, weights, data, "--output", tmp_path / "one", "--json")) == 0
    printed = capfd.readouterr().out
    many = words(command, weights, data, "--output", tmp_path / "many", "--json")
    statuses, outputs, errors = commands_in_group(in_group, many, size, tmp_path / "printed")
    assert (statuses, errors) == ([0] * size, [""] * size)
    assert outputs == [printed] + [""] * (size - 1)
    one, several = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")}
        for root in (tmp_path / "one", tmp_path / "many")
    )
    assert one == several


@pytest.mark.slow
def test_launchers_start_the_processes(pair_file, tmp_path, capfd):
    torch.manual_seed(0)
    network = create_backbone("shufflefacenet_0_5", 16)  # which every process knows
    save_weights(RunFolder(tmp_path), network, {"backbone": network.name, "embedding_size": 16})
    given = [*words("pairs", tmp_path / "model.safetensors", pair_file), "--json"]
    assert cli(given) == 0
    printed = capfd.readouterr().out
    facebones = ["-m", "facebones", *given]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *facebones]
    for command in ([*facebones, "--devices", "2"], torchrun):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stdout) == (0, printed), done.stderr


def test_a_broken_image_ends_a_command_with_one_line(in_group, ijb, weights, tmp_path):
    broken = tmp_path / "ijb"
    shutil.copytree(ijb, broken)
    last = sorted((broken / "loose_crop").rglob("*.*"))[-1]
    last.write_bytes(b"broken")
    many = words("templates", weights, broken, "--output", tmp_path / "many")
    statuses, outputs, errors = commands_in_group(in_group, many, 2, tmp_path / "printed")
    assert (statuses, outputs, errors[1]) == ([2, 2], ["", ""], "")
    (line,) = errors[0].splitlines()
    assert line.startswith("facebones: process ") and last.name in line
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["features"]


@pytest.mark.parametrize("bad", [["--data", "missing.bin"], ["--model", "m=missing.pt"], ["--model", "nothing"]])
def test_bad_input_is_said_once(in_group, pair_file, weights, tmp_path, bad):
    given = words("pairs", weights, pair_file)
    given[given.index(bad[0]) + 1] = bad[1]
    statuses, outputs, errors = commands_in_group(in_group, given, 2, tmp_path / "printed")
    assert (statuses, outputs, errors[1]) == ([2, 2], ["", ""], "")
    assert len(errors[0].splitlines()) == 1 and errors[0].startswith("facebones: ")


def test_a_model_that_one_process_cannot_use_is_left_out_in_all(in_group, pair_file, weights, tmp_path):
    torch.save({}, tmp_path / "other.pt")

    def work(world):
        models = {"m": weights, "other": tmp_path / "other.pt" if world.rank else weights}
        metrics = evaluate(models, pair_file, device="cpu", bootstrap=100, batch_size=8, world=world)
        return {name for metric in metrics for name in metric.values}

    assert in_group(work, 2) == [{"m"}] * 2


def test_processes_with_other_weights_or_images_are_refused(in_group, pair_file, weights, tiny_backbone, tmp_path):
    torch.manual_seed(1)
    card = {"backbone": tiny_backbone, "embedding_size": 16}
    save_weights(RunFolder(tmp_path / "other"), create_backbone(tiny_backbone, 16), card)
    pairs = read_pairs(pair_file)
    write_pairs(tmp_path / "few.bin", pairs.images[::-1], pairs.is_same)

    def work(world):
        model = tmp_path / "other" if world.rank else weights
        return evaluate(model, pair_file if not world.rank else tmp_path / "few.bin", device="cpu", world=world)

    line = "ConfigError: process 1 has other models and images than process 0; give all processes the same"
    assert in_group(work, 2) == [line] * 2


def test_random_weights_are_those_of_process_0(in_group, tiny_backbone):
    def work(world):
        torch.manual_seed(world.rank)
        opened = open_in_all({"m": tiny_backbone}, device="cpu", left_out={}, world=world)
        return [part.numpy() for part in opened["m"].network.state_dict().values()], torch.rand(1).item()

    (first, one), (second, other) = in_group(work, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert one != other  # the random state is as before


def test_a_runtime_is_chosen_in_process_0(in_group, pair_file, weights):
    def work(world):
        found = evaluate(weights, pair_file, device="cpu", runtime="bf16", bootstrap=100, world=world)
        return [metric.value for metric in found]

    first, second = in_group(work, 2)
    assert (
        first == second == [m.value for m in evaluate(weights, pair_file, device="cpu", runtime="bf16", bootstrap=100)]
    )
