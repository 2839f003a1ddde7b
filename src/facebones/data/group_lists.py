"""Files of groups: which image or person of an evaluation set belongs to which group, in CSV.

    person,sex,age_band          image,camera
    Ann_Lee,f,30-44              Ann_Lee/Ann_Lee_0001.jpg,phone
    Bo_Sand,m,                   Ann_Lee/Ann_Lee_0002.jpg,door

The first column is `image` or `person`, each other column a grouping. An empty field is no group. Semicolons or tabs
may separate the fields, as Excel writes them. Quotes protect these marks. Every row must name something of the set,
once; images without a row have no group, and are counted.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.text_lists import SHOWN_CHARACTERS, line_blocks, separator_of
from facebones.errors import DataError, counted

FILE = "groups.csv"
IMAGE, PERSON = "image", "person"
MOST_GROUPS = 100  # of a grouping
MOST_GROUPINGS = 50
NO_GROUP = -1

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Faces:
    """What a set compares, under the names that a file of groups uses: M items (images or templates) of N images.

    Attributes:
        images: (N,) different names.
        item: (N,) item of each image, from 0.
        person: (M,) person of each item, from 0; None if unknown.
        people: (M,) name of the person of each item; None if unknown.
    """

    images: Sequence[str]
    item: IntArray
    person: IntArray | None = None
    people: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """One column of a file of groups.

    Attributes:
        name: of the column.
        groups: names of the groups, in the order of the alphabet.
        group: (M,) group of each item; NO_GROUP where it has none.
        without: images without a group.
        mixed: templates left out because their images are of several groups.
    """

    name: str
    groups: tuple[str, ...]
    group: IntArray
    without: int
    mixed: int


def groups_file(path: Path) -> Path:
    """Where the groups of a set are by default: in its folder, or beside its file as NAME.groups.csv or groups.csv.

    Raises:
        DataError: there is none.
    """
    places = [path / FILE] if path.is_dir() else [path.with_suffix(f".{FILE}"), path.with_name(FILE)]
    for place in places:
        if place.is_file():
            return place
    raise DataError(f"{places[-1]}: no such file; write the groups of {path.name} there, or give --groups FILE")


def read_groups(path: Path, faces: Faces, set_name: str) -> list[Grouping]:
    """Read a file of groups.

    Args:
        path: the file, UTF-8.
        faces: of the set.
        set_name: for errors.

    Raises:
        DataError: the file is missing or broken, names what the set does not have, or a column has one group only;
            names the line.
    """
    rows = _rows(path)
    number, heading = next(rows, (0, []))
    if not number:
        raise DataError(f"{path}: holds no line; write a heading such as person,sex, and a row for each")
    names = _headings(path, number, heading)
    of_people = heading[0].lower() == PERSON
    places = _people(path, faces, set_name) if of_people else {name: place for place, name in enumerate(faces.images)}
    codes: list[dict[str, int]] = [{} for _ in names]
    table = np.full((len(places), len(names)), NO_GROUP, dtype=np.int16)
    line = np.zeros(len(places), dtype=np.int64)
    for number, (name, *values) in rows:
        if len(values) != len(names):
            _fail(path, number, f"{counted(len(values) + 1, 'field')} for {len(names) + 1} columns; correct the line")
        place = places.get(name)
        if place is None:
            kind, example = heading[0].lower(), next(iter(places))
            _fail(path, number, f"no {kind} {_short(name)} in {set_name}; write names like {_short(example)}")
        if line[place]:
            _fail(path, number, f"{_short(name)} stands in line {line[place]} already; remove one of them")
        line[place] = number
        for column, value in enumerate(values):
            if len(value) > SHOWN_CHARACTERS:
                _fail(
                    path, number, f"{_short(value)}... is longer than {SHOWN_CHARACTERS} characters; shorten the group"
                )
            if value:
                table[place, column] = codes[column].setdefault(value, len(codes[column]))
                if len(codes[column]) > MOST_GROUPS:
                    _fail(
                        path, number, f"more than {MOST_GROUPS} groups in {_short(names[column])}; make bands of them"
                    )
    for name, found in zip(names, codes, strict=True):
        if len(found) < 2:
            only = f"one group only, {_short(next(iter(found)))}" if found else "no group"
            raise DataError(f"{path}: the column {_short(name)} has {only}; give two or more, or remove the column")
    return [_grouping(name, codes[place], table[:, place], faces, of_people) for place, name in enumerate(names)]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbers and fields of the lines that are not blank; at least one. The heading tells what separates fields."""
    separator = ""
    for first, block in line_blocks(path):
        for number, line in enumerate(block[:-1].split(b"\n"), first):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \r\n")
            except UnicodeDecodeError:
                _fail(path, number, "not UTF-8 text; save the file as CSV in UTF-8")
            if text.strip():  # a tab at the end is an empty field
                separator = separator or separator_of(text)
                yield number, [field.strip() for field in _fields(path, number, text, separator)]


def _fields(path: Path, number: int, text: str, separator: str) -> list[str]:
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], strict=True, skipinitialspace=True, delimiter=separator))
    except csv.Error as error:
        _fail(path, number, f"{error}; correct the quotes")


def _headings(path: Path, number: int, heading: list[str]) -> list[str]:
    """Names of the groupings."""
    kind, *names = heading
    if kind.lower() not in (IMAGE, PERSON):
        _fail(path, number, f"{_short(kind)} is neither {IMAGE} nor {PERSON}; the first column names the rows")
    if not 1 <= len(names) <= MOST_GROUPINGS:
        _fail(path, number, f"{len(names)} columns of groups; give 1 to {MOST_GROUPINGS}, such as {kind},sex,age_band")
    if longest := next((name for name in names if len(name) > SHOWN_CHARACTERS), None):
        _fail(path, number, f"{_short(longest)}... is longer than {SHOWN_CHARACTERS} characters; shorten the name")
    if "" in names:
        _fail(path, number, f"column {names.index('') + 2} has no name; name it")
    if twice := [name for name in names if names.count(name) > 1]:
        _fail(path, number, f"the column {_short(twice[0])} stands twice; rename or remove one")
    return names


def _people(path: Path, faces: Faces, set_name: str) -> dict[str, int]:
    """Place of each person's name."""
    if faces.people is None:
        raise DataError(f"{path}: rows are people, but {set_name} does not name its people; give rows of images")
    return {name: place for place, name in enumerate(dict.fromkeys(faces.people))}


def _grouping(name: str, codes: dict[str, int], code: IntArray, faces: Faces, of_people: bool) -> Grouping:
    """The groups of the items, from those of the images or of the people."""
    groups = sorted(codes)
    rank = np.empty(len(codes) + 1, dtype=np.int64)
    rank[-1] = NO_GROUP
    rank[[codes[group] for group in groups]] = np.arange(len(groups))
    of_row = rank[code]
    items = int(faces.item.max()) + 1
    if of_people:
        numbers = {person: place for place, person in enumerate(dict.fromkeys(faces.people or ()))}
        group = of_row[[numbers[person] for person in faces.people or ()]]
        without, mixed = int((group[faces.item] == NO_GROUP).sum()), 0
    else:
        known = of_row != NO_GROUP
        low, high = np.full(items, len(groups)), np.full(items, NO_GROUP)
        np.minimum.at(low, faces.item[known], of_row[known])
        np.maximum.at(high, faces.item[known], of_row[known])
        group = np.where(low == high, high, NO_GROUP)
        without, mixed = int((~known).sum()), int((low < high).sum())
    return Grouping(name=name, groups=tuple(groups), group=group, without=without, mixed=mixed)


def _short(text: str) -> str:
    return repr(text[:SHOWN_CHARACTERS])


def _fail(path: Path, number: int, reason: str) -> NoReturn:
    raise DataError(f"{path}, line {number}: {reason}")
