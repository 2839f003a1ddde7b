"""Embedding images: order, modes, mirror images, errors, and what must stay untouched."""

import threading

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from facebones.data.preprocessing import to_network_input
from facebones.errors import DataError
from facebones.evaluation.embed import ImageEmbeddings, embed_images, flip_sum_normalised, mean_norm

CPU = torch.device("cpu")


def made_up_images(count, size=16):
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def encoded(images):
    return [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]


class SmallBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(4 * 14 * 14, 8)

    def forward(self, x):
        return self.linear(self.dropout(self.norm(self.convolution(x)).flatten(1)))


def embed(backbone, images, **options):
    options = {"name": "made-up", "device": CPU, "batch_size": 4, "image_size": 16, **options}
    return embed_images(backbone, encoded(images), **options)


def expected(backbone, images):
    backbone.eval()
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        return backbone(x).numpy(), backbone(x.flip(3)).numpy()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_each_image_and_its_mirror_are_embedded_in_order(batch_size, channels_last):
    backbone, images = SmallBackbone(), made_up_images(11)
    result = embed(backbone, images, batch_size=batch_size, channels_last=channels_last)
    plain, mirrored = expected(backbone, images)
    assert result.plain.dtype == result.mirrored.dtype == np.float32
    np.testing.assert_allclose(result.plain, plain, atol=1e-5)
    np.testing.assert_allclose(result.mirrored, mirrored, atol=1e-5)


def test_images_are_resized():
    result = embed(SmallBackbone(), made_up_images(3, size=40))
    assert result.plain.shape == (3, 8)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_comes_back_as_float32(precision):
    backbone, images = SmallBackbone(), made_up_images(5)
    half, full = embed(backbone, images, precision=precision), embed(backbone, images)
    assert half.plain.dtype == np.float32
    np.testing.assert_allclose(half.plain, full.plain, atol=0.05)
    assert not np.array_equal(half.plain, full.plain)


def test_every_module_gets_its_mode_back():
    backbone = SmallBackbone().train()
    backbone.norm.eval()  # frozen on purpose
    embed(backbone, made_up_images(3))
    assert [module.training for module in backbone.modules()] == [True, True, False, True, True]


def test_modes_come_back_after_an_error():
    backbone = SmallBackbone().train()
    with pytest.raises(DataError):
        embed_images(backbone, [b"no image"], name="x", device=CPU, batch_size=1)
    assert backbone.training


def test_nothing_of_the_training_is_touched():
    backbone = SmallBackbone().train()
    random_state, weights = torch.get_rng_state(), {k: v.clone() for k, v in backbone.state_dict().items()}
    embed(backbone, made_up_images(9))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_limit_batches_stops_early():
    assert embed(SmallBackbone(), made_up_images(11), limit_batches=2).plain.shape == (8, 8)


def test_progress_changes_nothing(capsys):
    backbone, images = SmallBackbone(), made_up_images(9)
    np.testing.assert_array_equal(embed(backbone, images, progress=True).plain, embed(backbone, images).plain)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("bad", [0, 5, 10])
def test_an_unreadable_image_is_named(bad):
    images = encoded(made_up_images(11))
    images[bad] = b"\x89PNG but no more"
    with pytest.raises(DataError, match=rf"^lfw: image {bad}: no readable image \(16 bytes\)"):
        embed_images(SmallBackbone(), images, name="lfw", device=CPU, batch_size=2, image_size=16)


def test_no_decoding_threads_are_left():
    before = threading.active_count()

    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        embed(Fails(), made_up_images(30), batch_size=1)
    assert threading.active_count() == before


def test_no_images_are_an_error():
    with pytest.raises(DataError, match="lfw: no images"):
        embed_images(SmallBackbone(), [], name="lfw", device=CPU, batch_size=2)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"limit_batches": 0}])
def test_batch_numbers_below_one_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        embed(SmallBackbone(), made_up_images(2), **options)


def made_up_embeddings(plain, mirrored):
    return ImageEmbeddings("lfw", np.array(plain, dtype=np.float32), np.array(mirrored, dtype=np.float32))


def test_flip_sum_has_length_one_in_double_precision():
    total = flip_sum_normalised(made_up_embeddings([[1, 0], [3, 4]], [[0, 1], [3, 4]]))
    assert total.dtype == np.float64
    np.testing.assert_allclose(total, [[0.5**0.5, 0.5**0.5], [0.6, 0.8]], atol=1e-15)


@pytest.mark.parametrize("row", [[-1, -2], [np.nan, 0], [np.inf, 0]])
def test_a_sum_without_direction_names_the_image(row):
    with pytest.raises(DataError, match=r"^lfw: image 1: "):
        flip_sum_normalised(made_up_embeddings([[1, 0], [1, 2]], [[1, 0], row]))


def test_mean_norm_is_over_images_and_mirror_images():
    assert mean_norm(made_up_embeddings([[3, 4], [0, 1]], [[0, 2], [6, 8]])) == pytest.approx((5 + 1 + 2 + 10) / 4)


def test_network_input_spans_minus_one_to_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(2, 4, 5, 1)
    result = to_network_input(images)
    assert result.shape == (2, 3, 4, 5)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result[0, :, 0, 0], [-1.0, -0.6, 1.0], atol=1e-7)
    assert images[0, 0, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize("channels_last", [False, True])
def test_masked_images_are_mirrored_and_memory_format_is_as_asked(channels_last):
    images = torch.from_numpy(made_up_images(4))
    plain = to_network_input(images)
    mask = torch.tensor([True, False, False, True])
    result = to_network_input(images, channels_last, mask)
    for index, mirrored in enumerate(mask):
        assert torch.equal(result[index], plain[index].flip(2) if mirrored else plain[index])
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 4, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"give torch\.uint8"):
        to_network_input(torch.zeros(shape, dtype=torch.uint8))


def test_images_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"torch\.float32"):
        to_network_input(torch.zeros(1, 4, 4, 3))
