"""A set whose folds hold one kind of pair: training, `evaluate` and reports say it, with the accuracy that counts."""

import json

import numpy as np
import pytest

from facebones.cli.main import main
from facebones.data.pair_bins import PairSet, read_pairs, write_pairs
from facebones.evaluation.pairs import PairsProtocol, compare_on_pairs
from facebones.evaluation.run import run_protocols
from facebones.evaluation.verification import PairSetResult, pair_set_notes, verify_pairs
from facebones.reporting.load import load_results
from facebones.run_folder import RunFolder, read_metrics
from facebones.training.run import resume, train

PAIRS = 400


def embeddings(is_same, strength=0.1, seed=0):
    """Pairs of unit vectors; those of one person are a little closer."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((2 * len(is_same), 16))
    rows[1::2] += strength * is_same[:, None] * rows[::2]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def in_order(order):
    is_same = np.tile([True, False], PAIRS // 2)
    rows = embeddings(is_same)
    places = np.argsort(~is_same, kind="stable") if order == "genuine first" else np.arange(PAIRS)
    return rows[np.repeat(2 * places, 2) + np.tile([0, 1], PAIRS)], is_same[places]


def test_the_order_of_the_file_changes_the_published_accuracy_but_not_the_shuffled_one():
    mixed, first = (verify_pairs(*in_order(order)) for order in ("mixed", "genuine first"))
    assert first.one_kind_folds == 10
    assert first.accuracy < 0.5 < mixed.accuracy, "the published figure means nothing"
    assert first.accuracy_shuffled == pytest.approx(mixed.accuracy, abs=0.05)
    assert first.accuracy_shuffled == np.mean(first.correct_shuffled)


def test_a_sound_set_has_no_further_figures_and_no_note():
    rows, is_same = in_order("mixed")
    result = verify_pairs(rows, is_same)
    assert (result.one_kind_folds, result.accuracy_shuffled, result.correct_shuffled) == (0, None, None)
    assert not {"one_kind_folds", "accuracy_shuffled", "correct_shuffled"} & result.to_json().keys()
    assert pair_set_notes(PairSet("lfw", [b""] * len(rows), is_same)) == []
    json.dumps(verify_pairs(*in_order("genuine first")).to_json())


@pytest.mark.parametrize(("genuine_first", "folds"), [(True, 10), (False, 0)])
def test_the_note_counts_the_folds(genuine_first, folds):
    is_same = np.repeat([True, False], 20) if genuine_first else np.tile([True, False], 20)
    notes = pair_set_notes(PairSet("lfw", [b""] * 80, is_same))
    assert len(notes) == bool(folds)
    assert not notes or f"{folds} of the 10 folds hold pairs of one kind only" in notes[0]


def test_the_accuracy_over_shuffled_folds_decides():
    rows, is_same = in_order("genuine first")
    result = PairSetResult("lfw", verify_pairs(rows, is_same), 1.0)
    metrics = compare_on_pairs(PairSet("lfw", [], is_same), {"a": result}, 100)
    published, shuffled = metrics[:2]
    assert (published.metric.name, published.metric.rule, published.metric.main) == ("accuracy", "", False)
    assert (shuffled.metric.name, shuffled.metric.rule, shuffled.metric.main) == ("accuracy", "shuffled folds", True)
    assert shuffled.values == {"a": result.verification.accuracy_shuffled}


@pytest.fixture
def genuine_first(small_data, tmp_path):
    pairs = read_pairs(small_data / "tiny.bin")
    order = np.argsort(~pairs.is_same, kind="stable")
    images = [pairs.images[2 * pair + side] for pair in order for side in (0, 1)]
    write_pairs(tmp_path / "sorted.bin", images, pairs.is_same[order])
    return tmp_path / "sorted.bin"


def test_evaluate_says_it_beside_the_figure_and_a_report_too(genuine_first, tiny_backbone, tmp_path, capsys):
    output = tmp_path / "results"
    words = ["evaluate", "pairs", "--model", tiny_backbone, "--data", str(genuine_first), "--bootstrap", "100"]
    assert main([*words, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "sorted.bin: 10 of the 10 folds hold pairs of one kind only" in said
    assert "accuracy, shuffled folds" in said
    results = load_results(output)
    assert [note for note in results.notes if "10 of the 10 folds" in note]


def test_training_says_it_once_and_logs_the_shuffled_accuracy(genuine_first, tiny_recipe, tmp_path, capsys):
    recipe = tiny_recipe(**{"validation.sets": [str(genuine_first)], "training.epochs": 2})
    result = train(recipe, tmp_path / "run", "cpu")
    said = capsys.readouterr().err
    assert said.count("sorted.bin: 10 of the 10 folds hold pairs of one kind only") == 1
    lines = [line for line in read_metrics(RunFolder(tmp_path / "run").metrics) if line["kind"] == "validation"]
    assert len(lines) > 1 and all(0 < line["accuracy_shuffled"] <= 1 for line in lines)
    assert said.count("shuffled folds ") >= len(lines)
    assert result["final"][0]["accuracy_shuffled"] == lines[-1]["accuracy_shuffled"]
    assert result["best"]["mean_accuracy"] == max(line["accuracy_shuffled"] for line in lines)
    assert resume(tmp_path / "run", "cpu")["final"] == result["final"]


def test_a_study_gets_it_by_the_same_protocol(genuine_first, tiny_backbone):
    content = run_protocols({"a": tiny_backbone}, [PairsProtocol(genuine_first)], bootstrap=100, progress=False)
    (section,) = content["pairs"]["results"]
    assert "10 of the 10 folds" in section["notes"][0]
    assert [metric["rule"] for metric in section["metrics"]][:2] == ["", "shuffled folds"]
