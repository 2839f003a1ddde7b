"""How large an image says that it is, read from its first bytes: what decoding it would fill is known before."""

import struct

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # a JPEG's markers SOF0 to SOF15
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_segment = struct.Struct(">BBH").unpack_from
_frame = struct.Struct(">HH").unpack_from


def image_size(encoded: bytes) -> tuple[int, int] | None:
    r"""Height and width that a JPEG, PNG, BMP or WebP image claims; None of all else, and where the header is broken.

    >>> image_size(b"BM" + bytes(12) + (40).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"\xfe\xff\xff\xff")
    (2, 3)
    """
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            return _of_jpeg(encoded)
        if encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", encoded, 16)
            return height, width
        if encoded[:2] == b"BM":
            header = int.from_bytes(encoded[14:18], "little")
            width, height = struct.unpack_from("<HH" if header == 12 else "<ii", encoded, 18)
            return abs(height), abs(width)
        if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
            return _of_webp(encoded)
    except struct.error:  # cut short
        pass
    return None


def _of_jpeg(encoded: bytes) -> tuple[int, int] | None:
    """What the frame says, behind segments of given lengths; where another reader might find another one, None."""
    place = 2
    while True:
        begin, marker, length = _segment(encoded, place)
        if begin != 0xFF or marker in _WITHOUT_LENGTH:
            return None
        if marker in _FRAMES:
            return _frame(encoded, place + 5)
        place += 1 if marker == 0xFF else 2 + length


def _of_webp(encoded: bytes) -> tuple[int, int] | None:
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
