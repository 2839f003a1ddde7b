"""The catalogue of face sets: every record is whole and names its sources, and tables fit their terminal."""

import json
import re
import socket
from pathlib import Path

import pytest

from facebones.cli.main import main
from facebones.data.training_set import list_data_formats
from facebones.datatools.face_sets import FACTS, FORMATS, KINDS, STATES, USES, read_catalogue
from facebones.datatools.face_sets_page import catalogue_page
from facebones.errors import UnknownNameError

PAGE = Path(__file__).parents[2] / "docs" / "data-catalogue.md"
SETS = read_catalogue().sets
# What an issue asked for by name; a set may be split into several of one family.
WANTED = (
    *("MS1MV2", "MS1MV3", "Glint360K", "WebFace4M", "WebFace12M", "WebFace42M", "WebFace260M", "CASIA-WebFace"),
    *("VGGFace2", "CelebA", "UMDFaces", "IMDb-Face", "DigiFace-1M", "SynFace", "DCFace", "IDiff-Face", "HSFace"),
    *("GANDiffFace", "CemiFace", "Arc2Face", "LFW", "CFP-FP", "AgeDB-30", "CALFW", "CPLFW", "XQLFW", "CACD-VS"),
    *("IJB-A", "IJB-B", "IJB-C", "MegaFace", "TinyFace", "RFW", "SCface", "BUPT-Balancedface"),
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the catalogue needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_a_record_is_whole(one):
    catalogue = read_catalogue()
    assert one.use in USES and one.kind in KINDS and one.state.value in STATES
    assert set(one.formats.value) <= set(FORMATS)
    assert 1990 < one.year.value <= int(catalogue.date[:4])
    assert all(fact.source is None or fact.source in catalogue.sources for fact in one.facts().values())
    assert one.state.value == "unknown" or one.link or one.state.value == "withdrawn"
    assert not one.link or re.fullmatch(r"https?://\S+", one.link)
    for count in (one.people.value, one.images.value):
        assert count is None or (isinstance(count, int) and count > 0)
    if one.people.value and one.images.value:
        assert one.people.value <= one.images.value
    lengths = {"md5": 32, "sha256": 64}
    for each in one.checksums:
        assert re.fullmatch(f"[0-9a-f]{{{lengths[each.algorithm]}}}", each.digest) and each.source in catalogue.sources


def test_the_catalogue_has_what_was_asked_for_and_no_name_twice():
    names = [name.lower() for one in SETS for name in {one.name, *one.also}]
    assert len(names) == len(set(names))
    catalogue = read_catalogue()
    assert all(catalogue.find([name]) for name in WANTED)
    assert all(re.fullmatch(r"https?://\S+", source["url"]) for source in catalogue.sources.values())
    used = {fact.source for one in SETS for fact in one.facts().values()}
    used |= {each.source for one in SETS for each in one.checksums}
    assert used - {None} == set(catalogue.sources), "each source is of a fact"
    digests = [each.digest for one in SETS for each in one.checksums]
    assert len(digests) == len(set(digests))


def test_formats_are_those_that_are_read():
    assert set(list_data_formats()) >= set(FORMATS) - {"bin", "pair list", "ijb lists"}


def test_a_name_in_any_spelling_shows_one_set(capsys):
    for name in ("Glint360K", "glint360k", "GLINT-360K"):
        assert main(["data", "catalogue", name]) == 0
        out = capsys.readouterr().out
        assert out.startswith("Glint360K (training, photos)\n") and "  people   360,232 [1]\n" in out
        assert "    md5 8483be5af6f9906e19f85dee49132f8e  train.rec\n" in out
        assert "  [1] InsightFace, Partial FC and Glint360K: https://github.com/" in out
    main(["data", "catalogue", "faces_emore"])
    assert capsys.readouterr().out.startswith("MS1MV2")
    main(["data", "catalogue", "bfw"])
    assert "people   800 (not verified)\n" in capsys.readouterr().out


def test_words_narrow_the_list(capsys):
    catalogue = read_catalogue()
    assert [one.name for one in catalogue.find(["webface", "lmdb"])] == ["WebFace4M"]
    assert {one.kind for one in catalogue.find(["synthetic"])} == {"synthetic"}
    assert [one.name for one in catalogue.find(["IJB-?", "ijb lists"])] == ["IJB-B", "IJB-C"]
    assert [one.name for one in catalogue.find(["MegaFace"])] == ["MegaFace"], "a name in full, not a part of one"
    assert catalogue.find([]) == catalogue.sets
    with pytest.raises(UnknownNameError, match="unknown face set 'Glint36K'; did you mean 'Glint360K'"):
        catalogue.find(["Glint36K"])
    assert main(["data", "catalogue", "synthetic", "photos"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UnknownNameError):
        catalogue.find(["..."])


def test_json_has_every_fact_with_its_source(capsys):
    assert main(["data", "catalogue", "hsface", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in content["sets"]][:2] == ["HSFace10K", "HSFace20K"]
    for row in content["sets"]:
        assert all(row[name]["source"] in content["sources"] for name in FACTS)
    assert content["date"] == read_catalogue().date


@pytest.mark.parametrize("width", [80, 200])
def test_tables_fit_the_terminal(monkeypatch, capsys, width):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    assert main(["data", "catalogue"]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = out.splitlines()
    assert sum(line.startswith("┏") for line in lines) == 3, "three tables, not a block for each set"
    assert max(len(line) for line in lines if line.startswith(("│", "┏"))) <= width
    assert ("paper" in out) == (width == 200)
    for one in SETS:
        assert one.name.split(" (")[0] in out


def test_a_pipe_gets_all_columns(capsys):
    main(["data", "catalogue", "test"])
    out = capsys.readouterr().out
    assert "terms" in out and "Huang et al., Labeled Faces in the Wild, 2007" in out
    assert "15 sets, looked up on " in out


def test_the_page_is_that_of_the_command(capsys):
    assert main(["data", "catalogue", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text() == catalogue_page(read_catalogue())
    assert all(f"[{one.name}](" in PAGE.read_text() or f"| {one.name} |" in PAGE.read_text() for one in SETS)
    assert main(["data", "catalogue", "--markdown", "lfw"]) == 2
    assert "--markdown prints the whole page" in capsys.readouterr().err
