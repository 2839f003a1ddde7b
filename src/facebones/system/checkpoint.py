"""Checkpoints: one dictionary of tensors, numbers and text, with the whole state of a training.

Files are written atomically and without a copy in memory. They are read with torch's weights-only loader, so a file
cannot run code, and mapped into memory, so tensors take memory only once they are changed.
"""

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from facebones.errors import CheckpointError
from facebones.system.checkpoint_bounds import OutOfBounds, check_content, check_instructions, check_tree
from facebones.system.files import atomic_write, stand_in
from facebones.system.regular_files import open_regular

# Errors of torch's reader on damaged files, collected by experiment.
BROKEN_FILE = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, struct.error),
)
BROKEN_ARCHIVE = (zipfile.BadZipFile, NotImplementedError, zlib.error)
UNKNOWN_CLASS = re.compile(r"GLOBAL ([\w.]+) (?:was not|whose module)")  # in torch's message
MODULE_ATTRIBUTES = (b"_parameters", b"_modules")  # of every pickled nn.Module
NETWORK_KEYS = ("state_dict", "model_state_dict", "net", "network", "model")
ARRAY = re.compile(r"numpy\.(_core|core)\.(multiarray|numeric)\._(reconstruct|frombuffer)")
LARGEST_START = 2**22  # bytes


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
        CheckpointError: as `load_content`, or the file holds no dictionary.
    """
    content = load_content(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    try:
        check_tree(content, path.stat().st_size)
    except OutOfBounds as error:
        raise CheckpointError(f"{path}: {error}; restore it from its source") from error
    return content


def load_content(path: Path) -> Any:
    """Read what a `.pt` or `.pth` file holds onto the CPU.

    Raises:
        CheckpointError: the file is missing, cut short, not a checkpoint, holds more than tensors and plain values, or
            builds far more than it has bytes.
    """
    try:
        if instead := stand_in(path):
            raise CheckpointError(f"{path}: {instead}")
        with open_regular(path) as file:
            is_archive = zipfile.is_zipfile(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: no checkpoint, or cut short; restore it from where it came") from error
    try:
        check_instructions(path, is_archive=is_archive)
        with warnings.catch_warnings(action="ignore"):  # torch doubts odd pickles; the error says enough
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
        check_content(content, path.stat().st_size)
    except OutOfBounds as error:
        raise CheckpointError(f"{path}: {error}; refused, nothing in it was run; restore it from its source") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_what_it_is(path, str(error))}") from error
    except (*BROKEN_FILE, *BROKEN_ARCHIVE) as error:
        if is_archive and _is_torchscript(path):
            raise CheckpointError(f"{path}: {_what_it_is(path, '')}") from error
        raise CheckpointError(f"{path}: no checkpoint, or cut short; restore it from where it came") from error
    return content


def _what_it_is(path: Path, error: str) -> str:
    """Why torch's weights-only loader refused a file, and the Python that saves its weights; nothing in it is run.

    Args:
        path: the file.
        error: torch's message.
    """
    if _is_torchscript(path):
        line = f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'weights.pth')"
        return f"is a TorchScript archive, a program with its weights; if you trust it, save the weights: {line}"
    found = UNKNOWN_CLASS.search(error)
    if found is None:
        return "holds more than tensors and plain values, or is no checkpoint; refused, nothing in it was run"
    start = _start_of_pickle(path)
    load = f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)"
    if is_module := all(name in start for name in MODULE_ATTRIBUTES):
        kind = "is a pickled module" if not _is_dictionary(start) else "holds a pickled module"
    else:
        kind = "holds more than tensors and plain values"
    key = next((key for key in NETWORK_KEYS if _pickled(key) in start), None)
    if _is_dictionary(start) and key is not None:
        load += f"['{key}']"
    if ARRAY.fullmatch(found[1]) and not is_module:
        kind, weights = "holds NumPy arrays", f"{{k: torch.as_tensor(v) for k, v in {load}.items()}}"
    elif not _is_dictionary(start) or key is not None:
        weights = f"{load}.state_dict()" if is_module else load
    elif is_module:
        weights = f"{{k: v.state_dict() for k, v in {load}.items() if hasattr(v, 'state_dict')}}"
    else:
        weights = f"{{k: v for k, v in {load}.items() if isinstance(v, (torch.Tensor, dict))}}"
    line = f"torch.save({weights}, 'weights.pth')"
    return (
        f"{kind} ({found[1]:.80}), which runs code when it is loaded; refused, nothing in it was run; if you trust it,"
        f" save the weights where that class can be imported: {line}"
    )


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):  # no archive, or a damaged one
        return False


def _start_of_pickle(path: Path) -> bytes:
    """The first bytes of the pickle in a file; empty if there is none."""
    try:
        if not zipfile.is_zipfile(path):
            with open_regular(path) as file:
                return file.read(LARGEST_START)
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as file:
                return file.read(LARGEST_START)
    except (OSError, ValueError, StopIteration, NotImplementedError, RuntimeError, zlib.error, zipfile.BadZipFile):
        return b""


def _pickled(text: str) -> bytes:
    """A string as pickles of protocol 2 hold it."""
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _is_dictionary(start: bytes) -> bool:
    """Whether a pickle (protocol 2 and later) begins with an empty dictionary."""
    return start[:1] == b"\x80" and start[2:3] == b"}"


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
