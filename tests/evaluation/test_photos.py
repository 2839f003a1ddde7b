"""From photos to an answer: `match`, `embed` and `search`, by a made-up detector and by the real one."""

import csv
import json
import os
import shutil
import struct
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import facebones
from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.cli import photos as photo_commands
from facebones.cli.main import main
from facebones.data.images import decode
from facebones.data.preprocessing import REFERENCE
from facebones.datatools.landmarks import FaceDetector
from facebones.datatools.photo_faces import cut_face, find_face, list_photos, read_photo
from facebones.errors import ConfigError, DataError
from facebones.evaluation import match as matching
from facebones.evaluation.match import match_photos, nearest, search_photos
from facebones.evaluation.models import load_model
from facebones.evaluation.photos import embed_photos, read_embeddings
from facebones.run_folder import RunFolder

PHOTO = 320
PLACES = ((100, 92), (4, 196))  # x and y of faces in a photo


def png(photo):
    return cv2.imencode(".png", cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.fixture(scope="module")
def photos(photo_of, tmp_path_factory):
    """A folder of photos: two of each of three people, one of two people, one without a face and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    for identity in range(3):
        for number in range(2):
            (folder / f"p{identity}_{number}.png").write_bytes(png(photo_of(identity, number)))
    (folder / "two.png").write_bytes(png(photo_of(0, 5, PLACES)))
    (folder / "wall.png").write_bytes(png(np.full((PHOTO, PHOTO, 3), 90, np.uint8)))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffnothing")
    return folder


@pytest.fixture
def run(tmp_path, tiny_backbone):
    torch.manual_seed(0)
    card = {"backbone": tiny_backbone, "embedding_size": 16}
    save_weights(RunFolder(tmp_path / "run"), create_backbone(tiny_backbone, 16), card)
    return tmp_path / "run"


@pytest.fixture
def calibrated(run, small_data):
    facebones.calibrate(run, small_data / "tiny.bin", false_match_rates=[0.5, 0.4], output=run, device="cpu")
    return run


@pytest.fixture
def words(run, green_detector):
    return ["--model", str(run), "--detector", str(green_detector), "--device", "cpu"]


# ----------------------------------------------------------------------------------------------------------- faces


def test_the_face_is_cut_out_as_it_is(photo_of, green_detector):
    photo = photo_of(1)
    face = find_face(photo, FaceDetector(green_detector), "a photo")
    x, y = PLACES[0]
    np.testing.assert_array_equal(face.image, photo[y : y + 112, x : x + 112])
    assert face.box == pytest.approx((x, y, 112, 112)) and face.faces == 1 and face.score > 0.6


def test_a_face_far_larger_than_the_result_keeps_no_noise(photo_of):
    photo = photo_of(1).astype(np.float64)
    x, y = PLACES[0]
    smooth = cv2.blur(photo, (9, 9)).astype(np.uint8)
    large = np.kron(smooth, np.ones((12, 12, 1)))
    noisy = np.clip(large + np.random.default_rng(0).normal(0, 20, large.shape), 0, 255).astype(np.uint8)
    landmarks = (REFERENCE + (x, y) + 0.5) * 12 - 0.5
    cut = cut_face(noisy, landmarks, "a photo")
    assert np.abs(cut.astype(int) - smooth[y : y + 112, x : x + 112]).mean() < 3  # and 8 where pixels are skipped
    portrait = cut_face(noisy, landmarks, "a photo", 448)
    assert portrait.shape == (448, 448, 3)


def test_a_photo_is_turned_as_its_exif_data_say(photo_of):
    upright = photo_of(1)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x112, 3, 1, 6, 0)
    lying = cv2.cvtColor(np.ascontiguousarray(np.rot90(upright)), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", lying, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
    marked = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    photo, _ = read_photo(marked)
    assert np.abs(photo.astype(int) - upright).mean() < 2


def test_a_photo_of_the_largest_size_is_searched_in_a_small_copy(photo_of, green_detector, monkeypatch):
    sizes = []
    detector = FaceDetector(green_detector)
    create = detector._detector

    class Sized:
        def setInputSize(self, size):  # noqa: N802 (OpenCV's name)
            sizes.append(size)
            create().setInputSize(size)

        def detect(self, image):
            return create().detect(image)

    monkeypatch.setattr(detector, "_detector", Sized)
    large = np.kron(photo_of(1), np.ones((25, 25, 1), np.uint8))  # 64 M pixels
    found = detector.detect(large)
    assert max(map(max, sizes)) <= 1280
    assert found is None or found.box[2] > 112  # in pixels of the photo


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file or directory; check the path"),
        (b"", "an empty file, 0 bytes; copy it again from its source"),
        (
            b"no image",
            "no readable image; JPEG, PNG, BMP and WebP are read; convert others, such as a phone's HEIC, first",
        ),
        (b"\0\0\0\x18ftypheic", "HEIC, which is not read; convert it to JPEG or PNG"),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60000, 60000) + bytes(40),
            "3,600,000,000 pixels (60000x60000), and at most 67,108,864 are read; make it smaller",
        ),
        (png(np.zeros((9, 9, 3), np.uint8))[:-20], "cut short at byte"),
        (
            cv2.imencode(".bmp", np.zeros((9, 9, 3), np.uint8))[1].tobytes()[:200],
            "cut short at byte 200; copy it again",
        ),
        ("wall", "(320x320 pixels): no face found; take a photo where the face is larger"),
    ],
    ids=["missing", "empty", "no image", "HEIC", "giant", "cut", "cut BMP", "no face"],
)
def test_a_photo_that_cannot_be_used_is_one_line(words, photos, tmp_path, capfd, content, told):
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes((photos / "wall.png").read_bytes() if content == "wall" else content)
    show = tmp_path / "m.png"
    assert main(["match", str(photos / "p0_0.png"), str(bad), *words, "--show", str(show)]) == 2
    line = capfd.readouterr().err  # with what OpenCV itself says
    assert str(bad) in line and told in line and line.count("\n") == 1
    assert not show.exists()


def test_a_place_that_is_no_file_does_not_block(words, photos, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert main(["match", str(photos / "p0_0.png"), str(tmp_path / "pipe"), *words]) == 2
    assert "pipe: cannot be read: not a file" in capsys.readouterr().err
    with pytest.raises(DataError, match="cannot be read: embedded null byte; check the path"):
        read_photo("a\0b")


# ----------------------------------------------------------------------------------------------------------- match


def test_match_says_score_threshold_promise_and_decision(calibrated, words, photos, tmp_path, capsys):
    first, again, other, two = (str(photos / f"{name}.png") for name in ("p0_0", "p0_1", "p1_0", "two"))
    show = tmp_path / "m.png"
    assert main(["match", first, again, *words, "--show", str(show)]) == 0
    out = capsys.readouterr().out
    assert "the same person" in out and "accepts at most 0.4 of pairs of strangers (FMR), with 95 % confidence" in out
    assert "on photos like tiny (10 pairs)" in out and "face of 112x112 pixels at 100, 92" in out
    assert decode(show.read_bytes(), "the picture").shape[1] > 800
    assert main(["match", first, other, *words]) == 0
    assert "not shown to be one person" in capsys.readouterr().out
    assert main(["match", first, two, *words, "--json", "--fmr", "0.5"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["threshold"]["false_match_rate"] == 0.5 and content["faces"][1]["faces"] == 2
    assert content["same_person"] is (content["score"] >= content["threshold"]["threshold"])


def test_scores_are_those_that_the_thresholds_were_chosen_on(calibrated, photos, green_detector):
    model = load_model(calibrated, device="cpu")
    detector = FaceDetector(green_detector)
    a, b = photos / "p0_0.png", photos / "p1_0.png"
    match = match_photos(model, a, b.read_bytes(), detector=detector)
    assert match.score == pytest.approx(model.match(a, str(b), flip=True, detector=detector), abs=1e-6)
    crops = [face.image for face in match.faces]
    assert match.score == pytest.approx(match_photos(calibrated, *crops, detector=None, device="cpu").score, abs=1e-6)
    assert model.embed([a, crops[0]], detector=None).shape == (2, 16)
    np.testing.assert_allclose(model.embed(a, detector=green_detector)[0], model.embed(crops[0])[0], rtol=1e-4)
    with pytest.raises(DataError, match=r"image 1 .*: no face found"):
        model.embed([read_photo(a)[0], np.zeros((50, 50, 3), np.uint8)], detector=detector)


def test_of_several_faces_one_is_used_and_this_is_said(words, photos, photo_of, tmp_path, capsys):
    wide = tmp_path / "wide.png"
    wide.write_bytes(png(photo_of(0, 0, PLACES)))
    places = {}
    for face in ("largest", "central"):
        assert main(["match", str(photos / "p0_0.png"), str(wide), *words, "--face", face]) == 0
        *_, line = capsys.readouterr().out.splitlines()
        assert "2 faces in the photo" in line and f"the {face.replace('central', 'most central')} one is used" in line
        places[face] = line.partition(" at ")[2].partition(", detector")[0]
    assert places["central"] == "100, 92"


def test_without_a_threshold_there_is_no_decision(run, words, photos, capsys):
    pair = [str(photos / "p0_0.png"), str(photos / "p0_1.png")]
    assert main(["match", *pair, *words]) == 0
    out = capsys.readouterr().out
    assert "no decision" in out and f"facebones calibrate --model {run} " in out and "threshold 0" not in out
    assert main(["match", *pair, *words, "--fmr", "0.5"]) == 2
    assert "the model has no thresholds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content["model"]["preprocessing"].update(scale=128.0), "give --mean 127.5 --scale 128"),
        (lambda content: content["model"].pop("preprocessing"), "its thresholds are damaged"),
        (lambda content: content["thresholds"].clear(), "its thresholds are damaged"),
        (lambda content: content["thresholds"][0].update(threshold="high"), "its thresholds are damaged"),
        (lambda content: content["thresholds"][0].update(threshold=10**400), "its thresholds are damaged"),
        (lambda content: content["thresholds"][0].update(threshold=float("nan")), "its thresholds are damaged"),
        (lambda content: content["thresholds"][0].update(impostors=float("inf")), "its thresholds are damaged"),
        (lambda content: content["thresholds"][0].update(false_match_rate=10**400), "its thresholds are damaged"),
        (lambda content: content["thresholds"][0].update(confidence=[]), "its thresholds are damaged"),
        (lambda content: content["model"].update(preprocessing=[]), "its thresholds are damaged"),
        (lambda content: content.update(sets=3), "its thresholds are damaged"),
        (lambda content: None, "the model has thresholds for 0.4, 0.5; give one of them"),
    ],
)
def test_thresholds_that_do_not_fit_are_one_line(calibrated, words, photos, capsys, change, told):
    path = calibrated / "model.calibration.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))
    pair = [str(photos / "p0_0.png"), str(photos / "p0_1.png")]
    rate = ["--fmr", "0.5" if told.endswith("damaged") else "0.3"] if "0.4, 0.5" in told else ["--fmr", "0.5"]
    assert main(["match", *pair, *words, *rate]) == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--aligned", "--face", "central"], "--aligned looks for no face"),
        (["--aligned", "--detector", "x.onnx"], "--aligned looks for no face"),
        (["--detector", "x.onnx"], "x.onnx: cannot be read"),
        (["--aligned", "--show", "."], "plots cannot be written as ''"),
        (["--aligned", "--show", "new.png"], "new.png: is a folder; name a file"),
        (["--aligned", "--show", "m.txt"], "m.txt: plots cannot be written as '.txt'"),
    ],
)
def test_wrong_options_are_one_line(run, photos, tmp_path, monkeypatch, capsys, more, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new.png").mkdir()
    pair = [str(photos / "p0_0.png"), str(photos / "p0_1.png")]
    assert main(["match", *pair, "--model", str(run), *more]) == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1


@pytest.mark.parametrize("spelling", ["itself", "other words", "link to it", "link to the folder", "hard link"])
@pytest.mark.parametrize("place", [0, 1])
def test_the_picture_never_replaces_a_photo(run, photos, tmp_path, monkeypatch, capsys, spelling, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matching, "match_photos", lambda *_, **__: pytest.fail("the work has begun"))
    shutil.copytree(photos, tmp_path / "p")
    name = f"p0_{place}.png"
    (tmp_path / "link.png").symlink_to(Path("p") / name)
    (tmp_path / "folder").symlink_to("p")
    os.link(tmp_path / "p" / name, tmp_path / "hard.png")
    show = {
        "itself": f"p/{name}",
        "other words": f"p/../p/{name}",
        "link to it": "link.png",
        "link to the folder": str(tmp_path / "folder" / name),
        "hard link": "hard.png",
    }[spelling]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    words = ["match", "p/p0_0.png", "p/p0_1.png", "--model", str(run), "--aligned", "--show", show]
    assert main(words) == 2
    assert (
        capsys.readouterr().err
        == f"facebones: {show}: is the input p/{name}, which would be lost; choose another place\n"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_the_picture_makes_its_folder_as_embeddings_do(run, photos, tmp_path):
    pair = [str(photos / "p0_0.png"), str(photos / "p0_1.png")]
    more = ["--model", str(run), "--aligned", "--device", "cpu"]
    assert main(["match", *pair, *more, "--show", str(tmp_path / "new" / "m.png")]) == 0
    assert main(["embed", *pair, *more, "--output", str(tmp_path / "other" / "e.npz")]) == 0
    assert (tmp_path / "new" / "m.png").is_file() and (tmp_path / "other" / "e.npz").is_file()
    with pytest.raises(DataError):
        match_photos(run, photos / "broken.jpg", pair[0], detector=None)
    assert main(["match", str(photos / "broken.jpg"), pair[0], *more, "--show", str(tmp_path / "none" / "m.png")]) == 2
    assert not (tmp_path / "none").exists()


def test_one_photo_is_not_enough(run, capsys):
    assert main(["match", "a.jpg", "--model", str(run)]) == 2
    assert "the following arguments are required: OTHER_PHOTO; see facebones match --help" in capsys.readouterr().err


def test_the_advice_to_calibrate_repeats_the_input_that_was_given():
    given = Namespace(backbone=None, mean=127.5, scale=128.0, colour="bgr", output_name="a b", model="x.onnx")
    line = photo_commands._promise(None, given)
    assert "--model x.onnx --mean 127.5 --scale 128 --colour bgr --output-name 'a b' --data PAIRS" in line


def test_the_model_is_given_or_in_a_variable(run, photos, monkeypatch, capsys, tiny_backbone):
    pair = [str(photos / "p0_0.png"), str(photos / "p0_1.png"), "--aligned", "--device", "cpu"]
    monkeypatch.delenv("FACEBONES_MODEL", raising=False)
    assert main(["match", *pair]) == 2
    assert "no model: give --model RUN|FILE, or set FACEBONES_MODEL" in capsys.readouterr().err
    assert main(["match", *pair, "--model", tiny_backbone]) == 2
    assert "has random weights" in capsys.readouterr().err
    monkeypatch.setenv("FACEBONES_MODEL", str(run))
    assert main(["match", *pair]) == 0
    assert "taken as an aligned face" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- embed


def test_a_photo_is_listed_once_however_its_place_is_spelled(tmp_path, monkeypatch):
    for name in ("photos/a.png", "photos/one/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    places = ["photos", "photos/../photos", "./link/one", "photos/a.png", tmp_path / "photos/one/../a.png"]
    assert list_photos(places) == (["photos/a.png", "photos/one/b.png"], [])


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_embed_writes_a_row_for_each_face_and_lists_the_others(words, photos, tmp_path, capsys, ending):
    output = tmp_path / f"e.{ending}"
    if ending == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    assert main(["embed", str(photos), str(photos / "p0_0.png"), *words, "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert "7 faces, 16 numbers each" in out
    assert "2 of 9 photos left out: " in err and "wall.png (no face found)" in err and "1 photo with several" in err
    with (tmp_path / f"e.{ending}.not_found.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert {row[0].rpartition("/")[2]: row[1] for row in rows[1:]} == {
        "broken.jpg": "no readable image",
        "wall.png": "no face found",
    }
    if ending == "parquet":
        table = parquet.read_table(output)
        names, embedding = table["path"].to_pylist(), np.array(table["embedding"].to_pylist())
        faces = table["faces"].to_pylist()
        assert json.loads(table.schema.metadata[b"facebones"])["flip"] is True and len(table["box"][0]) == 4
    else:
        found = read_embeddings(output)
        names, embedding, faces = found.path.tolist(), found.embedding, found.faces.tolist()
    assert [name.rpartition("/")[2] for name in names] == [f"p{p}_{n}.png" for p in range(3) for n in range(2)] + [
        "two.png"
    ]
    assert faces == [1] * 6 + [2]
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    model = load_model(words[1], device="cpu")
    score = match_photos(model, names[0], names[2], detector=words[3]).score
    assert embedding[0] @ embedding[2] == pytest.approx(score, abs=1e-5)


def test_a_list_of_the_missing_is_there_only_where_a_photo_is_missing(run, photos, tmp_path):
    crops = {"detector": None, "device": "cpu"}
    some_missing = embed_photos(run, [photos / "p0_0.png", photos / "broken.jpg"], **crops)
    none_missing = embed_photos(run, photos / "p0_0.png", **crops)
    some_missing.save(tmp_path / "a.npz")
    none_missing.save(tmp_path / "b.npz")
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["a.npz", "a.npz.not_found.csv", "b.npz"]
    none_missing.save(tmp_path / "a.npz")  # the list of the earlier file would be wrong
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["a.npz", "b.npz"]


def test_batches_and_threads_change_nothing(run, photos, green_detector):
    detector = FaceDetector(green_detector)
    whole = embed_photos(run, photos, detector=detector, device="cpu", workers=1)
    parts = embed_photos(run, [photos], detector=detector, device="cpu", workers=3, batch_size=2)
    np.testing.assert_allclose(whole.embedding, parts.embedding, atol=1e-5)
    assert whole.path.tolist() == parts.path.tolist() and whole.missing == parts.missing


@pytest.mark.parametrize(
    ("places", "output", "told"),
    [
        (["nowhere"], "e.npz", "nowhere: no such photo or folder"),
        (["wall.png", "broken.jpg"], "e.npz", "no face in any of 2 photos (no face found, no readable image)"),
        (["wall.png"], "e.npz", "wall.png: no face found; nothing is written"),
        (["wall.png"], "e.csv", "written as .npz or .parquet"),
        (["wall.png"], ".", "written as .npz or .parquet"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(words, photos, tmp_path, capsys, places, output, told):
    places = [str(photos / place) for place in places]
    assert main(["embed", *places, *words, "--output", str(tmp_path / output)]) == 2
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1
    assert list(tmp_path.glob("e.*")) == []


def test_parquet_without_pyarrow_is_said_before_the_work(words, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert main(["embed", str(photos), *words, "--output", str(tmp_path / "e.parquet")]) == 2
    assert "pip install 'facebones[parquet]', or write .npz" in capsys.readouterr().err


SOUND = {
    "path": np.array(["a", "b"]),
    "box": np.zeros((2, 4), np.float32),
    "score": np.ones(2, np.float32),
    "faces": np.ones(2, np.int32),
    "embedding": np.eye(2, dtype=np.float32),
    "settings": np.array("{}"),
}


@pytest.mark.parametrize(
    "change",
    [
        {"path": np.array("a")},
        {"path": np.array([1, 2])},
        {"box": np.zeros((2, 3), np.float32)},
        {"embedding": np.eye(3, dtype=np.float32)},
        {"embedding": 2 * np.eye(2, dtype=np.float32)},
        {"embedding": np.full((2, 2), np.nan, np.float32)},
        {"embedding": np.full((2, 2), 3e38, np.float32)},
        {"settings": np.array("[]")},
        {"settings": np.array("{")},
        {"score": np.array([None, None])},
        {name: value[:0] for name, value in SOUND.items() if value.ndim},
    ],
)
def test_a_file_that_is_no_gallery_is_one_line(run, photos, tmp_path, capsys, change):
    np.savez(tmp_path / "e.npz", **(SOUND | change))
    words = ["search", str(photos / "p0_0.png"), "--aligned", "--model", str(run), "--device", "cpu"]
    assert main([*words, "--gallery", str(tmp_path / "e.npz")]) == 2
    line = capsys.readouterr().err
    assert "e.npz: " in line and "write it again by `facebones embed`" in line and line.count("\n") == 1


@pytest.mark.parametrize("content", ["text", "cut", "other arrays", "empty"])
def test_a_file_that_is_no_npz_is_one_short_reason(run, photos, tmp_path, capsys, content):
    path = tmp_path / "e.npz"
    np.savez(path, **({"path": SOUND["path"]} if content == "other arrays" else SOUND))
    if content != "other arrays":
        path.write_bytes({"text": b"a list", "cut": path.read_bytes()[:-100], "empty": b""}[content])
    words = ["search", str(photos / "p0_0.png"), "--aligned", "--model", str(run), "--device", "cpu"]
    assert main([*words, "--gallery", str(path)]) == 2
    reason = "lacks the array 'box'" if content == "other arrays" else "no .npz file, or a damaged one"
    told = f"{path}: no embeddings of photos ({reason}); write it again by `facebones embed`"
    assert capsys.readouterr().err == f"facebones: {told}\n"


# ---------------------------------------------------------------------------------------------------------- search


def test_search_finds_the_same_in_a_folder_and_in_a_file(calibrated, words, photos, tmp_path, capsys):
    probe = ["search", str(photos / "p1_0.png"), *words, "--top", "3"]
    assert main(["embed", str(photos), *words, "--output", str(tmp_path / "e.npz")]) == 0
    capsys.readouterr()
    found = []
    for gallery in ([str(photos)], [str(tmp_path / "e.npz")], sorted(map(str, photos.glob("*.png")))):
        assert main([*probe, "--gallery", *gallery, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [one["path"].rpartition("/")[2] for one in found[0]["found"][:2]] == ["p1_0.png", "p1_1.png"]
    for each in found[1:]:
        assert [one["path"] for one in each["found"]] == [one["path"] for one in found[0]["found"]]
        np.testing.assert_allclose(
            [one["score"] for one in each["found"]], [one["score"] for one in found[0]["found"]], atol=1e-5
        )
    assert [len(each["missing"]) for each in found] == [2, 0, 1]
    assert main([*probe, "--gallery", str(photos)]) == 0
    out, err = capsys.readouterr()
    assert out.count("reached") >= 2 and "of 7 strangers it accepts up to 2.8 on average" in out
    assert "2 of 9 photos left out: " in err


def test_every_row_is_compared(monkeypatch):
    monkeypatch.setattr(matching, "BLOCK", 7)
    rows = np.random.default_rng(0).integers(-3, 4, (40, 3)).astype(np.float32)  # with equal scores
    probe = np.array([1, 2, -1], np.float32)
    places, scores = nearest(rows, probe, 12)
    order = np.argsort(-(rows @ probe), kind="stable")[:12]
    assert places.tolist() == order.tolist() and scores.tolist() == (rows @ probe)[order].tolist()
    assert len(nearest(rows, probe, 100)[0]) == 40


def test_a_gallery_of_another_model_is_refused(run, photos, tiny_backbone, tmp_path):
    crops = {"detector": None, "device": "cpu"}
    gallery = embed_photos(run, photos / "p0_0.png", **crops)
    gallery.save(tmp_path / "e.npz")
    torch.manual_seed(1)
    card = {"backbone": tiny_backbone, "embedding_size": 16}
    save_weights(RunFolder(tmp_path / "other"), create_backbone(tiny_backbone, 16), card)
    for given in (gallery, tmp_path / "e.npz"):
        with pytest.raises(ConfigError, match="was embedded by another model, or from other input; embed it again"):
            search_photos(tmp_path / "other", photos / "p0_0.png", given, **crops)
    for places in (tmp_path / "e.parquet", [tmp_path / "e.parquet"]):
        with pytest.raises(ConfigError, match=r"e.parquet: a gallery is read from .npz, not from Parquet"):
            search_photos(run, photos / "p0_0.png", places, **crops)
    for others in (["f.npz"], [photos], [photos / "p0_0.png"], ["f.parquet"]):
        with pytest.raises(ConfigError, match=r"e.npz: is a file of embeddings; give one alone as the gallery"):
            search_photos(run, photos / "p0_0.png", [tmp_path / "e.npz", *others], **crops)
    assert search_photos(run, photos / "p0_0.png", [tmp_path / "e.npz"], **crops).scores[0] > 0.99
    with pytest.raises(ConfigError, match="top: 0"):
        search_photos(run, photos / "p0_0.png", gallery, top=0, **crops)


def test_a_threshold_is_not_used_for_scores_made_otherwise(run, small_data, photos):
    crops = {"detector": None, "device": "cpu"}
    gallery = embed_photos(run, photos / "p0_0.png", **crops)
    facebones.calibrate(run, small_data / "tiny.bin", false_match_rates=[0.5], flip=False, output=run, device="cpu")
    assert match_photos(run, photos / "p0_0.png", photos / "p0_0.png", **crops).threshold is not None
    assert search_photos(run, photos / "p0_0.png", gallery, **crops).threshold is None
    assert embed_photos(run, photos / "p0_0.png", **crops).settings["flip"] is False


# ------------------------------------------------------------------------------------------------------ real faces


@pytest.mark.faces
def test_real_photos_by_a_real_recogniser(real_faces, yunet):
    """Photos of LFW, loosely cropped: pairs of one person score above all pairs of two."""
    pytest.importorskip("onnxruntime")
    model = yunet.with_name("mobile_512d.onnx")
    if not model.is_file():
        pytest.skip(f"the recogniser is not here: {model}")
    folder = real_faces / "ijb_lfw"
    gallery = (folder / "meta" / "ijbc_1N_gallery_G1.csv").read_text().splitlines()[1:]
    people = {line.split(",")[0]: [] for line in gallery}  # one template of each person
    for line in (folder / "meta" / "ijbc_face_tid_mid.txt").read_text().splitlines():
        name, template, _ = line.split()
        people.get(template, []).append(str(folder / "loose_crop" / name))
    chosen = [names[:2] for names in people.values() if len(names) > 1][:6]
    opened = load_model(model, device="cpu", preprocessing={"scale": 128})
    found = embed_photos(opened, [name for names in chosen for name in names], detector=yunet)
    assert len(found) == 12 and found.missing == ()
    scores = found.embedding @ found.embedding.T
    person = np.repeat(np.arange(6), 2)
    same = person[:, None] == person
    assert scores[same].min() > scores[~same].max()
