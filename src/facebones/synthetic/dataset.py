"""Synthesize a data set in the formats of the field: training records, verification pairs, IJB-style templates.

Every image is a pure function of the seed, the number of its person, its own number and its pose. The order of drawing
and the number of processes do not matter.
"""

import os
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data.images import single_threaded_opencv
from facebones.data.pair_bins import write_pairs
from facebones.datatools.convert import convert
from facebones.errors import ConfigError, DataError, RunError, UnknownNameError
from facebones.synthetic.identity import Identity, draw_identity
from facebones.synthetic.image import FaceImage, draw_face, draw_loose_crop, image_generator, numbered_identity
from facebones.system.files import cannot_write, publish_folder, temporary_folder
from facebones.system.processes import leave_signals_to_parent, signals_deferred
from facebones.system.progress import track

__all__ = ["FaceImage", "Identity", "draw_face", "draw_identity", "draw_loose_crop", "synthesize"]

FOLDS = 10
PAIR_SETS = {"synthetic": ("frontal", "frontal"), "synthetic_profile": ("frontal", "profile")}
TEMPLATE_FOLDER = "ijb"
TEMPLATE_SIZES = (3, 1, 2, 3)  # images of a subject's gallery template and of its probes
GRACE_SECONDS = 3.0
IMAGES_WORTH_A_PROCESS = 500  # the start of a process takes as long as drawing about this many


class Shot(NamedTuple):
    """One image to draw."""

    identity: int
    number: int  # from 1
    pose: str
    loose: bool = False


class Drawn(NamedTuple):
    """A drawn image: a JPEG file, and the landmarks and score of `FaceImage`."""

    jpeg: bytes
    landmarks: npt.NDArray[np.float32]
    score: float


@dataclass(frozen=True)
class PairPlan:
    """P verification pairs in ten folds without common people.

    Attributes:
        shots: 2P images; pair k is images 2k and 2k + 1.
        is_same: P; in each fold, genuine pairs come first.
        identities: number of people.
    """

    shots: list[Shot]
    is_same: list[bool]
    identities: int


@dataclass(frozen=True, kw_only=True)
class SyntheticSummary:
    """The result of `synthesize`.

    Attributes:
        destination: the folder.
        identities: number of people in the training set.
        images: number of training images.
        pair_sets: names of the verification sets.
        pairs: number of pairs in each.
        templates: number of templates in the IJB-style folder.
        template_pairs: number of pairs of templates.
    """

    destination: Path
    identities: int
    images: int
    pair_sets: tuple[str, ...]
    pairs: int
    templates: int
    template_pairs: int

    def __str__(self) -> str:
        sets = ", ".join(f"{name}.bin" for name in self.pair_sets)
        return (
            f"{self.destination}: {self.images} training images of {self.identities} people; "
            f"{self.pairs} pairs each in {sets}; "
            f"{self.templates} templates and {self.template_pairs} pairs of them in {TEMPLATE_FOLDER}"
        )


def synthesize(
    destination: str | os.PathLike[str],
    *,
    identities: int = 200,
    images_per_identity: int = 20,
    pair_sets: Sequence[str] = tuple(PAIR_SETS),
    pairs: int = 1000,
    template_subjects: int = 40,
    seed: int = 0,
    workers: int | None = None,
) -> SyntheticSummary:
    """Draw a data set of synthetic faces and write it as an InsightFace folder.

    The folder has `train.rec`, `train.idx` and `property`, a `.bin` file per pair set, and an IJB-C style folder `ijb`.
    No person is in two of these. The folder appears when it is complete.

    Args:
        destination: the folder to create; it may exist if it is empty.
        identities: people in the training set, 2 or more.
        images_per_identity: training images per person.
        pair_sets: verification sets: "synthetic" compares frontal faces, "synthetic_profile" frontal faces with faces
            turned by 30 to 50 degrees.
        pairs: pairs in each set, half of them genuine; a multiple of 20, for ten equal folds.
        template_subjects: people in the IJB-style folder, 2 or more; each has one gallery template and three probes.
        seed: seed of everything, 0 or more.
        workers: drawing processes; 1 draws in this process. By default up to one per core, depending on the number of
            images. The result is the same. With several, a script needs the usual `if __name__ == "__main__"`.

    Raises:
        DataError: the destination exists and is not an empty folder.
        ConfigError: a number is out of range.
        UnknownNameError: an unknown pair set.
        RunError: the folder cannot be written, or a drawing process died.
    """
    destination = Path(destination)
    _check_numbers(identities, images_per_identity, pairs, template_subjects, seed)
    for name in pair_sets:
        if name not in PAIR_SETS:
            raise UnknownNameError("synthetic pair set", name, PAIR_SETS)
    artist = _Artist(seed, workers)
    with _new_folder(destination) as (building, scratch):
        _write_training(building, scratch / "faces", identities, images_per_identity, artist)
        unseen = identities
        for name in pair_sets:
            plan = plan_pairs(unseen, pairs, PAIR_SETS[name])
            with closing(artist.draw(plan.shots, f"drawing {name}")) as drawings:
                images = [drawn.jpeg for drawn in drawings]
            write_pairs(building / f"{name}.bin", images, plan.is_same)
            unseen += plan.identities
        template_pairs = _write_templates(building / TEMPLATE_FOLDER, unseen, template_subjects, artist)
    return SyntheticSummary(
        destination=destination,
        identities=identities,
        images=identities * images_per_identity,
        pair_sets=tuple(pair_sets),
        pairs=pairs,
        templates=template_subjects * len(TEMPLATE_SIZES),
        template_pairs=template_pairs,
    )


def draw_shot(seed: int, shot: Shot) -> FaceImage:
    """Draw one image of the world that `seed` makes."""
    draw = draw_loose_crop if shot.loose else draw_face
    rng = image_generator(seed, shot.identity, shot.number)
    return draw(numbered_identity(seed, shot.identity), rng, pose=shot.pose)


def plan_pairs(first_identity: int, pairs: int, poses: tuple[str, str]) -> PairPlan:
    """Choose the pairs; no image occurs twice.

    Args:
        first_identity: number of the first person.
        pairs: P, a multiple of 20.
        poses: pose of the first and of the second image of each pair.
    """
    half = pairs // (2 * FOLDS)
    people = half // 2 + 2
    images: Counter[int] = Counter()
    shots: list[Shot] = []
    for fold in range(FOLDS):
        start = first_identity + fold * people
        genuine = [(k % people, k % people) for k in range(half)]
        impostor = [(k % people, (k + 1 + k // people) % people) for k in range(half)]
        for pair in genuine + impostor:
            for person, pose in zip(pair, poses, strict=True):
                images[start + person] += 1
                shots.append(Shot(start + person, images[start + person], pose))
    return PairPlan(shots, ([True] * half + [False] * half) * FOLDS, FOLDS * people)


@dataclass(frozen=True)
class _Artist:
    """Draws and encodes images in one or several processes."""

    seed: int
    workers: int | None

    def draw(self, shots: Sequence[Shot], description: str) -> Generator[Drawn]:
        """Yield the images in the order of `shots`, with progress; close the generator to end the processes."""
        draw = partial(_draw_encoded, self.seed)
        workers = self.workers or min(os.cpu_count() or 1, 1 + len(shots) // IMAGES_WORTH_A_PROCESS)
        if workers == 1:
            with single_threaded_opencv():
                yield from track(map(draw, shots), description, len(shots))
            return
        # Spawned: the threads of OpenCV do not survive a fork.
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
        try:
            with signals_deferred():
                drawings = pool.map(draw, shots, chunksize=32)  # starts the processes, which inherit the mask
            yield from track(drawings, description, len(shots))
        except BrokenProcessPool as error:
            fix = "call it with workers=1, or under `if __name__ == '__main__'`"
            raise RunError(f"{description}: a drawing process has died; {fix}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(0)
    signal.signal(signal.SIGTERM, _end_later)
    leave_signals_to_parent()


def _end_later(*_: object) -> None:
    """End after a delay: the pool terminates all workers if one dies, and the main process may need this one first."""
    timer = Timer(GRACE_SECONDS, os._exit, [1])
    timer.daemon = True
    timer.start()


def _draw_encoded(seed: int, shot: Shot) -> Drawn:
    face = draw_shot(seed, shot)
    return Drawn(face.encoded(), face.landmarks, face.score)


def _check_numbers(identities: int, images: int, pairs: int, subjects: int, seed: int) -> None:
    limits = (
        ("identities", identities, 2, 10**6),
        ("images per identity", images, 1, 10**6),
        ("training images", identities * images, 2, 10**7),
        ("pairs", pairs, 2 * FOLDS, 10**6),
        ("template subjects", subjects, 2, 10**5),
        ("seed", seed, 0, 2**63 - 1),
    )
    for name, number, least, most in limits:
        if number < least:
            raise ConfigError(f"{name}: {number} is too low; give {least} or more")
        if number > most:
            raise ConfigError(f"{name}: {number} is too high; give {most} or less")
    if pairs % (2 * FOLDS):
        below = pairs - pairs % (2 * FOLDS)
        raise ConfigError(f"pairs: {pairs} is not a multiple of {2 * FOLDS}; give {below} or {below + 2 * FOLDS}")


@contextmanager
def _new_folder(destination: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder that is renamed to `destination` when the block ends without an error, and a temporary one.

    Raises:
        DataError: the destination exists and is not an empty folder.
        RunError, ConfigError: it cannot be written.
    """
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise DataError(f"{destination}: exists and is not an empty folder; remove it or choose another name")
    try:
        with temporary_folder(destination) as scratch:
            building = scratch / "building"
            yield building, scratch
            publish_folder(building, destination)
    except OSError as error:
        raise cannot_write(destination, error) from error


def _write_training(building: Path, faces: Path, identities: int, images: int, artist: _Artist) -> None:
    """Draw an image folder and convert it to records."""
    width, image_width = len(str(identities - 1)), len(str(images))
    shots = [Shot(person, number, "any") for person in range(identities) for number in range(1, images + 1)]
    with closing(artist.draw(shots, "drawing training images")) as drawings:
        for shot, drawn in zip(shots, drawings, strict=True):
            path = faces / f"{shot.identity:0{width}d}" / f"{shot.number:0{image_width}d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawn.jpeg)
    convert(faces, building)


def _write_templates(folder: Path, first_identity: int, subjects: int, artist: _Artist) -> int:
    """Write loose crops and their IJB-C lists.

    Each subject has a gallery template, in G1 or G2 alternately, and three probes. The first image of a template is a
    still, the others are frames of one video, so of one medium.

    Returns:
        The number of pairs of templates: each gallery template with each probe.
    """
    crops, meta = folder / "loose_crop", folder / "meta"
    crops.mkdir(parents=True)
    meta.mkdir()
    images_each = sum(TEMPLATE_SIZES)
    shots = [
        Shot(first_identity + subject, number, "any", loose=True)
        for subject in range(subjects)
        for number in range(1, images_each + 1)
    ]
    points = []
    with closing(artist.draw(shots, "drawing loose crops")) as drawings:
        for number, drawn in enumerate(drawings, 1):
            (crops / f"{number}.jpg").write_bytes(drawn.jpeg)
            coordinates = " ".join(f"{value:.3f}" for value in drawn.landmarks.ravel())
            points.append(f"{number}.jpg {coordinates} {drawn.score:.6f}")
    _write_lines(meta / "ijbc_name_5pts_score.txt", points)
    _write_media(meta / "ijbc_face_tid_mid.txt", subjects)
    return _write_protocol(meta, subjects)


def _write_media(path: Path, subjects: int) -> None:
    lines: list[str] = []
    medium = 0
    for template, size in enumerate(TEMPLATE_SIZES * subjects, 1):
        for place in range(size):
            medium += place < 2
            lines.append(f"{len(lines) + 1}.jpg {template} {medium}")
    _write_lines(path, lines)


def _write_protocol(meta: Path, subjects: int) -> int:
    """Write the pairs, galleries and probes; templates and subjects are numbered from 1."""
    templates = [(template, template // len(TEMPLATE_SIZES) + 1) for template in range(subjects * len(TEMPLATE_SIZES))]
    gallery = [(template + 1, subject) for template, subject in templates if template % len(TEMPLATE_SIZES) == 0]
    probes = [(template + 1, subject) for template, subject in templates if template % len(TEMPLATE_SIZES) > 0]
    lists = {"gallery_G1": gallery[0::2], "gallery_G2": gallery[1::2], "probe_mixed": probes}
    for name, rows in lists.items():
        lines = [f"{template},{subject}" for template, subject in rows]
        _write_lines(meta / f"ijbc_1N_{name}.csv", ["TEMPLATE_ID,SUBJECT_ID", *lines])
    pairs = [f"{one} {other} {int(a == b)}" for one, a in gallery for other, b in probes]
    _write_lines(meta / "ijbc_template_pair_label.txt", pairs)
    return len(pairs)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
