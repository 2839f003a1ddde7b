"""Encoded face images: which names and bytes are images, and RGB pixels from JPEG, PNG, BMP and WebP.

An image's header is read before OpenCV decodes it: a PNG of 20 kB can claim a gigapixel.
"""

import os
import re
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from facebones.errors import ConfigError, DataError
from facebones.system.regular_files import open_descriptor

if TYPE_CHECKING:
    from facebones.data.unreadable import Fault

ADVICE = "remove it or restore it from the source"
ImageArray = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
READ_BYTES = 2**16

MOST_PIXELS = 2**26  # of an image: 8192 x 8192
MOST_SCANNED = 2**33  # pixels in all scans of a JPEG: ten bytes are a scan, and the decoder goes over the whole image

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the markers SOF0 to SOF15 of a JPEG
_FRAME_ANYWHERE = re.compile(rb"\xff[" + bytes(sorted(_FRAMES)) + rb"](?=(.{7}))", re.DOTALL)
_SCAN = b"\xff\xda"  # the marker SOS; compressed data does not hold it
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_segment = struct.Struct(">BBH").unpack_from
_frame = struct.Struct(">HH").unpack_from
_PNG_EXPANDING = frozenset((b"zTXt", b"iTXt", b"iCCP"))
_png_part = struct.Struct(">I4s").unpack_from


def is_image_name(name: str) -> bool:
    """Whether a file has the ending of an image.

    >>> is_image_name("0001.JPG")
    True
    """
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES  # eight times as fast as Path


def image_suffix(encoded: bytes) -> str | None:
    """File ending of an encoded image, from its first bytes; None if it is not an image.

    >>> image_suffix(bytes.fromhex("ffd8ffe0"))
    '.jpg'
    """
    if encoded.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if encoded.startswith(b"BM"):
        return ".bmp"
    return ".webp" if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP" else None


def read_image_file(path: str) -> bytes:
    """Read a small file in half the time of a file object; that matters for millions of files."""
    descriptor = open_descriptor(path)
    try:
        content = os.read(descriptor, READ_BYTES)
        while len(content) % READ_BYTES == 0 and (more := os.read(descriptor, READ_BYTES)):
            content += more
        return content
    finally:
        os.close(descriptor)


def decode(encoded: bytes, what: str | Callable[[], str], size: int | None = None) -> ImageArray:
    """Decode a JPEG, PNG, BMP or WebP image to RGB.

    Args:
        encoded: the bytes of the file.
        what: name of the image for an error, such as "train.rec, key 17", or a function that returns the name. A
            function saves the time to build millions of names that nobody reads.
        size: height and width of the result; an image of another size is resized (bilinear).

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        DataError: the bytes are not a readable image of these formats, are cut short, or claim more than `MOST_PIXELS`
            pixels, or `MOST_SCANNED` in all scans; it says which.
        ConfigError: `encoded` is something else than bytes, such as what a faulty data format returns.
    """
    if not issubclass(type(encoded), bytes | bytearray | memoryview):
        place = what() if callable(what) else what
        raise ConfigError(f"{place}: {type(encoded).__name__} instead of an image's bytes; correct the data format")
    claimed = claimed_pixels(encoded)
    content: bytes | None = encoded if claimed is not None and claimed <= MOST_PIXELS else None
    if content is not None and claimed is not None and content[:4] == b"\x89PNG":
        content = _png_of_pixels(content, claimed)
    elif content is not None and claimed is not None and _scanned_pixels(content, claimed) > MOST_SCANNED:
        content = None
    try:
        image = None if content is None else cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        place = what() if callable(what) else what
        fault = why_unreadable(encoded)
        reason, advice = (
            (fault.reason, fault.advice) if fault else (f"no readable image ({len(encoded)} bytes)", ADVICE)
        )
        raise DataError(f"{place}: {reason}; {advice}")
    if size is not None and image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(image, dtype=np.uint8)


def why_unreadable(encoded: bytes) -> "Fault | None":
    """Why `decode` refuses an image: too many pixels, empty, cut short, a format that is not read; None for others."""
    from facebones.data.unreadable import find_fault  # most images are sound

    return find_fault(bytes(encoded), claimed_pixels(encoded), MOST_PIXELS, image_size(encoded))


def claimed_pixels(encoded: bytes) -> int | None:
    """Most pixels that a decoder can find in the header of an image; None for other formats and broken headers.

    Decoders disagree about JPEGs with stray bytes between their segments. For those, the largest of all frames that
    the bytes could hold counts.
    """
    size = image_size(encoded)
    if size is not None:
        return size[0] * size[1]
    if encoded[:3] != b"\xff\xd8\xff":
        return None
    frames = [_frame(found[1], 3) for found in _FRAME_ANYWHERE.finditer(encoded)]
    return max((height * width for height, width in frames), default=None)


def image_size(encoded: bytes) -> tuple[int, int] | None:
    r"""Height and width in the header of a JPEG, PNG, BMP or WebP image; None for other formats and broken headers.

    >>> image_size(b"BM" + bytes(12) + (40).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"\xfe\xff\xff\xff")
    (2, 3)
    """
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            return _jpeg_size(encoded)
        if encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", encoded, 16)
            return height, width
        if encoded[:2] == b"BM":
            header = int.from_bytes(encoded[14:18], "little")
            width, height = struct.unpack_from("<HH" if header == 12 else "<ii", encoded, 18)
            return abs(height), abs(width)
        if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
            return _webp_size(encoded)
    except struct.error:  # cut short
        pass
    return None


def aspect_note(what: str, sizes: Iterable[tuple[int, int] | None], *, sampled: bool = False) -> str | None:
    """A note that counts the images that are not square, as the input of the networks is; None if there are none.

    Args:
        what: name of the images.
        sizes: height and width of each image, None where unknown.
        sampled: whether these are a sample of the images.

    >>> aspect_note("lfw", [(112, 112), (250, 250), (112, 96)])
    "lfw: 1 of 3 images is not square (112x96: 1); it is stretched to the network's input, so align or crop it"
    """
    known = [size for size in sizes if size is not None]
    others = Counter(size for size in known if size[0] != size[1])
    if not others:
        return None
    listed = [f"{height}x{width}: {count}" for (height, width), count in others.most_common(3)]
    more = f" and {len(others) - 3} more sizes" if len(others) > 3 else ""
    of = f"{len(known)} {'sampled ' if sampled else ''}images"
    count = f"{others.total()} of {of} {'is' if others.total() == 1 else 'are'} not square ({', '.join(listed)}{more})"
    they, them = ("it is", "it") if others.total() == 1 else ("they are", "them")
    return f"{what}: {count}; {they} stretched to the network's input, so align or crop {them}"


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Size in the first frame; None where stray bytes could lead another reader to another frame."""
    place = 2
    while True:
        begin, marker, length = _segment(encoded, place)
        if begin != 0xFF or marker in _WITHOUT_LENGTH:
            return None
        if marker in _FRAMES:
            return _frame(encoded, place + 5)
        place += 1 if marker == 0xFF else 2 + length


def _png_of_pixels(encoded: bytes, claimed: int) -> bytes | None:
    """A PNG without compressed texts and colour profile, which OpenCV expands but the pixels do not depend on.

    None where OpenCV would do far more than the header says: a part that claims to be longer than the file (OpenCV
    allocates what it claims, up to 4 GB), or far more compressed bytes than the pixels can need.
    """
    kept, start, place, compressed = [], 0, 8, 0
    while place + 12 <= len(encoded):
        length, kind = _png_part(encoded, place)
        end = place + 12 + length
        if end > len(encoded):
            return None
        if kind in _PNG_EXPANDING:
            kept.append(encoded[start:place])
            start = end
        compressed += length if kind == b"IDAT" else 0
        if kind == b"IEND":
            if compressed > 16 * claimed + 2**16:  # a pixel has at most 8 bytes, and each row some more
                return None
            return b"".join((*kept, encoded[start:end])) if kept else encoded
        place = end
    return None


def _scanned_pixels(encoded: bytes, claimed: int) -> int:
    """Most pixels in all scans of a JPEG, each of ten bytes or more; they are counted where it matters."""
    most = claimed * (len(encoded) // 10)
    if most <= MOST_SCANNED or encoded[:3] != b"\xff\xd8\xff":
        return claimed
    return claimed * bytes(encoded).count(_SCAN)


def _webp_size(encoded: bytes) -> tuple[int, int] | None:
    kind = encoded[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        return height % 2**14, width % 2**14
    if kind == b"VP8L":
        (sizes,) = struct.unpack_from("<I", encoded, 21)
        return (sizes >> 14) % 2**14 + 1, sizes % 2**14 + 1
    if kind == b"VP8X" and len(encoded) >= 30:
        return int.from_bytes(encoded[27:30], "little") + 1, int.from_bytes(encoded[24:27], "little") + 1
    return None


def decoded_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width of decoded pixels, by the shape of their array; None for an array of another kind.

    >>> decoded_shape((112, 96, 3)), decoded_shape((3, 112, 96)), decoded_shape((112, 96)), decoded_shape((4000, 1))
    ((112, 96), (112, 96), (112, 96), None)
    """
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        height, width = shape[:2]
    elif len(shape) == 3 and shape[0] in (1, 3):
        height, width = shape[1:]
    elif len(shape) == 2:
        height, width = shape
    else:
        return None
    return (height, width) if min(height, width) > 1 else None


def has_colours(shape: tuple[int, ...]) -> bool:
    """Whether decoded pixels of this shape have channels of colour, rather than being grey.

    >>> has_colours((112, 96, 3)), has_colours((3, 112, 96)), has_colours((112, 96, 1)), has_colours((112, 96))
    (True, True, False, False)
    """
    return len(shape) == 3 and (shape[2] if shape[2] in (1, 3, 4) else shape[0]) > 1


def uncompressed(pixels: ImageArray, order: str) -> bytes:
    """Encode decoded pixels as a BMP image, without loss.

    Args:
        pixels: (H, W, 1 or 3 or 4), (1 or 3, H, W) or (H, W) uint8; a fourth channel is dropped.
        order: of three channels, "bgr" or "rgb".

    Raises:
        ValueError: another shape.

    >>> image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    >>> bool((decode(uncompressed(image, "rgb"), "an image") == image).all())
    True
    """
    if (size := decoded_shape(pixels.shape)) is None:
        raise ValueError(f"pixels of shape {pixels.shape}; give (H, W, 3), (3, H, W) or (H, W)")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif pixels.shape[:2] != size:
        pixels = pixels.transpose(1, 2, 0)
    height, width = size
    rows = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)  # BMP: rows padded to a multiple of 4 bytes
    channels = pixels[:, :, :3] if order == "bgr" else pixels[:, :, :3][:, :, ::-1]
    rows[:, : 3 * width] = np.broadcast_to(channels, (height, width, 3)).reshape(height, 3 * width)
    size_of_all = 54 + rows.nbytes
    head = struct.pack("<2sIIIIiiHHIIiiII", b"BM", size_of_all, 0, 54, 40, width, -height, 1, 24, 0, 0, 0, 0, 0, 0)
    return head + rows.tobytes()


class _ThreadLimit:
    """How many blocks keep OpenCV to one thread now, and the number of threads to restore."""

    lock = threading.Lock()
    blocks = 0
    before = 0


@contextmanager
def single_threaded_opencv() -> Iterator[None]:
    """Run OpenCV without threads of its own inside the block: the threads of the caller share the work already.

    The setting belongs to the process. Blocks may overlap; the last one to end restores what the first one found.

    >>> before = cv2.getNumThreads()
    >>> with single_threaded_opencv():
    ...     cv2.getNumThreads()
    1
    >>> cv2.getNumThreads() == before
    True
    """
    with _ThreadLimit.lock:
        if not _ThreadLimit.blocks:
            _ThreadLimit.before = cv2.getNumThreads()
            cv2.setNumThreads(0)
        _ThreadLimit.blocks += 1
    try:
        yield
    finally:
        with _ThreadLimit.lock:
            _ThreadLimit.blocks -= 1
            if not _ThreadLimit.blocks:
                cv2.setNumThreads(_ThreadLimit.before)
