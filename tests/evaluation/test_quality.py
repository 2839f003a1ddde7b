"""`evaluate quality`: files of scores, the norm, and the command."""

import json

import cv2
import numpy as np
import pytest

from facebones.cli.main import main
from facebones.data.pair_bins import write_pairs
from facebones.data.quality_scores import read_quality
from facebones.errors import ConfigError, DataError
from facebones.evaluation.embed import embed
from facebones.evaluation.models import load_model
from facebones.evaluation.protocol import find_protocols
from facebones.evaluation.quality import NORM, evaluate_quality, norms
from facebones.reporting.load import load_results
from facebones.statistics.discard import fnmr_after_discards

FEW = {"bootstrap": 100, "device": "cpu"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """100 pairs of noise, every second one genuine."""
    path = tmp_path_factory.mktemp("quality") / "noise.bin"
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8).repeat(7, axis=1).repeat(7, axis=2)
    write_pairs(path, [cv2.imencode(".png", image)[1].tobytes() for image in pixels], np.tile([True, False], 50))
    return path


@pytest.fixture
def scores(tmp_path):
    path = tmp_path / "scores.csv"
    values = np.random.default_rng(1).random(200)
    path.write_text("\n".join(["image,score", *(f"{place},{value}" for place, value in enumerate(values))]) + "\n")
    return path, values


def test_figures_are_those_of_scores_and_norms(weights, pairs, scores, tmp_path):
    path, values = scores
    options = {"false_match_rate": 0.1, "up_to": 0.2, "output": tmp_path / "out"}
    content = evaluate_quality(weights, pairs, {"file": path}, **options, **FEW)
    found = content["results"]["model"]
    (protocol,) = find_protocols(pairs)
    features = embed({"m": load_model(weights, device="cpu")}, protocol.images(), batch_size=128)["m"]
    scored = protocol.scored_pairs(features)
    rejected = (scored.score < found["threshold"])[::2]
    assert (found["genuine"], found["rejected"]) == (50, rejected.sum())
    assert 0.08 <= np.mean(scored.score[1::2] >= found["threshold"]) <= 0.1
    for name, quality in (("file", values), (NORM, np.linalg.norm(features.sum(axis=1, dtype=np.float64), axis=1))):
        lower = np.minimum(quality[0::2], quality[1::2])[::2]
        expected = fnmr_after_discards(lower, rejected, found["curves"]["discarded"])
        assert found["curves"]["fnmr"][name] == pytest.approx(expected, abs=1e-9)
    assert [(one["name"], one["at"]["discarded"]) for one in found["metrics"]] == [
        ("fnmr", 0.1), ("fnmr", 0.2), ("pauc", 0.2)]  # fmt: skip
    assert found["interval"]["low"] < found["fnmr"] < found["interval"]["high"]
    assert found["metrics"][-1]["values"]["at random"] == pytest.approx(found["fnmr"])
    assert not content["people_known"]
    (table,) = load_results(tmp_path / "out").trust
    assert [row[0].text for row in table.rows] == [NORM, "file", "at random"]
    assert f"{found['rejected']} of 50 genuine pairs rejected" in table.note


def test_a_score_that_knows_the_answer_is_the_best_possible(weights, pairs, tmp_path):
    (protocol,) = find_protocols(pairs)
    features = embed({"m": load_model(weights, device="cpu")}, protocol.images(), batch_size=128)["m"]
    score = np.repeat(protocol.scored_pairs(features).score, 2)
    (tmp_path / "oracle.txt").write_text("".join(f"{place} {value}\n" for place, value in enumerate(score)))
    content = evaluate_quality(weights, pairs, {"oracle": tmp_path / "oracle.txt"}, false_match_rate=0.5, **FEW)
    assert content["results"]["model"]["share_of_best"]["oracle"] == pytest.approx(1, abs=1e-6)


def test_norms_of_many_images_are_taken_in_blocks():
    rows = np.random.default_rng(0).normal(size=(9000, 2, 3)).astype(np.float32)
    assert norms(rows) == pytest.approx(np.linalg.norm(rows.sum(axis=1), axis=1), rel=1e-5)


@pytest.mark.parametrize("form", ["{0},{1}", "{0}\t{1}", "./{0} {1}", '"{0}",{1}'])
def test_forms_of_a_file(tmp_path, form):
    (tmp_path / "a.csv").write_text("\n".join(form.format(*row) for row in (("y b.jpg", 2), ("x.jpg", -1.5))) + "\n\n")
    assert read_quality(tmp_path / "a.csv", ["x.jpg", "y b.jpg"], "made up").tolist() == [-1.5, 2]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_file_of_excel_with_decimal_commas(tmp_path, mark):
    (tmp_path / "a.csv").write_text(f"image{mark}score\ny, b.jpg{mark}0,95\nx.jpg{mark}-1,5\n")
    assert read_quality(tmp_path / "a.csv", ["x.jpg", "y, b.jpg"], "made up").tolist() == [-1.5, 0.95]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,1\nb,2\n", "no score for 1 image of made up, such as 'c'"),
        ("a,1\nb,2\nd,3\n", "line 3: no image 'd' in made up; write names like 'a'"),
        ("a,1\na,2\n", "line 2: 'a' has a score already"),
        ("image,score\na,good\n", "line 2: 'a,good' is not 'image,score'"),
        ("a,nan\n", "line 1: 'a,nan' is not"),
        ("a,1\nb,1\nc,1\n", "all scores are 1, which says nothing"),
        ("\xff", "line 1: not UTF-8 text"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message) as error:
        read_quality(tmp_path / "a.csv", ["a", "b", "c"], "made up")
    assert "\n" not in str(error.value)


def test_what_cannot_be_measured_is_refused(weights, pairs, tmp_path):
    with pytest.raises(DataError, match=r"0 of 50 genuine pairs are rejected at the threshold -1\.0000"):
        evaluate_quality(weights, pairs, threshold=-1.0, **FEW)
    with pytest.raises(ConfigError, match="give a share of the genuine pairs from"):
        evaluate_quality(weights, pairs, up_to=1.0, **FEW)
    with pytest.raises(ConfigError, match="the name 'at random' is taken"):
        evaluate_quality(weights, pairs, {"at random": tmp_path}, **FEW)


def test_the_command_prints_a_table_and_draws(weights, pairs, scores, tmp_path, capsys):
    line = [
        "evaluate",
        "quality",
        "--model",
        f"m={weights}",
        "--data",
        str(pairs),
        "--fmr",
        "0.1",
        "--bootstrap",
        "100",
    ]
    line += ["--scores", f"file={scores[0]}", "--bootstrap", "100", "--device", "cpu"]
    assert main([*line, "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "pAUC to 0.3" in told and "embedding norm" in told and "at random" in told and "of 50 genuine pairs" in told
    assert json.loads((tmp_path / "out" / "quality.json").read_text())["protocol"] == "quality"
    assert (tmp_path / "out" / "quality_m.png").is_file() and (tmp_path / "out" / "quality_m.pdf").is_file()


def test_people_of_a_folder_are_resampled(weights, many_people):
    content = evaluate_quality(weights, f"folder={many_people}", threshold=0.97, **FEW)
    assert content["people_known"]
    metrics = content["results"]["model"]["metrics"]
    assert metrics[-1]["intervals"][NORM]["resampled"] == "identities"


def test_a_rate_that_the_pairs_are_too_few_for_is_refused_before_any_image_is_embedded(weights, pairs, monkeypatch):
    monkeypatch.setattr("facebones.evaluation.embedded_set.embed", None)
    with pytest.raises(DataError, match=r"0\.001 is below 1 / 50 impostor pairs; give a higher --fmr, or --threshold"):
        evaluate_quality(weights, pairs, device="cpu")
    with pytest.raises(ConfigError, match="a threshold and a false match rate: give one of them"):
        evaluate_quality(weights, pairs, threshold=0.2, false_match_rate=0.1, device="cpu")
