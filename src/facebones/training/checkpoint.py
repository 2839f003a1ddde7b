"""Checkpoints: one dictionary of tensors, numbers and text with everything that training needs to go on.

Written atomically; read with torch's weights-only loader, so that a stranger's file cannot run code.
"""

import io
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from facebones.errors import CheckpointError
from facebones.files import atomic_write

# What torch's reader was seen to raise on damaged files.
BROKEN_FILE = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, struct.error),
)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state atomically.

    Raises:
        RunError: the disk is full or the place cannot be written; an older checkpoint there is kept.
    """
    buffer = io.BytesIO()  # torch's own writer hides the reason of a failed write
    torch.save(dict(state), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.pt` or `.pth` file's dictionary onto the CPU, weights only.

    Raises:
        CheckpointError: missing, cut short, no checkpoint, or holding anything but tensors and plain values.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's doubts about odd pickles: the error says it all
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, or is no checkpoint; refused, nothing in it was run"
        ) from error
    except BROKEN_FILE as error:
        raise CheckpointError(f"{path}: no checkpoint, or cut short; restore it from where it came") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    return content
