"""`seeds: auto`: the spread between seeds decides whether there is another round, and only what is on the disk."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fault_commands import NETWORK

from facebones.cli.main import main
from facebones.data.pair_bins import write_pairs
from facebones.errors import ConfigError, UnknownNameError
from facebones.recipe import dump_recipe
from facebones.reporting.answer import answer
from facebones.reporting.load import load_results
from facebones.reporting.tables import report_tables
from facebones.statistics.seed_power import detectable_difference, seed_noise, seed_power
from facebones.study import compare as module
from facebones.study.compare import compare, preview
from facebones.study.launch import watch
from facebones.study.plan import make_plan
from facebones.study.planned_run import DONE
from facebones.study.seed_rounds import decide, seeds_so_far
from facebones.study.study import AutoSeeds, load_study

SMALL, LARGE = "shufflefacenet_0_5", "shufflefacenet_1_0"
STUDY = """
recipe: demo
overrides:
  backbone.embedding_size: 16
  data.workers: 0
  training.batch_size: 14
  training.epochs: 1
  validation.sets: tiny
  log.every: 1
backbones: [{backbones}]
seeds: {seeds}
auto_seeds: {{{auto}}}
data: {data}
profile: false
"""
BOTH = f"{SMALL}, {LARGE}"
# Two levels whose first three seeds vary by 0.8 points; later ones hardly: each seed makes the spread smaller.
VALUES = {SMALL: [0.900, 0.908, 0.916], LARGE: [0.920, 0.928, 0.936]}


@pytest.fixture
def write(tmp_path, small_data):
    def write_study(auto="difference: 2, most: 6", seeds="auto", backbones=BOTH):
        path = tmp_path / "mine.yaml"
        path.write_text(STUDY.format(backbones=backbones, seeds=seeds, auto=auto, data=small_data))
        return str(path)

    return write_study


def accuracy(run):
    values = VALUES[run.backbone]
    return values[run.seed] if run.seed < len(values) else float(np.mean(values))


def finish(run, value=None, rate=100.0):
    """What a finished training leaves that a decision reads."""
    run.folder.path.mkdir(parents=True, exist_ok=True)
    run.folder.config.write_text(dump_recipe(run.recipe))
    final = [{"set": "tiny", "accuracy": accuracy(run) if value is None else value}]
    run.folder.result.write_text(json.dumps({"final": final, "steps": run.steps}))
    line = {"kind": "train", "step": run.steps, "loss": 1.0, "images_per_second": rate}
    run.folder.metrics.write_text(json.dumps(line) + "\n")


@pytest.fixture
def faked(monkeypatch):
    """Trainings that end at once, the first so many of them; nothing is measured. Returns the names, in order."""
    trained = []

    def fake(limit=None, values=None):
        def train_all(leases, note, **_):
            for run in leases.runs:
                if run.state != DONE:
                    if limit is not None and len(trained) >= limit:
                        raise KeyboardInterrupt
                    finish(run, values and values(run))
                    trained.append(run.name)
                    note({})
            return {}

        monkeypatch.setattr(module, "train_all", train_all)
        monkeypatch.setattr(module, "evaluate_all", lambda *_: [])
        monkeypatch.setattr(module, "write_report", lambda *_, **__: {"answer": []})
        return trained

    return fake


def study_json(output):
    return json.loads((output / "study.json").read_text())


# ------------------------------------------------------------------------------------------------------- decisions


def test_the_first_three_seeds_decide_by_their_spread(write, tmp_path):
    plan = make_plan(load_study(write()), tmp_path / "out")
    assert "not decided before shufflefacenet_0_5_seed0" in decide(plan, 3).why and not decide(plan, 3).more
    for run in plan.runs:
        if run.seed < 3:
            finish(run)
    noise = seed_noise([*VALUES.values()], 0.8)
    found = decide(plan, 3)
    assert found.deviation == pytest.approx(0.8) and found.upper == pytest.approx(100 * noise.upper)
    assert found.power == pytest.approx(seed_power(2, 100 * noise.upper, 3)) and found.power < 0.8
    assert found.detectable == pytest.approx(detectable_difference(100 * noise.upper, 3, power=0.8))
    assert seed_power(found.detectable, found.upper, 3) == pytest.approx(0.8)
    assert found.more and set(found.levels) == {SMALL, LARGE} and found.set == "tiny"
    assert found.why.startswith(
        "3 seeds: tiny accuracy varies by 0.80 points between seeds of shufflefacenet_0_5 and shufflefacenet_1_0, or up"
        " to 1.25; then a difference of 2 points would be found with "
    )
    assert found.verdict == "one seed more of up to 6; it would take about 8" and found.why.endswith(found.verdict)
    assert len(seeds_so_far(plan).study.seeds) == 4


@pytest.mark.parametrize(
    ("auto", "ending"),
    [
        ("difference: 4, most: 6", r"; that is enough (80 %)"),
        ("difference: 2, most: 3", "not enough, but 3 seeds are the most (auto_seeds.most); it would take about 8"),
        ("difference: 2, hours: 0.0005", "one seed more would make 0.0 hours of training (auto_seeds.hours)"),
        ("difference: 0.001, most: 3", "it would take more than 1,000"),
    ],
)
def test_no_seed_is_added_where_the_spread_or_the_budget_says_so(write, tmp_path, auto, ending):
    plan = make_plan(load_study(write(auto)), tmp_path / "out")
    for run in plan.runs:
        finish(run)
    found = decide(plan, 3)
    assert not found.more and found.why.endswith(ending), found.why


def test_hours_that_runs_do_not_tell_are_no_budget(write, tmp_path):
    plan = make_plan(load_study(write("difference: 2, hours: 100")), tmp_path / "out")
    for run in plan.runs:
        finish(run, rate=None)
    assert decide(plan, 3).why.endswith("runs do not tell their hours, which are limited (auto_seeds.hours)")


@pytest.mark.parametrize("difference", [0.0, 0.05])
def test_whether_the_levels_differ_decides_nothing(write, tmp_path, difference):
    """A rule that stops at significance finds differences among equals; ours sees each level's spread only."""
    plan = make_plan(load_study(write()), tmp_path / "out")
    for run in plan.runs:
        finish(run, VALUES[SMALL][run.seed % 3] + difference * (run.backbone == LARGE))
    found = decide(plan, 3)
    assert found.more and found.power == pytest.approx(
        seed_power(2, 100 * seed_noise([*VALUES.values()], 0.8).upper, 3)
    )


def test_the_noisiest_two_of_three_levels_decide(write, tmp_path):
    plan = make_plan(load_study(write(backbones=f"{BOTH}, shufflefacenet_1_5")), tmp_path / "out")
    for run in plan.runs:
        finish(run, 0.9 + 0.001 * run.seed * {SMALL: 1, LARGE: 5}.get(run.backbone, 4))
    assert decide(plan, 3).levels == (LARGE, "shufflefacenet_1_5")


def test_seeds_that_do_not_vary_at_all_show_no_spread(write, tmp_path):
    """Networks that have learnt nothing all have 50 %, which is no reason to trust three seeds."""
    plan = make_plan(load_study(write()), tmp_path / "out")
    for run in plan.runs:
        finish(run, 0.5)
    found = decide(plan, 3)
    assert not found.more and found.power is None and "is the same for all seeds" in found.why


def test_a_run_without_accuracy_leaves_it_undecided(write, tmp_path):
    plan = make_plan(load_study(write()), tmp_path / "out")
    for run in plan.runs:
        finish(run)
    plan.runs[0].folder.result.write_text('{"final": [{"set": "tiny", "accuracy": null}]}')
    assert not decide(plan, 3).more and "no accuracy on tiny" in decide(plan, 3).why


# ---------------------------------------------------------------------------------------------------- whole studies


def test_seeds_are_added_for_all_levels_until_they_are_enough(write, tmp_path, faked, capsys):
    trained = faked()
    content = compare(write("difference: 2, most: 9"), tmp_path / "out", device="cpu")
    rounds = [one["seeds"] for one in content["auto_seeds"]]
    assert rounds == [3, 4, 5], [one["why"] for one in content["auto_seeds"]]
    assert [one["more"] for one in content["auto_seeds"]] == [True, True, False]
    assert trained[6:] == [f"{name}_seed{seed}" for seed in (3, 4) for name in (SMALL, LARGE)]
    assert content["study"]["seeds"] == [0, 1, 2, 3, 4] and len(content["runs"]) == 10
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seeds: ")]
    assert said == [f"seeds: {one['why']}" for one in content["auto_seeds"]]
    results = load_results(tmp_path / "out")
    (table,) = [one for one in report_tables(results) if one.key == "added_seeds"]
    assert [row[0].value for row in table.rows] == [3, 4, 5]
    assert [row[4].value for row in table.rows] == [one["detectable"] for one in content["auto_seeds"]]
    last = "5 seeds each would find a difference of 2 points in tiny accuracy with "
    assert any(one.startswith(last) and "so no more were added" in one for one in answer(results).sentences)


@pytest.mark.parametrize("killed_after", [2, 6, 7, 9])
def test_a_study_that_was_killed_decides_as_one_that_was_not(write, tmp_path, faked, killed_after, capsys):
    """In the first round, between two rounds, within the second and within the third."""
    auto, whole, killed = "difference: 2, most: 9", tmp_path / "whole", tmp_path / "killed"
    faked()
    expected = compare(write(auto), whole, device="cpu")
    trained = faked(limit=len(expected["runs"]) + killed_after)
    with pytest.raises(KeyboardInterrupt):
        compare(write(auto), killed, device="cpu")
    before = len(trained)
    assert sum(run["state"] == DONE for run in study_json(killed)["runs"]) == killed_after
    faked()
    capsys.readouterr()
    content = compare(write(auto), killed, device="cpu")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seeds: ")]
    assert said == [f"seeds: {one['why']}" for one in expected["auto_seeds"]], "earlier decisions are said again"
    assert content["auto_seeds"] == expected["auto_seeds"]
    assert [run["name"] for run in content["runs"]] == [run["name"] for run in expected["runs"]]
    assert len(trained) - before == len(expected["runs"]) - killed_after, "nothing is trained twice"


def test_what_has_begun_is_kept_although_less_would_do_now(write, tmp_path, faked):
    trained = faked()
    compare(write("difference: 2, most: 9"), tmp_path / "out", device="cpu")
    content = compare(write("difference: 9, most: 9"), tmp_path / "out", device="cpu")
    assert content["study"]["seeds"] == [0, 1, 2, 3, 4] and len(trained) == 10


def test_a_run_that_fails_ends_the_rounds_and_the_next_call_goes_on(write, tmp_path, faked, monkeypatch):
    trained = faked()
    whole = module.train_all

    def failing(leases, note, **options):
        last = leases.runs[-1]
        leases.runs = leases.runs[:-1]
        return whole(leases, note, **options) | {last.name: "no memory"}

    monkeypatch.setattr(module, "train_all", failing)
    monkeypatch.setattr(module, "unfinished", lambda _: "")
    content = compare(write("difference: 2"), tmp_path / "out", device="cpu")
    assert "not decided before shufflefacenet_1_0_seed2" in content["auto_seeds"][-1]["why"] and len(trained) == 5
    faked()
    assert len(compare(write("difference: 2"), tmp_path / "out", device="cpu")["study"]["seeds"]) == 5


def test_a_dry_run_says_the_least_and_the_most(write, tmp_path, capsys):
    path = write("difference: 2, most: 6")
    assert len(preview(load_study(path), tmp_path / "out")) == 6
    said = capsys.readouterr().err
    assert re.search(r"note: seeds: auto: at least 3 seeds, 6 trainings, \d+ images, \d+s left; at most 6 seeds", said)
    for run in make_plan(load_study(path), tmp_path / "out").runs:
        if run.seed < 3:
            finish(run)
    assert [row["name"][-5:] for row in preview(load_study(path), tmp_path / "out")] == [
        f"seed{n}" for n in range(4)
    ] * 2
    said = capsys.readouterr().err
    assert "at least 4 seeds, 8 trainings" in said and "unknown" not in said


def test_tuned_levels_are_waited_for(write, tmp_path, many_people, small_data, capsys):
    path = Path(write(backbones=SMALL))
    tune = "tune: {space: {optimizer.learning_rate: [0.006, 0.06]}, trials: 2, held_out: 0.5, pairs: 80}\n"
    path.write_text(path.read_text().replace(str(small_data), str(many_people)) + tune)
    plan = make_plan(load_study(str(path)), tmp_path / "out")
    for run in plan.runs:
        finish(run)
    assert len(preview(load_study(str(path)), tmp_path / "out")) == 2 + 6 + 6, "trials, and both levels of all begun"
    assert "at least 6 seeds, 12 trainings" in capsys.readouterr().err
    assert not decide(plan, 3).more and "is done" in decide(plan, 3).why


def test_watch_follows_from_round_to_round(write, tmp_path, capsys):
    study, output, waits = load_study(write("difference: 2, most: 9")), tmp_path / "out", []

    def train_more(_):
        waits.append(len(seeds_so_far(make_plan(study, output)).study.seeds))
        for run in seeds_so_far(make_plan(study, output)).runs:
            finish(run)

    watch(study, output, train_more)
    assert waits == [3, 4, 5] and "all trainings have ended" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- what is asked


def test_the_file_and_the_command_line_say_when_it_is_enough(write):
    study = load_study(write("difference: 0.5, power: 0.9, confidence: 0.95, set: tiny, most: 4, hours: 2"))
    expected = AutoSeeds(difference=0.5, power=0.9, confidence=0.95, set="tiny", most=4, hours=2)
    assert study.auto_seeds == expected and study.seeds == [0, 1, 2, 3]
    assert load_study(write("most: 5"), seeds="auto:0.25").auto_seeds == AutoSeeds(difference=0.25, most=5)
    plain = load_study(write("most: 5"), seeds="0,1")
    assert plain.auto_seeds is None and plain.seeds == [0, 1] and "auto_seeds" not in plain.to_json()
    assert load_study("demo", seeds="auto").auto_seeds == AutoSeeds()


@pytest.mark.parametrize(
    ("auto", "seeds", "message"),
    [
        ("differenc: 1", "auto", "auto_seeds.*unknown key 'differenc'; did you mean 'difference'?"),
        ("difference: 0", "auto", "auto_seeds.difference: .* out of range"),
        ("most: 2", "auto", "auto_seeds.most: 2 is out of range"),
        ("power: 1", "[0]", "auto_seeds.power: 1.* is out of range"),
        ("", "auto:much", "seeds: auto:POINTS: 'much' is not a finite number"),
        ("", "automatic", "seeds: 'automatic' is not a whole number"),
    ],
)
def test_what_cannot_be_asked_is_one_line(write, auto, seeds, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        load_study(write(auto, seeds))


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"auto": "set: lfw"}, "auto_seeds.set: lfw is no validation set of the study; name one of tiny"),
        ({"backbones": SMALL}, "needs two backbones or levels to compare"),
    ],
)
def test_what_could_not_be_decided_is_refused_before_any_training(write, tmp_path, study, message):
    with pytest.raises(ConfigError, match=message):
        compare(write(**study), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_without_a_validation_set_nothing_could_be_decided(write, tmp_path):
    study = load_study(write(), overrides={"validation.sets": ""})
    with pytest.raises(ConfigError, match="needs a set that the trainings validate on"):
        compare(replace(study), tmp_path / "out", device="cpu")


@pytest.mark.parametrize("words", [["--worker"], ["--only", f"{SMALL}_seed0"], ["--launcher", "print"]])
def test_processes_that_do_not_see_the_end_are_refused(write, tmp_path, capsys, words):
    assert main(["compare", write(), "--output", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert f"{' '.join(words[:1])}" in said and "does not go with seeds: auto" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------ real trainings


@pytest.mark.slow
def test_a_study_with_auto_seeds_trains_and_reports(write, tmp_path):
    """Of a network that trains in a moment, on pairs of noise that any network tells to some degree."""
    (tmp_path / "tiny.py").write_text(NETWORK)
    random, pairs = np.random.default_rng(0), []
    for number in range(100):
        one, other = random.integers(0, 256, (2, 112, 112, 3))
        pairs += [one, 0.2 * one + 0.8 * other if number % 2 else other]
    images = [cv2.imencode(".png", image.astype(np.uint8))[1].tobytes() for image in pairs]
    write_pairs(tmp_path / "noise.bin", images, [number % 2 == 1 for number in range(100)])
    path = Path(write("difference: 0.01, most: 4", backbones="disturbed_net"))
    path.write_text(path.read_text() + "import: [tiny.py]\nvary: {optimizer.learning_rate: [0.01, 0.1]}\n")
    study = load_study(str(path), overrides={"validation.sets": str(tmp_path / "noise.bin")})
    content = compare(study, tmp_path / "out", jobs=2, device="cpu")
    assert [one["more"] for one in content["auto_seeds"]] == [True, False], content["auto_seeds"]
    assert all(run["state"] == DONE for run in content["runs"]) and len(content["runs"]) == 8
    values = [[run["final"][0]["accuracy"] for run in content["runs"][part : part + 4]] for part in (0, 4)]
    assert content["auto_seeds"][-1]["deviation"] == pytest.approx(100 * seed_noise(values).deviation)
    results = json.loads((tmp_path / "out" / "report" / "results.json").read_text())
    assert results["metrics"][0]["seeds"][0]["seeds"] == [4, 4]
    assert any(sentence.startswith("Between seeds of") for sentence in content["answer"])
    assert any(sentence.startswith("4 seeds each would find a difference") for sentence in content["answer"])
    assert 'id="table-added_seeds"' in (tmp_path / "out" / "report" / "report.html").read_text()
