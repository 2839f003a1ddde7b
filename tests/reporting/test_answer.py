"""The answer in words, from results made by hand: every sentence says what the metrics and tests say."""

import html
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from scipy import stats
from synthetic_study import LARGE, MIDDLE, SMALL, make_study

from facebones.reporting.answer import MOST_SENTENCES, _in_one, _joined, answer
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text
from facebones.reporting.report import results_json
from facebones.reporting.results import Cost, MetricResult, Results, Run
from facebones.reporting.seeds import bars_words
from facebones.reporting.tables import report_tables

MACS = {"tiny": 5e6, "small": 90e6, "large": 400e6}


def make_results(values, alike=(), macs=MACS, **changes):
    """Results of one metric; `values` are lists over seeds, and `alike` pairs that are not significantly different."""
    runs = [
        Run(name=f"{name}_seed{seed}", backbone=name, seed=seed, folder=Path(name))
        for name, seeds in values.items()
        for seed in range(len(seeds))
    ]
    by_run = {f"{name}_seed{seed}": value for name, seeds in values.items() for seed, value in enumerate(seeds)}
    comparisons = [
        {
            "first": first.name,
            "second": second.name,
            "difference": (difference := by_run[first.name] - by_run[second.name]),
            "interval": {"low": difference - half, "high": difference + half},
            "p_value": p_value,
            "adjusted": p_value,
        }
        for first, second in combinations(runs, 2)
        for p_value, half in [(0.5, 0.2) if {first.backbone, second.backbone} in map(set, alike) else (0.001, 0.0001)]
    ]
    metric = MetricResult(
        protocol="pairs",
        set="lfw",
        name="accuracy",
        main=True,
        chance=0.5,
        values=by_run,
        intervals={name: {"low": value - 0.01, "high": value + 0.01} for name, value in by_run.items()},
        comparisons=comparisons,
    )
    given = {
        "title": "study", "folders": [], "runs": runs, "metrics": [metric], "curves": {}, "cmc": {}, "conditions": {},
        "costs": {name: Cost(macs=macs.get(name)) for name in values}, "recipe": {}, "notes": [], "command": "",
    }  # fmt: skip
    return Results(**given | changes)


def test_the_best_of_all_comes_first_then_the_best_of_smaller_budgets():
    results = make_results({"tiny": [0.70, 0.71], "small": [0.80, 0.82], "large": [0.90, 0.91]})
    first, second, *_ = answer(results).sentences
    assert first.startswith("large, at 400 M MACs, is best by lfw accuracy: 90.50 % ± 0.71;")
    assert "small and tiny are significantly worse" in first
    assert second.startswith("Up to 150 M MACs, small is best by lfw accuracy: 81.00 % ± 1.41;")
    assert "tiny is significantly worse" in second
    assert "large" not in second


def test_what_no_test_tells_apart_is_said_and_the_cheapest_of_it_named():
    results = make_results({"tiny": [0.70], "small": [0.895], "large": [0.90]}, alike=[("small", "large")])
    sentences = answer(results).sentences
    assert "small is not significantly different; tiny is significantly worse." in sentences[0]
    assert any(
        "not significantly different from the best, large, is small: 90 M MACs instead of 400 M" in s for s in sentences
    )
    assert any("one seed" in sentence for sentence in sentences)


def test_a_cheap_winner_leaves_one_sentence_and_no_cheaper_one():
    sentences = answer(make_results({"tiny": [0.95, 0.95], "small": [0.8, 0.8], "large": [0.7, 0.7]})).sentences
    assert sentences == [
        "tiny, at 5 M MACs, is best by lfw accuracy: 95.00 % ± 0.00; small and large are significantly worse."
    ]


def test_a_difference_that_one_seed_contradicts_is_none():
    sentences = answer(make_results({"small": [0.80, 0.90], "large": [0.85, 0.92]})).sentences
    assert sentences[0] == (
        "By lfw accuracy, no difference from the best is significant: large, at 400 M MACs, reaches 88.50 % ± 4.95,"
        " before small."
    )


def test_unknown_costs_and_failed_runs_are_said():
    results = make_results({"tiny": [0.7, 0.7], "small": [0.8, 0.8], "theirs": [0.9, 0.9]})
    failed = Run(name="large_seed0", backbone="large", folder=Path("large"), state="failed", error="NaN")
    results = make_results(
        {"tiny": [0.7, 0.7], "small": [0.8, 0.8], "theirs": [0.9, 0.9]}, runs=[*results.runs, failed]
    )
    sentences = answer(results).sentences
    assert sentences[0].startswith("theirs is best by lfw accuracy: 90.00 %")
    assert "The MACs of theirs are unknown, so no budget includes it." in sentences
    assert sentences[1].startswith("Up to 20 G MACs, small is best by lfw accuracy: 80.00 % ± 0.00; tiny is ")
    assert "1 of 7 runs has failed or not finished: large_seed0." in sentences


def test_of_a_lone_run_that_has_failed_no_others_are_spoken_of():
    failed = Run(name="rm6", backbone="rm6", folder=Path("rm6"), state="failed", error="NaN")
    assert "The only run has failed or not finished: rm6." in answer(make_results({}, runs=[failed])).sentences


def test_what_an_earlier_evaluation_knows_of_a_lost_run_is_said():
    results = make_results({"tiny": [0.7, 0.7], "small": [0.8, 0.8]})
    runs = [replace(run, state="unfinished") if run.name == "tiny_seed1" else run for run in results.runs]
    sentences = answer(make_results({"tiny": [0.7, 0.7], "small": [0.8, 0.8]}, runs=runs)).sentences
    assert "The metrics include an earlier evaluation of tiny_seed1." in sentences
    assert any(sentence.startswith("tiny has one seed only; the tests take it to vary") for sentence in sentences)


def test_of_equals_none_is_called_better():
    sentences = answer(make_results({"tiny": [0.8, 0.8], "small": [0.8, 0.8], "large": [0.7, 0.7]})).sentences
    assert sentences[0].startswith("tiny and small, at 5 M MACs, tie for best by lfw accuracy: 80.00 % ± 0.00;")
    assert "large is significantly worse" in sentences[0]


def test_latency_has_budgets_of_its_own():
    results = make_results({"tiny": [0.7, 0.7], "large": [0.9, 0.9]})
    values = {"tiny": [0.7, 0.7], "small": [0.8, 0.8], "large": [0.9, 0.9]}
    costs = {
        name: Cost(macs=MACS[name], latency_ms=ms) for name, ms in (("tiny", 1.5), ("small", 4.0), ("large", 12.0))
    }
    sentences = answer(make_results(values, costs=costs)).sentences
    assert any(s.startswith("Up to 5 ms per image, small is best by lfw accuracy") for s in sentences)
    assert not any(" ms " in s for s in answer(results).sentences)


def test_nothing_is_said_by_latency_of_a_busy_machine():
    values = {"tiny": [0.7, 0.7], "small": [0.8, 0.8], "large": [0.9, 0.9]}
    costs = {name: Cost(macs=MACS[name], latency_ms=9.0 * place) for place, name in enumerate(values, 1)}
    costs["small"] = replace(costs["small"], busy=True)
    sentences = answer(make_results(values, costs=costs)).sentences
    assert sentences[-1] == (
        "The machine was busy while the latency of small was measured: nothing is said by latency."
    )
    assert not any("ms per image" in sentence for sentence in sentences)


def test_no_significant_difference_is_the_first_sentence():
    alike = [("tiny", "small"), ("tiny", "large"), ("small", "large")]
    sentences = answer(make_results({"tiny": [0.89], "small": [0.895], "large": [0.90]}, alike=alike)).sentences
    assert sentences[0].startswith("By lfw accuracy, no difference from the best is significant: large, at 400 M MACs,")
    assert sentences[0].endswith(", before small and tiny.")


def test_guessing_is_called_so():
    guess = answer(make_results({"tiny": [0.5], "large": [0.505]})).sentences
    assert guess[0].startswith("By lfw accuracy, no backbone is better than guessing (50 %)")
    assert not any(" is best " in s for s in guess)
    assert not any("guessing" in s for s in answer(make_results({"tiny": [0.5], "large": [0.52]})).sentences)


@pytest.mark.parametrize("changes", [{"metrics": []}, {"metrics": [], "runs": []}])
def test_nothing_measured_is_said(changes):
    found = answer(make_results({"tiny": [0.5]}, **changes))
    assert found.sentences[0].startswith("Nothing has been measured yet")
    assert not found.rules


def test_one_backbone_alone_is_compared_with_nothing():
    assert answer(make_results({"tiny": [0.6, 0.62]})).sentences == [
        "tiny reaches 61.00 % ± 1.41 by lfw accuracy; nothing to compare."
    ]


def test_without_tests_nothing_is_called_significant():
    results = make_results({"tiny": [0.7], "small": [0.8]})
    metric = replace(results.metrics[0], comparisons=[])
    sentences = answer(make_results({"tiny": [0.7], "small": [0.8]}, metrics=[metric])).sentences
    assert "tiny is worse, but no test confirms it" in sentences[0]
    assert not any("significantly" in s for s in sentences)


@pytest.mark.parametrize(
    ("values", "alike", "ending"),
    [
        (
            {"small": [0.80, 0.81, 0.815], "large": [0.81, 0.805, 0.82]}, True,
            "Between seeds of large and small, lfw accuracy varies by ± 0.76 points (at most ± 1.81): 3 seeds each"
            " would find a difference of 2.35 points (5.56) with 80 % power; no number of seeds would find the 0.33"
            " points seen on this set, a larger one might."
        ),
        (
            {"small": [0.80, 0.81, 0.815], "large": [0.82, 0.817, 0.83]}, False,
            "the 1.40 points seen would take about 6 seeds each (25)."
        ),
        (
            {"small": [0.80, 0.81], "large": [0.85, 0.86]}, True,
            "2 seeds each would find a difference of 4.00 points (17.65) with 80 % power; the 5.00 points seen are more"
            " than the seeds alone explain (p = 0.019, without the set's noise and Holm's correction)."
        ),
        ({"small": [0.80, 0.81], "large": [0.85, 0.86]}, False, "more than seeds and set explain."),
        ({"small": [0.80, 0.81], "large": [0.80, 0.82, 0.81]}, True, ": 3 and 2 seeds would find a difference of"),
        ({"small": [0.80, 0.81], "large": [0.81, 0.80]}, True, "; the two tie."),
        ({"small": [0.80, 0.81, 0.815], "large": [0.81, 0.805, 0.82]}, False, "would take about 84 seeds each (465)."),
        ({"small": [0.80, 0.82], "large": [0.8101, 0.81]}, False, "points seen would take more than 1,000 seeds each."),
    ],
)  # fmt: skip
def test_what_the_seeds_could_tell_is_said_with_how_many_would(values, alike, ending):
    results = make_results(values, alike=[("small", "large")] if alike else [])
    found = answer(results)
    (sentence,) = [one for one in found.sentences if one.startswith("Between seeds")]
    assert ending in sentence
    assert any(rule.startswith("How many seeds") for rule in found.rules)


@pytest.mark.parametrize("values", [{"small": [0.8], "large": [0.9, 0.91]}, {"small": [0.8, 0.8], "large": [0.9, 0.9]}])
def test_without_two_seeds_of_each_or_any_spread_nothing_is_said_of_them(values):
    found = answer(make_results(values))
    assert not any("seeds of" in one for one in found.sentences)
    assert not any(rule.startswith("How many seeds") for rule in found.rules)


def test_a_run_that_was_only_validated_leaves_its_backbone_without_a_test():
    results = make_results({"small": [0.909, 0.91, 0.88], "large": [0.904, 0.905, 0.906]})
    (metric,) = results.metrics
    others = [test for test in metric.comparisons if "small_seed2" not in (test["first"], test["second"])]
    sentences = answer(make_results(
        {"small": [0.909, 0.91, 0.88], "large": [0.904, 0.905, 0.906]}, metrics=[replace(metric, comparisons=others)]
    )).sentences  # fmt: skip
    assert sentences[0].endswith("small is worse, but no test confirms it.")
    assert not any("significantly worse" in one or "more than seeds" in one for one in sentences)


def test_runs_that_all_agree_tie_whatever_their_number():
    sentences = answer(make_results({"small": [0.8345], "large": [0.8345] * 3})).sentences
    assert sentences[0].startswith("small and large, at 90 M MACs, tie for best by lfw accuracy: 83.45 %")


def test_the_numbers_of_that_sentence_stand_in_results_json():
    results = make_results({"tiny": [0.7], "small": [0.80, 0.81, 0.815], "large": [0.81, 0.805, 0.82]})
    (metric,) = results_json(results)["metrics"]
    (row,) = metric["seeds"]
    assert (row["first"], row["second"], row["seeds"]) == ("small", "large", [3, 3])
    assert row["p_value"] == pytest.approx(stats.ttest_ind([0.80, 0.81, 0.815], [0.81, 0.805, 0.82]).pvalue)
    sentence = next(one for one in answer(results).sentences if one.startswith("Between seeds"))
    said = [float(number.replace(",", "")) for number in re.findall(r"\d[\d.,]*(?=[ )])", sentence)]
    points = [100 * row[key] for key in ("deviation", "upper", "detectable", "detectable_upper", "difference")]
    expected = [*points[:2], 3, *points[2:4], 80, abs(points[4]), row["needed"], row["needed_upper"]]
    for number, one in zip(sorted(said), sorted(expected), strict=True):
        assert number == pytest.approx(one, abs=0.006)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"small": [0.8, 0.81], "large": [0.9, 0.91]}, "of the mean over its seeds, by Student's t; of a single run"),
        (
            {"small": [0.8], "large": [0.9]},
            "by itself, over people or pairs. The tests compare two backbones on the same",
        ),
        ({"small": [0.8]}, "by itself, over people or pairs."),
    ],
)
def test_what_bars_show_and_tests_compare_is_said_where_they_could_seem_to_disagree(values, words):
    results = make_results(values)
    assert words in bars_words(results) and ("overlap" in bars_words(results)) == (len(values) > 1)
    assert bars_words(results) in html.unescape(page_text(results, report_tables(results), answer(results)))


def test_many_metrics_have_five_sentences_and_every_sentence_in_the_details(tmp_path):
    sets = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
    found = answer(load_results(make_study(tmp_path / "s", backbones=(SMALL, MIDDLE, LARGE), sets=sets)))
    assert len(found.sentences) <= MOST_SENTENCES < len(found.details)
    assert found.sentences[0] == found.details[0]
    assert found.sentences[1] == f"By all 6 other metrics, {SMALL} is best as well."
    assert sum(" accuracy: " in sentence for sentence in found.details) >= len(sets)


def test_budgets_and_reservations_are_one_sentence_each_in_an_answer_of_five():
    assert _in_one(
        ["Up to 1 G MACs, a is best by lfw accuracy: 90.00 %; b is worse.", "Up to 5 M MACs, c is best: 8 %."]
    ) == ["Up to 1 G MACs, a is best by lfw accuracy: 90.00 %; up to 5 M MACs, c is best: 8 %."]
    assert _joined(["2 of 4 runs have failed or not finished: a, b.", "Each backbone has one seed."]) == (
        "2 of 4 runs have failed or not finished: a, b; each backbone has one seed."
    )
