"""From photos to an answer: are these two one person, and who in a gallery is like this one?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray
from facebones.datatools.detector_file import open_detector
from facebones.datatools.landmarks import FaceDetector
from facebones.datatools.photo_faces import Face, Photo, cut_face, find_face, list_photos, read_photo
from facebones.errors import ConfigError, DataError
from facebones.evaluation.models import BATCH_SIZE, Model, load_model
from facebones.evaluation.photos import (
    ENDINGS,
    Detector,
    PhotoEmbeddings,
    embed_listed,
    embedding_settings,
    read_embeddings,
    scored_with_flip,
    unit_embeddings,
)
from facebones.system.number_format import small_rate

TWO = 2  # images per forward pass of a match
BLOCK = 65_536  # rows of a gallery at a time
PORTRAIT = 448  # pixels of a face to look at


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold that `calibrate` has kept with a model, and what it promises.

    Attributes:
        threshold: two faces are taken for one person from this score on.
        false_match_rate: of strangers, at most this share is taken for one person.
        confidence: of this promise, one-sided.
        true_accept_rate: share of the genuine pairs that it accepted.
        impostors: pairs of strangers that it was chosen on.
        sets: names of their sets.
    """

    threshold: float
    false_match_rate: float
    confidence: float
    true_accept_rate: float
    impostors: int
    sets: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All attributes."""
        return vars(self) | {"sets": list(self.sets)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """What `match_photos` says of two photos.

    Attributes:
        score: cosine of the embeddings, from -1 to 1; higher means more alike.
        threshold: of the model; None if it has none.
        faces: the two faces.
        portraits: both faces aligned at a size to look at, (448, 448, 3) uint8 RGB.
    """

    score: float
    threshold: Threshold | None
    faces: tuple[Face, Face]
    portraits: tuple[ImageArray, ImageArray]

    @property
    def same_person(self) -> bool | None:
        """Whether the score reaches the threshold; None without one."""
        return None if self.threshold is None else self.score >= self.threshold.threshold

    def to_json(self) -> dict[str, Any]:
        """Score, decision, threshold and faces as plain values."""
        return {
            "score": self.score,
            "same_person": self.same_person,
            "threshold": None if self.threshold is None else self.threshold.to_json(),
            "faces": [face.to_json() for face in self.faces],
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What `search_photos` has found: the faces of a gallery that are most like the one of a photo.

    Attributes:
        face: that of the photo.
        paths: of the gallery's photos, the best first.
        scores: (N,) their scores.
        threshold: of the model, for one comparison; None if it has none.
        gallery: what was searched.
    """

    face: Face
    paths: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    threshold: Threshold | None
    gallery: PhotoEmbeddings

    def to_json(self) -> dict[str, Any]:
        """The face, the best of the gallery, and the threshold as plain values."""
        return {
            "photo": self.face.to_json(),
            "found": [{"path": path, "score": score} for path, score in zip(self.paths, self.scores, strict=True)],
            "threshold": None if self.threshold is None else self.threshold.to_json(),
            "searched": len(self.gallery),
            "missing": [one._asdict() for one in self.gallery.missing],
        }


def match_photos(
    model: Model | Path | str,
    a: Photo,
    b: Photo,
    *,
    detector: Detector = "auto",
    false_match_rate: float | None = None,
    **opening: Any,
) -> Match:
    """Say how alike the faces of two photos are, and by the model's threshold whether they are one person.

    Args:
        model: a model, or what `load_model` opens.
        a: a photo: a path, the bytes of an image file, or an array (H, W, 3) uint8 RGB.
        b: the other photo.
        detector: finds the faces, as for `open_detector`; None: the photos are aligned faces.
        false_match_rate: of several thresholds that `calibrate` has kept, the one with this target; by default the
            strictest.
        opening: further options of `load_model`.

    Raises:
        DataError: a photo cannot be read or has no face.
        ConfigError: the model has no threshold for that rate, or its thresholds are for another input.
        FaceBonesError: the model or the detector cannot be used.

    docs/api.md has an example, which a test runs.
    """
    finder = None if detector is None else open_detector(detector)
    photos = [read_photo(photo) for photo in (a, b)]
    first, second = (find_face(pixels, finder, what) for pixels, what in photos)
    opened = _open(model, TWO, opening)
    threshold = kept_threshold(opened, false_match_rate)
    rows_2xD = unit_embeddings(opened, [first, second], scored_with_flip(opened))
    return Match(
        score=float(rows_2xD[0] @ rows_2xD[1]),
        threshold=threshold,
        faces=(first, second),
        portraits=(_portrait(photos[0][0], first), _portrait(photos[1][0], second)),
    )


def search_photos(
    model: Model | Path | str,
    photo: Photo,
    gallery: PhotoEmbeddings | Sequence[Path | str] | Path | str,
    *,
    top: int = 10,
    detector: Detector = "auto",
    false_match_rate: float | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    progress: bool = False,
    **opening: Any,
) -> Found:
    """Find the photos of a gallery whose faces are most like the one of a photo; every face is compared.

    Args:
        model: a model, or what `load_model` opens.
        photo: as for `match_photos`.
        gallery: what `embed_photos` returns, an `.npz` file of it, or photos and folders, which are embedded first.
        top: how many of the gallery are returned at most.
        detector: finds the faces, as for `open_detector`; None: all photos are aligned faces.
        false_match_rate: as for `match_photos`.
        batch_size: faces per forward pass, where photos are embedded.
        workers: threads that read photos and find faces; None: one per core.
        progress: show the progress on stderr.
        opening: further options of `load_model`.

    Raises:
        DataError: a photo cannot be read or has no face, or the gallery is none.
        ConfigError: the gallery was embedded by another model or from other input.
        FaceBonesError: the model or the detector cannot be used.

    docs/api.md has an example, which a test runs.
    """
    if top < 1:
        raise ConfigError(f"top: {top}; give at least 1")
    stored = _stored(gallery)
    finder = None if detector is None else open_detector(detector)
    pixels, what = read_photo(photo)
    face = find_face(pixels, finder, what)
    opened = _open(model, batch_size if stored is None else TWO, opening)
    threshold = kept_threshold(opened, false_match_rate)
    if stored is None:
        stored = _embedded(opened, gallery, finder, batch_size=batch_size, workers=workers, progress=progress)
    flip = stored.settings.get("flip") is True
    if stored.settings != embedding_settings(opened, flip):
        name = gallery if isinstance(gallery, Path | str) else "the gallery"
        raise ConfigError(f"{name}: was embedded by another model, or from other input; embed it again by this one")
    if flip != scored_with_flip(opened):
        threshold = None  # it holds for scores made otherwise
    row_D = unit_embeddings(opened, [face], flip)[0].astype(np.float32)
    places, scores = nearest(stored.embedding, row_D, top)
    paths = tuple(str(path) for path in stored.path[places])
    return Found(face=face, paths=paths, scores=scores, threshold=threshold, gallery=stored)


def nearest(
    embedding_NxD: npt.NDArray[np.float32], row_D: npt.NDArray[np.float32], top: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The rows with the largest dot products, exactly; of equal ones, the first.

    Returns:
        their places and their dot products, the largest first.

    >>> places, scores = nearest(np.eye(3, dtype=np.float32), np.array([0.6, 0.8, 0], dtype=np.float32), top=2)
    >>> places.tolist(), scores.round(2).tolist()
    ([1, 0], [0.8, 0.6])
    """
    places = np.empty(0, dtype=np.int64)
    scores = np.empty(0, dtype=np.float64)
    for start in range(0, len(embedding_NxD), BLOCK):
        block = (embedding_NxD[start : start + BLOCK] @ row_D).astype(np.float64)
        places = np.concatenate([places, np.arange(start, start + len(block))])
        scores = np.concatenate([scores, block])
        order = np.argsort(-scores, kind="stable")[:top]
        places, scores = places[order], scores[order]
    return places, scores


def kept_threshold(model: Model, false_match_rate: float | None = None) -> Threshold | None:
    """The threshold that `calibrate` has kept with a model; None if it has none.

    Args:
        model: an open model.
        false_match_rate: the target; by default the lowest of those kept.

    Raises:
        ConfigError: there is none for that rate, or they were made with another input of the network.
        DataError: their file is broken.
    """
    calibration = model.calibration
    if calibration is None:
        if false_match_rate is not None:
            raise ConfigError(
                f"a false match rate of {small_rate(false_match_rate)}: the model has no thresholds; run"
                " `facebones calibrate`"
            )
        return None
    try:
        return _threshold(model, calibration, false_match_rate)
    except (KeyError, TypeError, ValueError) as error:  # None, or no threshold at all
        raise DataError(
            f"{model.path}: its thresholds are damaged; make them again by `facebones calibrate`"
        ) from error


def _threshold(model: Model, calibration: dict[str, Any], false_match_rate: float | None) -> Threshold:
    made_with = calibration["model"]["preprocessing"]
    if made_with != model.preprocessing.to_json():
        options = " ".join(f"--{name} {value}" for name, value in made_with.items())
        raise ConfigError(f"{model.path}: its thresholds are for another input of the network; give {options}")
    kept = {float(one["false_match_rate"]): one for one in calibration["thresholds"]}
    if not kept:
        raise ValueError("none")
    rate = min(kept) if false_match_rate is None else false_match_rate
    if rate not in kept:
        rates = ", ".join(map(small_rate, sorted(kept)))
        raise ConfigError(
            f"a false match rate of {small_rate(rate)}: the model has thresholds for {rates}; give one of them"
        )
    one = kept[rate]
    return Threshold(
        threshold=float(one["threshold"]),
        false_match_rate=rate,
        confidence=float(one["confidence"]),
        true_accept_rate=float(one["true_accept_rate"]),
        impostors=int(one["impostors"]),
        sets=tuple(str(one["set"]) for one in calibration["sets"]),
    )


def _open(model: Model | Path | str, batch_size: int, opening: dict[str, Any]) -> Model:
    """Open a model; a runtime that compiles for a batch size gets this one."""
    if isinstance(model, Model):
        return model
    runtime = opening.pop("runtime", None)
    opened = load_model(model, **opening)
    if runtime is None:
        return opened
    from facebones.evaluation.runtimes import run_by

    return run_by(opened, runtime, batch_size)


def _portrait(pixels_HxWx3: ImageArray, face: Face) -> ImageArray:
    """The face at a size to look at."""
    if face.landmarks is None:
        import cv2

        return np.asarray(cv2.resize(pixels_HxWx3, (PORTRAIT, PORTRAIT), interpolation=cv2.INTER_CUBIC))
    return cut_face(pixels_HxWx3, face.landmarks, face.what, PORTRAIT)


def _stored(gallery: PhotoEmbeddings | Sequence[Path | str] | Path | str) -> PhotoEmbeddings | None:
    """A gallery that is embedded already; None for photos."""
    if isinstance(gallery, PhotoEmbeddings):
        return gallery
    places = [gallery] if isinstance(gallery, Path | str) else list(gallery)
    files = [place for place in places if Path(place).suffix in ENDINGS]
    if not files:
        return None
    if len(places) > 1:
        raise ConfigError(
            f"{files[0]}: is a file of embeddings; give one alone as the gallery, and embed all photos into it by"
            " `facebones embed`"
        )
    if Path(files[0]).suffix == ".parquet":
        raise ConfigError(f"{files[0]}: a gallery is read from .npz, not from Parquet; write .npz by `facebones embed`")
    return read_embeddings(files[0])


def _embedded(model: Model, gallery: Any, finder: FaceDetector | None, **embedding: Any) -> PhotoEmbeddings:
    paths, notes = list_photos(gallery)
    found = embed_listed(model, paths, finder, flip=scored_with_flip(model), **embedding)
    return replace(found, notes=tuple(notes))
