"""The overlap audit: planted images and people are found and strangers are not, and the rest of a set is measured."""

import csv
import json

import cv2
import numpy as np
import pytest

import facebones
from facebones.cli.main import main
from facebones.data.images import decode
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.errors import ConfigError, DataError
from facebones.evaluation.overlap import KnownOverlap, find_overlap
from facebones.evaluation.shared_people import SharedPeople
from facebones.reporting.load import load_results
from facebones.synthetic.dataset import synthesize
from facebones.synthetic.image import draw_face, image_generator, numbered_identity

PEOPLE, EACH, PLANTED = 40, 5, 40
MISSED = {"aligned again": 2, "all of it": 2}  # of images that are so blurred and dim that no fine detail is left


def jpeg(pixels, quality=95):
    return cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[
        1
    ].tobytes()


def drawn(person, number):
    return draw_face(numbered_identity(3, person), image_generator(3, person, number)).pixels


def crop(pixels, top, left, size=101):
    return cv2.resize(pixels[top : top + size, left : left + size], (112, 112))


def turned(pixels):
    matrix = cv2.getRotationMatrix2D((56, 56), 3, 0.97)
    return cv2.warpAffine(pixels, matrix, (112, 112))


CHANGES = {
    "saved again": lambda pixels, _: jpeg(pixels, 25),
    "resized": lambda pixels, _: jpeg(cv2.resize(pixels, (48, 48), interpolation=cv2.INTER_AREA)),
    "mirrored": lambda pixels, _: jpeg(pixels[:, ::-1]),
    "brightened": lambda pixels, _: jpeg(np.clip(pixels * 0.9 + 25, 0, 255).astype(np.uint8), 90),
    "darkened": lambda pixels, _: jpeg((pixels * 0.6).astype(np.uint8), 90),
    "cropped": lambda pixels, number: jpeg(crop(pixels, number % 12, 5 * number % 12)),
    "aligned again": lambda pixels, _: jpeg(turned(pixels)),
    "all of it": lambda pixels, number: jpeg(crop(pixels[:, ::-1] * 0.8 + 30, number % 12, 7).astype(np.uint8), 50),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder of 200 drawn faces, and test sets: the same bytes, each kind of change, and strangers."""
    root = tmp_path_factory.mktemp("planted")
    images = {}
    for person in range(PEOPLE):
        (root / "train" / f"p{person:02d}").mkdir(parents=True)
        for number in range(1, EACH + 1):
            content = jpeg(drawn(person, number))
            (root / "train" / f"p{person:02d}" / f"{number}.jpg").write_bytes(content)
            images[person, number] = content
    kept = [images[place % PEOPLE, 1 + place // PEOPLE] for place in range(PLANTED)]
    sets = {
        "same": kept,
        "strangers": [jpeg(drawn(100 + number // 2, 1 + number % 2)) for number in range(100)],
        "others": [jpeg(drawn(person, EACH + 1)) for person in range(PEOPLE)],  # other images of the people
        **{
            name: [change(decode(image, name), number) for number, image in enumerate(kept)]
            for name, change in CHANGES.items()
        },
    }
    for name, contents in sets.items():
        write_pairs(root / "sets" / f"{name}.bin", contents, np.arange(len(contents) // 2) % 2 == 0)
    return root


@pytest.fixture(scope="module")
def audit(planted, tmp_path_factory):
    output = tmp_path_factory.mktemp("audit")
    return find_overlap(planted / "train", planted / "sets", output, workers=1), output


def found(result, name):
    return [one for one in result.findings if one.set == name]


@pytest.mark.parametrize("name", ["same", *CHANGES])
def test_planted_images_are_found_with_the_image_that_they_were_made_of(audit, name):
    own = found(audit[0], name)
    assert {one.kind for one in own} == {"identical" if name == "same" else "near"}
    assert len(own) >= PLANTED - MISSED.get(name, 0)
    for one in own:
        person = one.image % PEOPLE
        assert (one.training_image, one.name) == (person * EACH + one.image // PEOPLE, f"p{person:02d}")


def test_a_report_has_a_table_of_it(audit):
    (table,) = load_results(audit[1]).trust
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["same"] == [str(PLANTED), str(PLANTED), "0", "-"]  # people were not looked for
    assert "Shared people were not looked for" in table.note


@pytest.mark.parametrize("name", ["strangers", "others"])
def test_other_images_are_not_found(audit, name):
    assert found(audit[0], name) == []


def test_the_files_say_the_same(audit, planted):
    result, output = audit
    content = json.loads((output / "overlap.json").read_text())
    assert content == json.loads(json.dumps(result.to_json()))
    assert (content["format"], content["people"], content["training"]["images"]) == (1, None, PEOPLE * EACH)
    by_name = {one["set"]: one for one in content["sets"]}
    assert by_name["same"]["found"] == {"identical": PLANTED, "near": 0}
    assert by_name["mirrored"]["found"] == {"identical": 0, "near": PLANTED}
    with (output / "overlap.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == [one.image for one in result.findings]
    assert rows[0]["training_file"].startswith(str(planted / "train"))
    for kind in ("identical", "near"):
        sheet = cv2.imread(str(output / f"overlap_{kind}.png"))
        assert sheet is not None and 500 < sheet.shape[0] < 2000  # ten rows of four pairs at most
    assert not (output / "overlap_person.png").exists()


def test_an_image_in_several_places_is_found_in_each(planted, tmp_path):
    one, other = (read_pairs(planted / "sets" / f"{name}.bin").images[0] for name in ("same", "strangers"))
    write_pairs(tmp_path / "twice.bin", [one, other, other, one] * 5, [True, False] * 5)
    result = find_overlap(planted / "train", tmp_path / "twice.bin", tmp_path / "out", workers=1)
    places = [place for place in range(20) if place % 4 in (0, 3)]
    assert [(one.kind, one.image) for one in result.findings] == [("identical", place) for place in places]


def test_blocks_change_nothing(audit, planted, tmp_path, monkeypatch):
    from facebones.datatools import near_images
    from facebones.evaluation import overlap

    for module, name, size in (
        (overlap, "TEST_BLOCK", 60),
        (overlap, "TRAINING_BLOCK", 70),
        (near_images, "BLOCK", 17),
    ):
        monkeypatch.setattr(module, name, size)
    result = find_overlap(planted / "train", planted / "sets", tmp_path, workers=2)
    key = [(one.kind, one.set, one.image, one.training_image) for one in result.findings]
    assert key == [(one.kind, one.set, one.image, one.training_image) for one in audit[0].findings]


def test_photos_of_templates_are_compared_as_they_are_aligned(tmp_path):
    synthesize(tmp_path / "set", identities=4, images_per_identity=3, pairs=20, template_subjects=3, workers=1)
    crops = sorted((tmp_path / "set" / "ijb" / "loose_crop").iterdir())
    (tmp_path / "train" / "one").mkdir(parents=True)
    (tmp_path / "train" / "one" / "a.jpg").write_bytes(crops[0].read_bytes())
    result = find_overlap(
        f"{tmp_path / 'train'}:{tmp_path / 'set'}", [tmp_path / "set" / "ijb"], tmp_path / "out", workers=1
    )
    assert [(one.kind, one.score) for one in result.findings] == [("identical", 1.0)]
    assert result.sets[0]["protocols"] == ["ijb_verification", "ijb_identification"]


# --------------------------------------------------------------------------------------------------------- people


def embeddings(people, each, spread, seed=0, size=64):
    """Made-up embeddings (N, 1, D) of `people`, and their labels."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((people, size))
    labels = np.repeat(np.arange(people), each)
    rows = centres[labels] + spread * random.standard_normal((len(labels), size))
    return rows[:, None].astype(np.float32), labels


def test_strangers_reach_the_cut_off_as_often_as_wanted_and_people_are_found():
    rows, labels = embeddings(600, 12, 0.5)
    trained = (labels < 300) & (np.arange(len(labels)) % 12 < 9)
    people = SharedPeople.fitted(labels[trained], rows[trained], 0.01, "data")
    assert people.repeated == [] and people.impostors == trained.sum()
    false = len(list(people.matches(rows[labels >= 300]))) / (labels >= 300).sum()
    assert 0.003 < false < 0.02
    shared = (labels < 300) & ~trained
    matches = list(people.matches(rows[shared]))
    assert len(matches) / shared.sum() > 0.99
    assert all(labels[trained][image] == labels[shared][row] for row, image, _ in matches)


def test_people_under_two_labels_are_named_and_do_not_raise_the_cut_off():
    rows, labels = embeddings(200, 12, 0.5)
    plain = SharedPeople.fitted(labels, rows, 0.01, "data")
    twice = np.where((labels < 20) & (np.arange(len(labels)) % 2 == 0), labels + 1000, labels)
    people = SharedPeople.fitted(twice, rows, 0.01, "data")
    assert [pair[:2] for pair in people.repeated] == [(person, person + 1000) for person in range(20)]
    assert abs(people.cut_off - plain.cut_off) < 0.05


def test_unusable_people_are_refused():
    rows, labels = embeddings(50, 2, 0.5)
    with pytest.raises(DataError, match=r"data: 50 people cannot say .* one in 100 .* false rate of 0\.02 or more"):
        SharedPeople.fitted(labels, rows, 0.01, "data")
    rows[7] = 0
    with pytest.raises(DataError, match="data, images: the embedding of number 7 has no direction"):
        SharedPeople.fitted(labels, rows, 0.1, "data")


@pytest.fixture(scope="module")
def people_audit(many_people, noisy, weights, tmp_path_factory):
    """An audit of 44 people with a model: the test set has new images of eight of them, and of eight strangers."""
    root = tmp_path_factory.mktemp("people")
    who = [person for place in range(8) for person in (place, place, place + 8, 300 + place)] + list(range(400, 416))
    images = [noisy(person, 50 + place) for place, person in enumerate(who)]
    who, images = [*who[:6], *who], [*images[:6], *images]  # six stand in two places
    write_pairs(root / "mixed.bin", images, np.equal(who[::2], who[1::2]) | (np.arange(len(who) // 2) % 4 == 2))
    words = ["data", "overlap", many_people, root / "mixed.bin", "--model", weights, "--output", root / "audit"]
    assert main([str(word) for word in [*words, "--false-rate", "0.05", "--workers", "1", "--device", "cpu"]]) == 0
    return root, who


def test_shared_people_are_found(people_audit):
    root, who = people_audit
    content = json.loads((root / "audit" / "overlap.json").read_text())
    # Each image of one of these people is the same pattern, so it is listed as near-identical, too.
    owners = {one["image"]: one["name"] for one in content["findings"] if one["kind"] == "person"}
    assert all(owners.get(place) == f"person{person:02d}" for place, person in enumerate(who) if person < 44)
    assert sum(who[place] >= 44 for place in owners) <= 8
    assert content["people"]["false_rate"] == 0.05 and content["people"]["impostors"] == 176
    assert (root / "audit" / "overlap_person.png").is_file()


# ----------------------------------------------------------------------------------------- evaluation without it


@pytest.fixture
def half_known(small_data, tmp_path):
    """An audit that has found images of the pairs 3 and 4 of tiny.bin."""
    source = facebones.evaluation.protocol.find_protocols(small_data / "tiny.bin")[0].images()
    findings = [{"set": "tiny", "image": image} for image in (6, 7, 9)]
    sets = [{"set": "tiny", "images": 40, "fingerprint": source.fingerprint()}]
    (tmp_path / "overlap.json").write_text(json.dumps({"format": 1, "sets": sets, "findings": findings}))
    return tmp_path / "overlap.json"


def test_pairs_are_measured_with_and_without_the_overlap(half_known, small_data, weights, tmp_path, capsys):
    words = ["evaluate", "pairs", "--model", weights, "--data", small_data / "tiny.bin", "--output", tmp_path / "out"]
    words += ["--without-overlap", half_known, "--bootstrap", "100", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    content = json.loads((tmp_path / "out" / "pairs.json").read_text())
    whole, rest = content["results"]
    assert (whole["setting"], rest["setting"]) == ("", "without overlap")
    assert (whole["sizes"], rest["sizes"]) == ({"pairs": 20}, {"pairs": 18})
    assert rest["metrics"][0]["name"] == "accuracy" and rest["metrics"][0]["intervals"]
    assert "3 of 40 images" in whole["notes"][-1]
    assert content["options"]["without_overlap"] == str(half_known)
    printed = capsys.readouterr().out
    assert "tiny: 20 pairs" in printed and "tiny without overlap: 18 pairs" in printed
    # The rest is what a set of these pairs alone gives.
    pairs = read_pairs(small_data / "tiny.bin")
    kept = [pair for pair in range(20) if pair not in (3, 4)]
    images = [pairs.images[2 * pair + side] for pair in kept for side in (0, 1)]
    write_pairs(tmp_path / "tiny.bin", images, pairs.is_same[kept])
    alone = facebones.evaluate(weights, tmp_path / "tiny.bin", device="cpu", bootstrap=100)
    assert list(rest["metrics"][0]["values"].values()) == [pytest.approx(alone[0].value)]


def test_a_rest_that_cannot_be_measured_is_noted(half_known, small_data, weights):
    content = json.loads(half_known.read_text())
    content["findings"] = [{"set": "tiny", "image": image} for image in range(30)]
    half_known.write_text(json.dumps(content))
    metrics = facebones.evaluate(
        weights, small_data / "tiny.bin", device="cpu", bootstrap=100, without_overlap=half_known
    )
    assert {metric.setting for metric in metrics} == {""}


def test_templates_are_measured_without_the_overlap(tmp_path, weights):
    synthesize(tmp_path / "set", identities=2, images_per_identity=1, pairs=20, template_subjects=12, workers=1)
    protocols = facebones.evaluation.protocol.find_protocols(tmp_path / "set" / "ijb")
    source, templates = protocols[0].images(), protocols[0].template_set
    sets = [{"set": "ijb", "images": len(source), "fingerprint": source.fingerprint()}]
    findings = [{"set": "ijb", "image": 0}]
    (tmp_path / "overlap.json").write_text(json.dumps({"format": 1, "sets": sets, "findings": findings}))
    options = {"device": "cpu", "bootstrap": 100, "without_overlap": tmp_path}
    metrics = facebones.evaluate(weights, tmp_path / "set" / "ijb", **options)
    assert {(one.protocol, "without overlap" in one.setting) for one in metrics} == {
        (name, without) for name in ("ijb_verification", "ijb_identification") for without in (False, True)
    }
    first = templates.template_of_image[0]
    rest, _ = protocols[0].without(np.arange(len(source)) == 0)
    assert first not in {*rest.template_set.pair_a.tolist(), *rest.template_set.pair_b.tolist()}
    listed = [*rest.template_set.galleries.values(), rest.template_set.probes]
    assert all(first not in one.template for one in listed)
    assert (rest.subjects == protocols[0].subjects).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no audit of overlap"),
        ('{"format": 2}', "format 2 is not supported"),
        ('{"format": 1, "sets": [{"fingerprint": "a", "set": "a", "images": 1e999}]}', "no audit of overlap"),
        ('{"format": 1, "sets": [], "findings": [{"set": "a", "image": 1' + "0" * 30 + "}]}", "no audit of overlap"),
        ('{"format": 1, "sets": [], "findings": []}', "was not made with the images of tiny"),
    ],
)
def test_another_file_is_refused(content, message, small_data, weights, tmp_path):
    (tmp_path / "overlap.json").write_text(content)
    with pytest.raises(DataError, match=message):
        facebones.evaluate(weights, small_data / "tiny.bin", device="cpu", without_overlap=tmp_path)


def test_an_image_that_the_set_lacks_is_refused(half_known, small_data):
    content = json.loads(half_known.read_text())
    content["findings"] = [{"set": "tiny", "image": 40}]
    half_known.write_text(json.dumps(content))
    source = facebones.evaluation.protocol.find_protocols(small_data / "tiny.bin")[0].images()
    with pytest.raises(DataError, match="names an image that tiny lacks"):
        KnownOverlap(half_known).of("tiny", source)


def test_bad_options_are_one_line(planted, tiny_backbone, weights, tmp_path, capsys):
    with pytest.raises(ConfigError, match="has random weights"):
        find_overlap(planted / "train", planted / "sets", tmp_path, model=tiny_backbone)
    with pytest.raises(ConfigError, match="false_rate 1: is not between 0 and 1"):
        find_overlap(planted / "train", planted / "sets", tmp_path, false_rate=1)
    with pytest.raises(DataError, match="40 people cannot say what one in 100 strangers reaches; give a false rate of"):
        find_overlap(planted / "train", planted / "sets", tmp_path / "late", model=weights, false_rate=0.01)
    assert not (tmp_path / "late" / "features").exists()
    words = ["data", "overlap", str(planted / "train"), str(planted / "sets"), "--output", str(tmp_path)]
    assert main([*words, "--false-rate", "0.1"]) == 2
    assert "--false-rate: goes with --model" in capsys.readouterr().err


@pytest.mark.faces
@pytest.mark.slow
def test_planted_images_of_real_faces_are_found(real_faces, tmp_path):
    lfw = read_pairs(real_faces / "celeba_cfp" / "lfw.bin")
    from facebones.data.folders import open_training_set

    data = open_training_set(real_faces / "people877")
    chosen = np.arange(0, 2000, 5)
    for index in chosen:
        place = tmp_path / "train" / str(data.labels[index]) / f"{index}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data.read(int(index))[0])
    planted = [data.read(int(index))[0] for index in chosen[::4]]
    for name, change in CHANGES.items():
        images = [change(decode(image, name), number) for number, image in enumerate(planted)]
        write_pairs(tmp_path / "sets" / f"{name}.bin", images, np.arange(len(images) // 2) % 2 == 0)
    some = range(0, len(lfw), 30)  # the first pairs are all genuine
    images = [lfw.images[2 * pair + side] for pair in some for side in (0, 1)]
    write_pairs(tmp_path / "sets" / "lfw.bin", images, lfw.is_same[some])
    result = find_overlap(tmp_path / "train", tmp_path / "sets", tmp_path / "out", workers=1)
    counts = {one["set"]: one["found"]["near"] for one in result.sets}
    assert all(counts[name] >= 0.99 * len(planted) for name in CHANGES)
    assert counts["lfw"] == 0
