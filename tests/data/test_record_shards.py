"""Training data in several record files: shards of one set in one folder, separate sets in folders of their own."""

import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from facebones.cli.main import main
from facebones.data.folders import open_training_set
from facebones.data.joined_sets import JoinedSets, part_name
from facebones.data.loader import EpochOrder, training_batches
from facebones.data.record_shards import RecordShards
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack
from facebones.data.training_set import same_data
from facebones.errors import CheckpointError, DataError
from facebones.run_folder import RunFolder
from facebones.system.processes import Interrupted
from facebones.training.run import resume, train
from facebones.training.trainer import Trainer

LABELS = ([0, 3, 1], [3, 2], [1, 4, 0, 4])
PEOPLE = {
    label: [(file, key) for file, labels in enumerate(LABELS) for key, each in enumerate(labels) if each == label]
    for label in range(5)
}


def write_shard(path, labels, index=True, label_width=1, first_id=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with RecordWriter(path) as writer:
        for key, label in enumerate(labels, start=first_id):
            header = Header(float(label) if label_width == 1 else (float(label), *[0.5] * (label_width - 1)), key)
            writer.write(key, pack(header, f"{path.stem} {key}".encode()))
    if not index:
        path.with_suffix(".idx").unlink()


@pytest.fixture
def shards(tmp_path):
    """Three record files of one set in one folder, as im2rec of mxnet writes them."""
    for number, labels in enumerate(LABELS):
        write_shard(tmp_path / "shards" / f"web_{number}.rec", labels)
    return tmp_path / "shards"


def joined(*paths):
    return os.pathsep.join(map(str, paths))


def test_a_label_is_one_person_in_the_record_files_of_a_folder(shards):
    data = open_training_set(shards / "*.rec")
    assert isinstance(data, RecordShards)
    assert data.labels.tolist() == [0, 3, 1, 3, 2, 1, 4, 0, 4], "as in the files"
    assert [data.identity_name(label) for label in (0, 4)] == ["0", "4"]
    assert [data.read(index) for index in (2, 3, 8)] == [(b"web_0 2", 1), (b"web_1 0", 3), (b"web_2 3", 4)]
    assert data.describe(4).startswith(f"{shards}/web_1.rec, key 1, byte ")
    assert data.notes == [
        f"{shards}: 3 record files of one folder are the shards of one set: 3 labels are in several files and count as"
        " one person each; separate sets belong into a folder each"
    ]
    copy = pickle.loads(pickle.dumps(data))
    assert [copy.read(index) for index in range(9)] == [data.read(index) for index in range(9)]
    data.read_ahead(1, 8)
    data.read_ahead_some(np.array([0, 2, 5, 8]))


def test_shards_are_the_set_that_one_file_would_be(shards, tmp_path):
    named = open_training_set(joined(*(shards / f"web_{number}.rec" for number in range(3))))
    with RecordWriter(tmp_path / "one.rec") as writer:
        for index in range(len(named)):
            writer.write(index, pack(Header(float(named.labels[index]), index), named.read(index)[0]))
    one = open_training_set(tmp_path / "one.rec")
    assert same_data(named.fingerprint(), one.fingerprint()) == []
    assert "record_sizes_sha256" in named.fingerprint()
    assert part_name(named) == "shards"


@pytest.mark.parametrize("spelling", ["{0}:./{1}:{2}", "{2}:{0}:{1}", "sh*/*_[012].rec", "{0}:other:{1}:{2}"])
def test_however_they_are_named_and_wherever_they_stand(shards, tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other" / "ann").mkdir(parents=True)
    (tmp_path / "other" / "ann" / "1.jpg").write_bytes(b"ann")
    path = spelling.replace(":", os.pathsep).format(*(f"shards/web_{number}.rec" for number in range(3)))
    data = open_training_set(path)
    people = {}
    for image, label in map(data.read, range(len(data))):
        people.setdefault(label, set()).add(image)
    known = {number: {f"web_{file} {key}".encode() for file, key in places} for number, places in PEOPLE.items()}
    assert sorted(map(sorted, people.values())) == sorted(
        map(sorted, [*known.values(), *([{b"ann"}] if "other" in path else [])])
    )


def test_record_files_in_folders_of_their_own_are_different_people(shards, tmp_path):
    for number in range(3):
        (tmp_path / f"part{number}").mkdir()
        shutil.copy(shards / f"web_{number}.rec", tmp_path / f"part{number}" / "train.rec")
    for pattern in ("part?", "part?/train.rec", "part?/*.rec"):
        data = open_training_set(tmp_path / pattern)
        assert isinstance(data, JoinedSets) and data.num_identities == 3 + 2 + 3
        assert any("are in several parts and count as different people" in note for note in data.notes)


def test_shards_beside_other_sets_are_one_part(shards, tmp_path):
    write_shard(tmp_path / "other" / "train.rec", [0, 1])
    data = open_training_set(joined(shards / "*.rec", tmp_path / "other"))
    assert data.num_identities == 5 + 2
    assert data.identity_name(int(data.labels[0])) == "shards/0"
    assert data.identity_name(int(data.labels[-1])) == "other/1"


def test_complete_sets_in_one_folder_stay_separate(small_data, tmp_path):
    """Each has identity records and numbers its people from 0, as `data convert` writes them: none is a shard."""
    for name in ("a", "b"):
        for ending in (".rec", ".idx"):
            shutil.copy(small_data / f"train{ending}", tmp_path / f"{name}{ending}")
    data = open_training_set(tmp_path / "*.rec")
    assert isinstance(data, JoinedSets) and data.num_identities == 8
    assert [data.identity_name(label) for label in (0, 7)] == ["a/0", "b/3"]
    assert "4 numbers are in several parts and count as different people" in data.notes[0]


def test_files_that_look_like_separate_sets_are_pointed_out(tmp_path):
    write_shard(tmp_path / "ms1m.rec", [0, 1, 2, 2])
    write_shard(tmp_path / "casia.rec", [0, 0, 1])
    data = open_training_set(tmp_path / "*.rec")
    assert data.num_identities == 3
    assert (
        f"{tmp_path}: each file has all labels up to another highest one, as separate sets have: casia 0 to 1,"
        " ms1m 0 to 2"
    ) in data.notes


def test_labels_without_an_image_are_those_that_no_shard_has(tmp_path):
    write_shard(tmp_path / "a.rec", [0, 6])
    write_shard(tmp_path / "b.rec", [2, 4])
    notes = open_training_set(tmp_path / "?.rec").notes
    assert notes[1:] == [f"{tmp_path}: 3 of the labels 0 to 6 have no image: 1, 3, 5"]


@pytest.mark.parametrize(
    ("text", "pattern", "said"),
    [
        ("5,112,112\n9\n", "*.rec", []),
        ("5,112,112\n10\n", "*.rec", ["says 10 images, but the data holds 9"]),
        ("6,112,112\n", "*.rec", ["says 6 identities, but the data holds 5"]),
        ("6,112,112\n", "web_[01].rec", []),
        ("six", "*.rec", ["'six' is not 'identities,height,width'; the file is ignored"]),
    ],
)
def test_a_property_file_beside_shards_is_that_of_all(shards, text, pattern, said):
    """It shows that a shard is missing, or was cut short between two records."""
    (shards / "property").write_text(text)
    notes = open_training_set(shards / pattern).notes
    assert [note for note in notes if "/shards/property" in note] == [f"{shards}/property: {each}" for each in said]


@pytest.mark.parametrize("names", [["w_08", "w_11"], ["part-8-of-12", "part-11-of-12"]])
def test_numbers_missing_between_the_names_are_noted(tmp_path, names):
    for name in names:
        write_shard(tmp_path / f"{name}.rec", [0, 1])
    (note,) = open_training_set(tmp_path / "*.rec").notes[1:]
    assert "by their names, files are missing" in note and "9" in note and "10" in note


@pytest.mark.parametrize("names", [["a", "b"], ["x1_1", "x2_2"], ["2019", "a"], ["20240101", "20260101"], ["9", "10"]])
def test_names_without_a_gap_need_no_note(tmp_path, names):
    for name in names:
        write_shard(tmp_path / f"{name}.rec", [0, 1])
    assert len(open_training_set(tmp_path / "*.rec").notes) == 1


def test_shards_may_lack_an_index_and_have_labels_of_other_widths(tmp_path):
    write_shard(tmp_path / "a.rec", [0, 1], index=False)
    write_shard(tmp_path / "b.rec", [1, 2], label_width=4, first_id=700)
    write_shard(tmp_path / "c.rec", [2, 3], label_width=2, index=False, first_id=3)
    data = open_training_set(tmp_path / "?.rec")
    assert data.labels.tolist() == [0, 1, 1, 2, 2, 3]
    assert [data.read(index)[0] for index in (1, 2, 5)] == [b"a 1", b"b 700", b"c 4"]


def test_shards_with_images_of_other_widths_are_read_into_one_batch(small_data, tmp_path):
    import cv2

    for number, width in enumerate((96, 112, 160)):
        with RecordWriter(tmp_path / f"{number}.rec") as writer:
            for key in range(4):
                image = cv2.imencode(".png", np.full((112, width, 3), 50 * number, np.uint8))[1].tobytes()
                writer.write(key, pack(Header(float(key), key), image))
    data = open_training_set(tmp_path / "*.rec")
    assert "8 of 12 images are not square" in data.aspect_note()
    order = EpochOrder(data, batch_size=12, batches_per_epoch=1, first=0, last=1, seed=0)
    ((images, labels),) = training_batches(order, workers=0)
    for image, label, index in zip(images, labels, next(iter(order)), strict=True):
        assert (image == 50 * (index // 4)).all() and label == index % 4


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("broken", ["short", "empty", "text", "stub"])
def test_a_broken_shard_is_named_in_one_line(shards, capsys, index, broken):
    path = shards / "web_1.rec"
    content = path.read_bytes()
    path.write_bytes({"short": content[:-20], "empty": b"", "text": b"not a record file", "stub": content[:6]}[broken])
    if not index:
        path.with_suffix(".idx").unlink()
    assert main(["train", "demo", "--data", str(shards / "*.rec"), "--output", str(shards / "run")]) == 2
    shown = capsys.readouterr().err
    assert "web_1" in shown.splitlines()[-1] and "Traceback" not in shown
    assert not (shards / "run").exists()


def test_a_shard_that_is_named_but_missing(shards, capsys):
    path = joined(shards / "web_0.rec", shards / "web_7.rec")
    assert main(["train", "demo", "--data", path, "--output", str(shards / "run")]) == 2
    assert "web_7.rec: no such file or folder" in capsys.readouterr().err


def test_a_folder_of_shards_alone_names_the_pattern(shards):
    with pytest.raises(DataError, match=r"and no train\.rec; name one of them, or '.*/shards/\*\.rec' for all of them"):
        open_training_set(shards)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc, on Linux")
def test_more_shards_than_files_may_be_open_are_said_in_one_line(tmp_path):
    for number in range(24):
        write_shard(tmp_path / f"{number}.rec", [0, 1])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/proc/self/fd").iterdir()]) + 12, limits[1]))
    try:
        with pytest.raises(DataError, match=r"\.rec: .*Too many open files; raise the limit") as error:
            open_training_set(tmp_path / "*.rec")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "\n" not in str(error.value)


def cut_in_two(small_data, folder):
    """The small data as two shards without identity records, in another order of people."""
    data = open_training_set(small_data)
    for number, part in enumerate(np.array_split(np.random.default_rng(0).permutation(len(data)), 2)):
        folder.mkdir(exist_ok=True)
        with RecordWriter(folder / f"faces_{number}.rec") as writer:
            for key, index in enumerate(part.tolist()):
                image, label = data.read(index)
                writer.write(key, pack(Header(float(label), key), image))
    return folder


def exchanged(first, second):
    shutil.copy(second, first)
    shutil.copy(second.with_suffix(".idx"), first.with_suffix(".idx"))


def relabelled(first, second):
    content = bytearray(first.read_bytes())
    content[12:16] = np.float32(3 - np.frombuffer(content[12:16], np.float32)[0]).tobytes()
    first.write_bytes(content)


def lost(first, second):
    first.unlink()


def test_a_training_on_shards_resumes_and_notices_a_changed_one(small_data, tiny_recipe, tmp_path, monkeypatch):
    folder = cut_in_two(small_data, tmp_path / "webface")
    fields = {"data.path": str(folder / "*.rec"), "validation.sets": [], "training.epochs": 1}
    recipe = tiny_recipe(**fields)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        step = Trainer.train_step
        patch.setattr(Trainer, "train_step", lambda *args: (step(*args), os.kill(os.getpid(), signal.SIGTERM)))
        train(recipe, tmp_path / "run", "cpu")
    for change in (exchanged, relabelled, lost):
        changed = shutil.copytree(folder, tmp_path / change.__name__)
        change(changed / "faces_0.rec", changed / "faces_1.rec")
        with pytest.raises(CheckpointError, match="was trained on other data") as error:
            resume(tmp_path / "run", "cpu", data=str(changed / "*.rec"))
        assert "\n" not in str(error.value)
    whole = shutil.move(folder, tmp_path / "moved")
    resume(tmp_path / "run", "cpu", data=str(whole / "*.rec"))
    assert '"training_data": "moved"' in RunFolder(tmp_path / "run").result.read_text()
