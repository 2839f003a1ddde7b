"""Inspection: counts, sizes, broken and identical images, conflicts, overlaps, and the contact sheet."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from facebones.data.pair_bins import write_pairs
from facebones.datatools.contact_sheet import EDGE, GENUINE, IMPOSTOR, INK, MARGIN, PAPER, RULE
from facebones.datatools.inspect import PairPart, TrainingPart, inspect_data
from facebones.errors import DataError

FACES = Path(__file__).parents[3] / "shared" / "faces" / "celeba_cfp"


def image(number: int, suffix: str = ".png", size: tuple[int, int] = (8, 8)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    """Identities a (3 images), b (2) and c (1): one file twice, one picture as PNG and BMP in two identities."""
    contents = {
        "a/1.png": image(1),
        "a/2.png": image(1),
        "a/3.png": image(3),
        "b/1.bmp": image(3, ".bmp"),
        "b/2.jpg": image(5, ".jpg", (6, 9)),
        "c/1.jpg": b"\xff\xd8\xff but no image",
    }
    for name, content in contents.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    return tmp_path / "set"


def test_training_set(folder):
    (part,) = inspect_data(folder).parts
    assert isinstance(part, TrainingPart)
    assert (part.images, part.identities, part.distinct) == (6, 3, 3)
    assert part.per_identity == {"min": 1, "median": 2, "max": 3}
    assert part.histogram == {"1": 1, "2-4": 2}
    assert part.sizes == {"8x8": 4, "6x9": 1}
    assert part.encodings == {"png": 3, "bmp": 1, "jpg": 1}
    assert len(part.broken) == 1
    assert part.broken[0].startswith(f"{folder}/c/1.jpg: no readable image")
    assert part.identical == [["set/a/1.png", "set/a/2.png"], ["set/a/3.png", "set/b/1.bmp"]]
    assert part.same_bytes == 1
    assert part.conflicts == [["set/a/3.png, identity a", "set/b/1.bmp, identity b"]]


def test_pair_set(tmp_path):
    images = [image(number) for number in (1, 2, 1, 1, 3, 3, 4, 5)]
    write_pairs(tmp_path / "lfw.bin", images, [True, True, False, False])
    (part,) = inspect_data(tmp_path / "lfw.bin").parts
    assert isinstance(part, PairPart)
    assert (part.pairs, part.genuine, part.impostor, part.images, part.distinct) == (4, 2, 2, 8, 5)
    assert part.folds == "4 pairs are too few for 10"
    assert part.conflicts == [["lfw.bin, pair 2: an impostor pair of one image"]]
    assert part.notes == ["2 pairs show one image twice: 1, 2"]


@pytest.mark.parametrize(
    ("same", "folds"),
    [
        ([True, False] * 10, "10 of 2 pairs"),
        ([True, False] * 10 + [True], "10 of 2 or 3 pairs"),
        ([True] * 10 + [False] * 10, "10 of 2 pairs; 10 of them hold one kind of pair only"),
    ],
)
def test_folds(tmp_path, same, folds):
    write_pairs(tmp_path / "x.bin", [image(number) for number in range(2 * len(same))], same)
    assert inspect_data(tmp_path / "x.bin").parts[0].folds == folds


def test_an_ijb_folder_is_said_to_be_one(tmp_path):
    for name, content in {"loose_crop/1.jpg": image(1, ".jpg"), "meta/ijbc_face_tid_mid.txt": b"1.jpg 1 1\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    (note,) = inspect_data(tmp_path).parts[0].notes
    assert note.startswith(f"{tmp_path}: an IJB folder, by the lists of ijbc in meta, and no training set; it is for")


def test_overlaps_of_all_sets_of_a_folder(folder):
    write_pairs(folder / "lfw.bin", [image(3), image(3), image(8), image(9)], [True, False])
    write_pairs(folder / "cfp.bin", [image(9), image(10)], [True])
    inspection = inspect_data(folder)
    assert [Path(part.path).name for part in inspection.parts] == ["set", "cfp.bin", "lfw.bin"]
    counts = {(Path(each.first).name, Path(each.second).name): each.images for each in inspection.overlaps}
    assert counts == {("set", "cfp.bin"): 0, ("set", "lfw.bin"): 1, ("cfp.bin", "lfw.bin"): 1}
    assert inspection.overlaps[1].examples == [("set/a/3.png", "lfw.bin, image 0")]
    assert inspection.overlaps[2].examples == [("cfp.bin, image 0", "lfw.bin, image 3")]


def test_folder_of_verification_sets_alone(tmp_path):
    write_pairs(tmp_path / "a.bin", [image(1), image(2)], [True])
    write_pairs(tmp_path / "b.bin", [image(1), image(3)], [True])
    inspection = inspect_data(tmp_path)
    assert len(inspection.parts) == 2
    assert [overlap.images for overlap in inspection.overlaps] == [1]


def test_broken_training_set_beside_verification_sets_is_not_passed_over(tmp_path):
    write_pairs(tmp_path / "a.bin", [image(1), image(2)], [True])
    (tmp_path / "train.rec").touch()
    with pytest.raises(DataError, match=r"train\.rec: the file is empty"):
        inspect_data(tmp_path)


@pytest.mark.parametrize("name", ["missing", "missing.bin"])
def test_nothing_there(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: .*"):
        inspect_data(tmp_path / name)


def test_number_of_threads_does_not_matter(folder):
    assert inspect_data(folder, threads=1) == inspect_data(folder, threads=4)


def test_report_for_people_and_programs(folder):
    write_pairs(folder / "lfw.bin", [image(3), image(4)] * 10, [True, False] * 5)
    inspection = inspect_data(folder)
    read = json.loads(json.dumps(inspection.to_json(), allow_nan=False))
    assert [part["images"] for part in read["parts"]] == [6, 20]
    assert read["parts"][0]["histogram"] == {"1": 1, "2-4": 2}
    assert read["overlaps"][0]["images"] == 1
    text = "\n".join(inspection.lines())
    for line in (
        f"{folder}: training set, 6 images of 3 identities",
        "  images per identity: min 1, median 2, max 3",
        "  sizes: 8x8 (4), 6x9 (1)",
        "  encodings: png (3), bmp (1), jpg (1)",
        "  broken images: 1",
        "  damaged images: 0",
        "  groups of identical images (1 byte for byte): 2",
        "    set/a/3.png = set/b/1.bmp",
        "  label conflicts: 1",
        f"{folder}/lfw.bin: verification set, 10 pairs, 5 genuine, 5 impostor",
        f"{folder} and {folder}/lfw.bin: 1 image in common",
    ):
        assert line in text


def with_zeros(encoded: bytes, start: int, count: int) -> bytes:
    return encoded[:start] + bytes(count) + encoded[start + count :]


def test_no_half_jpeg_passes_as_sound(tmp_path):
    images = [image(number, ".jpg", (64, 64)) for number in range(24)]
    write_pairs(tmp_path / "x.bin", [with_zeros(each, len(each) // 2, len(each)) for each in images], [True] * 12)
    (part,) = inspect_data(tmp_path / "x.bin").parts
    assert len(part.broken) + len(part.damaged) == 24
    assert len(part.damaged) == sum(part.sizes.values()) > 0
    assert part.damaged[0].endswith("damaged image (its end is missing); remove it or restore it from the source")


def test_libjpeg_is_quoted_with_the_name_of_the_image(tmp_path):
    """As it is damaged in a record file, where nothing but the decoder sees it; the others decode at the same time."""
    images = [image(number, ".jpg", (64, 64)) for number in range(200)]
    images[70] = with_zeros(images[70], len(images[70]) // 2, 300)
    write_pairs(tmp_path / "x.bin", images, [True] * 100)
    arguments = [sys.executable, "-m", "facebones", "data", "inspect", str(tmp_path / "x.bin")]
    done = subprocess.run([*arguments, "--output", str(tmp_path / "x.png")], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "damaged images: 1\n" in done.stdout
    assert f"{tmp_path}/x.bin, image 70: damaged image (Corrupt JPEG data: " in done.stdout
    one, many = (inspect_data(tmp_path / "x.bin", threads=threads) for threads in (1, 8))
    assert one == many
    assert one.parts[0].images == one.parts[0].distinct == 200


@pytest.mark.parametrize("behind", [b"", bytes(2000), b"what a camera appends"])
def test_what_stands_behind_the_end_of_a_jpeg_is_no_damage(tmp_path, behind):
    write_pairs(tmp_path / "x.bin", [image(1, ".jpg") + behind, image(2) + behind], [True])
    (part,) = inspect_data(tmp_path / "x.bin").parts
    assert part.damaged == part.broken == []


def test_the_end_of_a_thumbnail_is_not_that_of_the_jpeg(tmp_path):
    thumbnail = b"\xff\xe1" + (2 + 4).to_bytes(2, "big") + b"\xff\xda\xff\xd9"
    whole = image(1, ".jpg", (64, 64))
    write_pairs(
        tmp_path / "x.bin", [whole[:2] + thumbnail + each[2:] for each in (whole, whole[:-2] + bytes(9))], [True]
    )
    (part,) = inspect_data(tmp_path / "x.bin").parts
    assert [line.partition(": ")[0] for line in part.damaged] == [f"{tmp_path}/x.bin, image 1"]


def test_only_warnings_of_damage_are_kept_from_stderr():
    program = """
import os, sys
from facebones.datatools.jpeg_damage import decoder_warnings
with decoder_warnings() as warnings:
    print("python", file=sys.stderr)
    os.write(2, b"Corrupt JPEG data: something\\nlibpng warning: something\\nanything else\\n")
    assert warnings.of_damage(0) == "Corrupt JPEG data: something", warnings.of_damage(0)
    print("and so on", file=sys.stderr)
print("after", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == ["python", "and so on", "anything else", "after"]


def test_long_lists_are_cut_for_people_only(tmp_path):
    images = [b"broken"] * 20
    write_pairs(tmp_path / "x.bin", images, [True] * 10)
    inspection = inspect_data(tmp_path / "x.bin")
    assert len(inspection.parts[0].broken) == 20
    assert "    and 15 more" in inspection.lines()
    assert "  sizes: none" in inspection.lines()


def test_contact_sheet(folder, tmp_path):
    write_pairs(folder / "lfw.bin", [image(number, size=(20, 10)) for number in range(20)], [True, False] * 5)
    inspect_data(folder, tmp_path / "out" / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "out" / "sheet.png"), cv2.IMREAD_COLOR_RGB)
    captions = 3 + 2  # three identities; genuine and impostor pairs
    lines = 3 * 122 + 2 * 2 * 148  # of either kind five pairs, four in a line
    assert sheet.shape[:2] == (2 * 14 + 2 * 44 + 25 + captions * 26 + lines, 1024)
    for colour in (GENUINE, IMPOSTOR, EDGE, RULE, INK):
        assert (sheet == colour).all(axis=2).any()
    empty = (sheet == PAPER).all(axis=(0, 2))
    assert empty[:MARGIN].all() and empty[-MARGIN:].all() and not empty[MARGIN] and not empty[-MARGIN - 1]


def test_contact_sheet_of_a_single_broken_pair(tmp_path):
    write_pairs(tmp_path / "x.bin", [b"broken", image(1)], [False])
    inspect_data(tmp_path / "x.bin", tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


@pytest.mark.faces
@pytest.mark.skipif(not FACES.is_dir(), reason=f"no real faces at {FACES}")
def test_real_faces():
    training, pairs = (inspection := inspect_data(FACES)).parts
    assert (training.images, training.identities, training.sizes) == (10309, 603, {"112x112": 10309})
    assert (pairs.pairs, pairs.genuine, pairs.folds) == (6000, 3000, "10 of 600 pairs")
    assert training.broken == pairs.broken == training.damaged == pairs.damaged == []
    assert len(training.conflicts) == 4
    assert inspection.overlaps[0].images == 0
