"""Sample verification pairs from a folder of people, in the form of LFW: ten folds, half of the pairs genuine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facebones.data.image_folder import ImageFolder
from facebones.data.pair_lists import FOLDS
from facebones.datatools.partial_folder import refuse_existing
from facebones.errors import ConfigError, DataError
from facebones.system.files import atomic_write

Integers = npt.NDArray[np.int64]

MOST_PAIRS = 1_000_000
LEAST_PEOPLE = 2 * FOLDS  # an impostor pair needs two people in each fold


class SampledPair(NamedTuple):
    """Indices of two images in the folder, and whether they show one person."""

    first: int
    second: int
    same: bool


@dataclass(frozen=True, kw_only=True)
class SampledPairs:
    """The result of `write_sampled_pairs`: numbers of pairs, half of them genuine, of people and of images."""

    source: Path
    destination: Path
    pairs: int
    people: int
    images: int

    def __str__(self) -> str:
        of = f"{self.pairs} pairs, half of them genuine, of {self.images} images of {self.people} people"
        return f"{self.source} -> {self.destination}: {of}; {FOLDS} folds, nobody in two of them"


def write_sampled_pairs(source: Path, destination: Path, *, pairs: int = 600, seed: int = 0) -> SampledPairs:
    """Sample pairs from an image folder and write a list with lines `image image 0|1`, paths inside the folder.

    Args:
        source: `source/<person>/*.jpg`, people who are not in the training set.
        destination: the list to create.
        pairs: P, a multiple of 20.
        seed: seed of the sampling.

    Raises:
        DataError: the folder cannot be read or has too few people, or the list exists.
        ConfigError: P is out of range, or more than the folder can give; names the largest possible number.
    """
    refuse_existing(destination)
    folder = ImageFolder(source)
    sampled = sample_pairs(folder.labels, pairs, seed, str(source))
    lines = [f"{_listable(folder, pair.first)}\t{_listable(folder, pair.second)}\t{pair.same:d}\n" for pair in sampled]
    with atomic_write(destination) as file:
        file.write("".join(lines).encode())
    used = np.unique([image for pair in sampled for image in pair[:2]])
    people = len(np.unique(folder.labels[used]))
    return SampledPairs(source=source, destination=destination, pairs=pairs, people=people, images=len(used))


def sample_pairs(labels_N: Integers, pairs: int, seed: int, what: str) -> list[SampledPair]:
    """Sample pairs in ten folds without common people; in each fold, genuine pairs come first.

    People are sampled evenly, not images, so a person with many photos does not dominate. No pair occurs twice.

    Args:
        labels_N: (N,) the person of each image.
        pairs: P, a multiple of 20.
        seed: seed of the sampling.
        what: name of the folder in an error.

    Returns:
        P pairs; fold k is pairs k * P / 10 to (k + 1) * P / 10.

    Raises:
        DataError: there are fewer than 20 people.
        ConfigError: P is out of range, or more than the people can give.

    >>> pairs = sample_pairs(np.arange(60) // 2, 20, seed=0, what="faces")  # 30 people with two images each
    >>> [pair.same for pair in pairs[:4]]
    [True, False, True, False]
    """
    if not 2 * FOLDS <= pairs <= MOST_PAIRS or pairs % (2 * FOLDS):
        raise ConfigError(f"pairs: {pairs} is not a multiple of {2 * FOLDS} from {2 * FOLDS} to {MOST_PAIRS}")
    rng = np.random.default_rng(seed)
    folds = _folds(labels_N, rng, what)
    if pairs > (most := _most(folds)):
        fix = f"give --pairs {most} or less" if most else f"{FOLDS} people or more must have two images"
        raise ConfigError(f"{what}: {pairs} pairs are more than its people give in {FOLDS} folds; {fix}")
    half = pairs // (2 * FOLDS)
    return [pair for fold in folds for pair in (*_genuine(fold, half, rng), *_impostor(fold, half, rng))]


def most_pairs(labels_N: Integers, seed: int, what: str) -> int:
    """The largest number of pairs that `sample_pairs` can sample; 0 where fewer than ten people have two images.

    Raises:
        DataError: there are fewer than 20 people.

    >>> most_pairs(np.arange(60) // 2, seed=0, what="faces")
    60
    """
    return min(_most(_folds(labels_N, np.random.default_rng(seed), what)), MOST_PAIRS)


def _folds(labels_N: Integers, rng: np.random.Generator, what: str) -> list[list[Integers]]:
    """The images of each person of each fold."""
    people, counts = np.unique(labels_N, return_counts=True)
    if len(people) < LEAST_PEOPLE:
        raise DataError(f"{what}: {len(people)} people; {FOLDS} folds without a common person need {LEAST_PEOPLE}")
    order = rng.permutation(len(people))
    order = order[np.argsort(-counts[order], kind="stable")]
    images = {int(person): np.flatnonzero(labels_N == person) for person in people}
    return [[images[int(people[place])] for place in order[_dealt(len(order), fold)]] for fold in range(FOLDS)]


def _most(folds: Sequence[Sequence[Integers]]) -> int:
    return 2 * FOLDS * min(min(_genuine_count(fold), _impostor_count(fold)) for fold in folds)


def _dealt(people: int, fold: int) -> list[int]:
    """Indices of the people of a fold; dealing back and forth spreads the people with many images."""
    return [place for place in range(people) if fold in {place % (2 * FOLDS), 2 * FOLDS - 1 - place % (2 * FOLDS)}]


def _genuine_count(fold: Sequence[Integers]) -> int:
    return sum(len(images) * (len(images) - 1) // 2 for images in fold)


def _impostor_count(fold: Sequence[Integers]) -> int:
    total = sum(len(images) for images in fold)
    return total * (total - 1) // 2 - _genuine_count(fold)


def _genuine(fold: Sequence[Integers], wanted: int, rng: np.random.Generator) -> list[SampledPair]:
    """Take one pair of each person in turn, until there are enough."""
    pairs: list[SampledPair] = []
    stacks = [_pairs_of(images, wanted, rng) for images in fold]
    while len(pairs) < wanted:
        for stack in stacks:
            if stack and len(pairs) < wanted:
                pairs.append(stack.pop())
    return pairs


def _pairs_of(images: Integers, most: int, rng: np.random.Generator) -> list[SampledPair]:
    """Sample up to `most` pairs of the images of one person."""
    first, second = np.triu_indices(min(len(images), 2 * most + 2), 1)
    shuffled = rng.permutation(images)
    chosen = rng.permutation(len(first))[:most]
    return [SampledPair(int(shuffled[first[k]]), int(shuffled[second[k]]), True) for k in chosen]


def _impostor(fold: Sequence[Integers], wanted: int, rng: np.random.Generator) -> list[SampledPair]:
    """Sample two people, then an image of each; if few pairs are left over, sample from all pairs."""
    if _impostor_count(fold) < 4 * wanted:
        return _impostor_of_all(fold, wanted, rng)
    pairs: dict[tuple[int, int], SampledPair] = {}
    while len(pairs) < wanted:
        people = rng.choice(len(fold), 2, replace=False)
        first, second = (int(rng.choice(fold[person])) for person in people)
        pairs.setdefault((min(first, second), max(first, second)), SampledPair(first, second, False))
    return list(pairs.values())


def _impostor_of_all(fold: Sequence[Integers], wanted: int, rng: np.random.Generator) -> list[SampledPair]:
    images = np.concatenate(fold)
    person = np.repeat(np.arange(len(fold)), [len(own) for own in fold])
    first, second = np.triu_indices(len(images), 1)
    apart = np.flatnonzero(person[first] != person[second])
    chosen = rng.permutation(apart)[:wanted]
    return [SampledPair(int(images[first[k]]), int(images[second[k]]), False) for k in chosen]


def _listable(folder: ImageFolder, index: int) -> str:
    """Path of an image, in quotes where it begins with one; refused if a line of a list cannot hold it."""
    path = folder.relative_path(index)
    if path != path.strip() or not path.isprintable():
        raise DataError(f"{os.fspath(folder.path)}/{path!r}: a pair list cannot hold this name; rename the file")
    return '"' + path.replace('"', '""') + '"' if path.startswith('"') else path
