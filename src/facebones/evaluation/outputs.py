"""The folder that an evaluation writes: checked before the work."""

from collections.abc import Iterable
from pathlib import Path

from facebones.files import check_writable


def check_output(output: Path, files: Iterable[str]) -> None:
    """Refuse a folder in which one of the files could not be written; nothing is left there.

    Raises:
        ConfigError: choose another folder.
    """
    for name in files:
        check_writable(output / name)
