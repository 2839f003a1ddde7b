"""Training data in several places: `a:b`, or a pattern such as `parts/*`, joined to one training set."""

import glob
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np

from facebones.data.image_folder import is_system_folder
from facebones.data.images import is_image_name
from facebones.data.training_set import Integers, TrainingSet, used_labels
from facebones.errors import DataError, some

PATTERN = frozenset("*?[")
FILE_ENDINGS = frozenset({".rec", ".parquet", ".lmdb", ".mdb"})  # of files that a pattern finds
# What a note says of a name, and of several, that is in more than one part.
NUMBERS_REPEAT = (
    "number is in several parts and counts as different people",
    "numbers are in several parts and count as different people",
)
NAMES_REPEAT = (
    "name is in several parts and counts as one person",
    "names are in several parts and count as one person each",
)


class Concatenated(TrainingSet):
    """Several training sets as one, one after the other; a subclass sets `path` and `labels`.

    Args:
        parts: the sets.

    Attributes:
        parts: the sets.
    """

    def __init__(self, parts: Sequence[TrainingSet]) -> None:
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def read(self, index: int) -> tuple[bytes, int]:
        """Read an image from its part."""
        part, inside = self._place(index)
        return self.parts[part].read(inside)[0], int(self.labels[index])

    def read_ahead(self, first: int, last: int) -> None:
        """Announce the images to the parts that hold them."""
        for part, (start, end) in zip(self.parts, pairwise([0, *self._ends]), strict=True):
            if max(first, start) < min(last, end):
                part.read_ahead(max(first, start) - start, min(last, end) - start)

    def read_ahead_some(self, indices: Integers) -> None:
        """Announce the images to the parts that hold them."""
        cuts = np.searchsorted(indices, self._ends[:-1]).tolist()
        for part, start, own in zip(self.parts, [0, *self._ends], np.split(indices, cuts), strict=False):
            if len(own):
                part.read_ahead_some(own - start)

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

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)


class JoinedSets(Concatenated):
    """Several training sets as one, with the people of all.

    A name in several image folders is one person, unless it is a number: sets that were split into parts count their
    people from 0 in each. Labels of record files are numbers, too. A note says how many names repeat.

    Args:
        path: as the user gave it.
        parts: the sets.
    """

    name: ClassVar[str] = "joined"

    def __init__(self, path: str | os.PathLike[str], parts: Sequence[TrainingSet]) -> None:
        super().__init__(parts)
        self.path = Path(path)
        self._names: list[str] = []
        self.labels = np.concatenate(self._numbered())
        self.notes = [note for part in parts for note in part.notes] + self._notes_on_names()

    def _numbered(self) -> list[Integers]:
        """The labels of each part, with one number per person over all parts; fills `_names`."""
        numbers: dict[tuple[int, str], int] = {}
        labels = []
        for place, part in enumerate(self.parts):
            used = used_labels(part.labels)  # a label may be as large as 16 million
            own = []
            for name in map(part.identity_name, used.tolist()):
                # The key of a person: the name alone, or with the part that it is in.
                number = numbers.setdefault((-1 if _is_name(part, name) else place, name), len(numbers))
                if number == len(self._names):
                    self._names.append(f"{part_name(part)}/{name}")
                own.append(number)
            labels.append(np.array(own, dtype=np.int64)[np.searchsorted(used, part.labels)])
        return labels

    def _notes_on_names(self) -> list[str]:
        """How many names are in several parts, and how they were taken."""
        repeated: dict[bool, dict[str, None]] = {True: {}, False: {}}
        seen: set[str] = set()
        for part in self.parts:
            names = set(map(part.identity_name, used_labels(part.labels).tolist()))
            for name in sorted(names & seen):
                repeated[_is_name(part, name)][name] = None
            seen |= names
        taken = {True: NAMES_REPEAT, False: NUMBERS_REPEAT}
        return [
            f"{self.path}: {len(names)} {taken[kind][len(names) > 1]}: {some(names)}"
            for kind, names in repeated.items()
            if names
        ]

    def identity_name(self, label: int) -> str:
        """Name an identity by the part that it occurs in first, and its name there."""
        return self._names[label]


def data_roots(path: str | os.PathLike[str]) -> list[Path]:
    """The files and folders that a path of training data names.

    Args:
        path: one path; several, joined by `os.pathsep` (":" or ";"); or a pattern, such as "parts/*", for the folders
            and the `.rec`, Parquet and LMDB files that match it.

    Folders that match a pattern but hold neither an image nor records are left out; `without_data` names them.

    Raises:
        DataError: a pattern matches nothing, a place is named twice, in whatever spelling or through links, or one of
            several places has the separator in its name.

    >>> [str(root) for root in data_roots(os.pathsep.join(["faces", "more"]))]
    ['faces', 'more']
    """
    whole = str(path)
    if not whole or os.path.lexists(whole):
        return [Path(path)]
    _refuse_separator(whole)
    roots = [root for part in whole.split(os.pathsep) if part for root in _matches(part)]
    _refuse_twice(path, roots)
    return roots


def _refuse_separator(path: str) -> None:
    """Refuse several paths of which one has the separator in its name: it would be read as two."""
    parts = path.split(os.pathsep)
    for first, end in ((first, first + count) for first in range(len(parts)) for count in (2, 3)):
        whole = os.pathsep.join(parts[first:end])
        if end <= len(parts) and os.path.lexists(whole) and not all(map(os.path.lexists, parts[first:end])):
            raise DataError(f"{whole} has {os.pathsep!r} in its name, which separates paths; rename it, or link to it")


def without_data(path: str | os.PathLike[str]) -> list[str]:
    """Names of the folders that match a pattern of `path`, but hold neither an image nor records, at any level."""
    if os.path.lexists(path):
        return []
    patterns = [part for part in str(path).split(os.pathsep) if _is_pattern(part)]
    return [match.name for part in patterns for match in _candidates(part) if not _holds_data(match)]


def _refuse_twice(path: str | os.PathLike[str], roots: Sequence[Path]) -> None:
    """Refuse the same place under two names: its people would count twice."""
    places: dict[object, Path] = {}
    for root in roots if len(roots) > 1 else ():
        if (first := places.setdefault(_place(root), root)) is root:
            continue
        same = f"names {root} twice" if root == first else f"{root} is the same data as {first}"
        raise DataError(f"{path}: {same}; name each folder of training data once")


def _place(root: Path) -> object:
    """What two names of the same data have in common: the file or folder itself; of a folder of records their file."""
    if root.is_dir():
        records = sorted(each for each in root.iterdir() if each.suffix.lower() == ".rec")
        root = next((each for each in records if each.name == "train.rec"), records[0] if len(records) == 1 else root)
    try:
        found = root.stat()
    except OSError:  # opening it says what is wrong
        return root.absolute()
    return found.st_dev, found.st_ino


def absolute(path: str) -> str:
    """The same places, by absolute paths; a pattern stays one."""
    if os.path.lexists(path):
        return str(Path(path).resolve())
    return os.pathsep.join(str(Path(part).resolve()) for part in path.split(os.pathsep) if part)


def differing_parts(now: str, then: str) -> str:
    """What differs between two paths of training data in several places, in words; empty if neither names several.

    Patterns are not expanded: a path of an older run may match other folders today.

    >>> differing_parts(os.pathsep.join(["x/b", "x/a"]), os.pathsep.join(["x/a", "x/b"])).partition(";")[0]
    'the same parts in another order: part 1 was x/a and is x/b'
    >>> differing_parts("x/a", "x/b")
    ''
    """
    parts, known = _listed(now), _listed(then)
    if not known or max(len(parts), len(known)) < 2:
        return ""
    keys, known_keys = parts, known
    names, known_names = ([Path(part).name for part in each] for each in (parts, known))
    if not {*parts} & {*known} and len({*names}) == len(names):  # moved
        keys, known_keys = names, known_names
    if sorted(keys) != sorted(known_keys):
        had = f"the run had the {'part' if len(known) == 1 else 'parts'} {some(known)}, and these are {some(parts)}"
        if any(map(_is_pattern, (*parts, *known))):
            return had
        missing = [part for part, key in zip(known, known_keys, strict=True) if key not in keys]
        new = [part for part, key in zip(parts, keys, strict=True) if key not in known_keys]
        changes = ((missing, "missing"), (new, "new"))
        said = [f"{some(listed)} {'is' if len(listed) == 1 else 'are'} {word}" for listed, word in changes if listed]
        return f"{had}: {', '.join(said)}"
    for number, (key, other) in enumerate(zip(keys, known_keys, strict=True)):
        if key != other:
            right = os.pathsep.join(parts[keys.index(each)] for each in known_keys)
            place = f"part {number + 1} was {known[number]} and is {parts[number]}"
            return f"the same parts in another order: {place}; give --data {right}"
    return ""


def _listed(path: str) -> list[str]:
    return [path] if os.path.lexists(path) else [part for part in path.split(os.pathsep) if part]


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


def _is_pattern(part: str) -> bool:
    return bool(PATTERN & set(part)) and not os.path.lexists(part)


def _matches(part: str) -> list[Path]:
    if not _is_pattern(part):
        return [Path(part)]
    candidates = _candidates(part)
    if not candidates:
        raise DataError(f"{part}: no folder and no .rec file matches; check the pattern")
    found = [match for match in candidates if _holds_data(match)]
    if not found:
        matching = (
            "1 folder matches, but holds" if len(candidates) == 1 else f"{len(candidates)} folders match, but hold"
        )
        raise DataError(f"{part}: {matching} no image and no .rec file; check the pattern")
    return found


def _candidates(part: str) -> list[Path]:
    """The folders and files of training data that match a pattern, without those of the system."""
    found = sorted(Path(match) for match in glob.glob(part) if not is_system_folder(Path(match).name))  # noqa: PTH207 (absolute too)
    return [match for match in found if match.is_dir() or match.suffix.lower() in FILE_ENDINGS]


def _holds_data(place: Path) -> bool:
    """Whether a file or folder has a data format, or has an image at any level."""
    from facebones.data.training_set import data_formats

    if not place.is_dir() or any(each.find(place) for each in data_formats() if each.name != "folder"):
        return True
    for _, folders, files in os.walk(place):
        if any(is_image_name(name) and name[0] != "." for name in files):
            return True
        folders[:] = [name for name in folders if name[0] != "." and not is_system_folder(name)]
    return False


def part_name(part: TrainingSet) -> str:
    """Name of a part: that of its folder, or of its record file, unless this is train.rec."""
    path = part.path.absolute()
    if path.suffix.lower() != ".rec":
        return path.name
    return path.parent.name if path.name == "train.rec" else path.stem


def _is_name(part: TrainingSet, identity: str) -> bool:
    """Whether an identity's name says who it is, in any part: the name of a folder that is no number."""
    return part.name == "folder" and not identity.isdecimal()
