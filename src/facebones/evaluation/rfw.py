"""The protocol `rfw`: pairs of four groups (African, Asian, Caucasian, Indian), and how unequal the accuracies are.

Layout, as published: `txts/GROUP/GROUP_pairs.txt` with 6,000 pairs in ten folds, in the format of LFW, and images
`data/GROUP/PERSON/PERSON_000n.jpg`; both may be in a folder `test`. Each group is verified by itself, by the rules of
the protocol `pairs`, with thresholds of its own. People are known, and resampled.

Over the groups: the mean accuracy; the standard deviation of the accuracies (divisor n - 1; tables that divide by n
show 0.87 times as much); the skewed error ratio, that of the highest error to the lowest, where 1 means that all groups
are alike.

Sources: M. Wang, W. Deng, J. Hu, X. Tao, Y. Huang, "Racial Faces in the Wild", ICCV 2019 (arXiv 1812.00194), for the
set; M. Wang, W. Deng, "Mitigating Bias in Face Recognition Using Skewness-Aware Reinforcement Learning", CVPR 2020
(arXiv 1911.10692), for the deviation and the skewed error ratio.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.data.group_lists import Faces, Grouping
from facebones.data.image_sources import EncodedImages
from facebones.data.images import image_size
from facebones.errors import DataError
from facebones.evaluation.pairs import PairsProtocol, compare_on_pairs
from facebones.evaluation.protocol import Features, ProtocolResult, register_protocol
from facebones.evaluation.published_folder import PublishedFolder
from facebones.evaluation.verification import PairSetResult, correct_pairs, verify_features
from facebones.statistics.bootstrap import ACCURACY, ResampledMetric, resample_accuracy
from facebones.statistics.calibration import ScoredPairs
from facebones.statistics.group_rates import bias_corrected
from facebones.statistics.metric import Metric
from facebones.statistics.significance import compare_models

GROUPS = ("African", "Asian", "Caucasian", "Indian")
LISTS, IMAGES, TEST = "txts", "data", "test"
LOOSE = (400, 400)  # height and width of the images as published, before they are aligned
DEVIATION = Metric(name="group_deviation", higher_is_better=False)

FloatArray = npt.NDArray[np.float64]


@register_protocol
class RFW(PublishedFolder):
    """The four groups of RFW: accuracy, TAR at FAR 0.001, AUC and EER of each, and the differences between them.

    Args:
        path: the folder with `txts` and `data`, or with `test`, which holds them.
    """

    name = "rfw"

    @cached_property
    def groups(self) -> dict[str, PairsProtocol]:
        """The pairs of each group.

        Raises:
            DataError: a list or a folder of images is missing or broken.
        """
        root = rfw_root(self.path)
        found = {}
        for group in GROUPS:
            found[group] = PairsProtocol(root / LISTS / group / f"{group}_pairs.txt", root / IMAGES / group)
            _ = found[group].pair_set
        return found

    def images(self) -> EncodedImages:
        """The images of all pairs, group by group."""
        images = [image for one in self.groups.values() for image in one.pair_set.images]
        return EncodedImages(str(self.path), images)

    def notes(self) -> list[str]:
        """Those of the lists, and images that are not aligned yet."""
        notes = [note for one in self.groups.values() for note in one.notes()]
        if image_size(self.groups[GROUPS[0]].pair_set.images[0]) == LOOSE:
            notes.append(f"{self.path}: the images are loose, as published; align them by `facebones data align` first")
        return notes

    def sizes(self) -> dict[str, int]:
        """Numbers of pairs in all, and of groups."""
        return {"pairs": sum(len(one.pair_set) for one in self.groups.values()), "groups": len(GROUPS)}

    def written_files(self, models: Sequence[str]) -> list[str]:
        """The files of scores, MODEL_SET_GROUP_scores.npz."""
        return [self._scores_file(model, group) for model in models for group in GROUPS]

    def items(self) -> npt.NDArray[np.integer[Any]]:
        """The number of the name in each place; names of a group follow those of the groups before."""
        return np.concatenate([start + one.items() for start, one in self._numbered()])

    def scored_pairs(self, features_NxVxD: Features) -> ScoredPairs:
        """The pairs of all groups; none are across groups."""
        parts = [
            one.scored_pairs(rows) for one, rows in zip(self.groups.values(), self._parts(features_NxVxD), strict=True)
        ]
        first, second = self.items().reshape(-1, 2).T
        person = self.faces().person
        people = {} if person is None else {"first": person[first], "second": person[second]}
        score, same = (np.concatenate([getattr(one, name) for one in parts]) for name in ("score", "is_same"))
        return ScoredPairs(score, same, items=(first, second), **people)

    def faces(self) -> Faces:
        """Images by GROUP/PERSON/FILE, and people by PERSON, where the folders agree with the labels."""
        parts = {group: one.faces() for group, one in self.groups.items()}
        images = [f"{group}/{name}" for group, one in parts.items() for name in one.images]
        item = np.arange(len(images))
        people = [name for one in parts.values() for name in one.people or ()]
        if len(people) != len(images):
            return Faces(images=images, item=item)
        return Faces(images=images, item=item, person=np.unique(people, return_inverse=True)[1], people=people)

    def groupings(self) -> list[Grouping]:
        """The group of each image."""
        sizes = [len(one.faces().images) for one in self.groups.values()]
        group = np.repeat(np.arange(len(GROUPS)), sizes)
        return [Grouping(name="group", groups=GROUPS, group=group, without=0, mixed=0)]

    def compare(
        self, features: Mapping[str, Features], *, bootstrap: int, seed: int, output: Path | None = None
    ) -> list[ProtocolResult]:
        """Verify each group with several models, one result for each, and then the groups together.

        With an output, MODEL_SET_GROUP_scores.npz holds the squared distance and the label of each pair.
        """
        parts = {model: self._parts(rows) for model, rows in features.items()}
        results, accuracies = [], []
        for place, (group, one) in enumerate(self.groups.items()):
            verified = {model: verify_features(rows[place], one.pair_set) for model, rows in parts.items()}
            drawing: dict[str, Any] = {"identities": _identities(one), "seed": seed + place}  # people of its own
            metrics = compare_on_pairs(one.pair_set, verified, bootstrap, **drawing)
            details = {model: found.to_json() for model, found in verified.items()}
            curves = {} if output is None else self._write(output, group, verified)
            sizes = {"pairs": len(one.pair_set)}
            results.append(self.result(metrics, group, sizes=sizes, details=details, curves=curves, notes=one.notes()))
            same = one.pair_set.is_same
            correct = [correct_pairs(found.verification, same) for found in verified.values()]
            accuracies.append(resample_accuracy(correct, same, replicates=bootstrap, **drawing))
        over_groups = compare_models(list(features), [_mean(accuracies), _deviation(accuracies)])
        details = {model: _skewness(accuracies, place) for place, model in enumerate(features)}
        return [self.result(over_groups, details=details), *results]

    def _parts(self, features_NxVxD: Features) -> list[Features]:
        """The features of each group."""
        ends = np.cumsum([2 * len(one.pair_set) for one in self.groups.values()])
        return np.split(features_NxVxD, ends[:-1])

    def _numbered(self) -> list[tuple[int, PairsProtocol]]:
        """Each group with the number of its first image name."""
        names = [len(one.faces().images) for one in self.groups.values()]
        return list(zip((np.cumsum(names) - names).tolist(), self.groups.values(), strict=True))

    def _write(self, output: Path, group: str, verified: Mapping[str, PairSetResult]) -> dict[str, dict[str, str]]:
        from facebones.system.files import atomic_write

        for model, found in verified.items():
            with atomic_write(output / self._scores_file(model, group)) as file:
                same = self.groups[group].pair_set.is_same
                np.savez(file, distance=found.verification.distances, is_same=same)
        return {"roc": {model: self._scores_file(model, group) for model in verified}}

    def _scores_file(self, model: str, group: str) -> str:
        return f"{model}_{self.set}_{group}_scores.npz"


def rfw_root(path: Path) -> Path:
    """The folder with `txts` and `data`.

    Raises:
        DataError: a list or a folder of images is missing; the message names all that are.
    """
    root = path / TEST if (path / TEST / LISTS).is_dir() and not (path / LISTS).is_dir() else path
    wanted = [f"{LISTS}/{group}/{group}_pairs.txt" for group in GROUPS] + [f"{IMAGES}/{group}" for group in GROUPS]
    missing = [name for name in wanted if not (root / name).exists()]
    if missing:
        raise DataError(f"{root}: RFW without {', '.join(missing)}; restore these, or rename what they are called now")
    return root


def deviation(accuracy_RG: npt.ArrayLike) -> FloatArray:
    """Sample standard deviation over the groups (last axis).

    >>> round(100 * float(deviation([0.9487, 0.9557, 0.9708, 0.9563])), 2)
    0.93
    """
    return np.asarray(np.std(np.asarray(accuracy_RG, dtype=np.float64), axis=-1, ddof=1))


def skewed_error_ratio(accuracy_RG: npt.ArrayLike) -> FloatArray:
    """The highest error of a group divided by the lowest (last axis); infinite if a group has no error.

    >>> round(float(skewed_error_ratio([0.9487, 0.9557, 0.9708, 0.9563])), 2)
    1.76
    """
    error = np.clip(1 - np.asarray(accuracy_RG, dtype=np.float64), 0, 1)  # replicates spread beyond what is possible
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = error.max(axis=-1) / error.min(axis=-1)
    return np.where(np.isnan(ratio), 1.0, ratio)  # no error in any group


def _identities(one: PairsProtocol) -> tuple[Any, Any] | None:
    person = one.faces().person
    return None if person is None else tuple(person[one.items()].reshape(-1, 2).T)


def _mean(accuracies: Sequence[ResampledMetric]) -> ResampledMetric:
    """Mean accuracy of groups that are drawn independently."""
    count, first = len(accuracies), accuracies[0]
    return ResampledMetric(
        metric=replace(ACCURACY, rule="mean of groups"),
        values=np.mean([one.values for one in accuracies], axis=0),
        replicates=np.mean([one.replicates for one in accuracies], axis=0),
        excess=np.sum([one.excess for one in accuracies], axis=0) / count**2,
        resampled=first.resampled,
        units=sum(one.units for one in accuracies),
        evidence=sum(one.evidence for one in accuracies),
        outcomes=sum(one.outcomes for one in accuracies),
    )


def _deviation(accuracies: Sequence[ResampledMetric]) -> ResampledMetric:
    """Standard deviation between the groups, of each model."""
    mean = _mean(accuracies)
    return replace(
        mean,
        metric=DEVIATION,
        values=deviation(np.stack([one.values for one in accuracies], axis=-1)),
        replicates=deviation(np.stack([one.replicates for one in accuracies], axis=-1)),
        excess=np.zeros_like(mean.excess),
    )


def _skewness(accuracies: Sequence[ResampledMetric], model: int) -> dict[str, Any]:
    """The skewed error ratio of a model with its interval, and the groups behind it."""
    values = np.array([one.values[model] for one in accuracies])
    found: dict[str, Any] = {
        "highest_error": GROUPS[int(np.argmin(values))],
        "lowest_error": GROUPS[int(np.argmax(values))],
    }
    ratio = float(skewed_error_ratio(values))
    if not np.isfinite(ratio):
        return found | {"skewed_error_ratio": None}
    drawn = skewed_error_ratio(np.stack([one.replicates[:, model] for one in accuracies], axis=-1))
    finite = drawn[np.isfinite(drawn)]
    low, high = bias_corrected(finite, ratio) if finite.size else (1.0, ratio)
    ends = {"ratio_low": min(max(low, 1.0), ratio), "ratio_high": max(high, ratio)}
    return found | {"skewed_error_ratio": ratio, **ends}
