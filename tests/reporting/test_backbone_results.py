"""What results say of each backbone over its seeds: spreads, tests between backbones, ranking, the overview."""

import json
import sys
import types

import pytest
from scipy.stats import ttest_ind
from synthetic_study import (
    LARGE,
    MIDDLE,
    PARAMETERS,
    SMALL,
    make_run,
    make_study,
    metric_json,
    write_ijb,
    write_pairs,
)

from facebones.errors import UnknownNameError
from facebones.reporting.load import load_results
from facebones.reporting.report import results_json
from facebones.reporting.results import pareto_front

PAIR = f"{SMALL}_seed0", f"{MIDDLE}_seed0"


@pytest.fixture
def study(tmp_path):
    """Results of a study with the given options."""

    def load(**options):
        return load_results(make_study(tmp_path / "s", **options))

    return load


@pytest.fixture
def evaluated(tmp_path):
    """Results of an evaluation of a pair set and of IJBC, of models without runs."""

    def load(values, p=0.001, **options):
        write_pairs(tmp_path / "e", {"lfw": [metric_json("accuracy", values, p)]})
        return load_results(write_ijb(tmp_path / "e", values, p, **options))

    return load


def test_a_metric_that_is_not_there_is_answered_with_those_that_are(study):
    results = study()
    with pytest.raises(UnknownNameError, match=r"unknown metric 'lfv accuracy'; did you mean 'lfw accuracy'\?"):
        results.metric("lfv", "accuracy")
    with pytest.raises(UnknownNameError, match=r"unknown metric 'x y'; known: .*lfw EER"):
        results.metric("x", "y")
    assert results.metric("IJBC", "tar", far=1e-4).title == "IJBC N1D1F1 1:1 TAR at FAR 0.0001"
    assert results.metric("IJBC", "tar", far=1e-6).reason == "too few pairs"


# ----------------------------------------------------------------------------------------------------- spreads


def test_the_spread_over_seeds_is_the_one_worked_by_hand(study):
    results = study(seeds=(0, 1, 2), accuracy=lambda place, seed: 0.90 + 0.02 * seed - 0.1 * place)
    spread = results.spread(results.metric("lfw", "accuracy"), SMALL)
    assert spread.mean == pytest.approx(0.92) and spread.deviation == pytest.approx(0.02)
    # Student's t of 2 degrees of freedom at 95 % is 4.30265; times 0.02 / sqrt(3)
    assert (spread.low, spread.high) == (pytest.approx(0.92 - 0.049683, abs=1e-6), pytest.approx(0.969683, abs=1e-6))
    assert list(spread.values) == [f"{SMALL}_seed{seed}" for seed in (0, 1, 2)]


def test_one_seed_has_the_interval_of_its_evaluation(study):
    results = study(seeds=(0,))
    spread = results.spread(results.metric("lfw", "accuracy"), SMALL)
    assert (spread.mean, spread.deviation, spread.low, spread.high) == (0.95, None, 0.94, 0.96)


def test_a_seed_that_failed_does_not_count_and_a_backbone_without_seeds_has_no_spread(study):
    failed = [f"{SMALL}_seed0", f"{MIDDLE}_seed0", f"{MIDDLE}_seed1"]
    results = study(backbones=(SMALL, MIDDLE, LARGE), failed=failed)
    metric = results.metric("lfw", "accuracy")
    assert results.spread(metric, SMALL).mean == pytest.approx(0.951) and results.spread(metric, MIDDLE) is None
    assert results.ranking(metric) == [SMALL, LARGE]
    assert [(test.first, test.second) for test in results.tests(metric)] == [(SMALL, LARGE)]


# ------------------------------------------------------------------------------------------------------- tests


def test_backbones_are_compared_by_their_means_over_seeds_and_pairs(study):
    results = study(accuracy=lambda place, seed: (0.95, 0.952, 0.93, 0.931)[2 * place + seed])
    (test,) = results.tests(results.metric("lfw", "accuracy"))
    assert (test.first, test.second) == (SMALL, MIDDLE)
    # Runs of one backbone differ over pairs as much as those of two: the set favours none, Student's t remains.
    expected = ttest_ind([0.95, 0.952], [0.93, 0.931])
    assert test.p_value == pytest.approx(expected.pvalue) and test.significant and test.from_seeds > 0.999
    assert (test.difference, test.low) == pytest.approx((0.0205, expected.confidence_interval().low))
    assert results.not_different_from(results.metric("lfw", "accuracy"), SMALL) == []


def test_what_the_set_cannot_tell_is_not_significant(study):
    results = study(p={PAIR: 0.2})
    metric = results.metric("lfw", "accuracy")
    (test,) = results.tests(metric)
    assert test.p_value > 0.5 and test.low < 0 < test.high and test.from_seeds < 0.1
    assert results.not_different_from(metric, SMALL) == [MIDDLE] and results.not_different_from(metric, MIDDLE) == [
        SMALL
    ]


def test_seeds_that_disagree_make_no_difference(study):
    results = study(accuracy=lambda place, seed: (0.95, 0.90, 0.92, 0.91)[2 * place + seed])
    (test,) = results.tests(results.metric("lfw", "accuracy"))
    assert test.p_value > 0.5 and not test.significant and test.difference == pytest.approx(0.01)


def test_the_bound_itself_is_significant_as_in_the_evaluations(evaluated):
    results = evaluated({"a": 0.9, "b": 0.8}, p=0.05)
    assert results.tests(results.metric("lfw", "accuracy"))[0].significant


def test_tests_are_in_the_order_of_the_backbones_whatever_the_order_of_the_evaluation(tmp_path):
    for seed, name in enumerate(("a", "b", "c")):
        make_run(tmp_path / name, seed=seed, optimizer__learning_rate=0.1 + seed)
    write_pairs(tmp_path / "e", {"lfw": [metric_json("accuracy", {"c": 0.7, "b": 0.8, "a": 0.9})]})
    results = load_results(*(tmp_path / name for name in "abce"))
    tests = results.tests(results.metric("lfw", "accuracy"))
    names = [f"{SMALL} (learning_rate {rate})" for rate in (0.1, 1.1, 2.1)]
    assert [(test.first, test.second) for test in tests] == [
        (names[0], names[1]),
        (names[0], names[2]),
        (names[1], names[2]),
    ]
    assert [test.difference for test in tests] == pytest.approx([0.1, 0.2, 0.1])


# ----------------------------------------------------------------------------------------------------- ranking


def test_a_low_error_rate_ranks_first(study):
    results = study()
    assert results.ranking(results.metric("lfw", "accuracy")) == [SMALL, MIDDLE]
    eer = results.metric("lfw", "eer")
    assert not eer.higher_is_better and results.spread(eer, MIDDLE).mean > results.spread(eer, SMALL).mean
    assert results.ranking(eer) == [SMALL, MIDDLE]


@pytest.mark.parametrize("far", [1e-5, 1e-3, None])
def test_the_evaluation_says_which_metrics_are_the_main_ones(evaluated, far):
    results = evaluated({"a": 0.9, "b": 0.8}, main=far)
    found = [(metric.set, metric.name, dict(metric.at)) for metric in results.main_metrics()]
    rates = [("IJBC", "tar", {"far": far})] if far else []
    assert found == [("lfw", "accuracy", {}), *rates, ("IJBC", "rank", {"rank": 1})]


def test_the_accuracy_of_training_is_a_main_metric_only_where_nothing_was_evaluated(tmp_path):
    make_run(tmp_path / "r", sets=("lfw", "agedb_30"), accuracy=0.93)
    write_pairs(tmp_path / "e", {"lfw": [metric_json("accuracy", {"r": 0.9})]})
    results = load_results(tmp_path / "r", tmp_path / "e")
    assert [(metric.title, metric.values) for metric in results.main_metrics()] == [
        ("lfw accuracy", {"r": 0.9}),
        ("agedb_30 accuracy", {"r": 0.93}),
    ]
    assert results.validated_sets == ["lfw", "agedb_30"] and results.tests(results.main_metrics()[1]) == []


def test_the_best_accuracy_is_that_of_any_step_and_zero_is_none(tmp_path):
    run = make_run(tmp_path / "r", accuracy=0.9, best=0.97)
    assert load_results(run).runs[0].best_accuracy("lfw") == 0.97
    assert load_results(run).runs[0].best_accuracy("cfp_fp") is None
    result = json.loads((run / "result.json").read_text())
    result["final"][0]["accuracy"], result["best"]["sets"]["lfw"] = None, 0.0
    (run / "result.json").write_text(json.dumps(result))
    (run / "metrics.jsonl").write_text("")
    found = load_results(run).runs[0]
    assert found.best_accuracy("lfw") is None and found.final_accuracy("lfw") is None


def test_what_is_dearer_and_not_better_is_not_on_the_front():
    costs, values = {"a": 1, "b": 2, "c": 3, "d": 3, "e": 1}, {"a": 0.8, "b": 0.8, "c": 0.9, "d": 0.95, "e": 0.7}
    assert pareto_front(costs, values) == ["a", "d"]


# ---------------------------------------------------------------------------------------------------- overview


def test_the_numbers_have_a_row_a_backbone_with_costs_metrics_and_seeds(study):
    results = study(failed=[f"{MIDDLE}_seed1"])
    small, middle = results.numbers()
    assert (small["backbone"], small["parameters"], small["latency_ms"]) == (SMALL, PARAMETERS[SMALL], 1.0)
    assert small["lfw accuracy"] == pytest.approx(0.9505)
    assert small["lfw accuracy deviation"] == pytest.approx(0.001 / 2**0.5)
    assert (middle["lfw accuracy"], middle["lfw accuracy deviation"], middle["lfw accuracy low"]) == (0.93, None, 0.92)
    assert (middle["seeds_done"], middle["seeds_planned"]) == (1, 2)
    assert list(small) == list(middle)


def test_the_table_is_a_data_frame_where_there_is_pandas(study, monkeypatch):
    results = study()
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert results.table() == results.numbers()

    fake = types.ModuleType("pandas")
    fake.DataFrame = lambda rows: ("frame", rows)
    monkeypatch.setitem(sys.modules, "pandas", fake)
    assert results.table() == ("frame", results.numbers())


# -------------------------------------------------------------------------------------------------------- JSON


def test_the_json_holds_all_but_lines_and_curves(study):
    results = study(failed=[f"{MIDDLE}_seed1"])
    content = json.loads(json.dumps(results_json(results), allow_nan=False))
    assert [run["state"] for run in content["runs"]] == ["done", "done", "done", "failed"]
    assert "lines" not in content["runs"][0] and content["runs"][0]["accuracy"]["lfw"] == {"final": 0.95, "best": 0.96}
    assert content["backbones"] == results.numbers()
    assert [(metric["name"], metric["at"]) for metric in content["metrics"] if metric["main"]] == [
        ("accuracy", {}),
        ("tar", {"far": 1e-4}),
        ("rank", {"rank": 1}),
    ]
    accuracy = content["metrics"][0]
    assert list(accuracy["backbones"]) == [SMALL, MIDDLE] and accuracy["backbones"][MIDDLE]["mean"] == 0.93
    (test,) = accuracy["tests"]
    assert test["first"] == SMALL and test["significant"] == (test["p_value"] <= 0.05)
    assert test["low"] < test["difference"] < test["high"] and 0 <= test["from_seeds"] <= 1
    tar = next(metric for metric in content["metrics"] if metric["set"] == "lfw" and metric["reason"])
    assert tar["reason"] == "too few pairs" and tar["values"] == {} and tar["backbones"] == {}
    assert content["notes"] == results.notes and content["command"] == results.command
    assert content["recipe"]["training"]["batch_size"] == 8 and content["conditions"]["threads"] == 1
    assert content["cmc"]["IJBC N1D1F1 1:N"][f"{SMALL}_seed0"] == [0.95, 1.0]


def test_numbers_that_json_lacks_become_none(tmp_path):
    run = make_run(tmp_path / "r")
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment))
    results = load_results(run)
    results.conditions["seconds"] = float("inf")
    content = results_json(results)
    assert content["conditions"]["seconds"] is None
    json.dumps(content, allow_nan=False)


def test_accuracies_of_training_are_among_the_metrics_of_the_json(tmp_path):
    (metric,) = results_json(load_results(make_run(tmp_path / "r")))["metrics"]
    assert (metric["set"], metric["main"], metric["values"]) == ("lfw", True, {"r": 0.95})
