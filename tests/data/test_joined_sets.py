"""Training data in several folders, deeper than expected, and among folders of other tools."""

import os
import pickle

import cv2
import numpy as np
import pytest

from facebones.cli.main import main
from facebones.data.folders import open_training_set, pair_sets
from facebones.data.images import decode
from facebones.data.joined_sets import JoinedSets, absolute, beside, data_roots
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, RecordFile, pack
from facebones.data.training_set import same_data
from facebones.errors import DataError
from facebones.run_folder import RunFolder


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def write_records(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    with RecordWriter(path) as writer:
        for key, label in enumerate(labels):
            writer.write(key, pack(Header(float(label), key), f"{path.parent.name} {key}".encode()))


def joined(*paths):
    return os.pathsep.join(map(str, paths))


def test_numbers_that_repeat_in_parts_are_different_people(tmp_path):
    write(tmp_path, "a/0/1.jpg", "a/1/1.jpg", "b/0/1.jpg", "b/0/2.jpg", "b/2/1.jpg")
    data = open_training_set(joined(tmp_path / "a", tmp_path / "b"))
    assert isinstance(data, JoinedSets)
    assert data.labels.tolist() == [0, 1, 2, 2, 3]
    assert [data.identity_name(label) for label in range(data.num_identities)] == ["a/0", "a/1", "b/0", "b/2"]
    assert "1 number is in several parts and counts as different people: 0" in data.notes[0]
    assert [data.read(index) for index in (0, 3, 4)] == [(b"a/0/1.jpg", 0), (b"b/0/2.jpg", 2), (b"b/2/1.jpg", 3)]
    assert data.describe(3) == str(tmp_path / "b" / "0" / "2.jpg")


def test_a_name_that_repeats_in_parts_is_one_person(tmp_path):
    write(tmp_path, "a/ann/1.jpg", "a/bo/1.jpg", "b/ann/2.jpg", "b/cy/1.jpg")
    data = open_training_set(joined(tmp_path / "b", tmp_path / "a"))
    assert data.labels.tolist() == [0, 1, 0, 2]
    assert [data.identity_name(label) for label in range(3)] == ["b/ann", "b/cy", "a/bo"]
    assert "1 name is in several parts and counts as one person: ann" in data.notes[0]


def test_parts_of_a_pattern_are_the_same_as_named_ones_and_survive_pickling(tmp_path):
    write(tmp_path, "p1/0/1.jpg", "p2/0/1.jpg", "p2/1/1.jpg", "@eaDir/0/1.jpg", "readme.txt")
    named, pattern = open_training_set(joined(tmp_path / "p1", tmp_path / "p2")), open_training_set(tmp_path / "*")
    assert same_data(named.fingerprint(), pattern.fingerprint()) == []
    assert "file_sizes_sha256" in pattern.fingerprint()
    copy = pickle.loads(pickle.dumps(pattern))
    assert [copy.read(index) for index in range(3)] == [named.read(index) for index in range(3)]
    pattern.read_ahead(0, 3)


def test_record_files_are_joined_by_part(tmp_path):
    for part in ("a", "b"):
        write_records(tmp_path / part / "train.rec", [0, 0, 2])
    data = open_training_set(tmp_path / "?")
    assert data.labels.tolist() == [0, 0, 1, 2, 2, 3]
    assert data.read(4) == (b"b 1", 2)
    data.read_ahead(1, 5)


def test_a_huge_label_in_a_part_takes_no_memory(tmp_path):
    write_records(tmp_path / "a" / "train.rec", [0, 16_777_214])
    write(tmp_path, "b/ann/1.jpg")
    assert open_training_set(tmp_path / "?").num_identities == 3


def test_one_root_that_matches_is_the_set_itself(tmp_path):
    write(tmp_path, "part0/ann/1.jpg", "part0/bo/1.jpg")
    assert open_training_set(tmp_path / "*").labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("part*", r"part\*: no folder and no .rec file matches"),
        (joined("a", "a"), "names a twice"),
        (joined("a", "missing"), "missing: no such file or folder"),
    ],
)
def test_places_that_are_not_there(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(write(tmp_path, "a/ann/1.jpg"))
    with pytest.raises(DataError, match=message):
        open_training_set(name)


@pytest.mark.parametrize(
    "again",
    ["a", "./a", "a/", "b/../a", "link", "{here}/a", "b:link", "[a]", "?", "*"],
)
def test_a_place_that_is_given_twice_is_refused(tmp_path, monkeypatch, again):
    """In any spelling: its people would count twice."""
    monkeypatch.chdir(write(tmp_path, "a/ann/1.jpg", "a/bo/1.jpg", "b/cy/1.jpg"))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    again = again.replace(":", os.pathsep).format(here=tmp_path)
    with pytest.raises(
        DataError, match=r"(is the same data as|names a twice).*; name each folder of training data once"
    ) as error:
        open_training_set(joined("a", again))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("again", ["a", "a/train.rec", "link.rec", "linked", "a/../a/train.rec"])
def test_a_record_file_that_is_given_twice_is_refused(tmp_path, monkeypatch, again):
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "a" / "train.rec", [0, 1])
    (tmp_path / "link.rec").symlink_to("a/train.rec")
    (tmp_path / "linked").symlink_to("a")
    for first in ("a", "a/train.rec"):
        with pytest.raises(DataError, match=r"(is the same data as a|names a\S* twice).*; name each"):
            open_training_set(joined(first, again))


def test_a_path_with_the_separator_or_a_star_in_its_name_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, f"a{os.pathsep}b/ann/1.jpg", "c*/ann/1.jpg", "c1/ann/1.jpg"))
    assert len(data_roots(f"a{os.pathsep}b")) == len(data_roots("c*")) == 1


def test_a_folder_with_the_separator_in_its_name_cannot_be_joined_which_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = f"a{os.pathsep}b"
    write(tmp_path, f"{odd}/Ann/1.jpg", f"{odd}/Bo/1.jpg", "more/Cy/1.jpg")
    for path in (os.pathsep.join([odd, "more"]), os.pathsep.join(["more", odd])):
        with pytest.raises(DataError, match=rf"{odd} has '{os.pathsep}' in its name.*rename") as error:
            open_training_set(path)
        assert "\n" not in str(error.value)


def test_absolute_paths_and_the_place_of_pair_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, "set/a/0/1.jpg", "set/b/0/1.jpg", "one/train.rec"))
    assert absolute(joined("set/a", "set/b")) == joined(tmp_path / "set" / "a", tmp_path / "set" / "b")
    assert absolute("set/*") == str(tmp_path / "set" / "*")
    assert beside("set/*") == tmp_path / "set"
    assert str(beside("set")) == "set"
    assert str(beside("one/train.rec")) == "one"


def test_data_may_be_repeated_on_the_command_line(tmp_path, small_data, tiny_backbone, capsys):
    folders = [small_data.parent / "images", small_data]
    options = ["--training.batch_size", "14", "--training.epochs", "1", "--data.workers", "0"]
    words = ["train", "demo", "--backbone", tiny_backbone, "--output", str(tmp_path / "run"), *options]
    words += ["--validation.sets", str(small_data / "tiny.bin"), "--head.sample_rate", "1.0"]
    assert main([*words, "--data", str(folders[0]), "--data", str(folders[1])]) == 0
    assert "on 56 images of 8 identities" in capsys.readouterr().err
    assert '"training_data": "images, faces"' in RunFolder(tmp_path / "run").result.read_text()


@pytest.mark.parametrize("idle", ["new/", "docs/readme.txt", "new/deeper/", "@eaDir/ann/1.jpg", "new/@eaDir/1.jpg"])
def test_a_pattern_leaves_out_folders_without_data(tmp_path, idle):
    """With a note: an error advises the pattern for a folder in which others may be."""
    write(tmp_path, "set/p0/ann/1.jpg", "set/p0/bo/1.jpg", "set/p1/cy/1.jpg")
    (tmp_path / "set" / idle).parent.mkdir(parents=True, exist_ok=True)
    if idle.endswith("/"):
        (tmp_path / "set" / idle).mkdir(parents=True)
    else:
        write(tmp_path / "set", idle)
    with pytest.raises(DataError, match=r"name .* as the data, or") as error:
        open_training_set(tmp_path / "set")
    pattern = str(error.value).split("'")[1]
    data = open_training_set(pattern)
    assert data.labels.tolist() == [0, 1, 2]
    name = idle.split("/")[0]
    system = [f"{pattern}: 1 folder without images or records left out: {name}"] if name != "@eaDir" else []
    assert data.notes == system


def test_a_pattern_of_folders_without_data_only(tmp_path):
    (tmp_path / "p0").mkdir()
    with pytest.raises(
        DataError, match=r"\*: 1 folder matches, but holds no image and no \.rec file; check the pattern"
    ):
        open_training_set(tmp_path / "*")
    with pytest.raises(DataError, match=r"p0: an empty folder; looked for"):
        open_training_set(joined(tmp_path / "p0", tmp_path / "p0" / ".."))


@pytest.mark.parametrize("destination", ["rec", "one.rec"])
def test_a_pattern_with_one_match_is_converted_as_what_it_matches(tmp_path, destination):
    from facebones.datatools.convert import convert

    place = tmp_path / "parts" / "part1" / "ann" / "1.png"
    place.parent.mkdir(parents=True)
    cv2.imwrite(str(place), np.zeros((8, 8, 3), np.uint8))
    convert(tmp_path / "parts" / "part?", tmp_path / destination)
    assert convert(tmp_path / "[r]ec*" if destination == "rec" else tmp_path / "on?.rec", tmp_path / "back").images == 1
    with pytest.raises(DataError, match=r"prt\?: no folder and no \.rec file matches; check the pattern"):
        convert(tmp_path / "parts" / "prt?", tmp_path / "other")


@pytest.mark.parametrize(
    "words",
    [
        ["data", "inspect", "a", "b"],
        ["data", "convert", "a", "b", "c"],
        ["train", "demo", "--output", "run", "--data", "a", "b"],
    ],
)
def test_folders_side_by_side_are_told_how_to_be_given(tmp_path, monkeypatch, capsys, words):
    """Also what a shell makes of a pattern without quotes."""
    monkeypatch.chdir(write(tmp_path, "a/ann/1.jpg", "b/ann/1.jpg", "c/ann/1.jpg"))
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert (
        f"give several folders as one argument: {joined('a', 'b')}, or a pattern in quotes, such as 'parts/*'" in shown
    )
    assert shown.count("\n") == 1


def test_parts_are_converted_to_one_record_file(tmp_path):
    from facebones.datatools.convert import convert

    for number, name in enumerate(["a/ann/1", "a/bo/1", "b/ann/2", "b/cy/1"]):
        place = tmp_path / "parts" / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), np.full((8, 8, 3), number, np.uint8))
    convert(tmp_path / "parts" / "*", tmp_path / "rec")
    data = open_training_set(tmp_path / "rec")
    assert (data.labels.tolist(), data.notes) == ([0, 0, 1, 2], [])
    assert [int(decode(data.read(index)[0], "an image")[0, 0, 0]) for index in range(4)] == [0, 2, 1, 3]


def test_a_bin_of_pixels_is_converted_in_the_order_that_is_given(tmp_path):
    from facebones.data.pair_bins import read_pairs
    from facebones.datatools.convert import convert

    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "a.bin").write_bytes(pickle.dumps((list(pixels), [True])))
    done = convert(tmp_path / "a.bin", tmp_path / "b.bin", pixel_order="rgb")
    assert "2 images are decoded pixels, taken as RGB" in done.notes[0]
    pairs = read_pairs(tmp_path / "b.bin")
    assert pairs.notes == ()
    np.testing.assert_array_equal(decode(pairs.images[1], "an image"), pixels[1])
    with pytest.raises(DataError, match=r"--pixel-order goes with a \.bin file"):
        convert(tmp_path, tmp_path / "c", pixel_order="rgb")


@pytest.mark.parametrize(
    ("image", "root", "pattern"),
    [("p0/ann/1.jpg", "p0", "*"), ("x/p0/ann/1.jpg", "x/p0", "*/*"), ("@eaDir/.a", None, None)],
)
def test_deeper_images_are_named_with_the_way_on(tmp_path, image, root, pattern):
    write(tmp_path / "set", image)
    with pytest.raises(DataError, match="no image in any <identity>/") as error:
        open_training_set(tmp_path / "set")
    if root is None:
        assert str(error.value).endswith("check the path")
        return
    assert f"such as {image}: name {tmp_path}/set/{root} as the data, or '{tmp_path}/set/{pattern}'" in str(error.value)
    with pytest.raises(DataError, match="of one identity"):
        open_training_set(tmp_path / "set" / pattern)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "#recycle", "lost+found", "System Volume Information"])
def test_a_folder_of_the_system_is_no_person(tmp_path, name):
    write(tmp_path, "ann/1.jpg", "bo/1.jpg", f"{name}/1.jpg")
    data = open_training_set(tmp_path)
    assert data.labels.tolist() == [0, 1]
    assert data.notes == [f"{tmp_path}: 1 system folder left out: {name}"]


def test_hidden_copies_of_a_mac_are_no_pair_sets(tmp_path):
    write(tmp_path, "lfw.bin", "._lfw.bin", "@eaDir/lfw.bin")
    assert [path.name for path in pair_sets(tmp_path)] == ["lfw.bin"]


def test_an_index_with_doubled_keys_names_the_way_on(tmp_path):
    path = tmp_path / "train.rec"
    write_records(path, [0, 0, 1])
    index = path.with_suffix(".idx")
    rows = index.read_text().splitlines()
    index.write_text("\n".join([*rows, rows[1]]) + "\n")
    with pytest.raises(DataError, match=r"train\.idx, line 4: key 1 a second time.*remove train\.idx to have the .rec"):
        RecordFile(path)
    index.unlink()
    assert len(RecordFile(path)) == 3


def test_doubled_ids_in_the_records_themselves_are_said(tmp_path):
    path = tmp_path / "train.rec"
    with RecordWriter(path) as writer:
        for key in range(2):
            writer.write(key, pack(Header(0.0, 7), b"a"))
    rows = [f"7\t{row.split(chr(9))[1]}" for row in path.with_suffix(".idx").read_text().splitlines()]
    path.with_suffix(".idx").write_text("\n".join(rows))
    with pytest.raises(DataError, match="the records have doubled ids, too; restore both files"):
        RecordFile(path)


def test_images_of_another_aspect_are_counted_once(tmp_path):
    for number, shape in enumerate([(112, 96), (112, 96), (8, 8)]):
        place = tmp_path / f"{number % 2}" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(place), np.zeros((*shape, 3), np.uint8))
    note = open_training_set(tmp_path).aspect_note()
    assert note == (
        f"{tmp_path}: 2 of 3 images are not square (112x96: 2); they are stretched to the network's input, so align or"
        " crop them"
    )
