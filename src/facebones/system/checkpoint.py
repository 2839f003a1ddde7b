"""Checkpoints: one dictionary of tensors, numbers and text with everything that training needs to go on.

Written atomically, without a copy in memory; mapped into memory, so that what is read takes none before it is changed;
by torch's weights-only loader, so that a stranger's file cannot run code.
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

# What torch's reader was seen to raise on damaged files.
BROKEN_FILE = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, struct.error),
)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state atomically.

    Raises:
        RunError, ConfigError: the disk is full or the place cannot be written; an older checkpoint there is kept.
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
    """Read a `.pt` or `.pth` file's dictionary onto the CPU, weights only.

    Raises:
        CheckpointError: missing, cut short, no checkpoint, or holding anything but tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            is_archive = zipfile.is_zipfile(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's doubts about odd pickles: the error says it all
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
    """A file that remembers why it could not be written: torch's writer tells only that it could not."""

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
