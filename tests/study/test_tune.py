"""Tuning: every backbone gets the same number of equal trials, people held out of them decide, and nothing else."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from facebones.cli.main import main
from facebones.data.folders import open_training_set
from facebones.data.pair_bins import read_pairs
from facebones.data.wrapped_sets import held_out_only
from facebones.errors import ConfigError, DataError, DivergedError, FaceBonesError, RunError, UntrainedError
from facebones.recipe import Recipe, dump_recipe
from facebones.reporting.tuning import DONE, FAILED, STOPPED
from facebones.study.compare import compare, plan_rows, preview, raise_failures
from facebones.study.launch import launch
from facebones.study.launchers import local
from facebones.study.plan import make_plan
from facebones.study.proposals import Trial, best_trial, propose, thresholds
from facebones.study.study import load_study
from facebones.study.tuning import TuneSettings, read_space, with_fields

SMALL, LARGE = "shufflefacenet_0_5", "shufflefacenet_1_0"
STUDY = """
recipe: demo
overrides:
  backbone.embedding_size: 16
  data.workers: 0
  training.batch_size: 16
  training.epochs: 2
  validation.sets: tiny
backbones: [{backbones}]
tune:
  space:
    {space}
  trials: {trials}
  held_out: 0.5
  pairs: 90
  {more}
seeds: [{seeds}]
data: {data}
profile: false
"""
RATES = "optimizer.learning_rate: {low: 0.001, high: 0.5, log: true}"


@pytest.fixture
def write(tmp_path, many_people):
    def write_study(space=RATES, backbones=SMALL, trials=3, seeds="0", more="seed: 0", extra=""):
        path = tmp_path / "mine.yaml"
        text = STUDY.format(backbones=backbones, space=space, trials=trials, seeds=seeds, data=many_people, more=more)
        path.write_text(text + extra)
        return str(path)

    return write_study


# ------------------------------------------------------------------------------------------------- what is tried


def space_of(**values):
    names = {name.replace("__", "."): value for name, value in values.items()}
    return read_space(TuneSettings(trials=2, space=names), Recipe(), {}, "tune")


SPACE = {
    "optimizer__learning_rate": {"low": "0.001", "high": "0.5", "log": "true"},
    "schedule__name": ["polynomial", "cosine"],
    "training__batch_size": {"low": "64", "high": "256"},
}


def test_trial_0_is_the_recipe_and_the_others_are_drawn_from_the_space_the_same_in_every_process():
    space, history = space_of(**SPACE), []
    for number in range(12):
        fields = propose(space, history, seed=3)
        assert fields == propose(space, history, seed=3)
        recipe = with_fields(Recipe(), fields)
        assert (fields == {}) == (number == 0)
        assert 0.001 <= recipe.optimizer.learning_rate <= 0.5 and 64 <= recipe.training.batch_size <= 256
        assert recipe.schedule.name in ("polynomial", "cosine")
        history.append(Trial(number, fields, [0.5, 0.6 + 0.01 * number]))
    drawn = [tuple(trial.fields.items()) for trial in history]
    assert len(set(drawn)) == 12, "no trial repeats another"
    assert propose(space, history[:5], seed=4) != propose(space, history[:5], seed=3)
    assert all(len(trial.fields["optimizer.learning_rate"].strip("0.")) <= 3 for trial in history[1:]), "readable"


def test_the_sampler_learns_from_the_trials():
    """Rates near 0.1 are good: later draws lie nearer to it than the first ones, which are random."""
    space, history = space_of(optimizer__learning_rate=SPACE["optimizer__learning_rate"]), []
    for number in range(40):
        fields = propose(space, history, seed=0)
        rate = with_fields(Recipe(), fields).optimizer.learning_rate
        history.append(Trial(number, fields, [1 - abs(np.log10(rate) + 1) / 4]))
    distance = np.array([abs(np.log10(float(trial.fields["optimizer.learning_rate"])) + 1) for trial in history[1:]])
    assert (distance[-20:] < 0.5).mean() > 0.6, "at random, 0.37"


def test_what_fails_is_drawn_less_and_less():
    """Rates above 0.05 diverge."""
    space, history = space_of(optimizer__learning_rate=SPACE["optimizer__learning_rate"]), []
    history.append(Trial(0, {"optimizer.learning_rate": "0.01"}, [0.7]))
    for number in range(1, 40):
        fields = propose(space, history, seed=0)
        rate = float(fields["optimizer.learning_rate"])
        history.append(Trial(number, fields, *(([0.9], FAILED) if rate > 0.05 else ([0.9 - rate], DONE))))
    failed = [trial.state == FAILED for trial in history[1:]]
    assert sum(failed[-20:]) <= 3, "at random, 7"


def test_all_combinations_of_a_small_space_are_tried_before_one_is_tried_twice():
    space, history = space_of(schedule__name=["polynomial", "cosine"], optimizer__momentum=["0.9", "0.8", "0.5"]), []
    for number in range(6):
        history.append(Trial(number, propose(space, history, seed=1), [0.5]))
    recipes = [with_fields(Recipe(), trial.fields) for trial in history]
    assert len({(recipe.schedule.name, recipe.optimizer.momentum) for recipe in recipes}) == 6


@pytest.mark.parametrize("finished", [3, 4, 5, 8, 9])
def test_the_thresholds_stop_what_optunas_median_pruner_stops(finished):
    generator = np.random.default_rng(finished)
    history = [Trial(k, {}, generator.uniform(0.5, 1, 3).tolist()) for k in range(finished)]
    history += [Trial(finished, {}, [0.1], STOPPED), Trial(finished + 1, {}, [], FAILED)]
    limits = thresholds(history, 3)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    for trial in history[:-1]:
        done = trial.state == DONE
        values = {"state": TrialState.COMPLETE, "value": trial.accuracies[-1]} if done else {"state": TrialState.PRUNED}
        study.add_trial(optuna.trial.create_trial(**values, intermediate_values=dict(enumerate(trial.accuracies))))
    for accuracies in generator.uniform(0.5, 1, (20, 2)):
        asked, best = study.ask(), 0.0
        for place, accuracy in enumerate(accuracies):
            asked.report(accuracy, place)
            best = max(best, accuracy)
            assert asked.should_prune() == (best < limits[place] if limits else False)
        study.tell(asked, state=TrialState.FAIL)


def test_the_best_trial_has_finished_and_is_the_first_of_equal_ones():
    trials = [Trial(0, {}, [0.7]), Trial(1, {}, [0.6, 0.8]), Trial(2, {}, [0.8]), Trial(3, {}, [0.9], STOPPED)]
    assert best_trial(trials).number == 1
    assert best_trial([Trial(0, {}, [0.7], FAILED)]) is None


# ---------------------------------------------------------------------------------------------------------- plans


def test_the_plan_lists_trials_and_both_levels_before_anything_is_known(write, tmp_path, many_people):
    plan = make_plan(load_study(write(backbones=f"{SMALL}, {LARGE}", seeds="4, 5")), tmp_path / "out")
    names = [row["name"] for row in plan_rows(plan)]
    trials = [f"{name}_trial{k}" for name in (SMALL, LARGE) for k in range(3)]
    runs = [
        f"{name}_{level}_seed{seed}" for level in ("default", "tuned") for name in (SMALL, LARGE) for seed in (4, 5)
    ]
    assert names == trials + runs
    rows = {row["name"]: row for row in plan_rows(plan)}
    assert rows[trials[0]]["steps"] == 2 * (88 // 16) and rows[runs[0]]["steps"] == 2 * (176 // 16)
    assert not (tmp_path / "out").exists()
    trial = plan.tunings[0].next_run([])
    assert trial.seed == 4 and trial.recipe.data.held_out == 0.5 and trial.recipe.training.seed == 4
    assert trial.recipe.validation.every == 3, "ten steps, four validations"


def test_the_pairs_that_decide_are_of_people_on_whom_no_trial_trains(write, tmp_path, many_people):
    held_out = make_plan(load_study(write()), tmp_path / "out").tunings[0].held_out
    held_out.write()
    pairs = read_pairs(held_out.path)
    data = open_training_set(many_people)
    trained = {held_out.trained.read(index)[0] for index in range(len(held_out.trained))}
    others = held_out_only(data, 0.5)
    assert len(pairs) == 80 and pairs.is_same.sum() == 40, "90 are rounded down to a multiple of 20"
    assert not trained & set(pairs.images)
    assert set(pairs.images) <= {others.read(index)[0] for index in range(len(others))}


def test_with_vary_each_backbone_is_tuned_at_every_level(write, tmp_path):
    study = load_study(write(extra="vary: {head.name: [arcface, cosface]}"))
    plan = make_plan(study, tmp_path / "out")
    assert [tuning.stem for tuning in plan.tunings] == [f"{SMALL}_arcface", f"{SMALL}_cosface"]
    assert [run.levels for run in plan.ahead] == [
        {"head.name": head, "tuning": "tuned"} for head in ("arcface", "cosface")
    ]


def test_settings_of_the_backbone_section_make_other_networks(write, tmp_path):
    space = "backbone.dropout: [0, 0.2, 0.4]"
    plan = make_plan(load_study(write(space)), tmp_path / "out")
    assert plan.runs[0].network != plan.ahead[0].network


BAD = {
    "optimizer.learning_rate: [0.006]": "has one value only",
    "training.batch_size: {low: 15, high: 16}": "the space has 2 combinations",
    "distillation.weight: [1, 30]": "has no effect without distillation.embeddings",
    "distillation.embeddings: ['', teacher]": "is compared by `vary`",
    "optimizer.learning_rat: [1, 2]": "did you mean 'optimizer.learning_rate'",
    "training.epochs: [1, 2]": "training.epochs: is the budget",
    "backbone.name: [a, b]": "a study sets it by `backbones`",
    "validation.every: [1, 2]": "does not change the trained network",
    "head.name: [arcface, cosface]": "is compared by `vary`",
    "optimizer.learning_rate: [0.1, 0.2]": "must include the recipe's own value",
    "optimizer.learning_rate: {low: 0.1, high: 0.2}": "must include the recipe's own value",
    "optimizer.learning_rate: {low: 0.2, high: 0.001}": "low must be below high",
    "optimizer.learning_rate: {low: 0.001, high: 0.2, log: maybe}": "log true or false",
    "optimizer.learning_rate: {low: 0.001, high: 0.2, step: 1}": "a list of values, or a range",
    "optimizer.learning_rate: {low: 0.001}": "a list of values, or a range",
    "optimizer.learning_rate: 0.1": "a list of values, or a range",
    "optimizer.weight_decay: {low: 0, high: 0.2, log: true}": "low above 0",
    "optimizer.learning_rate: [much, 0.1]": "'much' is not a finite number",
    "optimizer.learning_rate: {low: -1, high: 0.2}": "must be above 0",
    "schedule.name: {low: 1, high: 2}": "must be a list of values",
    "schedule.name: [polynomial, cosine, polynomial]": "listed twice",
    "schedule.name: [polynomial, cosine]": "the space has 2 combinations; give trials: 2 or fewer",
    "schedule.name: []": "must be a list of values",
}


@pytest.mark.parametrize("space", BAD)
def test_a_space_that_cannot_be_tried_is_one_line(write, space):
    with pytest.raises(FaceBonesError, match="tune") as caught:
        load_study(write(space))
    assert BAD[space] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("trial: 3", "tune.trial"),
        ("stop_early: perhaps", "tune.stop_early: 'perhaps'"),
        ("held_out: 0.5", "stands twice"),
        ("validations: 0", "tune.validations: 0 is out of range"),
    ],
)
def test_a_setting_that_is_none_is_one_line(write, more, message):
    with pytest.raises(FaceBonesError, match=message):
        load_study(write(more=more))


def test_tuning_needs_people_and_room_for_its_factor(write, tmp_path, small_data):
    with pytest.raises(ConfigError, match="its factor is called tuning"):
        load_study(write(extra="vary: {tuning: {a: {head.name: arcface}, b: {head.name: cosface}}}"))
    with pytest.raises(ConfigError, match="is in vary too"):
        load_study(write(extra="vary: {optimizer.learning_rate: [0.1, 0.2]}"))
    with pytest.raises(FaceBonesError, match=r"2 people; 10 folds .* need 20; raise tune.held_out"):
        make_plan(load_study(write(), data=str(small_data)), tmp_path / "out")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("training.batch_size: [16, 4096, 8]", "training.batch_size: 4096: .* give --training.batch_size 88 or less"),
        ("training.batch_size: {low: 16, high: 4096}", "training.batch_size: 4096: "),
        ("schedule.warmup_epochs: [0, 1, 2]", "schedule.warmup_epochs: 2: .*leaves nothing"),
        ("schedule.name: [polynomial, step, cosine]", "schedule.name: step: .*needs schedule.milestones"),
        ("backbone.frozen: [0, 1, 2]", "backbone.frozen: 1: .*would keep random weights"),
    ],
)
def test_a_value_with_which_no_training_can_begin_is_refused_before_the_first_trial(write, tmp_path, space, message):
    with pytest.raises(ConfigError, match=rf"^tune\.space\.{message}"):
        make_plan(load_study(write(space)), tmp_path / "out")


@pytest.mark.parametrize(
    ("space", "given", "message"),
    [
        (
            "head.sample_rate: [1, 0.5, 0.3]",
            {"head.name": "sphereface2"},
            r"tune\.space\.head\.sample_rate: 0\.5: head sphereface2: .*; give 1",
        ),
        (
            "head.sample_rate: [0.5, 0.4, 0.3]",
            {"head.name": "sphereface2", "head.sample_rate": "0.5"},
            r"head sphereface2: sample_rate 0\.5: ",
        ),
    ],
)
def test_an_option_with_which_no_head_can_be_built_is_refused_before_the_first_trial(
    write, tmp_path, space, given, message
):
    with pytest.raises(ConfigError, match=f"^{message}"):
        make_plan(load_study(write(space), overrides=given), tmp_path / "out")


def test_a_field_that_a_loss_of_the_space_has_not_is_not_tuned_beside_it(write, teacher):
    space = "distillation.margin: [0.45, 0.3]\n    distillation.loss: [embedding_cosine, adadistill]"
    with pytest.raises(ConfigError, match=r"space\.distillation\.margin: has no effect with .*loss embedding_cosine"):
        load_study(write(space), overrides={"distillation.embeddings": teacher})


@pytest.mark.parametrize("fields", [{"data.held_out": "0.3"}, {"training.stop_below": "0.6,0.7"}])
def test_what_the_tuning_sets_is_set_by_nothing_else(write, fields):
    (name,) = fields
    with pytest.raises(ConfigError, match=rf"{name} .*: is set by the tuning .*leave it out"):
        load_study(write(), overrides=fields)


def test_trials_with_fewer_validations_than_asked_for_have_fewer_thresholds():
    history = [Trial(k, {}, [0.1 * k] * 3) for k in range(5)]
    assert thresholds(history, 10) == pytest.approx([0.2, 0.2])
    assert thresholds([*history, Trial(5, {}, [0.9])], 10) == []


def test_other_pairs_have_another_file(write, tmp_path, many_people):
    """A file of the same name may hold people on whom a trial trains."""

    def path(study, **given):
        return make_plan(load_study(study, **given), tmp_path / "out").tunings[0].held_out.path

    first = path(write())
    assert path(write(more="seed: 3")) == first
    text = Path(write()).read_text()
    (tmp_path / "other.yaml").write_text(text.replace("held_out: 0.5", "held_out: 0.55"))
    other = path(str(tmp_path / "other.yaml"))
    assert other != first and other.stem.split("_")[:3] == first.stem.split("_")[:3], "the same number of pairs"


def test_without_optuna_the_first_second_says_what_to_install(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert main(["compare", write(), "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'facebones[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Each value fits the recipe's other one; together they need 160 images, and the trials have 88.
TOGETHER = "training.batch_size: [16, 80]\n    training.accumulation_steps: [1, 2]"
# The greatest lower norm is above the smallest upper one.
NORMS = "head.lower_norm: [10, 120]\n    head.upper_norm: [110, 130]"


def finish(run):
    """Leave what a trial leaves that has ended."""
    run.folder.write_recipe(run.recipe)
    run.folder.metrics.write_text(json.dumps({"kind": "validation", "step": run.steps, "accuracy": 0.7}) + "\n")
    run.folder.result.write_text(json.dumps({"final": []}))


def test_a_drawn_trial_that_cannot_begin_has_failed_and_the_next_one_is_drawn(write, tmp_path):
    study, failed = load_study(write(TOGETHER, trials=4)), {}
    tuning = make_plan(study, tmp_path / "out").tunings[0]
    for number in range(4):
        run = tuning.next_run(failed)
        assert run.name == f"{SMALL}_trial{number}"
        if run.steps:
            finish(run)
        else:
            run.folder.path.mkdir()
            run.recipe_file.write_text(dump_recipe(run.recipe))
            run.folder.write_error(ConfigError("training.batch_size 80 x accumulation_steps 2 is more"), 0)
            failed[run.name] = "training.batch_size 80 x accumulation_steps 2 is more"
            refused = number
    assert len(failed) == 1 and tuning.next_run({}) is None and tuning.complete
    rows = make_plan(study, tmp_path / "out").tunings[0].to_json({})["trials"]
    assert [row["state"] == "failed" for row in rows] == [number == refused for number in range(4)]
    assert rows[refused]["error"] == failed[f"{SMALL}_trial{refused}"]
    assert rows[refused]["fields"] == {"training.batch_size": "80", "training.accumulation_steps": "2"}
    assert plan_rows(make_plan(study, tmp_path / "out"))[refused]["steps"] == 0, "also a dry run shows it"


@pytest.mark.parametrize(
    ("number", "error", "has_failed"),
    [
        (1, ConfigError("head.x: no"), True),
        (1, UntrainedError("the gradient scaler skipped all 10 steps"), True),
        (1, RunError("checkpoints/last.pt: cannot be written: No space left on device"), False),
        (1, MemoryError("out of memory"), False),
        (1, DataError("faces: no such folder"), False),
        (0, ConfigError("head.x: no"), False),
        (0, UntrainedError("the gradient scaler skipped all 10 steps"), False),
        (0, DivergedError("step 1: loss nan"), True),
    ],
)
def test_what_ends_a_trial_for_good_and_what_is_tried_again(write, tmp_path, number, error, has_failed):
    tuning = make_plan(load_study(write()), tmp_path / "out").tunings[0]
    for _ in range(number):
        finish(tuning.next_run({}))
    run = tuning.next_run({})
    run.folder.path.mkdir(parents=True)
    run.recipe_file.write_text(dump_recipe(run.recipe))
    if not isinstance(error, ConfigError):
        run.folder.write_recipe(run.recipe)
    run.folder.write_error(error, 0)
    again = tuning.next_run({})
    assert again.name == f"{SMALL}_trial{number + has_failed}"
    assert (tuning.next_run({run.name}) is None) == (not has_failed)
    content = tuning.to_json({run.name: str(error)})
    assert (content["trials"][number]["state"] == "failed") == has_failed
    record = {"runs": [], "evaluation": [], "tuning": {"backbones": [content]}, "file": "study.json"}
    if has_failed:
        return raise_failures(record)
    with pytest.raises(RunError, match=f"failed: {run.name}; "):
        raise_failures(record)


def test_print_has_no_lines_for_trials_that_depend_on_each_other(write, tmp_path):
    from facebones.study.launchers.options import read_launcher

    with pytest.raises(ConfigError, match="trials depend on each other"):
        launch(load_study(write()), tmp_path / "out", "print", read_launcher("print", {}), ["compare"])


# --------------------------------------------------------------------------------------------------- whole studies


@pytest.mark.slow
def test_a_tuned_study_trains_reports_and_continues_as_it_began(write, tmp_path):
    path, out = write(trials=3), tmp_path / "out"
    content = compare(path, out, device="cpu")
    (tuned,) = content["tuning"]["backbones"]
    assert content["tuning"]["people"] == 22 and content["tuning"]["pairs"] == 80
    assert [trial["state"] for trial in tuned["trials"]] == ["done"] * 3
    accuracies = [trial["accuracy"] for trial in tuned["trials"]]
    assert accuracies[tuned["chosen"]] == max(accuracies)
    chosen = tuned["trials"][tuned["chosen"]]["fields"]
    runs = make_plan(load_study(path), out).runs
    assert [run.levels["tuning"] for run in runs] == ["default", "tuned"]
    base = load_study(path).resolved_recipe()
    assert runs[1].recipe.optimizer == with_fields(base, chosen).optimizer and runs[1].recipe.data.held_out == 0
    results = json.loads((out / "report" / "results.json").read_bytes())
    assert [row["levels"]["tuning"] for row in results["runs"]] == ["default", "tuned"]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")}
    assert len(before) == 5
    again = compare(path, out, device="cpu")
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")}, "nothing is trained twice"
    assert again["tuning"] == content["tuning"]
    # A trial that is lost is trained again, to the same numbers.
    shutil.rmtree(runs[1].folder.path)
    shutil.rmtree(out / "tuning" / SMALL / "trial2")
    (out / "tuning" / SMALL / "trial2.yaml").unlink()
    (out / "tuning" / SMALL / "trial1.yaml").unlink()  # the folder of the run says the same
    held_out = make_plan(load_study(path), out).tunings[0].held_out.path
    held_out.write_bytes(held_out.read_bytes()[:1000])
    assert {row["state"] for row in preview(path, out) if "trial" in row["name"]} == {"done", "to do"}
    moved = out.rename(tmp_path / "moved")
    assert compare(path, moved, device="cpu")["tuning"] == content["tuning"]
    for change, message in (
        ({"space": "optimizer.learning_rate: {low: 0.0059, high: 0.0061}"}, "which the study's space does not have"),
        ({"more": "validations: 2"}, "give `tune`, the data, the epochs and the batch size as they were"),
        ({"trials": 4}, "its fields were chosen by other trials"),
        ({"seeds": "1"}, "give the study as it was"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_plan(load_study(write(**change)), moved)
    (moved / "tuning" / SMALL / "trial0" / "result.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"trial0/result.json: damaged; restore it, or remove the folder"):
        make_plan(load_study(write(trials=3)), moved)


@pytest.mark.slow
def test_a_trial_that_is_killed_is_an_error_and_the_next_call_goes_on(write, tmp_path, monkeypatch):
    """Not a trial that has been tried: those after it depend on what it shows."""
    path, out = write(trials=3), tmp_path / "out"
    original = local.start_child

    def start_child(run, *others):
        child = original(run, *others)
        if run.name.endswith("trial1"):
            while not run.folder.has_last:
                time.sleep(0.01)
            os.kill(child.process.pid, signal.SIGKILL)
        return child

    monkeypatch.setattr(local, "start_child", start_child)
    content = compare(path, out, device="cpu")
    assert [run["state"] for run in content["runs"]] == ["done"], "the other level is trained"
    with pytest.raises(RunError, match=f"failed: {SMALL}_trial1; .*the same command tries again"):
        raise_failures(content)
    (tuned,) = content["tuning"]["backbones"]
    assert [trial["state"] for trial in tuned["trials"]] == ["done", "unfinished", "to do"] and tuned["chosen"] is None
    monkeypatch.undo()
    content = compare(path, out.rename(tmp_path / "moved"), device="cpu")
    raise_failures(content)
    assert [run["levels"]["tuning"] for run in content["runs"]] == ["default", "tuned"]


@pytest.mark.slow
def test_a_trial_that_diverges_is_not_chosen_and_trials_that_all_fail_are_an_error(write, tmp_path):
    space = "optimizer.learning_rate: [0.006, 1.0e+25]"
    content = compare(write(space, trials=2), tmp_path / "out", device="cpu")
    trials = content["tuning"]["backbones"][0]["trials"]
    assert [trial["state"] for trial in trials] == ["done", "failed"] and "loss" in trials[1]["error"]
    assert content["tuning"]["backbones"][0]["chosen"] == 0
    raise_failures(content)
    default, tuned = content["runs"]
    assert tuned["folder"] == default["folder"] and tuned["state"] == "done", "the same recipe is trained once"
    first, second = content["summary"]
    assert first["metrics"][0]["values"] == second["metrics"][0]["values"] and len(first["metrics"][0]["values"]) == 1
    space = "optimizer.learning_rate: [1.0e+25, 1.0e+26]"
    study = load_study(write(space, trials=2), overrides={"optimizer.learning_rate": "1e25"})
    content = compare(study, tmp_path / "vain", device="cpu")
    with pytest.raises(FaceBonesError, match=f"{SMALL}_default, all trials of {SMALL}"):
        raise_failures(content)
    assert [run["name"] for run in content["runs"]] == [f"{SMALL}_default"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "head", "message"),
    [(TOGETHER, "arcface", "is more than the 88 images"), (NORMS, "magface", "120 is not below")],
)
def test_a_study_goes_on_after_a_trial_that_cannot_begin_and_its_table_says_why(write, tmp_path, space, head, message):
    content = compare(load_study(write(space, trials=4), overrides={"head.name": head}), tmp_path / "out", device="cpu")
    raise_failures(content)
    (tuned,) = content["tuning"]["backbones"]
    states = [trial["state"] for trial in tuned["trials"]]
    assert sorted(states) == ["done"] * 3 + ["failed"] and tuned["chosen"] is not None
    assert message in tuned["trials"][states.index("failed")]["error"]
    assert message in (tmp_path / "out" / "report" / "tables.md").read_text()
