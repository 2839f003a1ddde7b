"""Checkpoints: one dictionary of tensors, numbers and text, with the whole state of a training.

Files are written atomically and without a copy in memory. They are read with torch's weights-only loader, so a file
cannot run code, and mapped into memory, so tensors take memory only once they are changed.
"""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from facebones.errors import CheckpointError
from facebones.system.files import atomic_write

# Errors of torch's reader on damaged files, collected by experiment.
BROKEN_FILE = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, struct.error),
)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state atomically.

    Raises:
        RunError, ConfigError: the disk is full, or the place cannot be written. An older checkpoint there stays.
    """
    with atomic_write(path) as file:
        keeper = _ReasonKeeper(file)
        try:
            torch.save(dict(state), cast(IO[bytes], keeper))
        except RuntimeError:
            if keeper.reason is None:
                raise
            raise keeper.reason from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read the dictionary in a `.pt` or `.pth` file onto the CPU.

    Raises:
        CheckpointError: the file is missing, cut short, not a checkpoint, or holds more than tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            is_archive = zipfile.is_zipfile(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # torch doubts odd pickles; the error says enough
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, or is no checkpoint; refused, nothing in it was run"
        ) from error
    except BROKEN_FILE as error:
        raise CheckpointError(f"{path}: no checkpoint, or cut short; restore it from where it came") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    return content


class _ReasonKeeper:
    """A file that keeps the reason of a failed write: torch's writer reports only that it failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.reason: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.reason = error
            raise

    def flush(self) -> None:
        self.file.flush()
