"""Embeddings of photos: of the face in each, found and aligned on the way; photos without a face are listed.

A file of them (`.npz` or `.parquet`) has a row for each photo: path, box, detector score, number of faces, embedding.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import evaluation_mode
from facebones.datatools.detector_file import open_detector
from facebones.datatools.landmarks import FaceDetector, quiet_opencv
from facebones.datatools.photo_faces import Face, NoFaceError, find_face, in_threads, list_photos, read_photo
from facebones.errors import ConfigError, DataError, first_line, some
from facebones.evaluation.embed import ImageEmbeddings, flip_sum_normalised
from facebones.evaluation.models import BATCH_SIZE, Features, Model, load_model
from facebones.system.files import atomic_write, cannot_write, check_writable, check_written, parse_json, read_npz
from facebones.system.progress import track

ENDINGS = (".npz", ".parquet")
# Of a file of embeddings: what each row has, and what is said of all of them.
ROWS = ("path", "box", "score", "faces", "embedding")
LENGTH_TOLERANCE = 1e-3
Detector = FaceDetector | Path | str | None


class Missing(NamedTuple):
    """A photo without a usable face, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoEmbeddings:
    """The faces of N photos.

    Attributes:
        path: (N,) names of the photos.
        box: (N, 4) float32: x, y, width and height of the face in pixels of the photo.
        score: (N,) float32: of the detector, NaN for images that are aligned faces.
        faces: (N,) int32: how many faces are in the photo.
        embedding: (N, D) float32 of length 1: the dot product of two rows is the score of `match_photos`.
        settings: what decides the embeddings: of the model, and "flip".
        missing: photos without a face, which have no row.
        notes: messages for the user.
    """

    path: npt.NDArray[np.str_]
    box: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    faces: npt.NDArray[np.int32]
    embedding: Features
    settings: dict[str, Any]
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.path)

    def save(self, path: Path | str) -> None:
        """Write `.npz` or `.parquet`, and beside it the photos without a face, if any, as `FILE.not_found.csv`.

        Raises:
            ConfigError: another ending, pyarrow is missing for Parquet, or the place cannot be written.
            RunError: the disk is full, or the folder was removed.
        """
        path = check_embeddings_file(Path(path))
        if path.suffix == ".parquet":
            _write_parquet(path, self)
        else:
            rows = {name: getattr(self, name) for name in ROWS}
            with atomic_write(path) as file:
                np.savez(file, **rows, settings=np.array(json.dumps(self.settings)))
        _write_missing(not_found_file(path), self.missing)
        check_written([path])


def embed_photos(
    model: Model | Path | str,
    photos: Sequence[Path | str] | Path | str,
    *,
    detector: Detector = "auto",
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    progress: bool = False,
    **opening: Any,
) -> PhotoEmbeddings:
    """Embed the face of each photo.

    Args:
        model: a model, or what `load_model` opens.
        photos: files, and folders with photos at any depth.
        detector: finds the faces, as for `open_detector`; None: the photos are aligned faces.
        batch_size: faces per forward pass.
        workers: threads that read photos and find faces; None: one per core.
        progress: show the progress on stderr.
        opening: further options of `load_model`.

    Returns:
        a row for each photo with a face, in the order given; `PhotoEmbeddings.missing` lists the others.

    Raises:
        DataError: a place does not exist, a folder has no photo, or no photo has a face.
        FaceBonesError: the model or the detector cannot be used.

    docs/api.md has an example, which a test runs.
    """
    paths, notes = list_photos(photos)
    finder = None if detector is None else open_detector(detector)
    opened = model if isinstance(model, Model) else load_model(model, **opening)
    embedding: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    found = embed_listed(opened, paths, finder, flip=scored_with_flip(opened), **embedding)
    return replace(found, notes=tuple(notes))


def scored_with_flip(model: Model) -> bool:
    """Whether scores of this model add the embedding of the mirror image: as its thresholds do, else yes."""
    calibration = model.calibration
    return True if calibration is None else bool(calibration.get("flip", True))


def unit_embeddings(model: Model, faces: Sequence[Face], flip: bool) -> npt.NDArray[np.float64]:
    """Embed aligned faces.

    Returns:
        (N, D) float64 of length 1.

    Raises:
        DataError: an embedding has no direction.
    """
    with evaluation_mode(model.network):
        features_NxVxD = model(np.stack([face.image for face in faces]), flip)
    return flip_sum_normalised(ImageEmbeddings.of(f"the faces from {faces[0].what} on", features_NxVxD))


def embed_listed(
    model: Model,
    paths: Sequence[str],
    detector: FaceDetector | None,
    *,
    flip: bool,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    progress: bool = False,
) -> PhotoEmbeddings:
    """Embed the faces of the photos that `list_photos` has listed; see `embed_photos`."""
    if batch_size < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"batch_size {batch_size}, workers {workers}: give at least 1")
    rows: list[tuple[str, tuple[float, ...], float, int]] = []
    parts: list[Features] = []
    missing: list[Missing] = []
    work = partial(_face_or_reason, detector=detector)
    with quiet_opencv(), closing(in_threads(work, paths, workers or os.cpu_count() or 1)) as found:
        shown: Iterable[Face | Missing] = found
        if progress:
            shown = track(found, "embedding photos", len(paths), unit="photos")
        with_face = _with_face(shown, missing)
        while batch := list(islice(with_face, batch_size)):
            rows += [(face.what, face.box, face.score, face.faces) for face in batch]
            parts.append(unit_embeddings(model, batch, flip).astype(np.float32))
    if not rows:
        reasons = some(dict.fromkeys(one.reason for one in missing))
        if len(paths) == 1:
            raise DataError(f"{paths[0]}: {missing[0].reason}; nothing is written")
        raise DataError(f"no face in any of {len(paths)} photos ({reasons}), such as {paths[0]}; nothing is written")
    names, boxes, scores, faces = zip(*rows, strict=True)
    return PhotoEmbeddings(
        path=np.array(names, dtype=np.str_),
        box=np.array(boxes, dtype=np.float32),
        score=np.array(scores, dtype=np.float32),
        faces=np.array(faces, dtype=np.int32),
        embedding=np.concatenate(parts),
        settings=embedding_settings(model, flip),
        missing=tuple(missing),
    )


def embedding_settings(model: Model, flip: bool) -> dict[str, Any]:
    """What must be equal for two embeddings to be comparable."""
    settings = model.settings()
    return {"weights_sha256": settings["weights_sha256"], "preprocessing": settings["preprocessing"], "flip": flip}


def _with_face(found: Iterable[Face | Missing], missing: list[Missing]) -> Iterator[Face]:
    """Yield the faces; photos without one are put into the list."""
    for one in found:
        if isinstance(one, Missing):
            missing.append(one)
        else:
            yield one


def _face_or_reason(path: str, detector: FaceDetector | None) -> Face | Missing:
    try:
        return find_face(read_photo(path)[0], detector, path)
    except NoFaceError as error:
        return Missing(path, error.reason)
    except DataError as error:
        return Missing(path, str(error).removeprefix(f"{path}: ").partition(";")[0])


# ---------------------------------------------------------------------------------------------------------- files


def check_embeddings_file(path: Path) -> Path:
    """Check before long work that embeddings can be written to a file.

    Raises:
        ConfigError: neither .npz nor .parquet, pyarrow is missing, or the place cannot be written.
    """
    if path.suffix not in ENDINGS:
        raise ConfigError(f"{path}: embeddings are written as {' or '.join(ENDINGS)}; give such a name")
    if path.suffix == ".parquet":
        _pyarrow(path)
    check_writable(path)
    return path


def not_found_file(path: Path) -> Path:
    """Where the photos without a face are listed, beside the file of the embeddings.

    >>> not_found_file(Path("e.npz")).name
    'e.npz.not_found.csv'
    """
    return path.with_name(f"{path.name}.not_found.csv")


def _write_missing(path: Path, missing: Sequence[Missing]) -> None:
    """Write the list of photos without a face; an earlier list is removed where all have one."""
    if not missing:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        return
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([Missing._fields, *missing])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))


def read_embeddings(path: Path | str) -> PhotoEmbeddings:
    """Read an `.npz` file that `PhotoEmbeddings.save` has written; `missing` is not read.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    again = "write it again by `facebones embed`"
    try:
        found = read_npz(path, (*ROWS, "settings"))
        settings = parse_json(str(found["settings"]).encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except ValueError as error:
        raise DataError(f"{path}: no embeddings of photos ({first_line(error)}); {again}") from error
    rows = len(found["path"]) if found["path"].ndim == 1 else -1
    kinds = {"path": "U", "box": "f", "score": "f", "faces": "i", "embedding": "f"}
    shapes = {"path": (rows,), "box": (rows, 4), "score": (rows,), "faces": (rows,)}
    fitting = all(found[name].dtype.kind == kind for name, kind in kinds.items())
    fitting = fitting and all(found[name].shape == shape for name, shape in shapes.items())
    embedding = found["embedding"]
    if not fitting or rows < 1 or embedding.ndim != 2 or len(embedding) != rows or not isinstance(settings, dict):
        raise DataError(f"{path}: no embeddings of photos (its arrays do not fit each other); {again}")
    with np.errstate(over="ignore"):  # refused below
        lengths = np.linalg.norm(embedding, axis=1)
    if not (np.abs(lengths - 1) < LENGTH_TOLERANCE).all():
        raise DataError(f"{path}: an embedding is not of length 1; {again}")
    rows_of: dict[str, Any] = {name: found[name] for name in ROWS}
    return PhotoEmbeddings(settings=settings, **rows_of)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path}: Parquet needs pyarrow; pip install 'facebones[parquet]', or write .npz") from error
    return arrow, parquet


def _write_parquet(path: Path, found: PhotoEmbeddings) -> None:
    arrow, parquet = _pyarrow(path)

    def lists(rows: npt.NDArray[Any]) -> Any:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(rows.ravel()), rows.shape[1])

    table = arrow.table(
        {
            # A path need not be valid Unicode; Parquet's text is.
            "path": [name.encode(errors="backslashreplace").decode() for name in found.path.tolist()],
            "box": lists(found.box),
            "score": found.score,
            "faces": found.faces,
            "embedding": lists(found.embedding),
        }
    ).replace_schema_metadata({"facebones": json.dumps(found.settings)})
    with atomic_write(path) as file:
        parquet.write_table(table, file)
