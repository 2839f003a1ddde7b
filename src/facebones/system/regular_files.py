"""Open files that others have named or placed: a pipe would block for ever, and a device may have no end.

An archive from elsewhere may hold a pipe, or a link to /dev/zero or to a file of yours, under any name.
"""

import errno
import os
import stat
from io import BufferedReader

CHECKED = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # without O_NONBLOCK, opening a pipe waits for a writer
NO_FILE = "not a file, but a pipe or a device"


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading; the caller closes the descriptor.

    Raises:
        OSError: it is missing, cannot be read, or is a folder, pipe or device; `strerror` says which.
    """
    descriptor = os.open(path, CHECKED)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, NO_FILE, os.fspath(path))


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading in binary.

    Raises:
        OSError: as `open_descriptor`.
    """
    return os.fdopen(open_descriptor(path), "rb")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_descriptor`.

    >>> read_regular("/dev/zero")
    Traceback (most recent call last):
    OSError: [Errno 22] not a file, but a pipe or a device: '/dev/zero'
    """
    with open_regular(path) as file:
        return file.read()


def open_in_place(path: str | os.PathLike[str]) -> int:
    """Open a file to append to it, or make it; the caller closes the descriptor.

    Raises:
        OSError: it cannot be written, or is a link, whose target may be any file of yours, or a folder, pipe or device.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link to another place", os.fspath(path)) from error
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, NO_FILE, os.fspath(path))
