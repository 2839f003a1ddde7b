"""From photos to aligned faces: as `align_face` makes them, nothing lost in silence, interruptions cost little."""

import csv
import json
import os
import shutil
import signal
import struct

import cv2
import numpy as np
import pytest

from facebones.cli.main import main
from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.data.preprocessing import REFERENCE, align_face, five_of_68
from facebones.datatools import align_folder as alignment
from facebones.datatools.align_folder import MISSING, Encoding, align_folder
from facebones.datatools.landmarks import FaceDetector, LandmarkTable, quiet_opencv
from facebones.datatools.partial_folder import PartialFolder, record_name
from facebones.errors import CheckpointError, ConfigError, DataError, RunError
from facebones.synthetic.dataset import Shot, draw_shot

PEOPLE, EACH = 3, 2
RECORD = record_name("alignment")


def crop(person, number):
    return draw_shot(5, Shot(person, number, "frontal", loose=True))


@pytest.fixture(scope="module")
def drawn():
    """Path inside the folder to a drawn loose crop with landmarks."""
    return {f"person{p}/{n}.jpg": crop(p, n) for p in range(PEOPLE) for n in range(1, EACH + 1)}


@pytest.fixture
def photos(drawn, tmp_path):
    for name, face in drawn.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(face.encoded())
    return tmp_path / "photos"


def write_table(path, rows):
    path.write_text("".join(f"{name},{','.join(str(value) for value in np.ravel(points))}\n" for name, points in rows))
    return path


@pytest.fixture
def table(drawn, tmp_path):
    return write_table(tmp_path / "points.csv", [(name, face.landmarks) for name, face in drawn.items()])


def missing(folder):
    """The photos without a face; where there are none, there is no list of them."""
    if not (folder / MISSING).exists():
        return {}
    with (folder / MISSING).open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "reason"] and rows
    return dict(rows)


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ----------------------------------------------------------------------------------------------------- by a table


@pytest.mark.parametrize("workers", [1, 3])
def test_faces_are_those_of_align_face(photos, drawn, table, tmp_path, workers):
    done = align_folder(
        photos, tmp_path / "faces", LandmarkTable(table), encoding=Encoding(format="png"), workers=workers
    )
    assert (done.images, done.faces, done.folders, done.kept, done.not_found) == (6, 6, 3, 0, ())
    for name, face in drawn.items():
        photo = decode(face.encoded(), name)
        expected = align_face(photo, np.array([[float(str(v)) for v in point] for point in face.landmarks]), name)
        found = decode((tmp_path / "faces" / name).with_suffix(".png").read_bytes(), name)
        np.testing.assert_array_equal(found, expected)


def test_the_result_is_an_image_folder_without_notes(photos, table, tmp_path):
    align_folder(photos, tmp_path / "faces", LandmarkTable(table))
    data = open_training_set(tmp_path / "faces")
    assert (len(data), data.num_identities, data.notes) == (6, 3, [])
    assert {decode(data.read(i)[0], "face").shape for i in range(6)} == {(112, 112, 3)}
    assert missing(tmp_path / "faces") == {}


def test_68_points_are_reduced_to_five(photos, drawn, tmp_path):
    rows = {}
    for name, face in drawn.items():
        rows[name] = points = np.zeros((68, 2))
        points[[36, 39]] = face.landmarks[0] + ((-2, 0), (2, 0))
        points[[42, 45]] = face.landmarks[1] + ((-2, 0), (2, 0))
        points[[30, 48, 54]] = face.landmarks[2:]
    table = LandmarkTable(write_table(tmp_path / "68.csv", rows.items()))
    align_folder(photos, tmp_path / "faces", table, encoding=Encoding(format="png"))
    for name, points in rows.items():
        expected = align_face(decode((photos / name).read_bytes(), name), five_of_68(points), name)
        found = decode((tmp_path / "faces" / name).with_suffix(".png").read_bytes(), name)
        np.testing.assert_array_equal(found, expected)


def test_landmarks_are_of_the_image_as_it_is_displayed(drawn, tmp_path):
    """A photo whose EXIF data says: turn me by a quarter."""
    face = drawn["person0/1.jpg"]
    upright = decode(face.encoded(), "photo")
    lying = cv2.cvtColor(np.rot90(upright), cv2.COLOR_RGB2BGR)  # turned to the left; orientation 6 turns it back
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x112, 3, 1, 6, 0)
    jpeg = cv2.imencode(".jpg", lying, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
    (tmp_path / "photos").mkdir()
    marked = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    (tmp_path / "photos" / "a.jpg").write_bytes(marked)
    points = LandmarkTable(write_table(tmp_path / "points.csv", [("a.jpg", face.landmarks)]))
    align_folder(tmp_path / "photos", tmp_path / "faces", points, encoding=Encoding(format="png"))
    found = decode((tmp_path / "faces" / "a.png").read_bytes(), "a")
    expected = align_face(upright, face.landmarks, "a")
    assert np.abs(found.astype(int) - expected).mean() < 2  # the JPEG was encoded once more


@pytest.mark.parametrize("depth", ["", "a/b/"])
def test_folders_are_kept_as_they_lie(drawn, table, tmp_path, depth):
    place = tmp_path / "photos" / depth
    place.mkdir(parents=True)
    (place / "x.JPEG").write_bytes(drawn["person0/1.jpg"].encoded())
    points = [(f"./{depth}x.JPEG", drawn["person0/1.jpg"].landmarks)]
    sheet = tmp_path / "sheet.png"
    table = LandmarkTable(write_table(tmp_path / "points.csv", points))
    align_folder(tmp_path / "photos", tmp_path / "faces", table, contact_sheet=sheet)
    assert set(files_below(tmp_path / "faces")) == {f"{depth}x.jpg", RECORD}
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_quality_is_that_of_the_jpeg(photos, table, tmp_path):
    sizes = []
    for quality in (30, 95):
        target = tmp_path / str(quality)
        align_folder(photos, target, LandmarkTable(table), encoding=Encoding(quality=quality))
        sizes.append((target / "person0" / "1.jpg").stat().st_size)
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("shift", [-500, 5000])
def test_landmarks_outside_of_the_image_give_no_black_face(photos, drawn, tmp_path, shift):
    rows = [(name, face.landmarks + (shift if name == "person0/1.jpg" else 0)) for name, face in drawn.items()]
    done = align_folder(photos, tmp_path / "faces", LandmarkTable(write_table(tmp_path / "points.csv", rows)))
    assert dict(done.not_found) == {"person0/1.jpg": "landmarks outside of the image"}


def test_what_is_not_found_is_listed_with_its_reason(photos, drawn, tmp_path):
    (photos / "person1" / "1.jpg").write_bytes(b"no image")
    (photos / "person1" / "0.jpg").write_bytes(b"")
    (photos / "person2" / "notes.heic").write_bytes(b"")
    (photos / "person0" / ".hidden.jpg").write_bytes(b"")
    rows = [(name, face.landmarks) for name, face in drawn.items() if name != "person2/1.jpg"]
    rows[0] = (rows[0][0], np.full((5, 2), 7))
    rows.append(("gone/1.jpg", REFERENCE))
    table = LandmarkTable(write_table(tmp_path / "points.csv", rows))
    done = align_folder(photos, tmp_path / "faces", table)
    expected = {
        "gone/1.jpg": "no such image",
        "person0/1.jpg": "landmarks all in one place",
        "person1/0.jpg": "unreadable image: an empty file, 0 bytes",
        "person1/1.jpg": "unreadable image",
        "person2/1.jpg": "no landmarks",
    }
    assert missing(tmp_path / "faces") == dict(done.not_found) == expected
    assert (done.images, done.faces) == (7, 3)
    text = str(done)
    assert (
        "not found: 4 of 7 images (unreadable image: 2, no such image: 1, " in text
        and str(tmp_path / "faces" / MISSING) in text
    )
    assert "1 file that is no image left out: person2/notes.heic" in text


@pytest.mark.parametrize("link", [False, True])
def test_the_contact_sheet_never_replaces_a_photo(photos, table, tmp_path, link):
    photo = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    before = photo.read_bytes()
    sheet = tmp_path / "link.png" if link else photo.parent / ".." / photo.parent.name / photo.name
    if link:
        sheet.symlink_to(photo)
    with pytest.raises(ConfigError, match="which would be lost; choose another place"):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table), contact_sheet=sheet)
    assert photo.read_bytes() == before and not (tmp_path / "faces").exists()


def test_decoders_say_nothing_and_damage_is_counted(photos, table, tmp_path, capfd):
    for path, change in zip(sorted(photos.rglob("*.jpg")), (b"\xff\x00\xff\xd9\x00\x12", bytes(40)), strict=False):
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + len(change)] = change
        path.write_bytes(content)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    png = bytearray(cv2.imencode(".png", pixels)[1].tobytes())
    png[60:64] = b"abcd"
    (photos / "broken.png").write_bytes(png)
    result = align_folder(photos, tmp_path / "out", LandmarkTable(table))
    said = capfd.readouterr().err
    assert not any(word in said for word in ("JPEG", "libpng", "WARN")), said
    assert any(note.startswith("damaged JPEG data, 2 times; `facebones data inspect") for note in result.notes)


def test_a_folder_without_a_face_is_named(photos, drawn, tmp_path):
    rows = [(name, face.landmarks) for name, face in drawn.items() if not name.startswith("person1")]
    done = align_folder(photos, tmp_path / "faces", LandmarkTable(write_table(tmp_path / "points.csv", rows)))
    assert "folders without a face: 1: person1" in done.notes


def test_no_face_at_all_is_an_error_and_leaves_nothing(photos, tmp_path):
    table = LandmarkTable(write_table(tmp_path / "points.csv", [("other.jpg", REFERENCE)]))
    with pytest.raises(DataError, match=r"photos: no face in any of 6 images \(no landmarks: 6, no such image: 1\)"):
        align_folder(photos, tmp_path / "faces", table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "points.csv"]


@pytest.mark.parametrize("other", ["1.png", "1.JPG"])
def test_two_images_of_one_name_are_refused(photos, table, tmp_path, other):
    (photos / "person0" / other).write_bytes(b"")
    message = r"person0/1\.\w+ and person0/1\.\w+ would both become person0/1\.jpg"
    with pytest.raises(DataError, match=message):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table))


def test_links_are_followed_and_a_ring_ends(photos, drawn, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "p").symlink_to(photos / "person0")
    (photos / "person0" / "ring").symlink_to(photos / "person0")
    assert alignment.list_images(tmp_path / "linked") == (["p/1.jpg", "p/2.jpg"], [])


@pytest.mark.parametrize("place", ["photos/faces", "photos"])
def test_a_destination_inside_the_source_is_refused(photos, table, tmp_path, place):
    with pytest.raises(DataError, match="lies inside"):
        align_folder(photos, tmp_path / place, LandmarkTable(table))


def test_what_exists_is_refused_and_stays(photos, table, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="faces: exists already"):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table))
    with pytest.raises(DataError, match="faces: not an alignment to continue"):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table), resume=True)
    assert files_below(tmp_path / "faces") == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no landmarks"),
        ("path,x1,y1\n", "holds no landmarks"),
        ("a.jpg,1,2,3,4,5,6,7,8,9\n", r"line 1: 10 fields instead of 11 \(5 points\) or 137 \(68 points\)"),
        ("path,x\n\na.jpg,1,2,3,4,5,6,7,8,9,x\n", "line 3: 'x' is not a number"),
        ("a.jpg,1,2,3,4,5,6,7,8,9,nan\n", "line 1: 'nan' is not a number"),
        ("a.jpg,1,2,3,4,5,6,7,8,9,1e300\n", "line 1: '1e300' is not a number"),
        ("a.jpg\n", "line 1: 1 field instead of"),
        ("a.jpg,1,2,3,4,5,6,7,8,9,0\n./a.jpg,1,2,3,4,5,6,7,8,9,0\n", "line 2: a.jpg is in the table twice"),
        (f"{'a' * 200_000},1\n", "line 1: field larger than field limit"),
        (b"\xff\xfe", "byte 0: not UTF-8 text"),
    ],
)
def test_a_broken_table_is_named_by_line(tmp_path, text, message):
    (tmp_path / "points.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"points\.csv.*{message}") as error:
        LandmarkTable(tmp_path / "points.csv")
    assert "\n" not in str(error.value)


def test_a_heading_and_the_marks_of_other_programs_are_admitted(tmp_path):
    text = '\ufeffpath,"x1",y1,x2,y2,x3,y3,x4,y4,x5,y5\r\n"a, b.jpg", 1,2 ,3,4,5,6,7,8,9,10\r\n'
    (tmp_path / "points.csv").write_text(text, encoding="utf-8", newline="")
    table = LandmarkTable(tmp_path / "points.csv")
    assert table.names() == ["a, b.jpg"]
    np.testing.assert_array_equal(table.find("a, b.jpg", None)[0], np.arange(1, 11).reshape(5, 2))


# --------------------------------------------------------------------------------------- interruption and resume


@pytest.mark.parametrize("heading", ["", "path;x1;y1;x2;y2;x3;y3;x4;y4;x5;y5\n"])
@pytest.mark.parametrize(("mark", "point"), [(";", ","), (";", "."), ("\t", ",")])
def test_a_table_of_excel_with_semicolons_and_decimal_commas(tmp_path, heading, mark, point):
    numbers = [38.5, 51.75, 73, 51.5, 56, 71.25, 41.5, 92, 70.5, 92.5]
    fields = ["a, b.jpg", *(f"{number:g}".replace(".", point) for number in numbers)]
    (tmp_path / "t.csv").write_text(heading.replace(";", mark) + mark.join(fields) + "\n", encoding="utf-8-sig")
    points, _ = LandmarkTable(tmp_path / "t.csv").find("a, b.jpg", None)
    assert points.ravel().tolist() == numbers


def test_an_interrupted_run_goes_on_and_ends_as_a_whole_one(photos, table, tmp_path, monkeypatch):
    align_folder(photos, tmp_path / "whole", LandmarkTable(table))
    monkeypatch.setattr(PartialFolder, "_write", breaks_at(3))
    with pytest.raises(RunError, match=r"faces\.partial/person1/1\.jpg: cannot be written: No space left.*--resume"):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table))
    monkeypatch.undo()
    assert not (tmp_path / "faces").exists()
    with pytest.raises(DataError, match=r"left by an interrupted alignment; continue with --resume or remove it"):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table))
    done = align_folder(photos, tmp_path / "faces", LandmarkTable(table), resume=True)
    assert (done.kept, done.faces) == (2, 6)
    assert files_below(tmp_path / "faces") == files_below(tmp_path / "whole")


def breaks_at(call):
    original, calls = PartialFolder._write, []

    def write(self, path, content):
        calls.append(path)
        if len(calls) == call:
            original(self, path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        original(self, path, content)

    return write


def test_resume_completes_a_finished_folder(photos, drawn, table, tmp_path):
    (photos / "person1" / "1.jpg").rename(tmp_path / "later.jpg")
    align_folder(photos, tmp_path / "faces", LandmarkTable(table))
    assert missing(tmp_path / "faces") == {"person1/1.jpg": "no such image"}
    (tmp_path / "later.jpg").rename(photos / "person1" / "1.jpg")
    assert align_folder(photos, tmp_path / "faces", LandmarkTable(table), resume=True).kept == 5
    assert missing(tmp_path / "faces") == {}
    (tmp_path / "faces" / "person9").mkdir()
    (tmp_path / "faces" / "person9" / "1.jpg").touch()
    with pytest.raises(DataError, match=r"person9/1\.jpg: does not come from this source"):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table), resume=True)


@pytest.mark.parametrize("partial", [False, True], ids=["finished", "partial"])
def test_resume_leaves_the_faces_of_other_photos_as_they_are(photos, drawn, table, tmp_path, partial):
    align_folder(photos, tmp_path / "faces", LandmarkTable(table))
    folder = (tmp_path / "faces").rename(tmp_path / "faces.partial") if partial else tmp_path / "faces"
    before = files_below(folder)
    for name in list(drawn)[2:]:  # most are other photos of the same name
        (photos / name).write_bytes(drawn[name].encoded() + b"again")
    with pytest.raises(DataError, match=rf"{folder.name}: was begun with another source \(photos\); give the same"):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table), resume=True)
    assert files_below(folder) == before
    assert [path.name for path in tmp_path.glob("faces*")] == [folder.name]


def test_photos_that_were_moved_and_have_grown_go_on(photos, table, tmp_path):
    align_folder(photos, tmp_path / "faces", LandmarkTable(table))
    before = files_below(tmp_path / "faces")
    assert align_folder(photos, tmp_path / "faces", LandmarkTable(table), resume=True).kept == 6
    assert files_below(tmp_path / "faces") == before
    moved = photos.rename(tmp_path / "more photos")
    for number in range(9):  # more than before; without landmarks, so that they are listed
        shutil.copy(moved / "person0" / "1.jpg", moved / f"{number}.jpg")
    done = align_folder(moved, tmp_path / "faces", LandmarkTable(table), resume=True)
    assert (done.kept, len(done.not_found)) == (6, 9)
    assert json.loads((tmp_path / "faces" / RECORD).read_bytes())["source"]["name"] == "more photos"


@pytest.mark.parametrize("record", [None, b"{", b"[1]"])
def test_resume_wants_the_same_settings(photos, table, tmp_path, record):
    align_folder(photos, tmp_path / "faces", LandmarkTable(table))
    if record is not None:
        (tmp_path / "faces" / RECORD).write_bytes(record)
    message = {None: "begun with another quality;", b"{": "cannot be read", b"[1]": "format, landmarks, quality"}
    with pytest.raises(DataError, match=message[record]):
        align_folder(photos, tmp_path / "faces", LandmarkTable(table), encoding=Encoding(quality=50), resume=True)
    assert (tmp_path / "faces").is_dir() and not (tmp_path / "faces.partial").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_go_on(photos, table, tmp_path, capsys, monkeypatch, number):
    def track(items, *_):
        for done, item in enumerate(items):
            if done == 3:
                os.kill(os.getpid(), number)
            yield item

    monkeypatch.setattr(alignment, "track", track)
    words = ["data", "align", str(photos), str(tmp_path / "my faces"), "--landmarks", str(table), "--workers", "2"]
    assert main(words) == 128 + number
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"'{tmp_path}/my faces' --landmarks {table} --workers 2 --resume")
    monkeypatch.undo()
    assert main([*words, "--resume", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kept"], result["faces"], result["not_found"], result["reasons"]) == (3, 6, [], {})


# --------------------------------------------------------------------------------------------------- by a detector


class FixedFaces(FaceDetector):
    """A detector that sees what it is told to."""

    def __init__(self, close, far=(), face="largest"):
        self.face, self.close, self.far = face, close, far

    def _look(self, image, side, border):
        return np.array(self.close if border else self.far, dtype=np.float64).reshape(-1, 15)


def box(x, y, side):
    return [x, y, side, side, *(REFERENCE * (side / 112) + (x, y)).ravel(), 0.9]


@pytest.mark.parametrize(("face", "chosen"), [("largest", 0), ("central", 1)])
def test_of_several_faces_the_wanted_one_is_taken(face, chosen):
    faces = [box(0, 0, 60), box(85, 90, 20), box(160, 100, 30)]
    points, count = FixedFaces(faces, face=face).find("", np.zeros((200, 200, 3), np.uint8))
    assert count == 3
    np.testing.assert_allclose(points.ravel(), faces[chosen][4:14])


@pytest.mark.parametrize(
    ("close", "far", "chosen"),
    [
        ([box(-5, 0, 60)], [box(9, 9, 70)], box(-5, 0, 60)),
        ([box(1, 1, 40)], [box(9, 9, 39), box(1, 1, 20)], box(9, 9, 39)),
        ([box(1, 1, 40)], [], box(1, 1, 40)),
        ([], [box(9, 9, 10)], box(9, 9, 10)),
    ],
    ids=["large", "small", "small, not seen again", "seen when looked at large"],
)
def test_small_faces_are_looked_for_where_there_is_no_large_one(close, far, chosen):
    points, _ = FixedFaces(close, far).find("", np.zeros((200, 300, 3), np.uint8))
    np.testing.assert_allclose(points.ravel(), chosen[4:14])


@pytest.mark.parametrize("content", [None, b"", b"no network", b"\x08\x07" * 40])
def test_a_file_that_is_no_detector(tmp_path, content, capfd):
    if content is not None:
        (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.onnx: .*take face_detection_yunet_2023mar\.onnx") as error:
        FaceDetector(tmp_path / "x.onnx")
    assert "\n" not in str(error.value) and "OpenCV(" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.faces
def test_another_network_is_no_detector(yunet):
    other = yunet.with_name("mobile_512d.onnx")
    if not other.is_file():
        pytest.skip(f"no other network: {other}")
    with pytest.raises(CheckpointError, match="not the face detector YuNet: it lacks the output bbox_16"):
        FaceDetector(other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --landmarks"),
        (["--landmarks", "a.csv", "--detector", "b.onnx"], "give one of --landmarks"),
        (["--landmarks", "a.csv", "--confidence", "0.5"], "--confidence and --face are for --detector"),
        (["--landmarks", "a.csv", "--format", "png", "--quality", "90"], "--quality is for --format jpg"),
        (["--detector", "b.onnx", "--confidence", "0"], "0 is not above 0 and up to 1"),
        (["--detector", "b.onnx", "--confidence", "nan"], "nan is not above 0 and up to 1"),
        (["--landmarks", "a.csv", "--quality", "101"], "quality: 101 is not from 1 to 100"),
        (["--landmarks", "a.csv"], "a.csv: cannot be read: No such file"),
    ],
)
def test_options_that_do_not_fit(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "align", "photos", "faces", *words]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_source(table, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "no such folder"), ("empty", "no image in it")):
        with pytest.raises(DataError, match=message):
            align_folder(tmp_path / name, tmp_path / "faces", LandmarkTable(table))
    for field in ({"format": "gif"}, {"quality": 0}):
        with pytest.raises(ConfigError):
            Encoding(**field)


def real_crops(real_faces):
    """Name, photo and the landmarks that came with it."""
    folder = real_faces / "ijb_lfw"
    for line in (folder / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines()[::25]:
        name, *values = line.split()
        photo = decode((folder / "loose_crop" / name).read_bytes(), name)
        yield name, photo, np.array(values[:10], dtype=np.float64).reshape(5, 2)


@pytest.mark.faces
@pytest.mark.parametrize("scale", [1, 12], ids=["small", "large"])
def test_faces_of_real_crops_are_found(real_faces, yunet, scale):
    detector, off = FaceDetector(yunet), []
    with quiet_opencv():
        for name, photo, known in list(real_crops(real_faces))[:: 1 if scale == 1 else 7]:
            points, faces = detector.find(name, np.kron(photo, np.ones((scale, scale, 1), np.uint8)))
            assert faces, name
            off.append(np.abs(points / scale - known).mean() / np.linalg.norm(known[0] - known[1]))
    assert np.mean(off) < 0.1 and max(off) < 0.3  # of the distance between the eyes


@pytest.mark.faces
def test_a_face_that_fills_a_large_picture_is_not_mistaken_for_its_eye(real_faces, yunet):
    detector, off = FaceDetector(yunet), []
    with quiet_opencv():
        for name, photo, known in list(real_crops(real_faces))[::2]:
            face = cv2.resize(align_face(photo, known, name), (1280, 1280), interpolation=cv2.INTER_CUBIC)
            points, _ = detector.find(name, face)
            assert points is not None, name
            off.append(np.abs(points * 112 / 1280 - REFERENCE).mean())
    assert max(off) < 12


@pytest.mark.faces
def test_a_small_face_in_a_large_photo_is_found(real_faces, yunet):
    detector = FaceDetector(yunet)
    with quiet_opencv():
        for name, photo, known in list(real_crops(real_faces))[::4]:
            scene = np.full((2400, 3200, 3), 90, np.uint8)
            scene[300 : 300 + len(photo), 2000 : 2000 + photo.shape[1]] = photo
            points, _ = detector.find(name, scene)
            assert np.abs(points - (2000, 300) - known).mean() < 0.3 * np.linalg.norm(known[0] - known[1])


@pytest.mark.faces
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (40, 40)])
def test_an_empty_picture_has_no_face(yunet, size):
    with quiet_opencv():
        assert FaceDetector(yunet).find("", np.zeros((*size, 3), np.uint8)) == (None, 0)


@pytest.mark.faces
def test_a_folder_of_real_photos(real_faces, yunet, tmp_path, capfd):
    for number, (name, photo, _) in enumerate(real_crops(real_faces)):
        place = tmp_path / "photos" / str(number % 5)
        place.mkdir(parents=True, exist_ok=True)
        (place / name).with_suffix(".png").write_bytes(Encoding(format="png").encode(photo))
    (tmp_path / "photos" / "0" / "wall.png").write_bytes(Encoding(format="png").encode(np.full_like(photo, 90)))
    words = ["data", "align", tmp_path / "photos", tmp_path / "faces", "--detector", yunet, "--face", "central"]
    assert main([*map(str, words), "--output", str(tmp_path / "sheet.png")]) == 0
    out, err = capfd.readouterr()
    assert "28 faces in 5 folders" in out and "not found: 1 of 29 images (no face found: 1)" in out
    assert err == ""
    assert missing(tmp_path / "faces") == {"0/wall.png": "no face found"}
    assert open_training_set(tmp_path / "faces").notes == []
    assert (tmp_path / "sheet.png").is_file()
