"""The text index of a record file, read into arrays block by block: about 8 bytes of memory a record.

A line is `key<TAB>offset`. Keys usually count up in one or a few runs, so only the beginnings of runs are kept.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.system.regular_files import open_regular

BLOCK_BYTES = 2**18  # the arrays of a block fit in the processor's cache
BLOCK_NUMBERS = 2**15
MOST_DIGITS = 18  # of a number that surely fits in int64
LONGEST = 100  # digits, with zeros in front
LARGEST = 2**63 - 1

Integers = npt.NDArray[np.int64]
AnyIntegers = npt.NDArray[np.signedinteger[Any]]
Bytes = npt.NDArray[np.uint8]


class Runs:
    """N whole numbers as R runs of consecutive ones, such as the keys of a record file.

    Args:
        edges: (R + 1,) place of the first number of each run, ascending, and N.
        firsts: (R,) the first number of each run.

    >>> runs = Runs.of([np.array([5, 6]), np.array([7, 0])])
    >>> runs.firsts.tolist(), runs.at(range(4)).tolist(), runs.find([0, 6, 8]).tolist()
    ([5, 0], [5, 6, 7, 0], [3, 1, -1])
    """

    def __init__(self, edges: AnyIntegers, firsts: AnyIntegers) -> None:
        self.edges, self.firsts = edges, firsts

    @cached_property
    def _order(self) -> slice | AnyIntegers:
        """The runs in the order of their first numbers."""
        ascending = bool((self.firsts[1:] > self.firsts[:-1]).all())
        return slice(None) if ascending else _narrow(np.argsort(self.firsts, kind="stable"))

    @classmethod
    def of(cls, blocks: Iterable[Integers]) -> "Runs":
        """Runs of the numbers in these blocks, one after the other; there is at least one number."""
        edges: list[AnyIntegers] = []
        firsts: list[AnyIntegers] = []
        count, last = 0, np.int64(-2)
        for numbers in blocks:
            cuts = np.flatnonzero(np.diff(numbers, prepend=last) != 1)
            edges.append(_narrow(count + cuts))
            firsts.append(_narrow(numbers[cuts]))
            count, last = count + len(numbers), numbers[-1]
        return cls(np.concatenate([*edges, [count]], dtype=edges[-1].dtype), np.concatenate(firsts))

    def __len__(self) -> int:
        return int(self.edges[-1])

    def at(self, places: npt.ArrayLike) -> Integers:
        """The numbers at these places, in the shape of `places`."""
        wanted = np.asarray(places, dtype=np.int64)
        run = np.searchsorted(self.edges, wanted, side="right") - 1
        return np.asarray(self.firsts[run] + (wanted - self.edges[run]))

    def between(self, first: int, end: int) -> range | AnyIntegers:
        """The numbers at places `first` to `end` - 1; a range if they are consecutive."""
        one, other = np.searchsorted(self.edges, [first, end - 1], side="right")
        if one == other:
            start = int(self.at(first))
            return range(start, start + end - first)
        numbers = np.empty(end - first, self.firsts.dtype)
        for start in range(first, end, BLOCK_NUMBERS):  # the steps in between take five times the memory
            own = np.arange(start, min(start + BLOCK_NUMBERS, end))
            numbers[own - first] = self.at(own)
        return numbers

    def find(self, numbers: npt.ArrayLike) -> Integers:
        """The places of these numbers, -1 for one that is not there; same shape as `numbers`."""
        wanted = np.asarray(numbers, dtype=np.int64)
        run = np.maximum(np.searchsorted(self.firsts[self._order], wanted, side="right") - 1, 0)
        run = run if isinstance(self._order, slice) else self._order[run]
        places = self.edges[run] + (wanted - self.firsts[run])
        return np.where((places >= self.edges[run]) & (places < self.edges[run + 1]), places, -1)

    def by_number(self) -> "Runs":
        """The places of all numbers from the smallest to the largest, as runs."""
        firsts, lengths = self.edges[:-1][self._order], np.diff(self.edges)[self._order]
        new = np.append(True, firsts[1:] != firsts[:-1] + lengths[:-1])
        starts = np.cumsum(lengths, dtype=lengths.dtype)
        starts -= lengths
        return Runs(np.append(starts[new], self.edges[-1]), firsts[new])

    def repeated(self) -> int | None:
        """The smallest number that is there more than once; None if there is none."""
        firsts, lasts = self.firsts[self._order], np.diff(self.edges)[self._order]
        lasts = lasts + (firsts - 1)
        again = firsts[1:] <= np.maximum.accumulate(lasts, out=lasts)[:-1]
        return int(firsts[1:][again][0]) if again.any() else None


def _narrow(numbers: Integers) -> AnyIntegers:
    """The numbers in half of the memory, if the sum of two of them fits as well."""
    return numbers.astype(np.int32) if numbers.max(initial=0) < 2**30 else numbers


def read_index(path: Path, records: Path, size: int) -> tuple[Runs, Integers]:
    """Read the keys and the offsets (N,) of an index.

    Args:
        path: the index.
        records: the record file, for errors.
        size: of the record file in bytes; each offset is checked against it.

    Raises:
        DataError: the index cannot be read, or a line is broken; names the line.
    """
    try:
        offsets = np.empty(sum(lines.count(b"\n") for _, lines in _blocks(path)), np.int64)

        def keys() -> Iterator[Integers]:
            filled = 0
            for number, lines in _blocks(path):
                block, own = _parse(path, number, lines)
                wrong = (own % 4 != 0) | (own > size - 8)
                if wrong.any():
                    row = int(wrong.argmax())
                    reason = "outside the file" if own[row] > size - 8 else "not a multiple of 4"
                    what = f"key {block[row]}: byte offset {own[row]} is {reason}; {records.name} has {size} bytes"
                    raise DataError(f"{path}, line {number + row}: {what}; restore both files from one source")
                if filled + len(own) > len(offsets):
                    raise DataError(f"{path}: has grown while it was read; start again")
                offsets[filled : filled + len(own)] = own
                filled += len(own)
                yield block

        found = Runs.of(keys())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    return found, offsets[: len(found)]


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number of the first line, and whole lines that end in a line feed; blank lines at the end are left out."""
    number, blank = 1, 0
    for lines in _whole_lines(path):
        text = lines.rstrip(b"\n")
        if text:
            if blank:
                fail_at_line(path, blank, b"\n")
            text += b"\n"
            yield number, text
        if len(text) < len(lines) and not blank:
            blank = number + text.count(b"\n")
        number += lines.count(b"\n")
    if number == 1 or blank == 1:
        fail_at_line(path, 1, b"\n")


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    with open_regular(path) as file:
        while len(rest) < BLOCK_BYTES and (chunk := file.read(BLOCK_BYTES)):  # a longer line is refused
            lines, end, rest = (rest + chunk).rpartition(b"\n")
            if end:
                yield (lines + end).replace(b"\r\n", b"\n") if b"\r" in lines else lines + end
    if rest:
        yield rest + b"\n"


def _parse(path: Path, number: int, lines: bytes) -> tuple[Integers, Integers]:
    """Keys and offsets of whole lines."""
    characters = np.frombuffer(lines, np.uint8)
    digits = characters - np.uint8(ord("0"))
    ends = np.flatnonzero(digits > 9)
    lengths = np.diff(ends, prepend=-1) - 1
    marks = characters[ends]
    if len(ends) % 2 or (marks[::2] != ord("\t")).any() or (marks[1::2] != ord("\n")).any():
        fail_at_line(path, number, lines)
    if lengths.min() == 0 or lengths.max() > LONGEST:
        fail_at_line(path, number, lines)
    return _numbers(digits, ends[::2], lengths[::2]), _numbers(digits, ends[1::2], lengths[1::2])


def _numbers(digits: Bytes, ends: Integers, lengths: Integers) -> Integers:
    """The numbers that end before these places, digit by digit; one too large for int64 becomes the largest."""
    numbers = digits[ends - 1].astype(np.int64)
    for place in range(1, min(int(lengths.max()), MOST_DIGITS)):
        digit = digits.take(ends - 1 - place, mode="clip")
        numbers += np.where(lengths > place, digit, 0) * np.int64(10**place)
    for row in np.flatnonzero(lengths > MOST_DIGITS):
        field = digits[ends[row] - lengths[row] : ends[row]] + np.uint8(ord("0"))
        numbers[row] = min(int(field.tobytes()), LARGEST)
    return numbers


def fail_at_line(path: Path, first: int, lines: bytes) -> NoReturn:
    """Raise for the first of these lines that is not one of an index.

    Args:
        path: the index.
        first: number of the first line.
        lines: whole lines; one of them is wrong.
    """
    from facebones.system.files import stand_in

    if instead := stand_in(path):
        raise DataError(f"{path}: {instead}")
    for number, line in enumerate(lines.split(b"\n"), start=first):
        fields = line.split(b"\t")
        if len(fields) != 2 or not all(f.isdigit() and len(f) <= LONGEST for f in fields):
            shown = line[:40].decode("utf-8", "replace")
            raise DataError(f"{path}, line {number}: {shown!r} is not 'key<TAB>offset'; restore the index or remove it")
    raise AssertionError("a valid index")
