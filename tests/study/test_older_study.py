"""Studies made by 0.2.0.dev0: this version continues, evaluates and reports them, and trains nothing again."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import facebones
from facebones.cli.main import main
from facebones.data.folders import open_training_set
from facebones.errors import ConfigError
from facebones.run_folder import read_metrics
from facebones.study.compare import preview
from facebones.study.study import load_study

OLDER = Path(__file__).parents[1] / "older" / "v0.2.0.dev0"
DONE, UNFINISHED = "study_mixfacenet_xs", "study_shufflemixfacenet_xs"


@pytest.fixture
def older(tmp_path, monkeypatch):
    """A copy of the older files, which is the current folder: their paths are relative to it."""
    shutil.copytree(OLDER, tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    return tmp_path / "older"


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_an_older_study_is_completed_and_its_finished_run_is_not_trained_again(older, capsys):
    done, unfinished = (older / "study" / "runs" / name / "seed0" for name in (DONE, UNFINISHED))
    before, steps_before = digests(done), read_metrics(unfinished / "metrics.jsonl")
    words = ["compare", "s.yaml", "--data", "data", "--output", "study", "--device", "cpu", "--profile", "false"]
    assert main(words) == 0
    assert digests(done) == before
    last_before = max(line["step"] for line in steps_before)
    assert "resuming" in (unfinished.with_name("seed0.log")).read_text()
    lines = read_metrics(unfinished / "metrics.jsonl")
    assert last_before < 30 and lines[: len(steps_before)] == steps_before and lines[-1]["step"] == 30

    content = json.loads((older / "study" / "study.json").read_text())
    assert content["format"] == 2 and [run["state"] for run in content["runs"]] == ["done", "done"]
    assert [run["versions"]["facebones"] for run in content["runs"]] == ["0.2.0.dev0", facebones.__version__]
    assert [entry["error"] for entry in content["evaluation"]] == [None]
    measured = json.loads((older / "study" / "evaluation" / "pairs.json").read_text())
    assert list(measured["models"]) == [DONE, UNFINISHED]
    (accuracy,) = (m for m in content["summary"][0]["metrics"] if m["set"] == "synthetic")
    assert (accuracy["name"], accuracy["values"]) == ("accuracy", [0.75])
    assert (older / "study" / "report" / "report.html").is_file()
    assert capsys.readouterr().out.count("report.html") == 1


def test_the_plan_of_a_finished_older_study_has_nothing_left_to_do(older, monkeypatch, capsys):
    monkeypatch.setattr("facebones.__version__", "9.0")
    before = digests(older / "finished")
    rows = preview(load_study("s.yaml", data="data"), older / "finished", device="cpu")
    assert [(row["name"], row["state"], row["hours"]) for row in rows] == [
        (DONE, "done", 0.0),
        (UNFINISHED, "done", 0.0),
    ]
    assert {row["versions"]["facebones"] for row in rows} == {"0.2.0.dev0"}
    assert digests(older / "finished") == before
    assert f"note: trained by facebones 0.2.0.dev0, and this is 9.0: {DONE}, {UNFINISHED}\n" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_older_study_is_reported(older):
    assert main(["report", "finished", "--output", "report"]) == 0
    content = json.loads((older / "report" / "results.json").read_text())
    assert {run["name"]: run["state"] for run in content["runs"]} == {DONE: "done", UNFINISHED: "done"}


@pytest.mark.parametrize(
    ("recorded", "other"),
    [
        ({"record_sizes_sha256": "00"}, False),  # a broken file was repaired
        ({"file_sizes_sha256": "00"}, False),  # the set was converted
        ({"image_sample": "unreadable"}, False),
        ({"image_sample": "00"}, True),
        ({"labels_sha256": "00"}, True),
    ],
)
def test_a_study_continues_with_repaired_images_and_not_with_others(older, recorded, other):
    environment = older / "finished" / "runs" / DONE / "seed0" / "environment.json"
    content = json.loads(environment.read_text())
    if "image_sample" in recorded:
        sample = open_training_set("data").fingerprint()["image_sample"].split(" ")
        sample[5] = "-" if recorded["image_sample"] == "unreadable" else "00"
        recorded = {"image_sample": " ".join(sample)}
    environment.write_text(json.dumps(content | {"data": content["data"] | recorded}))
    study = load_study("s.yaml", data="data")
    if other:
        with pytest.raises(ConfigError, match=f"holds a run with data of {next(iter(recorded))}"):
            preview(study, older / "finished", device="cpu")
    else:
        preview(study, older / "finished", device="cpu")
