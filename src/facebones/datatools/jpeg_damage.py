"""Damage that a JPEG decoder passes over: what libjpeg says of it on stderr, and a file that has lost its end.

libjpeg fills in what it cannot read, mostly by grey, and warns; OpenCV lets it write to file descriptor 2 of the
process, where nobody can tell of which image it speaks.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from typing import IO, Any

# How libjpeg's warnings of damage begin (jerror.h); it has others, of things that do no harm.
WARNINGS = (b"Corrupt JPEG data", b"Premature end of JPEG file", b"Inconsistent progression sequence")
START, START_OF_SCAN, END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"


def lacks_end(encoded: bytes) -> bool:
    """Tell whether a JPEG has lost its end, so that its last rows are perhaps made up; others never have.

    What stands behind the end is not looked at, for cameras and tools append to it. A thumbnail, which has an end of
    its own, stands before the scan.
    """
    if not encoded.startswith(START) or encoded.endswith(END):
        return False
    return encoded.rfind(END) < encoded.rfind(START_OF_SCAN)


class DecoderWarnings:
    """What decoders have written since `decoder_warnings` began."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = file.fileno()

    def size(self) -> int:
        """How many bytes: where it grows while an image is decoded, that image may be the reason."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)  # the place is shared with descriptor 2

    def of_damage(self, start: int) -> str:
        """Give libjpeg's warnings of damage from a byte on."""
        return "; ".join(line.decode("ascii", "replace") for line in self._lines(start) if line.startswith(WARNINGS))

    def others(self) -> bytes:
        """Everything that is no warning of damage."""
        return b"".join(line + b"\n" for line in self._lines(0) if not line.startswith(WARNINGS))

    def _lines(self, start: int) -> list[bytes]:
        return os.pread(self._descriptor, self.size() - start, start).splitlines()


@contextmanager
def decoder_warnings() -> Iterator[DecoderWarnings]:
    """Keep libjpeg's warnings of damage from stderr; anything else comes there, what Python says at once.

    File descriptor 2 is that of the whole process: while this lasts, other threads that decode are listened to as well.
    """
    sys.stderr.flush()
    style: Any = {"buffering": 1, "encoding": sys.stderr.encoding, "errors": "backslashreplace"}  # as Python's own
    with tempfile.TemporaryFile() as file, os.fdopen(os.dup(2), "w", **style) as stderr:
        warnings = DecoderWarnings(file)
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stderr(stderr) if _is_descriptor_2(sys.stderr) else nullcontext():
                yield warnings
        finally:
            os.dup2(stderr.fileno(), 2)
            with suppress(OSError):
                os.write(2, warnings.others())


def _is_descriptor_2(stream: IO[str]) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, AttributeError):  # a notebook's, or a test's
        return False
