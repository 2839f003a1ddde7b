"""Random changes of training images: what each does, and that nothing but seed, batch and row decides it."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from facebones.data import loader as loading
from facebones.data.augmentations import Augmentation, change_colours, crop_in_place, erase, lower_resolution
from facebones.data.folders import open_training_set
from facebones.data.loader import EpochOrder, training_batches

KINDS = ("crop", "low_resolution", "photometric", "erasing")
ALL = Augmentation(crop=0.5, low_resolution=0.5, photometric=0.5, erasing=0.5, seed=3)
FIELDS = {"batch_size": 6, "batches_per_epoch": 4, "seed": 0, "last": 8}
SEEDS = range(200)


def noise(seed=0, size=112):
    return np.random.default_rng(seed).integers(1, 256, (size, size, 3), dtype=np.uint8)


def changed_by(change, image, seed):
    result = image.copy()
    change(result, np.random.default_rng(seed))
    return result


def box(mask):
    """Rows and columns of the smallest rectangle that holds a mask, and whether the mask fills it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return len(rows), len(columns), mask[inside].all()


def test_a_crop_keeps_a_rectangle_at_its_place_and_blackens_the_rest():
    image, areas = noise(), []
    for seed in SEEDS:
        result = changed_by(crop_in_place, image, seed)
        kept = (result == image).all(2)
        height, width, filled = box(kept)
        assert filled and not result[~kept].any()
        assert 0.73 < width / height < 1.36  # 3/4 to 4/3, and half a pixel on each side
        areas.append(height * width / 112**2)
    assert 0.19 < min(areas) < 0.25 and 0.9 < max(areas) <= 1


def test_low_resolution_loses_detail_and_keeps_brightness_and_size():
    image = cv2.resize(noise(size=28), (112, 112), interpolation=cv2.INTER_CUBIC)
    flat = np.full((112, 112, 3), 77, np.uint8)
    differences = []
    for seed in SEEDS:
        assert np.array_equal(changed_by(lower_resolution, flat, seed), flat)
        result = changed_by(lower_resolution, image, seed)
        assert abs(float(result.mean()) - float(image.mean())) < 6
        differences.append(np.abs(result.astype(int) - image).mean())
    assert min(differences) < 3 and max(differences) > 20


def test_photometric_changes_are_those_of_brightness_contrast_and_saturation():
    """Each step in floating point, from the same draws: blends with black, mean grey, or the grey image."""
    image = noise(size=24)
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        factors, order = random.uniform(0.5, 1.5, 3), random.permutation(3)
        expected = image.astype(np.float64)
        for which in order:
            grey = (expected @ [0.299, 0.587, 0.114])[..., None]
            other = [0, grey.mean(), grey][which]
            expected = np.clip(expected * factors[which] + other * (1 - factors[which]), 0, 255)
        assert np.abs(changed_by(change_colours, image, seed) - expected).max() < 3  # rounded after each step


def test_a_grey_image_stays_grey_whatever_its_brightness():
    image = np.repeat(noise()[..., :1], 3, 2)
    for seed in range(20):
        result = changed_by(change_colours, image, seed)
        assert np.ptp(result, axis=2).max() == 0


def test_erasing_fills_one_rectangle_with_random_pixels():
    image = np.zeros((112, 112, 3), np.uint8)
    areas, aspects = [], []
    for seed in SEEDS:
        result = changed_by(erase, image, seed)
        height, width, _ = box(result.any(2))
        areas.append(height * width / 112**2)
        aspects.append(height / width)
        assert (result.any(2)).sum() > 0.99 * height * width
        assert np.ptp(result.reshape(-1, 3), axis=0).min() > 200
    assert 0.015 < min(areas) < 0.05 and 0.3 < max(areas) < 0.42
    assert 0.25 < min(aspects) < 0.5 and 2 < max(aspects) < 3.6
    assert 1.3 < np.median(aspects) < 2.2, "uniform, so most rectangles are tall"


@pytest.mark.parametrize("kind", KINDS)
def test_a_probability_is_the_share_of_the_images_that_change(kind):
    plain, count = noise(size=32), 1000
    images = np.stack([plain] * count)
    Augmentation(**{kind: 0.3})(images, 0, 0)
    share = np.mean([not np.array_equal(image, plain) for image in images])
    # A crop and a smaller size may be those of the whole image.
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / count) + 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_does_not_decide_which_images_another_one_takes(kind, monkeypatch):
    names = ("crop_in_place", "lower_resolution", "change_colours", "erase")
    taken = {}
    for name in names:
        monkeypatch.setattr(
            f"facebones.data.augmentations.{name}", lambda image, _, name=name: taken[name].append(int(image[0, 0, 0]))
        )
    images = np.arange(200, dtype=np.uint8).repeat(3).reshape(200, 1, 1, 3)

    def rows_taken(augmentation):
        taken.update({name: [] for name in names})
        augmentation(images, 5, 0)
        return taken[names[KINDS.index(kind)]]

    alone = rows_taken(Augmentation(**{kind: 0.4}, seed=1))
    together = rows_taken(Augmentation(**dict.fromkeys(KINDS, 1.0) | {kind: 0.4}, seed=1))
    assert 40 < len(alone) < 120 and together == alone


def test_without_probabilities_nothing_changes():
    images = np.stack([noise(seed) for seed in range(3)])
    before = images.copy()
    Augmentation()(images, 0, 0)
    assert np.array_equal(images, before) and not Augmentation().changes_something
    assert all(Augmentation(**{kind: 0.01}).changes_something for kind in KINDS)


def test_each_batch_row_and_seed_has_its_own_draws():
    shown = set()
    for seed in (0, 1, 2**40):
        for number in range(3):
            images = np.stack([noise()] * 4)
            Augmentation(erasing=1, seed=seed)(images, number, 0)
            shown |= {image.tobytes() for image in images}
    assert len(shown) == 3 * 3 * 4


def batches_of(folder, *, workers=0, first=0, part=(0, 1), augment=ALL, replaced=None):
    order = EpochOrder(open_training_set(folder), first=first, part=part, **FIELDS)
    return list(training_batches(order, workers=workers, augment=augment, replaced=replaced))


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def whole(small_data):
    return batches_of(small_data)


def test_the_loader_augments_what_it_decodes(small_data, whole):
    plain = batches_of(small_data, augment=None)
    for number, ((images, labels), (augmented, same_labels)) in enumerate(zip(plain, whole, strict=True)):
        expected = images.numpy().copy()
        ALL(expected, number, 0)
        assert np.array_equal(augmented.numpy(), expected) and torch.equal(labels, same_labels)
        assert not np.array_equal(expected, images.numpy())


@pytest.mark.parametrize("first", [0, 3, 5])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_from_any_batch_on(small_data, whole, workers, first):
    assert_same(batches_of(small_data, workers=workers, first=first), whole[first:])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("processes", [2, 4, 7])
def test_processes_together_augment_as_one(small_data, whole, processes, workers):
    parts = [batches_of(small_data, workers=workers, part=(rank, processes)) for rank in range(processes)]
    joined = [tuple(torch.cat(tensors) for tensors in zip(*rows, strict=True)) for rows in zip(*parts, strict=True)]
    assert_same(joined, whole)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_without_inherited_memory(small_data, whole, monkeypatch, context):
    monkeypatch.setattr(loading, "CAN_INHERIT", False)
    monkeypatch.setattr(
        loading,
        "DataLoader",
        lambda *args, **options: DataLoader(*args, **options | {"multiprocessing_context": context}),
    )
    assert_same(batches_of(small_data, workers=1, first=6), whole[6:])


def test_an_image_in_the_place_of_an_unreadable_one_is_augmented_as_its_row(break_images):
    folder = break_images(9, 10)[0]
    plain = batches_of(folder, augment=None, replaced=lambda _: None)
    for number, (images, _) in enumerate(plain):
        ALL(images.numpy(), number, 0)
    for workers in (0, 2):
        assert_same(batches_of(folder, workers=workers, replaced=lambda _: None), plain)
