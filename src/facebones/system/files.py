"""Atomic writes, checks that a place can be written, and safe reading of NumPy files from untrusted sources."""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from facebones.errors import ConfigError, FaceBonesError, RunError
from facebones.system.regular_files import open_regular

BAD_PLACE = {
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
}
MOST_INFLATION = 20  # times: measurements hardly compress
# What is found instead of a large file that was not downloaded, and its first bytes.
STAND_INS = {
    "is a Git LFS pointer, not the file itself; fetch the file by `git lfs pull`": (b"version https://git-lfs",),
    "is a git-annex pointer, not the file itself; fetch the file by `git annex get`": (b"/annex/objects/",),
    "is a web page, saved in place of the file; download the file itself": (b"<!doctype", b"<html", b"<?xml", b"<head"),
}
# What NumPy raises on a damaged header, besides ValueError.
_BAD_HEADER = (EOFError, SyntaxError, OverflowError, MemoryError, RecursionError, TokenError, TypeError, IndexError)
_umask_lock = threading.Lock()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends without an error.

    A reader sees the old content or the new, never a part. The content goes to a temporary file in the same folder,
    which is synced to disk and renamed. On an error, the temporary file is removed and an existing `path` is unchanged.
    Parent folders are created, and removed again on an error. What a killed process left of `path` is removed.

    Raises:
        RunError: the disk is full or fails.
        ConfigError: the place cannot be written.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "new" / "a.txt") as file:
    ...     file.write(b"all or nothing")
    14
    >>> (folder / "new" / "a.txt").read_bytes()
    b'all or nothing'
    """
    path = Path(path)
    temporary: str | None = None
    with _parents_of(path):
        try:
            descriptor, temporary = _new_temporary(path)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                os.fsync(file.fileno())
                Path(temporary).replace(path)  # still locked: nobody takes it for a leftover
            temporary = None
            _sync_folder(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            if temporary is not None:
                with suppress(OSError):  # on a disk that has become read-only it stays
                    Path(temporary).unlink()


@contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new hidden folder beside `path`, which the block may rename; else it is removed at the end.

    What a killed process left of `path` is removed.

    Raises:
        RunError, ConfigError: it cannot be made.
    """
    path = Path(path)
    with _parents_of(path):
        try:
            descriptor, folder = _new_temporary(path, folder=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            Path(folder).chmod(0o777 & ~_umask())
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def publish_folder(made: Path, place: Path) -> None:
    """Rename a complete folder to its place, where an empty folder may be.

    Raises:
        RunError, ConfigError: it cannot be renamed.
    """
    try:
        if place.exists():
            place.rmdir()
        made.rename(place)
    except OSError as error:
        raise cannot_write(place, error) from error


@contextmanager
def _parents_of(path: Path) -> Iterator[None]:
    """Make the folders above `path`; those that were made and are empty at the end are removed."""
    new_folders = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        yield
    finally:
        for folder in new_folders:  # the innermost first; one that is not empty stays
            with suppress(OSError):
                folder.rmdir()


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders of `path` that killed processes have left.

    Those in use are locked by the process that made them, and stay; so do all where files cannot be locked.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    with suppress(OSError):
        for name in [name for name in os.listdir(path.parent) if pattern.fullmatch(name)]:  # noqa: PTH208
            _remove_unused(path.parent / name)


def _remove_unused(leftover: Path) -> None:
    is_folder = leftover.is_dir() and not leftover.is_symlink()
    with suppress(OSError):
        descriptor = os.open(leftover, os.O_NOFOLLOW | (os.O_RDONLY if is_folder else os.O_RDWR))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover) if is_folder else leftover.unlink()
        finally:
            os.close(descriptor)


def _new_temporary(path: Path, *, folder: bool = False) -> tuple[int, str]:
    """The descriptor and name of a new temporary file or folder beside `path`, which is locked while it is open."""
    remove_leftovers(path)
    place: dict[str, Any] = {"dir": path.parent, "prefix": f".{path.name}.", "suffix": ".tmp"}
    while True:
        if folder:
            name = tempfile.mkdtemp(**place)
            try:
                descriptor = os.open(name, os.O_RDONLY)
            except FileNotFoundError:  # another process took it for a leftover
                continue
        else:
            descriptor, name = tempfile.mkstemp(**place)
        if _is_ours(descriptor, name):
            return descriptor, name
        os.close(descriptor)


def _is_ours(descriptor: int, name: str | Path) -> bool:
    """Lock a new file or folder for as long as it is open; False if another process took it for a leftover before."""
    with suppress(OSError):  # no locks here: nobody removes it
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(name))  # noqa: PTH116
    return False


def cannot_write(path: str | os.PathLike[str], error: OSError) -> FaceBonesError:
    """The error for a failed write: ConfigError for a bad place, RunError for a full or failing disk."""
    reason = f"{path}: cannot be written: {error.strerror or error}"
    if error.errno in BAD_PLACE:
        return ConfigError(f"{reason}; choose another place")
    return RunError(f"{reason}; free space or choose another place")


def check_writable(path: Path) -> None:
    """Check before long work that its result can be written; no file is left behind.

    Raises:
        ConfigError: the path is a folder, or no file can be created in its folder.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a file")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose another place") from error


def check_not_input(output: Path, inputs: Iterable[object]) -> None:
    """Check before any work that a result does not replace a file that is read, also by a link or another spelling.

    Args:
        output: the file to write.
        inputs: paths that the command reads; what is no path, such as an image in memory, is none of them.

    Raises:
        ConfigError: it is one of them.
    """
    for one in inputs:
        with suppress(OSError, ValueError):  # one of them is not there, or can never be
            if isinstance(one, str | os.PathLike) and output.samefile(one):
                raise ConfigError(f"{output}: is the input {one}, which would be lost; choose another place")


def check_output(output: Path, files: Iterable[str]) -> None:
    """Check before long work that these files can be written into a folder; no file is left behind.

    Raises:
        ConfigError: one of them cannot be written.
    """
    for name in files:
        check_writable(output / name)


def stand_in(path: str | os.PathLike[str]) -> str | None:
    """What stands in the place of a large file that was not fetched: a pointer to it, or a web page; else None.

    Raises:
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for what, beginnings in STAND_INS.items() if start.startswith(beginnings)), None)


def check_written(paths: Iterable[Path]) -> None:
    """Check at the end of a command that what it has written is there: a later file makes a removed folder again.

    Raises:
        RunError: a file is missing.
    """
    for path in paths:
        if not path.is_file():
            raise RunError(f"{path}: was removed while files were written beside it; run the same command again")


def is_file(path: str | os.PathLike[str]) -> bool:
    r"""Whether there is a file; False also for a name from elsewhere that no file can have, such as one too long.

    >>> is_file("a" * 5000), is_file("a\0b")
    (False, False)
    """
    return os.path.isfile(path)  # noqa: PTH113 (`Path.is_file` raises OSError for such names)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder; False also for a name that none can have, as `is_file`."""
    return os.path.isdir(path)  # noqa: PTH112


def read_at_most(file: IO[bytes], most: int) -> bytes:
    """Read up to `most` bytes of a regular file; memory is set aside for its size, not for all of them."""
    return file.read(min(most, os.fstat(file.fileno()).st_size + 1))


def map_array(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Map the array of a `.npy` file from an untrusted source into memory, without unpickling.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a `.npy` file, or is cut short.
    """
    try:
        with open_regular(path) as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[version](file)
        if not dtype.itemsize or any(size < 0 for size in shape):  # NumPy divides by them, which ends the process
            raise ValueError("elements of no bytes, or a shape below 0")
        return np.lib.format.open_memmap(path, mode="r")
    except (*_BAD_HEADER, KeyError) as error:
        raise ValueError("no .npy file") from error


def read_npz(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read arrays of a `.npz` file from an untrusted source, without unpickling.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a `.npz` file, lacks an array, is damaged, or inflates to more than 20 times its size.
    """
    try:
        with open_regular(path) as file, ZipFile(file) as archive:
            if lacking := [name for name in names if f"{name}.npy" not in archive.NameToInfo]:
                raise ValueError(f"lacks the array '{lacking[0]}'")
            members = [archive.getinfo(f"{name}.npy") for name in names]
            if any(member.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for member in members):
                raise ValueError("compressed otherwise than numpy does")
            # No member yields more bytes than the directory says.
            if sum(member.file_size for member in members) > MOST_INFLATION * os.fstat(file.fileno()).st_size:
                raise ValueError(f"inflates to more than {MOST_INFLATION} times its size")
            found = {}
            for name, member in zip(names, members, strict=True):
                with archive.open(member) as content:
                    found[name] = np.lib.format.read_array(content, allow_pickle=False)
            return found
    except (*_BAD_HEADER, BadZipFile, zlib.error, KeyError, RuntimeError) as error:  # RuntimeError: it is encrypted
        raise ValueError("no .npz file, or a damaged one") from error


def cache_folder() -> Path:
    """Where files that can be fetched or measured again are kept: `~/.cache/facebones`, or under $XDG_CACHE_HOME."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111 (never raises)
    return folder / "facebones"


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON, atomically.

    Raises:
        ValueError: it holds NaN or infinity, which JSON does not have.
        RunError, ConfigError: it cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        # A path need not be valid Unicode: Python stores such a byte as a surrogate, JSON as an escape.
        file.write(text.encode(errors="backslashreplace") + b"\n")


def parse_json(content: bytes) -> Any:
    """Parse JSON from an untrusted source.

    Raises:
        ValueError: it is not JSON in UTF-8, holds NaN or infinity, says a key twice, or is nested too deeply.

    >>> parse_json(b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' stands twice
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"the key {twice!r:.60} stands twice")
        return found

    def no_number(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(content.decode(), object_pairs_hook=unique, parse_constant=no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _umask() -> int:
    with _umask_lock:  # it can be read only by setting it
        current = os.umask(0)
        os.umask(current)
        return current


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, if the file system can sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
