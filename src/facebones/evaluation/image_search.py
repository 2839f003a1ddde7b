"""Searches with single images in galleries of millions: features are normalised and compared block by block.

A score is a cosine. Scores that differ by less than `TIE`, the rounding of a single-precision product, are equal, and
an image of somebody else ranks before an equally similar one of the right person.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.evaluation.embed import ImageEmbeddings, flip_sum_normalised
from facebones.evaluation.protocol import Features

TIE = 1e-6
BLOCK = 4096  # images of a gallery, and probes, at a time

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """What searches with K probes found: M pairs of a probe and an image of the same person in the gallery.

    Attributes:
        probe: (M,) number of the probe, rising.
        others: (M,) images of other people that are as similar to the probe, or more.
        place: (M,) place of the image among those of its person, from 1, by falling similarity to the probe.
    """

    probe: IntArray
    others: IntArray
    place: IntArray

    def rank(self, probes: int) -> IntArray:
        """(K,) rank of the first image of the right person, from 1; 0 where the gallery has none."""
        rank = np.zeros(probes, dtype=np.int64)
        first = self.place == 1
        rank[self.probe[first]] = 1 + self.others[first]
        return rank

    def average_precision(self, probes: int) -> npt.NDArray[np.float64]:
        """(K,) area under precision over recall, by trapezoids from a precision of 1; 0 where the gallery has no image.

        Precision is read at each image of the right person and at the image before it, as the program of Market-1501
        does, which TinyFace's evaluation took over.
        """
        rank = self.place + self.others
        before = np.where(rank > 1, (self.place - 1) / np.maximum(rank - 1, 1), 1.0)
        each = (before + self.place / rank) / 2
        mates = np.bincount(self.probe, minlength=probes)
        return np.bincount(self.probe, each, minlength=probes) / np.maximum(mates, 1)


def unit_rows(name: str, features_NxVxD: Features, rows: Any) -> FloatArray:
    """Some embeddings, image and mirror image added, of length 1.

    Raises:
        DataError: one has no direction.
    """
    return flip_sum_normalised(ImageEmbeddings.of(name, features_NxVxD[rows])).astype(np.float32)


def blocks(start: int, stop: int) -> Iterator[slice]:
    """Slices of at most `BLOCK` places from `start` to `stop`."""
    for begin in range(start, stop, BLOCK):
        yield slice(begin, min(begin + BLOCK, stop))


def search_images(
    probes_KxD: FloatArray,
    person_K: IntArray,
    name: str,
    gallery_NxVxD: Features,
    person_N: IntArray,
) -> Found:
    """Search a gallery of images with each probe.

    Args:
        probes_KxD: of length 1.
        person_K: the probes' people, from 0.
        name: of the gallery's images, for errors.
        gallery_NxVxD: embeddings of the gallery, possibly a memory map.
        person_N: their people; below 0 for a distractor.

    Raises:
        DataError: an embedding has no direction.
    """
    probe, image = _mates(person_K, person_N)
    own = _own_scores(probes_KxD, name, gallery_NxVxD, probe, image)
    others = np.zeros(probe.size, dtype=np.int64)
    for block in blocks(0, len(gallery_NxVxD)):
        rows = unit_rows(name, gallery_NxVxD, block)
        for part in blocks(0, probe.size):
            first, last = probe[part][0], probe[part][-1]
            score = probes_KxD[first : last + 1] @ rows.T
            mine = slice(*np.searchsorted(probe, [first, last + 1]))  # a probe may be in two parts
            inside = (image[mine] >= block.start) & (image[mine] < block.stop)
            score[probe[mine][inside] - first, image[mine][inside] - block.start] = -np.inf
            others[part] += (score[probe[part] - first] >= own[part, None] - TIE).sum(axis=1)
    order = np.lexsort((-own, probe))
    place = np.empty(probe.size, dtype=np.int64)
    place[order] = np.arange(probe.size) - np.searchsorted(probe, probe) + 1
    return Found(probe=probe, others=others, place=place)


def _mates(person_K: IntArray, person_N: IntArray) -> tuple[IntArray, IntArray]:
    """All pairs of a probe and an image of its person, (M,) and (M,), by the probe."""
    order = np.argsort(person_N, kind="stable")
    low, high = (np.searchsorted(person_N[order], person_K, side=side) for side in ("left", "right"))
    mates = high - low
    probe = np.repeat(np.arange(person_K.size), mates)
    inside = np.arange(probe.size) - np.repeat(np.cumsum(mates) - mates, mates)
    return probe, order[np.repeat(low, mates) + inside]


def _own_scores(probes_KxD: FloatArray, name: str, gallery: Features, probe: IntArray, image: IntArray) -> FloatArray:
    score = np.empty(probe.size, dtype=np.float32)
    for part in blocks(0, probe.size):
        known, place = np.unique(image[part], return_inverse=True)
        rows = unit_rows(name, gallery, known)
        score[part] = np.einsum("md,md->m", probes_KxD[probe[part]], rows[place])
    return score
