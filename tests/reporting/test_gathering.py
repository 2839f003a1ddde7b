"""Folders that trainings, studies, evaluations and profiles have left, whole and damaged, read into one object."""

import io
import json
import shlex
import tracemalloc
import zipfile

import numpy as np
import pytest
from synthetic_study import (
    LARGE,
    MIDDLE,
    PARAMETERS,
    SMALL,
    make_run,
    make_study,
    metric_json,
    models_json,
    write_ijb,
    write_pairs,
    write_profile,
)

import facebones
from facebones.backbones import create_backbone
from facebones.cli.main import main
from facebones.errors import ConfigError, DataError, FaceBonesError
from facebones.importers.run_from_logs import convert_logs
from facebones.reporting.load import load_results
from facebones.reporting.results import EvaluatedSet, Run
from facebones.reporting.tables import report_tables
from facebones.reporting.variants import different_recipes, with_factors
from facebones.run_folder import RunFolder
from facebones.study.study import load_study

LFW = EvaluatedSet("pairs", "lfw")
SEARCHES = EvaluatedSet("ijb_identification", "IJBC", "N1D1F1")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def states(results):
    return {run.name: run.state for run in results.runs}


def test_a_validation_accuracy_has_the_interval_of_its_pairs(tmp_path):
    folder = make_run(tmp_path / "run", accuracy=0.9)
    edit(folder / "environment.json", lambda content: content.update(validation={"lfw": {"pairs": 600}}))
    metric = load_results(folder).metric("lfw", "accuracy")
    interval = metric.intervals["run"]
    assert metric.values == {"run": 0.9} and interval["resampled"] == "pairs" and interval["level"] == 0.95
    assert (interval["low"], interval["high"]) == pytest.approx((0.8733, 0.9216), abs=1e-4)
    for unknown in ({}, {"lfw": {}}, {"lfw": {"pairs": "600"}}, {"lfw": {"pairs": 0}}, {"lfw": 600}, [600]):
        edit(folder / "environment.json", lambda content, unknown=unknown: content.update(validation=unknown))
        assert load_results(folder).metric("lfw", "accuracy").intervals == {}


# ------------------------------------------------------------------------------------------------------- studies


def test_a_study_gives_runs_costs_metrics_curves_and_its_command(tmp_path):
    results = facebones.load_results(make_study(tmp_path / "mine"))
    assert results.title == "demo" and results.backbones == [SMALL, MIDDLE] and results.notes == []
    assert [(run.name, run.seed, run.state) for run in results.runs_of(MIDDLE)] == [
        (f"{MIDDLE}_seed0", 0, "done"),
        (f"{MIDDLE}_seed1", 1, "done"),
    ]
    run = results.runs[0]
    assert (run.final_loss, run.final_accuracy("lfw"), run.best_accuracy("lfw"), run.steps) == (6.0, 0.95, 0.96, 4)
    assert run.environment["device"] == "cpu" and len(run.of_kind("train")) == 4
    cost = results.costs[MIDDLE]
    assert (cost.parameters, cost.latency_ms, cost.images_per_second) == (PARAMETERS[MIDDLE], 2.0, 500.0)
    assert cost.memory_bytes == 2 * 2**20 and results.conditions["processor"] == "a processor"
    assert list(results.curves) == [LFW] and list(results.curves[LFW]) == [run.name for run in results.runs]
    assert results.curves[LFW][run.name].true_accept_rate[-1] == 1
    assert results.cmc[SEARCHES][run.name] == [0.95, 1.0]
    assert [metric.protocol for metric in results.main_metrics()] == [
        "pairs",
        "ijb_verification",
        "ijb_identification",
    ]


@pytest.mark.slow
def test_a_report_runs_no_plug_in_of_the_folders_that_it_reads(tmp_path, capsys):
    """A stranger's study, run or entry of study.json may name plug-ins that exist; none of them is imported."""
    ran, plug = tmp_path / "ran", tmp_path / "plug.py"
    plug.write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    study = make_study(tmp_path / "mine")
    edit(
        study / "study.json",
        lambda content: content.update({key: [str(plug)] for key in ("plugins", "imports", "import")}),
    )
    lone = make_run(tmp_path / "lone", SMALL, 5)
    for config in (*study.rglob("config.yaml"), lone / "config.yaml"):
        config.write_text(f"import: [{plug}]\n{config.read_text()}")
    assert facebones.load_results(study, lone).runs
    assert main(["report", str(study), str(lone), "--output", str(tmp_path / "report")]) == 0
    assert not ran.exists() and str(plug) not in capsys.readouterr().err
    with RunFolder(lone).open():  # the same file, imported as `resume` does it
        assert ran.exists() and str(plug) in capsys.readouterr().err


def test_the_command_makes_a_study_of_the_same_fields(tmp_path):
    results = load_results(make_study(tmp_path / "a study"))
    words = shlex.split(results.command)
    assert words[:5] == ["facebones", "compare", "demo", "--output", str(tmp_path / "a study")]
    given = {words[at].removeprefix("--").replace("-", "_"): words[at + 1] for at in range(5, len(words), 2)}
    overrides = {key: given.pop(key) for key in list(given) if "." in key}
    study = load_study(words[2], overrides=overrides, **given)
    assert (study.backbones, study.seeds, study.ijb) == ([SMALL, MIDDLE], [0, 1], ["IJBC"])
    assert study.profile.enabled and study.overrides["training.epochs"] == "2"


def test_the_command_names_evaluation_sets_and_plug_ins(tmp_path):
    study = make_study(tmp_path / "s")
    plugins = ["my_net.py", "my_head"]
    edit(study / "study.json", lambda content: content.update(plugins=plugins))
    edit(study / "study.json", lambda content: content["study"].update(evaluate=["lfw", "tiny=faces"]))
    words = shlex.split(load_results(study).command)
    assert words[words.index("--evaluate") + 1] == "lfw,tiny=faces"
    assert [words[at + 1] for at, word in enumerate(words) if word == "--import"] == plugins


def test_a_study_that_does_not_come_with_the_package_is_a_file_in_the_command(tmp_path):
    assert load_results(make_study(tmp_path / "a", name="my own")).command.startswith(
        "facebones compare 'my own.yaml' "
    )


def test_failed_unfinished_and_future_runs_are_told_and_split_no_backbone(tmp_path):
    study = make_study(
        tmp_path / "s",
        seeds=(0, 1, 2),
        failed=[f"{SMALL}_seed0"],
        unfinished=[f"{SMALL}_seed1"],
        to_do=[f"{MIDDLE}_seed2"],
    )
    results = load_results(study)
    assert results.backbones == [SMALL, MIDDLE]
    assert list(states(results).values()) == ["failed", "unfinished", "done", "done", "done", "to do"]
    assert results.runs[0].error == "no memory left" and results.runs[0].final_accuracy("lfw") is None
    assert results.runs[0].steps == 2 and results.runs[5].steps is None
    assert results.notes == [
        f"{SMALL}_seed0: failed: no memory left",
        f"{SMALL}_seed1: is not finished",
        f"{MIDDLE}_seed2: is not trained yet",
    ]


def test_a_run_that_was_finished_after_the_study_was_written_is_done(tmp_path):
    study = make_study(tmp_path / "s", failed=[f"{SMALL}_seed0"])
    make_run(study / "runs" / SMALL / "seed0", SMALL, 0)
    run = load_results(study).runs[0]
    assert (run.state, run.error) == ("done", None)


def test_of_a_finished_run_whose_folder_is_gone_the_final_accuracy_is_left(tmp_path):
    study = make_study(tmp_path / "s", seeds=(0,))
    (study / "runs" / SMALL).rename(tmp_path / "elsewhere")
    results = load_results(study)
    run = results.runs[0]
    assert (run.state, run.final_accuracy("lfw"), run.final_loss) == ("done", 0.95, None)
    assert any("is missing" in note and str(study / "runs" / SMALL) in note for note in results.notes)


def test_a_part_of_the_evaluation_that_failed_or_is_gone_is_noted(tmp_path):
    study = make_study(tmp_path / "s", failed_parts=["ijb_verification"])
    (study / "evaluation" / "IJBC" / "identification.json").unlink()
    (study / "profile.json").unlink()
    results = load_results(study)
    assert {metric.set for metric in results.metrics} == {"lfw"}
    first, second, third = results.notes
    assert first == "IJBC 1:1: failed: no memory left"
    assert "identification.json is missing" in second and "profile.json is missing" in third
    assert results.costs[SMALL].parameters == PARAMETERS[SMALL] and results.costs[SMALL].latency_ms is None


def test_a_missing_file_of_scores_costs_one_curve_and_is_noted(tmp_path):
    study = make_study(tmp_path / "s")
    (study / "evaluation" / f"{SMALL}_seed0_lfw_scores.npz").unlink()
    results = load_results(study)
    assert len(results.curves[LFW]) == 3 and f"{SMALL}_seed0" not in results.curves[LFW]
    (note,) = results.notes
    assert "is missing" in note and results.metric("lfw", "accuracy").values[f"{SMALL}_seed0"] == 0.95


def test_a_trained_network_in_a_study_keeps_its_course(tmp_path):
    study, other = make_study(tmp_path / "s"), make_run(tmp_path / "older", LARGE)

    def add(content):
        content["models"] |= {"older": str(other), "onnx": "/models/net.onnx"}
        content["summary"].append({"backbone": "older", "parameters": None, "macs": None})

    edit(study / "study.json", add)
    results = load_results(study)
    assert [(run.backbone, run.source) for run in results.runs[-2:]] == [("older", "run"), ("onnx", "file")]
    assert len(results.runs[-2].lines) == 6
    counted = sum(weight.numel() for weight in create_backbone(LARGE, 16).parameters())
    assert results.costs["older"].parameters == counted and results.costs["onnx"].parameters is None


# ------------------------------------------------------------------------------------------------------ lone runs


def test_two_seeds_in_lone_folders_are_one_backbone_with_a_spread(tmp_path):
    runs = [make_run(tmp_path / f"r{seed}", seed=seed, accuracy=0.90 + 0.02 * seed) for seed in (0, 1)]
    results = load_results(*runs)
    assert results.backbones == [SMALL] and results.title == "r0, r1" and results.notes == []
    (metric,) = results.main_metrics()
    spread = results.spread(metric, SMALL)
    assert spread.mean == pytest.approx(0.91) and spread.deviation == pytest.approx(0.02 / 2**0.5)
    assert [line.split()[2] for line in results.command.splitlines()] == [f"{run}/config.yaml" for run in runs]
    counted = sum(weight.numel() for weight in create_backbone(SMALL, 16).parameters())
    assert results.costs[SMALL].parameters == counted
    assert results.recipe["backbone"] == {"embedding_size": 16, "dropout": 0.0, "weights": "", "frozen": 0}
    assert "seed" not in results.recipe["training"] and results.recipe["training"]["batch_size"] == 8


def test_runs_by_other_recipes_or_on_other_data_are_other_backbones_and_their_seeds_stay_together(tmp_path):
    make_run(tmp_path / "a0", seed=0)
    make_run(tmp_path / "a1", seed=1, data__workers=1, validation__every=7, training__checkpoint_every=9)
    make_run(tmp_path / "b0", seed=0, optimizer__learning_rate=0.5)
    make_run(tmp_path / "c0", seed=0, data="b")
    results = load_results(*(tmp_path / name for name in ("a0", "a1", "b0", "c0")))
    labels = [run.variant for run in results.runs]
    plain = f"{SMALL} (learning_rate 0.1, that of a0)"
    assert labels == [
        plain,
        plain,
        f"{SMALL} (learning_rate 0.5, that of a0)",
        f"{SMALL} (learning_rate 0.1, that of c0)",
    ]
    assert results.factors == ["optimizer.learning_rate", "the training data"] and results.backbones == [SMALL]
    assert list(results.costs) == results.variants and results.notes == []
    assert "learning_rate" not in results.recipe["optimizer"] and "momentum" in results.recipe["optimizer"]


def test_many_differences_of_recipes_are_counted_and_backbones_are_none(tmp_path):
    make_run(tmp_path / "a", SMALL)
    make_run(tmp_path / "b", MIDDLE, seed=1)
    assert load_results(tmp_path / "a", tmp_path / "b").notes == []
    fields = {"head__scale": 8.0, "head__m2": 0.1, "head__m3": 0.1, "optimizer__learning_rate": 0.5}
    fields |= {"training__epochs": 3, "training__batch_size": 4, "schedule__power": 3.0, "data__flip": False}
    make_run(tmp_path / "c", LARGE, **fields)
    (note,) = load_results(tmp_path / "a", tmp_path / "c").notes
    assert note.count(", ") == 5 and " and 2 more;" in note and "backbone.name" not in note


def test_a_training_that_was_done_twice_is_noted(tmp_path):
    (note,) = load_results(make_run(tmp_path / "a"), make_run(tmp_path / "b")).notes
    assert note.startswith("b and a have the same recipe and seed")


def test_a_stopped_run_is_unfinished_and_has_its_course(tmp_path):
    results = load_results(make_run(tmp_path / "run", done=False))
    assert states(results) == {"run": "unfinished"} and results.notes == ["run: is not finished"]
    assert results.runs[0].final_loss == 8.0 and results.main_metrics() == []


def test_a_text_log_of_others_stands_beside_a_run_of_ours(tmp_path):
    lines = []
    for step, loss in ((1, "9.5"), (2, "nan"), (3, "7.25")):
        lines.append(
            "Training: 2022-02-17 20:06:49,083-Speed 3123.45 samples/sec   "
            f"Loss {loss}   LearningRate 0.02   Epoch: 0   Global Step: {step}   Required: 1 hours\n"
        )
        written = (("XNorm", "22.1"), ("Accuracy-Flip", f"0.9{step}000+-0.00350"), ("Accuracy-Highest", "0.99000"))
        lines += [f"Training: 2022-02-17 20:06:50,083-[lfw][{step}]{name}: {value}\n" for name, value in written]
    (tmp_path / "training.log").write_text("".join(lines))
    convert_logs([tmp_path / "training.log"], tmp_path / "theirs")
    results = load_results(make_run(tmp_path / "ours"), tmp_path / "theirs")
    assert [(run.name, run.backbone, run.source) for run in results.runs] == [
        ("ours", SMALL, "run"),
        ("theirs", "theirs", "log"),
    ]
    theirs = results.runs[1]
    assert (theirs.final_loss, theirs.final_accuracy("lfw"), theirs.best_accuracy("lfw")) == (7.25, 0.93, 0.99)
    tables = {table.key: table for table in report_tables(results)}
    rows = {row[0].text: [cell.text for cell in row] for row in tables["training"].rows}
    assert rows["theirs"] == ["theirs", "lfw", "93.00 %", "99.00 %", "7.2500", "3"]
    assert rows[SMALL][2] == "95.00 %"
    assert [row[0].text for row in tables["runs"].rows] == ["ours", "theirs"]
    assert len(results.command.splitlines()) == 1


def test_a_log_that_is_called_as_a_backbone_is_no_seed_of_it(tmp_path):
    make_run(tmp_path / "ours")
    theirs = make_run(tmp_path / SMALL)
    (theirs / "config.yaml").unlink()
    (theirs / "source.json").write_text("{}")
    assert load_results(tmp_path / "ours", theirs).variants == [f"{SMALL} (ours)", f"{SMALL} ({SMALL})"]


# ------------------------------------------------------------------------------------- lone evaluations, profiles


def test_models_that_were_only_evaluated_are_backbones_of_their_own(tmp_path):
    write_pairs(tmp_path / "e", {"lfw": [metric_json("accuracy", {"x": 0.9, "y": 0.8})]})
    edit(tmp_path / "e" / "pairs.json", lambda content: content["models"]["x"].update(backbone=SMALL))
    results = load_results(tmp_path / "e")
    assert results.backbones == ["x", "y"] and {run.source for run in results.runs} == {"file"}
    counted = sum(weight.numel() for weight in create_backbone(SMALL, 16).parameters())
    assert results.costs["x"].parameters == counted and results.costs["y"].parameters is None


@pytest.mark.parametrize("order", [("r", "e"), ("e", "r")])
def test_the_order_of_a_run_and_its_evaluation_does_not_matter(tmp_path, order):
    make_run(tmp_path / "r")
    write_pairs(tmp_path / "e", {"lfw": [metric_json("accuracy", {"r": 0.9, "y": 0.8})]})
    results = load_results(*(tmp_path / name for name in order))
    assert [(run.name, run.backbone, run.source) for run in results.runs] == [("r", SMALL, "run"), ("y", "y", "file")]


def test_two_evaluations_of_one_set_are_joined_and_said_to_be_two(tmp_path):
    for name, value in (("a", 0.9), ("b", 0.8)):
        write_pairs(tmp_path / name, {"lfw": [metric_json("accuracy", {name: value})]})
        write_ijb(tmp_path / name, {name: value})
    results = load_results(tmp_path / "a", tmp_path / "b")
    assert results.metric("lfw", "accuracy").values == {"a": 0.9, "b": 0.8}
    assert list(results.curves[LFW]) == list(results.cmc[SEARCHES]) == ["a", "b"]
    assert len(results.notes) == 3 and all(
        "no test compares models of different evaluations" in note for note in results.notes
    )


def test_an_evaluation_that_stands_twice_counts_once(tmp_path):
    study = make_study(tmp_path / "s")
    results = load_results(study, study / "evaluation")
    assert results.metric("lfw", "accuracy") == load_results(study).metric("lfw", "accuracy")
    assert any("evaluated more than once; the first is shown" in note for note in results.notes)


def test_studies_with_runs_of_the_same_names_stand_side_by_side(tmp_path):
    first, second = make_study(tmp_path / "one"), make_study(tmp_path / "two")
    results = load_results(first, second)
    names = [f"{backbone}_seed{seed}" for backbone in (SMALL, MIDDLE) for seed in (0, 1)]
    assert [run.name for run in results.runs] == [*names, *(f"two/{name}" for name in names)]
    metric, alone = results.metric("lfw", "accuracy"), load_results(first).metric("lfw", "accuracy")
    assert metric.values == {**alone.values, **{f"two/{name}": alone.values[name] for name in alone.values}}
    assert len(metric.comparisons) == 2 * len(alone.comparisons)
    assert list(results.curves[LFW]) == list(results.cmc[SEARCHES]) == [run.name for run in results.runs]


def test_a_run_that_only_validated_a_set_keeps_its_accuracy_beside_a_study(tmp_path):
    study, run = make_study(tmp_path / "s"), make_run(tmp_path / "theirs")
    alone = load_results(study).metric("lfw", "accuracy")
    results = load_results(study, run)
    assert results.metric("lfw", "accuracy").values == {
        **alone.values,
        "theirs": results.runs[-1].final_accuracy("lfw"),
    }


def test_a_lone_profile_counts_for_networks_of_its_size_only(tmp_path):
    run = make_run(tmp_path / "r")
    built = sum(weight.numel() for weight in create_backbone(SMALL, 16).parameters())
    right = write_profile(tmp_path / "right", [SMALL], parameters={SMALL: built})
    wrong = write_profile(tmp_path / "wrong", [SMALL], parameters={SMALL: built + 1})
    assert load_results(run, right).costs[SMALL].latency_ms == 1.0
    results = load_results(run, wrong)
    assert results.costs[SMALL].latency_ms is None and results.costs[SMALL].parameters == built
    assert f"{built + 1:,} in the profile" in results.notes[0]


def test_a_profile_of_a_deploy_form_counts_for_the_form_that_is_trained(tmp_path):
    run = make_run(tmp_path / "r")
    built = sum(weight.numel() for weight in create_backbone(SMALL, 16).parameters())
    profile = write_profile(tmp_path / "p", [SMALL], parameters={SMALL: built - 1})
    content = json.loads((profile / "profile.json").read_text())
    content["networks"][0] |= {"form": "deploy", "trained_parameters": built, "trained_macs": 7}
    (profile / "profile.json").write_text(json.dumps(content))
    cost = load_results(run, profile).costs[SMALL]
    assert (cost.parameters, cost.macs, cost.latency_ms) == (built, 7, 1.0)


def test_latencies_under_other_conditions_are_left_out(tmp_path):
    run = make_run(tmp_path / "r", LARGE)
    built = {name: sum(w.numel() for w in create_backbone(name, 16).parameters()) for name in (SMALL, LARGE)}
    first = write_profile(tmp_path / "p", [SMALL], parameters=built)
    second = write_profile(tmp_path / "q", [LARGE], batch_size=1, parameters=built)
    results = load_results(run, first, second)
    assert results.conditions["batch_size"] == 32 and results.costs[LARGE].latency_ms is None
    assert any("other conditions" in note for note in results.notes)


# -------------------------------------------------------------------------------------------------------- errors


def refused(kind, *folders):
    with pytest.raises(kind) as caught:
        load_results(*folders)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_and_an_empty_folder_are_refused(tmp_path):
    assert "at least one folder" in refused(ConfigError)
    assert refused(ConfigError, tmp_path).startswith(f"{tmp_path}: holds no study")
    assert refused(ConfigError, tmp_path / "missing").startswith(f"{tmp_path / 'missing'}: no such folder")


def test_two_runs_of_one_name_are_told_apart_by_their_folders_or_refused(tmp_path):
    first, second = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    assert [run.name for run in load_results(first, second).runs] == ["run", "b/run"]
    third = make_run(tmp_path / "c" / "b" / "run")
    message = refused(ConfigError, first, second, third)
    assert str(second) in message and str(third) in message and "rename" in message
    study = make_study(tmp_path / "s")
    assert "given twice" in refused(ConfigError, study, study)


STUDY_FILES = (
    "study.json",
    "evaluation/pairs.json",
    "evaluation/IJBC/templates.json",
    "evaluation/IJBC/identification.json",
    "profile.json",
    f"runs/{SMALL}/seed0/result.json",
    f"runs/{SMALL}/seed0/environment.json",
)


@pytest.mark.parametrize("content", ["{", "[1, 2]", "null", '"text"', "[" * 100_000, "\xff"])
@pytest.mark.parametrize("name", STUDY_FILES)
def test_a_damaged_file_or_one_of_another_shape_is_named(tmp_path, name, content):
    study = make_study(tmp_path / "s")
    (study / name).write_bytes(content.encode("latin-1"))
    assert refused(DataError, study).startswith(f"{study / name}: ")


def set_in(*keys, to):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


ACCURACY = ("results", 0, "metrics", 0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("study.json", set_in("runs", 0, "name", to=None)),
        ("study.json", set_in("runs", 0, "folder", to=7)),
        ("study.json", set_in("runs", 0, "seed", to=[])),
        ("study.json", set_in("summary", 0, "parameters", to="many")),
        ("study.json", set_in("study", "overrides", to={"training.epochs": 2})),
        ("study.json", set_in("evaluation", to={})),
        ("profile.json", set_in("networks", 0, "latency_p50_ms", to="fast")),
        ("profile.json", set_in("conditions", to=3)),
        ("evaluation/pairs.json", set_in(*ACCURACY, "values", f"{SMALL}_seed0", to="good")),
        ("evaluation/pairs.json", set_in(*ACCURACY, "values", f"{SMALL}_seed0", to=float("nan"))),
        ("evaluation/pairs.json", set_in(*ACCURACY, "intervals", f"{SMALL}_seed0", to={"low": 1.0, "high": 0.5})),
        ("evaluation/pairs.json", set_in(*ACCURACY, "comparisons", to=[{}])),
        ("evaluation/pairs.json", set_in("results", 0, "metrics", 1, to={"values": {}})),
        ("evaluation/IJBC/identification.json", set_in("results", 0, "curves", "cmc", f"{SMALL}_seed0", to=["1"])),
        (f"runs/{SMALL}/seed0/result.json", set_in("final", to=[{"accuracy": 0.5}])),
        (f"runs/{SMALL}/seed0/result.json", set_in("final", 0, "accuracy", to="good")),
        (f"runs/{SMALL}/seed0/result.json", set_in("best", "sets", "lfw", to=[])),
        (f"runs/{SMALL}/seed0/result.json", set_in("steps", to="all")),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_name_of_its_file(tmp_path, name, change):
    study = make_study(tmp_path / "s")
    edit(study / name, change)
    assert refused(DataError, study).startswith(f"{study / name}: ")


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "nonsense",
        "{}",
        '{"kind": "train", "loss": 1.0}',
        '{"kind": "train", "step": 1, "loss": "low"}',
        '{"kind": "validation", "step": 1, "accuracy": 0.5}',
        '{"kind": "validation", "step": 1, "set": "lfw", "accuracy": "x"}',
    ],
)
def test_a_line_of_metrics_of_another_shape_is_refused(tmp_path, line):
    run = make_run(tmp_path / "r")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    assert refused(DataError, run).startswith(f"{run / 'metrics.jsonl'}, line ")


def test_numbers_that_json_lacks_and_a_half_written_line_are_no_damage(tmp_path):
    run = make_run(tmp_path / "r")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "loss": NaN}\n{"kind": "tr')
    found = load_results(run).runs[0]
    assert found.lines[-1]["loss"] is None and found.final_loss == 6.0


@pytest.mark.parametrize("damage", ["text", "keys", "lengths", "pickle"])
def test_damaged_scores_are_named(tmp_path, damage):
    study = make_study(tmp_path / "s")
    file = study / "evaluation" / f"{SMALL}_seed0_lfw_scores.npz"
    if damage == "text":
        file.write_bytes(b"PK\x03\x04 no archive")
    else:
        arrays = {"keys": {"x": np.ones(3)}, "lengths": {"distance": np.ones(3), "is_same": np.ones(4, bool)}}
        pickled = {"distance": np.array([None, {}]), "is_same": np.ones(2, bool)}
        np.savez(file, **arrays.get(damage, pickled))
    assert refused(DataError, study).startswith(f"{file}: ")


def compressed(file, kind=zipfile.ZIP_DEFLATED, pairs=2000):
    """Write scores of which the first half are genuine."""
    distance, is_same = np.random.default_rng(0).random(pairs), np.arange(pairs) < pairs / 2
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, values in {"distance": distance, "is_same": is_same}.items():
            content = io.BytesIO()
            np.save(content, values)
            archive.writestr(f"{name}.npy", content.getvalue())


def test_scores_may_be_compressed(tmp_path):
    study = make_study(tmp_path / "s")
    compressed(study / "evaluation" / f"{SMALL}_seed0_lfw_scores.npz")
    assert load_results(study).curves[LFW][f"{SMALL}_seed0"].genuine == 1000


@pytest.mark.parametrize("damage", ["member", "encrypted", "otherwise", "inflates", "no type"])
def test_archives_of_strangers_are_one_line(tmp_path, damage):
    study = make_study(tmp_path / "s")
    file = study / "evaluation" / f"{SMALL}_seed0_lfw_scores.npz"
    compressed(file, zipfile.ZIP_LZMA if damage == "otherwise" else zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    if damage == "member":
        content[60:200] = b"\xff" * 140
    elif damage == "encrypted":
        content[6] |= 1
        content[content.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    if damage == "inflates":
        np.savez_compressed(file, distance=np.zeros(10**6), is_same=np.arange(10**6) < 10**5)
    elif damage == "no type":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("is_same.npy", b"")
            header = b"{'descr': (), 'fortran_order': False, 'shape': (1,)}"
            archive.writestr("distance.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    tracemalloc.start()
    assert refused(DataError, study).startswith(f"{file}: ")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_damaged_recipe_is_named(tmp_path):
    run = make_run(tmp_path / "r")
    (run / "config.yaml").write_text("backbone: {nme: x}")
    assert str(run / "config.yaml") in refused(FaceBonesError, run)


def test_models_without_a_backbone_have_no_costs(tmp_path):
    values = {"net": 0.5}
    write_pairs(tmp_path / "e", {"lfw": [metric_json("accuracy", values)]})
    models = models_json(values)
    models["net"] |= {"backbone": None, "embedding_size": None}
    edit(tmp_path / "e" / "pairs.json", lambda content: content.update(models=models))
    unknown = dict.fromkeys(("parameters", "macs", "latency_ms", "images_per_second", "memory_bytes"))
    assert vars(load_results(tmp_path / "e").costs["net"]) == unknown | {"busy": False}
    edit(tmp_path / "e" / "pairs.json", lambda content: content.update(models={"net": {}}, results=[]))
    assert "checkpoint" in refused(DataError, tmp_path / "e")


def test_runs_of_one_set_stay_together_though_versions_recorded_different_keys(tmp_path):
    recipe = {"backbone": {"name": "net"}, "training": {"epochs": 2, "seed": 0}}
    labels = {"path": "a", "images": 9, "identities": 3, "labels_sha256": "ab"}
    data = {
        "older": labels,
        "newer": labels | {"image_sample": "01 -", "file_sizes_sha256": "1"},
        "repaired": labels | {"image_sample": "01 02", "file_sizes_sha256": "2"},
        "moved": labels | {"path": "b"},
        "other": labels | {"labels_sha256": "cd"},
    }
    runs = [
        Run(name=name, backbone="net", folder=tmp_path, recipe=recipe, environment={"data": found})
        for name, found in data.items()
    ]
    split = with_factors(runs)
    assert [run.variant for run in split] == ["net (that of older)"] * 4 + ["net (that of other)"]
    assert [run.environment for run in split] == [run.environment for run in runs]
    assert different_recipes(runs[:4]) == []
    assert "the training data" in different_recipes(runs)[0]
