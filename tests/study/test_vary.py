"""Factors of a study: every combination of levels is a training of its own, and what cannot be one is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from teachers import write_teacher

from facebones.backbones import create_backbone
from facebones.cli.main import main
from facebones.errors import FaceBonesError
from facebones.reporting.load import load_results
from facebones.study.compare import checked_plan, compare, plan_rows, preview
from facebones.study.display import study_table
from facebones.study.launchers.local import next_run
from facebones.study.plan import make_plan
from facebones.study.record import describe
from facebones.study.study import load_study
from facebones.study.vary import read_factors
from facebones.training.run import train

SMALL, LARGE = "shufflefacenet_0_5", "shufflefacenet_1_0"
STUDY = """
recipe: demo
overrides:
  backbone.embedding_size: 16
  data.workers: 0
  training.batch_size: 14
  training.epochs: 1
  validation.sets: tiny
backbones: [{backbones}]
seeds: [{seeds}]
data: {data}
profile: false
"""
LOSSES = """
vary:
  loss:
    arcface: {head.name: arcface, head.margin: 0.4}
    cosface: {head.name: cosface}
"""


@pytest.fixture
def write(tmp_path, small_data):
    def write_study(more="", backbones=SMALL, seeds="0", without="nothing"):
        text = STUDY.format(backbones=backbones, seeds=seeds, data=small_data) + more
        path = tmp_path / "mine.yaml"
        path.write_text("".join(line for line in text.splitlines(keepends=True) if f"  {without}:" not in line))
        return str(path)

    return write_study


def plan_of(path, output="out", **given):
    return make_plan(load_study(path, **given), output)


# ------------------------------------------------------------------------------------------------------- plans


def test_each_training_is_a_backbone_with_its_levels_and_a_seed(write, tmp_path):
    plan = plan_of(write(LOSSES, f"{SMALL}, {LARGE}", "0, 1"), tmp_path / "out")
    names = [f"{name}_{loss}" for name in (SMALL, LARGE) for loss in ("arcface", "cosface")]
    assert [run.name for run in plan.runs] == [f"{name}_seed{seed}" for name in names for seed in (0, 1)]
    assert [run.folder.path.relative_to(tmp_path / "out" / "runs") for run in plan.runs] == [
        type(run.folder.path)(name, f"seed{seed}")
        for run, (name, seed) in zip(plan.runs, [(name, seed) for name in names for seed in (0, 1)], strict=True)
    ]
    assert plan.runs[2].variant == f"{SMALL} (cosface)" and plan.runs[2].levels == {"loss": "cosface"}
    heads = [(run.recipe.head.name, run.recipe.head.to_dict()["margin"]) for run in plan.runs[::2]]
    assert heads[0] == ("arcface", 0.4) and heads[1][0] == "cosface" and heads[:2] == heads[2:]
    assert len({run.fingerprint for run in plan.runs}) == 8


def test_factors_cross_and_a_list_is_short_for_levels_of_one_field(write, tmp_path):
    more = (
        "vary: {head.name: [arcface, cosface], optimizer.learning_rate: [0.01, 0.03],"
        " size: {a/b: {training.batch_size: 28}, 'Ü x': {training.batch_size: 14}}}"
    )
    runs = plan_of(write(more, without="training.batch_size"), tmp_path / "out").runs
    assert [run.name for run in runs][:4] == [
        f"{SMALL}_arcface_learning_rate_0.01_a_b",
        f"{SMALL}_arcface_learning_rate_0.01___x",
        f"{SMALL}_arcface_learning_rate_0.03_a_b",
        f"{SMALL}_arcface_learning_rate_0.03___x",
    ]
    assert len(runs) == 8 and all(re.fullmatch(r"[A-Za-z0-9_.-]+", run.name) for run in runs)
    rates = [run.recipe.optimizer.learning_rate for run in runs]
    assert rates == [0.01, 0.01, 0.03, 0.03] * 2
    assert {run.recipe.training.batch_size for run in runs[1::2]} == {14} and runs[1].steps > runs[0].steps
    assert runs[0].variant == f"{SMALL} (arcface, learning_rate 0.01, a/b)"


def test_levels_that_hold_out_other_people_train_on_other_data(write, tmp_path):
    runs = _, _, half = plan_of(write("vary: {data.held_out: [0, 0.25, 0.5]}"), tmp_path / "out").runs
    assert [(run.data["images"], run.data["identities"]) for run in runs] == [(28, 4), (21, 3), (14, 2)]
    assert [run.steps for run in runs] == [2, 1, 1]
    assert train(half.recipe, half.folder.path, "cpu")["training_images"] == 14
    half.refuse_another()
    with pytest.raises(
        FaceBonesError, match=r"vary: .*held_out 0.9\)?: data.held_out 0.9: of 4 people, 0 would remain"
    ):
        plan_of(write("vary: {data.held_out: [0, 0.9]}"), tmp_path / "out")


def test_weights_to_begin_with_are_tried_on_every_backbone_before_the_first_training(write, tmp_path):
    torch.save(create_backbone(SMALL, 16).state_dict(), tmp_path / "weights.pt")
    given = {"backbone.weights": str(tmp_path / "weights.pt")}
    preview(load_study(write("", SMALL), overrides=given), tmp_path / "out")
    with pytest.raises(FaceBonesError, match=r"weights\.pt: .*" + LARGE) as caught:
        preview(load_study(write("", f"{SMALL}, {LARGE}"), overrides=given), tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_run_that_began_with_other_weights_of_that_name_is_refused(write, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(create_backbone(SMALL, 16).state_dict(), path)
    study = load_study(write(seeds="0, 1"), overrides={"backbone.weights": str(path)})
    first, _ = make_plan(study, tmp_path / "out").runs
    train(first.recipe, first.folder.path, "cpu")
    checked_plan(study, tmp_path / "out", "cpu", None)
    torch.save(create_backbone(SMALL, 16).state_dict(), path)
    with pytest.raises(FaceBonesError, match=r"seed0: holds a run that began with other weights than .*weights\.pt"):
        checked_plan(study, tmp_path / "out", "cpu", None)
    content = json.loads(first.folder.environment.read_bytes())
    first.folder.environment.write_text(json.dumps(content | {"weights": {"path": str(path)}}))
    checked_plan(study, tmp_path / "out", "cpu", None)  # an older version recorded no digest
    first.folder.environment.write_text(json.dumps(content))
    path.unlink()
    with pytest.raises(FaceBonesError, match="no such run or file"):
        checked_plan(study, tmp_path / "out", "cpu", None)
    checked_plan(replace(study, seeds=[0]), tmp_path / "out", "cpu", None)  # which begins no training


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "vary: {head.name: [arcface, subcenter_arcface]}",
            rf"vary: {SMALL} \(subcenter_arcface\): head subcenter_arcface: sample_rate 0.1: .*; give 1",
        ),
        (
            "vary: {norms: {theirs: {}, mine: {head.name: magface, head.lower_norm: 120}}}",
            rf"vary: {SMALL} \(mine\): head magface: lower_norm 120 is not below upper_norm 110",
        ),
    ],
)
def test_a_head_that_cannot_be_built_is_refused_before_the_first_training(write, tmp_path, capsys, more, message):
    rate = ["--head.sample_rate", "0.1"] if "subcenter" in more else []
    for words in ([], ["--dry-run"]):
        assert main(["compare", write(more), "--output", str(tmp_path / "out"), *rate, *words]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "note:" not in line]
        assert re.search(message, line)
    assert not (tmp_path / "out").exists()


def test_without_factors_names_records_and_fields_are_as_before(write, tmp_path):
    study = load_study(write("", f"{SMALL}, {LARGE}", "0, 1"))
    plan = make_plan(study, tmp_path / "out")
    assert [run.name for run in plan.runs] == [f"{name}_seed{seed}" for name in (SMALL, LARGE) for seed in (0, 1)]
    assert plan.runs[0].folder.path == tmp_path / "out" / "runs" / SMALL / "seed0"
    assert [run.variant for run in plan.runs] == [SMALL, SMALL, LARGE, LARGE]
    written = json.dumps([describe(plan, {}, []), plan_rows(plan)])
    assert "vary" not in written and "levels" not in written


def test_while_one_seed_chooses_settings_other_levels_may_start(write, tmp_path):
    plan = plan_of(write(LOSSES, SMALL, "0, 1"), tmp_path / "out", overrides={"training.choose": "precision"})
    assert next_run(plan.runs[1:], plan.runs[:1]) is plan.runs[2]


def test_levels_that_build_other_networks_have_costs_of_their_own(write, tmp_path):
    more = "vary: {width: {small: {backbone.embedding_size: 8}, large: {backbone.embedding_size: 32}}}"
    plan = plan_of(write(more, without="backbone.embedding_size"), tmp_path / "out")
    small, large = (row["parameters"] for row in plan_rows(plan))
    assert small < large and [run.network for run in plan.runs] == [f"{SMALL} (small)", f"{SMALL} (large)"]
    content = describe(plan, {}, [])
    assert [row["parameters"] for row in content["summary"]] == [small, large]
    columns, rows = study_table(content)
    assert columns[:2] == ("backbone", "width") and [row[:2] for row in rows] == [
        (SMALL, "small"),
        (SMALL, "large"),
    ]


# ----------------------------------------------------------------------------------------------------- refusals


REFUSED = {
    "vary: [a]": r"mine\.yaml: vary: must be a mapping of factors",
    "vary: {loss: arcface}": r"mine\.yaml: vary\.loss: must be named levels, such as",
    "vary: {loss: {}}": r"vary\.loss: must be named levels",
    "vary: {loss: []}": r"vary\.loss: must be named levels",
    "vary: {loss: {arcface: cosface}}": r"vary\.loss\.arcface: must be a mapping of section\.field to value",
    "vary: {loss: {a: {head.name: {b: c}}}}": r"vary\.loss\.a\.head\.name: must be one value or a list",
    "vary: {loss: {'': {}}}": r"vary\.loss: '' is no name for a level",
    'vary: {loss: {"a\\nb": {}}}': r"vary\.loss: 'a\\nb' is no name for a level",
    "vary: {backbone: {a: {}}}": r"vary\.backbone: no name for a factor",
    "vary: {head.name: [arcface, arcface]}": r"vary\.head\.name: arcface is listed twice",
    "vary: {head.name: [arcface, arcfaces]}": r"mine\.yaml: vary\.head\.name: unknown .*; did you mean 'arcface'",
    "vary: {head.nam: [arcface, cosface]}": r"vary\.head\.nam: ",
    "vary: {heads: [arcface, cosface]}": r"vary\.heads: unknown field 'heads'",
    "vary: {trainin.epochs: [1, 2]}": r"unknown field 'trainin\.epochs'; did you mean 'training\.epochs'",
    "vary: {optimizer.learning_rate: [0.1, high]}": r"vary\.optimizer\.learning_rate: 'high' is not a finite number",
    "vary: {loss: {a: {head.name: cosface, head.h: 3}}}": r"vary\.loss\.a\.head\.h: head cosface has no option 'h'",
    "vary: {loss: {a: {optimizer.momentum: -1}}}": r"vary\.loss\.a\.optimizer\.momentum: -1.0 is out of range",
    "vary: {backbone.name: [r18, r34]}": r"backbone\.name: a study sets it by `backbones`",
    "vary: {loss: {a: {training.seed: 1}}}": r"training\.seed: a study sets it by `seeds`",
    "vary: {data.path: [a, b]}": r"data\.path: a study sets it by `data`",
    "vary: {log.every: [1, 2]}": r"log\.every: does not change the trained network",
    "vary: {validation.sets: [a, b]}": r"validation\.sets: does not change the trained network",
    "vary: {training.epochs: [1, 2]}": r"training\.epochs: is in the study's overrides too",
    "vary: {a: {x: {head.name: cosface}, y: {}}, head.name: [arcface, cosface]}": r"head\.name: is in the factor a too",
    "vary: {head.name: [arcface, combined], head.scale: [64, 64.0]}": r"are the same recipe; remove one of them",
    "vary: {a: {x: {}, y: {}}}": r"a x and a y are the same recipe",
}


@pytest.mark.parametrize("more", REFUSED)
def test_a_factor_that_cannot_be_trained_is_refused_in_one_line(write, more, capsys):
    with pytest.raises(FaceBonesError, match=REFUSED[more]) as refused:
        load_study(write(more))
    assert "\n" not in str(refused.value)
    assert main(["compare", write(more), "--output", "never"]) == 2
    assert capsys.readouterr().err.strip().endswith(str(refused.value))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("vary: {size: {A: {head.margin: 0.3}, a: {head.margin: 0.4}}}", "would share a folder; rename a level"),
        ("vary: {size: {a b: {head.margin: 0.3}, a_b: {head.margin: 0.4}}}", "would share a folder; rename a level"),
        (
            "vary: {"
            + ", ".join(f"f{place}: {{{place}{'x' * 59}: {{head.margin: 0.3}}}}" for place in range(1))
            + ", "
            + ", ".join(
                f"g{place}: {{{place}{'x' * 58}: {{{name}: 0.01}}}}"
                for place, name in enumerate(("optimizer.weight_decay", "optimizer.learning_rate", "head.scale"))
            )
            + "}",
            "is too long for the name of a folder",
        ),
    ],
)
def test_levels_without_a_folder_of_their_own_are_refused(write, tmp_path, more, message):
    with pytest.raises(FaceBonesError, match=message):
        plan_of(write(more), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_level_that_the_data_are_too_few_for_is_named(write, tmp_path):
    more = "vary: {training.batch_size: [14, 500]}"
    with pytest.raises(FaceBonesError, match=rf"vary: {SMALL} \(batch_size 500\): .*is more than the 28 images"):
        plan_of(write(more, without="training.batch_size"), tmp_path / "out")


def test_an_option_of_the_command_line_does_not_replace_a_level_in_silence(write):
    with pytest.raises(FaceBonesError, match=r"vary\.loss: head\.margin: is in the study's overrides too"):
        load_study(write(LOSSES), overrides={"head.margin": "0.3"})


def test_too_many_combinations_are_refused_before_any_recipe_is_read(write):
    levels = ", ".join(str(1 + place / 100) for place in range(40))
    with pytest.raises(FaceBonesError, match="1600 combinations of levels; at most 1000"):
        load_study(write(f"vary: {{head.scale: [{levels}], optimizer.weight_decay: [{levels}]}}"))


def test_read_factors_refuses_what_is_not_text():
    with pytest.raises(FaceBonesError, match="no name for a level"):
        read_factors({"loss": {3: {}}}, "vary")


# ----------------------------------------------------------------------------------------------------- the whole


def test_the_launchers_and_only_know_the_trainings(write, tmp_path, capsys):
    study, output = write(LOSSES, SMALL, "0, 1"), tmp_path / "out"
    names = [f"{SMALL}_{loss}_seed{seed}" for loss in ("arcface", "cosface") for seed in (0, 1)]
    assert main(["compare", study, "--output", str(output), "--device", "cpu", "--launcher", "print"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("--only ")[1].split()[0] for line in lines] == names
    assert main(["compare", study, "--output", str(output), "--device", "cpu", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert main(["compare", study, "--output", str(output), "--device", "cpu", "--only", f"{SMALL}_seed0"]) == 2
    assert "unknown training" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_of_two_levels_is_trained_measured_reported_and_resumed(write, tmp_path):
    study, output = write(LOSSES, SMALL, "0, 1"), tmp_path / "out"
    content = compare(study, output, device="cpu")
    assert [run["state"] for run in content["runs"]] == ["done"] * 4
    assert [row["levels"] for row in content["summary"]] == [{"loss": "arcface"}, {"loss": "cosface"}]
    assert all(row["done"] == 2 and row["metrics"] for row in content["summary"])
    results = load_results(output)
    assert results.variants == [f"{SMALL} (arcface)", f"{SMALL} (cosface)"] and results.notes == []
    page = (output / "report" / "report.html").read_text()
    assert f"{SMALL} (cosface)" in page and "arcface - cosface" in page
    times = {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("model.safetensors")}
    assert len(times) == 4
    compare(study, output, device="cpu")
    assert times == {path: path.stat().st_mtime_ns for path in times}
    columns, rows = study_table(content)
    assert columns[:2] == ("backbone", "loss") and [row[1] for row in rows] == ["arcface", "cosface"]


# --------------------------------------------------------------------------------------------------- a teacher

TAUGHT = """
vary:
  teacher:
    none: {{}}
    alone: {{distillation.embeddings: {embeddings}, distillation.alone: true}}
"""


def test_a_teacher_is_a_level_whose_embeddings_are_checked_before_anything_starts(write, teacher, tmp_path, capsys):
    plan = plan_of(write(TAUGHT.format(embeddings=teacher)), tmp_path / "out")
    assert [run.recipe.distillation.embeddings for run in plan.runs] == ["", teacher]
    refused = ["compare", write(TAUGHT.format(embeddings="nothing")), "--output", str(tmp_path / "out")]
    assert main(refused) == 2
    assert "distillation.embeddings nothing: no such embeddings" in capsys.readouterr().err
    refused = ["compare", write(), "--output", str(tmp_path / "out"), "--distillation.alone", "true"]
    assert main(refused) == 2
    assert "there is no teacher" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_teacher_of_that_name_is_refused(write, small_data, tmp_path):
    path = write_teacher(tmp_path, small_data)
    study = write(TAUGHT.format(embeddings=path), seeds="0, 1")
    runs = plan_of(study, tmp_path / "out").runs
    taught = runs[2]
    train(taught.recipe, taught.folder.path, "cpu")
    again = plan_of(study, tmp_path / "out").runs
    assert [run.fingerprint for run in again] == [run.fingerprint for run in runs]
    rows = np.load(path, mmap_mode="r+")
    rows[0, 0, 0] += 1
    rows.flush()
    with pytest.raises(FaceBonesError, match=r"alone/seed0: holds a run with another teacher than .*another --output$"):
        plan_of(study, tmp_path / "out")
    content = json.loads(taught.folder.environment.read_bytes())
    del content["teacher"]
    taught.folder.environment.write_text(json.dumps(content))
    others = plan_of(study, tmp_path / "out").runs  # an older version recorded no teacher
    assert [run.fingerprint == other.fingerprint for run, other in zip(runs, others, strict=True)] == [True] * 2 + [
        False
    ] * 2


def test_levels_that_would_be_the_same_training_for_want_of_a_teacher_are_refused(write, teacher, tmp_path):
    with pytest.raises(
        FaceBonesError, match=r"^vary: distillation\.weight 30: distillation\.weight 30\.0: has no effect without a"
    ):
        plan_of(write("vary: {distillation.weight: [1, 30]}"), tmp_path / "out")
    given = {"distillation.embeddings": teacher}
    with pytest.raises(FaceBonesError, match=r"distillation\.margin 0\.3: has no effect with .*embedding_cosine"):
        plan_of(write("vary: {distillation.margin: [0.45, 0.3]}"), tmp_path / "out", overrides=given)
    assert len(plan_of(write("vary: {distillation.weight: [1, 30]}"), tmp_path / "out", overrides=given).runs) == 2


def test_a_run_of_an_older_version_that_ignored_a_field_belongs_to_the_study_without_it(write, tmp_path):
    (run,) = plan_of(write(), tmp_path / "out").runs
    ignored = replace(run.recipe.distillation, weight=30.0, loss="adadistill")
    run.folder.write_recipe(replace(run.recipe, distillation=ignored))
    assert plan_of(write(), tmp_path / "out").runs[0].state == "unfinished"


def test_mirror_images_that_are_not_embedded_are_found_before_the_first_training(write, small_data, tmp_path):
    path = write_teacher(tmp_path, small_data, views=1)
    with pytest.raises(FaceBonesError, match="has no embeddings of mirror images"):
        plan_of(write(TAUGHT.format(embeddings=path)), tmp_path / "out")
