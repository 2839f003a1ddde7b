"""The worst pairs as faces: which they are, whose images, how large the page gets, and what is refused."""

import base64
import json

import cv2
import numpy as np
import pytest
from synthetic_study import metric_json
from synthetic_study import write_pairs as write_evaluation_of_pairs

from facebones.cli.main import main
from facebones.data.image_sources import EncodedImages
from facebones.data.pair_bins import write_pairs
from facebones.reporting.answer import Answer
from facebones.reporting.evaluations import read_pair_scores
from facebones.reporting.face_pairs import (
    LONGEST_SIDE,
    MOST_MODELS,
    MOST_PAIRS,
    MOST_SETS,
    _data_url,
    face_pairs,
    faces_json,
)
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text
from facebones.reporting.report import PAGE, RESULTS

PAIRS = 20
SAME = np.arange(PAIRS) % 2 == 0
# Of the impostor pairs 1, 3, ... the later ones score higher; of the genuine pairs 0, 2, ... the later ones lower.
SCORES = np.where(SAME, 0.9 - np.arange(PAIRS) / 40, -0.2 + np.arange(PAIRS) / 40)
NAMES = ("first", "second", "third", "fourth")


def one_colour(place, side=32):
    """An image of one grey value, which identifies it."""
    return cv2.imencode(".png", np.full((side, side, 3), 5 * place, np.uint8))[1].tobytes()


IMAGES = [one_colour(place) for place in range(2 * PAIRS)]
DIGEST = EncodedImages("lfw", IMAGES).fingerprint()


def grey_of(url):
    kind, _, content = url.partition(",")
    assert kind == "data:image/webp;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)


@pytest.fixture
def evaluation(tmp_path):
    """An evaluation of four models on lfw, whose scores are a little lower from one to the next; and lfw.bin."""
    values = {name: 0.9 - 0.1 * place for place, name in enumerate(NAMES)}
    folder = tmp_path / "evaluation"
    folder.mkdir()
    write_evaluation_of_pairs(folder, {"lfw": [metric_json("accuracy", values)]})
    content = json.loads((folder / "pairs.json").read_text())
    for place, name in enumerate(NAMES):
        content["results"][0]["details"][name] = {"fold_threshold": [1.2] * 5 + [2.0] * 5}  # cosines of 0.4 and 0
        save_scores(folder, name, scores=SCORES - place / 1000)
    (folder / "pairs.json").write_text(json.dumps(content))
    write_pairs(tmp_path / "lfw.bin", IMAGES, SAME)
    return folder


def save_scores(folder, name, scores=SCORES, same=SAME, **more):
    known = {"distance": 2 - 2 * scores, "is_same": same, "images_sha256": np.array(DIGEST)} | more
    held = {key: value for key, value in known.items() if value is not None}
    np.savez(folder / f"{name}_lfw_scores.npz", **held)


def shown(evaluation, *sets):
    return face_pairs(load_results(evaluation), sets or [evaluation.parent / "lfw.bin"])


def page(evaluation, *sets):
    """The page without its scripts, which speak of images too."""
    results = load_results(evaluation)
    text = page_text(results, [], Answer(sentences=["Take one."], rules=[]), face_pairs(results, sets) if sets else ())
    return text.partition("<script")[0]


def test_the_worst_pairs_of_the_best_models_come_with_their_images(evaluation):
    (found,) = shown(evaluation)
    assert (found.title, found.pairs, found.measure, found.chosen_of) == ("lfw", PAIRS, "accuracy", len(NAMES))
    assert [model.run for model in found.models] == list(NAMES[:MOST_MODELS])
    first = found.models[0]
    assert [pair.number for pair in first.impostors] == [19, 17, 15, 13, 11, 9]
    assert [pair.number for pair in first.genuine] == [18, 16, 14, 12, 10, 8]
    for pair in [*first.impostors, *first.genuine]:
        assert pair.score == pytest.approx(SCORES[pair.number])
        for side, url in enumerate(pair.images):
            assert abs(grey_of(url).mean() - 5 * (2 * pair.number + side)) < 2


def test_a_pair_is_marked_where_the_threshold_of_its_fold_decides_it_wrongly(evaluation):
    """The first ten pairs are accepted above 0.4, the others above 0."""
    model = shown(evaluation)[0].models[0]
    accepted = np.where(np.arange(PAIRS) < 10, 0.4, 0) < SCORES
    assert [pair.is_wrong for pair in model.impostors] == [bool(accepted[pair.number]) for pair in model.impostors]
    assert {pair.is_wrong for pair in model.impostors} == {True, False}
    assert not any(pair.is_wrong for pair in model.genuine)
    assert model.errors == (int((accepted & ~SAME).sum()), 0)
    text = page(evaluation, evaluation.parent / "lfw.bin")
    assert text.count('class="error">false accept<') == MOST_MODELS * sum(pair.is_wrong for pair in model.impostors)
    assert f"{model.errors[0]} false accepts and 0 false rejects in all" in text


def test_of_equal_scores_the_first_pairs_are_shown(evaluation):
    save_scores(evaluation, "first", scores=np.where(SAME, 0.5, 0.25))
    model = shown(evaluation)[0].models[0]
    assert [pair.number for pair in model.impostors] == [1, 3, 5, 7, 9, 11]
    assert [pair.number for pair in model.genuine] == [0, 2, 4, 6, 8, 10]


def test_the_page_shows_faces_only_where_they_are_asked_for(evaluation):
    without = page(evaluation)
    assert "<img" not in without and "data:image" not in without and "--faces SET.bin" in without
    text = page(evaluation, evaluation.parent / "lfw.bin")
    assert text.count("<img ") == MOST_MODELS * 2 * MOST_PAIRS * 2
    assert "The best 3 of 4 backbones by accuracy, among 20 pairs" in text and "--faces SET.bin" not in text
    section = text.partition('<section id="faces"')[2].partition("</section>")[0]
    assert section.count('<details class="fold">') == 1 and "<details open" not in section
    assert 'alt="Pair 19, first face"' in section and "<b>0.2750</b>" in section


def test_results_of_older_versions_show_faces_without_marks(evaluation):
    content = json.loads((evaluation / "pairs.json").read_text())
    for name in NAMES:
        content["results"][0]["details"][name] = {"pairs": PAIRS}
        save_scores(evaluation, name, images_sha256=None)
    (evaluation / "pairs.json").write_text(json.dumps(content))
    (found,) = shown(evaluation)
    assert {pair.is_wrong for model in found.models for pair in model.impostors} == {None}
    assert {model.errors for model in found.models} == {None}
    assert 'class="error"' not in page(evaluation, evaluation.parent / "lfw.bin")


def test_thresholds_of_folds_of_one_kind_mark_nothing(evaluation):
    content = json.loads((evaluation / "pairs.json").read_text())
    content["results"][0]["details"]["first"]["one_kind_folds"] = 10
    (evaluation / "pairs.json").write_text(json.dumps(content))
    assert [model.errors is None for model in shown(evaluation)[0].models] == [True, False, False]


def test_json_has_numbers_and_scores_but_no_image(evaluation):
    (content,) = faces_json(shown(evaluation))
    assert content["set"] == "lfw" and [model["run"] for model in content["models"]] == list(NAMES[:MOST_MODELS])
    assert content["models"][0]["impostors"][0] == {"pair": 19, "score": pytest.approx(SCORES[19])}
    assert "data:" not in json.dumps(content)


def test_a_list_of_pairs_is_shown_by_the_images_beside_it(evaluation, tmp_path):
    folder = tmp_path / "listed"
    folder.mkdir()
    for place, image in enumerate(IMAGES):
        (folder / f"{place}.png").write_bytes(image)
    lines = [f"{2 * pair}.png,{2 * pair + 1}.png,{int(same)}" for pair, same in enumerate(SAME)]
    (folder / "lfw.csv").write_text("\n".join(lines) + "\n")
    assert shown(evaluation, folder / "lfw.csv")[0].models == shown(evaluation)[0].models


def test_large_faces_become_small_and_keep_their_shape():
    noise = np.random.default_rng(0).integers(0, 256, (600, 300, 3), np.uint8)
    image = grey_of(_data_url(noise))
    assert image.shape == (LONGEST_SIDE, LONGEST_SIDE // 2, 3)
    assert grey_of(_data_url(noise[:40, :20])).shape == (40, 20, 3)  # not enlarged


def test_the_faces_of_a_page_are_bounded_also_if_they_are_noise():
    """A page of 14 backbones and five sets has 7 MB without them, and may have 15."""
    noise = np.random.default_rng(0).integers(0, 256, (LONGEST_SIDE, LONGEST_SIDE, 3), np.uint8)
    of_a_set = MOST_MODELS * 2 * MOST_PAIRS * 2 * len(_data_url(noise))
    assert 5 * of_a_set < 7.5e6 and MOST_SETS <= 8


def other_labels(folder):
    write_pairs(folder / "lfw.bin", IMAGES, ~SAME)
    return [folder / "lfw.bin"]


def other_images(folder):
    write_pairs(folder / "lfw.bin", IMAGES[::-1], SAME)
    return [folder / "lfw.bin"]


def another_set(folder):
    write_pairs(folder / "agedb_30.bin", IMAGES, SAME)
    return [folder / "agedb_30.bin"]


def no_sets(folder):
    (folder / "empty").mkdir()
    return [folder / "empty"]


def missing(folder):
    return [folder / "gone.bin"]


def no_set(folder):
    (folder / "lfw.bin").write_text("not one")
    return [folder / "lfw.bin"]


def twice(folder):
    (folder / "more").mkdir()
    write_pairs(folder / "more/lfw.bin", IMAGES, SAME)
    return [folder / "lfw.bin", folder / "more"]


def no_image(folder):
    images = [*IMAGES[:-2], b"not an image", IMAGES[-1]]
    write_pairs(folder / "lfw.bin", images, SAME)
    save_scores(folder / "evaluation", "first", images_sha256=None)
    return [folder / "lfw.bin"]


def not_finite(folder):
    save_scores(folder / "evaluation", "first", scores=SCORES * np.where(np.arange(PAIRS) == 3, np.nan, 1))
    return [folder / "lfw.bin"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_labels, "holds other pairs than those that"),
        (other_images, "holds other pairs than those that"),
        (another_set, "no evaluation in this report has scores of it; there are scores of lfw"),
        (no_sets, "no evaluation in this report has scores of it"),
        (missing, "gone.bin: no such file or folder"),
        (no_set, "lfw.bin, byte 0: not a pickle"),
        (twice, "two sets are called lfw"),
        (no_image, "lfw.bin, image 38: "),
        (not_finite, "first_lfw_scores.npz"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_leaves_the_old_report(evaluation, tmp_path, capsys, make, words):
    output = tmp_path / "report"
    output.mkdir()
    (output / PAGE).write_text("old")
    sets = make(tmp_path)
    assert main(["report", str(evaluation), "--output", str(output), "--faces", *map(str, sets)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("facebones: ")]
    assert words in line
    assert [path.name for path in output.iterdir()] == [PAGE] and (output / PAGE).read_text() == "old"


def test_the_command_takes_a_folder_of_sets_and_leaves_out_those_that_were_not_evaluated(
    evaluation, tmp_path, monkeypatch
):
    monkeypatch.setattr("facebones.reporting.plots.report_plots.save_plot", lambda figure, paths: None)
    monkeypatch.setattr("facebones.reporting.report.check_written", lambda paths: None)
    another_set(tmp_path)
    output = tmp_path / "report"
    assert main(["report", str(evaluation), "--output", str(output), "--faces", str(tmp_path)]) == 0
    assert (output / PAGE).read_text().partition("<script")[0].count("<img ") == MOST_MODELS * 2 * MOST_PAIRS * 2
    (content,) = json.loads((output / RESULTS).read_text())["face_pairs"]
    assert content["set"] == "lfw"


def test_scores_are_read_in_their_order_with_the_digest(evaluation):
    found = read_pair_scores(evaluation / "first_lfw_scores.npz")
    assert found.scores == pytest.approx(SCORES) and (found.is_same == SAME).all() and found.images_sha256 == DIGEST
