"""Training sets: both kinds, the labels they give, what they note and what they refuse."""

import multiprocessing
import pickle
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from facebones.data.folders import find_pair_set, open_training_set, pair_sets
from facebones.data.image_folder import ImageFolder
from facebones.data.record_set import RecordSet
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack
from facebones.errors import DataError

FACES = Path(__file__).parents[3] / "shared" / "faces" / "celeba_cfp"
LABELS = [0, 0, 1, 2, 2, 2]


def image(number: int) -> bytes:
    return cv2.imencode(".png", np.full((4, 4, 3), number, np.uint8))[1].tobytes()


def write_insightface(folder: Path, labels: list[int], *, header: bool = True, second_label: bool = False) -> Path:
    """Write records as InsightFace's face2rec does; without `header` the images alone, with keys from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    first_key = 1 if header else 0
    with RecordWriter(folder / "train.rec") as writer:
        for key, label in enumerate(labels, first_key):
            writer.write(key, pack(Header((float(label), 1.0) if second_label else float(label), key), image(key)))
        if header:
            edges = [1, *(np.flatnonzero(np.diff(labels)) + 2).tolist(), len(labels) + 1]
            for key, limits in enumerate(pairwise(edges), len(labels) + 1):
                writer.write(key, pack(Header(tuple(map(float, limits)), key)))
            writer.write(0, pack(Header((float(len(labels) + 1), float(len(labels) + len(edges))), 0)))
    return folder


def write_folder(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image(number))
    return folder


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("second_label", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_record_set_in_all_its_forms(tmp_path, header, second_label, index):
    folder = write_insightface(tmp_path / "set", LABELS, header=header, second_label=second_label)
    if not index:
        (folder / "train.idx").unlink()
    data = open_training_set(folder)
    assert isinstance(data, RecordSet)
    assert (len(data), data.num_identities, data.notes) == (6, 3, [])
    assert data.labels.tolist() == LABELS
    assert data.labels.dtype == np.int64
    first_key = 1 if header else 0
    assert [data.read(i) for i in range(6)] == [(image(i + first_key), LABELS[i]) for i in range(6)]
    assert f"train.rec, key {first_key + 4}, byte " in data.describe(4)


def test_with_identity_records_only_one_header_of_each_identity_is_read(tmp_path, monkeypatch):
    folder = write_insightface(tmp_path, LABELS)
    monkeypatch.setattr(RecordSet, "_read_all_headers", lambda _: pytest.fail("read every header"))
    assert RecordSet(folder / "train.rec").labels.tolist() == LABELS


def test_labels_of_identities_need_not_be_in_order(tmp_path):
    assert RecordSet(write_insightface(tmp_path, [2, 2, 0, 1, 1]) / "train.rec").labels.tolist() == [2, 2, 0, 1, 1]


@pytest.mark.parametrize(("label", "shown"), [(1.0, "1"), (-1.0, "-1"), (2.5, "2.5"), (float("nan"), "nan")])
def test_record_whose_label_is_not_its_identitys(tmp_path, label, shown):
    folder = write_insightface(tmp_path, LABELS)
    data = (folder / "train.rec").read_bytes()
    record = pack(Header(2.0, 6), image(6))
    assert data.count(record) == 1
    (folder / "train.rec").write_bytes(data.replace(record, pack(Header(label, 6), image(6))))
    broken = open_training_set(folder)
    with pytest.raises(
        DataError, match=rf"key 6, byte \d+: the image has label {shown}, but its identity record says 2"
    ):
        broken.read(5)


@pytest.mark.parametrize("limits", [(7.0, 9.0), (3.0, 10.0), (7.0, 1e30), (float("nan"), 10.0), (9.0, 7.0)])
def test_record_0_that_does_not_fit_is_noted_and_all_headers_are_read(tmp_path, limits):
    folder = write_insightface(tmp_path, LABELS)
    sound, broken = pack(Header((7.0, 10.0), 0)), pack(Header(limits, 0))
    data = (folder / "train.rec").read_bytes()
    assert data.count(sound) == 1
    (folder / "train.rec").write_bytes(data.replace(sound, broken))
    training = open_training_set(folder)
    assert training.labels.tolist() == LABELS
    assert "do not fit the images" in training.notes[0]


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 2.0**24])
def test_label_that_is_none(tmp_path, label):
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, pack(Header(0.0, 0), image(0)))
        writer.write(1, pack(Header(label, 1), image(1)))
    with pytest.raises(DataError, match=r"a\.rec, key 1, byte \d+: label .*; a label is a whole number"):
        RecordSet(tmp_path / "a.rec")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("3,4,4\n", None),
        ("3,4,4\n6", None),
        ("3,4,4\r\n6\r\n", None),
        ("4,4,4", "says 4 identities, but the data holds 3"),
        ("3,4,4\n7\n", "says 7 images, but the data holds 6"),
        ("3,112,96\n", "says images of 112x96, but the first image has 4x4"),
        ("many", "'many' is not"),
        ("3,4,4\nmany", "is not"),
        ("3,4,4\n6\n6", "is not"),
    ],
)
def test_property_is_compared_with_the_data(tmp_path, text, note):
    (write_insightface(tmp_path, LABELS) / "property").write_text(text)
    notes = open_training_set(tmp_path).notes
    assert notes == [] if note is None else note in notes[0]


def test_labels_without_images_are_noted(tmp_path):
    (write_insightface(tmp_path, [0, 4]) / "property").write_text("2,4,4")
    data = open_training_set(tmp_path)
    assert data.num_identities == 5, "as many class centres as the largest label needs, whatever property says"
    assert "property: says 2 identities, but the data holds 5" in data.notes[0]
    assert "3 of the labels 0 to 4 have no image: 1, 2, 3" in data.notes[1]


@pytest.mark.parametrize(("highest", "renumbered"), [(10_029, False), (10_030, True), (2**24 - 1, True)])
def test_people_are_renumbered_where_labels_are_far_more_than_images(tmp_path, highest, renumbered):
    data = open_training_set(write_insightface(tmp_path, [7, highest, 7]))
    assert data.num_identities == (2 if renumbered else highest + 1)
    assert data.labels.tolist() == [data.read(index)[1] for index in range(3)]
    assert [data.identity_name(int(label)) for label in data.labels] == ["7", str(highest), "7"]
    assert data.notes[0].endswith(f"labels 0 to {highest} have no image: 0, 1, 2 and {highest - 4} more")
    line = f"{tmp_path}: labels up to {highest} for 3 images: the 2 people with images are numbered 0 to 1"
    assert [note.replace("/train.rec", "") for note in data.notes[1:]] == ([line] if renumbered else [])


def test_identity_record_without_an_image_is_noted(tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, label in ((1, 0.0), (2, 2.0)):
            writer.write(key, pack(Header(label, key), image(key)))
        for key, limits in ((3, (1.0, 2.0)), (4, (2.0, 2.0)), (5, (2.0, 3.0))):
            writer.write(key, pack(Header(limits, key)))
        writer.write(0, pack(Header((3.0, 6.0), 0)))
    data = open_training_set(tmp_path)
    assert (data.labels.tolist(), data.num_identities) == ([0, 2], 3)
    assert "record 0 and the identity records do not fit the images" in data.notes[0]
    assert "1 of the labels 0 to 2 have no image: 1" in data.notes[1]


def test_image_folder(tmp_path):
    names = ["b/1.jpg", "a/2.PNG", "a/10.webp", "c/x.bmp", "c/y.Jpeg"]
    data = open_training_set(write_folder(tmp_path, names))
    assert isinstance(data, ImageFolder)
    assert [data.relative_path(i) for i in range(5)] == ["a/10.webp", "a/2.PNG", "b/1.jpg", "c/x.bmp", "c/y.Jpeg"]
    assert data.labels.tolist() == [0, 0, 1, 2, 2]
    assert (data.num_identities, data.notes) == (3, [])
    assert data.read(2) == (image(0), 1)
    assert data.describe(2) == str(tmp_path / "b" / "1.jpg")
    assert data.identity_name(2) == "c"


def test_what_an_image_folder_leaves_out_is_noted(tmp_path):
    write_folder(tmp_path, ["a/1.jpg", "b/1.jpg", "stray.png", "b/deeper/2.jpg", ".hidden/3.jpg"])
    (tmp_path / "a" / "Thumbs.db").touch()
    (tmp_path / "empty").mkdir()
    notes = open_training_set(tmp_path).notes
    assert notes[0].endswith("1 folder without an image left out: empty")
    assert notes[1].endswith(
        "3 files or folders that are no image of an identity left out: stray.png, a/Thumbs.db, b/deeper"
    )


def test_names_beyond_ascii(tmp_path):
    data = open_training_set(write_folder(tmp_path, ["Zoë/é.jpg", "李/一.png"]))
    assert [data.read(i)[0] for i in range(2)] == [image(0), image(1)]


def test_file_that_vanishes_is_named(tmp_path):
    data = open_training_set(write_folder(tmp_path, ["a/1.jpg", "b/1.jpg"]))
    (tmp_path / "b" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"b/1\.jpg: cannot be read: No such file"):
        data.read(1)


def test_large_image_is_read_to_its_end(tmp_path):
    write_folder(tmp_path, ["a/1.jpg", "b/1.jpg", "b/2.jpg"])
    for name, size in (("a/1.jpg", 2**17), ("b/1.jpg", 2**17 + 5), ("b/2.jpg", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    data = open_training_set(tmp_path)
    assert [len(data.read(i)[0]) for i in range(3)] == [2**17, 2**17 + 5, 0]


@pytest.mark.parametrize(
    ("names", "target", "message"),
    [
        ([], "missing", "no such file or folder"),
        ([], "", r"an empty folder; looked for train.rec, data.mdb, \*.parquet, or <identity>/"),
        (["a.txt"], "", r"only a.txt; looked for train.rec, data.mdb, \*.parquet, or <identity>/"),
        (["a.txt"], "a.txt", "not a training set; name a .rec, .lmdb or .parquet file, or a folder"),
        (["train.idx"], "", "train.idx is there, but train.rec is not"),
        (["a/b.txt"], "", "no image in any <identity>/"),
        (["a/1.jpg", "a/2.jpg"], "", "2 images, all of one identity"),
        (["a.rec", "b.rec"], "", r"2 record files \(a.rec, b.rec\) and no train.rec; name one"),
    ],
)
def test_what_is_no_training_set(tmp_path, names, target, message):
    write_folder(tmp_path, names)
    with pytest.raises(DataError, match=message):
        open_training_set(tmp_path / target)


def test_record_file_under_another_name(tmp_path):
    write_insightface(tmp_path, LABELS)
    (tmp_path / "train.rec").rename(tmp_path / "faces.rec")
    (tmp_path / "train.idx").unlink()
    assert len(open_training_set(tmp_path)) == len(open_training_set(tmp_path / "faces.rec")) == 6


def _sum_of_labels(data, queue):
    queue.put(sum(data.read(i)[1] for i in range(len(data))))


@pytest.mark.parametrize(
    "make", [lambda p: write_insightface(p, LABELS), lambda p: write_folder(p, ["a/1.png", "b/1.png"])]
)
def test_other_processes_read_what_was_opened_here(tmp_path, make):
    data = open_training_set(make(tmp_path))
    data.read(0)
    copy = pickle.loads(pickle.dumps(data))
    assert copy.read(1) == data.read(1)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_sum_of_labels, args=(data, queue))
    worker.start()
    assert queue.get(timeout=20) == data.labels.sum()
    worker.join()


def test_pair_sets_are_found_by_name_or_path(tmp_path):
    (tmp_path / "lfw.bin").touch()
    (tmp_path / "agedb_30.bin").touch()
    (tmp_path / "train.rec").touch()
    assert [path.name for path in pair_sets(tmp_path)] == ["agedb_30.bin", "lfw.bin"]
    for name in ("lfw", "lfw.bin", str(tmp_path / "lfw.bin")):
        assert find_pair_set(name, tmp_path) == tmp_path / "lfw.bin"
        assert find_pair_set(name, tmp_path / "train.rec") == tmp_path / "lfw.bin"
    with pytest.raises(DataError, match=r"cfp_fp: no such verification set; .* holds agedb_30.bin, lfw.bin"):
        find_pair_set("cfp_fp", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError, match=r"elsewhere holds no \.bin file"):
        find_pair_set("cfp_fp", tmp_path / "elsewhere")


@pytest.mark.faces
@pytest.mark.skipif(not FACES.is_dir(), reason=f"no real faces at {FACES}")
def test_real_faces():
    data = open_training_set(FACES)
    assert (len(data), data.num_identities, data.notes) == (10309, 603, [])
    everything = RecordSet(FACES / "train.rec")
    everything._read_all_headers()
    np.testing.assert_array_equal(everything.labels, data.labels)
    assert [data.read(i)[1] for i in range(0, len(data), 500)] == data.labels[::500].tolist()
