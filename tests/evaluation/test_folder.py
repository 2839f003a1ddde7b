"""The protocol `folder`: all pairs of a labelled folder, counted exactly."""

import json

import numpy as np
import pytest
from sklearn import metrics

from facebones.cli.main import main
from facebones.errors import ConfigError, DataError
from facebones.evaluation import folder as module
from facebones.evaluation.folder import STEP, FolderProtocol, all_pairs_curve, sampled_pairs
from facebones.evaluation.protocol import find_protocols
from facebones.statistics.curves import area_under_curve, equal_error_rate, roc, true_accept_rate_at


def _faces(images, people, seed=0, spread=1.0, size=32):
    random = np.random.default_rng(seed)
    labels = random.integers(0, people, images)
    rows = random.normal(size=(people, size))[labels] + spread * random.normal(size=(images, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def _listed(rows, labels):
    first, second = np.triu_indices(len(rows), 1)
    cosine = np.einsum("pd,pd->p", rows[first].astype(np.float64), rows[second])
    return np.round(cosine / STEP) * STEP, labels[first] == labels[second]


@pytest.mark.parametrize("tile", [7, 64, 4096])
def test_the_counted_curve_is_that_of_the_listed_pairs(monkeypatch, tile):
    monkeypatch.setattr(module, "TILE", tile)
    rows, labels = _faces(300, 40)
    counted, listed = all_pairs_curve(rows, labels), roc(*_listed(rows, labels))
    assert (counted.genuine, counted.impostors) == (listed.genuine, listed.impostors)
    assert area_under_curve(counted) == pytest.approx(area_under_curve(listed), abs=1e-7)
    assert equal_error_rate(counted) == pytest.approx(equal_error_rate(listed), abs=1e-4)
    for far in (1e-4, 1e-3, 1e-2, 0.1):  # a rounded product may be one step off, which can move one pair
        one_pair = 1.5 / listed.genuine
        assert true_accept_rate_at(counted, far) == pytest.approx(true_accept_rate_at(listed, far), abs=one_pair)


def test_the_counted_curve_is_that_of_scikit_learn():
    rows, labels = _faces(200, 30, seed=3)
    score, same = _listed(rows, labels)
    far, tar, _ = metrics.roc_curve(same, score)
    assert area_under_curve(all_pairs_curve(rows, labels)) == pytest.approx(metrics.auc(far, tar), abs=1e-7)


def test_people_may_stand_in_any_order():
    rows, labels = _faces(120, 11)
    order = np.random.default_rng(1).permutation(120)
    one, other = all_pairs_curve(rows, labels), all_pairs_curve(rows[order], labels[order] * 7 + 3)
    assert (one.genuine, one.impostors) == (other.genuine, other.impostors)
    assert area_under_curve(one) == pytest.approx(area_under_curve(other), abs=1e-9)


def test_sampled_pairs_are_distinct_and_of_their_kind():
    labels = np.random.default_rng(0).integers(0, 50, 400)
    first, second = sampled_pairs(labels, 300, 1000, seed=1)
    assert (first < second).all() and len({*zip(first.tolist(), second.tolist(), strict=True)}) == 1300
    assert (labels[first] == labels[second]).tolist() == [True] * 300 + [False] * 1000
    again = sampled_pairs(labels, 300, 1000, seed=1)
    assert np.array_equal(first, again[0]) and not np.array_equal(first, sampled_pairs(labels, 300, 1000, seed=2)[0])


def test_all_pairs_are_sampled_where_they_are_few():
    labels = np.random.default_rng(0).integers(0, 9, 60)
    first, second = sampled_pairs(labels, 10**6, 10**6, seed=0)
    every = {*zip(*(side.tolist() for side in np.triu_indices(60, 1)), strict=True)}
    assert {*zip(first.tolist(), second.tolist(), strict=True)} == every and first.size == len(every)


def test_each_genuine_pair_is_drawn_equally_often():
    labels = np.repeat(np.arange(4), [2, 3, 5, 40])
    drawn = [sampled_pairs(labels, 50, 1, seed=seed) for seed in range(200)]
    big = sum(int((labels[first] == 3).sum() - (labels[first[-1]] == 3)) for first, _ in drawn)
    assert big / (200 * 50) == pytest.approx(780 / 794, abs=0.01)


def _embedded(protocol, seed=0):
    labels = np.asarray(protocol.data.labels)
    random = np.random.default_rng(seed)
    rows = random.normal(size=(labels.max() + 1, 16))[labels] + 0.8 * random.normal(size=(labels.size, 16))
    return rows[:, None].astype(np.float32)


def test_values_are_of_all_pairs_and_intervals_contain_them(small_data, monkeypatch):
    protocol = FolderProtocol(small_data.parent / "images")
    features = _embedded(protocol)
    (result,) = protocol.compare({"a": features}, bootstrap=200, seed=0)
    rows = (features[:, 0] / np.linalg.norm(features[:, 0], axis=1, keepdims=True)).astype(np.float32)
    curve = all_pairs_curve(rows, np.asarray(protocol.data.labels))
    values = {metric.name: metric for metric in result.of("a") if metric.value is not None}
    assert values["auc"].value == pytest.approx(area_under_curve(curve), abs=1e-12)
    assert all(one.interval.low <= one.value <= one.interval.high for one in values.values())
    assert all(one.interval.resampled == "identities" for one in values.values())
    monkeypatch.setattr(module, "SAMPLED", 100)  # fewer pairs than there are
    (fewer,) = FolderProtocol(protocol.path).compare({"a": features}, bootstrap=200, seed=0)
    sampled = {metric.name: metric for metric in fewer.of("a") if metric.value is not None}
    assert sampled["auc"].value == pytest.approx(values["auc"].value, abs=1e-12)
    assert sampled["auc"].interval != values["auc"].interval


def test_a_folder_is_found_only_by_name(small_data):
    images = small_data.parent / "images"
    (found,) = find_protocols(f"folder={images}")
    assert (found.name, found.set) == ("folder", "images")
    with pytest.raises(DataError, match="no evaluation set of the protocols pairs"):
        find_protocols(images)


def test_a_folder_without_genuine_pairs_is_refused(small_data, tmp_path):
    photos = sorted((small_data.parent / "images").glob("*/*.jpg"))
    for number, photo in enumerate({photo.parent: photo for photo in photos}.values()):
        (tmp_path / f"person{number}").mkdir()
        (tmp_path / f"person{number}" / "a.jpg").write_bytes(photo.read_bytes())
    with pytest.raises(DataError, match="no person has two images"):
        FolderProtocol(tmp_path).check()


def test_the_command_writes_results_and_plots(small_data, tiny_backbone, tmp_path, capsys):
    line = ["evaluate", "folder", "--model", tiny_backbone, "--data", str(small_data.parent / "images")]
    assert main([*line, "--bootstrap", "100", "--output", str(tmp_path / "all")]) == 0
    assert "images all pairs" in capsys.readouterr().out
    content = json.loads((tmp_path / "all" / "folder.json").read_text())
    (section,) = content["results"]
    assert section["sizes"]["impostors"] > 100 and (tmp_path / "all" / "roc.png").is_file()
    assert main([*line, "--bootstrap", "100", "--pairs", "50", "--output", str(tmp_path / "some")]) == 0
    (section,) = json.loads((tmp_path / "some" / "folder.json").read_text())["results"]
    assert section["sizes"]["impostors"] == 50
    assert main([*line, "--pairs", "20000000"]) == 2
    assert "at most 10,000,000, or all" in capsys.readouterr().err


def test_other_protocols_refuse_a_calibration(example_protocol):
    with pytest.raises(ConfigError, match="has no pairs to choose a threshold on"):
        example_protocol.scored_pairs(np.zeros((1, 1, 4), np.float32))


@pytest.fixture
def example_protocol(small_data):
    from facebones.evaluation.protocol import Protocol

    class Plain(Protocol):
        name = "plain"
        find = images = evaluate = None

    Plain.__abstractmethods__ = frozenset()
    return Plain(small_data)
