"""A training set that is a folder with one folder of images per identity, and what is in a folder."""

import os
from array import array
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import numpy as np

from facebones.data.images import IMAGE_SUFFIXES, is_image_name, read_image_file
from facebones.data.training_set import Integers, TrainingSet, register_data_format
from facebones.errors import DataError, counted, some

THIS = "."  # the one identity of a folder without folders
MOST_LEVELS = 5  # where images are searched that are not in <identity>/
MOST_SEARCHED = 1000  # folders of each level
# What file servers and operating systems put among people's folders, in lower case.
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)


@register_data_format
class ImageFolder(TrainingSet):
    """Images in `root/<identity>/`; the identities are numbered in the order of their names.

    A folder that holds images and no folder is one identity: enough for what needs no labels.

    Attributes:
        identities: folder name of each label.

    Raises:
        DataError: the folder is missing, or neither it nor a folder in it holds an image.
    """

    name: ClassVar[str] = "folder"

    @classmethod
    def find(cls, path: Path) -> bool:
        """Whether the path is a folder with folders or images in it."""
        if not path.is_dir():
            return False
        folders, files = listing(path)
        return bool(folders) or any(map(is_image_name, files))

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self.identities: list[str] = []
        # One block of bytes instead of a string per file: the workers share it, and millions of names fit in memory.
        names = bytearray()
        ends = array("q", [0])
        counts: list[int] = []
        folders, outside = listing(self.path)
        self._note("system folder", "system folders", [name for name in folders if is_system_folder(name)])
        folders = [name for name in folders if not is_system_folder(name)]
        stray = [name for name in outside if is_image_name(name)]
        if stray and not folders:
            folders, stray = [THIS], []
        empty: list[str] = []
        for folder in folders:
            inner, files = listing(self.path / folder)
            images = [name for name in files if is_image_name(name)]
            if folder != THIS and (inner or len(images) < len(files)):
                stray += [f"{folder}/{name}" for name in sorted({*inner, *files}.difference(images))]
            if not images:
                empty.append(folder)
                continue
            self.identities.append(folder)
            counts.append(len(images))
            encoded = [os.fsencode(name) for name in images]
            ends.extend(list(accumulate(map(len, encoded), initial=len(names)))[1:])
            names += b"".join(encoded)
        if not counts:
            raise DataError(
                f"{self.path}: no image in any <identity>/*{{{suffixes()}}}; {_where_images_are(self.path)}"
            )
        self._note("folder without an image", "folders without an image", empty)
        self._note(
            "file or folder that is no image of an identity", "files or folders that are no image of an identity", stray
        )
        self._names = bytes(names)
        self._ends = np.frombuffer(ends, dtype=np.int64)
        self.labels = np.repeat(np.arange(len(counts)), counts)

    def relative_path(self, index: int) -> str:
        """Path of an image inside the folder: identity and file name."""
        name = os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])
        return f"{self.identities[self.labels[index]]}/{name}"

    def read(self, index: int) -> tuple[bytes, int]:
        """Read an image file."""
        path = self.describe(index)
        try:
            return read_image_file(path), int(self.labels[index])
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; restore or remove the file") from error

    def image_sizes(self) -> Mapping[str, Integers]:
        """(N,) bytes of each file, -1 for a missing one."""
        return {"file_sizes_sha256": np.fromiter(map(self._file_size, range(len(self))), np.int64, len(self))}

    def _file_size(self, index: int) -> int:
        try:
            return os.stat(self.describe(index)).st_size  # noqa: PTH116 (half the time of a Path)
        except OSError:  # `read` names it
            return -1

    def describe(self, index: int) -> str:
        """Name an image by its path."""
        return f"{self.path}/{self.relative_path(index)}"

    def image_name(self, index: int) -> str:
        """Name an image by its path inside the folder."""
        return self.relative_path(index)

    def identity_name(self, label: int) -> str:
        """Name an identity by its folder."""
        return self.identities[label]

    def _note(self, one: str, several: str, names: list[str]) -> None:
        if names:
            self.notes.append(f"{self.path}: {counted(len(names), one, several)} left out: {some(names)}")


def is_system_folder(name: str) -> bool:
    """Whether a folder belongs to a file server or an operating system, such as thumbnails of a Synology.

    >>> is_system_folder("@eaDir"), is_system_folder("Ann_Lee")
    (True, False)
    """
    return name.lower() in SYSTEM_FOLDERS


def listing(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted, without hidden ones."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}; check the path and its permissions") from error
    return sorted(folders), sorted(files)


def _where_images_are(path: Path) -> str:
    """What to do where the images are deeper than in `<identity>/`: the folder to name, or a pattern."""
    level = [""]
    for _ in range(MOST_LEVELS):
        level = [
            f"{above}{name}/" for above in level for name in listing(path / above)[0] if not is_system_folder(name)
        ]
        level = level[:MOST_SEARCHED]
        for above in level:
            if (image := next(filter(is_image_name, listing(path / above)[1]), None)) is not None:
                pattern = "/".join("*" * (above.count("/") - 1))
                return (
                    f"images are deeper, such as {above}{image}: name {(path / above).parent} as the data, or"
                    f" '{path}/{pattern}' for all folders like it, if each folder of images is one person"
                )
    return "check the path"


def suffixes() -> str:
    """The endings of images, for messages."""
    return ",".join(sorted(IMAGE_SUFFIXES))
