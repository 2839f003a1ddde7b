"""CALFW, CPLFW and XQLFW in the folders that their authors distribute."""

import json

import pytest

from facebones.cli.main import main
from facebones.errors import DataError
from facebones.evaluation.pairs import PairsProtocol, pair_set_files
from facebones.evaluation.protocol import find_protocols

FOLDS = 10


def _marked(marks):
    """Lines and images of a list as CALFW and CPLFW have it: all genuine pairs, then all impostor pairs."""
    pairs = [(f"Ann_{place}a.jpg", f"Ann_{place}b.jpg", mark) for place, mark in enumerate(marks)]
    lines = [f"{name} {mark}" for one, other, mark in pairs for name in (one, other)]
    return lines, [name for pair in pairs for name in pair[:2]]


@pytest.fixture
def make(put_images, tmp_path):
    """Write a set of ten folds with two pairs each: `make(name, folder of its images)`; returns its folder."""

    def write(name, images):
        if name == "xqlfw":
            pairs = [(f"P{fold}\t1\t2", f"P{fold}\t1\tP{(fold + 1) % FOLDS}\t2") for fold in range(FOLDS)]
            lines = ["10\t1", *(line for pair in pairs for line in pair)]
            names, file = [f"P{fold}/P{fold}_000{n}.jpg" for fold in range(FOLDS) for n in (1, 2)], "xqlfw_pairs.txt"
        else:
            marks = [*(range(1, FOLDS + 1) if name == "calfw" else [1] * FOLDS), *[0] * FOLDS]
            (lines, names), file = _marked(marks), f"pairs_{name.upper()}.txt"
        put_images([f"{images}/{one}" for one in names], name)
        (tmp_path / name / file).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("calfw", "aligned images"),
        ("calfw", "images&landmarks/images&landmarks/images"),
        ("cplfw", "aligned images"),
        ("cplfw", "."),
        ("xqlfw", "xqlfw_aligned_112"),
        ("xqlfw", "."),
    ],
)
def test_a_folder_as_published_is_a_set_of_pairs(make, name, images):
    (found,) = find_protocols(make(name, images))
    found.check()
    assert (found.name, found.set, found.pair_set.name) == ("pairs", name, name)
    assert found.pair_set.is_same.tolist() == [True, False] * FOLDS
    if name != "xqlfw":
        numbers = [found.pair_set.names[place] for place in found.pair_set.name_of[::4]]
        assert numbers == [f"Ann_{fold}a.jpg" for fold in range(FOLDS)]  # the fold of each genuine pair


def test_a_list_by_itself_finds_its_images(make):
    assert len(PairsProtocol(make("calfw", "aligned images") / "pairs_CALFW.txt").images()) == 40


def test_aligned_images_are_taken_before_others(make):
    folder = make("calfw", "aligned images")
    (folder / "images").mkdir()
    assert len(find_protocols(folder)[0].images()) == 40


def test_what_is_renamed_or_missing_is_one_line(make, tmp_path):
    folder = make("cplfw", "aligned images")
    (folder / "aligned images").rename(folder / "cropped")
    with pytest.raises(DataError, match=r"pairs_CPLFW\.txt is here, but not its images: none of the folders") as error:
        find_protocols(folder)[0].check()
    assert "--root" in str(error.value) and "\n" not in str(error.value)
    (folder / "pairs_CPLFW.txt").rename(folder / "pairs.txt")
    with pytest.raises(DataError, match=r"holds no pair set \(NAME.bin\), and no list \(pairs_calfw.txt"):
        pair_set_files([folder])


def test_the_command_takes_folders_and_a_root(make, tiny_backbone, tmp_path, capsys):
    folders = [make("calfw", "aligned images"), make("xqlfw", "xqlfw_aligned_112")]
    line = ["evaluate", "pairs", "--model", tiny_backbone, "--bootstrap", "100", "--json", "--data"]
    assert main([*line, *map(str, folders)]) == 0
    assert [one["set"] for one in json.loads(capsys.readouterr().out)["results"]] == ["calfw", "xqlfw"]
    other = make("cplfw", "cropped")
    assert main([*line, str(other), "--root", str(other / "cropped")]) == 0
    (section,) = json.loads(capsys.readouterr().out)["results"]
    assert (section["set"], section["sizes"]) == ("cplfw", {"pairs": 20})
