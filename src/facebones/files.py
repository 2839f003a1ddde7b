"""Writing files so that a reader sees the old content or the new, never a half."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from facebones.errors import ConfigError, RunError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends without an error.

    The content goes to a temporary file in the same folder, is forced to disk and renamed. On any error
    the temporary file is removed and what stood at `path` stays. Parent folders are made, and removed on an error.

    Raises:
        RunError: the disk is full, or the place cannot be written.
    """
    path = Path(path)
    temporary: str | None = None
    new_folders = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{path}: cannot be written: {reason}; free space or choose another place") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        for folder in new_folders:  # the innermost first; one that holds something stays
            with suppress(OSError):
                folder.rmdir()


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold; nothing is left there.

    Raises:
        ConfigError: it is a folder, or no file can be made in its folder.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a file")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose another place") from error


def map_array(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Map the array of a `.npy` file, whatever a stranger may have put into its header; nothing is unpickled.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or cut short.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, SyntaxError, OverflowError, MemoryError, RecursionError, TokenError) as error:
        raise ValueError("no .npy file") from error
    if not isinstance(found, np.ndarray):
        raise ValueError("an archive of several arrays")
    return found


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, atomically; NaN is refused because JSON has no such number."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        # A path need not be Unicode; Python holds such a byte as a surrogate, which JSON knows as an escape.
        file.write(text.encode(errors="backslashreplace") + b"\n")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; some file systems cannot sync a folder, which loses nothing else."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
