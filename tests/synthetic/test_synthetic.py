import csv
import dataclasses
import filecmp
from pathlib import Path

import numpy as np
import pytest

from facebones.data.folders import pair_sets
from facebones.data.images import decode
from facebones.data.pair_bins import read_pairs
from facebones.data.record_set import RecordSet
from facebones.errors import ConfigError, DataError, RunError, UnknownNameError
from facebones.synthetic import image as synthetic_image
from facebones.synthetic.dataset import (
    PAIR_SETS,
    TEMPLATE_FOLDER,
    Shot,
    draw_face,
    draw_identity,
    draw_loose_crop,
    draw_shot,
    plan_pairs,
    synthesize,
)
from facebones.synthetic.drawing import NEUTRAL, Relief, grey
from facebones.synthetic.image import REFERENCE, image_generator, numbered_identity
from facebones.synthetic.scene import POSES, Light, draw_light, expose

SMALL = {"identities": 4, "images_per_identity": 3, "pairs": 20, "template_subjects": 3, "seed": 7}
COLOUR_BOUND = 0.6  # chance is 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    destination = tmp_path_factory.mktemp("synthetic") / "set"
    synthesize(destination, workers=1, **SMALL)
    return destination


def rows(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


def subjects(meta: Path, name: str) -> dict[str, str]:
    with (meta / f"ijbc_1N_{name}.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["TEMPLATE_ID", "SUBJECT_ID"]
    assert len(dict(lines)) == len(lines)
    return dict(lines)


def test_an_image_is_a_function_of_its_numbers():
    first = draw_shot(3, Shot(5, 2, "any"))
    draw_shot(3, Shot(6, 1, "any"))
    numbered_identity.cache_clear()
    again = draw_shot(3, Shot(5, 2, "any"))
    assert first.encoded() == again.encoded()
    np.testing.assert_array_equal(first.landmarks, again.landmarks)


@pytest.mark.parametrize("other", [(4, 5, 2), (3, 6, 2), (3, 5, 3)], ids=["seed", "identity", "image"])
def test_other_numbers_give_another_image(other):
    seed, identity, number = other
    assert (draw_shot(3, Shot(5, 2, "any")).pixels != draw_shot(seed, Shot(identity, number, "any")).pixels).any()


def test_images_are_numbered_from_one():
    with pytest.raises(ValueError, match="numbered from 1"):
        image_generator(0, 0, 0)


def test_identities_differ_in_every_measure():
    people = [dataclasses.asdict(numbered_identity(0, number)) for number in range(20)]
    for name, value in people[0].items():
        if isinstance(value, float):
            assert len({person[name] for person in people}) == len(people), name
    assert {person["facial_hair"] for person in people} > {"none"}
    assert 0 < sum(person["glasses"] is not None for person in people) < len(people)


def test_an_identity_cannot_be_changed():
    identity = draw_identity(np.random.default_rng(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        identity.nose_y = 3.0


@pytest.mark.parametrize(("pose", "limit"), [("frontal", 10), ("any", 14), ("profile", 15)])
def test_aligned_faces(pose, limit):
    for number in range(25):
        face = draw_face(numbered_identity(1, number), image_generator(1, number, 1), pose=pose)
        assert face.pixels.shape == (112, 112, 3)
        assert face.pixels.dtype == np.uint8
        assert face.landmarks.shape == (5, 2)
        assert face.landmarks.dtype == np.float32
        assert (face.landmarks > 0).all() and (face.landmarks < 111).all()
        assert np.linalg.norm(face.landmarks - REFERENCE, axis=1).max() < limit
        assert 0 < face.score <= 1


def test_eyes_and_mouth_stand_at_the_landmarks(monkeypatch):
    """Under even light, the pupils are darker than the cheeks below them."""
    plain = Light(direction=np.array((0, 0, 1.0)), key=np.zeros(3), ambient=np.ones(3), gain=np.ones(3), gamma=1.0)
    monkeypatch.setattr(synthetic_image, "draw_light", lambda rng: plain)
    monkeypatch.setattr(synthetic_image, "draw_occlusion", lambda *_: None)
    darker = []
    for number in range(30):
        face = draw_face(numbered_identity(2, number), image_generator(2, number, 1), pose="frontal")
        for x, y in face.landmarks[:2].round().astype(int):
            eye, cheek = (face.pixels[row - 3 : row + 4, x - 3 : x + 4].mean(axis=2).min() for row in (y, y + 16))
            darker.append(eye < cheek - 10)
    assert np.mean(darker) > 0.9


def test_images_are_neither_black_nor_burnt_out_nor_garish():
    faces = [draw_shot(2, Shot(number, 1, "any")).pixels for number in range(60)]
    levels = np.array([face.mean() for face in faces])
    assert levels.min() > 20 and levels.max() < 225
    assert levels.std() > 15  # dim and bright images all the same
    assert max((face.min(axis=2) > 250).mean() for face in faces) < 0.3
    spread = np.array([np.ptp(face.mean(axis=(0, 1))) for face in faces])
    assert np.median(spread) < 60 and spread.max() < 140


def test_a_camera_that_meters_levels_dark_and_light_images():
    rng = np.random.default_rng(0)
    dark, light = (rng.integers(low, low + 60, (20, 20, 3), dtype=np.uint8) for low in (20, 140))
    camera = draw_light(rng)
    means = {
        strength: [expose(pixels, dataclasses.replace(camera, metering=strength)).mean() for pixels in (dark, light)]
        for strength in (0.0, 1.0)
    }
    assert abs(np.subtract(*means[1.0])) < 0.2 * abs(np.subtract(*means[0.0]))


@pytest.mark.parametrize(("height", "width"), [(112, 112), (163, 180)])
def test_a_relief_changes_only_what_is_drawn_on_it(height, width):
    relief = Relief(height, width)
    assert relief.factors(1.0).shape == (height, width, 3)
    np.testing.assert_allclose(relief.factors(1.0), 1)
    relief.broad.dot(np.array((60.0, 60.0)), 12, grey(NEUTRAL / 2))
    factors = relief.factors(1.0)
    assert factors[60, 60] == pytest.approx([0.5] * 3, abs=0.02)
    np.testing.assert_allclose(factors[:30], 1)


@pytest.mark.parametrize("pose", POSES)
def test_loose_crops(pose):
    sizes = set()
    for number in range(8):
        crop = draw_loose_crop(numbered_identity(1, number), image_generator(1, number, 1), pose=pose)
        height, width = crop.pixels.shape[:2]
        sizes.add((height, width))
        assert 160 <= min(height, width) <= max(height, width) <= 200
        assert (crop.landmarks >= 0).all()
        assert (crop.landmarks < (width, height)).all()
    assert len(sizes) > 1


def test_an_unknown_pose_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'frontal'"):
        draw_face(numbered_identity(0, 0), image_generator(0, 0, 1), pose="frontl")


@pytest.mark.parametrize("pairs", [20, 40, 60, 80, 100, 1000])
def test_pair_plan(pairs):
    plan = plan_pairs(50, pairs, ("frontal", "profile"))
    same = np.array(plan.is_same).reshape(10, -1)
    assert same.size == pairs
    assert same[:, : pairs // 20].all() and not same[:, pairs // 20 :].any()
    people = np.array([shot.identity for shot in plan.shots]).reshape(-1, 2)
    np.testing.assert_array_equal(people[:, 0] == people[:, 1], plan.is_same)
    folds = [set(fold.ravel().tolist()) for fold in people.reshape(10, -1)]
    assert sum(map(len, folds)) == len(set.union(*folds))
    assert set.union(*folds) <= set(range(50, 50 + plan.identities))
    assert len(set(plan.shots)) == len(plan.shots)
    assert [shot.pose for shot in plan.shots] == ["frontal", "profile"] * pairs


def test_training_records(folder):
    data = RecordSet(folder / "train.rec")
    assert data.notes == []
    assert (folder / "property").read_text().strip() == "4,112,112"
    assert data.labels.tolist() == [label for label in range(4) for _ in range(3)]
    for index in range(len(data)):
        jpeg, label = data.read(index)
        assert decode(jpeg, "image").shape == (112, 112, 3)
        assert jpeg == draw_shot(SMALL["seed"], Shot(label, index % 3 + 1, "any")).encoded()


def test_pair_sets_are_of_unseen_people(folder):
    assert [path.stem for path in pair_sets(folder)] == sorted(PAIR_SETS)
    first = SMALL["identities"]
    for name, poses in PAIR_SETS.items():
        plan = plan_pairs(first, SMALL["pairs"], poses)
        pairs = read_pairs(folder / f"{name}.bin")
        assert pairs.is_same.tolist() == plan.is_same
        assert list(pairs.images) == [draw_shot(SMALL["seed"], shot).encoded() for shot in plan.shots]
        first += plan.identities


def test_template_lists_fit_together(folder):
    meta, crops = folder / TEMPLATE_FOLDER / "meta", folder / TEMPLATE_FOLDER / "loose_crop"
    images = rows(meta / "ijbc_name_5pts_score.txt")
    media = rows(meta / "ijbc_face_tid_mid.txt")
    assert [row[0] for row in images] == [row[0] for row in media] == [f"{n}.jpg" for n in range(1, len(images) + 1)]
    assert {path.name for path in crops.iterdir()} == {row[0] for row in images}
    for name, *numbers in images:
        height, width = decode((crops / name).read_bytes(), name).shape[:2]
        *points, score = map(float, numbers)
        assert len(points) == 10
        assert all(0 <= x < width for x in points[0::2]) and all(0 <= y < height for y in points[1::2])
        assert 0 < score <= 1
    of_medium = {medium: template for _, template, medium in media}
    assert all(of_medium[medium] == template for _, template, medium in media)
    assert len(of_medium) < len(media)

    first, second, probes = (subjects(meta, name) for name in ("gallery_G1", "gallery_G2", "probe_mixed"))
    assert not set(first.values()) & set(second.values())
    gallery = first | second
    known = gallery | probes
    assert len(known) == len(gallery) + len(probes)
    assert set(known) == {template for _, template, _ in media}
    assert set(gallery.values()) == set(probes.values()) == {"1", "2", "3"}
    pairs = rows(meta / "ijbc_template_pair_label.txt")
    assert {(one, other) for one, other, _ in pairs} == {(one, other) for one in gallery for other in probes}
    assert all((known[one] == known[other]) == (label == "1") for one, other, label in pairs)


def test_template_images_are_of_unseen_people(folder):
    used = SMALL["identities"] + sum(plan_pairs(0, SMALL["pairs"], poses).identities for poses in PAIR_SETS.values())
    crop = (folder / TEMPLATE_FOLDER / "loose_crop" / "1.jpg").read_bytes()
    assert crop == draw_shot(SMALL["seed"], Shot(used, 1, "any", loose=True)).encoded()


def test_processes_do_not_matter(folder, tmp_path):
    synthesize(tmp_path / "set", workers=2, **SMALL)
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(names) == len([path for path in (tmp_path / "set").rglob("*") if path.is_file()])
    _, differing, missing = filecmp.cmpfiles(folder, tmp_path / "set", map(str, names), shallow=False)
    assert differing == missing == []


def test_summary(tmp_path):
    (tmp_path / "set").mkdir()  # an empty folder is admitted
    summary = synthesize(tmp_path / "set", pair_sets=["synthetic"], workers=1, **SMALL)
    assert [path.name for path in pair_sets(tmp_path / "set")] == ["synthetic.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (summary.images, summary.templates, summary.template_pairs) == (12, 12, 27)
    assert str(summary).startswith(f"{tmp_path / 'set'}: 12 training images of 4 people; 20 pairs")


def test_a_filled_destination_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for destination in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DataError, match="not an empty folder") as caught:
            synthesize(destination, **SMALL)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("facebones.synthetic.dataset._write_templates", full_disk)
    with pytest.raises(RunError, match="No space left on device"):
        synthesize(tmp_path / "set", workers=1, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identities": 1}, "identities: 1 is too low"),
        ({"images_per_identity": 0}, "images per identity: 0 is too low"),
        ({"pairs": 0}, "pairs: 0 is too low"),
        ({"pairs": 50}, "pairs: 50 is not a multiple of 20; give 40 or 60"),
        ({"template_subjects": 1}, "template subjects: 1 is too low"),
        ({"seed": -1}, "seed: -1 is too low"),
        ({"seed": 2**63}, "seed: 9223372036854775808 is too high"),
        ({"identities": 10**6, "images_per_identity": 100}, "training images: 100000000 is too high"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        synthesize(tmp_path / "set", **(SMALL | change))


def test_an_unknown_pair_set_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'synthetic_profile'"):
        synthesize(tmp_path / "set", pair_sets=["synthetic_profil"], **SMALL)


def colour_auc(pairs: int) -> float:
    """Area under the ROC curve that the distance of mean and spread of the colours reaches."""
    plan = plan_pairs(1000, pairs, PAIR_SETS["synthetic"])
    flat = np.array([draw_shot(0, shot).pixels.reshape(-1, 3) for shot in plan.shots], dtype=np.float32)
    features = np.concatenate((flat.mean(axis=1), flat.std(axis=1)), axis=1)
    distances = np.linalg.norm(features[0::2] - features[1::2], axis=1)
    same = np.array(plan.is_same)
    return float((distances[same][:, None] < distances[~same]).mean())


def test_colours_tell_nobody_apart():
    assert colour_auc(160) < COLOUR_BOUND


def test_even_light_would_let_colours_tell(monkeypatch):
    """The bound above can be passed: in one light before one wall, colours do tell people apart."""
    plain = Light(direction=np.array((0, 0, 1.0)), key=np.zeros(3), ambient=np.ones(3), gain=np.ones(3), gamma=1.0)
    monkeypatch.setattr(synthetic_image, "draw_light", lambda rng: plain)
    monkeypatch.setattr(synthetic_image, "background", lambda rng, h, w: np.full((h, w, 3), 128, dtype=np.uint8))
    assert colour_auc(160) > COLOUR_BOUND + 0.1
