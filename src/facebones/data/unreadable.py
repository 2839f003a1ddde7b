"""Why an image cannot be read: too many pixels, empty, cut short, or a format that is not read."""

import re
import struct
from typing import NamedTuple

START_OF_IMAGE, START_OF_SCAN, END_OF_IMAGE = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n"
MOST_OF_CHUNK = 2**30  # bytes: a PNG that claims a longer one is damaged
NOT_READ = {
    "HEIC": re.compile(rb".{4}ftyp(hei|hev|mif|msf)", re.DOTALL),
    "AVIF": re.compile(rb".{4}ftypavi", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
    "PDF": re.compile(rb"%PDF-"),
}
AGAIN = "copy it again from its source, or remove it"


class Fault(NamedTuple):
    """What is wrong with an image, and what to do about it."""

    reason: str
    advice: str


def find_fault(encoded: bytes, claimed: int | None, most_pixels: int, size: tuple[int, int] | None) -> Fault | None:
    r"""Say why an image that cannot be decoded cannot.

    Args:
        encoded: the bytes of the file.
        claimed: pixels by its header; None if unknown.
        most_pixels: that are decoded.
        size: height and width by its header; None if unknown.

    Returns:
        None if it is nothing of what is known here.

    >>> find_fault(b"", None, 100, None).reason
    'an empty file, 0 bytes'
    >>> find_fault(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 900, 100, (30, 30)).reason
    '900 pixels (30x30), and at most 100 are read'
    >>> find_fault(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 90, 100, (9, 10)).reason
    'cut short at byte 16'
    """
    if not encoded:
        return Fault("an empty file, 0 bytes", AGAIN)
    if claimed is not None and claimed > most_pixels and not _is_text(encoded):
        sides = f" ({size[1]}x{size[0]})" if size is not None else ""
        return Fault(f"{claimed:,} pixels{sides}, and at most {most_pixels:,} are read", "make it smaller")
    if is_cut_short(encoded):
        return Fault(f"cut short at byte {len(encoded)}", AGAIN)
    for name, start in NOT_READ.items():
        if start.match(encoded):
            return Fault(f"{name}, which is not read", "convert it to JPEG or PNG")
    return None


def is_cut_short(encoded: bytes) -> bool:
    r"""Whether an image lacks its end, by what it says of itself.

    >>> is_cut_short(b"RIFF\xff\0\0\0WEBPVP8 "), is_cut_short(b"no image")
    (True, False)
    """
    if encoded.startswith(START_OF_IMAGE):
        return lacks_end(encoded) or _ends_in_jpeg_header(encoded)
    if encoded.startswith(PNG):
        return _ends_in_png(encoded)
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return int.from_bytes(encoded[4:8], "little") + 8 > len(encoded)
    if encoded.startswith(b"BM") and not _is_text(encoded):
        return len(encoded) < max(int.from_bytes(encoded[2:6], "little"), 26)
    return False


def lacks_end(encoded: bytes) -> bool:
    """Whether a JPEG has lost its end, so that its last rows may be invented; False for other formats.

    Bytes after the end are ignored, because cameras and tools append some. A thumbnail has an end of its own, before
    the scan.
    """
    if not encoded.startswith(START_OF_IMAGE) or encoded.endswith(END_OF_IMAGE):
        return False
    return encoded.rfind(END_OF_IMAGE) < encoded.rfind(START_OF_SCAN)


def _is_text(encoded: bytes) -> bool:
    """Whether it is text that begins as a BMP does, whose four reserved bytes are 0."""
    return encoded.startswith(b"BM") and any(encoded[6:10])


def _ends_in_jpeg_header(encoded: bytes) -> bool:
    """Whether a segment before the first scan reaches beyond the end."""
    place = 2
    while place + 4 <= len(encoded):
        begin, marker, length = struct.unpack_from(">BBH", encoded, place)
        if begin != 0xFF or not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= START_OF_SCAN[1]:
            return False  # damaged, at its end, or at the first scan
        place += 2 + length
    return True


def _ends_in_png(encoded: bytes) -> bool:
    """Whether a chunk reaches beyond the end, or the last one is missing."""
    place = len(PNG)
    while place + 8 <= len(encoded):
        length = int.from_bytes(encoded[place : place + 4])
        kind = encoded[place + 4 : place + 8]
        if not kind.isalpha() or length > MOST_OF_CHUNK:
            return False
        place += 12 + length
        if kind == b"IEND":
            return place > len(encoded)
    return True
