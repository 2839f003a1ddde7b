"""Verification sets of decoded pixels: any layout of an array, both orders of channels, and the notes."""

import itertools
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest

from facebones.data.images import decode
from facebones.data.pair_bins import read_pairs
from facebones.data.safe_pickle import read_pickle
from facebones.datatools.convert import convert
from facebones.errors import DataError

IMAGES = [b"\xff\xd8\xff\x00a", b"\xff\xd8\xff'\n\\"]


def save(folder: Path, content: object, protocol: int = 4) -> Path:
    path = folder / "lfw.bin"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize(
    "images",
    [
        lambda images: images,
        list,
        lambda images: list(images.transpose(0, 3, 1, 2)),
        lambda images: [np.dstack([image, image[:, :, :1]]) for image in images],
    ],
    ids=["array", "list", "channels first", "with alpha"],
)
def test_decoded_pixels(tmp_path, images, order):
    pairs = read_pairs(save(tmp_path, (images(PIXELS), [True, False])), order)
    expected = PIXELS if order == "rgb" else PIXELS[:, :, :, ::-1]
    for encoded, pixels in zip(pairs.images, expected, strict=True):
        np.testing.assert_array_equal(decode(encoded, "a BMP"), pixels)
    assert len(pairs.notes) == 1
    assert f"4 images are decoded pixels, taken as {order.upper()}" in pairs.notes[0]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("stacked", [False, True], ids=["list", "array"])
def test_arrays_whose_axes_were_exchanged_are_read_as_by_pickle(protocol, axes, stacked):
    rows = [pixels.transpose(axes) for pixels in PIXELS]
    views = [PIXELS.transpose(0, *(axis + 1 for axis in axes))] if stacked else rows
    for read, expected in zip(read_pickle(pickle.dumps(views, protocol), "a.bin"), views, strict=True):
        np.testing.assert_array_equal(read.values, expected)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("stacked", [False, True], ids=["list", "array"])
def test_decoded_pixels_whose_channels_were_moved_first(tmp_path, protocol, stacked):
    moved = PIXELS.transpose(0, 3, 1, 2)
    pairs = read_pairs(save(tmp_path, (moved if stacked else list(moved), [True, False]), protocol), "rgb")
    for encoded, pixels in zip(pairs.images, PIXELS, strict=True):
        np.testing.assert_array_equal(decode(encoded, "a BMP"), pixels)


class InOrder:
    """An array of 2 x 3 x 4 bytes whose axes stand in the file in another order."""

    def __init__(self, axes):
        self.axes = axes

    def __reduce__(self):
        from numpy._core.numeric import _frombuffer

        return _frombuffer, (bytearray(24), np.dtype("u1"), (2, 3, 4), "K", self.axes)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "axes",
    [
        (0, 1),
        (0, 1, 1),
        (0, 1, 3),
        (-1, 0, 1),
        (0, True, 2),
        3,
        ((0,), 1, 2),
        (0,) * 3000,
        (0, 1, 2.0),
        [2, 0, 1],
        "012",
    ],
    ids=lambda axes: ascii(axes)[:12],
)
def test_an_order_of_axes_that_no_array_has_is_refused(tmp_path, protocol, axes):
    with pytest.raises(DataError, match=r"lfw\.bin, byte \d+: a numpy array in an order of axes that no array has"):
        read_pairs(save(tmp_path, ([InOrder(axes)] * 2, [True]), protocol))
    assert read_pickle(pickle.dumps(InOrder((2, 0, 1)), protocol), "a.bin").values.shape == (4, 2, 3)


@pytest.mark.parametrize("name", ["lfw.bin", "sub folder/lfw.bin"])
def test_the_note_on_pixels_gives_commands_with_the_path_as_given(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for path in (save((tmp_path / name).parent, (list(PIXELS), [True, False])), Path(name)):
        [note] = read_pairs(path).notes
        shown = shlex.quote(str(path))
        assert f"`facebones data inspect {shown} --output sheet.png`" in note
        assert f"`facebones data convert {shown} NEW.bin`" in note


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=["channels last", "channels first"])
def test_images_each_in_a_batch_of_one(tmp_path, axes):
    images = [pixels.transpose(axes)[None] for pixels in PIXELS]
    pairs = read_pairs(save(tmp_path, (images, [True, False])), "rgb")
    for encoded, pixels in zip(pairs.images, PIXELS, strict=True):
        np.testing.assert_array_equal(decode(encoded, "a BMP"), pixels)
    stacked = read_pairs(save(tmp_path, (np.stack(images), [True, False])), "rgb")
    assert stacked.images == pairs.images
    with pytest.raises(DataError, match=r"image 0 has shape \(2, 6, 5, 3\), several images in one"):
        read_pairs(save(tmp_path, ([PIXELS[:2]] * 2, [True])))


@pytest.mark.parametrize("begins_with", [b"BM", bytes([255, 216, 255]), bytes([137, 80, 78, 71])])
def test_pixels_that_begin_as_an_image_file_does_are_pixels(tmp_path, begins_with):
    pixels = PIXELS.copy()
    pixels[0].reshape(-1)[: len(begins_with)] = np.frombuffer(begins_with, np.uint8)
    pairs = read_pairs(save(tmp_path, (list(pixels), [True, False])), "rgb")
    np.testing.assert_array_equal(decode(pairs.images[0], "a BMP"), pixels[0])


def test_decoded_grey_pixels(tmp_path):
    pairs = read_pairs(save(tmp_path, (list(PIXELS[:2, :, :, 0]), [True])))
    np.testing.assert_array_equal(decode(pairs.images[1], "a BMP"), np.repeat(PIXELS[1, :, :, :1], 3, axis=2))


GREY = [PIXELS[:, :, :, 0], PIXELS[:, :, :, :1], PIXELS.transpose(0, 3, 1, 2)[:, :1]]


@pytest.mark.parametrize("images", GREY, ids=["without channels", "one channel", "channel first"])
def test_the_note_on_grey_pixels_names_no_order_of_channels(tmp_path, images):
    notes = read_pairs(save(tmp_path, (list(images), [True, False]))).notes
    assert notes == (f"{tmp_path / 'lfw.bin'}: 4 images are decoded grey pixels",)
    one, two = read_pairs(save(tmp_path, ([*images[:1], *PIXELS[:1], *IMAGES], [True, False]))).notes
    assert "1 image is decoded pixels, taken as BGR, the order of OpenCV; if faces look blue" in one
    assert two.endswith("1 image is decoded grey pixels")


@pytest.mark.parametrize("images", [IMAGES, list(GREY[0][:2])], ids=["encoded", "grey"])
@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_an_order_of_channels_that_changes_nothing_is_refused(tmp_path, images, order):
    path = save(tmp_path, (images, [True]))
    with pytest.raises(DataError, match=r"lfw\.bin: no image is decoded pixels in colour.*--pixel-order") as error:
        read_pairs(path, order)
    assert "\n" not in str(error.value)
    for destination in ("new.bin", "folder"):
        with pytest.raises(DataError, match=r"no image is decoded pixels in colour"):
            convert(path, tmp_path / destination, pixel_order=order)
        assert not (tmp_path / destination).exists()


def test_an_order_of_channels_for_a_pair_list_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(IMAGES[0])
    (tmp_path / "pairs.txt").write_text("a.jpg a.jpg 1\n")
    with pytest.raises(DataError, match=r"--pixel-order goes with a \.bin file of decoded pixels only"):
        convert(tmp_path / "pairs.txt", tmp_path / "new.bin", pixel_order="rgb")
