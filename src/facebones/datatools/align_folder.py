"""Turn a folder of photos into a folder of aligned faces: the only tool that encodes images again."""

import csv
import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import cv2

from facebones.data.images import ImageArray, decode, read_image_file, why_unreadable
from facebones.data.training_set import evenly
from facebones.datatools.contact_sheet import IN_ROW, refuse_image_of, write_face_sheet
from facebones.datatools.jpeg_damage import decoder_warnings
from facebones.datatools.landmarks import LandmarkSource, LandmarkTable, quiet_opencv
from facebones.datatools.partial_folder import PartialFolder, photos_origin
from facebones.datatools.photo_faces import NoFaceError, cut_face, in_threads, list_images
from facebones.errors import ConfigError, DataError, counted, some
from facebones.system.files import check_writable
from facebones.system.progress import printable, track

FORMATS = ("jpg", "png")
MISSING = "not_found.csv"
UNREADABLE = "unreadable image"
ENDINGS = {"jpg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}
SHOWN = 3


class Missing(NamedTuple):
    """An image without a face: its path inside the folder, and the reason."""

    path: str
    reason: str


class _Face(NamedTuple):
    """The result for one image: an encoded face, or the reason why there is none."""

    path: str
    target: str
    encoded: bytes
    faces: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How faces are encoded.

    Attributes:
        format: "jpg" or "png".
        quality: JPEG quality, 1 to 100.

    Raises:
        ConfigError: an unknown format, or a quality out of range.
    """

    format: str = "jpg"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ConfigError(f"format: {self.format!r} is none of {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality: {self.quality} is not from 1 to 100")

    def encode(self, image_HxWx3: ImageArray) -> bytes:
        """Encode an RGB image."""
        options = (cv2.IMWRITE_JPEG_QUALITY, self.quality) if self.format == "jpg" else ()
        bgr = cv2.cvtColor(image_HxWx3, cv2.COLOR_RGB2BGR)
        return cv2.imencode(f".{self.format}", bgr, options)[1].tobytes()

    def is_whole(self, path: str) -> bool:
        """Whether a file exists and is complete."""
        try:
            content = read_image_file(path)
        except OSError:
            return False
        return content.endswith(ENDINGS[self.format])


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The result of `align_folder`.

    Attributes:
        source: the folder of photos.
        destination: the folder of faces.
        images: number of photos.
        faces: number of faces in the destination.
        folders: number of folders with faces.
        kept: faces that an interrupted run had written.
        several: photos of this run with several faces.
        not_found: photos without a face, and rows of a landmark table without a photo.
        notes: messages for the user.
    """

    source: Path
    destination: Path
    images: int
    faces: int
    folders: int
    kept: int
    several: int
    not_found: tuple[Missing, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        kept = f", {self.kept} of them kept from an earlier run" if self.kept else ""
        faces = f"{counted(self.faces, 'face')} in {counted(self.folders, 'folder')}"
        lines = [f"{self.source} -> {self.destination}: {faces}{kept}"]
        if self.several:
            lines.append(f"images with several faces, of which one was taken: {self.several}")
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.reasons().items())
        listed = f" ({reasons}); they are listed in {self.destination / MISSING}" if self.not_found else ""
        of_all = f"{self.images - self.faces} of {counted(self.images, 'image')}"
        lines += [f"not found: {of_all}{listed}", *self.notes]
        return "\n".join(printable(line, breaks=False) for line in lines)

    def reasons(self) -> dict[str, int]:
        """Number of photos per reason why they have no face, without its details, most frequent first."""
        return _counted_reasons(self.not_found)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values for JSON."""
        paths = {"source": str(self.source), "destination": str(self.destination)}
        missing = [missing._asdict() for missing in self.not_found]
        return asdict(self) | paths | {"not_found": missing, "notes": list(self.notes), "reasons": self.reasons()}


def align_folder(
    source: Path,
    destination: Path,
    landmarks: LandmarkSource,
    *,
    encoding: Encoding | None = None,
    workers: int | None = None,
    contact_sheet: Path | None = None,
    resume: bool = False,
) -> Alignment:
    """Align one face of each photo to 112x112, and keep the names of folders and files.

    Photos without a face are listed in `not_found.csv`, if there are any. The folder is filled as NAME.partial and
    renamed when it is complete.

    Args:
        source: a folder of photos at any depth; hidden files and folders are skipped.
        destination: the folder to create.
        landmarks: finds the faces: `LandmarkTable` or `FaceDetector`.
        encoding: how faces are encoded; by default JPEG of quality 95.
        workers: threads; by default one per core.
        contact_sheet: a PNG file to write, with some faces of some folders.
        resume: continue an interrupted run, and keep its faces.

    Raises:
        DataError: there is no photo or no face, two photos have one name, or the destination exists.
        RunError, ConfigError: the destination cannot be written.
    """
    encoding = encoding or Encoding()
    if contact_sheet is not None:
        check_writable(contact_sheet)
        refuse_image_of(source, contact_sheet)
    _refuse_inside(source, destination)
    names, notes = list_images(source)
    targets = _targets(names, encoding.format, source)
    missing = [Missing(name, "no such image") for name in _unused(landmarks, set(names))]
    origin = photos_origin(source, names, landmarks.settings | asdict(encoding))
    with PartialFolder(destination, resume, "alignment", origin) as folder:
        wanted = [name for name in names if not folder.keep(targets[name], encoding.is_whole)]
        work = partial(_align, source, landmarks, encoding, targets)
        without, several, damage = _fill(folder, work, wanted, workers or os.cpu_count() or 1)
        missing = sorted([*missing, *without])
        if not (found := _found(targets, missing)):
            _fail_empty(folder, source, len(names), missing)
        if missing:
            folder.place(MISSING, _csv(missing))
        else:  # an interrupted run may have missed some
            (folder.path / MISSING).unlink(missing_ok=True)
    if contact_sheet is not None:
        _write_sheet(contact_sheet, destination, found)
    kept = len(names) - len(wanted)
    if damage:
        notes = [*notes, f"damaged JPEG data, {damage} times; `facebones data inspect {source}` names the photos"]
    return _summary(source, destination, targets, missing, notes, kept=kept, several=several)


def _fill(
    folder: PartialFolder, work: Callable[[str], _Face], names: Sequence[str], workers: int
) -> tuple[list[Missing], int, int]:
    """Write the faces of these photos.

    Returns:
        The photos without a face, the number of photos with several, and of the decoder's warnings of damage.
    """
    missing: list[Missing] = []
    several = 0
    with quiet_opencv(), decoder_warnings() as warnings, closing(in_threads(work, names, workers)) as faces:
        for face in track(faces, "aligning", len(names)):
            if face.reason:
                missing.append(Missing(face.path, face.reason))
            else:
                folder.place(face.target, face.encoded)
            several += face.faces > 1
        damage = warnings.count_of_damage()
    return missing, several, damage


def _found(targets: dict[str, str], missing: Sequence[Missing]) -> list[str]:
    """The faces, in the order of their photos."""
    lost = {path for path, _ in missing}
    return [target for name, target in targets.items() if name not in lost]


def _summary(
    source: Path,
    destination: Path,
    targets: dict[str, str],
    missing: Sequence[Missing],
    notes: Sequence[str],
    *,
    kept: int,
    several: int,
) -> Alignment:
    found = _found(targets, missing)
    return Alignment(
        source=source,
        destination=destination,
        images=len(targets),
        faces=len(found),
        folders=len({os.path.dirname(name) for name in found}),  # noqa: PTH120
        kept=kept,
        several=several,
        not_found=tuple(missing),
        notes=(*notes, *_empty_folders(list(targets), {path for path, _ in missing})),
    )


def _refuse_inside(source: Path, destination: Path) -> None:
    if Path(os.path.realpath(destination)).is_relative_to(os.path.realpath(source)):
        raise DataError(f"{destination}: lies inside {source}, whose images are read; choose another place")


def _targets(names: Sequence[str], format: str, source: Path) -> dict[str, str]:
    """Path of the face of each photo."""
    targets = {name: str(PurePath(name).with_suffix(f".{format}")) for name in names}
    first: dict[str, str] = {}
    for name, target in targets.items():
        if (other := first.setdefault(target, name)) != name:
            raise DataError(f"{source}: {other} and {name} would both become {target}; rename one of them")
    return targets


def _unused(landmarks: LandmarkSource, names: set[str]) -> list[str]:
    """Rows of a landmark table without a photo."""
    return [name for name in landmarks.names() if name not in names] if isinstance(landmarks, LandmarkTable) else []


def _align(source: Path, landmarks: LandmarkSource, encoding: Encoding, targets: dict[str, str], name: str) -> _Face:
    try:
        encoded = read_image_file(f"{source}/{name}")
        image = decode(encoded, name)
    except DataError:
        fault = why_unreadable(encoded)
        return _Face(name, "", b"", 0, f"{UNREADABLE}: {fault.reason}" if fault else UNREADABLE)
    except OSError as error:
        return _Face(name, "", b"", 0, f"cannot be read: {error.strerror}")
    points, faces = landmarks.find(name, image)
    if points is None:
        return _Face(name, "", b"", 0, landmarks.missing)
    try:
        return _Face(name, targets[name], encoding.encode(cut_face(image, points, name)), faces, "")
    except NoFaceError as error:
        return _Face(name, "", b"", 0, error.reason)


def _fail_empty(folder: PartialFolder, source: Path, images: int, missing: Sequence[Missing]) -> None:
    if not folder.resume:
        shutil.rmtree(folder.path)
    listed = ", ".join(f"{reason}: {count}" for reason, count in _counted_reasons(missing).items())
    raise DataError(f"{source}: no face in any of {counted(images, 'image')} ({listed}); nothing is written")


def _counted_reasons(missing: Sequence[Missing]) -> dict[str, int]:
    """Number of photos per reason without its details, most frequent first."""
    return dict(Counter(reason.partition(":")[0] for _, reason in missing).most_common())


def _csv(missing: Sequence[Missing]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Missing._fields)
    writer.writerows(missing)
    return text.getvalue().encode(errors="surrogateescape")


def _empty_folders(names: Sequence[str], lost: set[str]) -> list[str]:
    """Note on the folders that have photos but no face."""
    before, after = ({os.path.dirname(name) for name in part} for part in (names, set(names) - lost))  # noqa: PTH120
    empty = sorted(before - after)
    return [f"folders without a face: {len(empty)}: {some(empty, SHOWN)}"] if empty else []


def _write_sheet(path: Path, root: Path, names: Sequence[str]) -> None:
    """Write a contact sheet of some faces of some folders, evenly spread."""
    of_folder: dict[str, list[str]] = {}
    for name in names:
        of_folder.setdefault(os.path.dirname(name), []).append(name)  # noqa: PTH120
    rows = []
    for folder in evenly(sorted(of_folder), IN_ROW):
        faces = [decode((root / name).read_bytes(), name) for name in evenly(of_folder[folder], IN_ROW)]
        rows.append((folder or root.name, faces))
    write_face_sheet(path, f"{root.name}: {counted(len(names), 'face')} in {counted(len(of_folder), 'folder')}", rows)
