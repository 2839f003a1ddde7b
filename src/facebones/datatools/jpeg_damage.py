"""Find JPEG damage that decoders tolerate: libjpeg's warnings on stderr.

libjpeg fills what it cannot read, mostly with grey, and warns. OpenCV lets it write the warning to file descriptor 2 of
the process, without the name of the image.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from typing import IO, Any

# Beginnings of libjpeg's warnings of damage (jerror.h); its other warnings are harmless.
WARNINGS = (b"Corrupt JPEG data", b"Premature end of JPEG file", b"Inconsistent progression sequence")
NOISE = (b"libpng error: ", b"libpng warning: ")  # a PNG that it cannot read is unreadable: that is reported


class DecoderWarnings:
    """Output of decoders since `decoder_warnings` began."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor = file.fileno()

    def size(self) -> int:
        """Number of bytes; if it grows while an image is decoded, that image may be the reason."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)  # shares its position with descriptor 2

    def of_damage(self, start: int) -> str:
        """Libjpeg's warnings of damage from a byte on."""
        return "; ".join(line.decode("ascii", "replace") for line in self._lines(start) if line.startswith(WARNINGS))

    def count_of_damage(self) -> int:
        """Number of libjpeg's warnings of damage."""
        return sum(line.startswith(WARNINGS) for line in self._lines(0))

    def others(self) -> bytes:
        """All other output but that of libpng."""
        return b"".join(line + b"\n" for line in self._lines(0) if not line.startswith(WARNINGS + NOISE))

    def _lines(self, start: int) -> list[bytes]:
        return os.pread(self._descriptor, self.size() - start, start).splitlines()


@contextmanager
def decoder_warnings() -> Iterator[DecoderWarnings]:
    """Collect libjpeg's warnings of damage; other output still reaches stderr, that of Python at once.

    File descriptor 2 belongs to the whole process, so the output of all threads that decode is collected.
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
    except (OSError, AttributeError):  # in a notebook or a test
        return False
