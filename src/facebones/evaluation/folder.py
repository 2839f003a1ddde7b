"""The protocol `folder`: all pairs of images of a labelled folder, which measures far lower FARs than listed pairs.

A thousand photos of a hundred people make half a million pairs. Any training set will do: a folder of folders, record
files, or a plug-in's format. Nobody in it may be in the training data.

All pairs are counted, not kept: scores are cosines, rounded to STEP, which is finer than the rounding of a
single-precision product, and two tables hold how many genuine and impostor pairs have each of them. So the ROC curve is
exact, and memory depends on the images alone. Intervals and tests come from the bootstrap over identities on at most
`SAMPLED` pairs of each kind, drawn at random; where there are fewer, on all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.folders import open_labelled_images
from facebones.data.group_lists import Faces
from facebones.data.image_sources import TrainingImages
from facebones.data.training_set import TrainingSet
from facebones.errors import DataError
from facebones.evaluation.accept_rates import FAR_TARGETS, with_main_rate, write_curves
from facebones.evaluation.embed import ImageEmbeddings, flip_sum_normalised, mean_norm
from facebones.evaluation.protocol import Features, Protocol, ProtocolResult, register_protocol
from facebones.statistics.bootstrap import REPLICATES, ResampledMetric, resample_verification
from facebones.statistics.calibration import ScoredPairs
from facebones.statistics.curves import (
    RocCurve,
    area_under_curve,
    corners,
    equal_error_rate,
    roc,
    roc_of_counts,
    true_accept_rate_at,
)
from facebones.statistics.metric import Metric
from facebones.statistics.significance import compare_models

STEP = 2.0**-19
LEVELS = 2**20 + 1  # of cosines from -1 to 1
TILE = 2048  # rows and columns of scores at a time
SAMPLED = 2_000_000

Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]  # (N, D) of length 1


@register_protocol
class FolderProtocol(Protocol):
    """All pairs of images of a labelled folder: strict TAR at each FAR, AUC and EER.

    Args:
        path: a training set.
        impostors: take this many random impostor pairs instead of all.
        seed: of the random pairs.
    """

    name = "folder"

    def __init__(self, path: Path | str, impostors: int | None = None, seed: int = 0) -> None:
        super().__init__(path)
        self.impostors, self.seed = impostors, seed

    @classmethod
    def find(cls, path: Path) -> list[Self]:
        """The folder or file itself; `check` refuses what is no training set."""
        return [cls(path)]

    @cached_property
    def data(self) -> TrainingSet:
        """The images and their labels.

        Raises:
            DataError: it cannot be read, or has no two images of one person or no two people.
        """
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file or folder; check the path of the evaluation set")
        data = open_labelled_images(self.path)
        if data.labels.min() == data.labels.max():
            raise DataError(f"{self.path}: all images are of one person, so no pair is of two; choose another folder")
        if np.bincount(np.unique(data.labels, return_inverse=True)[1]).max() < 2:
            raise DataError(f"{self.path}: no person has two images, so no pair is genuine; choose another folder")
        return data

    def check(self) -> None:
        """Read the labels and the first image."""
        TrainingImages(type(self)(self.path).data).read(0, IMAGE_SIZE)

    def images(self) -> TrainingImages:
        """All images of the folder."""
        return TrainingImages(self.data)

    def notes(self) -> list[str]:
        """What the reader of the folder has to say."""
        return list(self.data.notes)

    def sizes(self) -> dict[str, int]:
        """Numbers of images, people and pairs."""
        images, genuine = len(self.data), _genuine_pairs(self._labels)
        impostors = images * (images - 1) // 2 - genuine
        people = int(np.unique(self._labels).size)
        pairs = {"genuine": genuine, "impostors": min(self.impostors or impostors, impostors)}
        return {"images": images, "people": people, **pairs}

    def written_files(self, models: Sequence[str]) -> list[str]:
        """The ROC curves, MODEL_SET_roc.npz."""
        return [self._curve_file(model) for model in models]

    def evaluate(self, features_NxVxD: Features) -> list[Metric]:
        """Verify the pairs with one model; intervals by bootstrap over identities."""
        (result,) = self.compare({"": features_NxVxD}, bootstrap=REPLICATES, seed=0)
        return result.of("")

    def scored_pairs(self, features_NxVxD: Features) -> ScoredPairs:
        """At most `SAMPLED` random pairs of each kind."""
        first, second = self._sample()
        people = self._labels[first], self._labels[second]
        score = cosines(self._rows(features_NxVxD), first, second)
        return ScoredPairs(score, people[0] == people[1], *people, items=(first, second))

    def faces(self) -> Faces:
        """Images by their paths inside the folder, or their numbers; people by their folders, or their labels."""
        images, (labels, of_image) = len(self.data), np.unique(self._labels, return_inverse=True)
        names = [self.data.identity_name(label) for label in labels.tolist()]
        return Faces(
            images=[self.data.image_name(index) for index in range(images)],
            item=np.arange(images),
            person=of_image,
            people=[names[person] for person in of_image.tolist()],
        )

    def compare(
        self, features: Mapping[str, Features], *, bootstrap: int, seed: int, output: Path | None = None
    ) -> list[ProtocolResult]:
        """Verify all pairs with several models, and test their differences.

        With an output, MODEL_SET_roc.npz holds the corners of each ROC curve.
        """
        first, second = self._sample()
        people = self._labels[first], self._labels[second]
        same = people[0] == people[1]
        scores, curves = [], {}
        for model, features_NxVxD in features.items():
            rows = self._rows(features_NxVxD)
            scores.append(cosines(rows, first, second))
            curves[model] = corners(roc(scores[-1], same) if self.impostors else all_pairs_curve(rows, self._labels))
        drawn = resample_verification(scores, same, people, far_targets=FAR_TARGETS, replicates=bootstrap, seed=seed)
        exact = [with_exact_values(metric, list(curves.values())) for metric in drawn]
        files = {model: self._curve_file(model) for model in features}
        result = self.result(
            compare_models(list(features), with_main_rate(exact)),
            details={model: {"xnorm": mean_norm(ImageEmbeddings.of(self.set, row))} for model, row in features.items()},
            curves={} if output is None else write_curves(output, curves, files),
        )
        return [result]

    @property
    def _labels(self) -> npt.NDArray[Any]:
        return np.asarray(self.data.labels)

    def _rows(self, features_NxVxD: Features) -> Rows:
        return flip_sum_normalised(ImageEmbeddings.of(self.set, features_NxVxD)).astype(np.float32)

    def _sample(self) -> tuple[Integers, Integers]:
        """The first and the second image of the pairs that are resampled."""
        return sampled_pairs(self._labels, SAMPLED, self.impostors or SAMPLED, self.seed)

    def _curve_file(self, model: str) -> str:
        return f"{model}_{self.set}_roc.npz"


def all_pairs_curve(rows_NxD: Rows, label_N: npt.NDArray[Any]) -> RocCurve:
    """The exact ROC curve of the cosines, rounded to STEP, of all pairs of N images.

    Args:
        rows_NxD: embeddings of length 1.
        label_N: the person of each image.

    Raises:
        ValueError: pairs of one kind only.
    """
    order = np.argsort(label_N, kind="stable")
    rows, labels = rows_NxD[order], label_N[order]
    genuine, every = np.zeros(LEVELS, np.int64), np.zeros(LEVELS, np.int64)
    for one, other in _tiles(len(rows)):
        level = score_levels(rows[one] @ rows[other].T)
        same = labels[one][:, None] == labels[other][None, :] if labels[one][-1] >= labels[other][0] else None
        if one == other:
            above = np.triu_indices(len(level), 1)
            level, same = level[above], None if same is None else same[above]
        every += np.bincount(level.ravel(), minlength=LEVELS)
        if same is not None:
            genuine += np.bincount(level[same], minlength=LEVELS)
    return roc_of_counts(np.arange(LEVELS) * STEP - 1, genuine, every - genuine)


def sampled_pairs(
    label_N: npt.NDArray[Any], most_genuine: int, most_impostors: int, seed: int
) -> tuple[Integers, Integers]:
    """Genuine pairs, then impostor pairs, as numbers of their images: all, or as many random ones as are wanted.

    >>> [side.tolist() for side in sampled_pairs(np.array([0, 1, 0]), 10, 10, seed=0)]
    [[0, 0, 1], [2, 1, 2]]
    """
    random = np.random.default_rng(seed)
    order = np.argsort(label_N, kind="stable")
    size = np.unique(label_N, return_counts=True)[1]
    genuine = _genuine_sample(order, size, most_genuine, random)
    images, impostors = label_N.size, label_N.size * (label_N.size - 1) // 2 - _genuine_pairs(label_N)
    if impostors <= most_impostors:
        first, second = np.concatenate(list(_rows_above(images)), axis=1)
        apart = label_N[first] != label_N[second]
        return np.append(genuine[0], first[apart]), np.append(genuine[1], second[apart])
    found = np.empty(0, np.int64)
    while found.size < most_impostors:
        one, other = random.integers(images, size=(2, most_impostors))
        apart = label_N[one] != label_N[other]
        pair = np.minimum(one, other)[apart] * images + np.maximum(one, other)[apart]
        found = np.unique(np.append(found, pair))
    found = np.sort(random.permutation(found)[:most_impostors])
    return np.append(genuine[0], found // images), np.append(genuine[1], found % images)


def _genuine_sample(
    order: npt.NDArray[np.intp], size: npt.NDArray[np.intp], most: int, random: np.random.Generator
) -> tuple[Integers, Integers]:
    """Genuine pairs by their number: person after person, in each the pairs (1, 0), (2, 0), (2, 1), (3, 0), ..."""
    pairs = size * (size - 1) // 2
    until = np.cumsum(pairs)
    total = int(until[-1])
    number = np.arange(total) if total <= most else np.sort(random.choice(total, most, replace=False))
    person = np.searchsorted(until, number, side="right")
    inside = number - (until - pairs)[person]
    later = ((1 + np.sqrt(1 + 8 * inside)) / 2).astype(np.int64)
    later -= later * (later - 1) // 2 > inside  # the root may be rounded up
    start = (np.cumsum(size) - size)[person]
    one, other = order[start + inside - later * (later - 1) // 2], order[start + later]
    return np.minimum(one, other), np.maximum(one, other)


def _genuine_pairs(label_N: npt.NDArray[Any]) -> int:
    size = np.unique(label_N, return_counts=True)[1].astype(np.int64)
    return int(np.sum(size * (size - 1) // 2))


def _rows_above(images: int) -> Iterator[Integers]:
    """All pairs of images, by the first."""
    for one in range(images - 1):
        yield np.stack([np.full(images - one - 1, one), np.arange(one + 1, images)])


def _tiles(images: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and columns that cover all pairs of images once."""
    parts = [slice(start, min(start + TILE, images)) for start in range(0, images, TILE)]
    for number, one in enumerate(parts):
        for other in parts[number:]:
            yield one, other


def score_levels(score: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Number of the rounded score, from 0 for -1 to LEVELS - 1 for 1; the scores are overwritten."""
    score += 1
    score *= 1 / STEP
    score += 0.5
    return np.clip(score, 0, LEVELS - 1, out=score).astype(np.int32)


def cosines(rows: Rows, first: Integers, second: Integers) -> npt.NDArray[np.float64]:
    """Cosines of pairs, rounded to STEP."""
    score = np.empty(first.size, np.float32)
    for start in range(0, first.size, TILE * 8):
        part = slice(start, start + TILE * 8)
        score[part] = np.einsum("pd,pd->p", rows[first[part]], rows[second[part]])
    return np.asarray(score_levels(score) * STEP - 1, np.float64)


def with_exact_values(metric: ResampledMetric | Metric, curves: list[RocCurve]) -> ResampledMetric | Metric:
    """A resampled metric with the values of all pairs."""
    if not isinstance(metric, ResampledMetric):
        return metric
    far = metric.metric.at.get("far")
    if far is not None:
        values = [true_accept_rate_at(curve, far) for curve in curves]
    else:
        values = [(area_under_curve if metric.metric.name == "auc" else equal_error_rate)(curve) for curve in curves]
    return replace(metric, values=np.array(values))
