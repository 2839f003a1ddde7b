"""The protocol `rfw`: accuracies of the groups and their differences by hand, and what a folder lacks."""

import json

import numpy as np
import pytest

from facebones.cli.main import main
from facebones.errors import DataError
from facebones.evaluation.groups import evaluate_groups
from facebones.evaluation.protocol import find_protocols
from facebones.evaluation.rfw import GROUPS, RFW, deviation, skewed_error_ratio

FOLDS = 10
WRONG = {"African": 4, "Asian": 3, "Caucasian": 1, "Indian": 2}  # genuine pairs of 10 that look like two people


@pytest.fixture
def folder(put_images):
    """Of each group ten people with two photos; a fold is a genuine pair and an impostor pair."""
    names = [f"m.{group[:3]}{person}/m.{group[:3]}{person}_000{photo}.jpg" for group in GROUPS
             for person in range(FOLDS) for photo in (1, 2)]  # fmt: skip
    whole = [f"data/{GROUPS[place // (2 * FOLDS)]}/{name}" for place, name in enumerate(names)]
    root = put_images(whole, "rfw")
    for group in GROUPS:
        lines = []
        for person in range(FOLDS):
            one, other = (f"m.{group[:3]}{number % FOLDS}" for number in (person, person + 1))
            lines += [f"{one}\t1\t2", f"{one}\t1\t{other}\t1"]
        (root / "txts" / group).mkdir(parents=True)
        (root / "txts" / group / f"{group}_pairs.txt").write_text("\n".join(lines) + "\n")
    return root


def _features(protocol, wrong):
    """Genuine pairs at 0 degrees, but so many at 180; impostor pairs at 90."""
    rows = []
    for group in GROUPS:
        for fold in range(FOLDS):
            rows += [[1, 0], [-1, 0] if fold < wrong[group] else [1, 0], [1, 0], [0, 1]]
    assert len(rows) == len(protocol.images())
    return np.array(rows, dtype=np.float32)[:, None]


def test_groups_and_their_differences_by_hand(folder):
    (protocol,) = find_protocols(folder)
    protocol.check()
    results = protocol.compare({"m": _features(protocol, WRONG)}, bootstrap=100, seed=0)
    assert [(one.protocol, one.setting) for one in results] == [("rfw", name) for name in ("", *GROUPS)]
    accuracy = {one.setting: one.of("m")[0] for one in results}
    assert {group: accuracy[group].value for group in GROUPS} == {
        group: pytest.approx(1 - wrong / 20) for group, wrong in WRONG.items()
    }
    assert all(one.interval.resampled == "identities" for one in accuracy.values())
    mean, spread = results[0].of("m")
    assert (mean.name, mean.main, mean.rule) == ("accuracy", True, "mean of groups")
    assert mean.value == pytest.approx(0.875) and mean.interval.low < 0.875 < mean.interval.high
    assert spread.name == "group_deviation" and not spread.higher_is_better
    assert spread.value == pytest.approx((0.0125 / 3) ** 0.5)
    details = results[0].details["m"]
    assert details["skewed_error_ratio"] == pytest.approx(4)
    assert 1 <= details["ratio_low"] <= 4 <= details["ratio_high"]
    assert (details["highest_error"], details["lowest_error"]) == ("African", "Caucasian")
    assert results[0].sizes == {"pairs": 80, "groups": 4}


def test_deviation_and_ratio_by_hand():
    """Mean 95.7875, squares 1.6706 + 0.0248 + 0.0473 + 0.8418 = 2.5845, divided by 3: 0.93 squared; 5.13 / 2.92."""
    row = [0.9708, 0.9563, 0.9557, 0.9487]
    assert round(float(deviation(row)) * 100, 2) == 0.93 and round(float(skewed_error_ratio(row)), 2) == 1.76


def test_without_an_error_there_is_no_ratio(folder):
    protocol = RFW(folder)
    found = protocol.compare({"m": _features(protocol, {**WRONG, "Indian": 0})}, bootstrap=100, seed=0)
    assert found[0].details["m"]["skewed_error_ratio"] is None
    found = protocol.compare({"m": _features(protocol, dict.fromkeys(GROUPS, 0))}, bootstrap=100, seed=0)
    assert found[0].details["m"]["skewed_error_ratio"] == 1 and found[0].of("m")[1].value == 0


def test_groups_at_one_threshold_need_no_file(folder, tiny_backbone):
    content = evaluate_groups(tiny_backbone, folder, threshold=0.0, bootstrap=100, permutations=100)
    (grouping,) = content["groupings"]
    assert (grouping["name"], tuple(grouping["groups"])) == ("group", GROUPS) and content["people_known"]
    rates = grouping["results"]["model"]["rates"]
    assert [rate["pairs"] for rate in rates["fnmr"]] == [10, 10, 10, 10, 0]


def test_pairs_are_numbered_by_names(folder):
    protocol = RFW(folder)
    pairs, faces = protocol.scored_pairs(_features(protocol, WRONG)), protocol.faces()
    assert faces.images[0] == "African/m.Afr0/m.Afr0_0001.jpg" and len(faces.images) == 80
    assert (pairs.score[pairs.is_same] < 0).sum() == sum(WRONG.values())
    first, second = pairs.items
    assert [faces.images[place] for place in (first[-1], second[-1])] == [
        "Indian/m.Ind9/m.Ind9_0001.jpg", "Indian/m.Ind0/m.Ind0_0001.jpg"]  # fmt: skip
    assert np.array_equal(pairs.first == pairs.second, pairs.is_same)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("txts/Asian/Asian_pairs.txt", "txts/Asian/pairs.txt", "RFW without txts/Asian/Asian_pairs.txt; restore"),
        ("data/Indian", "data/indian", "RFW without data/Indian; restore"),
        ("data/African/m.Afr3/m.Afr3_0002.jpg", "x.jpg", "m.Afr3_0002.jpg cannot be read"),
    ],
)
def test_what_is_missing_or_renamed_is_one_line(folder, old, new, message):
    (folder / old).rename(folder / new)
    with pytest.raises(DataError, match=message) as error:
        RFW(folder).check()
    assert "\n" not in str(error.value)


def test_the_folder_above_is_known_too(folder, tmp_path):
    (tmp_path / "above").mkdir()
    folder.rename(tmp_path / "above" / "test")
    (found,) = find_protocols(tmp_path / "above")
    assert found.name == "rfw" and len(found.images()) == 160


def test_the_command_prints_the_groups(folder, tiny_backbone, tmp_path, capsys):
    line = ["evaluate", "rfw", "--model", tiny_backbone, "--data", str(folder), "--bootstrap", "100"]
    assert main([*line, "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert (
        "standard deviation between groups" in told
        and "skewed error ratio" in told
        and "accuracy, mean of groups" in told
    )
    assert all(f"rfw {group}" in told for group in GROUPS)
    content = json.loads((tmp_path / "out" / "rfw.json").read_text())
    assert [one["setting"] for one in content["results"]] == ["", *GROUPS]
    assert (tmp_path / "out" / "roc_African.png").is_file()
