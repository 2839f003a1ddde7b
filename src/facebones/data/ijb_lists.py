"""Read template sets: IJB-B and IJB-C folders as InsightFace distributes them, from the lists in `meta`.

A template is a set of images of one subject, from one or more media; a medium is a photo or a video. One list has the
landmarks of each image, another its template and medium. Pairs of templates are listed for verification (1:1),
galleries and probes for identification (1:N).

Sources: C. Whitelam et al., "IARPA Janus Benchmark-B Face Dataset", CVPR workshops (2017); B. Maze et al., "IARPA Janus
Benchmark - C: Face Dataset and Protocol", ICB (2018).
"""

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.ijb_pairs import (
    PAIR_LIST,
    TARGETS,
    BoolArray,
    PairLabels,
    SubjectArray,
    joined_templates,
    read_pair_labels,
)
from facebones.data.text_lists import (
    SHOWN_CHARACTERS,
    IntArray,
    blame_line,
    has_columns,
    is_whole_number,
    leads_out,
    line_blocks,
    separator_of,
    shown,
    whole_numbers,
)
from facebones.errors import DataError

IMAGE_LIST, MEDIA_LIST = "name_5pts_score.txt", "face_tid_mid.txt"
# Galleries are usually called G1 and G2; the authors of IJB-B call them S1 and S2.
GALLERY_LISTS = {"G1": ("1N_gallery_G1.csv", "1N_gallery_S1.csv"), "G2": ("1N_gallery_G2.csv", "1N_gallery_S2.csv")}
PROBE_LIST = "1N_probe_mixed.csv"
POINTS = 5
LONGEST_NUMBER = 64  # characters

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class SubjectList:
    """A gallery or a list of probes: templates with their subjects.

    Attributes:
        template: (K,) int32 index into the set's `template_ids`, each at most once.
        subject: (K,) int64.
    """

    template: IntArray
    subject: SubjectArray

    def __len__(self) -> int:
        """Number of templates, K."""
        return self.template.size

    def of_templates(self, kept_T: BoolArray) -> "SubjectList":
        """The same list with some of all T templates only."""
        kept = kept_T[self.template]
        return SubjectList(template=self.template[kept], subject=self.subject[kept])


@dataclass(frozen=True, eq=False, kw_only=True)
class TemplateSet:
    """The lists of an IJB-B or IJB-C folder: N images of T templates, P pairs, galleries and probes.

    Attributes:
        name: "ijbb" or "ijbc".
        path: the folder that holds `loose_crop` and `meta`.
        image_names: N file names inside `image_folder`.
        landmarks: (N, 5, 2) float32, x and y in pixels of the image.
        detector_score: (N,) float32.
        template_ids: (T,) int32, ascending.
        template_of_image: (N,) int32 index into `template_ids`.
        medium_of_image: (N,) int32 number of the medium; templates may share a medium.
        pair_a: (P,) int32 index into `template_ids`.
        pair_b: (P,) int32 index into `template_ids`.
        is_same: (P,) bool, True for a genuine pair.
        galleries: "G1" and "G2", if the folder has them.
        probes: the probes of both galleries, or None.
    """

    name: str
    path: Path
    image_names: Sequence[str]
    landmarks: FloatArray
    detector_score: FloatArray
    template_ids: IntArray
    template_of_image: IntArray
    medium_of_image: IntArray
    pair_a: IntArray
    pair_b: IntArray
    is_same: BoolArray
    galleries: Mapping[str, SubjectList]
    probes: SubjectList | None

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.image_names)

    @property
    def image_folder(self) -> Path:
        """The folder of the image files."""
        return self.path / "loose_crop"

    def identification_lists(self) -> tuple[Mapping[str, SubjectList], SubjectList]:
        """Galleries and probes.

        Raises:
            DataError: one of the lists is missing.
        """
        missing = [files[0] for name, files in GALLERY_LISTS.items() if name not in self.galleries]
        if self.probes is None or missing:
            path = self.path / "meta" / f"{self.name}_{[*missing, PROBE_LIST][0]}"
            raise DataError(f"{path}: no such file; identification (1:N) needs it, verification (1:1) does not")
        return self.galleries, self.probes

    def identities(self) -> SubjectArray:
        """(T,) int64 subject of each template, -1 if unknown.

        The subjects come from both galleries and the probes if the folder has all three; otherwise from the genuine
        pairs, which join templates to subjects numbered from 0.
        """
        if self.probes is None or len(self.galleries) < len(GALLERY_LISTS):
            return joined_templates(self.template_ids.size, self.pair_a, self.pair_b, self.is_same)
        subjects = np.full(self.template_ids.size, -1, dtype=np.int64)
        for listed in (*self.galleries.values(), self.probes):
            subjects[listed.template] = listed.subject
        return subjects


def read_template_set(folder: str | os.PathLike[str]) -> TemplateSet:
    """Read the lists of an IJB-B or IJB-C folder, without opening the images.

    Raises:
        DataError: a list is missing or broken, or the lists do not fit together; names file and line.
    """
    folder = Path(folder)
    name = _target(folder)
    start = folder / "meta" / f"{name}_"
    images_path, pairs_path = Path(f"{start}{IMAGE_LIST}"), Path(f"{start}{PAIR_LIST}")
    names, landmarks, detector_score = _read_images(images_path)
    templates, media = _read_media(Path(f"{start}{MEDIA_LIST}"), images_path, names)
    template_ids, template_of_image = np.unique(templates, return_inverse=True)
    pairs = read_pair_labels(pairs_path)
    place = _places(pairs, template_ids)
    galleries, probes = _read_subject_lists(str(start), template_ids)
    return TemplateSet(
        name=name,
        path=folder,
        image_names=names,
        landmarks=landmarks,
        detector_score=detector_score,
        template_ids=template_ids,
        template_of_image=template_of_image.astype(np.int32),
        medium_of_image=media,
        pair_a=place[pairs.pair_a],
        pair_b=place[pairs.pair_b],
        is_same=pairs.is_same,
        galleries=galleries,
        probes=probes,
    )


def listed_targets(folder: Path) -> list[str]:
    """Targets ("ijbb", "ijbc") that the folder has lists for in `meta`; [] if it is not an IJB folder."""
    lists = (IMAGE_LIST, MEDIA_LIST, PAIR_LIST)
    return [name for name in TARGETS if any((folder / "meta" / f"{name}_{file}").exists() for file in lists)]


def _target(folder: Path) -> str:
    meta, found = folder / "meta", listed_targets(folder)
    if not found:
        wanted = " or ".join(f"{name}_{IMAGE_LIST}" for name in TARGETS)
        raise DataError(f"{meta}: no {wanted} in it; give the folder that holds loose_crop and meta")
    if len(found) > 1:
        raise DataError(f"{meta}: holds lists of {' and '.join(found)}; give each its own folder")
    return found[0]


def _read_images(path: Path) -> tuple[Sequence[str], FloatArray, FloatArray]:
    """Names, landmarks (N, 5, 2) and detector scores (N,) of the images."""
    columns = 2 * POINTS + 2
    names: list[str] = []
    numbers: list[FloatArray] = []
    for first, block in line_blocks(path):
        values = None
        if has_columns(block, columns):
            fields = block.split()
            names += _names(path, first, fields[::columns])
            del fields[::columns]
            values = _finite_numbers(fields)
        if values is None:
            blame_line(path, first, block, _is_image, "'image x1 y1 ... x5 y5 score' in finite numbers")
        numbers.append(values.reshape(-1, columns - 1))
    _check_names(path, names)
    table = np.concatenate(numbers)
    return tuple(names), table[:, :-1].reshape(-1, POINTS, 2), table[:, -1].copy()


def _read_media(path: Path, images_path: Path, names: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Template and medium of each image, (N,) and (N,), in the order of `names`."""
    listed: list[str] = []
    numbers: list[IntArray] = []
    for first, block in line_blocks(path):
        values = None
        if has_columns(block, 3):
            fields = block.split()
            listed += _names(path, first, fields[::3])
            del fields[::3]
            values = whole_numbers(b" ".join(fields))
        if values is None:
            blame_line(path, first, block, _is_medium, "'image template media' in whole numbers")
        numbers.append(values.reshape(-1, 2))
    table = np.concatenate(numbers)
    if tuple(listed) != names:
        _check_names(path, listed)
        line_of = {name: line for line, name in enumerate(listed)}
        _check_known(path, listed, images_path, frozenset(names))
        _check_known(images_path, names, path, line_of)
        table = table[[line_of[name] for name in names]]
    return table[:, 0].copy(), table[:, 1].copy()


def _places(pairs: PairLabels, template_ids: IntArray) -> IntArray:
    """Index of each template of the pairs among the templates of the images."""
    place = np.searchsorted(template_ids, pairs.template_ids)
    known = template_ids[np.minimum(place, template_ids.size - 1)] == pairs.template_ids
    if not known.all():
        bad = ~known[pairs.pair_a] | ~known[pairs.pair_b]
        pair = int(np.argmax(bad))
        template = next(one for one in (pairs.pair_a[pair], pairs.pair_b[pair]) if not known[one])
        _no_image(pairs.path, pair + 1, int(pairs.template_ids[template]))
    return place.astype(np.int32)


def _read_subject_lists(start: str, template_ids: IntArray) -> tuple[dict[str, SubjectList], SubjectList | None]:
    """Read the galleries and probes that exist; a template must have the same subject in all of them."""
    subject_of: dict[int, tuple[int, Path]] = {}
    galleries = {}
    for gallery, files in GALLERY_LISTS.items():
        found = [path for file in files if (path := Path(start + file)).exists()]
        if found:
            galleries[gallery] = _read_subjects(found[0], template_ids, subject_of)
    probes = Path(start + PROBE_LIST)
    return galleries, _read_subjects(probes, template_ids, subject_of) if probes.exists() else None


def _read_subjects(path: Path, template_ids: IntArray, subject_of: dict[int, tuple[int, Path]]) -> SubjectList:
    """Read a header line and lines `template,subject`; with more columns, there is one line per image of a template.

    Args:
        path: the list.
        template_ids: (T,) ascending.
        subject_of: subject of each template in the lists read so far, and the list; those of this list are added.
    """
    rows: dict[int, int] = {}
    for number, template, subject, per_image in _subject_rows(path):
        if rows.get(template, subject) != subject or (template in rows and not per_image):
            raise DataError(f"{path}, line {number}: template {template} is listed already; remove one of the lines")
        known, where = subject_of.setdefault(template, (subject, path))
        if known != subject:
            both = f"{known} in {where.name} and {subject} here"
            raise DataError(f"{path}, line {number}: template {template} has the subject {both}; correct the lists")
        if template not in rows:
            place = int(np.searchsorted(template_ids, template))
            if place == template_ids.size or template_ids[place] != template:
                _no_image(path, number, template)
        rows[template] = subject
    if not rows:
        raise DataError(f"{path}: lists no template after the header line; restore the list")
    templates = np.fromiter(rows, dtype=np.int32, count=len(rows))
    subjects = np.fromiter(rows.values(), dtype=np.int64, count=len(rows))
    return SubjectList(template=np.searchsorted(template_ids, templates).astype(np.int32), subject=subjects)


def _subject_rows(path: Path) -> Iterator[tuple[int, int, int, bool]]:
    """Yield line number, template, subject, and whether more columns follow: then a line is an image."""
    separator = b","
    for first, block in line_blocks(path):
        for number, line in enumerate(block[:-1].split(b"\n"), first):
            if number == 1:
                separator = separator_of(line.decode(errors="replace")).encode()
            fields = [field.strip(b' \t\r"') for field in line.split(separator, 2)]
            numeric = len(fields) > 1 and all(map(is_whole_number, fields[:2]))
            if number == 1 and numeric:
                raise DataError(f"{path}, line 1: {shown(line)} is data; a header line must stand before it")
            if number > 1 and not numeric:
                raise DataError(f"{path}, line {number}: {shown(line)} is not 'template,subject,...' in whole numbers")
            if number > 1:
                yield number, int(fields[0]), int(fields[1]), len(fields) > 2


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse an image that is listed twice or lies outside of the image folder."""
    if len(frozenset(names)) < len(names):
        seen: dict[str, int] = {}
        for number, name in enumerate(names, 1):
            if (before := seen.setdefault(name, number)) != number:
                raise DataError(f"{path}, line {number}: {name} stands in line {before} already; remove one of them")
    for number, name in enumerate(names, 1):
        if leads_out(name):
            raise DataError(
                f"{path}, line {number}: {name[:SHOWN_CHARACTERS]} leads out of loose_crop; correct the list"
            )


def _check_known(path: Path, names: Sequence[str], other: Path, known: Container[str]) -> None:
    for number, name in enumerate(names, 1):
        if name not in known:
            raise DataError(f"{path}, line {number}: {name} is missing in {other.name}; restore both lists")


def _no_image(path: Path, number: int, template: int) -> NoReturn:
    raise DataError(f"{path}, line {number}: no image has the template {template}; restore the lists of one edition")


def _names(path: Path, first: int, names: Sequence[bytes]) -> list[str]:
    joined = b"\n".join(names)
    try:
        return joined.decode().split("\n")
    except UnicodeDecodeError as error:
        number = first + joined.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {number}: the name of the image is not UTF-8 text; restore the list") from error


def _finite_numbers(fields: Sequence[bytes]) -> FloatArray | None:
    """The numbers; None if a field is not a finite number."""
    if max(map(len, fields)) > LONGEST_NUMBER:  # an array of strings is as wide as its longest
        return None
    try:
        with np.errstate(over="ignore"):
            values = np.array(fields).astype(np.float64).astype(np.float32)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _is_image(fields: list[bytes]) -> bool:
    return len(fields) == 2 * POINTS + 2 and _finite_numbers(fields[1:]) is not None


def _is_medium(fields: list[bytes]) -> bool:
    return len(fields) == 3 and all(map(is_whole_number, fields[1:]))
