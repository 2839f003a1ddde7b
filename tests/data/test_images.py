"""Untrusted images: their claimed size is known before they are decoded, whoever imported OpenCV first."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from facebones.data import images
from facebones.data.images import claimed_pixels, decode, image_size, why_unreadable
from facebones.data.unreadable import is_cut_short
from facebones.errors import DataError

FORMS = {
    "jpeg": (".jpg", []),
    "progressive jpeg": (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    "png": (".png", []),
    "bmp": (".bmp", []),
    "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
    "lossless webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
}


def encode(form, height, width, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    ending, options = FORMS[form]
    return cv2.imencode(ending, pixels, options)[1].tobytes()


def chunk(kind, content, length=None):
    claimed = len(content) if length is None else length
    return struct.pack(">I", claimed) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks, height=24, width=20):
    """A PNG with these chunks behind its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")))


def huge_png(side=9000):
    """Black, a bit a pixel: 10 kB."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (1 + side // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def huge_jpeg(side=9000):
    """A small one that claims more; what is missing OpenCV fills with grey."""
    content = encode("jpeg", 8, 8)
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", side, side) + content[place + 4 :]


@pytest.mark.parametrize("size", [(1, 1), (112, 96), (300, 1000), (16000, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_the_size_that_an_image_claims_is_that_of_the_decoded_one(form, size):
    assert image_size(encode(form, *size)) == size


def test_the_size_of_a_webp_image_with_more_than_pixels():
    assert image_size(b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + b"\x2b\x01\x00\x05\x00\x00") == (6, 300)


def test_the_size_of_a_jpeg_behind_an_exif_thumbnail_and_padding():
    content, thumbnail = encode("jpeg", 40, 50), encode("jpeg", 8, 8)
    exif = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2) + b"Exif\0\0" + thumbnail
    assert image_size(content[:2] + exif + b"\xff\xff" + content[2:]) == (40, 50)


@pytest.mark.parametrize("form", FORMS)
def test_a_header_that_is_cut_short_has_no_size(form):
    content = encode(form, 40, 50)
    found = [image_size(content[:end]) for end in range(len(content))]
    assert found[0] is None and set(found) == {None, (40, 50)}


@pytest.mark.parametrize(
    "hidden",
    [
        b"\xff\x01\x00\x0d",  # TEM, which has no length
        b"\xff\xd0\x00\x0d",  # RST0, likewise
        b"\xff\x00\x00\x0d",  # no marker at all
        b"\xff\xe0\x00\x00",
        b"\x00\xff\xe0\x00\x0d",
    ],
)
def test_a_jpeg_whose_size_others_might_read_elsewhere_has_none(hidden):
    """A small frame behind such a marker must not stand for the large one that libjpeg finds."""
    content = huge_jpeg()
    small = b"\xff\xc0\x00\x11\x08\x00\x08\x00\x08"
    assert image_size(content[:2] + hidden + small + content[2:]) is None


def test_what_opencv_does_not_bound_is_bounded_here(monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 40 * 50)
    for form in FORMS:
        assert decode(encode(form, 40, 50), "x").shape == (40, 50, 3)
        with pytest.raises(DataError, match=r"x: 2,050 pixels \(50x41\), and at most 2,000 are read; make it smaller"):
            decode(encode(form, 41, 50), "x")


@pytest.mark.parametrize("first", ["cv2", "facebones.training.trainer", "facebones.data", "facebones.data.images"])
def test_a_small_file_cannot_claim_a_huge_image_whatever_is_imported_first(tmp_path, first):
    for name, content in {"png": huge_png(), "jpeg": huge_jpeg(), "good": encode("jpeg", 8, 8)}.items():
        (tmp_path / name).write_bytes(content)
    code = f"""
import {first}
from pathlib import Path
from facebones.data.images import decode
from facebones.errors import DataError
print(decode(Path("good").read_bytes(), "good").shape)
for name in ("png", "jpeg"):
    try:
        print(decode(Path(name).read_bytes(), name).shape)
    except DataError:
        print(name, "is refused")
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "(8, 8, 3)\npng is refused\njpeg is refused\n"


BLACK = chunk(b"IDAT", zlib.compress(bytes(24 * 61)))
COMPRESSED_ZEROS = zlib.compress(bytes(5 * 10**7), 9)
FORTY_TEXTS = [chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(5 * 10**6), 9))] * 40
COSTLY_PNGS = {
    "pixels of another length": png(chunk(b"IDAT", zlib.compress(bytes(24 * 61)), 2_890_000_000)),
    "text of another length": png(chunk(b"tEXt", b"key\0text", 2**31 - 1), BLACK),
    "behind the pixels": png(BLACK, chunk(b"IDAT", b"", 2**31 - 1)),
    "too many pixels": png(*[chunk(b"IDAT", COMPRESSED_ZEROS)] * 10),
}


@pytest.mark.parametrize("content", COSTLY_PNGS.values(), ids=COSTLY_PNGS)
def test_a_png_that_costs_far_more_than_its_size_is_refused_before_opencv_sees_it(content, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("OpenCV sees it"))
    with pytest.raises(DataError, match=rf"a\.png: no readable image \({len(content)} bytes\)"):
        decode(content, "a.png")


def test_a_broken_png_of_the_hostile_files_costs_nothing():
    place = Path(__file__).parents[3] / "shared" / "cases" / "hostile" / "png_bomb.png"
    if not place.exists():
        pytest.skip("shared/cases is absent: the hostile PNG is not read")
    with pytest.raises(DataError, match="no readable image"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "imdecode", lambda *_: pytest.fail("OpenCV sees it"))
        decode(place.read_bytes(), "png_bomb.png")


PLAIN_TEXT = chunk(b"tEXt", b"Software\0one")
EXPANDING = {
    "zTXt": FORTY_TEXTS,
    "iTXt": [chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(5 * 10**6), 9))] * 40,
    "iCCP": [chunk(b"iCCP", b"key\0\0" + COMPRESSED_ZEROS)],
    "tEXt": [PLAIN_TEXT],
}


@pytest.mark.parametrize("texts", EXPANDING.values(), ids=EXPANDING)
def test_texts_and_colour_profiles_of_a_png_are_left_out(texts, monkeypatch):
    seen = []
    opencv = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda content, how: seen.append(content.size) or opencv(content, how))
    for order in ([*texts, BLACK], [BLACK, *texts]):
        assert not decode(png(*order), "a.png").any()
    if texts[0] is not PLAIN_TEXT:
        assert seen == [len(png(BLACK))] * 2


@pytest.mark.parametrize(
    ("height", "width", "channels", "dtype"),
    [(1, 1, 1, "u1"), (1, 1, 4, "u2"), (300, 2, 4, "u2"), (2, 3000, 3, "u2"), (112, 112, 3, "u1")],
)
@pytest.mark.parametrize("compression", [0, 9])
def test_sound_pngs_are_decoded_by_any_depth_and_compression(height, width, channels, dtype, compression):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels)).astype(dtype)
    content = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, compression])[1].tobytes()
    for behind in (b"", b"text behind the image"):
        assert decode(content + behind, "a.png").shape == (height, width, 3)


@pytest.mark.parametrize("stray", [b"\x00\x11", b"\xff\xd0", b"\xff\x01", b"\xff\x00"])
def test_a_jpeg_with_stray_bytes_between_its_segments_is_decoded_unless_it_could_be_huge(stray):
    content = encode("jpeg", 40, 50)
    behind_jfif = 20
    odd = content[:behind_jfif] + stray + content[behind_jfif:]
    assert image_size(odd) is None
    assert np.array_equal(decode(odd, "odd"), decode(content, "sound"))
    huge = huge_jpeg()
    huge = huge[:behind_jfif] + stray + huge[behind_jfif:]
    assert claimed_pixels(huge) == 9000 * 9000
    with pytest.raises(DataError, match="huge: 81,000,000 pixels, and at most 67,108,864 are read"):
        decode(huge, "huge")


@pytest.mark.parametrize("form", FORMS)
def test_an_image_that_is_cut_short_is_told_from_others_wherever_it_ends(form):
    whole = encode(form, 40, 50)
    assert not is_cut_short(whole)
    told = set()
    for end in (*range(64), *range(64, len(whole), 97), len(whole) - 3):
        with pytest.raises(DataError, match=r"^x: ") as error:
            decode(whole[:end], "x")
        told.add(str(error.value).replace(str(end), "N"))
    assert told == {
        "x: an empty file, N bytes; copy it again from its source, or remove it",
        "x: cut short at byte N; copy it again from its source, or remove it",
        "x: no readable image (N bytes); remove it or restore it from the source",  # before the format is clear
    }


def test_a_fault_is_told_only_where_it_is_sure():
    assert why_unreadable(b"no image") is None
    assert why_unreadable(b"BM is text, too, of thirty letters") is None
    assert why_unreadable(b"\xff\xd8\xffnothing") is None  # damaged in its header
    damaged = bytearray(encode("jpeg", 40, 50))
    damaged[20:60] = bytes(40)
    assert why_unreadable(bytes(damaged)) is None
    assert why_unreadable(encode("jpeg", 40, 50) + b"what a camera appends") is None
    assert why_unreadable(b"\0\0\0\x18ftypheic").reason == "HEIC, which is not read"


@pytest.mark.parametrize("ending", [".tiff", ".ppm", ".jp2", ".gif", ".hdr"])
def test_a_format_whose_header_is_not_read_here_is_refused(ending):
    if not cv2.haveImageWriter(f"x{ending}"):
        pytest.skip(f"this OpenCV writes no {ending}")
    dtype = np.float32 if ending == ".hdr" else np.uint8
    encoded = cv2.imencode(ending, np.zeros((64, 64, 3), dtype))[1].tobytes()
    told = f"x: {ending[1:].upper()}, which is not read" if ending in (".tiff", ".gif") else "x: no readable image"
    with pytest.raises(DataError, match=told):
        decode(encoded, "x")


def test_nothing_of_the_users_process_is_set(small_data, tmp_path):
    """Neither the environment nor OpenCV's threads, whatever is imported, decoded, embedded or trained on."""
    (tmp_path / "a.png").write_bytes(encode("png", 200, 300))
    code = f"""
import os, cv2
from pathlib import Path
before = dict(os.environ)
cv2.setNumThreads(3)
from facebones.data.folders import open_training_set
from facebones.data.image_sources import EncodedImages, read_batches
from facebones.data.images import decode
from facebones.data.loader import training_batches
from facebones.data.loader import EpochOrder
from facebones.datatools.inspect import inspect_data
decode(Path("a.png").read_bytes(), "a.png", 112)
assert cv2.getNumThreads() == 3
data = open_training_set({str(small_data)!r})
images = EncodedImages("faces", [data.read(index)[0] for index in range(9)])
first, second = (read_batches(images, range(0, 9, 2), 2, 112, 2) for _ in range(2))
next(first), next(second)
assert cv2.getNumThreads() == 1
first.close()
assert cv2.getNumThreads() == 1, "the other one still reads"
assert sum(map(len, second)) == 7 and cv2.getNumThreads() == 3
inspect_data(Path({str(small_data)!r}))
for workers in (0, 2):
    order = EpochOrder(data, batch_size=6, batches_per_epoch=4, first=0, last=2, seed=0)
    list(training_batches(order, workers=workers))
assert cv2.getNumThreads() == 3
assert dict(os.environ) == before, set(os.environ) ^ set(before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
