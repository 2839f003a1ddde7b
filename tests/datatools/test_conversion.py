"""Conversions: every image byte survives, what was there stays, and an interruption costs nothing."""

import filecmp
import json
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from facebones.cli.main import main
from facebones.data.folders import open_training_set
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import MAGIC_BYTES, Header, RecordFile, pack
from facebones.datatools import convert as conversion
from facebones.datatools.convert import HEADERS_FOLDER, convert
from facebones.datatools.partial_folder import record_name
from facebones.errors import DataError, FaceBonesError, RunError

FACES = Path(__file__).parents[3] / "shared" / "faces" / "celeba_cfp"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "data_formats.md"
RECORD = record_name("conversion")
FILES = ("train.rec", "train.idx", "property")


@pytest.fixture(autouse=True, params=[1, 3], ids=["one process", "three"])
def processes(request, monkeypatch):
    """Everything holds whether this process writes the files or others do."""
    monkeypatch.setattr(conversion, "BLOCK_RECORDS", 2)
    monkeypatch.setattr(conversion, "BLOCKS_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(conversion.os, "cpu_count", lambda: request.param)


def image(number: int, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, np.full((6, 4, 3), 20 * number, np.uint8))[1].tobytes()


def write_insightface(folder: Path) -> Path:
    """Five images of two identities, in the order of mxnet: images, identities, record 0."""
    folder.mkdir(parents=True)
    with RecordWriter(folder / "train.rec") as writer:
        for key, label in enumerate([0, 0, 1, 1, 1], 1):
            writer.write(key, pack(Header(float(label), key), image(key)))
        writer.write(6, pack(Header((1.0, 3.0), 6)))
        writer.write(7, pack(Header((3.0, 6.0), 7)))
        writer.write(0, pack(Header((6.0, 8.0), 0)))
    (folder / "property").write_text("2,6,4\n")
    return folder


def write_odd(folder: Path) -> Path:
    """No record 0, two labels, ids that are not the keys, gaps, several encodings, a magic number in an image."""
    folder.mkdir(parents=True)
    hidden = image(3, ".bmp") + bytes(2) + MAGIC_BYTES * 2
    with RecordWriter(folder / "train.rec") as writer:
        writer.write(40, pack(Header((7.0, 1.0, 0.5), 3, 9), image(1, ".png")))
        writer.write(5, pack(Header((2.0, 0.0), 99), image(2, ".webp")))
        writer.write(12, pack(Header(2.0, 12), hidden))
        writer.write(100, pack(Header((7.0,), 100), image(4)))
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("make", [write_insightface, write_odd])
def test_records_to_folder_and_back_byte_for_byte(tmp_path, make):
    source = make(tmp_path / "source")
    done = convert(source, tmp_path / "folder")
    assert done.images == len(open_training_set(source)) == len(open_training_set(tmp_path / "folder"))
    convert(tmp_path / "folder", tmp_path / "again")
    for name in FILES[:2]:
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "folder", "source"]


def test_files_are_the_images_themselves(tmp_path):
    convert(write_insightface(tmp_path / "source") / "train.rec", tmp_path / "folder")
    files = files_below(tmp_path / "folder")
    names = ["0/1.jpg", "0/2.jpg", "1/3.jpg", "1/4.jpg", "1/5.jpg"]
    assert {name: files[name] for name in names} == {name: image(int(name[2])) for name in names}
    assert set(files) - set(names) == {RECORD, *(f"{HEADERS_FOLDER}/{name}" for name in FILES)}
    assert open_training_set(tmp_path / "folder").notes == []


def test_endings_follow_the_content_and_names_keep_the_order(tmp_path):
    convert(write_odd(tmp_path / "source"), tmp_path / "folder")
    assert {name for name in files_below(tmp_path / "folder") if not name.startswith(".")} == {
        "7/040.png",
        "2/005.webp",
        "2/012.bmp",
        "7/100.jpg",
    }


def test_a_folder_without_its_headers_gives_the_layout_of_insightface(tmp_path):
    source = write_insightface(tmp_path / "source")
    folder = tmp_path / "folder"
    convert(source, folder)
    for name in FILES:
        (folder / HEADERS_FOLDER / name).unlink()
    (folder / HEADERS_FOLDER).rmdir()
    convert(folder, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (source / name).read_bytes()


def test_own_folder_to_a_record_file(tmp_path):
    for name in ("zoe/b.jpg", "ann/1.png", "zoe/a.jpg"):
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).write_bytes(image(ord(name[4]) % 8, name[-4:]))
    done = convert(tmp_path / "faces", tmp_path / "out" / "faces.rec")
    assert str(done).endswith("faces.rec: 3 images of 2 identities")
    data = open_training_set(tmp_path / "out" / "faces.rec")
    assert [data.read(i)[1] for i in range(3)] == [0, 1, 1]
    assert data.read(1)[0] == (tmp_path / "faces" / "zoe" / "a.jpg").read_bytes()
    assert (tmp_path / "out" / "property").read_text() == "2,6,4\n"
    assert RecordFile(tmp_path / "out" / "faces.rec").keys.tolist() == [1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("change", ["remove", "add", "rename"])
def test_folder_that_was_changed_is_not_passed_off_as_the_old_one(tmp_path, change):
    folder = tmp_path / "folder"
    convert(write_insightface(tmp_path / "source"), folder)
    if change == "add":
        (folder / "1" / "9.jpg").write_bytes(image(9))
    else:
        (folder / "1" / "4.jpg").rename(folder / "1" / ("4.txt" if change == "remove" else "8.jpg"))
    with pytest.raises(DataError, match=rf"restore the folder, or remove .*{HEADERS_FOLDER} to write it with new keys"):
        convert(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_path_among_the_headers_cannot_lead_elsewhere(tmp_path):
    folder = tmp_path / "folder"
    convert(write_insightface(tmp_path / "source"), folder)
    with RecordWriter(folder / HEADERS_FOLDER / "train.rec") as writer:
        for key in range(5):
            writer.write(key, pack(Header(0.0, key), b"../../../etc/passwd"))
    with pytest.raises(DataError, match="is no path of an image"):
        convert(folder, tmp_path / "again")


def test_broken_record_stops_with_its_offset_and_a_mended_source_goes_on(tmp_path):
    source = write_insightface(tmp_path / "source")
    sound = (source / "train.rec").read_bytes()
    offset = int(RecordFile(source / "train.rec").offsets[3])
    (source / "train.rec").write_bytes(sound[:offset] + b"JUNK" + sound[offset + 4 :])
    with pytest.raises(DataError, match=rf"train\.rec, byte {offset}: 0x4b4e554a"):
        convert(source, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    (source / "train.rec").write_bytes(sound)
    with pytest.raises(DataError, match=r"folder\.partial: left by an interrupted conversion; continue with --resume"):
        convert(source, tmp_path / "folder")
    assert convert(source, tmp_path / "folder", resume=True).kept >= 3
    convert(source, tmp_path / "whole")
    assert files_below(tmp_path / "folder") == files_below(tmp_path / "whole")


def test_record_without_an_image_is_named(tmp_path):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, pack(Header(0.0, 0), image(1)))
        writer.write(1, pack(Header(1.0, 1), b"text instead"))
    with pytest.raises(DataError, match=r"a\.rec, key 1, byte \d+: 12 bytes that are no JPEG.*74 65 78 74"):
        convert(tmp_path / "a.rec", tmp_path / "folder")


def test_resume_mends_a_finished_folder(tmp_path):
    source, folder = write_insightface(tmp_path / "source"), tmp_path / "folder"
    convert(source, folder)
    before = files_below(folder)
    (folder / "0" / "2.jpg").unlink()
    (folder / "1" / "4.jpg").write_bytes(image(4)[:50])
    done = convert(source, folder, resume=True)
    assert done.kept == 3
    assert "3 of them kept" in str(done)
    assert files_below(folder) == before


def test_resume_refuses_what_does_not_come_from_the_source(tmp_path):
    source, folder = write_insightface(tmp_path / "source"), tmp_path / "folder"
    convert(source, folder)
    (folder / "1" / "stranger.jpg").write_bytes(image(1))
    before = files_below(folder)
    with pytest.raises(DataError, match=r"folder/1/stranger\.jpg: does not come from this source"):
        convert(source, folder, resume=True)
    assert files_below(folder) == before and not (tmp_path / "folder.partial").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").touch()
    with pytest.raises(DataError, match="mine: not a conversion to continue"):
        convert(source, mine, resume=True)
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


def write_numbered(path: Path, numbers: list[int], labels: list[int] | None = None) -> Path:
    """A record file without record 0, or a verification set, as the name says."""
    if path.suffix == ".bin":
        write_pairs(path, [image(number) for number in numbers], [True, False][: len(numbers) // 2])
        return path
    with RecordWriter(path) as writer:
        for key, number in enumerate(numbers):
            label = (labels or [0, 0, 1, 1])[key]
            writer.write(key, pack(Header(float(label), key), image(number)))
    return path


FOREIGN = {
    "other labels": ("a.rec", [1, 2, 3, 4], [0, 1, 1, 1]),
    "other images": ("b.rec", [1, 6, 7, 8], None),
    "other images under the old name": ("a.rec", [1, 6, 7, 8], None),
    "fewer images": ("b.rec", [1, 2, 3], None),
    "a verification set": ("lfw.bin", [1, 2, 3, 4], None),
}


@pytest.mark.parametrize("partial", [False, True], ids=["finished", "partial"])
@pytest.mark.parametrize("name", FOREIGN)
def test_resume_leaves_the_folder_of_another_source_as_it_is(tmp_path, capsys, name, partial):
    folder = tmp_path / "out"
    convert(write_numbered(tmp_path / "a.rec", [1, 2, 3, 4]), folder)
    if partial:
        (folder / "0" / "1.jpg").unlink()
        folder = folder.rename(tmp_path / "out.partial")
    before = files_below(folder)
    file, numbers, labels = FOREIGN[name]
    (tmp_path / "other").mkdir()
    other = write_numbered(tmp_path / "other" / file, numbers, labels)
    assert main(["data", "convert", str(other), str(tmp_path / "out"), "--resume"]) == 2
    told = f"{folder}: was begun with another source (a.rec); give the same, or choose another name\n"
    assert capsys.readouterr().err.endswith(told)
    assert files_below(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.idx", "a.rec", "other", folder.name]


def test_resume_leaves_the_pairs_of_another_verification_set_as_they_are(tmp_path):
    convert(write_numbered(tmp_path / "a.bin", [1, 2, 3, 4]), tmp_path / "out")
    before = files_below(tmp_path / "out")
    with pytest.raises(DataError, match=r"out: was begun with another source \(a\.bin\)"):
        convert(write_numbered(tmp_path / "b.bin", [1, 6, 7, 8]), tmp_path / "out", resume=True)
    assert files_below(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["lfw", "headers alone", "no JSON"])
def test_resume_leaves_a_folder_that_no_conversion_has_marked(tmp_path, kind):
    """LFW's own list is called pairs.txt as well; and other programs may know a folder by a name of ours."""
    source = write_numbered(tmp_path / ("a.rec" if kind == "headers alone" else "lfw.bin"), [1, 2, 3, 4])
    if kind == "headers alone":
        convert(source, tmp_path / "out")
        (tmp_path / "out" / RECORD).unlink()
    else:
        (tmp_path / "out" / "Ann").mkdir(parents=True)
        (tmp_path / "out" / "pairs.txt").write_text("1\t1\nAnn\t1\t2\nAnn\t1\tBo\t1\n")
        (tmp_path / "out" / "Ann" / "Ann_0001.jpg").write_bytes(image(9))
    if kind == "no JSON":
        (tmp_path / "out" / RECORD).write_text("mine")
    before = files_below(tmp_path / "out")
    told = "cannot be read; choose another name" if kind == "no JSON" else f"has no {RECORD}; choose another name"
    with pytest.raises(DataError, match=told):
        convert(source, tmp_path / "out", resume=True)
    assert files_below(tmp_path / "out") == before and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("file", ["a.rec", "a.bin"])
def test_a_source_that_was_moved_goes_on_and_a_whole_folder_stays_as_it_is(tmp_path, file):
    source = write_numbered(tmp_path / file, [1, 2, 3, 4])
    convert(source, tmp_path / "out")
    before = files_below(tmp_path / "out")
    for _ in range(2):
        assert convert(source, tmp_path / "out", resume=True).kept == 4
        assert files_below(tmp_path / "out") == before
    (tmp_path / "elsewhere").mkdir()
    moved = source.rename(tmp_path / "elsewhere" / f"moved{source.suffix}")  # without an index: it is scanned
    (tmp_path / "out").rename(tmp_path / "out.partial")
    assert convert(moved, tmp_path / "out", resume=True).kept == 4
    after = files_below(tmp_path / "out")
    assert json.loads(after.pop(RECORD))["source"]["name"] == moved.name
    assert before.pop(RECORD) and after == before


def test_a_finished_folder_has_its_name_again_after_a_failure(tmp_path, monkeypatch):
    source, folder = write_insightface(tmp_path / "source"), tmp_path / "folder"
    convert(source, folder)
    whole = files_below(folder)
    (folder / "1" / "4.jpg").unlink()
    damaged = files_below(folder)
    write = conversion.os.write
    full = lambda file, content: 0 if content == image(4) else write(file, content)  # noqa: E731
    monkeypatch.setattr(conversion.os, "write", full)
    with pytest.raises(RunError, match=r"folder/1/4\.jpg: cannot be written: No space left on device"):
        convert(source, folder, resume=True)
    monkeypatch.undo()
    assert files_below(folder) == damaged | {"1/4.jpg": b""} and not (tmp_path / "folder.partial").exists()
    convert(source, folder, resume=True)
    assert files_below(folder) == whole
    (tmp_path / "folder.partial").mkdir()
    with pytest.raises(DataError, match=r"folder\.partial: stands beside the finished .*folder; remove one of them"):
        convert(source, folder, resume=True)


def test_full_disk_is_one_line_and_can_be_continued(tmp_path, monkeypatch):
    source = write_insightface(tmp_path / "source")
    write = conversion.os.write
    monkeypatch.setattr(
        conversion.os,
        "write",
        lambda file, content: len(content) // 2 if content == image(3) else write(file, content),
    )
    with pytest.raises(RunError, match=r"1/3\.jpg: cannot be written: No space left on device; .*--resume"):
        convert(source, tmp_path / "folder")
    monkeypatch.undo()
    assert convert(source, tmp_path / "folder", resume=True).kept >= 2
    assert (tmp_path / "folder" / "1" / "3.jpg").read_bytes() == image(3)


def test_property_of_another_set_stays_and_stops_nothing(tmp_path):
    source = write_insightface(tmp_path / "source")
    convert(source, tmp_path / "folder")
    (tmp_path / "folder" / "2").mkdir()
    (tmp_path / "folder" / "2" / "1.jpg").write_bytes(image(9))
    (tmp_path / "folder" / HEADERS_FOLDER).rename(tmp_path / "headers")
    done = convert(tmp_path / "folder", source / "other.rec")
    assert done.notes == (f"{source}/property: unchanged, because it belongs to another set; other.rec gets none",)
    assert (source / "property").read_text() == "2,6,4\n"
    other = open_training_set(source / "other.rec")
    assert (other.num_identities, other.notes) == (3, []), "the property beside it says 2, but not of this set"
    assert open_training_set(source).notes == []


@pytest.mark.parametrize("target", ["there", "there/train.rec"])
def test_what_exists_is_refused_and_stays(tmp_path, target):
    source = write_insightface(tmp_path / "source")
    convert(source, tmp_path / "folder")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "train.idx").write_text("mine")
    with pytest.raises(DataError, match="exists already; remove it or choose another name"):
        convert(tmp_path / "folder", tmp_path / target)
    if target == "there":
        with pytest.raises(DataError, match="there: exists already"):
            convert(source, tmp_path / target)
    assert files_below(tmp_path / "there") == {"train.idx": b"mine"}


def test_empty_folder_may_be_there_already(tmp_path):
    source = write_insightface(tmp_path / "source")
    for name in ("folder", "again"):
        (tmp_path / name).mkdir()
    convert(source, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "again")
    assert len(open_training_set(tmp_path / "again")) == 5


def test_failed_record_file_leaves_nothing(tmp_path):
    for name, content in (("a/1.jpg", image(1)), ("b/1.jpg", b"")):
        (tmp_path / "faces" / name).parent.mkdir(parents=True)
        (tmp_path / "faces" / name).write_bytes(content)
    for target in ("out", "train.rec"):
        with pytest.raises(DataError, match=r"b/1\.jpg: 0 bytes that are no JPEG.*start with nothing"):
            convert(tmp_path / "faces", tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_verification_sets_are_said_to_stay(tmp_path):
    source = write_insightface(tmp_path / "source")
    write_pairs(source / "lfw.bin", [image(1), image(2)], [True])
    assert convert(source, tmp_path / "folder").notes == ("left where they are: lfw.bin; convert each by itself",)


def test_pairs_to_folder_and_back(tmp_path):
    images = [image(number % 5, suffix) for number, suffix in enumerate([".jpg", ".png"] * 11)]
    same = [True, False, False] * 3 + [True, True]
    write_pairs(tmp_path / "lfw.bin", images, same)
    convert(tmp_path / "lfw.bin", tmp_path / "lfw")
    assert (tmp_path / "lfw" / "images" / "03_b.png").read_bytes() == images[7]
    done = convert(tmp_path / "lfw" / "pairs.txt", tmp_path / "again.bin")
    assert (done.images, done.groups) == (22, "11 pairs")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "lfw.bin").read_bytes()


def test_the_form_of_pairs_txt_is_the_one_that_the_documentation_names(tmp_path):
    write_pairs(tmp_path / "lfw.bin", [image(1), image(2)] * 2, [True, False])
    convert(tmp_path / "lfw.bin", tmp_path / "lfw")
    rows = [line.split("\t") for line in (tmp_path / "lfw" / "pairs.txt").read_text().splitlines()]
    assert [(len(row), row[2]) for row in rows] == [(3, "1"), (3, "0")]
    _, _, lists = DOCUMENTATION.read_text().partition("## Pair lists in text")
    forms = re.findall(r"^\* \*\*(.+)\*\*.*", lists.partition("## Conversion")[0], re.MULTILINE)
    named = re.search(r"`pairs.txt` of the (\w+) form above", lists)
    assert forms[("first", "second", "third").index(named[1])] == "Any other"


def test_pair_list_with_images_elsewhere(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.jpg").write_bytes(name.encode())
    (tmp_path / "list.csv").write_text("a.jpg,b.jpg,0\n")
    convert(tmp_path / "list.csv", tmp_path / "x.bin", root=tmp_path / "images")
    assert pickle.loads((tmp_path / "x.bin").read_bytes()) == ([b"a", b"b"], [False])
    with pytest.raises(DataError, match=r"x\.bin: exists already"):
        convert(tmp_path / "list.csv", tmp_path / "x.bin", root=tmp_path / "images")


def test_broken_image_of_a_pair_is_named(tmp_path):
    write_pairs(tmp_path / "lfw.bin", [image(1), b"broken"], [True])
    with pytest.raises(DataError, match=r"lfw\.bin, image 1: 6 bytes that are no JPEG"):
        convert(tmp_path / "lfw.bin", tmp_path / "lfw")


@pytest.mark.parametrize(
    ("source", "destination", "images", "message"),
    [
        ("source", "x.rec", None, "cannot be converted to .*; the conversions are"),
        ("source", "x.bin", None, "cannot be converted to"),
        ("folder", "x.bin", None, "cannot be converted to"),
        ("lfw.bin", "x.rec", None, "cannot be converted to"),
        ("list.txt", "x", None, "cannot be converted to"),
        ("source", "x", "folder", "--root goes with a pair list only"),
        ("missing", "x", None, "no such file or folder"),
    ],
)
def test_what_cannot_be_converted(tmp_path, source, destination, images, message):
    convert(write_insightface(tmp_path / "source"), tmp_path / "folder")
    write_pairs(tmp_path / "lfw.bin", [image(1), image(2)], [True])
    (tmp_path / "list.txt").write_text("a b 1\n")
    with pytest.raises(DataError, match=message):
        convert(tmp_path / source, tmp_path / destination, root=tmp_path / images if images else None)
    assert not (tmp_path / destination).exists()


@pytest.mark.faces
@pytest.mark.skipif(not FACES.is_dir(), reason=f"no real faces at {FACES}")
def test_real_faces_survive_the_round_trip(tmp_path):
    done = convert(FACES, tmp_path / "folder")
    assert (done.images, done.groups) == (10309, "603 identities")
    convert(tmp_path / "folder", tmp_path / "again")
    assert filecmp.cmpfiles(FACES, tmp_path / "again", FILES, shallow=False) == (list(FILES), [], [])
    convert(FACES / "lfw.bin", tmp_path / "lfw")
    convert(tmp_path / "lfw" / "pairs.txt", tmp_path / "lfw.bin")
    before, after = read_pairs(FACES / "lfw.bin"), read_pairs(tmp_path / "lfw.bin")
    assert list(before.images) == list(after.images)
    np.testing.assert_array_equal(before.is_same, after.is_same)


@pytest.mark.parametrize("kind", ["folder", "records"])
def test_a_folder_that_is_removed_while_it_is_filled_is_an_error_and_not_made_again(
    small_data, tmp_path, monkeypatch, kind
):
    source = small_data
    if kind == "records":
        source = tmp_path / "images"
        convert(small_data, source)
    (tmp_path / "made").mkdir()

    def remover(items, *_):
        for number, item in enumerate(items):
            if number == 9:
                folder = next((tmp_path / "made").iterdir())
                while folder.exists():  # threads may write into it meanwhile
                    shutil.rmtree(folder, ignore_errors=True)
            yield item

    monkeypatch.setattr("facebones.datatools.convert.track", remover)
    with pytest.raises(FaceBonesError, match=r"was removed while it was filled|No such file or directory"):
        convert(source, tmp_path / "made" / "x")
    assert not list((tmp_path / "made").iterdir())
    monkeypatch.undo()
    convert(source, tmp_path / "made" / "x")


def test_a_conversion_that_was_killed_before_its_record_was_written_continues(small_data, tmp_path):
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "..conversion.json.abcd_f12.tmp").write_bytes(b"{")
    convert(small_data, tmp_path / "x", resume=True)
    assert not list((tmp_path / "x").glob("*.tmp"))
