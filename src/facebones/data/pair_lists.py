"""Pair lists in text, in the formats of LFW, CALFW, CPLFW, XQLFW and `facebones data pairs`.

Sources: G. B. Huang et al., "Labeled Faces in the Wild" (technical report 07-49, 2007), section 4; T. Zheng, W. Deng,
J. Hu, "Cross-Age LFW" (arXiv 1708.08197); T. Zheng, W. Deng, "Cross-Pose LFW" (technical report 18-01, 2018);
M. Knoche, S. Hoermann, G. Rigoll, "Cross-Quality LFW" (arXiv 2108.10290).
"""

import codecs
import csv
import io
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.images import IMAGE_SUFFIXES, is_image_name
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.data.text_lists import leads_out
from facebones.errors import DataError
from facebones.system.files import is_file
from facebones.system.regular_files import open_regular, read_regular

PAIR_LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv"})
FOLDS = 10
MARKS = {"1": 1, "0": 0, "-1": -1, "+1": 1, "1.0": 1, "0.0": 0, "-1.0": -1, "true": 1, "false": 0}

ROW_NUMBERS = frozenset({"", "index", "idx", "row", "unnamed: 0"})  # names of a column, as pandas writes it
LABELS = frozenset({"label", "same", "is_same", "issame", "same_person", "mark", "match", "genuine", "target"})

_QUOTED = re.compile(r'"[^"]*"')

BLOCK = 2**16  # images that are looked up at once
IN_ITS_ORDER = slice(None)

Line = tuple[int, list[str]]  # the line's number, from 1, and its fields
Integers = npt.NDArray[np.intp]
Order = Integers | slice  # of pairs


class ListedPair(NamedTuple):
    """A pair in a list.

    Attributes:
        line: number of its last line.
        first: path of the first image inside the folder of images.
        second: path of the second image.
        mark: above 0 for a genuine pair.
    """

    line: int
    first: str
    second: str
    mark: int


class _Pairs(NamedTuple):
    """P pairs in 16 bytes each, and the M paths that they name.

    Attributes:
        names: the paths, (M,).
        rows: (P, 4) int32: line, numbers of both paths, mark.
    """

    names: list[str]
    rows: npt.NDArray[np.int32]

    @classmethod
    def of(cls, pairs: Iterable[ListedPair]) -> "_Pairs":
        numbers: dict[str, int] = {}
        rows = array("i")
        for line, first, second, mark in pairs:
            one, other = numbers.setdefault(first, len(numbers)), numbers.setdefault(second, len(numbers))
            rows.extend((line, one, other, mark))
        return cls(list(numbers), np.frombuffer(rows, np.int32).reshape(-1, 4))

    @property
    def same(self) -> npt.NDArray[np.bool_]:
        """(P,) whether a pair is genuine."""
        return self.rows[:, 3] > 0


class _Lines:
    """The lines of a list, read again in each pass: as Python objects, millions would take 25 times the file.

    Args:
        lines: of a list that is not changed.
        skip: lines at the beginning that are left out.
        columns: places of the fields that are kept, or a slice of them.
    """

    def __init__(self, lines: Iterable[Line], skip: int = 0, columns: Sequence[int] | slice = slice(None)) -> None:
        self.lines, self.skip, self.columns = lines, skip, columns

    def __iter__(self) -> Iterator[Line]:
        rows, columns = islice(self.lines, self.skip, None), self.columns
        if isinstance(columns, slice):
            # A line that was cut off after its row number stays as it is, for the error that names it.
            return ((number, fields[columns] or fields) for number, fields in rows)
        return ((number, [fields[place] for place in columns]) for number, fields in rows)


def read_pair_set(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> PairSet:
    """Read pairs from a `.bin` file or from a pair list; the ending decides.

    Args:
        path: a `.bin`, `.txt`, `.csv` or `.tsv` file.
        root: the folder that the paths in a list start from; by default the folder of the list.

    Raises:
        DataError: see `read_pairs` and `read_pair_list`; or `root` was given with a `.bin` file.
    """
    path = Path(path)
    if path.suffix.lower() in PAIR_LIST_SUFFIXES:
        return read_pair_list(path, path.parent if root is None else root)
    if root is not None:
        raise DataError(f"{path}: a .bin file holds its images; leave out the folder of images (for pair lists)")
    return read_pairs(path)


def read_pair_list(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> PairSet:
    """Read a pair list and its images.

    The first line decides the format; fields are separated by tabs, commas, semicolons or blanks, which quotes protect
    as in CSV. A heading of column names is skipped in every format, and so is a column of row numbers ("index",
    "Unnamed: 0" or no name). Backslashes in paths are read as slashes. UTF-8, or UTF-16 with a byte order mark.

    * LFW and XQLFW: a line `folds pairs`, `pairs` alone (DevTest) or no such line, then lines `name n m` (genuine) and
      `name n other m` (impostor), the same number of both in each fold. Of another number of folds than ten, both
      kinds are dealt over ten, with a note: the evaluation takes ten. Image n of a person is
      `root/name/name_000n.jpg` or `root/name_000n.jpg`, or has another image ending.
    * CALFW and CPLFW: a line `image mark` per image, two lines per pair. The mark is 0 (or -1) for an impostor pair,
      and the number of the fold for a genuine pair. These lists have all genuine pairs before all impostor pairs, so
      folds in the order of the list would have one kind only. Here each tenth of the genuine pairs, ordered by their
      marks, is followed by a tenth of the impostor pairs.
    * Other lists: a line `image image mark` or `mark image image` per pair; the mark is 1 for genuine, and 0 or -1 for
      impostor.

    A list without folds of its own whose order would give folds of one kind only (all genuine pairs first) is dealt
    over the ten folds in the same way, with a note.

    Args:
        path: the list.
        root: the folder that the paths in the list start from.

    Raises:
        DataError: the list is missing, empty or broken, or an image is missing; names the line.
    """
    path, root = Path(path), Path(root)
    pairs, order, notes = _pairs(path, root)
    places = np.ascontiguousarray(pairs.rows[order, 1:3]).reshape(-1)  # (2P,)
    images = _read_images(path, root, pairs, order, places)
    listed: list[bytes] = []
    for start in range(0, len(places), BLOCK):
        listed += [images[place] for place in places[start : start + BLOCK].tolist()]
    return PairSet(path.stem, listed, pairs.same[order], path, tuple(notes), pairs.names, places)


def listed_images(path: Path) -> tuple[str, str]:
    """Paths of the first pair of a list, as they would be inside its own folder.

    Raises:
        DataError: as `read_pair_list`, without reading an image.
    """
    pairs, _, _ = _pairs(path, path.parent)
    one, other = pairs.rows[0, 1:3].tolist()
    return pairs.names[one], pairs.names[other]


def _read_images(path: Path, root: Path, pairs: _Pairs, order: Order, places: npt.NDArray[np.int32]) -> Sequence[bytes]:
    """The image of each name, (M,), read in the order of their places; an error names the first line with the image."""
    first = np.full(len(pairs.names), -1)
    first[places[::-1]] = np.arange(len(places))[::-1]
    lines = pairs.rows[order, 0][first // 2]
    images = [b""] * len(pairs.names)
    seen: dict[str, bytes] = {}  # a list can write one name in any number of ways, such as ././a.jpg
    for number in np.argsort(first).tolist():
        line = int(lines[number])
        place = _place_in(path, line, root, pairs.names[number])
        if place not in seen:
            seen[place] = _read_image(path, line, root / place)
        images[number] = seen[place]
    return images


def _pairs(path: Path, root: Path) -> tuple[_Pairs, Order, list[str]]:
    """The pairs, their order by folds, and notes for the user."""
    lines, left_out = _without_heading(_Lines(_File(path)))
    top = next(iter(lines), None)
    if top is None:
        raise DataError(f"{path}: holds no pair; a line is 'image image 0|1'")
    first = top[1]
    if all(_is_number(field) for field in first) and len(first) <= 2:
        rows = _Lines(lines, skip=1)
        _check_count(path, *top, sum(1 for _ in rows))
        pairs = _Pairs.of(_lfw_pair(path, number, fields, root) for number, fields in rows)
        return pairs, *(_in_stated_folds(path, pairs, int(first[0])) if len(first) == 2 else _in_folds(path, pairs))
    if len(first) == 2:
        pairs = _Pairs.of(_marked_pairs(path, lines))
        genuine, impostor = _by_kind(pairs)
        return pairs, _dealt(genuine[np.argsort(pairs.rows[genuine, 3], kind="stable")], impostor), []
    if _is_lfw_line(first):
        pairs = _Pairs.of(_lfw_pair(path, number, fields, root) for number, fields in lines)
        return pairs, *_in_folds(path, pairs)
    pairs = _Pairs.of(_plain_pairs(path, first, lines))
    order, notes = _in_folds(path, pairs)
    return pairs, order, [*([f"{path}: columns that are not read: {', '.join(left_out)}"] if left_out else []), *notes]


class _File:
    """The lines of a file that are not blank."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Line]:
        for number, line in enumerate(_text_lines(self.path), 1):
            try:
                fields = _fields(line)
            except csv.Error as error:
                raise DataError(f"{self.path}, line {number}: {error}; correct the line") from error
            if fields:
                yield number, fields


def _without_heading(lines: Iterable[Line]) -> tuple[_Lines, list[str]]:
    """Leave out a first line of column names, a column of row numbers, and columns that are no part of a pair.

    Returns:
        The lines, and the names of the columns that are no part of a pair.

    >>> lines, left_out = _without_heading([(1, ["", "one", "two", "same"]), (2, ["0", "a.jpg", "b.jpg", "1"])])
    >>> list(lines), left_out
    ([(2, ['a.jpg', 'b.jpg', '1'])], [])
    >>> lines, left_out = _without_heading([(1, ["label", "score", "one", "two"]), (2, ["1", "0.5", "a.jpg", "b.jpg"])])
    >>> list(lines), left_out
    ([(2, ['a.jpg', 'b.jpg', '1'])], ['score'])
    """
    top = [fields for _, fields in islice(lines, 2)]
    if len(top) < 2:
        return _Lines(lines), []
    heading, row = top
    if len(heading) < 3 and len(heading) != len(row):  # a line that was cut short, rather
        return _Lines(lines), []
    names = [name for name in heading if name.lower() not in ROW_NUMBERS]
    if any(map(_is_value, names)) or not any(map(_is_value, row)):
        return _Lines(lines), []
    rows = _Lines(lines, skip=1)
    first = 0
    if heading[0].lower() in ROW_NUMBERS and (not heading[0] or all(_is_number(fields[0]) for _, fields in rows)):
        first = 1
    rows = _Lines(lines, skip=1, columns=slice(first, None))
    columns = _pair_columns(heading[first:], rows)
    if not columns:
        return rows, []
    left_out = [name for place, name in enumerate(heading[first:]) if place not in columns]
    return _Lines(rows, columns=columns), left_out


def _pair_columns(heading: list[str], rows: Iterable[Line]) -> list[int]:
    """Places of both images and the label among more than three columns; none where these cannot be told safely."""
    if len(heading) <= 3 or any(len(fields) != len(heading) for _, fields in rows):
        return []
    labels = [place for place, name in enumerate(heading) if name.lower() in LABELS]
    images = [place for place in range(len(heading)) if all(is_image_name(fields[place]) for _, fields in rows)]
    return [*images, *labels] if (len(images), len(labels)) == (2, 1) else []


def _is_value(field: str) -> bool:
    """Whether a field is a number, a mark or a path, which no heading of a column is."""
    return _is_number(field) or field.lower() in MARKS or "/" in field or "\\" in field or is_image_name(field)


def _is_lfw_line(fields: Sequence[str]) -> bool:
    """Whether a line is `name n m` or `name n other m`."""
    return len(fields) in (3, 4) and _is_number(fields[1]) and _is_number(fields[-1]) and not is_image_name(fields[0])


def _in_stated_folds(path: Path, pairs: _Pairs, folds: int) -> tuple[Order, list[str]]:
    """Deal the pairs of a list of another number of folds: its own order would cut these into folds of one kind."""
    if folds == FOLDS:
        return IN_ITS_ORDER, []
    genuine, impostor = _by_kind(pairs)
    enough = min(len(genuine), len(impostor)) >= FOLDS
    order = "both kinds are dealt over these, each" if enough else "these are taken"
    stated = "1 fold" if folds == 1 else f"{folds} folds"
    note = f"{path}: the first line states {stated}, but the evaluation takes {FOLDS}: {order} in the order of the list"
    return _dealt(genuine, impostor) if enough else IN_ITS_ORDER, [note]


def _in_folds(path: Path, pairs: _Pairs) -> tuple[Order, list[str]]:
    """Deal pairs over ten folds if a fold of the list's own order would hold one kind of pair only."""
    alike = sum(fold.all() or not fold.any() for fold in np.array_split(pairs.same, FOLDS))
    genuine, impostor = _by_kind(pairs)
    if not alike or min(len(genuine), len(impostor)) < FOLDS:  # too few for both kinds in each fold
        return IN_ITS_ORDER, []
    note = (
        f"{path}: the list names no folds, and in its order {alike} of {FOLDS} would hold pairs of one kind only; both"
        " kinds are dealt over the folds, each in the order of the list"
    )
    return _dealt(genuine, impostor), [note]


def _by_kind(pairs: _Pairs) -> tuple[Integers, Integers]:
    """Places of the genuine pairs and of the impostor pairs."""
    return np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same)


def _dealt(genuine: Integers, impostor: Integers) -> Integers:
    """For each fold a tenth of the genuine pairs, then a tenth of the impostor pairs."""
    return np.concatenate([_share(kind, fold) for fold in range(FOLDS) for kind in (genuine, impostor)])


def _text_lines(path: Path) -> Iterator[str]:
    encoding = "UTF-8"
    try:
        with open_regular(path) as file:
            encoding = "UTF-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else encoding
        codec = "utf-8-sig" if encoding == "UTF-8" else encoding
        with io.TextIOWrapper(open_regular(path), codec) as lines:
            for line in lines:
                yield from line.splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        place = _undecodable(path, codec, error)
        raise DataError(f"{path}, byte {place}: not {encoding} text; a pair list is a text file") from error


def _undecodable(path: Path, codec: str, error: UnicodeDecodeError) -> int:
    """The byte of a file that cannot be decoded; the error counts from the part that was being read."""
    try:
        read_regular(path).decode(codec)
    except UnicodeDecodeError as whole:
        return whole.start
    return error.start


def _fields(line: str) -> list[str]:
    """The fields of a line, without empty ones at the end; quotes protect separators, as in CSV.

    >>> _fields('"Ann_Lee",1,4,'), _fields("a b.jpg;c.jpg;1"), _fields("a.jpg  b.jpg -1")
    (['Ann_Lee', '1', '4'], ['a b.jpg', 'c.jpg', '1'], ['a.jpg', 'b.jpg', '-1'])
    >>> _fields('"Lee, Ann/1.jpg","a ""b"".jpg",1')
    ['Lee, Ann/1.jpg', 'a "b".jpg', '1']
    """
    bare = _QUOTED.sub("", line)
    separator = _separator(bare)
    fields = line.split(separator) if '"' not in line else _quoted_fields(line.strip(" "), separator or " ")
    fields = [field.strip() for field in fields]
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _separator(bare: str) -> str | None:
    """The mark between the fields of a line without its quoted parts; None: blanks.

    A semicolon may be part of a name, and so may a comma be where semicolons separate.

    >>> _separator("Lee, Ann/1.jpg;Lee, Ann/2.jpg;1"), _separator("a;b.jpg,c.jpg,1"), _separator("a.jpg;0")
    (';', ',', ';')
    """
    if "\t" in bare:
        return "\t"
    parts = [part.strip() for part in bare.split(";")]
    if "," in bare:
        marked = len(parts) > 2 and any(part.lower() in MARKS or _is_number(part) for part in (parts[0], parts[-1]))
        return ";" if marked else ","
    return ";" if len(parts) > 2 or (len(parts) == 2 and len(bare.split()) == 1) else None


def _quoted_fields(line: str, separator: str) -> list[str]:
    reader = csv.reader([line, ""], delimiter=separator, skipinitialspace=True)
    fields = next(reader)
    if reader.line_num > 1:
        raise csv.Error("a quote without its end")
    return fields


def _is_number(field: str) -> bool:
    return field.isdecimal() and len(field) <= 9  # int() refuses thousands of digits


def _check_count(path: Path, number: int, header: list[str], pairs: int) -> None:
    counts = [int(field) for field in header]
    promised = 2 * (counts[0] * counts[1] if len(counts) == 2 else counts[0])
    if promised != pairs:
        follow = "1 line follows" if pairs == 1 else f"{pairs} lines follow"
        raise DataError(f"{path}, line {number}: promises {promised} pairs, but {follow}; restore the list")


def _lfw_pair(path: Path, number: int, fields: list[str], root: Path) -> ListedPair:
    if len(fields) not in (3, 4) or not (_is_number(fields[1]) and _is_number(fields[-1])):
        _fail_line(path, number, fields, "'name n m' or 'name n other m'")
    first, second = (fields[0], fields[1]), (fields[-2] if len(fields) == 4 else fields[0], fields[-1])
    return ListedPair(number, _lfw_image(root, *first), _lfw_image(root, *second), int(len(fields) == 3))


def _lfw_image(root: Path, name: str, number: str) -> str:
    """Path of a person's image inside `root`; in a folder of the person and with .jpg if there is none."""
    file = f"{name}_{int(number):04d}"
    endings = (".jpg", *sorted(IMAGE_SUFFIXES))
    places = [f"{stem}{ending}" for stem in (f"{name}/{file}", file) for ending in endings]
    return next((place for place in places if is_file(root / place)), places[0])


def _marked_pairs(path: Path, lines: Iterable[Line]) -> Iterator[ListedPair]:
    """Join every two lines to a pair."""
    begun: tuple[str, int] | None = None
    impostor_mark: int | None = None
    number = 0
    for number, (*names, mark) in lines:
        if len(names) != 1 or not (_is_number(mark) or mark == "-1"):
            _fail_line(path, number, [*names, mark], "'image mark', where the mark is 0 or -1, or the number of a fold")
        if begun is None:
            begun = names[0], int(mark)
            continue
        first, other = begun
        begun = None
        if int(mark) != other:
            raise DataError(
                f"{path}, line {number}: mark {mark}, but its pair began with mark {other}; correct the list"
            )
        if other < 1 and impostor_mark not in (None, other):
            raise DataError(
                f"{path}, line {number}: impostor pairs are marked 0 or -1, and this list has both; correct the list"
            )
        impostor_mark = other if other < 1 else impostor_mark
        yield ListedPair(number, first, names[0], other)
    if begun is not None:
        raise DataError(f"{path}, line {number}: an image without a second one; two lines make a pair")


def _share(pairs: Integers, fold: int) -> Integers:
    return pairs[fold * len(pairs) // FOLDS : (fold + 1) * len(pairs) // FOLDS]


def _plain_pairs(path: Path, first: Sequence[str], lines: Iterable[Line]) -> Iterator[ListedPair]:
    """Pairs with a mark in the last field, or in the first; the first line decides."""
    mark = 0 if first[0].lower() in MARKS and first[-1].lower() not in MARKS else -1
    wanted = "'image image 0|1'" if mark else "'0|1 image image'"
    if len(first) > 3:
        wanted += (
            "; if the list has more columns, name the columns in a first line: two of image files and one named label"
        )
    impostor_marks: set[int] = set()
    for number, fields in lines:
        if len(fields) != 3 or (value := MARKS.get(fields[mark].lower())) is None:
            _fail_line(path, number, fields, wanted)
        if value < 1:
            impostor_marks.add(value)
        if len(impostor_marks) > 1:
            _fail_line(path, number, fields, f"{wanted}: impostor pairs are marked 0 or -1, and this list has both")
        one, other = fields[1:] if mark == 0 else fields[:2]
        yield ListedPair(number, one, other, value)


def _fail_line(path: Path, number: int, fields: list[str], wanted: str) -> NoReturn:
    raise DataError(f"{path}, line {number}: {' '.join(fields)[:60]!r} is not {wanted}")


def _place_in(path: Path, number: int, root: Path, name: str) -> str:
    """Path of an image from `root` on."""
    if "\\" in name and "\0" not in name and not is_file(root / name):  # a list that was written on Windows
        name = name.replace("\\", "/")
    # Relative to the root and without `..`: a list may give a whole path, or a path that goes up and down again.
    inside = os.path.relpath(root / name, root)
    if leads_out(inside):
        raise DataError(f"{path}, line {number}: {name:.1000} leads out of {root}; name a folder that holds all images")
    return inside


def _read_image(path: Path, number: int, place: Path) -> bytes:
    try:
        return read_regular(place)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the name holds a NUL"
        raise DataError(
            f"{path}, line {number}: {place!s:.1000} cannot be read: {reason}; give the folder of the images by --root"
        ) from error
