"""The protocol `megaface`: known people are searched among 10 to 1,000,000 distractors.

Two folders: `probes/PERSON/*.jpg` and `distractors`, with images at any depth; or under the names of the published
challenge, `facescrub_images` and `megaface_images`. Nobody of the probes may be among the distractors.

Each photo of a person is searched for by each other photo of that person: the gallery holds the one photo and N
distractors, and the search succeeds if no distractor is as similar to the probe. Rank-1 is given for N = 10, 100, ...
and for all distractors; these are shuffled once (seed 0), so that each N contains the smaller ones. Verification
compares all pairs of photos of one person with all pairs of a probe and a distractor: TAR at each FAR, AUC and EER,
from exact counts as in the protocol `folder`.

Features of the distractors are read in blocks: memory does not grow with them.

Source: I. Kemelmacher-Shlizerman, S. Seitz, D. Miller, E. Brossard, "The MegaFace Benchmark: 1 Million Faces for
Recognition at Scale", CVPR 2016 (arXiv 1512.00596).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.data.folders import images_below
from facebones.data.image_sources import ImageFiles
from facebones.errors import DataError
from facebones.evaluation.accept_rates import FAR_TARGETS, write_curves
from facebones.evaluation.folder import LEVELS, SAMPLED, STEP, sampled_pairs, score_levels, with_exact_values
from facebones.evaluation.image_search import TIE, blocks, unit_rows
from facebones.evaluation.protocol import Features, ProtocolResult, register_protocol
from facebones.evaluation.published_folder import PublishedFolder
from facebones.statistics.bootstrap import ResampledMetric, resample_rank, resample_verification
from facebones.statistics.curves import RocCurve, corners, roc_of_counts
from facebones.statistics.metric import Metric
from facebones.statistics.significance import compare_models

PROBES = ("probes", "facescrub_images")
DISTRACTORS = ("distractors", "megaface_images")
SHUFFLE_SEED = 0  # of the distractors
MOST_DISTRACTORS = 10**6

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Crowd:
    """Images of known people, then distractors.

    Attributes:
        files: (K + N,) paths inside the folder; the distractors are shuffled.
        person: (K,) person of each probe, from 0.
        notes: for the user.
    """

    files: list[str]
    person: IntArray
    notes: list[str]

    @property
    def distractors(self) -> int:
        """N."""
        return len(self.files) - self.person.size

    @property
    def counts(self) -> list[int]:
        """The numbers of distractors at which Rank-1 is given."""
        return [*(10**power for power in range(1, 6) if 10**power < self.distractors), self.distractors]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """The scores of one model.

    Attributes:
        genuine: (P,) cosines of the pairs of photos of one person.
        best: (C, K) the highest cosine of each probe to the distractors, for each of `Crowd.counts`.
        sampled: (I,) cosines of some pairs of a probe and a distractor.
        curve: of all pairs.
    """

    genuine: FloatArray
    best: FloatArray
    sampled: FloatArray
    curve: RocCurve


@register_protocol
class MegaFace(PublishedFolder):
    """Known people among distractors: Rank-1 by the number of distractors, TAR at each FAR.

    Args:
        path: the folder with both folders.
    """

    name = "megaface"
    keep_features = True

    @cached_property
    def data(self) -> Crowd:
        """The images.

        Raises:
            DataError: a folder is missing or empty, or no person has two photos.
        """
        return read_crowd(self.path)

    def images(self) -> ImageFiles:
        """Probes, then distractors."""
        return ImageFiles(str(self.path), self.path, self.data.files)

    def notes(self) -> list[str]:
        """Distractors that are left out."""
        return self.data.notes

    def sizes(self) -> dict[str, int]:
        """Numbers of photos, people and distractors."""
        found = self.data
        people = int(np.unique(found.person).size)
        return {"probes": found.person.size, "people": people, "distractors": found.distractors}

    def written_files(self, models: Sequence[str]) -> list[str]:
        """The ROC curves, MODEL_SET_roc.npz."""
        return [self._curve_file(model) for model in models]

    def compare(
        self, features: Mapping[str, Features], *, bootstrap: int, seed: int, output: Path | None = None
    ) -> list[ProtocolResult]:
        """Search with several models, and test their differences.

        With an output, MODEL_SET_roc.npz holds the corners of each ROC curve.
        """
        crowd = self.data
        first, second = sampled_pairs(crowd.person, crowd.person.size**2, 0, seed)
        probe, distractor = sampled_distractors(crowd.person.size, crowd.distractors, SAMPLED, seed)
        scored = {
            model: score_crowd(str(self.path), crowd, rows, (first, second), (probe, distractor))
            for model, rows in features.items()
        }
        drawing: dict[str, Any] = {"replicates": bootstrap, "seed": seed}
        ranks = []
        for place, count in enumerate(crowd.counts):
            hits = [_hits(one, place, first, second) for one in scored.values()]
            ranks.append(_rank_among(count, hits, crowd.person[first], drawing))
        ranks[-1] = replace(ranks[-1], metric=replace(ranks[-1].metric, main=True))
        people = crowd.person.max() + 1
        identities = (
            np.append(crowd.person[first], crowd.person[probe]),
            np.append(crowd.person[second], people + distractor),
        )
        same = np.arange(first.size + probe.size) < first.size
        rows = [np.append(one.genuine, one.sampled).astype(np.float64) for one in scored.values()]
        drawn = resample_verification(rows, same, identities, far_targets=FAR_TARGETS, **drawing)
        rates = [with_exact_values(one, [two.curve for two in scored.values()]) for one in drawn]
        metrics: list[ResampledMetric | Metric] = [*ranks, *rates]
        curves = {model: corners(one.curve) for model, one in scored.items()}
        files = {model: self._curve_file(model) for model in features}
        among = {
            model: {"distractors": crowd.counts, "rank_1": [float(one.values[place]) for one in ranks]}
            for place, model in enumerate(features)
        }
        roc = {} if output is None else write_curves(output, curves, files)
        return [self.result(compare_models(list(features), metrics), curves={"distractors": among, **roc})]

    def _curve_file(self, model: str) -> str:
        return f"{model}_{self.set}_roc.npz"


def read_crowd(path: Path) -> Crowd:
    """List the images of a folder of the protocol.

    Raises:
        DataError: see `MegaFace.data`.
    """
    probes, distractors = (_folder(path, names) for names in (PROBES, DISTRACTORS))
    photos = images_below(path / probes)
    people = [name.partition("/")[0] if "/" in name else "" for name in photos]
    if "" in people:
        name = photos[people.index("")]
        raise DataError(f"{path / probes / name}: in no folder of a person; move it to {probes}/PERSON/")
    person = np.unique(people, return_inverse=True)[1].astype(np.int64)
    if not person.size or np.bincount(person).max() < 2 or person.max() < 1:
        raise DataError(f"{path / probes}: no two people, or no two photos of one; give {probes}/PERSON/*.jpg")
    others = images_below(path / distractors)
    if not others:
        raise DataError(f"{path / distractors}: holds no image; give the images of other people")
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(others))[:MOST_DISTRACTORS].tolist()
    files = [*(f"{probes}/{name}" for name in photos), *(f"{distractors}/{others[place]}" for place in order)]
    left = len(others) - len(order)
    note = f"{path / distractors}: {left:,} of {len(others):,} left out, at random: the challenge takes a million"
    return Crowd(files=files, person=person, notes=[note] if left else [])


def score_crowd(
    name: str,
    crowd: Crowd,
    features_NxVxD: Features,
    genuine: tuple[IntArray, IntArray],
    impostors: tuple[IntArray, IntArray],
) -> Scored:
    """Score all pairs of a model.

    Args:
        name: of the images, for errors.
        crowd: K probes and N distractors.
        features_NxVxD: embeddings of the probes, then of the distractors, possibly a memory map.
        genuine: probes of the genuine pairs, (P,) and (P,).
        impostors: (I,) probes and (I,) distractors of the pairs that are resampled, by the distractor.

    Raises:
        DataError: an embedding has no direction.
    """
    photos = crowd.person.size
    probes, others = unit_rows(name, features_NxVxD, slice(0, photos)), features_NxVxD[photos:]
    own = np.empty(genuine[0].size, dtype=np.float32)
    for part in blocks(0, own.size):
        own[part] = np.einsum("pd,pd->p", probes[genuine[0][part]], probes[genuine[1][part]])
    highest, best = np.full(photos, -np.inf, dtype=np.float32), []
    sampled, counted = np.empty(impostors[0].size, dtype=np.float32), np.zeros(LEVELS, dtype=np.int64)
    for start, stop in zip([0, *crowd.counts], crowd.counts, strict=False):
        for block in blocks(start, stop):
            rows = unit_rows(name, others, block)
            for part in blocks(0, photos):
                score = probes[part] @ rows.T
                np.maximum(highest[part], score.max(axis=1), out=highest[part])
                counted += np.bincount(score_levels(score).ravel(), minlength=LEVELS)
            chosen = slice(*np.searchsorted(impostors[1], [block.start, block.stop]).tolist())
            for part in blocks(chosen.start, chosen.stop):
                pair = probes[impostors[0][part]], rows[impostors[1][part] - block.start]
                sampled[part] = np.einsum("pd,pd->p", *pair)
        best.append(highest.copy())
    level = np.bincount(score_levels(own.copy()), minlength=LEVELS)
    curve = roc_of_counts(np.arange(LEVELS) * STEP - 1, level, counted)
    return Scored(genuine=own, best=np.stack(best), sampled=sampled, curve=curve)


def sampled_distractors(probes: int, distractors: int, most: int, seed: int) -> tuple[IntArray, IntArray]:
    """Pairs of a probe and a distractor, by the distractor: all, or as many random ones as are wanted.

    >>> [side.tolist() for side in sampled_distractors(2, 2, 10, seed=0)]
    [[0, 1, 0, 1], [0, 0, 1, 1]]
    """
    total = probes * distractors
    if total <= most:
        number = np.arange(total)
    else:
        random, number = np.random.default_rng(seed), np.empty(0, np.int64)
        while number.size < most:
            number = np.unique(np.append(number, random.integers(total, size=most)))
        number = np.sort(random.permutation(number)[:most])
    return number % probes, number // probes


def _hits(scored: Scored, place: int, first: IntArray, second: IntArray) -> BoolArray:
    """(2P,) whether each photo of a genuine pair finds the other among `Crowd.counts[place]` distractors."""
    return np.concatenate([scored.best[place][probe] < scored.genuine - TIE for probe in (first, second)])


def _rank_among(
    distractors: int, hits: Sequence[BoolArray], person_P: IntArray, drawing: Mapping[str, Any]
) -> ResampledMetric:
    """Rank-1 among so many distractors, of each model."""
    found = resample_rank(hits, np.tile(person_P, 2), rank=1, **drawing)
    at = {"rank": 1, "distractors": distractors}
    return replace(found, metric=replace(found.metric, name="rank_among", at=at))


def _folder(path: Path, names: Sequence[str]) -> str:
    found = next((name for name in names if (path / name).is_dir()), None)
    if found is None:
        raise DataError(f"{path}: no folder {' or '.join(names)} here; make it, or rename what it is called now")
    return found
