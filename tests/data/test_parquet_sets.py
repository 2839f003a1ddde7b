"""Training sets in Parquet, written by pyarrow as Hugging Face's `datasets` and others write them."""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from facebones.cli.main import main
from facebones.data import parquet_set
from facebones.data.folders import open_labelled_images, open_training_set
from facebones.data.parquet_encodings import read_struct
from facebones.data.parquet_set import ParquetSet
from facebones.data.training_set import same_data
from facebones.errors import CheckpointError, ConfigError, DataError
from facebones.training.run import resume, train

IMAGE = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])


def table(rows, image="image", label="label", kind=None, **more):
    """A table of images as `datasets` has them, and labels."""
    images = arrow.array([{"bytes": each, "path": f"{n}.jpg"} for n, (each, _) in enumerate(rows)], IMAGE)
    return arrow.table({image: images, label: arrow.array([each for _, each in rows], kind), **more})


def write(path, content, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path, **options)
    return path


@pytest.fixture(scope="session")
def rows(small_data):
    """(image, label) of the small data."""
    data = open_training_set(small_data)
    return [data.read(index) for index in range(len(data))]


@pytest.fixture(scope="session")
def shards(rows, tmp_path_factory):
    """The small data in three files of one folder."""
    folder = tmp_path_factory.mktemp("hub") / "data"
    for number, part in enumerate((rows[:10], rows[10:11], rows[11:])):
        write(folder / f"train-{number:05d}-of-00003.parquet", table(part), row_group_size=4)
    return folder


def read_all(data):
    return [data.read(index) for index in range(len(data))]


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_every_form_of_page_is_read(rows, tmp_path, codec, version, dictionary):
    options = {"compression": codec, "data_page_version": version, "use_dictionary": dictionary}
    # Small pages: pyarrow leaves the dictionary in the middle of a group of rows where it has grown too large.
    options |= {"row_group_size": 12, "data_page_size": 3000, "write_batch_size": 2, "dictionary_pagesize_limit": 9000}
    data = open_training_set(write(tmp_path / "a.parquet", table(rows), **options))
    assert isinstance(data, ParquetSet)
    assert read_all(data) == rows
    assert len(data.parts[0].images.pages) > 6
    assert data.labels.tolist() == [label for _, label in rows] and data.notes == []


def test_images_may_be_bytes_and_some_may_be_missing(rows, tmp_path):
    images = [None if n % 5 == 2 else image for n, (image, _) in enumerate(rows)]
    for kind in (arrow.binary(), arrow.large_binary()):
        for version in ("1.0", "2.0"):
            held = arrow.table({"jpg": arrow.array(images, kind), "cls": [label for _, label in rows]})
            data = open_training_set(write(tmp_path / "a.parquet", held, data_page_version=version, row_group_size=9))
            for index, (image, label) in enumerate(zip(images, data.labels.tolist(), strict=True)):
                if image is None:
                    with pytest.raises(DataError, match=rf"a.parquet, row {index}: no image in the row"):
                        data.read(index)
                else:
                    assert data.read(index) == (image, label)


def test_many_equal_images_are_a_dictionary(tmp_path):
    """Places in it are packed in as few bits as it needs, in runs of one and of many."""
    numbers = np.random.default_rng(0).integers(0, 37, 500).tolist() + [5] * 300
    images = [b"image %d" % number + bytes(400) for number in numbers]
    held = table([*zip(images, numbers, strict=True)])
    data = open_training_set(write(tmp_path / "a.parquet", held, compression="none"))
    assert [data.read(index)[0] for index in range(800)] == images


def test_the_files_of_a_folder_are_one_set(shards, rows):
    for path in (shards, shards.parent, shards / "*.parquet"):
        data = open_training_set(path)
        assert read_all(data) == rows
        assert data.notes == []
    assert data.describe(10) == f"{shards}/train-00001-of-00003.parquet, row 0"
    alone = open_labelled_images(shards / "train-00001-of-00003.parquet")
    assert read_all(alone) == rows[10:11]


def test_only_the_training_split_of_a_folder_is_taken(shards, rows, tmp_path):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write(tmp_path / "test-00000-of-00001.parquet", table(rows[:3]))
    write(tmp_path / "validation-00000-of-00001.parquet", table(rows[:3]))
    data = open_training_set(tmp_path)
    assert len(data) == len(rows)
    left = "test-00000-of-00001.parquet, validation-00000-of-00001.parquet"
    assert data.notes == [f"{tmp_path}: 2 files left out: {left}"]
    data = open_training_set(tmp_path / "*.parquet")
    assert len(data) == len(rows) + 6
    assert data.notes[0].endswith(f"{left}: named like test data, and trained on, because you named them")


def test_names_are_numbered_over_all_files(rows, tmp_path):
    for number, people in enumerate((["cy", "ann"], ["bo", "cy"])):
        held = table([(image, name) for (image, _), name in zip(rows[:2], people, strict=True)], label="identity")
        write(tmp_path / f"{number}.parquet", held)
    data = open_training_set(tmp_path)
    assert data.labels.tolist() == [2, 0, 1, 2]
    assert [data.identity_name(label) for label in range(3)] == ["ann", "bo", "cy"]
    write(tmp_path / "2.parquet", table(rows[:2], label="identity"))
    with pytest.raises(DataError, match=r"labels of two kinds: 0.parquet has string, 2.parquet has int64"):
        open_training_set(tmp_path)


@pytest.mark.parametrize("kind", [arrow.dictionary(arrow.int8(), arrow.string()), arrow.large_string(), arrow.uint16()])
def test_kinds_of_labels(rows, tmp_path, kind):
    values = [label if arrow.types.is_integer(kind) else f"p{label}" for _, label in rows]
    held = table([(image, value) for (image, _), value in zip(rows, values, strict=True)], kind=kind)
    assert read_all(open_training_set(write(tmp_path / "a.parquet", held))) == rows


def test_labels_far_beyond_the_images_are_renumbered(rows, tmp_path):
    held = table([(image, label * 10**9 + 5) for image, label in rows])
    data = open_training_set(write(tmp_path / "a.parquet", held))
    assert data.num_identities == 4 and "are numbered 0 to 3" in data.notes[0]


def test_names_that_datasets_writes_are_used(rows, tmp_path):
    about = {"info": {"features": {"label": {"names": ["ann", "bo", "cy", "dee"], "_type": "ClassLabel"}}}}
    held = table(rows).replace_schema_metadata({"huggingface": json.dumps(about)})
    data = open_training_set(write(tmp_path / "a.parquet", held))
    assert data.identity_name(2) == "cy"
    held = table(rows).replace_schema_metadata({"huggingface": "{broken"})
    assert open_training_set(write(tmp_path / "a.parquet", held)).identity_name(2) == "2"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"image": ["a.jpg", "b.jpg"], "label": [0, 1]},
            r"no column of images .* among image \(string\), label \(int64\)",
        ),
        ({"image": [b"a", b"b"], "width": [1, 1], "id": [3, 4]}, r"no column of labels among .*; rename it to 'label'"),
        ({"image": [b"a", b"b"], "label": [[0], [1]]}, "no column of labels"),
        ({"one": [b"a", b"b"], "two": [b"a", b"b"], "label": [0, 1]}, "no column of images"),
        ({"image": [b"a", b"b"], "label": [0, -1]}, "label -1 in column 'label'"),
        ({"image": [b"a", b"b"], "label": [0, None]}, "1 row without a label in column 'label'"),
        ({"image": [], "label": []}, r"no column of|no row in 1 Parquet file"),
    ],
)
def test_what_is_no_set_of_faces_is_said_in_one_line(tmp_path, columns, said):
    path = write(tmp_path / "a.parquet", arrow.table(columns))
    with pytest.raises(DataError, match=said) as caught:
        open_training_set(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"])
def test_labels_may_have_any_encoding(rows, tmp_path, encoding):
    options = {"use_dictionary": ["image.bytes"], "column_encoding": {"label": encoding}}
    assert read_all(open_training_set(write(tmp_path / "a.parquet", table(rows), **options))) == rows


def test_an_encoding_that_is_not_read_is_named(rows, tmp_path):
    options = {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}}
    with pytest.raises(
        DataError, match="images in the encoding DELTA_LENGTH_BYTE_ARRAY, which facebones does not read"
    ):
        open_training_set(write(tmp_path / "a.parquet", table(rows), **options))


@pytest.mark.parametrize("cut", [0, 4, 100, 20_000, -1])
def test_a_damaged_file_is_refused_in_one_line(shards, tmp_path, cut):
    content = next(iter(sorted(shards.iterdir()))).read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:cut])
    with pytest.raises(DataError, match=r"a.parquet: (no sound Parquet file|the file is empty)") as caught:
        open_training_set(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)


def test_a_page_that_claims_too_much_is_refused_before_memory_is_allocated(tmp_path, added_memory):
    """A hundred megabytes of zeros in a file of ten kilobytes; and the same for labels."""
    held = arrow.table({"image": [bytes(50_000_000), bytes(50_000_000)], "label": [0, 1]})
    path = write(tmp_path / "a.parquet", held, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 30_000
    with pytest.raises(DataError, match="that claims to inflate to"):
        open_training_set(path)
    code = (
        "from facebones.data.folders import open_training_set\n"
        "try: open_training_set(sys.argv[1])\n"
        "except Exception as error: assert 'claims to inflate' in str(error), error"
    )
    # What the imports of pyarrow and facebones take is in it.
    assert added_memory(code, path) < 150


def test_large_pages_are_noted(rows, tmp_path):
    image = rows[0][0] + bytes(300_000)
    held = table([(image[:-n] if n else image, n % 2) for n in range(20)])
    options = {"use_dictionary": False, "row_group_size": 20}
    data = open_training_set(write(tmp_path / "a.parquet", held, **options))
    assert "with its page, of up to 20 images and 5." in data.notes[0] and "row groups of 100" in data.notes[0]
    assert open_training_set(write(tmp_path / "b.parquet", held, compression="none", **options)).notes == []
    assert open_training_set(write(tmp_path / "c.parquet", held, **options | {"row_group_size": 5})).notes == []


def test_lists_within_lists_are_refused():
    """They were a RecursionError, found by the fuzzer."""
    with pytest.raises(ValueError, match="lists within lists"):
        read_struct(b"\x19" * 5000, 0)


def test_rows_that_a_file_cannot_hold_are_refused(tmp_path):
    held = arrow.table({"image": [b"x"] * 100_000, "label": [0, 1] * 50_000})
    with pytest.raises(DataError, match=r"100000 rows in [0-9]+ bytes"):
        open_training_set(write(tmp_path / "a.parquet", held))


def test_without_pyarrow_one_line_names_the_extra(shards, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"Parquet needs pyarrow; pip install 'facebones\[parquet\]'"):
        open_training_set(shards)
    assert main(["data", "inspect", str(shards)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -------------------------------------------------------------------------------------------------- as training data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_equals_that_on_records(shards, workers, assert_trains_as_on_records):
    assert_trains_as_on_records(shards, workers)


def test_workers_that_are_spawned_read_the_same(shards, assert_spawned_workers_read_the_same):
    assert_spawned_workers_read_the_same(shards)


def test_threads_share_the_pages(shards, rows, monkeypatch):
    monkeypatch.setattr(parquet_set, "CACHED_BYTES", 1)
    data = open_training_set(shards)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(data.read, [*range(28)] * 20)) == rows * 20
    assert len(data._pages._held) == 1 and data._pages._bytes == next(iter(data._pages._held.values())).memory
    copy = pickle.loads(pickle.dumps(data))
    assert not copy._pages._held and read_all(copy) == rows


def test_resume_takes_the_same_images_only(shards, rows, small_data, tiny_recipe, tmp_path):
    options = {"data.path": str(shards), "training.epochs": 1, "validation.sets": []}
    train(tiny_recipe(**options), tmp_path / "run", "cpu")
    others = [(image, label) for (image, _), (_, label) in zip(rows[::-1], rows, strict=True)]
    write(tmp_path / "other.parquet", table(others))
    with pytest.raises(CheckpointError, match="was trained on other data"):
        resume(tmp_path / "run", "cpu", data=str(tmp_path / "other.parquet"))
    assert same_data(open_training_set(shards).fingerprint(), open_training_set(small_data).fingerprint()) == []
    assert resume(tmp_path / "run", "cpu", data=str(shards))["steps"] == 7


def test_commands_take_the_files(shards, small_data, tmp_path, capsys):
    assert main(["data", "inspect", str(shards), "--json", "--output", str(tmp_path / "sheet.png")]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert (part["images"], part["identities"], part["broken"]) == (28, 4, [])
    assert main(["data", "convert", str(shards), str(tmp_path / "records")]) == 0
    assert (tmp_path / "records" / "train.rec").read_bytes() == (small_data / "train.rec").read_bytes()
