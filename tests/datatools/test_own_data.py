"""The commands of docs/own-data.md, run as they stand there on real photos."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from facebones.cli.main import main
from facebones.data.pair_bins import read_pairs

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
TEST_PEOPLE = 40  # of 120


def commands():
    """The commands of the first block: from photos to a report."""
    return _blocks()[0]


def _blocks():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [[shlex.split(line)[1:] for line in block.splitlines()] for block in blocks]


def fine_tuning(base):
    """The commands of the second block, from the weights of a run, and short."""
    train, evaluate = ([word.replace("runs/base", base) for word in words] for words in _blocks()[1])
    short = ["--batch-size", "32", "--epochs", "2", "--backbone", "shufflefacenet_0_5", "--device", "cpu"]
    return [[*train, *short], evaluate]


def subjects(meta):
    """Template to subject."""
    found = {}
    for name in ("gallery_G1", "gallery_G2", "probe_mixed"):
        with (meta / f"ijbc_1N_{name}.csv").open(newline="") as file:
            found |= {row["TEMPLATE_ID"]: row["SUBJECT_ID"] for row in csv.DictReader(file)}
    return found


def arrange(ijb, photos):
    """Sort the loose crops by person, into people to train on and people to test on."""
    subject_of = subjects(ijb / "meta")
    for line in (ijb / "meta" / "ijbc_face_tid_mid.txt").read_text().splitlines():
        name, template, _ = line.split()
        person = subject_of[template]
        place = photos / ("test" if int(person) <= TEST_PEOPLE else "train") / person
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(ijb / "loose_crop" / name, place / name)


@pytest.mark.faces
@pytest.mark.slow
def test_the_page_leads_from_photos_to_a_measured_model(real_faces, yunet, tmp_path, monkeypatch, capsys):
    arrange(real_faces / "ijb_lfw", tmp_path / "photos")
    shutil.copy(yunet, tmp_path / "face_detection_yunet_2023mar.onnx")
    monkeypatch.chdir(tmp_path)
    for words in commands():
        assert main(words) == 0, (words, capsys.readouterr().err)
    output = capsys.readouterr().out
    assert "photos -> faces: 680 faces in 120 folders" in output
    pairs = read_pairs("people.bin")
    assert (len(pairs), int(pairs.is_same.sum())) == (400, 200)
    models = json.loads(Path("comparisons/own/evaluation/pairs.json").read_text())["results"][0]["details"]
    assert len(models) == 4
    assert max(model["accuracy"] for model in models.values()) > 0.55
    assert "shufflefacenet_0_5" in Path("comparisons/own/report/report.html").read_text()
    for words in fine_tuning("comparisons/own/runs/shufflefacenet_0_5/seed0"):
        assert main(words) == 0, (words, capsys.readouterr().err)
    models = json.loads(Path("results/tuned/pairs.json").read_text())["results"][0]["details"]
    assert {*models} == {"before", "after"} and models["after"]["accuracy"] > 0.55


def test_the_page_has_the_commands_of_the_way():
    names = ["data align", "data pairs", "data convert", "data inspect", "compare small_data"]
    assert [" ".join(words[:2]) for words in commands()] == names
    assert [" ".join(words[:2]) for words in fine_tuning("x")] == ["train fine_tune", "evaluate pairs"]
