"""`evaluate groups`: a file of groups beside a set, one threshold, rates by group."""

import json

import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.cli.main import main
from facebones.data.pair_bins import read_pairs
from facebones.errors import ConfigError, DataError
from facebones.evaluation.calibrate import calibrate
from facebones.evaluation.embedded_set import threshold_at
from facebones.evaluation.folder import FolderProtocol
from facebones.evaluation.groups import evaluate_groups, grouped
from facebones.evaluation.pairs import PairsProtocol
from facebones.evaluation.protocol import find_protocols
from facebones.reporting.load import load_results
from facebones.run_folder import RunFolder
from facebones.statistics.calibration import ScoredPairs

FEW = {"bootstrap": 100, "permutations": 99, "device": "cpu"}


@pytest.fixture
def run(tmp_path, tiny_backbone):
    torch.manual_seed(0)
    card = {"backbone": tiny_backbone, "embedding_size": 16}
    save_weights(RunFolder(tmp_path / "run"), create_backbone(tiny_backbone, 16), card)
    return tmp_path / "run"


@pytest.fixture
def sexes(many_people, tmp_path):
    """A file of groups for 44 people, of whom one has no group."""
    rows = [f"person{who:02d},{'fm'[who % 2]},{'old' if who < 10 else 'young'}" for who in range(43)]
    (tmp_path / "sexes.csv").write_text("\n".join(["person,sex,age", *rows]) + "\n")
    return tmp_path / "sexes.csv"


def test_a_folder_of_people_is_measured_by_group(run, many_people, sexes, tmp_path, capsys):
    line = ["evaluate", "groups", "--model", f"mbf={run}", "--data", f"folder={many_people}", "--groups", str(sexes)]
    assert (
        main([*line, "--fmr", "0.1", "--output", str(tmp_path / "out"), "--device", "cpu", "--bootstrap", "100"]) == 0
    )
    said = capsys.readouterr().out
    assert said.index("across groups") < said.index("GARBE") < said.index("groups exchanged among people")
    assert "sex: 4 images without a group" in said and "old: fewer than 20 people in genuine pairs" in said
    content = json.loads((tmp_path / "out/groups.json").read_text())
    assert content["format"] == 1 and content["protocol"] == "groups" and content["people_known"]
    sex, age = content["groupings"]
    rates = sex["results"]["mbf"]["rates"]
    assert [rate["pairs"] for rate in rates["fnmr"]] == [22 * 6, 21 * 6, 0]
    assert [rate["pairs"] for rate in rates["fmr"]] == [231 * 16, 210 * 16, 22 * 21 * 16]
    accepted = sum(rate["errors"] for rate in rates["fmr"])
    assert 0.08 < accepted / sum(rate["pairs"] for rate in rates["fmr"]) < 0.12  # all pairs: 0.1
    assert all(index["value"] is None for index in age["results"]["mbf"]["indices"])
    by_sex, by_age = load_results(tmp_path / "out").trust
    assert (by_sex.section, by_sex.columns[0], len(by_sex.rows)) == ("trust", "group", 3)
    assert "sex: 4 images without a group" in by_sex.note and "GARBE (0: alike): " in by_sex.note
    assert "old: fewer than 20 people" in by_age.note


def test_numbers_are_those_of_the_scores(run, many_people, sexes):
    from facebones.data.group_lists import read_groups
    from facebones.evaluation.embed import embed
    from facebones.evaluation.models import load_model

    content = evaluate_groups(run, FolderProtocol(many_people), sexes, threshold=0.5, **FEW)
    protocol = FolderProtocol(many_people)
    features = embed({"m": load_model(run, device="cpu")}, protocol.images(), batch_size=64)
    pairs, faces = protocol.scored_pairs(features["m"]), protocol.faces()
    woman = np.array(["fm"[int(name[6:8]) % 2] == "f" and name[:8] != "person43" for name in faces.images])
    both = woman[pairs.items[0]] & woman[pairs.items[1]] & ~pairs.is_same
    rate = content["groupings"][0]["results"]["model"]["rates"]["fmr"][0]
    assert (rate["errors"], rate["pairs"]) == (int((pairs.score[both] >= 0.5).sum()), int(both.sum()))
    sex = read_groups(sexes, faces, "many")[0]
    people = grouped(pairs, sex, faces.person).people
    assert np.array_equal(people[0], pairs.first) and np.array_equal(people[1], pairs.second)


def test_images_of_a_bin_are_numbers_and_its_people_unknown(run, small_data, tmp_path, capsys):
    rows = [f"{image},{'door' if image < 20 else 'phone'}" for image in range(40)]
    (tmp_path / "tiny.csv").write_text("\n".join(["image,camera", *rows]) + "\n")
    line = ["evaluate", "groups", "--model", str(run), "--data", str(small_data / "tiny.bin"), "--threshold", "0.5"]
    assert main([*line, "--groups", str(tmp_path / "tiny.csv"), "--device", "cpu", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    rates = content["groupings"][0]["results"]["run"]["rates"]
    assert [rate["pairs"] for rate in rates["fnmr"]] == [5, 5, 0] and not content["people_known"]
    assert main([*line, "--groups", str(tmp_path / "tiny.csv"), "--device", "cpu"]) == 0
    assert "who is in the pairs is not known" in capsys.readouterr().out


def test_a_pair_list_names_images_by_path_and_people_by_folder(many_people, tmp_path):
    lines = ["person00/0.jpg person00/1.jpg 1", "person00/0.jpg person01/0.jpg 0"] * 10
    (many_people / "list.txt").write_text("\n".join(lines))
    protocol = PairsProtocol(many_people / "list.txt")
    faces = protocol.faces()
    (many_people / "list.txt").unlink()
    assert list(faces.images) == ["person00/0.jpg", "person00/1.jpg", "person01/0.jpg"]
    assert list(faces.people) == ["person00", "person00", "person01"] and faces.person.tolist() == [0, 0, 1]
    pairs = protocol.scored_pairs(np.ones((40, 1, 4), np.float32))
    assert pairs.items[1].tolist() == [1, 2] * 10


def test_a_pair_list_whose_folders_contradict_its_labels_does_not_say_who_is_who(many_people):
    lines = ["person00/0.jpg person01/1.jpg 1", "person00/0.jpg person01/0.jpg 0"] * 10
    (many_people / "other.txt").write_text("\n".join(lines))
    faces = PairsProtocol(many_people / "other.txt").faces()
    (many_people / "other.txt").unlink()
    assert faces.person is None and faces.people is None


def test_templates_are_named_by_their_images_and_subjects(tmp_path):
    from facebones.synthetic.dataset import synthesize

    synthesize(tmp_path / "faces", identities=4, images_per_identity=4, pairs=20, template_subjects=4, workers=1)
    folder = next(path.parent for path in (tmp_path / "faces").rglob("meta"))
    protocol = find_protocols(folder, "ijb_verification")[0]
    faces = protocol.faces()
    assert len(faces.images) == len(protocol.images()) and len(faces.people) == int(faces.item.max()) + 1
    assert set(faces.people) <= set(map(str, protocol.subjects.tolist()))


def test_the_threshold_may_be_that_of_the_calibration(run, many_people, sexes):
    data = FolderProtocol(many_people)
    with pytest.raises(
        ConfigError, match="model: no threshold; give --threshold or --fmr, or run `facebones calibrate`"
    ):
        evaluate_groups(run, data, sexes, **FEW)
    kept = calibrate(run, data, false_match_rates=[0.5], output=run, device="cpu")["thresholds"][0]["threshold"]
    assert evaluate_groups(run, data, sexes, **FEW)["thresholds"] == {"model": kept}
    with pytest.raises(ConfigError, match="was made with mirror images"):
        evaluate_groups(run, data, sexes, flip=False, **FEW)
    calibrate(run, data, false_match_rates=[0.5, 0.6], output=run, device="cpu")
    with pytest.raises(ConfigError, match=r"2 calibrated thresholds, .* give one of them by --threshold"):
        evaluate_groups(run, data, sexes, **FEW)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": 0.1, "false_match_rate": 0.1}, "give one of them"),
        ({"false_match_rate": 1.5}, "false match rate 1.5: is not between 0 and 1"),
        ({"threshold": 5}, "threshold 5: is no cosine"),
    ],
)
def test_options_that_contradict_are_refused(run, many_people, sexes, options, said):
    with pytest.raises(ConfigError, match=said):
        evaluate_groups(run, FolderProtocol(many_people), sexes, **options, **FEW)


def test_a_set_without_a_file_of_groups_is_refused(run, many_people):
    with pytest.raises(DataError, match=r"groups\.csv: no such file"):
        evaluate_groups(run, FolderProtocol(many_people), threshold=0.5, **FEW)


def test_a_threshold_has_the_rate_that_is_asked_for():
    score = np.array([0.9, 0.9, 0.5, 0.4, 0.3, 0.3])
    pairs = ScoredPairs(score, np.zeros(6, dtype=bool))
    assert (score >= threshold_at(pairs, 0.5)).sum() == 3
    assert (score >= threshold_at(pairs, 0.4)).sum() == 2
    with pytest.raises(DataError, match=r"0\.1 is below 1 / 6 impostor pairs"):
        threshold_at(pairs, 0.1)


def test_read_pairs_has_no_names(small_data):
    assert read_pairs(small_data / "tiny.bin").names is None


def test_a_rate_that_the_pairs_are_too_few_for_is_refused_before_any_image_is_embedded(
    run, many_people, sexes, monkeypatch
):
    monkeypatch.setattr("facebones.evaluation.embedded_set.embed", None)
    with pytest.raises(DataError, match=r"0\.000000001 is below 1 / [\d,]+ impostor pairs; give a higher --fmr"):
        evaluate_groups(run, f"folder={many_people}", sexes, false_match_rate=1e-9, device="cpu")
