"""Training sets in LMDB databases: the layouts of the field, written by the real packages lmdb and msgpack."""

import importlib
import json
import pickle
import random
import struct
import sys

import lmdb
import msgpack
import numpy as np
import pytest

from facebones.cli.main import main
from facebones.data.folders import open_labelled_images, open_training_set
from facebones.data.image_folder import ImageFolder
from facebones.data.lmdb_file import LmdbFile
from facebones.data.lmdb_set import LmdbSet
from facebones.data.packed_values import Span, unpack_message, unpack_pickle
from facebones.data.record_set import RecordSet
from facebones.errors import CheckpointError, DataError
from facebones.training.run import resume, train


def write(path, entries, subdir=True, **options):
    """Write a database with the real package."""
    with lmdb.open(str(path), subdir=subdir, map_size=2**24, **options) as opened, opened.begin(write=True) as writing:
        for key, value in entries.items():
            writing.put(key, value)
    return path


def packed(rows, dumps=msgpack.dumps):
    """The entries of imagelist2lmdb: values by number, and what is known of the set."""
    keys = [str(number).encode() for number in range(len(rows))]
    about = {b"__keys__": keys, b"__len__": len(rows), b"__classnum__": 1 + max(row[-1] for row in rows)}
    return {key: dumps(value) for key, value in {**dict(zip(keys, rows, strict=True)), **about}.items()}


def rows_of(folder):
    data = open_training_set(folder)
    return [data.read(index) for index in range(len(data))]


@pytest.fixture(scope="session")
def rows(small_data):
    """(image, label) of the small data."""
    return rows_of(small_data)


@pytest.fixture(scope="session")
def hsface(rows, tmp_path_factory):
    """The small data as HSFace comes: one file, packed with MessagePack."""
    return write(tmp_path_factory.mktemp("hsface") / "hsface.lmdb", packed(rows), subdir=False)


def layouts(rows):
    """The entries of each layout with these rows."""
    features = pickle.dumps(np.zeros(4))
    pairs = {b"num-samples": str(len(rows)).encode()}
    for number, (image, label) in enumerate(rows, 1):
        pairs |= {b"image-%09d" % number: image, b"label-%09d" % number: str(label).encode()}
    return {
        "msgpack": packed(rows),
        "msgpack with features": packed([(image, features, label) for image, label in rows]),
        "msgpack of Python 2": packed(rows, lambda value: msgpack.dumps(value, use_bin_type=False)),
        "msgpack, label first": {str(n).encode(): msgpack.dumps(row[::-1]) for n, row in enumerate(rows)},
        **{f"pickle {version}": packed(rows, lambda value, v=version: pickle.dumps(value, v)) for version in (0, 2, 5)},
        "pickle of arrays": {
            str(n).encode(): pickle.dumps((np.frombuffer(image, np.uint8), np.int64(label)))
            for n, (image, label) in enumerate(rows)
        },
        "numbered pairs": pairs,
        "paths": {b"%03d/%05d.jpg" % (label, n): image for n, (image, label) in enumerate(rows)},
    }


@pytest.mark.parametrize("layout", layouts([(b"", 0)]))
@pytest.mark.parametrize("subdir", [True, False])
def test_every_layout_gives_the_same_images_and_labels(rows, tmp_path, layout, subdir):
    data = open_training_set(write(tmp_path / "a.lmdb", layouts(rows)[layout], subdir))
    assert isinstance(data, LmdbSet)
    assert [data.read(index) for index in range(len(data))] == rows
    assert data.labels.tolist() == [label for _, label in rows]
    assert data.notes == []
    sizes = data.image_sizes()["file_sizes_sha256"]
    assert sizes.tolist() == [len(image) for image, _ in rows]


def test_names_are_numbered_in_their_order(tmp_path):
    entries = {b"0": (b"one", "bo"), b"1": (b"two", "ann"), b"10": (b"three", "bo"), b"2": (b"four", "cy")}
    data = LmdbSet(write(tmp_path / "a", {key: msgpack.dumps(value) for key, value in entries.items()}))
    assert [data.read(index)[0] for index in range(4)] == [b"one", b"two", b"four", b"three"], "2 comes before 10"
    assert data.labels.tolist() == [1, 0, 2, 1]
    assert [data.identity_name(label) for label in range(3)] == ["ann", "bo", "cy"]


def test_a_list_beside_gives_the_labels(rows, tmp_path):
    entries = {b"img%02d" % n: image for n, (image, _) in enumerate(rows)}
    folder = write(tmp_path / "a", entries)
    with pytest.raises(DataError, match=r"images without labels: keys such as b'img00'; put a text file"):
        open_training_set(folder)
    lines = [f"img{n:02d} {label}" for n, (_, label) in enumerate(rows)]
    (folder / "labels.txt").write_text("\n".join([*lines[1:], "gone\t7"]) + "\n")
    data = open_training_set(folder)
    assert [data.read(index) for index in range(len(data))] == rows[1:]
    assert [note.partition(": ")[2] for note in data.notes] == [
        "1 key with no image left out, by labels.txt",
        "1 key with no label left out, by labels.txt",
    ]
    for text, said in (
        ("img00 1\nimg00 2\n", "line 2: key 'img00' a second time"),
        ("img00\n", "line 1: 'img00' is not 'key label'"),
        ("other 1\n", "names no key"),
    ):
        (folder / "labels.txt").write_text(text)
        with pytest.raises(DataError, match=said):
            open_training_set(folder)


def test_a_folder_that_holds_one_database_names_it(hsface, tmp_path, rows):
    assert len(open_training_set(hsface.parent)) == len(rows)
    for name in ("a.lmdb", "b.lmdb"):
        write(tmp_path / name, packed(rows), subdir=name == "a.lmdb")
    with pytest.raises(DataError, match=r"2 LMDB databases \(a.lmdb, b.lmdb\); name one of them"):
        open_training_set(tmp_path)
    joined = open_training_set(tmp_path / "*.lmdb")
    assert len(joined) == 2 * len(rows) and joined.num_identities == 8, "two databases count their own people"


def test_a_count_that_disagrees_is_noted(rows, tmp_path):
    entries = packed(rows) | {b"__len__": msgpack.dumps(99)}
    assert open_training_set(write(tmp_path / "a", entries)).notes == [
        f"{tmp_path / 'a'}: __len__ says 99 images, but the database has {len(rows)}"
    ]


# ---------------------------------------------------------------------------------------------- the database itself


@pytest.mark.parametrize("seed", range(4))
def test_the_reader_agrees_with_the_library(tmp_path, seed):
    """Values from none to several pages, in trees of several levels, after changes that leave free pages."""
    random_ = random.Random(seed)
    held = {}
    with lmdb.open(str(tmp_path / "a"), map_size=2**27) as opened:
        for _ in range(3):
            with opened.begin(write=True) as writing:
                for _ in range(600):
                    key = random_.randbytes(random_.choice((1, 4, 60, 500)))
                    held[key] = random_.randbytes(random_.choice((0, 10, 2000, 4080, 9000)))
                    writing.put(key, held[key])
                for key in random_.sample(sorted(held), 200):
                    writing.delete(key)
                    del held[key]
    file = LmdbFile(tmp_path / "a")
    found = {}
    for page in file.pages():
        for key, offset, size in zip(page.keys, page.offsets.tolist(), page.sizes.tolist(), strict=True):
            found[key] = file.value(offset, size)
    assert found == held and list(found) == sorted(held)
    assert file.entries == len(held)


def test_databases_that_are_not_read_are_named(tmp_path, rows):
    with lmdb.open(str(tmp_path / "sub"), map_size=2**22, max_dbs=2) as opened:
        inner = opened.open_db(b"images")
        with opened.begin(write=True) as writing:
            writing.put(b"0", b"value", db=inner)
    with pytest.raises(DataError, match="an LMDB database without an image"):
        open_training_set(tmp_path / "sub")
    write(tmp_path / "empty", {})
    with pytest.raises(DataError, match="an LMDB database without an image"):
        open_training_set(tmp_path / "empty")


def damaged(content, place, value, code="<H"):
    changed = bytearray(content)
    struct.pack_into(code, changed, place, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content, _: content[:3000], "not an LMDB database"),
        (lambda content, _: content[: len(content) // 2], r"outside of the file"),
        (lambda content, _: damaged(damaged(content, 16, 0, "<I"), 4112, 0, "<I"), "not an LMDB database"),
        (lambda content, _: damaged(damaged(content, 20, 999, "<I"), 4116, 999, "<I"), "data format 999; .* format 1"),
        (lambda content, _: damaged(damaged(content, 92, 4), 4096 + 92, 4), "several values for one key"),
        (lambda content, leaf: damaged(content, leaf + 10, 0x20), "a page of the kind 0x20"),
        (lambda content, leaf: damaged(content, leaf + 12, 5000), "the header of the page is broken"),
        (lambda content, leaf: damaged(content, leaf + 16, 4095), "a node outside of its page"),
        (lambda content, leaf: damaged(content, leaf + 12, 16 + 2), r"entries, but the meta page says"),
    ],
)
def test_a_damaged_database_is_refused_in_one_line(hsface, tmp_path, change, said):
    content = hsface.read_bytes()
    file = LmdbFile(hsface)
    root = max(struct.unpack_from("<Q", content, page + 16 + 128)[0:1] + (page,) for page in (0, 4096))[1]
    leaf = struct.unpack_from("<Q", content, root + 16 + 24 + 48 + 40)[0] * file.page_size
    while struct.unpack_from("<H", content, leaf + 10)[0] & 1:  # down the first branch
        node = leaf + struct.unpack_from("<H", content, leaf + 16)[0]
        leaf = struct.unpack_from("<I", content, node)[0] * file.page_size
    (tmp_path / "a.lmdb").write_bytes(change(content, leaf))
    with pytest.raises(DataError, match=said) as caught:
        open_training_set(tmp_path / "a.lmdb")
    assert "\n" not in str(caught.value) and str(tmp_path / "a.lmdb") in str(caught.value)


def test_a_file_that_is_cut_while_it_is_read_is_refused(hsface, tmp_path):
    path = tmp_path / "a.lmdb"
    path.write_bytes(hsface.read_bytes())
    data = open_training_set(path)
    data.read(0)
    with path.open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(DataError, match="the file was cut to 8192 bytes"):
        data.read(0)


def test_pickles_run_nothing(tmp_path, rows):
    class Evil:
        def __reduce__(self):
            return importlib.import_module, ("antigravity",)

    entries = {b"0": pickle.dumps((rows[0][0], 0)), b"1": pickle.dumps((rows[0][0], Evil()))}
    with pytest.raises(DataError, match=r"the pickle asks for importlib.import_module"):
        open_labelled_images(write(tmp_path / "a", entries))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "value",
    [{"image": b"x", "label": 1}, [1, 2], [b"only an image"], [b"image", 1, 2], [b"image", 1.5], list(range(99)), 7],
)
def test_values_of_other_kinds_are_refused(value):
    content = msgpack.dumps(value)
    with pytest.raises(DataError, match="not an image and a label"):
        unpack_message(content, Span(0, len(content)), "key 0")
    with pytest.raises(DataError, match=r"not an image and a label|which a pair list does not need|not a sound pickle"):
        unpack_pickle(pickle.dumps(value), "key 0")


@pytest.mark.parametrize("size", range(1, 12))
def test_a_message_that_is_cut_short_is_refused(size):
    content = msgpack.dumps((b"an image", 300))[:size]
    with pytest.raises(DataError, match=r"the value is cut short|not an image and a label"):
        unpack_message(content, Span(0, size), "key 0")


def test_labels_below_0_are_refused(tmp_path):
    with pytest.raises(DataError, match="label -1; a label is a whole number from 0, or a name"):
        LmdbSet(write(tmp_path / "a", packed([(b"image", -1)])))
    entries = {b"0": msgpack.dumps((b"image", 1)), b"1": msgpack.dumps((b"image", "ann"))}
    with pytest.raises(DataError, match="label b'ann', where others are like 1"):
        LmdbSet(write(tmp_path / "b", entries))


# -------------------------------------------------------------------------------------------------- as training data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_equals_that_on_records(hsface, workers, assert_trains_as_on_records):
    assert_trains_as_on_records(hsface, workers)


def test_workers_that_are_spawned_read_the_same(hsface, assert_spawned_workers_read_the_same):
    assert_spawned_workers_read_the_same(hsface)


def test_resume_takes_the_same_images_only(hsface, rows, tiny_recipe, tmp_path):
    options = {"data.path": str(hsface), "training.epochs": 1, "validation.sets": []}
    train(tiny_recipe(**options), tmp_path / "run", "cpu")
    other = packed([(image, label) for (image, _), (_, label) in zip(rows[::-1], rows, strict=True)])
    write(tmp_path / "other.lmdb", other)
    with pytest.raises(CheckpointError, match="was trained on other data"):
        resume(tmp_path / "run", "cpu", data=str(tmp_path / "other.lmdb"))
    write(tmp_path / "same.lmdb", packed(rows, pickle.dumps))
    assert resume(tmp_path / "run", "cpu", data=str(tmp_path / "same.lmdb"))["steps"] == 7


def test_commands_take_a_database(hsface, small_data, tmp_path, capsys):
    assert main(["data", "inspect", str(hsface), "--json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert (part["images"], part["identities"], part["broken"]) == (28, 4, [])
    assert main(["data", "convert", str(hsface), str(tmp_path / "records")]) == 0
    assert (tmp_path / "records" / "train.rec").read_bytes() == (small_data / "train.rec").read_bytes()
    assert main(["data", "convert", str(hsface), str(tmp_path / "one.bin")]) == 2
    assert "folder, LMDB or Parquet to folder or .rec" in capsys.readouterr().err


def test_records_and_folders_come_first(small_data, tmp_path):
    """A folder that is named like a database may hold people."""
    for name in ("ann", "bo"):
        (tmp_path / "people.lmdb" / name).mkdir(parents=True)
        (tmp_path / "people.lmdb" / name / "1.jpg").write_bytes(b"image")
    assert isinstance(open_training_set(tmp_path / "people.lmdb"), ImageFolder)
    assert isinstance(open_training_set(small_data), RecordSet)
