"""The pairs that models judge worst, as faces: impostors with the highest scores, genuine pairs with the lowest.

Results hold scores and no images. The images are read from the sets that the user names: whether the faces of a set may
go into a page that others get is not for a program to decide.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data.folders import pair_sets
from facebones.data.image_sources import EncodedImages
from facebones.data.images import decode
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.data.published_pairs import image_folder, published_lists, set_name
from facebones.errors import ConfigError, DataError
from facebones.reporting.evaluations import PairScores, read_pair_scores
from facebones.reporting.results import EvaluatedSet, Results
from facebones.reporting.words import listed, set_words
from facebones.system.number_format import decimal
from facebones.system.progress import track

OPTION = "--faces"
MOST_SETS = 8
MOST_MODELS = 3  # of a set
MOST_PAIRS = 6  # of a kind
LONGEST_SIDE = 112  # pixels; faces of the field have 112
QUALITY = 80  # of WebP: about 3 kB an image


@dataclass(frozen=True, kw_only=True)
class FacePair:
    """Two faces that a model compares.

    Attributes:
        number: of the pair in its set, from 0.
        score: cosine of the two embeddings.
        is_wrong: whether the threshold of its fold decides it wrongly; None if no thresholds are known.
        images: both as `data:` URLs.
    """

    number: int
    score: float
    is_wrong: bool | None
    images: tuple[str, str]

    @property
    def shown_score(self) -> str:
        """The score as text."""
        return decimal(self.score)


@dataclass(frozen=True, kw_only=True)
class ModelFaces:
    """The worst pairs of a model.

    Attributes:
        place: of its variant among those of the report.
        run: its name.
        errors: false accepts and false rejects among all pairs, each at the threshold of its fold; None if unknown.
        impostors: two people each, the highest score first.
        genuine: one person each, the lowest score first.
    """

    place: int
    run: str
    errors: tuple[int, int] | None
    impostors: Sequence[FacePair]
    genuine: Sequence[FacePair]


@dataclass(frozen=True, kw_only=True)
class SetFaces:
    """The worst pairs of a set.

    Attributes:
        title: display name of the set.
        file: that the images are from.
        pairs: number of all pairs.
        measure: by which the models were chosen; empty if by none.
        chosen_of: number of variants that have scores.
        models: the best first.
    """

    title: str
    file: Path
    pairs: int
    measure: str
    chosen_of: int
    models: Sequence[ModelFaces]


def face_pairs(results: Results, sets: Sequence[Path]) -> list[SetFaces]:
    """The worst pairs of the best variants on each set, by the first seed of each variant.

    Args:
        results: of a report.
        sets: `.bin` files, pair lists beside their images, or folders of these.

    Raises:
        ConfigError: a path is missing, or no evaluation in the report has scores of its set.
        DataError: a set or a file of scores cannot be read, or the set has other pairs than those that were evaluated.
    """
    known = {where.set: where for where in results.pair_scores}
    files = _evaluated_files(sets, known)
    return [_of_set(results, known[name], path) for name, path in track(files.items(), "reading faces", len(files))]


def faces_json(faces: Sequence[SetFaces]) -> list[dict[str, Any]]:
    """The numbers and scores of the pairs, without the images."""
    return [
        {
            "set": one.title,
            "models": [
                {
                    "run": model.run,
                    **{
                        kind: [{"pair": pair.number, "score": pair.score} for pair in pairs]
                        for kind, pairs in (("impostors", model.impostors), ("genuine", model.genuine))
                    },
                }
                for model in one.models
            ],
        }
        for one in faces
    ]


# ----------------------------------------------------------------------------------------------------------- sets


def _evaluated_files(sets: Sequence[Path], known: Mapping[str, EvaluatedSet]) -> dict[str, Path]:
    """Name to file of the sets to show, in the order of the report."""
    have = f"there are scores of {listed(list(known))}" if known else "there are no scores of pair sets"
    found: dict[str, Path] = {}
    for given in sets:
        if not given.exists():
            raise ConfigError(f"{OPTION} {given}: no such file or folder; name the pair sets that were evaluated")
        inside = [*pair_sets(given), *published_lists(given)] if given.is_dir() else [given]
        evaluated = [path for path in inside if set_name(path) in known]
        if not evaluated:
            raise ConfigError(f"{OPTION} {given}: no evaluation in this report has scores of it; {have}")
        for path in evaluated:
            if set_name(path) in found:
                raise ConfigError(f"{OPTION}: two sets are called {set_name(path)}; name one of them")
            found[set_name(path)] = path
    if len(found) > MOST_SETS:
        raise ConfigError(f"{OPTION}: {len(found)} sets; a page shows at most {MOST_SETS}, so name the ones to show")
    return {name: found[name] for name in known if name in found}


def _read_set(path: Path) -> PairSet:
    if path.suffix.lower() == ".bin":
        return read_pairs(path)
    from facebones.data.pair_lists import read_pair_set  # most sets are no lists

    try:
        root = image_folder(path)
    except DataError as error:
        raise DataError(f"{path}: its images are not beside it; put their folder there, or leave it out") from error
    return read_pair_set(path, root)


def _of_set(results: Results, where: EvaluatedSet, path: Path) -> SetFaces:
    pair_set, files = _read_set(path), results.pair_scores[where]
    digest = EncodedImages(pair_set.name, pair_set.images).fingerprint()
    best, measure = _best_runs(results, where)
    thumbnails = _Thumbnails(path, pair_set)
    models = []
    for variant, run in best[:MOST_MODELS]:
        scores = read_pair_scores(files[run].path)
        if not np.array_equal(scores.is_same, pair_set.is_same) or scores.images_sha256 not in (None, digest):
            raise DataError(
                f"{path}: holds other pairs than those that {files[run].path} has scores of; name the file that was"
                " evaluated, or evaluate it again"
            )
        place = results.variants.index(variant)
        models.append(_of_model(place, run, scores, _wrong(scores, files[run].fold_thresholds), thumbnails))
    return SetFaces(
        title=set_words(where), file=path, pairs=len(pair_set), measure=measure, chosen_of=len(best), models=models
    )


def _best_runs(results: Results, where: EvaluatedSet) -> tuple[list[tuple[str, str]], str]:
    """The variants that have scores, the best first, each with its first run; and by what they are the best."""
    files = results.pair_scores[where]
    first = {run.variant: run.name for run in reversed(results.runs) if run.name in files}
    metric = next((one for one in results.main_metrics() if one.evaluated_set == where), None)
    ranked = results.variants if metric is None else results.ranking(metric)
    return [(name, first[name]) for name in ranked if name in first], "" if metric is None else metric.words


# --------------------------------------------------------------------------------------------------------- models


def _of_model(
    place: int, run: str, scores: PairScores, wrong_P: npt.NDArray[np.bool_] | None, thumbnails: "_Thumbnails"
) -> ModelFaces:
    same = scores.is_same
    highest, lowest = _first(-scores.scores, ~same), _first(scores.scores, same)

    def shown(number: int) -> FacePair:
        return FacePair(
            number=number,
            score=float(scores.scores[number]),
            is_wrong=None if wrong_P is None else bool(wrong_P[number]),
            images=(thumbnails[2 * number], thumbnails[2 * number + 1]),
        )

    return ModelFaces(
        place=place,
        run=run,
        errors=None if wrong_P is None else (int((wrong_P & ~same).sum()), int((wrong_P & same).sum())),
        impostors=list(map(shown, highest)),
        genuine=list(map(shown, lowest)),
    )


def _first(key_P: npt.NDArray[np.float64], among_P: npt.NDArray[np.bool_]) -> list[int]:
    """The pairs of a kind with the smallest keys; of equal ones the first."""
    places = np.flatnonzero(among_P)
    found: list[int] = places[np.argsort(key_P[places], kind="stable")[:MOST_PAIRS]].tolist()
    return found


def _wrong(scores: PairScores, fold_thresholds: Sequence[float]) -> npt.NDArray[np.bool_] | None:
    """(P,) whether a pair is decided wrongly by the threshold of its fold; folds as in the protocol of pairs."""
    if not fold_thresholds:
        return None
    parts = np.array_split(scores.scores, len(fold_thresholds))  # contiguous, the first ones larger
    accepted = [part > threshold for part, threshold in zip(parts, fold_thresholds, strict=True)]
    return np.asarray(np.concatenate(accepted) != scores.is_same)


class _Thumbnails:
    """The images of a set as small `data:` URLs, each encoded once."""

    def __init__(self, path: Path, pair_set: PairSet) -> None:
        self._path, self._images = path, pair_set.images
        self._made: dict[int, str] = {}

    def __getitem__(self, place: int) -> str:
        if place not in self._made:
            image = decode(self._images[place], partial("{}, image {}".format, self._path, place))
            self._made[place] = _data_url(image)
        return self._made[place]


def _data_url(image: npt.NDArray[np.uint8]) -> str:
    """An RGB image as WebP, at most LONGEST_SIDE pixels wide and high."""
    scale = LONGEST_SIDE / max(image.shape[:2])
    if scale < 1:
        height, width = (max(1, round(scale * side)) for side in image.shape[:2])
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    encoded = cv2.imencode(".webp", image[:, :, ::-1], (cv2.IMWRITE_WEBP_QUALITY, QUALITY))[1]
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()
