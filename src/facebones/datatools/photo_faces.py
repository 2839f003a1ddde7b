"""The face in a photo: read the photo, find the face, cut it out as ArcFace expects."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data.image_folder import is_system_folder
from facebones.data.images import ImageArray, decode, is_image_name, read_image_file, why_unreadable
from facebones.data.preprocessing import ALIGNED_SIZE, REFERENCE, align_face, similarity_transform
from facebones.data.unreadable import Fault
from facebones.datatools.landmarks import FaceDetector, quiet_opencv
from facebones.errors import DataError, counted, some

AHEAD = 4  # photos per thread that are read ahead
SHOWN = 3  # names in a note
Result = TypeVar("Result")
Photo = Path | str | bytes | ImageArray
FORMATS = "JPEG, PNG, BMP and WebP are read; convert others, such as a phone's HEIC, first"


class NoFaceError(DataError):
    """A photo has no face that can be used.

    Attributes:
        reason: why, without the name of the photo and without advice.
    """

    def __init__(self, what: str, reason: str, advice: str = "") -> None:
        super().__init__(f"{what}: {reason}{f'; {advice}' if advice else ''}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """The face of a photo.

    Attributes:
        what: name of the photo.
        image: (112, 112, 3) uint8 RGB, aligned.
        landmarks: (5, 2) x and y in pixels of the photo; None for an image that is an aligned face already.
        box: x, y, width and height in pixels of the photo: of all of an aligned image.
        score: of the detector, from 0 to 1; NaN for an aligned image.
        faces: how many faces are in the photo.
    """

    what: str
    image: ImageArray
    landmarks: npt.NDArray[np.float64] | None
    box: tuple[float, float, float, float]
    score: float
    faces: int

    def to_json(self) -> dict[str, Any]:
        """Name, box, detector score and number of faces, as plain values."""
        score = None if np.isnan(self.score) else round(self.score, 4)
        return {"photo": self.what, "box": [round(side, 1) for side in self.box], "score": score, "faces": self.faces}


def read_photo(photo: Photo, what: str | None = None) -> tuple[ImageArray, str]:
    """The pixels of a photo as it is displayed, after the rotation in its EXIF data, and its name in messages.

    Args:
        photo: a path, the bytes of an image file, or an array (H, W, 3) uint8 RGB.
        what: the name; by default the path, or "the photo".

    Raises:
        DataError: it cannot be read, or has too many pixels.
    """
    named = what or (str(photo) if isinstance(photo, Path | str) else "the photo")
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise DataError(f"{named}: {photo.dtype} of shape {photo.shape}; give uint8 of shape (H, W, 3), RGB")
        return photo, named
    try:
        encoded = photo if isinstance(photo, bytes) else read_image_file(str(photo))
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{named}: cannot be read: {reason}; check the path") from error
    try:
        with quiet_opencv():
            return decode(encoded, named), named
    except DataError as error:
        fault = why_unreadable(encoded) or Fault("no readable image", FORMATS)
        raise NoFaceError(named, *fault) from error


def find_face(photo_HxWx3: ImageArray, detector: FaceDetector | None, what: str) -> Face:
    """Find and align the face of a photo.

    Args:
        photo_HxWx3: (H, W, 3) uint8 RGB.
        detector: chooses the face; None takes the image for an aligned face, which is resized to 112x112.
        what: name of the photo in an error.

    Raises:
        NoFaceError: there is none.
    """
    height, width = photo_HxWx3.shape[:2]
    if detector is None:
        size = (ALIGNED_SIZE, ALIGNED_SIZE)
        image = photo_HxWx3 if (height, width) == size else cv2.resize(photo_HxWx3, size)
        box = (0.0, 0.0, float(width), float(height))
        return Face(what=what, image=np.asarray(image), landmarks=None, box=box, score=float("nan"), faces=1)
    with quiet_opencv():
        found = detector.detect(photo_HxWx3)
    if found is None:
        advice = "take a photo where the face is larger, lower --confidence, or give --aligned for an aligned face"
        raise NoFaceError(f"{what} ({width}x{height} pixels)", "no face found", advice)
    image = cut_face(photo_HxWx3, found.landmarks, what)
    return Face(what=what, image=image, landmarks=found.landmarks, box=found.box, score=found.score, faces=found.faces)


def cut_face(
    photo_HxWx3: ImageArray, landmarks_5x2: npt.NDArray[np.float64], what: str, size: int = ALIGNED_SIZE
) -> ImageArray:
    """Cut a face out of a photo as `align_face` does; a photo whose face is far larger is made smaller before.

    `align_face` samples a photo at the pixels of the result. Of a face twice as large or more it would skip pixels, so
    that noise and hair become a pattern: at 13 times, with noise of 12 grey levels, the cosine to the face without
    noise falls to 0.956, and stays at 0.997 this way.

    Raises:
        NoFaceError: the landmarks are unusable, or OpenCV cannot warp so large a photo.
    """
    if not ((landmarks_5x2 >= 0) & (landmarks_5x2 < photo_HxWx3.shape[1::-1])).all(axis=1).any():
        raise NoFaceError(what, "landmarks outside of the image")  # the face would be black
    try:
        return align_face(*_reduced(photo_HxWx3, landmarks_5x2, what, size), what, size)
    except DataError as error:
        raise NoFaceError(what, "landmarks all in one place") from error
    except cv2.error as error:  # a side of 32768 pixels or more
        raise NoFaceError(what, "too large an image", "make it smaller") from error


def _reduced(
    photo_HxWx3: ImageArray, landmarks_5x2: npt.NDArray[np.float64], what: str, size: int
) -> tuple[ImageArray, npt.NDArray[np.float64]]:
    """A copy of a photo, smaller by a whole number, in which the face is less than twice as large as the result."""
    matrix = similarity_transform(landmarks_5x2, REFERENCE * (size / ALIGNED_SIZE), what)
    times = int(1 / max(np.hypot(matrix[0, 0], matrix[1, 0]), 1e-9))
    if times < 2:
        return photo_HxWx3, landmarks_5x2
    before = np.array(photo_HxWx3.shape[1::-1])
    after = np.maximum(before // times, 1)
    small = cv2.resize(photo_HxWx3, after.tolist(), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8), (landmarks_5x2 + 0.5) * (after / before) - 0.5


def list_photos(places: Sequence[Path | str] | Path | str) -> tuple[list[str], list[str]]:
    """The photos among files and below folders, in the order given, each once; and notes on files left out.

    Raises:
        DataError: a place does not exist, or a folder has no image.
    """
    given: Iterable[Path | str] = [places] if isinstance(places, Path | str) else places
    found: dict[tuple[str, str], str] = {}  # under the real folder, for photos/../photos is photos
    notes: list[str] = []
    for place in map(Path, given):
        if place.is_dir():
            names, more = list_images(place)
            paths = [place / name for name in names]
            notes += more
        elif place.exists():
            paths = [place]
        else:
            raise DataError(f"{place}: no such photo or folder; check the path")
        for path in paths:
            found.setdefault((os.path.realpath(path.parent), path.name), str(path))
    return list(found.values()), notes


def in_threads(work: Callable[[str], Result], photos: Sequence[str], workers: int) -> Generator[Result]:
    """Yield the result of a function for each photo, in order; close the generator to end the threads.

    Threads are as fast as processes: OpenCV decodes, detects and warps without Python's lock.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for photo in photos:
            waiting.append(pool.submit(work, photo))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def list_images(root: Path) -> tuple[list[str], list[str]]:
    """List the images below a folder, following links.

    Returns:
        Their paths inside the folder, sorted; and notes on files that are left out.

    Raises:
        DataError: the folder does not exist, has no image, or cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name a folder of images")
    images: list[str] = []
    others: list[str] = []
    _list_below(root, "", (), images, others)
    if not images:
        raise DataError(f"{root}: no image in it or below; check the path")
    shown = some(sorted(others), SHOWN)
    left_out = counted(len(others), "file that is no image", "files that are no image")
    return sorted(images), [f"{root}: {left_out} left out: {shown}"] if others else []


def _list_below(root: Path, inside: str, above: tuple[str, ...], images: list[str], others: list[str]) -> None:
    folder = root / inside
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder above
        return
    try:
        with os.scandir(folder) as entries:
            rows = [
                (entry.name, entry.is_dir())
                for entry in entries
                if not entry.name.startswith(".") and not is_system_folder(entry.name)
            ]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}; check the path and its permissions") from error
    for name, is_folder in rows:
        path = f"{inside}/{name}" if inside else name
        if is_folder:
            _list_below(root, path, (*above, real), images, others)
        else:
            (images if is_image_name(name) else others).append(path)
