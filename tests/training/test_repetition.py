"""What the published study's code does to its images beside training on them: the same flips again, JPEG once more."""

import io
import pickle

import numpy as np
import pytest
import torch

from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.data.wrapped_sets import SavedAgain
from facebones.errors import DataError
from facebones.training.step import draw_mirrored, network_input
from facebones.training.trainer import Trainer


def flips(recipe, numbers):
    """Which images of batches of 50 are mirrored, for batches of these numbers."""
    built = Trainer(recipe, torch.device("cpu"))
    images = torch.arange(50 * 4, dtype=torch.uint8)[:, None].expand(-1, 3).reshape(50, 1, 4, 3).contiguous()
    plain = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    found = [network_input(built, images, draw_mirrored(built, len(images), number)) for number in numbers]
    return [[not torch.allclose(a, b, atol=1e-3) for a, b in zip(x, plain, strict=True)] for x in found]


def test_repeated_flips_depend_on_seed_and_place_in_the_epoch_alone(tiny_recipe):
    options = {"data.flip_draw": "repeated", "training.accumulation_steps": 2, "training.batch_size": 2}
    numbers = range(3 * 14)  # three epochs of 7 steps of two batches
    found = flips(tiny_recipe(**options), numbers)
    assert found[:14] == found[14:28] == found[28:] and len(set(map(tuple, found))) == 14
    assert 0.4 < np.mean(found) < 0.6
    assert flips(tiny_recipe(**options), numbers) == found
    other = flips(tiny_recipe(**options, **{"training.seed": 1}), numbers)
    assert other != found
    fresh = flips(tiny_recipe(**options | {"data.flip_draw": "fresh"}), numbers)
    assert len(set(map(tuple, fresh))) == len(numbers)


def test_a_repeated_epoch_shows_the_network_the_same_batches(tiny_recipe):
    options = {"data.order": "repeated", "data.flip_draw": "repeated"}
    built = Trainer(tiny_recipe(**options), torch.device("cpu"))
    shown = [
        network_input(built, batch[0][0], draw_mirrored(built, len(batch[0][0]), number))
        for number, batch in enumerate(built.step_batches())
    ]
    assert len(shown) == 28
    assert all(torch.equal(shown[index], shown[index % 7]) for index in range(28))


def test_images_are_saved_as_pillow_saves_jpeg_by_default(small_data):
    image_module = pytest.importorskip("PIL.Image")
    original = open_training_set(small_data)
    again = pickle.loads(pickle.dumps(SavedAgain(original, 75)))
    for index in (0, 13):
        first = decode(original.read(index)[0], "image")
        file = io.BytesIO()
        image_module.fromarray(first).save(file, "JPEG")
        encoded, label = again.read(index)
        assert label == original.labels[index]
        found, expected = decode(encoded, "image"), decode(file.getvalue(), "image")
        assert np.array_equal(found, expected) and not np.array_equal(found, first)
    assert again.describe(3) == original.describe(3) and len(again) == len(original)


def test_a_training_sees_the_images_saved_again_and_knows_its_data_all_the_same(tiny_recipe):
    plain, again = (Trainer(tiny_recipe(**{"data.jpeg_quality": quality}), torch.device("cpu")) for quality in (0, 75))
    ((images, labels, _),), ((images_again, labels_again, _),) = (
        next(built.step_batches()) for built in (plain, again)
    )
    assert torch.equal(labels, labels_again) and not torch.equal(images, images_again)
    assert plain.data.fingerprint() == again.data.fingerprint()


def test_an_image_that_cannot_be_saved_again_is_named(break_images):
    path, _ = break_images(3)
    again = SavedAgain(open_training_set(path), 75)
    with pytest.raises(DataError, match=r"train\.rec.*no readable image"):
        again.read(3)
