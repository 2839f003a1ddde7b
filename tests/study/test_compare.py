"""A study as people run it: in a process of its own, with trainings that finish, fail, are stopped and killed."""

import contextlib
import hashlib
import html
import importlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from onnx import TensorProto, helper

from facebones import recipe
from facebones.cli.main import main
from facebones.data.pair_bins import write_pairs
from facebones.errors import ConfigError, DataError, RunError
from facebones.recipe import load_config, load_recipe
from facebones.reporting.load import load_results
from facebones.reporting.report import write_report
from facebones.run_folder import RunFolder, read_metrics
from facebones.study.compare import compare, plan_rows, preview, raise_failures
from facebones.study.display import Display, plan_table, study_table, study_title
from facebones.study.evaluate import check_evaluation
from facebones.study.launchers.local import child_environment
from facebones.study.plan import find_sets, make_plan
from facebones.study.planned_run import versions_here
from facebones.study.record import entry_title
from facebones.study.study import load_study
from facebones.synthetic.dataset import synthesize
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.system.processes import PARENT_VARIABLE, Interrupted
from facebones.training.run import train

PROFILE = importlib.import_module("facebones.profiling.profile")
SMALL, LARGE = "shufflefacenet_0_5", "shufflefacenet_1_0"
STUDY = """
recipe: demo
overrides:
  backbone.embedding_size: 16
  data.workers: 0
  training.batch_size: 14
  training.epochs: {epochs}
  training.checkpoint_every: 2
  validation.sets: tiny
  log.every: 1
backbones: [{backbones}]
seeds: [{seeds}]
data: {data}
profile: {profile}
"""


@pytest.fixture
def write(tmp_path, small_data):
    """Write a study of two steps an epoch on the small data; returns its path."""

    def write_study(backbones=SMALL, seeds="0", epochs=1, data=small_data, profile="false", more=""):
        path = tmp_path / "mine.yaml"
        fields = {"backbones": backbones, "seeds": seeds, "epochs": epochs, "data": data, "profile": profile}
        path.write_text(STUDY.format(**fields) + more)
        return str(path)

    return write_study


def command(*words):
    return [sys.executable, "-m", "facebones", "compare", *map(str, words), "--device", "cpu"]


def run(*words):
    """Compare in a process of its own; returns the status and what it said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(*words), capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout, done.stderr


def study_json(output):
    return json.loads((output / "study.json").read_text())


def times(folder):
    """Of what is trained and measured: not of study.json, the report and its lease, which each call writes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "study.json"]
    files = [path for path in files if not path.name.startswith(".measuring.lease.")]
    return {path: path.stat().st_mtime_ns for path in files if folder / "report" not in path.parents}


def recorded(content):
    """What study.json holds of the answer of `compare`."""
    return {key: value for key, value in content.items() if key not in ("answer", "report")}


def errors_of(content):
    return {entry_title(entry): entry["error"] for entry in content["evaluation"]}


def metrics_of(row):
    return {metric["set"]: metric for metric in row["metrics"] if metric["name"] == "accuracy"}


# ------------------------------------------------------------------------------------------------------- plan


def test_the_plan_knows_how_far_each_run_is(write, tmp_path):
    study, output = load_study(write(f"{SMALL}, {LARGE}", "0, 1")), tmp_path / "out"
    runs = make_plan(study, output).runs
    assert [run.name for run in runs] == [f"{name}_seed{seed}" for name in (SMALL, LARGE) for seed in (0, 1)]
    assert [run.state for run in runs] == ["to do"] * 4 and {run.steps for run in runs} == {2}
    assert not output.exists()

    for run, others in zip(runs[:2], ({}, {"result.json": "{}"}), strict=True):
        run.folder.write_recipe(run.recipe)
        for name, text in others.items():
            (run.folder.path / name).write_text(text)
    lines = [{"kind": "train", "step": 1, "loss": 3.5, "images_per_second": 7.0}]
    lines.append({"kind": "validation", "step": 1, "set": "tiny", "accuracy": 0.75})
    runs[0].folder.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"kind": "tr')
    again = make_plan(study, output).runs
    assert [run.state for run in again] == ["unfinished", "done", "to do", "to do"]
    assert again[0].progress() == {"step": 1, "loss": 3.5, "images_per_second": 7.0, "accuracy": 0.75}


def test_one_seed_leaves_the_names_bare_and_each_run_has_its_own_recipe(write, tmp_path):
    plan = make_plan(load_study(write(f"{SMALL}, {LARGE}", "3")), tmp_path / "out")
    assert [run.name for run in plan.runs] == [SMALL, LARGE]
    assert [(run.recipe.backbone.name, run.recipe.training.seed) for run in plan.runs] == [(SMALL, 3), (LARGE, 3)]
    assert len({run.fingerprint for run in plan.runs}) == 2
    assert [(one.name, one.path.name) for one in plan.protocols] == [("pairs", "tiny.bin")]


def test_the_folder_of_a_model_of_timm_has_a_name_that_every_file_system_takes(write, tmp_path):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    (run,) = make_plan(load_study(write("timm:mobilenetv3_small_050")), tmp_path / "out").runs
    assert (run.backbone, run.name) == ("timm:mobilenetv3_small_050", "timm_mobilenetv3_small_050")
    assert run.folder.path == tmp_path / "out" / "runs" / "timm_mobilenetv3_small_050" / "seed0"


DIFFERENT = {
    "optimizer.learning_rate": (
        lambda run: None,
        {"optimizer.learning_rate": "0.5"},
        r"0\.006, and the study says 0\.5",
    ),
    "training.epochs": (lambda run: None, {"training.epochs": "2"}, "epochs 1, and the study says 2; set"),
    "data of images": (lambda run: {"data": {**run.data, "images": 3}}, {}, "images 3, and .* 28; give --data"),
    "other images": (
        lambda run: {"data": {**run.data, "image_sample": "0123"}},
        {},
        "data of image_sample 0123",
    ),
    "other parts": (
        lambda run: {"data": {**run.data, "path": os.pathsep.join("ba"), "image_sample": "0123"}},
        {},
        r"the run had the parts b, a, and these are \S*/faces: b, a are missing, \S*/faces is new",
    ),
}


@pytest.mark.parametrize(("changed", "overrides", "message"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_run_of_another_study_is_refused_and_kept(write, tmp_path, changed, overrides, message):
    import facebones

    path, output = write(), tmp_path / "out"
    (run,) = make_plan(load_study(path), output).runs
    run.folder.write_recipe(run.recipe)
    environment = {"facebones": facebones.__version__, "data": {"path": "elsewhere", **run.data}}
    run.folder.environment.write_text(json.dumps(environment | (changed(run) or {})))
    before = times(output)
    with pytest.raises(ConfigError, match=rf"seed0: holds a run .*{message}.*choose another --output$"):
        make_plan(load_study(path, overrides=overrides), output)
    assert times(output) == before


def test_a_repaired_image_does_not_lock_a_study(write, tmp_path):
    (run,) = make_plan(load_study(write()), tmp_path / "out").runs
    run.folder.write_recipe(run.recipe)
    first, _, others = run.data["image_sample"].partition(" ")
    data = {**run.data, "image_sample": f"- {others}", "sizes of a broken file": "0"}
    run.folder.environment.write_text(json.dumps({"facebones": "0.2.0", "data": data}))
    assert first != "-" and make_plan(load_study(write()), tmp_path / "out").runs[0].state == "unfinished"


def test_what_decides_no_weight_may_change(write, tmp_path):
    (run,) = make_plan(load_study(write()), tmp_path / "out").runs
    run.folder.write_recipe(run.recipe)
    free = {"data.workers": "1", "log.every": "7", "validation.sets": "", "training.checkpoint_every": "9"}
    assert make_plan(load_study(write(), overrides=free), tmp_path / "out").runs[0].state == "unfinished"


@pytest.fixture
def older_run(write, tmp_path):
    """Begin a run, as by a version without the fields named."""

    def begin(*fields):
        (run,) = make_plan(load_study(write()), tmp_path / "out").runs
        sections = run.recipe.to_dict()
        for section, _, key in (field.partition(".") for field in fields):
            del sections[section][key]
        run.folder.path.mkdir(parents=True)
        run.folder.config.write_text(yaml.safe_dump(sections))
        return run

    return begin


def test_a_field_that_an_older_run_lacks_takes_its_default(older_run, write, tmp_path):
    older_run("optimizer.beta1", "data.max_unreadable", "training.accumulation_steps")
    assert make_plan(load_study(write()), tmp_path / "out").runs[0].state == "unfinished"


def test_an_older_run_that_computed_otherwise_is_continued_as_it_began_only_if_that_is_accepted(
    older_run, write, tmp_path, monkeypatch
):
    run = older_run("optimizer.decay_norm_and_prelu")
    meant = recipe.older_meaning
    monkeypatch.setattr(
        recipe, "older_meaning", lambda name: False if name == "optimizer.decay_norm_and_prelu" else meant(name)
    )
    before = times(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"optimizer\.decay_norm_and_prelu existed.*False.*True.*--accept-version"):
        make_plan(load_study(write()), tmp_path / "out")
    same = make_plan(load_study(write(), overrides={"optimizer.decay_norm_and_prelu": "false"}), tmp_path / "out")
    (accepted,) = make_plan(load_study(write()), tmp_path / "out", accept_version=True).runs
    assert accepted.state == same.runs[0].state == "unfinished" and times(tmp_path / "out") == before
    accepted.write_lacking_fields()
    assert load_config(run.folder.config).optimizer.decay_norm_and_prelu is False

    assert make_plan(load_study(write()), tmp_path / "out", accept_version=True).runs[0].state == "unfinished"

    with pytest.raises(ConfigError, match="epochs 1, and the study says 2"):
        make_plan(load_study(write(epochs=2)), tmp_path / "out", accept_version=True)


BAD = {
    "no data": (["--data", ""], "no training data: give --data PATH"),
    "unknown backbone": (["--backbones", "shufflefacenet_0_6"], "did you mean 'shufflefacenet_0_5'"),
    "unknown field": (["--training.epoch", "3"], "unknown key 'epoch'; did you mean 'epochs'?"),
    "seed as a field": (["--training.seed", "3"], "--seeds"),
    "unknown set": (["--validation.sets", "lfw"], "validation.sets: lfw: no such verification set"),
    "unknown pair set": (["--pair-sets", "cfp", "--evaluate", "tiny"], "pair_sets: cfp: no such verification set"),
    "no such file": (["--backbones", "theirs.onnx"], "theirs.onnx: no such run or file"),
    "no such device": (["--device", "abacus"], "--device abacus: no such device"),
    "no such runtime": (["--runtime", "openvina"], "did you mean 'openvino'"),
    "no such runtime, in a plan": (["--runtime", "openvina", "--dry-run"], "did you mean 'openvino'"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_nothing(write, tmp_path, capsys, words, message):
    assert main(["compare", write(), "--output", str(tmp_path / "out"), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1] and not (tmp_path / "out").exists()


def empty_file(folder):
    (folder / "empty.pt").touch()
    return ["--backbones", f"{SMALL},{folder / 'empty.pt'}"], r"empty\.pt: .*restore"


def folder_that_is_no_run(folder):
    (folder / "study" / "runs").mkdir(parents=True)
    return ["--backbones", f"{SMALL},{folder / 'study'}"], "study: neither model.safetensors nor checkpoints/last.pt"


def detector(folder):
    """An ONNX file none of whose outputs is an embedding."""
    value = helper.make_tensor_value_info
    outputs = [value(f"out{number}", TensorProto.FLOAT, None) for number in range(12)]
    nodes = [helper.make_node("Identity", ["input"], [output.name]) for output in outputs]
    graph = helper.make_graph(nodes, "detector", [value("input", TensorProto.FLOAT, ["B", 3, 112, 112])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "detector.onnx").write_bytes(model.SerializeToString())
    return [
        "--backbones",
        f"{SMALL},{folder / 'detector.onnx'}",
    ], "detector.onnx: none of its 12 outputs is an embedding"


def folder_without_lists(folder):
    (folder / "sf" / "person").mkdir(parents=True)
    return ["--ijb", str(folder / "sf")], r"sf/meta: no .* in it; give the folder that holds loose_crop and meta"


def lists_without_images(folder):
    synthesize(folder / "set", identities=2, images_per_identity=1, pairs=20, template_subjects=3, workers=1)
    shutil.rmtree(folder / "set" / "ijb" / "loose_crop")
    return ["--ijb", str(folder / "set" / "ijb")], "loose_crop/"


def lists_without_galleries(folder):
    synthesize(folder / "set", identities=2, images_per_identity=1, pairs=20, template_subjects=3, workers=1)
    for path in (folder / "set" / "ijb" / "meta").glob("*_1N_*"):
        path.unlink()
    return ["--ijb", str(folder / "set" / "ijb")], r"1N_gallery_G1\.csv: no such file; identification"


def pair_set_of_four_bytes(folder):
    (folder / "junk.bin").write_bytes(b"junk")
    return ["--pair-sets", f"tiny,{folder / 'junk.bin'}"], r"junk\.bin"


def pair_set_of_one_kind(folder):
    write_pairs(folder / "alike.bin", [b"image"] * 40, [True] * 20)
    return ["--pair-sets", f"tiny,{folder / 'alike.bin'}"], r"alike\.bin"


UNFIT = (
    *(folder_without_lists, lists_without_images, lists_without_galleries),
    *(pair_set_of_four_bytes, pair_set_of_one_kind),
)


@pytest.mark.parametrize("unfit", UNFIT, ids=lambda unfit: unfit.__name__)
def test_what_would_fail_after_all_trainings_is_refused_before_the_first(write, tmp_path, capsys, unfit):
    words, message = unfit(tmp_path)
    refused_before_any_training(["compare", write(), *words], tmp_path / "out", capsys, message)


@pytest.mark.parametrize("unfit", [empty_file, folder_that_is_no_run, detector], ids=lambda unfit: unfit.__name__)
def test_a_model_that_cannot_be_opened_is_said_before_the_first_training(write, tmp_path, capsys, unfit):
    """It costs the others nothing: they are trained and measured (tests/study/test_unusable_models.py)."""
    words, message = unfit(tmp_path)
    assert main(["compare", write(), *words, "--output", str(tmp_path / "out"), "--device", "cpu", "--dry-run"]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "will be left out" in line)
    assert re.search(message, line) and not (tmp_path / "out").exists()


def test_more_threads_than_processors_are_refused_before_any_training(write, tmp_path, capsys):
    study = write(profile="{threads: 99999}")
    message = r"profile\.threads 99999: this machine has \d+ processor"
    refused_before_any_training(["compare", study], tmp_path / "out", capsys, message)
    assert main(["compare", study, "--output", str(tmp_path / "out"), "--profile", "false", "--dry-run"]) == 0


def test_validation_sets_of_the_recipe_are_looked_for_before_any_training(write, tmp_path, capsys, small_data):
    """Also where the study names what to measure, so that the recipe's sets are for the trainings alone."""
    words = ["compare", write(more=f"evaluate: [{small_data / 'tiny.bin'}]")]
    content = Path(words[1]).read_text().replace("  validation.sets: tiny\n", "")  # the recipe's stay: synthetic
    Path(words[1]).write_text(content)
    refused_before_any_training(words, tmp_path / "out", capsys, "synthetic: no such verification set")


def test_a_batch_larger_than_the_data_is_refused_before_any_training(write, tmp_path, capsys):
    message = r"training\.batch_size 5000 x accumulation_steps 1 is more than the \d+ images of .*; give --training"
    words = ["compare", write(), "--batch-size", "5000"]
    refused_before_any_training(words, tmp_path / "out", capsys, message)


def refused_before_any_training(words, output, capsys, message):
    """That a study and its plan end in one line about what is unfit, and leave nothing."""
    for more in ([], ["--dry-run"]):
        assert main([*words, "--output", str(output), "--device", "cpu", *more]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("facebones: "))
        assert re.search(message, line) and not output.exists()


def test_a_large_pair_set_is_not_decoded_before_the_trainings(write, tmp_path):
    write_pairs(tmp_path / "large.bin", [b"no image"] * 14_000, [True, False] * 3500)
    plan = make_plan(load_study(write(more=f"pair_sets: [{tmp_path / 'large.bin'}]")), tmp_path / "out")
    check_evaluation(plan, "cpu", None)


def test_a_dry_run_shows_the_plan_and_leaves_nothing(write, tmp_path, capsys):
    words = ["compare", write(f"{SMALL}, {LARGE}", "0, 1"), "--output", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count("unknown") == 0 and out.count("to do") == 4
    assert re.search(r"^left: \d+s of training steps, one training after the other; validation and", out, re.MULTILINE)
    assert main([*words, "--json", "--training.epochs", "3"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows][::2] == [f"{SMALL}_seed0", f"{LARGE}_seed0"]
    assert {(row["steps"], row["images"], row["state"]) for row in rows} == {(6, 84, "to do")}
    assert rows[0]["parameters"] < rows[2]["parameters"] and rows[0]["macs"] < rows[2]["macs"]
    assert not (tmp_path / "out").exists()


def test_a_dry_run_times_each_backbone_once_and_remembers_it(write, tmp_path, monkeypatch):
    measured = []

    def measure(recipe, device, **options):
        measured.append(recipe.backbone.name)
        return SimpleNamespace(step_seconds=2.0)

    monkeypatch.setattr("facebones.training.autotune.measure", measure)
    study = load_study(write(f"{SMALL}, {LARGE}", "0, 1"))
    for _ in range(2):
        rows = preview(study, tmp_path / "out", device="cpu")
        assert [row["hours"] for row in rows] == [pytest.approx(2 * row["steps"] / 3600) for row in rows]
    assert measured == [SMALL, LARGE]


def test_children_share_the_processors_or_have_a_gpu_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert "OMP_NUM_THREADS" not in child_environment(0, 1, "cpu")
    assert child_environment(1, 3, "cpu")["OMP_NUM_THREADS"] == "2"
    assert child_environment(0, 1, "cpu")[PARENT_VARIABLE] == str(os.getpid())
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [child_environment(slot, 3, "auto")["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert child_environment(1, 2, "cuda")["CUDA_VISIBLE_DEVICES"] == "6"
    assert child_environment(1, 2, "cpu")["CUDA_VISIBLE_DEVICES"] == "4,6"


@pytest.fixture
def begun(write, tmp_path):
    """Two runs, of which the first has made half of its steps at 7 images a second."""
    plan = make_plan(load_study(write(f"{SMALL}, {LARGE}")), tmp_path / "out")
    plan.runs[0].folder.write_recipe(plan.runs[0].recipe)
    line = {"kind": "train", "step": 1, "loss": 3.5, "images_per_second": 7.0}
    plan.runs[0].folder.metrics.write_text(json.dumps(line) + "\n")
    return plan


def test_the_time_left_follows_from_the_rate_of_the_backbone(begun):
    small, large = plan_rows(begun)
    assert small["hours"] == pytest.approx(2 / 3600) and large["hours"] is None
    assert [row[-2:] for row in plan_table([small, large])[1]] == [
        ("2s", "to resume after step 1"),
        ("unknown", "to do"),
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_is_said_while_it_trains(begun, monkeypatch, stream):
    for name in ("LIVE_SECONDS", "PLAIN_SECONDS"):
        monkeypatch.setattr(f"facebones.study.display.{name}", 0)
    stderr = stream()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with contextlib.closing(Display(begun.runs)) as display:
        display.begin(begun.runs[0])
        display.show([begun.runs[0]], {LARGE: "no memory"})
        display.end(begun.runs[1], "no memory")
    said = stderr.getvalue()
    assert f"{SMALL}: resumes" in said and f"{LARGE}: failed: no memory" in said
    assert "1/2" in said and "3.500" in said and "2s" in said
    assert ("│ failed" in said) == (stream is Terminal)


@pytest.fixture
def finished(write, tmp_path):
    """A study of two models whose trainings are done: one of its own, and the run "theirs", which it names."""

    def build(**fields):
        own = make_plan(load_study(write(SMALL)), tmp_path / "out").runs[0]
        train(own.recipe, own.folder.path, "cpu")
        shutil.copytree(own.folder.path, tmp_path / "theirs")
        return load_study(write(f"{SMALL}, {tmp_path / 'theirs'}", **fields)), tmp_path / "out"

    return build


@pytest.mark.slow
def test_what_is_finished_is_measured_once_and_again_where_it_has_changed(finished, small_data, monkeypatch):
    monkeypatch.setattr(PROFILE, "measure_peak_memory", lambda *_: 1)
    study, output = finished(profile="{seconds: 0.01, batch_size: 2}")
    content = compare(study, output, device="cpu")
    assert list(content["models"]) == [SMALL, "theirs"]
    assert errors_of(content) == {"pairs": None, "profile": None}
    profiled = json.loads((output / "profile.json").read_text())["networks"]
    assert [(row["name"], row["backbone"]) for row in profiled] == [(SMALL, SMALL), ("theirs", SMALL)]
    assert [(row["backbone"], row["done"]) for row in content["summary"]] == [(SMALL, 1), ("theirs", 1)]
    own, theirs = (metrics_of(row)["tiny"] for row in content["summary"])
    assert own == theirs and own["deviation"] is None
    assert content["summary"][0]["parameters"] == profiled[0]["parameters"]
    assert recorded(content) == study_json(output)

    before = times(output)
    assert compare(study, output, device="cpu") == content and times(output) == before

    os.utime(output / "runs" / SMALL / "seed0" / "model.safetensors")
    (output / "profile.json").unlink()
    compare(study, output, device="cpu")
    assert {path.name for path, time in times(output).items() if before.get(path) != time} >= {
        "pairs.json",
        "profile.json",
    }


@pytest.mark.slow
def test_a_measurement_of_an_older_version_stands_until_something_that_decides_it_changes(finished, monkeypatch):
    """The digest of 0.2.0.dev0 had the version in front; `evaluation` was a mapping."""
    study, output = finished()
    content = compare(study, output, device="cpu")
    weights = {name: weights_of(Path(path)) for name, path in content["models"].items()}
    sets = [signature(find_sets(study, study.resolved_recipe())[0].path)]
    decided = ["0.2.0.dev0", "cpu", [[name, [signature(path)]] for name, path in weights.items()], sets]
    digest = hashlib.sha256(json.dumps(decided).encode()).hexdigest()
    older = {key: content[key] for key in ("file", "study", "recipe", "models", "runs", "summary")}
    older |= {"facebones": "0.2.0.dev0", "commit": "0123"}
    part = {"file": "evaluation/pairs.json", "error": None, "inputs": digest}
    (output / "study.json").write_text(json.dumps(older | {"evaluation": {"pairs": part}}))

    before = times(output)
    monkeypatch.setattr("facebones.__version__", "9.0")
    content = compare(study, output, device="cpu")
    (entry,) = content["evaluation"]
    assert times(output) == before and entry["versions"]["facebones"] == "0.2.0.dev0" and content["facebones"] == "9.0"

    os.utime(weights[SMALL])
    (entry,) = compare(study, output, device="cpu")["evaluation"]
    assert times(output) != before and entry["versions"]["facebones"] == "9.0"


def weights_of(path):
    return path / "model.safetensors"


def signature(path):
    return [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]


@pytest.mark.slow
def test_another_runtime_measures_anew_and_is_told(finished):
    study, output = finished()
    told = []
    for runtime in (None, "bf16", "bf16"):
        compare(study, output, device="cpu", runtime=runtime)
        pairs = json.loads((output / "evaluation" / "pairs.json").read_text())
        told.append(({model["runtime"] for model in pairs["models"].values()}, times(output)))
    assert [runtimes for runtimes, _ in told] == [{"eager"}, {"bf16"}, {"bf16"}]
    assert told[0][1] != told[1][1] == told[2][1]


def test_a_runtime_that_cannot_compute_one_of_the_models_is_refused_before_any_training(write, tmp_path, capsys):
    (tmp_path / "theirs.onnx").write_bytes(b"")
    words = ["compare", write(f"{SMALL}, {tmp_path / 'theirs.onnx'}"), "--output", str(tmp_path / "out")]
    assert main([*words, "--runtime", "compiled"]) == 2
    assert "theirs.onnx is an ONNX file" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_part_that_fails_is_recorded_and_tried_again(finished, tmp_path, monkeypatch):
    """It fails by images that cannot be decoded, which nothing has looked at before."""
    write_pairs(tmp_path / "broken.bin", [b"no image"] * 40, [True, False] * 10)
    monkeypatch.setattr(PROFILE, "measure_peak_memory", lambda *_: 1)
    broken = f"pair_sets: [{tmp_path / 'broken.bin'}]\n"
    study, output = finished(profile="{seconds: 0.01, batch_size: 2}", more=broken)
    for _ in range(2):
        content = compare(study, output, device="cpu")
        assert errors_of(content)["profile"] is None
        assert "broken" in errors_of(content)["pairs"]
        with pytest.raises(RunError, match=r"^failed: pairs; .*study\.json has the"):
            raise_failures(content)


@pytest.fixture
def lost(finished, small_data, tmp_path, monkeypatch):
    """A study whose foreign model is emptied, and one of its two pair sets removed, while it trains."""
    monkeypatch.setattr(PROFILE, "measure_peak_memory", lambda *_: 1)
    shutil.copy(small_data / "tiny.bin", tmp_path / "other.bin")
    sets = f"pair_sets: [tiny, {tmp_path / 'other.bin'}]\n"
    study, output = finished(profile="{seconds: 0.01, batch_size: 2}", more=sets)

    def lose(*_, **__):
        RunFolder(tmp_path / "theirs").weights.write_bytes(b"")
        (tmp_path / "other.bin").unlink()
        return {}

    monkeypatch.setattr("facebones.study.compare.train_all", lose)
    return study, output


def test_a_model_and_a_pair_set_that_are_lost_while_it_trains_are_left_out_of_the_figures(lost):
    study, output = lost
    content = compare(study, output, device="cpu")
    errors = errors_of(content)
    assert list(errors) == ["model theirs", "set other", "pairs", "profile"]
    assert errors["pairs"] is errors["profile"] is None
    assert "no safetensors file" in errors["model theirs"] and "other.bin: cannot be read" in errors["set other"]
    own, theirs = content["summary"]
    assert list(metrics_of(own)) == ["tiny"] and theirs["metrics"] == []
    assert study_table(content)[1][1][-2:] == ("0/1", errors["model theirs"])
    networks = json.loads((output / "profile.json").read_text())["networks"]
    columns, (first, second) = study_table(content)
    place = columns.index("latency p50 (ms)")
    assert (first[place], second[place]) == (f"{networks[0]['latency_p50_ms']:.2f}", "-")
    assert [row["name"] for row in networks] == [SMALL]
    with pytest.raises(RunError, match=r"^failed: model theirs, set other; "):
        raise_failures(content)
    assert recorded(content) == study_json(output)


@pytest.mark.slow
def test_the_report_says_what_was_left_out(lost):
    study, output = lost
    errors = errors_of(compare(study, output, device="cpu"))
    results = load_results(output)
    assert results.notes == [
        f"other: failed: {errors['set other']}",
        f"theirs: failed: {errors['model theirs']}",
    ]
    assert [(run.name, run.state) for run in results.runs] == [(SMALL, "done"), ("theirs", "failed")]
    assert list(results.metric("tiny", "accuracy").values) == [SMALL]
    write_report([output], output / "report")
    assert "FAILED" in (output / "report" / "tables.md").read_text()
    assert "model.safetensors: no safetensors file" in (output / "report" / "report.html").read_text()


@pytest.mark.slow
def test_a_finished_run_whose_weights_are_lost_is_left_out_and_the_rest_is_measured_once(finished, tmp_path):
    study, output = finished()
    weights = RunFolder(output / "runs" / SMALL / "seed0").weights
    whole = weights.read_bytes()
    weights.write_bytes(b"")
    content = compare(study, output, device="cpu")
    own, theirs = content["summary"]
    assert own["metrics"] == [] and "no safetensors file" in own["errors"][0] and list(metrics_of(theirs)) == ["tiny"]
    before = times(output / "evaluation")
    assert compare(study, output, device="cpu") == content and times(output / "evaluation") == before
    assert load_results(output).notes == [f"{SMALL}: failed: {own['errors'][0]}"]

    weights.write_bytes(whole)
    content = compare(study, output, device="cpu")
    assert [list(metrics_of(row)) for row in content["summary"]] == [["tiny"], ["tiny"]]
    assert list(errors_of(content)) == ["pairs"]


def test_two_models_of_one_name_are_refused(write, tmp_path):
    (tmp_path / SMALL).mkdir()
    with pytest.raises(ConfigError, match=f"two models are called {SMALL}; rename the folder"):
        make_plan(load_study(write(f"{SMALL}, {tmp_path / SMALL}")), tmp_path / "out")


def test_targets_and_pair_sets_of_one_name_are_refused_before_any_training(write, tmp_path, small_data):
    shutil.copy(small_data / "tiny.bin", tmp_path)
    (tmp_path / "a" / "IJBC").mkdir(parents=True)
    (tmp_path / "b" / "IJBC").mkdir(parents=True)
    for more, message in (
        (f"pair_sets: [tiny, {tmp_path / 'tiny.bin'}]", "two sets are called tiny"),
        (f"ijb: [{tmp_path / 'a' / 'IJBC'}, {tmp_path / 'b' / 'IJBC'}]", "two sets are called IJBC"),
        (f"ijb: [{tmp_path / 'IJBB'}]", "IJBB: no such folder"),
    ):
        with pytest.raises(DataError, match=message):
            make_plan(load_study(write(more=more)), tmp_path / "out")


def test_the_table_of_a_study_has_the_columns_that_are_known():
    metric = {"protocol": "pairs", "set": "lfw", "setting": "", "name": "accuracy", "at": {}, "rule": ""}
    measured = {"metrics": [metric | {"mean": 0.66625, "deviation": None}], "errors": [], "done": 1, "planned": 1}
    rows = [
        {"backbone": "a", "parameters": 1_250_000, "macs": 33_500_000, "latency_ms": 1.234, **measured},
        {"backbone": "theirs", "parameters": None, "macs": None, **measured},  # an older record has no latency
    ]
    columns, table = study_table({"summary": rows})
    assert columns == ("backbone", "parameters", "MACs (M)", "latency p50 (ms)", "lfw: accuracy", "seeds")
    assert table == [("a", "1,250,000", "33.5", "1.23", "66.63 %", "1/1"), ("theirs", "-", "-", "-", "66.63 %", "1/1")]

    failed = {**rows[0], "latency_ms": None, "errors": ["no memory"], "metrics": [], "done": 0}
    columns, table = study_table({"summary": [failed]})
    assert columns == ("backbone", "parameters", "MACs (M)", "seeds", "error")
    assert table == [("a", "1,250,000", "33.5", "0/1", "no memory")]


def test_the_title_of_that_table_says_the_size_of_the_embeddings():
    content = {"study": {"name": "demo"}, "recipe": load_recipe("demo").to_dict()}
    content |= {"runs": [{"backbone": "a"}], "summary": [{"backbone": "a"}]}
    assert study_title(content).endswith("embeddings of 128 dimensions")
    content["summary"].append({"backbone": "theirs"})
    assert study_title(content).endswith("standard deviation")


# --------------------------------------------------------------------------------------------------- for real


@pytest.mark.slow
def test_a_study_trains_measures_and_does_nothing_twice(write, tmp_path):
    path, output = write(seeds="0, 1"), tmp_path / "out"
    status, table, said = run(path, "--output", output, "--jobs", "2")
    assert status == 0, said
    assert SMALL in table and "tiny: accuracy" in table and "2/2" in table and " % ± " in table
    content = study_json(output)
    assert [run["state"] for run in content["runs"]] == ["done", "done"]
    assert all(run["final"][0]["set"] == "tiny" and run["error"] is None for run in content["runs"])
    (pairs,) = content["evaluation"]
    assert (pairs["kind"], pairs["protocol"], pairs["set"]) == ("protocol", "pairs", None)
    assert pairs["file"] == "evaluation/pairs.json" and pairs["versions"] == versions_here()
    assert all(run["versions"] == versions_here() for run in content["runs"])
    pairs = json.loads((output / "evaluation" / "pairs.json").read_text())
    assert list(pairs["models"]) == [f"{SMALL}_seed0", f"{SMALL}_seed1"]
    values = [pairs["results"][0]["details"][name]["accuracy"] for name in pairs["models"]]
    accuracy = metrics_of(content["summary"][0])["tiny"]
    assert accuracy["values"] == values and accuracy["mean"] == pytest.approx(sum(values) / 2)

    report = output / "report"
    assert table.splitlines()[-1] == f"report: {report / 'report.html'}"
    assert {path.name for path in report.iterdir()} == {
        *("report.html", "results.json", "tables.md", "tables.tex", "tables.csv", "plots"),
    }
    said_in_words = [line.removeprefix("* ") for line in table.splitlines() if line.startswith("* ")]
    assert said_in_words == json.loads((report / "results.json").read_text())["answer"]
    page = (report / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert all(sentence in page for sentence in said_in_words)

    before = times(output / "runs") | times(output / "evaluation")
    assert run(path, "--output", output, "--jobs", "2") == (0, table, "")
    assert times(output / "runs") | times(output / "evaluation") == before and study_json(output) == content


def test_what_failed_before_a_stop_is_kept(write, tmp_path, monkeypatch):
    def fail_and_stop(leases, note, **_):
        note({SMALL: "no memory"})
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("facebones.study.compare.train_all", fail_and_stop)
    with pytest.raises(Interrupted):
        compare(load_study(write(f"{SMALL}, {LARGE}")), tmp_path / "out")
    assert [run["error"] for run in study_json(tmp_path / "out")["runs"]] == ["no memory", None]


@pytest.mark.slow
def test_a_run_that_fails_is_recorded_and_the_others_finish(write, tmp_path):
    """Its folder holds a file that a run would replace."""
    output = tmp_path / "out"
    (output / "runs" / LARGE / "seed0").mkdir(parents=True)
    (output / "runs" / LARGE / "seed0" / "metrics.jsonl").write_text("mine\n")
    path = write(f"{LARGE}, {SMALL}")
    status, table, said = run(path, "--output", output)
    assert status == 1, said
    assert said.splitlines()[-1].startswith(f"facebones: failed: {LARGE}; the rest is done")
    large, small = study_json(output)["runs"]
    assert "seed0/metrics.jsonl: " in large["error"] and "a run would replace it" in large["error"]
    assert small["state"] == "done" and small["error"] is None
    assert list(study_json(output)["models"]) == [SMALL]
    assert "a run would replace it" in re.sub(r"[\s│]+", " ", table)  # its cell is broken over lines
    assert (output / "runs" / LARGE / "seed0" / "metrics.jsonl").read_text() == "mine\n"
    assert f"1 of 2 runs has failed or not finished: {LARGE}." in table
    assert large["error"] in html.unescape((output / "report" / "report.html").read_text())

    shutil.rmtree(output / "runs" / LARGE / "seed0")
    trained = times(output / "runs" / SMALL)
    status, table, _ = run(path, "--output", output)
    assert status == 0 and "a run would replace it" not in table
    assert times(output / "runs" / SMALL) == trained
    assert list(study_json(output)["models"]) == [LARGE, SMALL]


def begin(path, output, steps, seed=0):
    """Start a study and wait until a run has made so many steps."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(path, "--output", output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    metrics = RunFolder(output / "runs" / SMALL / f"seed{seed}").metrics
    while not metrics.is_file() or len(metrics.read_bytes().splitlines()) < steps:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process


def trained_files(output):
    """The weights and what was measured on the way, but for the speed."""
    found = {}
    for folder in map(RunFolder, sorted((output / "runs").glob("*/seed?"))):
        lines = [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(folder.metrics)]
        found[str(folder.path.relative_to(output))] = (folder.weights.read_bytes(), folder.result.read_bytes(), lines)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_study_that_is_stopped_or_killed_ends_as_one_that_is_not(write, tmp_path, number):
    path, output = write(epochs=40), tmp_path / "parts"
    process = begin(path, output, 10)
    process.send_signal(number)
    said = process.communicate()[1]
    folder = RunFolder(output / "runs" / SMALL / "seed0")
    if number == signal.SIGKILL:
        wait_for_the_end_of(folder)
    else:
        assert process.returncode == 128 + number
        assert said.splitlines()[-1].endswith(f"continue with: facebones compare {path} --output {output} --device cpu")
    assert not folder.result.exists(), "it had ended before the signal"
    assert load_checkpoint(folder.last)["step"] >= 10
    assert run(path, "--output", output)[0] == 0
    assert run(path, "--output", tmp_path / "whole")[0] == 0
    assert trained_files(output) == trained_files(tmp_path / "whole")
    assert reported(output) == reported(tmp_path / "whole")


def reported(output):
    """What a report says of what was measured."""
    content = json.loads((output / "report" / "results.json").read_text())
    return {key: content[key] for key in ("answer", "metrics", "recipe", "notes")}


@pytest.mark.slow
def test_a_run_whose_loss_is_no_number_leaves_a_whole_report_of_the_others(write, tmp_path):
    path, output = write(f"{SMALL}, {LARGE}", epochs=40), tmp_path / "out"
    process = begin(path, output, 4)
    process.kill()
    process.communicate()
    folder = RunFolder(output / "runs" / SMALL / "seed0")
    wait_for_the_end_of(folder)
    state = load_checkpoint(folder.last)
    for value in state["backbone"].values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    save_checkpoint(folder.last, state)

    status, table, said = run(path, "--output", output)
    assert status == 1 and said.splitlines()[-1].startswith(f"facebones: failed: {SMALL}; the rest is done"), said
    assert f"{LARGE} reaches" in table and f"1 of 2 runs has failed or not finished: {SMALL}." in table
    content = json.loads((output / "report" / "results.json").read_text())
    states = {row["name"]: (row["state"], row["error"]) for row in content["runs"]}
    assert states[LARGE] == ("done", None)
    assert states[SMALL][0] == "failed" and "loss nan" in states[SMALL][1]
    assert "loss nan" in (output / "report" / "report.html").read_text()
    assert "loss nan" in (output / "report" / "tables.md").read_text()


def wait_for_the_end_of(folder):
    """Until the process that trains in a folder has stopped by itself."""
    from facebones.run_folder import folder_lock

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with folder_lock(folder.path):
                return
        except ConfigError:
            time.sleep(0.1)
    pytest.fail("the training goes on without its study")
