"""The protocol `pairs`: verification of listed pairs of images, such as LFW, in ten folds.

Models are compared by a bootstrap over pairs, because the files of the field do not name the persons.
`verification` has the counting.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from facebones.data.pair_bins import PairSet, read_pairs
from facebones.data.published_pairs import PUBLISHED, image_folder, published_lists, set_name
from facebones.errors import ConfigError, DataError
from facebones.evaluation.protocol import Features, Protocol, ProtocolResult, register_protocol
from facebones.evaluation.verification import (
    FAR_TARGET,
    PairResult,
    PairSetResult,
    check_pair_set,
    correct_pairs,
    pair_set_notes,
    verify_features,
)
from facebones.statistics.bootstrap import (
    REPLICATES,
    Identities,
    ResampledMetric,
    resample_accuracy,
    resample_verification,
)
from facebones.statistics.metric import Metric, MetricComparison
from facebones.statistics.significance import compare_models

if TYPE_CHECKING:
    from facebones.data.group_lists import Faces
    from facebones.data.image_sources import EncodedImages
    from facebones.statistics.calibration import ScoredPairs


SHUFFLED = "shuffled folds"  # rule of the accuracy where a set's own folds hold one kind of pair


@register_protocol
class PairsProtocol(Protocol):
    """One pair set: a `.bin` file, or a list of pairs in text.

    Metrics: accuracy, TAR at FAR 0.001 (strict), AUC and EER.

    Args:
        path: the file.
        root: folder that the paths in a list start from; by default that of `published_pairs.image_folder`.
    """

    name = "pairs"

    def __init__(self, path: Path | str, root: Path | None = None) -> None:
        super().__init__(path)
        self.root = root
        self.set = set_name(self.path)

    @classmethod
    def find(cls, path: Path) -> list[Self]:
        """The sets of a folder, or a file that is a `.bin` or by its name a list of pairs."""
        if path.is_dir():
            return [cls(file) for file in _sets_in(path)]
        return [cls(path)] if path.suffix.lower() == ".bin" or is_pair_list(path) else []

    @cached_property
    def pair_set(self) -> PairSet:
        """The set, read once.

        Raises:
            DataError: it cannot be read or verified.
        """
        return read_sound_set(self.path, self.root)

    def check(self) -> None:
        """Read the set and let it go; no image is decoded."""
        read_sound_set(self.path, self.root)

    def items(self) -> npt.NDArray[np.integer[Any]]:
        """The number of the name in each place."""
        return self._names[1]

    def images(self) -> "EncodedImages":
        """The images of all pairs; pair k is images 2k and 2k + 1."""
        from facebones.data.image_sources import EncodedImages

        return EncodedImages(self.pair_set.name, self.pair_set.images)

    def notes(self) -> list[str]:
        """How the set was read, images of another aspect, and folds of one kind."""
        return pair_set_notes(self.pair_set)

    def sizes(self) -> dict[str, int]:
        """The number of pairs."""
        return {"pairs": len(self.pair_set)}

    def written_files(self, models: Sequence[str]) -> list[str]:
        """The files of scores, MODEL_SET_scores.npz."""
        return [self._scores_file(model) for model in models]

    def scored_pairs(self, features_NxVxD: Features) -> "ScoredPairs":
        """The pairs of the set; the people in them are not known."""
        from facebones.statistics.calibration import ScoredPairs

        distances = verify_features(features_NxVxD, self.pair_set).verification.distances
        first, second = self._names[1].reshape(-1, 2).T
        return ScoredPairs(1 - distances / 2, self.pair_set.is_same, items=(first, second))

    def faces(self) -> "Faces":
        """Images of a list by their paths, and people by their folders if these agree with the labels.

        Images of a `.bin` are numbers from 0, one for each place, and its people are unknown.
        """
        from facebones.data.group_lists import Faces  # here: few evaluations need it

        images, place = self._names
        folders = [name.replace("\\", "/").rpartition("/")[0].rpartition("/")[2] for name in images]
        person = np.unique(folders, return_inverse=True)[1]
        one, other = person[place].reshape(-1, 2).T
        known = "" not in folders and np.array_equal(one == other, self.pair_set.is_same)
        item = np.arange(len(images))
        return (
            Faces(images=images, item=item, person=person, people=folders) if known else Faces(images=images, item=item)
        )

    @property
    def _names(self) -> tuple[Sequence[str], npt.NDArray[np.integer[Any]]]:
        """The names of different images, and the number of that in each of the 2P places."""
        found = self.pair_set
        if found.names is None or found.name_of is None:
            return [str(place) for place in range(2 * len(found))], np.arange(2 * len(found))
        return found.names, found.name_of

    def evaluate(self, features_NxVxD: Features) -> list[Metric]:
        """Verify the pairs with one model; intervals by bootstrap over pairs."""
        (result,) = self.compare({"": features_NxVxD}, bootstrap=REPLICATES, seed=0)
        return result.of("")

    def compare(
        self, features: Mapping[str, Features], *, bootstrap: int, seed: int, output: Path | None = None
    ) -> list[ProtocolResult]:
        """Verify the pairs with several models, and test their differences.

        With an output, MODEL_SET_scores.npz holds the squared distance and the label of each pair, and the digest of
        all images, by which a report finds the pairs again.
        """
        results = {model: verify_features(row, self.pair_set) for model, row in features.items()}
        curves = {}
        if output is not None:
            from facebones.system.files import atomic_write

            is_same, digest = self.pair_set.is_same, np.array(self.images().fingerprint())
            for model, result in results.items():
                with atomic_write(output / self._scores_file(model)) as file:
                    np.savez(file, distance=result.verification.distances, is_same=is_same, images_sha256=digest)
            curves = {"roc": {model: self._scores_file(model) for model in results}}
        metrics = compare_on_pairs(self.pair_set, results, bootstrap, seed)
        return [self.result(metrics, details={name: one.to_json() for name, one in results.items()}, curves=curves)]

    def without(self, found_N: npt.NDArray[np.bool_]) -> tuple[Self, npt.NDArray[np.bool_]]:
        """The pairs of which no image was found, dealt over ten folds in the order of the file."""
        kept_P = ~found_N.reshape(-1, 2).any(axis=1)
        kept_N = np.repeat(kept_P, 2)
        images = [image for image, is_kept in zip(self.pair_set.images, kept_N, strict=True) if is_kept]
        rest = copy(self)
        whole = self.pair_set
        name_of = None if whole.name_of is None else whole.name_of[kept_N]
        rest.__dict__["pair_set"] = replace(whole, images=images, is_same=whole.is_same[kept_P], name_of=name_of)
        check_pair_set(rest.pair_set)
        return rest, kept_N

    def _scores_file(self, model: str) -> str:
        return f"{model}_{self.set}_scores.npz"


def compare_on_pairs(
    pair_set: PairSet,
    results: Mapping[str, PairSetResult],
    bootstrap: int = REPLICATES,
    seed: int = 0,
    identities: Identities | None = None,
) -> list[MetricComparison]:
    """Compare models on a set: accuracy, TAR at FAR 0.001 (strict), AUC and EER, with intervals and tests.

    On a set with folds of one kind of pair, the accuracy over shuffled folds follows, and is the main metric. People
    are resampled where `identities` names those of both sides, (P,) each, from 0; else pairs.
    """
    same = pair_set.is_same
    verifications = [result.verification for result in results.values()]
    correct = [correct_pairs(one, same) for one in verifications]
    drawing: dict[str, Any] = {"identities": identities, "replicates": bootstrap, "seed": seed}
    accuracy = resample_accuracy(correct, same, **drawing)
    accuracies = [accuracy, *_shuffled_accuracy(verifications, same, drawing)]
    if len(accuracies) > 1:
        accuracies[0] = replace(accuracy, metric=replace(accuracy.metric, main=False))
    scores = [-one.distances for one in verifications]
    curves = resample_verification(scores, same, far_targets=(FAR_TARGET,), **drawing)
    return compare_models(list(results), [*accuracies, *curves])


def _shuffled_accuracy(
    verifications: Sequence[PairResult], same: npt.NDArray[np.bool_], drawing: Mapping[str, Any]
) -> list[ResampledMetric]:
    """The accuracy over shuffled folds, if the set's own folds hold one kind of pair."""
    correct = [one.correct_shuffled for one in verifications if one.correct_shuffled is not None]
    if not correct:
        return []
    found = resample_accuracy(correct, same, **drawing)
    return [replace(found, metric=replace(found.metric, rule=SHUFFLED))]


def pair_set_files(data: Sequence[Path]) -> list[Path]:
    """The given files, and the sets of the given folders: `.bin` files, and the lists of CALFW, CPLFW and XQLFW.

    Raises:
        DataError: a folder without a set, or two sets of one name, whose results would overwrite each other.
    """
    files: list[Path] = []
    for path in data:
        found = _sets_in(path) if path.is_dir() else [path]
        if not found:
            lists = ", ".join(sorted(PUBLISHED))
            raise DataError(f"{path}: holds no pair set (NAME.bin), and no list ({lists}); name a list of another name")
        files.extend(found)
    names = [set_name(path) for path in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"--data: two pair sets are called {twice[0]}; rename a file or evaluate them separately")
    return files


def pair_protocols(data: Sequence[Path], root: Path | None = None) -> list[PairsProtocol]:
    """The pair sets of files and folders; `root` is where the paths in lists start.

    Raises:
        DataError: as `pair_set_files`.
        ConfigError: a root, but no list of pairs.
    """
    files = pair_set_files(data)
    if root is not None and not any(map(is_pair_list, files)):
        raise ConfigError(f"--root {root}: goes with a list of pairs, and none is here; leave it out")
    return [PairsProtocol(path, root if is_pair_list(path) else None) for path in files]


def read_sound_set(path: Path, root: Path | None = None) -> PairSet:
    """Read a set that can be verified; no image is decoded.

    Args:
        path: a `.bin` file, or a list of pairs.
        root: folder that the paths in a list start from; by default that of `image_folder`.

    Raises:
        DataError: as `read_pairs`, `read_pair_set`, `image_folder` and `check_pair_set`.
    """
    if path.suffix.lower() == ".bin" and root is None:
        pair_set = read_pairs(path)
    else:
        from facebones.data.pair_lists import read_pair_set

        given = image_folder(path) if root is None and is_pair_list(path) else root
        pair_set = replace(read_pair_set(path, given), name=set_name(path))
    check_pair_set(pair_set)
    return pair_set


def is_pair_list(path: Path) -> bool:
    """Whether a file is a list of pairs by its name."""
    from facebones.data.pair_lists import PAIR_LIST_SUFFIXES

    return path.suffix.lower() in PAIR_LIST_SUFFIXES


def _sets_in(folder: Path) -> list[Path]:
    from facebones.data.folders import pair_sets

    return [*pair_sets(folder), *published_lists(folder)]
