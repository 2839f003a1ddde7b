"""What several processes cannot train: one line from the first of them, status 2, and none waits for the others."""

import socket

import numpy as np
import pytest
import torch
from groups import PLUGIN, RECIPE, Group
from safetensors.torch import load_file
from teachers import write_teacher

from facebones.backbones import create_backbone
from facebones.cli.main import main
from facebones.plugins import import_plugins
from facebones.run_folder import RunFolder
from facebones.system.processes import CAN_FORK

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="no fork here")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def refusal(argvs, folder, seconds=40, **environment):
    """The only line that the group says, of its first process; all have status 2."""
    with Group(argvs, folder, **environment) as group:
        assert group.wait(seconds) == [2] * len(argvs), [group.all_said(rank) for rank in range(len(argvs))]
        said = [group.said(rank) for rank in range(len(argvs))]
    assert said[1:] == [[]] * (len(argvs) - 1) and len(said[0]) == 1, said
    assert not [line for rank in range(len(argvs)) for line in group.all_said(rank) if "Traceback" in line]
    return said[0][0]


CANONICAL = "--training.canonical_shards"
WRONG = [
    (3, ["--batch-size", "2"], "training.batch_size 2 is too small for 3 processes: each needs 1 image"),
    (3, ["--batch-size", "5", "--training.batch_norm", "own"], "is too small for 3 processes: each needs 2 images"),
    (
        2,
        [CANONICAL, "3", "--batch-size", "9"],
        f"{CANONICAL[2:]} 3 cannot be shared by 2 processes; start 1 or 3 of them",
    ),
    (2, [CANONICAL, "4", "--batch-size", "10"], "4 does not divide training.batch_size 10; give a --batch-size of 8"),
    (2, [CANONICAL, "2", "--training.precision", "bf16"], "gives equal bits on CPUs in fp32"),
    (2, [CANONICAL, "0.5"], "canonical_shards"),
    (2, [CANONICAL, "-1"], "canonical_shards"),
    (2, ["--no-such-option", "3"], "no-such-option"),
    (2, ["--training.no_such_field", "3"], "unknown key 'no_such_field'"),
    (2, ["--data", "no_such_folder"], "no_such_folder"),
    (2, ["--import", "no_such_module"], "no_such_module"),
    (2, ["--validation.sets", "no_such_set"], "no_such_set"),
]


QUICK = 5  # each case starts its processes


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [pytest.param(*row, id=row[2][:30], marks=[pytest.mark.slow] * (k >= QUICK)) for k, row in enumerate(WRONG)],
)
def test_one_line_of_the_first_process(size, options, expected, recipe, small_data, tmp_path):
    data = [] if "--data" in options else ["--data", str(small_data)]
    argv = ["train", str(recipe), "--output", str(tmp_path / "run"), *data, *options]
    assert expected in refusal([argv] * size, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there(tmp_path):
    argv = ["train", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "run"), "--data", "x"]
    assert "none.yaml" in refusal([argv] * 2, tmp_path)


def test_a_run_that_is_not_there(tmp_path):
    assert "holds no run" in refusal([["resume", str(tmp_path / "run")]] * 2, tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--lr", "0.3", "has optimizer.learning_rate 0.3, and process 0"),
        pytest.param("--seed", "7", "has training.seed 7, and process 0", marks=pytest.mark.slow),
        pytest.param("--training.canonical_shards", "2", "canonical_shards", marks=pytest.mark.slow),
        pytest.param("--batch-size", "6", "has training.batch_size 6, and process 0", marks=pytest.mark.slow),
        ("--no-such-option", "1", "no-such-option"),
    ],
)
def test_a_process_with_another_recipe(option, value, expected, recipe, small_data, tmp_path):
    argv = ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(small_data)]
    line = refusal([argv, [*argv, option, value]], tmp_path)
    assert "process 1" in line and expected in line


def test_a_process_with_other_data(recipe, small_data, break_images, tmp_path):
    argvs = [
        ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(data)]
        for data in (small_data, break_images(3)[0])
    ]
    line = refusal(argvs, tmp_path)
    assert "process 1" in line and "start all with the same versions, recipe and data" in line


def test_a_process_without_data(recipe, small_data, tmp_path):
    argvs = [
        ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(data)]
        for data in (small_data, tmp_path / "nowhere")
    ]
    line = refusal(argvs, tmp_path)
    assert "process 1: " in line and "nowhere" in line


def test_a_port_in_use(recipe, small_data, tmp_path):
    argv = ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(small_data)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Group([argv] * 2, tmp_path, MASTER_PORT=port, FACEBONES_TIME_LIMIT=4) as group:
            assert group.wait(40) == [2, 2], [group.all_said(0), group.all_said(1)]
        (line,) = group.said(0)
    assert f"port {port} of 127.0.0.1 is in use" in line
    (line,) = group.said(1)  # it does not know why the first one is not there
    assert f"cannot meet at 127.0.0.1:{port}: no answer within 5 s" in line


@pytest.mark.parametrize("limit", ["0", "nan", "inf"])
def test_a_time_limit_that_is_none(limit, recipe, small_data, tmp_path):
    argv = ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(small_data)]
    assert f"FACEBONES_TIME_LIMIT={limit}: give seconds" in refusal([argv] * 2, tmp_path, FACEBONES_TIME_LIMIT=limit)


@pytest.mark.parametrize("devices", ["0", "x", "-1", "1.5", "100000", "²", ""])
def test_numbers_of_processes_that_are_none(devices, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["train", "x.yaml", "--output", str(tmp_path / "run"), "--data", "x", f"--devices={devices}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("facebones: ") and "--devices" in line


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "x"), ("RANK", "5"), ("MASTER_PORT", "x"), ("WORLD_SIZE", "x"), ("MASTER_ADDR", "")]
)
def test_an_environment_that_no_launcher_makes(name, value, recipe, small_data, tmp_path):
    argv = ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(small_data)]
    wins = {"WORLD_SIZE": 2, name: value}
    with Group([argv], tmp_path, FACEBONES_TIME_LIMIT=4, wins=wins) as group:
        assert group.wait(40) == [2], group.all_said(0)
    lines = group.all_said(0)
    assert "Traceback" not in "\n".join(lines) and len([line for line in lines if "facebones: " in line]) == 1, lines


@pytest.fixture
def state_dicts(tmp_path):
    """Two files of weights of the recipe's network."""
    import_plugins([str(PLUGIN)], "import")
    for name in ("one.pth", "other.pth"):
        torch.save(create_backbone("slow_tiny", 16).state_dict(), tmp_path / name)
    return tmp_path / "one.pth", tmp_path / "other.pth"


def test_processes_that_read_other_weights(recipe, small_data, tmp_path, state_dicts):
    argv = ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(small_data), "--backbone.weights"]
    line = refusal([[*argv, str(path)] for path in state_dicts], tmp_path)
    assert "process 1" in line and "has read other backbone.weights than process 0" in line
    line = refusal([[*argv, str(state_dicts[0])], [*argv, str(tmp_path / "none.pth")]], tmp_path)
    assert "process 1: backbone.weights" in line and "no such run or file" in line
    assert not (tmp_path / "run").exists()


def test_processes_that_read_other_teachers(recipe, small_data, tmp_path):
    argv = ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(small_data)]
    one, other = (write_teacher(tmp_path / name, small_data) for name in ("one", "other"))
    rows = np.load(other, mmap_mode="r+")
    rows[0, 0, 0] += 1
    rows.flush()
    line = refusal([[*argv, "--distillation.embeddings", path] for path in (one, other)], tmp_path)
    assert "process 1 on" in line and "has distillation.embeddings of fingerprint" in line
    assert not (tmp_path / "run").exists()


def test_processes_begin_with_the_same_weights_and_train_as_one(recipe, small_data, tmp_path, state_dicts):
    argv = ["train", str(recipe), "--data", str(small_data), "--backbone.weights", str(state_dicts[0])]
    argv += ["--backbone.frozen", "1", "--optimizer.layer_decay", "0.5", "--backbone.dropout", "0", "--epochs", "1"]
    weights = []
    for size in (1, 2):
        run = RunFolder(tmp_path / f"run{size}")
        with Group([[*argv, "--output", str(run.path)]] * size, tmp_path) as group:
            assert group.wait() == [0] * size, group.all_said(0)
        weights.append(load_file(run.weights))
    one, two = weights
    first = torch.load(state_dicts[0])
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-4, atol=1e-5), name
        frozen = name.startswith(("conv.", "norm2d.", "prelu."))
        assert torch.equal(value, first[name]) == (frozen or name.startswith("unused.")), name
