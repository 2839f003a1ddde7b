"""The file of the face detector: where it is looked for, and how it is fetched.

YuNet is a file of OpenCV's model zoo (MIT licence). It is fetched only by `facebones download detector`, from one
revision of the zoo, and kept in the user's cache folder. The digest is that of the zoo's own record of the file.
"""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from facebones.datatools.landmarks import FaceDetector
from facebones.errors import CheckpointError, RunError, first_line
from facebones.system.files import atomic_write, cache_folder, check_writable
from facebones.system.regular_files import open_regular

NAME = "face_detection_yunet_2023mar.onnx"
ADDRESS = (
    "https://github.com/opencv/opencv_zoo/raw/47534e27c9851bb1128ccc0102f1145e27f23f98/models/face_detection_yunet/"
    + NAME
)
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
BYTES = 232_589
SECONDS = 30.0  # without an answer
VARIABLE = "FACEBONES_DETECTOR"


def open_detector(
    detector: FaceDetector | Path | str = "auto", *, confidence: float = 0.6, face: str = "largest"
) -> FaceDetector:
    """Open a face detector.

    Args:
        detector: one that is open already, a file of YuNet, or "auto": the file that the environment variable
            FACEBONES_DETECTOR names, or else the one that `download_detector` has fetched.
        confidence: least score of a face, above 0, up to 1.
        face: which of several faces: "largest" or "central".

    Raises:
        CheckpointError: there is no such file, or it is not the detector.
        ConfigError: `confidence` or `face` is out of range.
    """
    if not isinstance(detector, Path | str):
        return detector
    return FaceDetector(detector_file(detector), confidence=confidence, face=face)


def detector_file(detector: Path | str = "auto") -> Path:
    """The file that `open_detector` opens.

    Raises:
        CheckpointError: "auto", and there is none, or not the published one; or the variable names no file.
    """
    return _installed() if detector == "auto" else Path(detector)


def detector_path() -> Path:
    """Where `download_detector` puts the file if it is told no other place."""
    return cache_folder() / NAME


def download_detector(path: Path | str | None = None) -> Path:
    """Fetch the face detector YuNet (0.2 MB, MIT licence) from OpenCV's model zoo, and check its digest.

    A file that is there already and has the digest is kept, without any connection.

    Args:
        path: where to put it; None: the cache folder, where `match`, `embed` and `search` look for it.

    Returns:
        the path of the file.

    Raises:
        RunError: the zoo cannot be reached, sent another file, or the disk is full.
        ConfigError: the place cannot be written.
    """
    place = detector_path() if path is None else Path(path)
    if _digest(place) == SHA256:
        return place
    check_writable(place)
    content = _fetch(place)
    with atomic_write(place) as file:
        file.write(content)
    return place


def _fetch(place: Path) -> bytes:
    by_hand = f"where there is a network, save {ADDRESS} and put it at {place}"
    try:
        with urllib.request.urlopen(ADDRESS, timeout=SECONDS) as answer:
            content: bytes = answer.read(BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        reason = first_line(getattr(error, "reason", None) or error)
        raise RunError(f"the face detector cannot be fetched: {reason}; {by_hand}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise RunError(f"{ADDRESS}: sent {len(content)} bytes that are not the face detector; {by_hand}")
    return content


def _installed() -> Path:
    """The detector of this user."""
    if given := os.environ.get(VARIABLE):
        return _named(Path(given))
    place = detector_path()
    digest = _digest(place)
    if digest is None:
        raise CheckpointError(
            f"no face detector: run `facebones download detector`, or save {ADDRESS} at {place}; --detector FILE (or"
            f" ${VARIABLE}) names another file, --aligned takes images that are aligned faces already"
        )
    if digest != SHA256:
        raise CheckpointError(
            f"{place}: not the published file; run `facebones download detector` again, or name another file by"
            " --detector"
        )
    return place


def _named(path: Path) -> Path:
    """The file that the variable names."""
    try:
        with open_regular(path):
            return path
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror}; ${VARIABLE} names this file: correct the variable, or unset it"
        ) from error


def _digest(path: Path) -> str | None:
    """Digest of a file; None if it cannot be read or is far too large."""
    try:
        with open_regular(path) as file:
            return hashlib.sha256(file.read(BYTES + 1)).hexdigest()
    except OSError:
        return None
