"""Record files of one folder: the shards of one training set, with one numbering of its people."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from facebones.data.images import image_size
from facebones.data.joined_sets import Concatenated, part_name
from facebones.data.training_set import Integers, TrainingSet
from facebones.errors import DataError, counted, some

SHOWN = 3  # labels in a note


class RecordShards(Concatenated):
    """The record files of one folder as one training set: a label is the same person in each of them.

    So a set that was cut into files (`im2rec --chunks` of mxnet numbers them `name_0.rec`, `name_1.rec`, ...) has the
    labels, and the fingerprint, that it has in one file. A note says that the files were taken so.

    Args:
        folder: where they lie.
        parts: the files.
    """

    name: ClassVar[str] = "record shards"

    def __init__(self, folder: Path, parts: Sequence[TrainingSet]) -> None:
        super().__init__(parts)
        self.path = folder
        self.labels = np.concatenate([part.labels for part in parts])
        for part, own in zip(parts, np.split(self.labels, self._ends[:-1]), strict=True):
            part.labels = own  # the labels are in memory once
        self.notes = [note for part in parts for note in part.notes]
        self.notes += [self._note_on_files(), *self._note_on_numberings(), *unused_labels(folder, self.labels)]
        self.notes += compare_property(self, [part.path for part in parts])
        if missing := missing_numbers([part.path.name for part in parts]):
            self.notes.append(f"{folder}: by their names, files are missing: {some(missing)}")

    def _note_on_files(self) -> str:
        shared = _in_several([part.labels for part in self.parts], self.num_identities)
        number = counted(shared, "label is in several files and counts", "labels are in several files and count")
        return (
            f"{self.path}: {len(self.parts)} record files of one folder are the shards of one set: {number} as one"
            f" person{' each' if shared != 1 else ''}; separate sets belong into a folder each"
        )

    def _note_on_numberings(self) -> list[str]:
        """Say if it looks as if each file numbers people of its own: without a gap, up to different labels."""
        highest = {part_name(part): _highest_without_gap(part.labels) for part in self.parts}
        if -1 in highest.values() or len({*highest.values()}) == 1:
            return []
        ends = some([f"{name} 0 to {label}" for name, label in highest.items()])
        return [f"{self.path}: each file has all labels up to another highest one, as separate sets have: {ends}"]


def are_separate(parts: Sequence[TrainingSet], complete: Sequence[bool]) -> bool:
    """Whether record files of one folder are separate sets: all are complete, and number their people from 0.

    Args:
        parts: the files.
        complete: whether each has InsightFace's identity records, as a whole set has.
    """
    return all(complete) and all(int(part.labels.min()) == 0 for part in parts)


def compare_property(data: TrainingSet, files: Sequence[Path]) -> list[str]:
    """Notes where InsightFace's `property` file disagrees with the data; the data counts.

    It has a line `identities,height,width`; some writers add a line with the number of images. It belongs to train.rec,
    if that is there, and otherwise to all record files of its folder.

    Args:
        data: the set in these files.
        files: record files of one folder.
    """
    path = files[0].with_name("property")
    names = {file.name for file in files}
    if not path.is_file() or (names != {"train.rec"} and names < {file.name for file in path.parent.glob("*.rec")}):
        return []
    with path.open("rb") as file:
        text = file.read(100).decode("utf-8", "replace").strip()
    first, *more = text.splitlines() or [""]
    fields = [field.strip() for field in (*first.split(","), *more)]  # `int` leaves some blanks that `strip` removes
    if len(first.split(",")) != 3 or len(more) > 1 or not all(field.isdecimal() for field in fields):
        return [f"{path}: {text!r} is not 'identities,height,width'; the file is ignored"]
    identities, height, width, *images = map(int, fields)
    said = {"identities": ([identities], data.num_identities), "images": (images, len(data))}
    notes = [
        f"{path}: says {known[0]} {what}, but the data holds {found}"
        for what, (known, found) in said.items()
        if known and known[0] != found
    ]
    size = None
    with suppress(DataError):  # a broken image is named when it is read
        size = image_size(data.read(0)[0])
    if size is not None and size != (height, width):
        found_size = f"the first image has {size[0]}x{size[1]}"
        notes.append(f"{path}: says images of {height}x{width}, but {found_size} (height x width)")
    return notes


def missing_numbers(names: Sequence[str]) -> list[str]:
    """Names that are missing between numbered ones; [] where more than one number differs, or most would be missing.

    >>> missing_numbers(["part-08-of-12.rec", "part-11-of-12.rec"])
    ['part-09-of-12.rec', 'part-10-of-12.rec']
    """
    cut = [re.split(r"(\d+)", name) for name in names]
    columns = [set(column) for column in zip(*cut, strict=False)]
    differing = [place for place, column in enumerate(columns) if len(column) > 1]
    if len(differing) != 1 or differing[0] % 2 == 0 or len({*map(len, cut)}) > 1:
        return []
    first, place = cut[0], differing[0]
    numbers = {int(fields[place]) for fields in cut}
    if max(numbers) - min(numbers) >= 2 * len(numbers):
        return []
    width = len(min(columns[place], key=len))
    between = sorted({*range(min(numbers), max(numbers))} - numbers)
    return ["".join([*first[:place], f"{number:0{width}d}", *first[place + 1 :]]) for number in between]


def unused_labels(path: Path, labels: Integers) -> list[str]:
    """A note on labels without an image, if there are any."""
    used = _used(labels, int(labels.max()) + 1)
    if not (missing := len(used) - int(np.count_nonzero(used))):
        return []
    # Among so many labels are some without an image. All of them may be 16 million.
    first = np.flatnonzero(~used[: len(labels) + SHOWN])[:SHOWN].tolist()
    more = f" and {missing - len(first)} more" if missing > len(first) else ""
    return [f"{path}: {missing} of the labels 0 to {len(used) - 1} have no image: {', '.join(map(str, first))}{more}"]


def _used(labels: Integers, identities: int) -> npt.NDArray[np.bool_]:
    used = np.zeros(identities, np.bool_)
    used[labels] = True
    return used


def _in_several(labels: Sequence[Integers], identities: int) -> int:
    """How many labels are in more than one file."""
    seen, several = np.zeros((2, identities), np.bool_)
    for own in labels:
        used = _used(own, identities)
        several |= seen & used
        seen |= used
    return int(several.sum())


def _highest_without_gap(labels: Integers) -> int:
    """The highest label, or -1 if a label below it has no image."""
    used = _used(labels, int(labels.max()) + 1)
    return len(used) - 1 if used.all() else -1
