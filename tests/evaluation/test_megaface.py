"""The protocol `megaface`: known people among distractors, by hand and against the whole table of scores."""

import json

import numpy as np
import pytest

from facebones.cli.main import main
from facebones.errors import DataError
from facebones.evaluation import image_search, megaface
from facebones.evaluation.folder import STEP, sampled_pairs
from facebones.evaluation.megaface import Crowd, MegaFace, sampled_distractors, score_crowd
from facebones.evaluation.protocol import find_protocols
from facebones.statistics.curves import area_under_curve, roc, true_accept_rate_at

PROBES = ["probes/ann/1.jpg", "probes/ann/2.jpg", "probes/bo/1.jpg", "probes/bo/2.jpg", "probes/bo/3.jpg"]


def _names(distractors, folder="distractors"):
    return [*PROBES, *(f"{folder}/{number % 3}/{number:03}.jpg" for number in range(distractors))]


def test_rank_one_by_hand(put_images, directions):
    """Ann at 0 and 10, Bo at 100, 110 and 140, distractors at 3 and 125.

    Pairs, each in both directions: Ann 0-10 (10 apart): 0 fails (3), 10 fails (7). Bo 100-110 (10): 100 finds (25),
    110 finds (15); 100-140 (40): both fail (25, 15); 110-140 (30): both fail (15, 15). So 2 of 8.
    """
    protocol = MegaFace(put_images(_names(2)))
    degrees = np.array([0, 10, 100, 110, 140, 3, 125])
    (result,) = protocol.compare({"m": directions(degrees)}, bootstrap=100, seed=0)
    (rank, *_, auc, eer) = result.of("m")
    assert (rank.name, rank.at, rank.value, rank.main) == ("rank_among", {"rank": 1, "distractors": 2}, 2 / 8, True)
    assert rank.interval.resampled == "identities"
    assert result.sizes == {"probes": 5, "people": 2, "distractors": 2}
    genuine = np.cos(np.radians([10, 10, 40, 30]))
    impostors = np.cos(np.radians(np.abs(degrees[:5, None] - degrees[None, 5:]))).ravel()
    curve = roc(np.append(genuine, impostors), np.arange(14) < 4)
    assert auc.value == pytest.approx(area_under_curve(curve), abs=1e-9) and 0 <= eer.value <= 1


@pytest.mark.parametrize("block", [3, 4096])
def test_blocks_change_nothing(monkeypatch, block):
    monkeypatch.setattr(image_search, "BLOCK", block)
    random = np.random.default_rng(0)
    person = np.sort(random.integers(0, 6, 30))
    crowd = Crowd(files=[""] * 155, person=person, notes=[])
    assert crowd.counts == [10, 100, 125]
    rows = random.normal(size=(155, 8))
    rows[:30] += 2 * random.normal(size=(6, 8))[person]
    pairs, impostors = sampled_pairs(person, 900, 0, 0), sampled_distractors(30, 125, 200, 0)
    found = score_crowd("made up", crowd, rows[:, None].astype(np.float32), pairs[:2], impostors)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    score = unit[:30] @ unit[30:].T
    np.testing.assert_allclose(found.best, [score[:, :count].max(axis=1) for count in (10, 100, 125)], atol=1e-6)
    np.testing.assert_allclose(found.sampled, score[impostors], atol=1e-6)
    same = np.einsum("pd,pd->p", unit[pairs[0]], unit[pairs[1]])
    np.testing.assert_allclose(found.genuine, same, atol=1e-6)
    curve = roc(np.append(same, score.ravel()), np.arange(same.size + score.size) < same.size)
    assert (found.curve.genuine, found.curve.impostors) == (curve.genuine, curve.impostors)
    assert area_under_curve(found.curve) == pytest.approx(area_under_curve(curve), abs=STEP)
    assert true_accept_rate_at(found.curve, 0.1) == pytest.approx(true_accept_rate_at(curve, 0.1), abs=2 / same.size)


def test_an_equally_similar_distractor_ranks_before(put_images, directions):
    degrees = [0, 10, 100, 110, 140, 20, 300]  # 20 is as far from Ann's 10 as her 0 is
    (result,) = MegaFace(put_images(_names(2))).compare({"m": directions(degrees)}, bootstrap=100, seed=0)
    assert result.of("m")[0].value == 7 / 8


def test_sampled_distractors_are_distinct_pairs():
    probe, distractor = sampled_distractors(50, 1000, 700, seed=1)
    assert len({*zip(probe.tolist(), distractor.tolist(), strict=True)}) == 700
    assert probe.max() < 50 and (np.diff(distractor) >= 0).all() and distractor.max() > 900


def test_more_than_a_million_distractors_are_left_out(put_images, monkeypatch):
    monkeypatch.setattr(megaface, "MOST_DISTRACTORS", 5)
    protocol = MegaFace(put_images(_names(8)))
    assert protocol.sizes()["distractors"] == 5 and "3 of 8 left out" in protocol.notes()[0]


def test_names_of_the_challenge_are_known(put_images):
    names = [name.replace("probes", "facescrub_images") for name in _names(3, "megaface_images")]
    (found,) = find_protocols(put_images(names))
    found.check()
    assert found.name == "megaface" and len(found.images()) == 8


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["distractors/a.jpg"], "no folder probes or facescrub_images here"),
        (PROBES, "no folder distractors or megaface_images here"),
        ([*PROBES, "distractors/a.txt"], "distractors: holds no image"),
        (["probes/a.jpg", "distractors/a.jpg"], "in no folder of a person"),
        (["probes/ann/1.jpg", "probes/bo/1.jpg", "distractors/a.jpg"], "no two photos of one"),
    ],
)
def test_what_is_missing_is_one_line(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=message) as error:
        MegaFace(tmp_path).check()
    assert "\n" not in str(error.value)


def test_the_command_compares_models(put_images, tiny_backbone, tmp_path, capsys):
    folder = put_images(_names(12))
    line = ["evaluate", "megaface", "--data", str(folder), "--model", f"a={tiny_backbone}", "--bootstrap", "100"]
    assert main([*line, "--model", f"b={tiny_backbone}", "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "Rank-1 among 10 distractors" in told and "Rank-1 among 12 distractors" in told
    (section,) = json.loads((tmp_path / "out" / "megaface.json").read_text())["results"]
    assert [one["at"].get("distractors") for one in section["metrics"][:2]] == [10, 12]
    assert section["curves"]["distractors"]["a"]["distractors"] == [10, 12]
    assert {"a_set_roc.npz", "roc_set.png", "distractors.png", "distractors.pdf"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
