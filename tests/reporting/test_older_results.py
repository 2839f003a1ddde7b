"""A finished study of version 0.2.0.dev0 (format 1): a report of it gives the numbers of its files."""

import json
import shutil
from pathlib import Path

import pytest
from synthetic_study import make_run, make_study, metric_json, write, write_pairs

from facebones.errors import DataError
from facebones.reporting.format1 import translate_evaluation, translate_study
from facebones.reporting.load import load_results
from facebones.reporting.results import EvaluatedSet

FINISHED = Path(__file__).parents[1] / "older" / "v0.2.0.dev0" / "finished"
MODELS = ["study_mixfacenet_xs", "study_shufflemixfacenet_xs"]
NAMES = {"accuracy": ("accuracy", {}), "AUC": ("auc", {}), "EER": ("eer", {})}
NAMES |= {f"Rank-{rank}": ("rank", {"rank": rank}) for rank in (1, 5, 10)}
NAMES |= {f"TAR at FAR {10.0**-n:g}": ("tar", {"far": float(f"1e-{n}")}) for n in range(1, 7)}
NAMES |= {f"TPIR at FPIR {fpir}": ("tpir", {"fpir": fpir}) for fpir in (0.1, 0.01)}
IJB = FINISHED / "evaluation" / "ijb"


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older") / "finished"
    shutil.copytree(FINISHED, folder)
    return load_results(folder)


def sections():
    """Each evaluated set with the section of its file."""
    for section in read(FINISHED / "evaluation" / "pairs.json")["sets"]:
        yield EvaluatedSet("pairs", section["set"]), section
    yield EvaluatedSet("ijb_verification", "ijb", "N1D1F1"), read(IJB / "templates.json")["verification"][0]
    yield EvaluatedSet("ijb_identification", "ijb", "N1D1F1"), read(IJB / "identification.json")["identification"]


def test_every_number_of_the_files_is_in_the_results(results):
    expected = {
        (where, NAMES[name][0], tuple(NAMES[name][1].items())): content
        for where, section in sections()
        for name, content in section["figures"].items()
    }
    found = {(one.evaluated_set, one.name, tuple(one.at.items())): one for one in results.metrics}
    assert found.keys() == expected.keys() and len(found) == 21
    for key, metric in found.items():
        content = expected[key]
        assert dict(metric.values) == (content["values"] or {}) and metric.reason == content.get("reason")
        assert dict(metric.intervals) == (content.get("intervals") or {})
        assert list(metric.comparisons) == (content.get("comparisons") or [])
        assert metric.higher_is_better == (metric.name != "eer")
        if metric.values:
            assert results.ranking(metric)[0] == content["best"]


def test_what_is_chosen_by_is_what_that_version_chose_by(results):
    main = [(metric.set, metric.name, dict(metric.at)) for metric in results.main_metrics()]
    assert main == [
        ("synthetic", "accuracy", {}),
        ("synthetic_profile", "accuracy", {}),
        ("ijb", "tar", {"far": 1e-3}),  # 4,680 impostor pairs do not measure 1e-4
        ("ijb", "rank", {"rank": 1}),
    ]


def test_runs_costs_and_curves_are_there(results):
    assert results.backbones == MODELS and results.title == "s" and results.notes == []
    assert [run.state for run in results.runs] == ["done", "done"]
    rows = {row["name"]: row for row in read(FINISHED / "profile.json")["networks"]}
    for name in MODELS:
        assert results.costs[name].latency_ms == rows[name]["latency_p50_ms"]
        assert results.costs[name].macs == rows[name]["macs"]
    assert results.runs[0].versions["facebones"] == "0.2.0.dev0"
    assert {where.set for where in results.curves} == {"synthetic", "synthetic_profile"}
    (rates,) = results.cmc.values()
    assert rates[MODELS[0]] == read(IJB / "identification.json")["identification"]["models"][MODELS[0]]["cmc"]


def test_parts_that_failed_are_named_by_their_set():
    parts = {name: {"file": "x.json", "error": "no", "inputs": ""} for name in ("pairs", "templates IJB", "profile")}
    parts |= {f"{kind} a": {"file": "a", "error": "no", "inputs": ""} for kind in ("model", "pair set")}
    kinds = [
        (entry["kind"], entry.get("protocol"), entry.get("set"), entry.get("name"))
        for entry in translate_study({"evaluation": parts})["evaluation"]
    ]
    assert kinds == [
        ("protocol", "pairs", None, None),
        ("protocol", "ijb_verification", "IJB", None),
        ("profile", None, None, ""),
        ("model_left_out", None, None, "a"),
        ("set_left_out", None, None, "a"),
    ]


def measured(*names):
    figures = {name: {"values": {"a": 0.5}, "intervals": {}, "comparisons": [], "best": "a"} for name in names}
    section = {"name": "ijbc N1D1F1", "models": {"a": {}}, "figures": figures}
    content = {"target": "ijbc", "data": "/data/IJBC", "models": {"a": {}}, "verification": [section]}
    return translate_evaluation(content, "templates.json")["results"][0]["metrics"]


@pytest.mark.parametrize(
    ("fars", "main"), [((1e-5, 1e-4, 1e-3), 1e-4), ((1e-3, 1e-2), 1e-3), ((1e-6, 1e-5), None), ((), None)]
)
def test_the_main_far_is_the_smallest_that_is_measured_from_one_in_ten_thousand(fars, main):
    metrics = measured(*(f"TAR at FAR {far:g}" for far in fars), "AUC")
    assert [metric["at"]["far"] for metric in metrics if metric["main"]] == ([main] if main else [])


@pytest.mark.parametrize("name", ["TAR at FAR nobody knows", "TAR at FAR 1e-", "Rank-first", "x"])
def test_an_unknown_name_stays_one(name):
    (metric,) = measured(name)
    assert (metric["name"], metric["at"], metric["main"]) == (name, {}, False)


@pytest.mark.parametrize("content", [{}, {"models": {}, "sets": [{}]}, {"models": {}, "sets": 3}, [], None])
def test_a_file_of_neither_format_is_refused_by_name(tmp_path, content):
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"pairs\.json: unexpected content"):
        load_results(tmp_path)


# --------------------------------------------------------------------------------------------- versions, plug-ins


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    study = make_study(tmp_path / "s")
    for name in ("evaluation/pairs.json", "study.json"):
        content = read(study / name)
        write(study / name, {**content, "format": 3})
        with pytest.raises(DataError, match=rf"{Path(name).name}: .*format 3 is not supported; update facebones"):
            load_results(study)
        write(study / name, content)


def test_results_of_different_versions_are_noted_once_for_each_package(tmp_path):
    study = make_study(tmp_path / "s", seeds=(0,))
    assert load_results(study).notes == []
    content = read(study / "study.json")
    made_by = [{"facebones": "0.2.0", "torch": "2.6"}, {"facebones": "0.3.0", "torch": "2.6", "git_revision": "f" * 40}]
    for row, versions in zip(content["runs"], made_by, strict=True):
        row["versions"] = versions
    write(study / "study.json", content)
    (note,) = load_results(study).notes
    first, second = (row["name"] for row in content["runs"])
    assert f"0.2.0 for {first};" in note and f"0.3.0 at fffffffff for {second};" in note and "torch" not in note
    assert "0.1.0 for the evaluation on lfw" in note


def test_a_plug_in_protocol_is_reported_without_being_known(tmp_path):
    values = {"a": 0.5, "b": 0.75}
    metric = metric_json("purity", values, at={"faces": 3}, higher_is_better=False, main=True)
    section = {"protocol": "tiny", "set": "holiday", "setting": "", "metrics": [metric]}
    models = {name: {"checkpoint": name} for name in values}
    write(tmp_path / "tiny.json", {"format": 2, "protocol": "tiny", "models": models, "results": [section]})
    write(tmp_path / "other.json", "not JSON")
    results = load_results(tmp_path)
    (found,) = results.main_metrics()
    assert found.title == "holiday tiny purity at faces 3" and results.ranking(found) == ["a", "b"]


def test_a_run_that_recorded_its_error_has_failed(tmp_path):
    run = make_run(tmp_path / "run", done=False)
    write(run / "error.json", {"type": "RunError", "message": "the loss is\nnot finite", "step": 2})
    results = load_results(run)
    assert (results.runs[0].state, results.runs[0].error) == ("failed", "the loss is not finite")
    assert results.notes == ["run: failed: the loss is not finite"]
    make_run(run)
    assert load_results(run).runs[0].state == "done"


def test_one_set_in_two_settings_is_two_sets(tmp_path):
    metrics = [metric_json("accuracy", {"a": 0.9})]
    write_pairs(tmp_path / "e", {"lfw": metrics})
    content = read(tmp_path / "e" / "pairs.json")
    content["results"].append({**content["results"][0], "setting": "no flip", "curves": {}})
    write(tmp_path / "e" / "pairs.json", content)
    assert [metric.title for metric in load_results(tmp_path / "e").main_metrics()] == [
        "lfw accuracy",
        "lfw no flip accuracy",
    ]
