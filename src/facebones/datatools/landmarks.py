"""Where the face in a photo is: five landmarks from a table, or from YuNet, the face detector of OpenCV.

Source: W. Wu, H. Peng, S. Yu, "YuNet: a tiny millisecond-level face detector", Machine Intelligence Research 20 (2023).
The network is the file `face_detection_yunet_*.onnx` of OpenCV's model zoo (github.com/opencv/opencv_zoo).
"""

import csv
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray, single_threaded_opencv
from facebones.data.preprocessing import five_of_68
from facebones.data.text_lists import decimal, separator_of
from facebones.errors import CheckpointError, ConfigError, DataError, counted
from facebones.system.files import read_at_most
from facebones.system.regular_files import open_regular, read_regular

POINTS = (5, 68)
FIELDS = tuple(1 + 2 * points for points in POINTS)

CHOICES = ("largest", "central")
RIGHT_FILE = "take face_detection_yunet_2023mar.onnx from OpenCV's model zoo"
MOST_BYTES = 2**26  # the file of YuNet has 0.25 MB
OVERLAP = 0.3  # boxes that overlap more show one face: YuNet's default
MOST_FACES = 5000
# YuNet finds faces of about 10 to 300 pixels. In larger faces it takes eyes and mouths for faces, and a face that fills
# the photo needs a border. So the first pass uses a small copy with a border of half its longest side. Only if that
# shows no face as wide as a quarter of the photo, a second pass looks for small faces in a large copy.
CLOSE, FAR = (640, 0.5), (1280, 0.0)  # longest side including the border, and the border
LARGE = 0.25
# Outputs of the network: numbers of values per cell of 8, 16 and 32 pixels.
OUTPUTS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
STRIDES = (8, 16, 32)


class LandmarkSource(Protocol):
    """Finds the landmarks of a face: a table or a detector."""

    @property
    def missing(self) -> str:
        """The reason why an image has no landmarks."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the landmarks, for resuming."""

    def find(self, name: str, image_HxWx3: ImageArray, /) -> tuple[npt.NDArray[np.float64] | None, int]:
        """Return landmarks (5, 2) or None, and the number of faces in the image."""


class LandmarkTable:
    """Landmarks from a CSV file: rows `path,x1,y1,x2,y2,...` with 5 or 68 points.

    Semicolons or tabs may separate the fields, as Excel writes them; then numbers may have decimal commas.

    Paths start from the folder of images. x points right and y down, in pixels of the displayed image, after the
    rotation in its EXIF data; the centre of the first pixel is (0, 0). Five points have the order of
    `preprocessing.REFERENCE`, 68 points that of the 300-W annotation. The first line may be a heading.

    Attributes:
        missing: the reason why an image has no landmarks.

    Raises:
        DataError: the file is missing, or is not such a table; names the line.
    """

    missing = "no landmarks"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            content = read_regular(self.path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error
        self._fingerprint = hashlib.sha256(content).hexdigest()
        self._points = _read(self.path, content)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the landmarks, for resuming."""
        return {"landmarks": self._fingerprint}

    def names(self) -> list[str]:
        """Paths in the table, in its order."""
        return list(self._points)

    def find(self, name: str, image_HxWx3: ImageArray) -> tuple[npt.NDArray[np.float64] | None, int]:
        """Look up an image.

        Args:
            name: path of the image inside the folder.
            image_HxWx3: not used.

        Returns:
            Landmarks (5, 2) and 1, or None and 0.
        """
        points = self._points.get(name)
        return points, int(points is not None)


def _read(path: Path, content: bytes) -> dict[str, npt.NDArray[np.float64]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: not UTF-8 text; landmarks are a CSV file") from error
    found: dict[str, npt.NDArray[np.float64]] = {}
    separator = separator_of(text.lstrip().partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    read = float if separator == "," else decimal
    try:
        for place, row in enumerate(row for row in reader if row):
            if place == 0 and _is_heading(row, read):
                continue
            name, points = _row(path, reader.line_num, row, read)
            if name in found:
                _fail(path, reader.line_num, f"{name} is in the table twice; keep one face per image")
            found[name] = points
    except csv.Error as error:
        _fail(path, reader.line_num, f"{error}; landmarks are a CSV file")
    if not found:
        raise DataError(f"{path}: holds no landmarks; a line is 'path,x1,y1,x2,y2,...' with 5 or 68 points")
    return found


def _is_heading(row: Sequence[str], read: Callable[[str], float]) -> bool:
    """Whether no field after the first one is a number."""
    return len(row) > 1 and all(_number(field, read) is None for field in row[1:])


def _row(
    path: Path, line: int, row: Sequence[str], read: Callable[[str], float]
) -> tuple[str, npt.NDArray[np.float64]]:
    name = os.path.normpath(row[0].strip())
    if len(row) not in FIELDS:
        wanted = " or ".join(f"{fields} ({points} points)" for fields, points in zip(FIELDS, POINTS, strict=True))
        _fail(path, line, f"{counted(len(row), 'field')} instead of {wanted}")
    values = [_number(field, read) for field in row[1:]]
    if None in values:
        _fail(path, line, f"{row[1 + values.index(None)][:40]!r} is not a number")
    points = np.array(values, dtype=np.float64).reshape(-1, 2)
    return name, five_of_68(points) if len(points) == 68 else points


def _number(field: str, read: Callable[[str], float]) -> float | None:
    """The number in a field; None if it is not a finite number."""
    try:
        number = read(field)
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None


def _fail(path: Path, line: int, reason: str) -> NoReturn:
    raise DataError(f"{path}, line {line}: {reason}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """The face that a detector has chosen in a photo.

    Attributes:
        landmarks: (5, 2) x and y in pixels of the photo, in the order of `preprocessing.REFERENCE`.
        box: x, y, width and height in pixels of the photo.
        score: of the detector, from 0 to 1.
        faces: how many faces are in the photo.
    """

    landmarks: npt.NDArray[np.float64]
    box: tuple[float, float, float, float]
    score: float
    faces: int


class FaceDetector:
    """YuNet: finds the landmarks of one face in a photo; several threads may share an instance.

    Attributes:
        missing: the reason why an image has no landmarks.

    Raises:
        CheckpointError: the file is missing, or is not YuNet.
        ConfigError: `confidence` or `face` is out of range.
    """

    missing = "no face found"

    def __init__(self, path: str | os.PathLike[str], *, confidence: float = 0.6, face: str = "largest") -> None:
        """Read the network.

        Args:
            path: `face_detection_yunet_*.onnx`.
            confidence: least score of a face, above 0, up to 1.
            face: which of several faces: "largest", or "central" for the one closest to the centre of the photo.
        """
        if not 0 < confidence <= 1:
            raise ConfigError(f"confidence: {confidence:g} is not above 0 and up to 1")
        if face not in CHOICES:
            raise ConfigError(f"face: {face!r} is none of {', '.join(CHOICES)}")
        self.confidence, self.face = confidence, face
        self._model = _read_model(Path(path))
        self._of_thread = threading.local()  # OpenCV's detector stores the size of its input

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the landmarks, for resuming."""
        fingerprint = hashlib.sha256(self._model.tobytes()).hexdigest()
        return {"detector": fingerprint, "confidence": self.confidence, "face": self.face}

    def find(self, name: str, image_HxWx3: ImageArray) -> tuple[npt.NDArray[np.float64] | None, int]:
        """Find the landmarks of the face to align.

        Args:
            name: not used.
            image_HxWx3: the photo, (H, W, 3) uint8 RGB.

        Returns:
            Landmarks (5, 2), x and y in pixels of the photo in the order of `preprocessing.REFERENCE`, or None without
            a face; and the number of faces.
        """
        found = self.detect(image_HxWx3)
        return (None, 0) if found is None else (found.landmarks, found.faces)

    def detect(self, image_HxWx3: ImageArray) -> Detection | None:
        """Find the largest or most central face of a photo, (H, W, 3) uint8 RGB; None without a face."""
        faces_Nx15 = self._look(image_HxWx3, *CLOSE)
        if not (faces_Nx15[:, 2] >= LARGE * min(image_HxWx3.shape[:2])).any():
            far = self._look(image_HxWx3, *FAR)
            faces_Nx15 = far if len(far) else faces_Nx15
        if not len(faces_Nx15):
            return None
        chosen = faces_Nx15[self._choose(faces_Nx15, image_HxWx3.shape[:2])]
        x, y, width, height = chosen[:4].tolist()
        return Detection(
            landmarks=chosen[4:14].reshape(5, 2),
            box=(x, y, width, height),
            score=float(chosen[14]),
            faces=len(faces_Nx15),
        )

    def _choose(self, faces_Nx15: npt.NDArray[np.float64], size: tuple[int, ...]) -> int:
        if self.face == "largest":
            return int(np.argmax(faces_Nx15[:, 2] * faces_Nx15[:, 3]))
        middle = np.array((size[1], size[0])) / 2
        return int(np.argmin(np.linalg.norm(faces_Nx15[:, :2] + faces_Nx15[:, 2:4] / 2 - middle, axis=1)))

    def _look(self, image_HxWx3: ImageArray, side: int, border: float) -> npt.NDArray[np.float64]:
        """Find faces in a smaller copy with a border.

        Returns:
            (N, 15): box (x, y, width, height) and landmarks in pixels of the photo, and the score.
        """
        height, width = image_HxWx3.shape[:2]
        scale = min(1.0, side / (max(height, width) * (1 + 2 * border)))
        # Round each side by itself: a strip of one pixel keeps one pixel.
        small_height, small_width = max(1, round(height * scale)), max(1, round(width * scale))
        bgr = cv2.cvtColor(image_HxWx3, cv2.COLOR_RGB2BGR)
        if scale < 1:
            bgr = cv2.resize(bgr, (small_width, small_height), interpolation=cv2.INTER_AREA)
        edge = round(border * max(small_height, small_width))
        bgr = cv2.copyMakeBorder(bgr, edge, edge, edge, edge, cv2.BORDER_CONSTANT)
        detector = self._detector()
        detector.setInputSize((bgr.shape[1], bgr.shape[0]))
        found = detector.detect(bgr)[1]
        faces = np.empty((0, 15)) if found is None else np.asarray(found, dtype=np.float64)
        faces = faces[np.isfinite(faces).all(axis=1)]
        back = np.array((width / small_width, height / small_height))
        faces[:, :2] -= edge
        faces[:, 4:14] -= edge
        faces[:, :14] = (faces[:, :14].reshape(-1, 7, 2) * back).reshape(-1, 14)
        return faces

    def _detector(self) -> cv2.FaceDetectorYN:
        if not hasattr(self._of_thread, "detector"):
            self._of_thread.detector = _create(self._model, self.confidence)
        detector: cv2.FaceDetectorYN = self._of_thread.detector
        return detector


def _read_model(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with open_regular(path) as file:
            content = read_at_most(file, MOST_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; {RIGHT_FILE}") from error
    model = np.frombuffer(content, dtype=np.uint8)
    if reason := _unfit(model):
        raise CheckpointError(f"{path}: not the face detector YuNet: {reason}; {RIGHT_FILE}")
    return model


def _unfit(model: npt.NDArray[np.uint8]) -> str | None:
    """Reason why a file cannot be used, or None; OpenCV's detector does not check the sizes of the outputs."""
    if model.size > MOST_BYTES:
        return f"it has more than {MOST_BYTES} bytes"
    height, width = 64, 96
    names = [f"{name}_{stride}" for name in OUTPUTS for stride in STRIDES]
    sizes = [values * (height // stride) * (width // stride) for values in OUTPUTS.values() for stride in STRIDES]
    try:
        with quiet_opencv():
            network = cv2.dnn.readNetFromONNX(model)
            network.setInput(cv2.dnn.blobFromImage(np.zeros((height, width, 3), dtype=np.uint8)))
            if lacking := set(names).difference(network.getUnconnectedOutLayersNames()):
                return f"it lacks the output {min(lacking)}"
            outputs = network.forward(names)
    except cv2.error:
        return "OpenCV cannot run it"
    if [output.size for output in outputs] != sizes:
        return "its outputs have other sizes"
    return None


def _create(model: npt.NDArray[np.uint8], confidence: float) -> cv2.FaceDetectorYN:
    nothing = np.empty(0, dtype=np.uint8)
    return cv2.FaceDetectorYN.create("onnx", model, nothing, (320, 320), confidence, OVERLAP, MOST_FACES)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Run OpenCV without threads of its own and without log messages: its errors are raised anyway."""
    level = cv2.utils.logging.getLogLevel()
    with single_threaded_opencv():
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            cv2.utils.logging.setLogLevel(level)
