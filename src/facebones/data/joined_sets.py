"""Training data in several places: `a:b`, or a pattern such as `parts/*`, joined to one training set."""

import glob
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np

from facebones.data.training_set import Integers, TrainingSet
from facebones.errors import DataError

PATTERN = frozenset("*?[")
NUMBERS_REPEAT = "numbers are in several parts and count as different people"
# What file servers and operating systems put among people's folders, in lower case.
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)


def is_system_folder(name: str) -> bool:
    """Whether a folder belongs to a file server or an operating system, such as thumbnails of a Synology.

    >>> is_system_folder("@eaDir"), is_system_folder("Ann_Lee")
    (True, False)
    """
    return name.lower() in SYSTEM_FOLDERS


def some(names: Iterable[object], shown: int = 3) -> str:
    """The first names, and how many more there are.

    >>> some("abcde")
    'a, b, c and 2 more'
    """
    listed = [str(name) for name in names]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


class JoinedSets(TrainingSet):
    """Several training sets as one, one after the other.

    A name in several image folders is one person, unless it is a number: sets that were split into parts count their
    people from 0 in each. Labels of record files are numbers, too. A note says how many names repeat.

    Args:
        path: as the user gave it.
        parts: the sets.

    Attributes:
        parts: the sets.
    """

    name: ClassVar[str] = "joined"

    def __init__(self, path: str | os.PathLike[str], parts: Sequence[TrainingSet]) -> None:
        self.path, self.parts = Path(path), parts
        self._ends = list(accumulate(map(len, parts)))
        self._names: list[str] = []
        self.labels = np.concatenate(self._numbered())
        self.notes = [note for part in parts for note in part.notes] + self._notes_on_names()

    def _numbered(self) -> list[Integers]:
        """The labels of each part, with one number per person over all parts; fills `_names`."""
        numbers: dict[tuple[int, str], int] = {}
        labels = []
        for place, part in enumerate(self.parts):
            used, positions = np.unique(part.labels, return_inverse=True)  # a label may be as large as 16 million
            own = []
            for name in map(part.identity_name, used.tolist()):
                # The key of a person: the name alone, or with the part that it is in.
                number = numbers.setdefault((-1 if _is_name(part, name) else place, name), len(numbers))
                if number == len(self._names):
                    self._names.append(f"{part_name(part)}/{name}")
                own.append(number)
            labels.append(np.array(own, dtype=np.int64)[positions])
        return labels

    def _notes_on_names(self) -> list[str]:
        """How many names are in several parts, and how they were taken."""
        repeated: dict[bool, dict[str, None]] = {True: {}, False: {}}
        seen: set[str] = set()
        for part in self.parts:
            names = set(map(part.identity_name, np.unique(part.labels).tolist()))
            for name in sorted(names & seen):
                repeated[_is_name(part, name)][name] = None
            seen |= names
        taken = {True: "names are in several parts and count as one person each", False: NUMBERS_REPEAT}
        return [f"{self.path}: {len(names)} {taken[kind]}: {some(names)}" for kind, names in repeated.items() if names]

    def read(self, index: int) -> tuple[bytes, int]:
        """Read an image from its part."""
        part, inside = self._place(index)
        return self.parts[part].read(inside)[0], int(self.labels[index])

    def read_ahead(self, first: int, last: int) -> None:
        """Announce the images to the parts that hold them."""
        for part, (start, end) in zip(self.parts, pairwise([0, *self._ends]), strict=True):
            if max(first, start) < min(last, end):
                part.read_ahead(max(first, start) - start, min(last, end) - start)

    def image_sizes(self) -> Mapping[str, Integers]:
        """Sizes of the images where all parts count alike."""
        sizes = [part.image_sizes() for part in self.parts]
        if any(one.keys() != sizes[0].keys() for one in sizes):
            return {}
        return {key: np.concatenate([one[key] for one in sizes]) for key in sizes[0]}

    def describe(self, index: int) -> str:
        """Name an image as its part does."""
        part, inside = self._place(index)
        return self.parts[part].describe(inside)

    def identity_name(self, label: int) -> str:
        """Name an identity by the part that it occurs in first, and its name there."""
        return self._names[label]

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


def data_roots(path: str | os.PathLike[str]) -> list[Path]:
    """The files and folders that a path of training data names.

    Args:
        path: one path; several, joined by `os.pathsep` (":" or ";"); or a pattern, such as "parts/*", for the folders
            and `.rec` files that match it.

    Raises:
        DataError: a pattern matches nothing, or a place is named twice.

    >>> [str(root) for root in data_roots(os.pathsep.join(["faces", "more"]))]
    ['faces', 'more']
    """
    whole = str(path)
    if not whole or os.path.lexists(whole):
        return [Path(path)]
    roots = [root for part in whole.split(os.pathsep) if part for root in _matches(part)]
    if twice := [root for number, root in enumerate(roots) if root in roots[:number]]:
        raise DataError(f"{path}: names {twice[0]} twice; name each folder of training data once")
    return roots


def absolute(path: str) -> str:
    """The same places, by absolute paths; a pattern stays one."""
    if os.path.lexists(path):
        return str(Path(path).resolve())
    return os.pathsep.join(str(Path(part).resolve()) for part in path.split(os.pathsep) if part)


def beside(path: str | os.PathLike[str]) -> Path:
    """The folder where sets that are named without a path are looked for.

    It is the training data's own folder; for data in several places the folder that holds all of them, or the first
    place, if they have none in common.
    """
    roots = data_roots(path)
    folders = [root if root.is_dir() or len(roots) > 1 else root.parent for root in roots]
    if len(folders) == 1:
        return folders[0]
    common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    return common if common != Path(common.anchor) else folders[0]


def _matches(part: str) -> list[Path]:
    if os.path.lexists(part) or not PATTERN & set(part):
        return [Path(part)]
    found = sorted(Path(match) for match in glob.glob(part) if not is_system_folder(Path(match).name))  # noqa: PTH207 (absolute too)
    found = [match for match in found if match.is_dir() or match.suffix.lower() == ".rec"]
    if not found:
        raise DataError(f"{part}: no folder and no .rec file matches; check the pattern")
    return found


def part_name(part: TrainingSet) -> str:
    """Name of a part: that of its folder."""
    return part.path.parent.name if part.path.suffix.lower() == ".rec" else part.path.name


def _is_name(part: TrainingSet, identity: str) -> bool:
    """Whether an identity's name says who it is, in any part: the name of a folder that is no number."""
    return part.name == "folder" and not identity.isdecimal()
