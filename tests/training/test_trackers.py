"""Trackers: each with its real package, offline; metrics.jsonl remains the truth."""

import json
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from facebones.errors import ConfigError, RunError
from facebones.recipe import recipe_from_dict
from facebones.run_folder import read_metrics
from facebones.training import trackers
from facebones.training.callbacks import Callback
from facebones.training.run import resume, train


def logged(folder):
    """(step, name) to value of what metrics.jsonl says, named as trackers name it."""
    found = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        prefix = "/".join(part for part in (line["kind"], line.get("set")) if part)
        for key, value in line.items():
            if isinstance(value, int | float) and key not in ("step", "epoch"):
                found[line["step"], f"{prefix}/{key}"] = value
    return found


def in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {(row.step, name): row.value for name in events.Tags()["scalars"] for row in events.Scalars(name)}


def wandb_records(data):
    """The records of a .wandb file: a header of 7 bytes, then a log in LevelDB's format with blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if (left := -place % 32768) < 7:  # no room for another header
            place += left
        if kind in (1, 4):  # the whole of a record, its last part
            yield whole
            whole = b""


def in_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in map(Record.FromString, wandb_records(path.read_bytes())):
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            found |= {(row["_step"], name): value for name, value in row.items() if not name.startswith("_")}
    return found


def in_mlflow(folder):
    from mlflow import MlflowClient

    client, (identifier,) = MlflowClient(), json.loads((folder / "trackers.json").read_text()).values()
    run = client.get_run(identifier)
    assert (run.info.status, run.data.params["head.name"]) == ("FINISHED", "combined")
    history = {name: client.get_metric_history(identifier, name) for name in run.data.metrics}
    return {(row.step, name): row.value for name, rows in history.items() for row in rows}


def in_trackio(folder):
    from trackio.sqlite_storage import SQLiteStorage

    (identifier,) = json.loads((folder / "trackers.json").read_text()).values()
    rows = SQLiteStorage.get_logs("facebones", identifier)
    return {(row["step"], name): value for row in rows for name, value in row.items()}


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio}


class StopAt(Callback):
    def on_step(self, run, step):
        if step == 10:
            raise RuntimeError("stopped")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def test_every_tracker_is_tested():
    assert {*READERS} == {*trackers.TRACKERS}


@pytest.mark.parametrize("name", READERS)
def test_a_tracker_holds_what_metrics_jsonl_holds_also_of_a_resumed_run(name, tiny_recipe, tmp_path, offline):
    if find_spec(trackers.TRACKERS[name].package) is None:
        pytest.skip(f"{name} is not installed: it does not go with the versions in constraints.txt")
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="stopped"):
        train(tiny_recipe(**{"log.trackers": [name]}), folder, "cpu", callbacks=[StopAt()])
    resume(folder, "cpu")
    expected, found = logged(folder), READERS[name](folder)
    assert len(expected) > 80
    assert {*found} >= {*expected}
    assert all(found[key] == pytest.approx(value, rel=1e-6) for key, value in expected.items())


def test_a_tracker_changes_no_weight(tiny_recipe, tmp_path, offline):
    results = []
    for names in ([], ["tensorboard", "wandb", "mlflow"]):
        folder = tmp_path / f"run{len(names)}"
        train(tiny_recipe(**{"log.trackers": names}), folder, "cpu")
        results.append((folder / "model.safetensors").read_bytes())
    assert results[0] == results[1]


class Failing:
    """A tracker whose server is gone after the first line."""

    def __init__(self, run):
        self.identifier, self.lines, self.closed = "abc", 0, []
        MADE.append(self)

    def write(self, step, values):
        self.lines += 1
        if self.lines == 2:
            raise ConnectionError("no answer\nfor long")

    def close(self, *, failed):
        self.closed.append(failed)
        raise ConnectionError("gone")


MADE = []


def test_a_tracker_that_fails_does_not_end_the_training(tiny_recipe, tmp_path, monkeypatch, capsys):
    kind = trackers.Kind(Failing, "json", "try again")
    monkeypatch.setitem(trackers.TRACKERS, "failing", kind)
    train(tiny_recipe(**{"log.trackers": ["failing"]}), tmp_path / "run", "cpu")
    errors = capsys.readouterr().err
    assert errors.count("failing: no answer; it gets no more of this run") == 1
    assert (MADE[-1].lines, MADE[-1].closed) == (2, [True])
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) > 10


def test_a_tracker_that_does_not_open_is_one_short_line_and_resume_begins_no_entry_twice(
    tiny_recipe, tmp_path, monkeypatch
):
    opened = []

    class Opening(Failing):
        def __init__(self, run):
            super().__init__(run)
            opened.append(run.identifier)

    def refuse(run):
        if len(opened) < 2:
            raise ValueError("no api key" + ", which is needed" * 30)
        return Failing(run)

    monkeypatch.setitem(trackers.TRACKERS, "opening", trackers.Kind(Opening, "json", "try again"))
    monkeypatch.setitem(trackers.TRACKERS, "refusing", trackers.Kind(refuse, "json", "log in"))
    folder = tmp_path / "run"
    with pytest.raises(RunError) as caught:
        train(tiny_recipe(**{"log.trackers": ["opening", "refusing"]}), folder, "cpu")
    reason, remedy = str(caught.value).split(" ...; ")
    assert reason.startswith("log.trackers: refusing does not start: no api key, which")
    assert len(reason) < 170
    assert remedy == f"log in, then: facebones resume {folder}"
    resume(folder, "cpu")
    assert opened == ["", "abc"]


def test_mlflow_says_where_it_writes(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(RunError, match=r"mlflow does not start: The filesystem .*; set MLFLOW_TRACKING_URI to sqlite:"):
        train(tiny_recipe(**{"log.trackers": ["mlflow"]}), tmp_path / "run", "cpu")


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"no tracker 'wanb'; known: tensorboard, wandb"):
        trackers.check_trackers(["wanb"])
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'facebones\[wandb\]'"):
        trackers.check_trackers(["wandb"])


def test_an_older_switch_is_a_name_in_the_list():
    for given, trackers_now in ((True, ["tensorboard"]), ("false", [])):
        assert recipe_from_dict({"log": {"tensorboard": given}}).log.trackers == trackers_now


def test_a_damaged_list_of_identifiers_is_one_line(tmp_path):
    (tmp_path / "trackers.json").write_text("{")
    recipe = SimpleNamespace(log=SimpleNamespace(trackers=["tensorboard"]))
    with pytest.raises(RunError, match=r"trackers\.json: cannot be read: .*; delete it to begin new entries"):
        trackers.Trackers(recipe, tmp_path, 0)


def test_each_tracker_is_an_extra():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {*trackers.TRACKERS} <= {*project["optional-dependencies"]}
