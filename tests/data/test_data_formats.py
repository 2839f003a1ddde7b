"""Data formats: how a training set is recognised, a user's own format, and what a fingerprint notices."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facebones.data import loader as loading
from facebones.data import training_set as registry
from facebones.data.folders import open_training_set
from facebones.data.image_folder import ImageFolder
from facebones.data.loader import EpochOrder, training_batches
from facebones.data.record_set import RecordSet
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack
from facebones.data.training_set import LABEL_KEYS, TrainingSet, list_data_formats, register_data_format, same_data
from facebones.datatools.convert import convert
from facebones.datatools.inspect import inspect_data
from facebones.errors import CheckpointError, ConfigError, DataError
from facebones.plugins import import_plugins
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.training.run import resume, train
from facebones.training.run_files import note_environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "csv_faces.py"


@pytest.fixture(scope="session")
def csv_faces(small_data, tmp_path_factory):
    """The small data as images in one folder and a list of them."""
    folder = tmp_path_factory.mktemp("csv")
    data = RecordSet(small_data / "train.rec")
    lines = ["path,person"]
    for index in range(len(data)):
        encoded, label = data.read(index)
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / f"{index}.jpg").write_bytes(encoded)
        lines.append(f"images/{index}.jpg,person {label:02d}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def noise(seed, size=8):
    """A BMP: with any byte of its pixels changed, it is another image of the same size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return cv2.imencode(".bmp", pixels)[1].tobytes()


def write_records(folder, images, labels):
    with RecordWriter(folder / "train.rec") as writer:
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            writer.write(key, pack(Header(float(label), key), image))
    return folder


def write_images(folder, images, labels):
    for key, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"{label:03d}").mkdir(parents=True, exist_ok=True)
        (folder / f"{label:03d}" / f"{key:05d}.bmp").write_bytes(image)
    return folder


# ------------------------------------------------------------------------------------------------------ formats


def test_a_format_of_a_users_own_file_is_read_like_any_other(csv_faces, small_data):
    with pytest.raises(DataError, match=r"list\.csv: not a training set; name a \.rec, \.lmdb or \.parquet file"):
        open_training_set(csv_faces)
    import_plugins([str(EXAMPLE)])
    assert list_data_formats() == ["recordio", "csv", "lmdb", "parquet", "folder"]
    data, records = open_training_set(csv_faces), open_training_set(small_data)
    assert type(data).__name__ == "CsvFaces"
    assert data.labels.tolist() == records.labels.tolist()
    assert data.read(7) == records.read(7)
    assert data.identity_name(0) == "person 00"
    assert isinstance(records, RecordSet)


def test_a_users_own_format_is_inspected(csv_faces):
    import_plugins([str(EXAMPLE)])
    (part,) = inspect_data(csv_faces).parts
    assert (part.images, part.identities, part.broken, part.notes) == (28, 4, [], [])


def test_what_no_format_recognises_names_those_of_plugins(csv_faces, tmp_path):
    import_plugins([str(EXAMPLE)])
    (tmp_path / "list.txt").touch()
    with pytest.raises(DataError, match=r"list\.txt: not a training set; .*; or data of the format csv"):
        open_training_set(tmp_path / "list.txt")
    with pytest.raises(DataError, match="no such file or folder"):
        open_training_set(tmp_path / "nothing.csv")


@pytest.mark.parametrize("lines", ["path,person\n", "path,person\na.jpg,ann\nb.jpg\n"])
def test_the_example_refuses_a_list_that_is_none(tmp_path, lines):
    import_plugins([str(EXAMPLE)])
    (tmp_path / "list.csv").write_text(lines)
    with pytest.raises(DataError, match=r"list\.csv, line [13]: not a list of faces"):
        open_training_set(tmp_path / "list.csv")


def test_a_plugin_is_asked_before_image_folders_and_after_records(tmp_path):
    """Any folder of folders looks like a folder of identities; a .rec file can be nothing else."""

    @register_data_format
    class Everything(TrainingSet):
        name = "everything"

        @classmethod
        def find(cls, path):
            return True

        def __init__(self, path):
            self.path, self.notes, self.labels = path, [], np.arange(2)

        def read(self, index):
            return noise(index), index

    images = write_images(tmp_path / "images", [noise(0), noise(1)], [0, 1])
    records = tmp_path / "records"
    records.mkdir()
    write_records(records, [noise(0), noise(1)], [0, 1])
    assert isinstance(open_training_set(images), Everything)
    assert isinstance(open_training_set(records), RecordSet)
    assert open_training_set(images).describe(1) == f"{images}, image 1"


def test_entry_points_are_imported_before_a_format_is_chosen(csv_faces, monkeypatch):
    def entry_points():
        import_plugins([str(EXAMPLE)])

    monkeypatch.setattr(registry, "import_entry_points", entry_points)
    assert type(open_training_set(csv_faces)).__name__ == "CsvFaces"


def test_a_format_needs_a_name_of_its_own_and_a_way_to_be_found():
    with pytest.raises(ConfigError, match="data format Nameless: define a name"):

        @register_data_format
        class Nameless(ImageFolder):
            name = ""

    with pytest.raises(ConfigError, match=r"'folder' is registered already, by facebones\.data\.image_folder"):

        @register_data_format
        class Second(ImageFolder):
            pass


# ------------------------------------------------------------------------------------------------------ training


def losses(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_on_a_users_own_format_equals_that_on_records(csv_faces, tiny_recipe, tmp_path, workers):
    import_plugins([str(EXAMPLE)])
    options = {"training.epochs": 1, "validation.sets": [], "data.workers": workers}
    train(tiny_recipe(**{"data.path": str(csv_faces)}, **options), tmp_path / "own", "cpu")
    train(tiny_recipe(**options), tmp_path / "records", "cpu")
    own, records = (losses(tmp_path / name) for name in ("own", "records"))
    assert own == records and own.keys() == {2, 4, 6, 7}


def test_a_run_goes_on_with_the_same_data_in_another_format(csv_faces, small_data, tiny_recipe, tmp_path):
    import_plugins([str(EXAMPLE)])
    recipe = tiny_recipe(**{"data.path": str(csv_faces), "training.epochs": 1, "validation.sets": []})
    train(recipe, tmp_path / "run", "cpu")
    assert resume(tmp_path / "run", "cpu", data=str(small_data))["steps"] == 7


def test_workers_that_are_not_forked_import_the_plugin(csv_faces, tmp_path):
    """As on macOS: what a worker gets is unpickled in a process that has imported nothing."""
    import_plugins([str(EXAMPLE)])
    images = loading._DecodedImages(open_training_set(csv_faces), None, False)
    (tmp_path / "images.pickle").write_bytes(pickle.dumps(images))
    code = """
import pickle, sys
images = pickle.load(open(sys.argv[1], "rb"))
print(type(images.training_set).__name__, images.training_set.read(3)[1])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "images.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["CsvFaces", str(images.training_set.labels[3])]


def test_an_image_that_the_users_format_cannot_read_is_named(csv_faces, tmp_path):
    import_plugins([str(EXAMPLE)])
    (tmp_path / "list.csv").write_text("path,person\nimages/0.jpg,ann\nimages/1.jpg,bob\n")
    order = EpochOrder(
        open_training_set(tmp_path / "list.csv"), batch_size=2, batches_per_epoch=1, first=0, last=1, seed=0
    )
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"list\.csv, line [23]: images/[01]\.jpg: cannot be read"):
            list(training_batches(order, workers=workers))


# -------------------------------------------------------------------------------------------------- fingerprints


@pytest.mark.parametrize("write", [write_records, write_images])
def test_a_set_that_was_moved_is_the_same(tmp_path, write):
    images, labels = [noise(seed) for seed in range(6)], [0, 0, 1, 1, 2, 2]
    (tmp_path / "here").mkdir()
    then = open_training_set(write(tmp_path / "here", images, labels)).fingerprint()
    (tmp_path / "here").rename(tmp_path / "there")
    now = open_training_set(tmp_path / "there").fingerprint()
    assert now == then and same_data(now, then) == []
    assert {"images", "identities", "labels_sha256", "image_sample"} < now.keys()


@pytest.mark.parametrize("write", [write_records, write_images])
def test_an_image_that_was_replaced_is_noticed_by_its_size_or_in_the_sample(tmp_path, write):
    """200 images, of which the first and the last are in the sample of 64, and number 1 is not."""
    images, labels = [noise(seed) for seed in range(200)], [seed // 2 for seed in range(200)]

    def fingerprint(folder, replaced):
        (tmp_path / folder).mkdir()
        changed = [replaced.get(index, image) for index, image in enumerate(images)]
        return open_training_set(write(tmp_path / folder, changed, labels)).fingerprint()

    def touched(image):
        return image[:-20] + bytes([image[-20] ^ 1]) + image[-19:]

    then = fingerprint("then", {})
    sizes = "record_sizes_sha256" if write is write_records else "file_sizes_sha256"
    assert same_data(fingerprint("same", {}), then) == []
    assert same_data(fingerprint("first", {0: touched(images[0])}), then) == ["image_sample"]
    assert same_data(fingerprint("last", {199: touched(images[199])}), then) == ["image_sample"]
    assert same_data(fingerprint("larger", {1: noise(1, 20)}), then) == [sizes]
    # What the docstring says is not noticed: the same size, outside of the sample.
    assert same_data(fingerprint("hidden", {1: touched(images[1])}), then) == []


def test_labels_that_have_changed_are_noticed(tmp_path):
    images = [noise(seed) for seed in range(4)]
    for name in ("then", "now"):
        (tmp_path / name).mkdir()
    then = open_training_set(write_records(tmp_path / "then", images, [0, 0, 1, 1])).fingerprint()
    now = open_training_set(write_records(tmp_path / "now", images, [0, 1, 0, 1])).fingerprint()
    assert same_data(now, then) == ["labels_sha256"]


def test_the_same_images_in_another_format_are_the_same(tmp_path):
    images, labels = [noise(seed) for seed in range(6)], [0, 0, 1, 1, 2, 2]
    folder = open_training_set(write_images(tmp_path / "folder", images, labels))
    convert(tmp_path / "folder", tmp_path / "records")
    records = open_training_set(tmp_path / "records")
    assert same_data(records.fingerprint(), folder.fingerprint()) == []
    assert folder.fingerprint().keys() ^ records.fingerprint().keys() == {"record_sizes_sha256", "file_sizes_sha256"}


@pytest.mark.parametrize("broken", [b"", b"\x89PNG"])
def test_an_image_that_cannot_be_decoded_may_be_repaired(tmp_path, broken):
    images, labels = [noise(seed) for seed in range(4)], [0, 0, 1, 1]
    then = open_training_set(write_images(tmp_path / "folder", [broken, *images[1:]], labels)).fingerprint()
    now = open_training_set(write_images(tmp_path / "folder", images, labels)).fingerprint()
    assert then["image_sample"].split(" ")[0] == "-" and then["image_sample"].count("-") == 1
    assert same_data(now, then) == same_data(then, now) == ["file_sizes_sha256"]
    other = open_training_set(write_images(tmp_path / "folder", [*images[:3], noise(9)], labels)).fingerprint()
    assert "image_sample" in same_data(other, then)


def test_an_image_that_vanishes_does_not_end_a_fingerprint(tmp_path):
    folder = write_images(tmp_path / "folder", [noise(seed) for seed in range(4)], [0, 0, 1, 1])
    then, data = open_training_set(folder).fingerprint(), open_training_set(folder)
    (folder / "000" / "00000.bmp").unlink()
    assert same_data(data.fingerprint(), then) == ["file_sizes_sha256"]


def test_a_run_refuses_other_images_of_the_same_labels(tiny_recipe, small_data, tmp_path):
    """And takes those of a run of 0.2.0.dev0, which has recorded nothing about images."""
    recipe = tiny_recipe(**{"training.epochs": 1, "validation.sets": []})
    train(recipe, tmp_path / "run", "cpu")
    data = open_training_set(small_data)
    images = [noise(index) for index in range(len(data))]
    (tmp_path / "other").mkdir()
    write_records(tmp_path / "other", images, data.labels.tolist())
    with pytest.raises(CheckpointError, match="was trained on other data"):
        resume(tmp_path / "run", "cpu", data=str(tmp_path / "other"))
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = load_checkpoint(last)
    state["data"] = {key: state["data"][key] for key in LABEL_KEYS}
    save_checkpoint(last, state)
    assert resume(tmp_path / "run", "cpu", data=str(small_data))["steps"] == 7


def test_what_older_versions_did_not_know_is_no_change_of_a_resumed_run(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    labels = {"path": "a", "images": 2, "identities": 2, "labels_sha256": "ab"}
    folder.environment.write_text(json.dumps({"torch": "1", "data": labels}))
    note_environment(folder, {"torch": "1", "data": labels | {"image_sample": "01 02"}}, 3)
    assert capsys.readouterr().err == "" and "resumed" not in json.loads(folder.environment.read_text())
    note_environment(folder, {"torch": "1", "data": labels | {"labels_sha256": "cd"}}, 3)
    assert "data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "then",
    [
        {},
        {"images": 2},
        {"images": torch.zeros(2), "identities": 2, "labels_sha256": "ab"},
        {"images": 2, "identities": 2, "labels_sha256": "ab", "image_sample": ""},
        {"images": 2, "identities": 2, "labels_sha256": "ab", "image_sample": "01 - -"},
        {"images": 2, "identities": 2, "labels_sha256": "ab", "image_sample": 1},
    ],
)
def test_a_forged_fingerprint_differs(then):
    now = {"images": 2, "identities": 2, "labels_sha256": "ab", "image_sample": "01 02"}
    assert same_data(now, then)


def test_a_fingerprint_of_a_large_file_reads_no_more_than_a_sample(tmp_path, monkeypatch):
    count = 200_000
    image = noise(0)
    write_records(tmp_path, [image] * count, [index // 100 for index in range(count)])
    data = open_training_set(tmp_path)
    reads = []
    original = RecordSet.read
    monkeypatch.setattr(RecordSet, "read", lambda self, index: reads.append(index) or original(self, index))
    data.fingerprint()
    assert len(reads) == 64 and reads[0] == 0 and reads[-1] == count - 1
    data.fingerprint()
    assert len(reads) == 64, "computed once"


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    assert importlib.util.spec_from_file_location("csv_faces", EXAMPLE) is not None
