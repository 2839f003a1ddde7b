"""People of the training data in test images, by the cosines of embeddings to the centroids of the training people.

Which cosine is enough? A stranger is compared with all P training people, and the nearest one counts. The training
people say how near that is: the images of each are compared with the P - 1 *others*, who are somebody else. The cut-off
is the cosine that a wanted share of them reaches, each person with one weight.

Data often hold a person under two labels. Such people are as near to each other as to themselves, and a few of them
would raise the cut-off until nobody is found. So they are named and do not count: a label whose typical image is as
near to another label as the most distant twentieth of images is to its own people, and which stands five standard
deviations (by the median absolute deviation) out of all labels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.data.image_sources import ImageSource
from facebones.data.training_set import Integers
from facebones.errors import ConfigError, DataError, counted
from facebones.evaluation.embed import embed
from facebones.evaluation.models import BATCH_SIZE, Features, Model, open_models

Floats = npt.NDArray[np.float32]

MOST_IMPOSTORS = 20_000  # training images that are compared with the other people
BLOCK = 1024  # images compared at a time
OWN_QUANTILE = 0.01
OUTLYING = 5 * 1.4826  # standard deviations of a normal distribution, in median absolute deviations
MOST_REPEATED = 100  # named in the result


def check_people(labels_N: Integers, false_rate: float, name: str) -> None:
    """Refuse fewer than 1 / false_rate people, before any of their images is embedded.

    Raises:
        DataError: there are fewer.
    """
    if (people := len(np.unique(labels_N))) * false_rate < 1:
        raise DataError(
            f"{name}: {counted(people, 'person', 'people')} cannot say what one in {1 / false_rate:,.0f} strangers"
            f" reaches; give a false rate of {1 / people:.2g} or more, or more people"
        )


@dataclass(frozen=True, eq=False)
class SharedPeople:
    """The people of the training data, and the cosine from which on an image is likely one of them.

    Attributes:
        people: (P,) labels that have images, ascending.
        centroids: (P, D) of length 1.
        false_rate: the wanted share of strangers' images that reach the cut-off.
        cut_off: the cosine.
        impostors: number of training images that it was chosen by.
        repeated: pairs of labels that seem to be one person, with the cosine of their centroids.
    """

    people: Integers
    centroids: Floats
    false_rate: float
    cut_off: float
    impostors: int
    repeated: list[tuple[int, int, float]]
    _features: Features
    _by_person: npt.NDArray[np.intp]
    _starts: npt.NDArray[np.intp]

    @classmethod
    def fitted(cls, labels_N: Integers, features_NxVxD: Features, false_rate: float, name: str) -> "SharedPeople":
        """Compute the centroids, and choose the cut-off.

        Args:
            labels_N: (N,) person of each training image.
            features_NxVxD: their embeddings, which may be a memory map.
            false_rate: above 0 and below 1.
            name: of the training data, for errors.

        Raises:
            DataError: as `check_people`, or an embedding has no direction.
        """
        check_people(labels_N, false_rate, name)
        people, place_N, count_P = np.unique(labels_N, return_inverse=True, return_counts=True)
        sums_PxD = _sums(place_N, features_NxVxD, len(people), name)
        centroids = _unit(sums_PxD, f"{name}, people")
        by_person = np.argsort(place_N, kind="stable")
        starts = np.concatenate([[0], np.cumsum(count_P)])
        rank = np.arange(len(place_N)) - starts[place_N[by_person]]
        chosen = np.sort(by_person[np.lexsort((place_N[by_person], rank))[:MOST_IMPOSTORS]])
        other, nearest, own = _impostors(chosen, place_N, features_NxVxD, centroids, sums_PxD=sums_PxD, name=name)
        cut_off, repeated = _cut_off(place_N[chosen], other, nearest, own, false_rate)
        pairs = [
            (int(people[one]), int(people[another]), float(centroids[one] @ centroids[another]))
            for one, another in repeated
        ]
        return cls(people, centroids, false_rate, cut_off, len(chosen), pairs, features_NxVxD, by_person, starts)

    def matches(self, features_TxVxD: Features) -> Iterator[tuple[int, int, float]]:
        """Find the images of T that reach the cut-off.

        Yields:
            the number of the image, the number of the person's training image that is nearest to it, and the cosine to
            the person's centroid.

        Raises:
            DataError: an embedding has no direction.
        """
        for start in range(0, len(features_TxVxD), BLOCK):
            rows = _unit(features_TxVxD[start : start + BLOCK].sum(axis=1), "test images", start)
            cosines = rows @ self.centroids.T
            nearest = cosines.argmax(axis=1)
            for row in np.flatnonzero(cosines.max(axis=1) >= self.cut_off):
                person = nearest[row]
                images = self._by_person[self._starts[person] : self._starts[person + 1]]
                own = _unit(self._features[images].sum(axis=1), "training images")
                yield start + int(row), int(images[np.argmax(own @ rows[row])]), float(cosines[row, person])

    def to_json(self, name_of: Callable[[int], str]) -> dict[str, Any]:
        """How the cut-off was chosen; `name_of` names a label."""
        return {
            "false_rate": self.false_rate,
            "cut_off": round(self.cut_off, 4),
            "impostors": self.impostors,
            "people": len(self.people),
            "repeated": [
                {"people": [one, other], "names": [name_of(one), name_of(other)], "cosine": round(cosine, 4)}
                for one, other, cosine in self.repeated[:MOST_REPEATED]
            ],
            "repeated_count": len(self.repeated),
        }


def open_recogniser(model: Model | Path | str, runtime: str | None, **opening: Any) -> Model:
    """Open the model that recognises people.

    Raises:
        ConfigError: its weights are random, or the runtime cannot compute it.
        CheckpointError: it cannot be used.
    """
    opened = (
        model if isinstance(model, Model) else next(iter(open_models({Path(model).stem: model}, **opening).values()))
    )
    if not opened.weights_sha256:
        raise ConfigError(f"--model {model}: has random weights, which recognise nobody; give a run or a file")
    if runtime is not None:
        from facebones.evaluation.runtimes import run_by

        opened = run_by(opened, runtime, BATCH_SIZE)
    return opened


def embedded(model: Model, images: ImageSource, folder: Path, **passing: Any) -> Features:
    """Embed images into files, (N, 1, D) as a memory map; a stopped pass is continued."""
    name = model.path.stem if model.path else "model"
    return embed({name: model}, images, folder=folder, flip=False, **passing)[name]


def _unit(rows_NxD: Floats, name: str, first: int = 0) -> Floats:
    length = np.linalg.norm(rows_NxD, axis=1)
    if not (usable := np.isfinite(length) & (length > 0)).all():
        raise DataError(
            f"{name}: the embedding of number {first + int(np.argmin(usable))} has no direction; check the image, the"
            " weights and the preprocessing"
        )
    return np.asarray(rows_NxD / length[:, None], dtype=np.float32)


def _sums(place_N: npt.NDArray[np.intp], features_NxVxD: Features, people: int, name: str) -> Floats:
    """(P, D) sums of the unit embeddings of each person, block by block."""
    sums = np.zeros((people, features_NxVxD.shape[2]), np.float32)
    for start in range(0, len(place_N), BLOCK):
        rows = _unit(features_NxVxD[start : start + BLOCK].sum(axis=1), f"{name}, images", start)
        np.add.at(sums, place_N[start : start + BLOCK], rows)
    return sums


def _impostors(
    chosen: npt.NDArray[np.intp],
    place_N: npt.NDArray[np.intp],
    features_NxVxD: Features,
    centroids_PxD: Floats,
    *,
    sums_PxD: Floats,
    name: str,
) -> tuple[npt.NDArray[np.intp], Floats, Floats]:
    """Of each chosen image the nearest other person, the cosine to them, and that to its own people without itself."""
    others, cosines, own = [], [], []
    for start in range(0, len(chosen), BLOCK):
        images = chosen[start : start + BLOCK]
        rows = _unit(features_NxVxD[images].sum(axis=1), f"{name}, images")
        to_all = rows @ centroids_PxD.T
        to_all[np.arange(len(images)), place_N[images]] = -2
        others.append(to_all.argmax(axis=1))
        cosines.append(to_all.max(axis=1))
        rest = sums_PxD[place_N[images]] - rows
        length = np.linalg.norm(rest, axis=1)
        own.append(np.where(length > 1e-3, (rest * rows).sum(axis=1) / np.maximum(length, 1e-3), np.nan))
    return np.concatenate(others), np.concatenate(cosines), np.concatenate(own)


def _cut_off(
    person_M: npt.NDArray[np.intp],
    other_M: npt.NDArray[np.intp],
    nearest_M: Floats,
    own_M: Floats,
    false_rate: float,
) -> tuple[float, list[tuple[int, int]]]:
    """The cosine that a share of the images reaches with another person, and pairs of labels that are one person."""
    order = np.argsort(person_M, kind="stable")
    people, first = np.unique(person_M[order], return_index=True)
    groups = np.split(order, first[1:])
    typical = np.array([np.median(nearest_M[group]) for group in groups])
    middle = np.median(typical)
    least = middle + OUTLYING * np.median(np.abs(typical - middle))
    if np.isfinite(own_M).any():
        least = max(least, np.nanquantile(own_M, OWN_QUANTILE))
    is_repeated = typical > least
    pairs = set()
    for place in np.flatnonzero(is_repeated):
        person, group = people[place], groups[place]
        other = int(np.bincount(other_M[group]).argmax())
        pairs.add((min(int(person), other), max(int(person), other)))
    weight = np.concatenate(
        [np.full(len(group), 0.0 if out else 1 / len(group)) for group, out in zip(groups, is_repeated, strict=True)]
    )
    ordered = np.concatenate(groups)
    falling = np.argsort(-nearest_M[ordered], kind="stable")
    share = np.cumsum(weight[falling]) / weight.sum()
    last = min(int(np.searchsorted(share, false_rate)), len(share) - 1)
    return float(nearest_M[ordered][falling[last]]), sorted(pairs)
