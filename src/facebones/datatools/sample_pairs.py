"""Verification pairs drawn from a folder of people, in the shape of LFW's: ten folds, half of the pairs genuine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facebones.data.folders import ImageFolder
from facebones.data.pair_lists import FOLDS
from facebones.datatools.partial_folder import refuse_existing
from facebones.errors import ConfigError, DataError
from facebones.system.files import atomic_write

Integers = npt.NDArray[np.int64]

MOST_PAIRS = 1_000_000
LEAST_PEOPLE = 2 * FOLDS  # an impostor pair needs two people in each fold


class DrawnPair(NamedTuple):
    """Two images by their indices in the folder, and whether they show one person."""

    first: int
    second: int
    same: bool


@dataclass(frozen=True, kw_only=True)
class DrawnPairs:
    """What `write_drawn_pairs` has written: a list of pairs, half of them genuine, of so many people and images."""

    source: Path
    destination: Path
    pairs: int
    people: int
    images: int

    def __str__(self) -> str:
        of = f"{self.pairs} pairs, half of them genuine, of {self.images} images of {self.people} people"
        return f"{self.source} -> {self.destination}: {of}; {FOLDS} folds, nobody in two of them"


def write_drawn_pairs(source: Path, destination: Path, *, pairs: int = 600, seed: int = 0) -> DrawnPairs:
    """Draw pairs from an image folder and write a list of lines `image image 0|1`, paths inside the folder.

    Args:
        source: `source/<person>/*.jpg`, people who are not trained on.
        destination: the list; refused where it exists.
        pairs: P, a multiple of 20.
        seed: decides the drawing.

    Raises:
        DataError: the folder cannot be read or has too few people, or the list exists.
        ConfigError: a number is out of range, or more than the folder can give; the message says how many it can.
    """
    refuse_existing(destination)
    folder = ImageFolder(source)
    drawn = draw_pairs(folder.labels, pairs, seed, str(source))
    lines = [f"{_listable(folder, pair.first)}\t{_listable(folder, pair.second)}\t{pair.same:d}\n" for pair in drawn]
    with atomic_write(destination) as file:
        file.write("".join(lines).encode())
    used = np.unique([image for pair in drawn for image in pair[:2]])
    people = len(np.unique(folder.labels[used]))
    return DrawnPairs(source=source, destination=destination, pairs=pairs, people=people, images=len(used))


def draw_pairs(labels_N: Integers, pairs: int, seed: int, what: str) -> list[DrawnPair]:
    """Draw pairs in ten folds, each with people of its own, its genuine pairs first.

    People are drawn evenly, not images, so that somebody with many photos does not stand for all. No pair occurs twice.

    Args:
        labels_N: (N,) the person of each image.
        pairs: P, a multiple of 20.
        seed: decides the drawing.
        what: how to name the folder in an error.

    Returns:
        P pairs; fold k is pairs k * P / 10 to (k + 1) * P / 10.

    Raises:
        DataError: there are fewer than 20 people.
        ConfigError: P is out of range, or more than the people can give.
    """
    if not 2 * FOLDS <= pairs <= MOST_PAIRS or pairs % (2 * FOLDS):
        raise ConfigError(f"pairs: {pairs} is not a multiple of {2 * FOLDS} from {2 * FOLDS} to {MOST_PAIRS}")
    people, counts = np.unique(labels_N, return_counts=True)
    if len(people) < LEAST_PEOPLE:
        raise DataError(f"{what}: {len(people)} people; {FOLDS} folds without a common person need {LEAST_PEOPLE}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(people))
    order = order[np.argsort(-counts[order], kind="stable")]
    images = {int(person): np.flatnonzero(labels_N == person) for person in people}
    folds = [[images[int(people[place])] for place in order[_dealt(len(order), fold)]] for fold in range(FOLDS)]
    most = 2 * FOLDS * min(min(_genuine_count(fold), _impostor_count(fold)) for fold in folds)
    if pairs > most:
        mend = f"give --pairs {most} or less" if most else f"{FOLDS} people or more must have two images"
        raise ConfigError(f"{what}: {pairs} pairs are more than its people give in {FOLDS} folds; {mend}")
    half = pairs // (2 * FOLDS)
    return [pair for fold in folds for pair in (*_genuine(fold, half, rng), *_impostor(fold, half, rng))]


def _dealt(people: int, fold: int) -> list[int]:
    """Places of a fold's people when they are dealt to and fro, so that those with many images are spread."""
    return [place for place in range(people) if fold in {place % (2 * FOLDS), 2 * FOLDS - 1 - place % (2 * FOLDS)}]


def _genuine_count(fold: Sequence[Integers]) -> int:
    return sum(len(images) * (len(images) - 1) // 2 for images in fold)


def _impostor_count(fold: Sequence[Integers]) -> int:
    total = sum(len(images) for images in fold)
    return total * (total - 1) // 2 - _genuine_count(fold)


def _genuine(fold: Sequence[Integers], wanted: int, rng: np.random.Generator) -> list[DrawnPair]:
    """Take a pair of each person in turn, until there are enough."""
    pairs: list[DrawnPair] = []
    stacks = [_pairs_of(images, wanted, rng) for images in fold]
    while len(pairs) < wanted:
        for stack in stacks:
            if stack and len(pairs) < wanted:
                pairs.append(stack.pop())
    return pairs


def _pairs_of(images: Integers, most: int, rng: np.random.Generator) -> list[DrawnPair]:
    """Draw up to `most` pairs of one person's images."""
    first, second = np.triu_indices(min(len(images), 2 * most + 2), 1)
    shuffled = rng.permutation(images)
    chosen = rng.permutation(len(first))[:most]
    return [DrawnPair(int(shuffled[first[k]]), int(shuffled[second[k]]), True) for k in chosen]


def _impostor(fold: Sequence[Integers], wanted: int, rng: np.random.Generator) -> list[DrawnPair]:
    """Draw two people, then an image of each; where that would take long, draw from all pairs."""
    if _impostor_count(fold) < 4 * wanted:
        return _impostor_of_all(fold, wanted, rng)
    pairs: dict[tuple[int, int], DrawnPair] = {}
    while len(pairs) < wanted:
        people = rng.choice(len(fold), 2, replace=False)
        first, second = (int(rng.choice(fold[person])) for person in people)
        pairs.setdefault((min(first, second), max(first, second)), DrawnPair(first, second, False))
    return list(pairs.values())


def _impostor_of_all(fold: Sequence[Integers], wanted: int, rng: np.random.Generator) -> list[DrawnPair]:
    images = np.concatenate(fold)
    person = np.repeat(np.arange(len(fold)), [len(own) for own in fold])
    first, second = np.triu_indices(len(images), 1)
    apart = np.flatnonzero(person[first] != person[second])
    chosen = rng.permutation(apart)[:wanted]
    return [DrawnPair(int(images[first[k]]), int(images[second[k]]), False) for k in chosen]


def _listable(folder: ImageFolder, index: int) -> str:
    """The path of an image, if a line of a list can hold it."""
    path = folder.relative_path(index)
    if path != path.strip() or not path.isprintable():
        raise DataError(f"{os.fspath(folder.path)}/{path!r}: a pair list cannot hold this name; rename the file")
    return path
