"""Pair sets name images several times: each is decoded and embedded once, and no metric changes by a bit."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.data import image_sources
from facebones.data.image_sources import EncodedImages, distinct
from facebones.data.images import decode
from facebones.data.pair_bins import PairSet, read_pairs, write_pairs
from facebones.errors import ConfigError, DataError
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Model, load_model
from facebones.evaluation.run import evaluate
from facebones.evaluation.verification import evaluate_pair_set
from facebones.recipe import Recipe
from facebones.run_folder import RunFolder
from facebones.training.validation import Validation

CPU = torch.device("cpu")
PEOPLE, PAIRS = 25, 60


def png(seed, compression=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    face = cv2.resize(pixels, (112, 112), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".png", face, (cv2.IMWRITE_PNG_COMPRESSION, compression, 0, 0))[1].tobytes()


@pytest.fixture(scope="module")
def repeating():
    """Pairs of few people; the images of all pairs are drawn from two of each."""
    random = np.random.default_rng(0)
    images = []
    for pair in range(PAIRS):
        person, other = random.choice(PEOPLE, 2, replace=False)
        images += [png([person, 0]), png([person, 1] if pair % 2 else [other, 0])]
    return PairSet("few", images, np.arange(PAIRS) % 2 == 1)


@pytest.fixture(scope="module")
def unequal(repeating):
    """The same pixels in bytes that differ from place to place: a comment in no decoder's interest behind each PNG."""
    return replace(repeating, images=[image + bytes([place]) for place, image in enumerate(repeating.images)])


class Counted(torch.nn.Module):
    """A backbone that counts the images it sees."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that a source decoded."""
    names = []

    def noted(encoded, what, size=None):
        names.append(what)
        return decode(encoded, what, size)

    monkeypatch.setattr(image_sources, "decode", noted)
    return names


def test_equal_images_are_decoded_and_embedded_once(repeating, decoded):
    network, source = Counted(), EncodedImages("few", repeating.images)
    features = embed({"": Model(network=network, device=CPU)}, source, batch_size=1)[""]
    once = len(set(repeating.images))
    assert once < PAIRS and network.seen == 2 * once and len(decoded) == once
    assert features.shape == (2 * PAIRS, 2, 48)
    for place, image in enumerate(repeating.images):
        np.testing.assert_array_equal(features[place], features[repeating.images.index(image)])


@pytest.mark.parametrize("batch_size", [1, 7, 8, 32, 50, 119, 120, 121, 200])
def test_batches_keep_their_sizes(repeating, batch_size):
    """The last digits of an embedding depend on the size of its batch."""

    class Noted(Counted):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    sizes, source, once = [], EncodedImages("few", repeating.images), len(set(repeating.images))
    embed({"": Model(network=Noted(), device=CPU)}, source, batch_size=batch_size, flip=False)
    rest = 2 * PAIRS % batch_size
    assert sizes == [batch_size] * (len(sizes) - bool(rest)) + [rest] * bool(rest)
    assert sum(sizes) <= min(once + 2 * batch_size, 2 * PAIRS)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("batch_size", [16, 50])
def test_no_metric_changes_by_a_bit(repeating, unequal, batch_size, flip):
    torch.manual_seed(0)
    network = create_backbone("shufflefacenet_0_5", embedding_size=64).eval()
    assert len(distinct(EncodedImages("few", unequal.images))) == 2 * PAIRS
    before, after = (
        evaluate_pair_set(network, one, device=CPU, batch_size=batch_size, flip=flip) for one in (unequal, repeating)
    )
    assert after.to_json() == before.to_json()


def test_evaluation_and_its_files_are_the_same_to_the_bit(repeating, unequal, tiny_backbone, tmp_path):
    for number in range(2):
        card = {"backbone": tiny_backbone, "embedding_size": 16}
        save_weights(RunFolder(tmp_path / f"run{number}"), create_backbone(tiny_backbone, 16), card)
    results = []
    for pair_set in (unequal, repeating):
        (tmp_path / pair_set.images[0][-1:].hex()).mkdir()
        path = tmp_path / pair_set.images[0][-1:].hex() / "few.bin"
        write_pairs(path, pair_set.images, pair_set.is_same)
        models = {name: str(tmp_path / name) for name in ("run0", "run1")}
        results.append(evaluate(models, path, device="cpu", bootstrap=100, batch_size=16))
    assert [vars(one) for one in results[0]] == [vars(one) for one in results[1]]


def test_a_validation_decodes_and_embeds_equal_images_once(repeating, decoded, tmp_path):
    write_pairs(tmp_path / "few.bin", repeating.images, repeating.is_same)
    recipe = Recipe()
    recipe = replace(recipe, validation=replace(recipe.validation, sets=["few"], batch_size=8))
    validation, network, once = Validation(recipe, tmp_path), Counted(), len(set(repeating.images))
    validation.try_out(network, CPU)
    assert len(decoded) <= once + 16
    decoded.clear()
    network.seen = 0
    (row,) = validation.measure(network, CPU)
    assert network.seen == 2 * len(decoded) and once <= len(decoded) < once + 8 and row["set"] == "few"


def test_an_error_names_the_first_place_of_an_image(repeating):
    images = [*repeating.images[:6], b"no image", *repeating.images[6:], b"no image"]
    with pytest.raises(DataError, match="few: image 6: no readable image"):
        embed({"": Model(network=Counted(), device=CPU)}, EncodedImages("few", images), batch_size=4)


@pytest.mark.parametrize("wrong", [None, 7, [b"image"], np.zeros(3, np.uint8)])
def test_what_is_no_image_is_reported_as_before(repeating, wrong):
    source = EncodedImages("few", [*repeating.images[:5], wrong])
    with pytest.raises(ConfigError, match=r"few: image 5: .* instead of an image's bytes"):
        embed({"": Model(network=Counted(), device=CPU)}, source, batch_size=4)


def test_progress_counts_what_is_embedded(repeating, monkeypatch, capsys):
    monkeypatch.setattr("facebones.system.progress.PLAIN_LINE_SECONDS", 0.0)
    source, once = EncodedImages("few", repeating.images), len(set(repeating.images))
    embed({"": Model(network=Counted(), device=CPU)}, source, batch_size=8, progress=True)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"embedding few (120 images, equal ones once): 8/{-(-once // 8) * 8}")


def test_files_of_features_keep_a_row_for_each_place(repeating, tmp_path):
    source = EncodedImages("few", repeating.images)
    model = Model(network=Counted(), device=CPU, weights_sha256="weights")
    kept = embed({"a": model}, source, batch_size=8, folder=tmp_path)["a"]
    assert json.loads((tmp_path / "a.features.json").read_text())["complete"] == len(kept) == 2 * PAIRS
    np.testing.assert_array_equal(kept, embed({"a": model}, source, batch_size=8)["a"])


@pytest.mark.faces
@pytest.mark.slow
def test_the_pairs_of_lfw_are_computed_once(real_faces):
    pair_set = read_pairs(real_faces / "celeba_cfp" / "lfw.bin")
    source = distinct(EncodedImages("lfw", pair_set.images))
    assert (len(source.row), len(source)) == (12_000, 7_701)
    network = load_model("shufflefacenet_0_5", device="cpu").network
    part = replace(pair_set, images=pair_set.images[:1200], is_same=pair_set.is_same[:600])
    unequal = replace(part, images=[image + place.to_bytes(4) for place, image in enumerate(part.images)])
    before, after = (evaluate_pair_set(network, one, device=CPU, batch_size=128).to_json() for one in (unequal, part))
    assert after == before
