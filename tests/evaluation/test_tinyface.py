"""The protocol `tinyface`: ranks and average precisions by hand, the lists, and what a folder lacks."""

import json

import numpy as np
import pytest
from scipy.io import savemat
from sklearn.metrics import average_precision_score

from facebones.cli.main import main
from facebones.errors import DataError
from facebones.evaluation import image_search as module
from facebones.evaluation.image_search import search_images
from facebones.evaluation.protocol import find_protocols
from facebones.evaluation.tinyface import DISTRACTOR, TinyFace

GALLERY = ["1_1.jpg", "1_2.jpg", "2_1.jpg", "3_1.jpg"]
DISTRACTORS = ["crowd/a.jpg", "crowd/deep/b.jpg", "c.jpg"]
PROBES = ["1_9.jpg", "2_9.jpg", "3_9.jpg"]
NAMES = [
    *(f"Gallery_Match/{name}" for name in GALLERY),
    *(f"Gallery_Distractor/{name}" for name in DISTRACTORS),
    *(f"Probe/{name}" for name in PROBES),
]
# Degrees: gallery 1_1, 1_2, 2_1, 3_1; distractors c.jpg, crowd/a.jpg, crowd/deep/b.jpg; probes of 1, 2 and 3.
DEGREES = [10, 40, 100, 200, 20, 103, 290, 12, 101, 240]


@pytest.fixture
def folder(put_images):
    return put_images([f"Testing_Set/{name}" for name in NAMES])


def _values(protocol, features):
    (result,) = protocol.compare({"m": features}, bootstrap=100, seed=0)
    return result, {(one.name, one.at.get("rank")): one for one in result.of("m")}


def test_ranks_and_average_precision_by_hand(folder, directions):
    """Three probes of rank 1.

    Of 1 at 12: 1_1 (2 degrees off), c (8), 1_2 (28); precision 1 at the first, 1/2 before and 2/3 at the third. Of 2 at
    101: 2_1 (1), a (2). Of 3 at 240: 3_1 (40), b (50).
    """
    protocol = TinyFace(folder)
    result, values = _values(protocol, directions(DEGREES))
    assert result.sizes == {"probes": 3, "gallery_images": 4, "distractors": 3}
    assert [values["rank", rank].value for rank in (1, 5, 20)] == [1.0, 1.0, 1.0]
    first = (1 / 2) * (1 + 1) / 2 + (1 / 2) * (1 / 2 + 2 / 3) / 2
    assert values["map", None].value == pytest.approx((first + 1 + 1) / 3, abs=1e-12)
    degrees = list(DEGREES)
    degrees[-1] = 260  # of 3: b (30) before 3_1 (60): rank 2, precision 0 before and 1/2 at it
    _, values = _values(protocol, directions(degrees))
    assert values["rank", 1].value == pytest.approx(2 / 3) and values["rank", 5].value == 1
    assert values["map", None].value == pytest.approx((first + 1 + 0.25) / 3, abs=1e-12)
    assert all(one.interval.low <= one.value <= one.interval.high for one in values.values())
    assert values["rank", 1].main and values["rank", 1].interval.resampled == "identities"


def test_a_distractor_that_is_as_similar_ranks_before(folder, directions):
    degrees = list(DEGREES)
    degrees[4] = 14  # as far from the probe at 12 as 1_1 at 10
    assert _values(TinyFace(folder), directions(degrees))[1]["rank", 1].value == pytest.approx(2 / 3)


@pytest.mark.parametrize("block", [3, 50, 4096])
def test_blocks_change_nothing(monkeypatch, block):
    """Against the whole table of scores, with several images of a person on both sides."""
    monkeypatch.setattr(module, "BLOCK", block)
    random = np.random.default_rng(0)
    person_N = np.append(random.integers(0, 12, 60), np.full(70, DISTRACTOR))
    person_K = random.integers(0, 12, 40)
    centres = random.normal(size=(13, 8))
    gallery = (centres[person_N] + random.normal(size=(130, 8)))[:, None].astype(np.float32)
    probes = centres[person_K] + random.normal(size=(40, 8))
    probes = (probes / np.linalg.norm(probes, axis=1, keepdims=True)).astype(np.float32)
    found = search_images(probes, person_K, "made up", gallery, person_N)
    score = probes @ (gallery[:, 0] / np.linalg.norm(gallery[:, 0], axis=1, keepdims=True)).T
    same = person_K[:, None] == person_N[None, :]
    best = np.where(same, score, -2).max(axis=1)
    assert found.rank(40).tolist() == (1 + (score > best[:, None]).sum(axis=1)).tolist()
    # Trapezoids and the sums of scikit-learn differ, but by less than a step.
    steps = [average_precision_score(*pair) for pair in zip(same, score, strict=True)]
    assert (
        np.abs(found.average_precision(40) - steps).max() < 0.2
        and np.corrcoef(found.average_precision(40), steps)[0, 1] > 0.99
    )


def test_lists_beside_the_folders_say_who_is_who(folder, directions):
    root = folder / "Testing_Set"
    listed = np.array(["1_1.jpg", "2_1.jpg", "3_1.jpg"], dtype=object)
    savemat(root / "gallery_match_img_ID_pairs.mat", {"gallery_set": listed, "gallery_ids": np.array([[1], [2], [30]])})
    probes = np.array(["1_9.jpg", "3_9.jpg"], dtype=object)
    savemat(root / "probe_img_ID_pairs.mat", {"probe_set": probes, "probe_ids": np.array([[1], [30]])})
    protocol = TinyFace(folder)
    assert protocol.sizes() == {"probes": 2, "gallery_images": 3, "distractors": 3}
    assert protocol.data.person.tolist() == [1, 2, 30, DISTRACTOR, DISTRACTOR, DISTRACTOR, 1, 30]
    assert [note.partition(": ")[2] for note in protocol.notes()] == [
        f"1 image not in {name} left out" for name in ("gallery_match_img_ID_pairs.mat", "probe_img_ID_pairs.mat")
    ]
    _, values = _values(protocol, directions([10, 100, 200, 20, 103, 290, 12, 240]))
    assert values["rank", 1].value == 1


def test_an_aligned_copy_has_no_testing_set(put_images):
    folder = put_images(NAMES)
    assert [one.name for one in find_protocols(folder)] == ["tinyface"]
    TinyFace(folder).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "Gallery_Distractor").rename(root / "Distractors"), "no folder Gallery_Distractor here"),
        (lambda root: (root / "Probe/1_9.jpg").rename(root / "Probe/ann.jpg"), "ann.jpg: no person in the name"),
        (lambda root: (root / "Gallery_Match/2_1.jpg").unlink(), r"1 person without an image in Gallery_Match \(2\)"),
        (lambda root: [one.unlink() for one in (root / "Probe").iterdir()], "Probe: holds no image"),
        (lambda root: (root / "probe_img_ID_pairs.mat").write_bytes(b"no list"), "not TinyFace's list"),
        (
            lambda root: savemat(root / "probe_img_ID_pairs.mat", {"names": np.array(["1_9.jpg"], dtype=object)}),
            "no array 'probe_set'",
        ),
        (
            lambda root: savemat(
                root / "probe_img_ID_pairs.mat",
                {"probe_set": np.array(["7_7.jpg"], dtype=object), "probe_ids": np.array([[7]])},
            ),
            "lists 7_7.jpg, which is not in",
        ),
    ],
)
def test_what_is_missing_or_renamed_is_one_line(folder, change, message):
    change(folder / "Testing_Set")
    with pytest.raises(DataError, match=message) as error:
        TinyFace(folder).check()
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no TinyFace folder; it holds Testing_Set/Gallery_Match"):
        find_protocols(f"tinyface={tmp_path}")[0].check()


def test_the_command_searches(folder, weights, tmp_path, capsys):
    line = ["evaluate", "tinyface", "--model", str(weights), "--data", str(folder), "--bootstrap", "100"]
    assert main([*line, "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "Rank-20" in told and "mAP" in told
    (section,) = json.loads((tmp_path / "out" / "tinyface.json").read_text())["results"]
    assert section["sizes"]["distractors"] == 3 and (tmp_path / "out" / "cmc.png").is_file()
    assert list((tmp_path / "out" / "features").glob("*.npy"))


def test_a_model_without_a_file_is_said_to_have_random_weights(folder, capsys):
    assert main(["evaluate", "tinyface", "--model", "shufflefacenet_0_5", "--data", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("shufflefacenet_0_5: shufflefacenet_0_5, random weights\n")
