"""The folder of a report: whether it can be written, and what an earlier report left in it."""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from facebones.errors import ConfigError, RunError
from facebones.reporting.plots.report_plots import REPORT_KINDS

PICTURES = "pictures"
RESULTS = "results.json"
# Whatever the list of an earlier report holds, nothing else is removed than what a report may have written.
PICTURE_NAME = re.compile(rf"[a-z0-9_]+\.({'|'.join(REPORT_KINDS)})")


def check_places(output: Path, files: Iterable[Path]) -> None:
    """Refuse a folder in which a file could not be written, before the first is; nothing is left there.

    Args:
        output: folder of the report, there or not.
        files: all that are to be written, in it or in its folder of pictures.

    Raises:
        ConfigError: a folder is in a file's place or the reverse, a link leads nowhere, or no file can be made.
    """
    for folder in (output, output / PICTURES):
        _check_folder(folder)
    for path in files:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder, where the report has a file; move it or choose another --output")


def _check_folder(folder: Path) -> None:
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
        if not existing.is_dir():
            kind = "is a file" if existing.exists() else "is a link that leads nowhere"
            raise ConfigError(f"{existing}: {kind}, where the report has a folder; choose another --output")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}; choose another --output") from error


def listed_pictures(results: Path) -> set[str]:
    """Names of the pictures that an earlier report says it has written; none where it cannot be read."""
    try:
        content = json.loads(results.read_bytes()) if results.is_file() else {}
    except (OSError, ValueError, RecursionError):  # a stranger's file, which the new report replaces
        return set()
    listed = content.get("pictures") if isinstance(content, dict) else None
    names = listed if isinstance(listed, list) else []
    return {name for name in names if isinstance(name, str) and PICTURE_NAME.fullmatch(name)}


def remove_pictures(folder: Path, names: Iterable[str]) -> None:
    """Remove files of the folder of pictures; if that is a link, what it leads to may be anybody's, and stays.

    Raises:
        RunError: one cannot be removed.
    """
    if folder.is_symlink():
        return
    for path in (folder / name for name in sorted(names)):
        try:
            if path.is_file() or path.is_symlink():
                path.unlink()
        except OSError as error:
            raise RunError(f"{path}: of an earlier report, cannot be removed: {error.strerror}; remove it") from error
