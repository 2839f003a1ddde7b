"""The protocol `tinyface`: searches of small faces (1:N) among the images of the same people and 153,428 distractors.

Layout, as published: `Testing_Set/Gallery_Match`, `Testing_Set/Gallery_Distractor` and `Testing_Set/Probe` with images
PERSON_IMAGE.jpg, and beside them the lists `gallery_match_img_ID_pairs.mat` and `probe_img_ID_pairs.mat`, which are
read where they are there. Aligned copies have the three folders without `Testing_Set`, and distractors in folders.

A probe is found at rank k if an image of its person is among the k most similar images of the gallery, distractors
included. mAP is the mean over probes of the average precision. The bootstrap resamples the people of the probes.

Source: Z. Cheng, X. Zhu, S. Gong, "Low-Resolution Face Recognition", ACCV 2018 (arXiv 1811.08965), and its published
evaluation program.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.data.folders import images_below
from facebones.data.image_sources import ImageFiles
from facebones.data.images import aspect_note, image_size
from facebones.errors import DataError, counted, first_line
from facebones.evaluation.image_search import Found, search_images, unit_rows
from facebones.evaluation.protocol import Features, ProtocolResult, register_protocol
from facebones.evaluation.published_folder import PublishedFolder
from facebones.statistics.bootstrap import ResampledMetric, resample_mean, resample_rank
from facebones.statistics.metric import Metric
from facebones.statistics.significance import compare_models

GALLERY, DISTRACTORS, PROBES = FOLDERS = ("Gallery_Match", "Gallery_Distractor", "Probe")
TESTING_SET = "Testing_Set"
# List beside the folders: its array of names, its array of people.
LISTS = {
    GALLERY: ("gallery_match_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
    PROBES: ("probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
}
RANKS = (1, 5, 20)
LARGEST_RANK = 50  # of the CMC curve
MAP = Metric(name="map")
DISTRACTOR = -1
SAMPLED = 100  # images whose aspect is looked at

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class TinyFaceImages:
    """The images of a TinyFace folder: those of the gallery, the distractors, then the probes.

    Attributes:
        root: folder that holds the three folders.
        files: (N,) paths inside it.
        person: (N,) person of each image; DISTRACTOR for a distractor.
        gallery: number of images in the gallery with people.
        probes: number of probes.
        notes: for the user.
    """

    root: Path
    files: list[str]
    person: IntArray
    gallery: int
    probes: int
    notes: list[str]


@register_protocol
class TinyFace(PublishedFolder):
    """Searches with TinyFace's probes: Rank-1, 5 and 20, and mAP.

    Args:
        path: the folder with `Testing_Set`, or with its three folders.
    """

    name = "tinyface"
    keep_features = True

    @cached_property
    def data(self) -> TinyFaceImages:
        """The images and their people.

        Raises:
            DataError: a folder is missing or empty, a file has no person in its name, or a list is broken.
        """
        return read_tinyface(self.path)

    def images(self) -> ImageFiles:
        """Gallery, distractors and probes."""
        return ImageFiles(str(self.path), self.data.root, self.data.files)

    def notes(self) -> list[str]:
        """Images that the lists leave out, and images that are not square."""
        found, images = self.data, self.images()
        chosen = np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).astype(int).tolist()
        aspect = aspect_note(str(self.path), [image_size(images.encoded(index)) for index in chosen], sampled=True)
        return [*found.notes, *([aspect] if aspect else [])]

    def sizes(self) -> dict[str, int]:
        """Numbers of images of each kind."""
        found = self.data
        return {
            "probes": found.probes,
            "gallery_images": found.gallery,
            "distractors": len(found.files) - found.gallery - found.probes,
        }

    def search(self, features_NxVxD: Features) -> Found:
        """Search with all probes by one model."""
        found, name = self.data, str(self.path)
        searched = len(found.files) - found.probes
        probes = unit_rows(name, features_NxVxD, slice(searched, None))
        return search_images(probes, found.person[searched:], name, features_NxVxD[:searched], found.person[:searched])

    def compare(
        self, features: Mapping[str, Features], *, bootstrap: int, seed: int, output: Path | None = None
    ) -> list[ProtocolResult]:
        """Search with several models, and test their differences."""
        found = {model: self.search(rows) for model, rows in features.items()}
        person = self.data.person[-self.data.probes :]
        ranks = {model: one.rank(person.size) for model, one in found.items()}
        precision = [one.average_precision(person.size) for one in found.values()]
        drawing: dict[str, Any] = {"replicates": bootstrap, "seed": seed}
        metrics: list[ResampledMetric | Metric] = [
            resample_rank([row <= rank for row in ranks.values()], person, rank=rank, main=rank == 1, **drawing)
            for rank in RANKS
        ]
        metrics.append(resample_mean(precision, person, MAP, **drawing))
        largest = min(LARGEST_RANK, len(self.data.files) - self.data.probes)
        cmc = {model: [float(np.mean(row <= rank)) for rank in range(1, largest + 1)] for model, row in ranks.items()}
        return [self.result(compare_models(list(features), metrics), curves={"cmc": cmc})]


def read_tinyface(path: Path) -> TinyFaceImages:
    """List the images of a TinyFace folder with their people.

    Raises:
        DataError: see `TinyFace.data`.
    """
    root = _root(path)
    notes: list[str] = []
    files: list[str] = []
    people: list[int] = []
    counts = {}
    for folder in FOLDERS:
        names = images_below(root / folder)
        if not names:
            raise DataError(f"{root / folder}: holds no image; restore it from its source")
        if folder == DISTRACTORS:
            of_folder = [DISTRACTOR] * len(names)
        elif (root / LISTS[folder][0]).is_file():
            listed = _read_list(root, folder, set(names))
            if left := len(names) - len(listed):
                notes.append(f"{root / folder}: {counted(left, 'image')} not in {LISTS[folder][0]} left out")
            names, of_folder = list(listed), list(listed.values())
        else:
            of_folder = [_person(root / folder, name) for name in names]
        files += [f"{folder}/{name}" for name in names]
        people += of_folder
        counts[folder] = len(names)
    person = np.array(people, dtype=np.int64)
    _check_searched(root, person, counts[GALLERY], counts[PROBES])
    return TinyFaceImages(
        root=root, files=files, person=person, gallery=counts[GALLERY], probes=counts[PROBES], notes=notes
    )


def _root(path: Path) -> Path:
    """The folder with the three folders: the given one, or `Testing_Set` in it."""
    places = [path, path / TESTING_SET]
    present = [[name for name in FOLDERS if (place / name).is_dir()] for place in places]
    place = places[int(len(present[1]) > len(present[0]))]
    missing = [name for name in FOLDERS if not (place / name).is_dir()]
    if len(missing) == len(FOLDERS):
        wanted = f"{TESTING_SET}/{GALLERY}, {TESTING_SET}/{DISTRACTORS} and {TESTING_SET}/{PROBES}"
        raise DataError(f"{path}: no TinyFace folder; it holds {wanted}, with or without {TESTING_SET}; check the path")
    if missing:
        raise DataError(f"{place}: no folder {' and '.join(missing)} here; restore it, or rename what it is called now")
    return place


def _read_list(root: Path, folder: str, names: set[str]) -> dict[str, int]:
    """Images of a list, in its order, with their people."""
    from scipy.io import loadmat

    file, of_names, of_people = LISTS[folder]
    path = root / file
    try:
        content = loadmat(path)
        listed = [str(np.asarray(cell).ravel()[0]) for cell in np.ravel(content[of_names])]
        people = [int(number) for number in np.ravel(content[of_people])]
    except Exception as error:  # a damaged file makes scipy raise errors of many kinds
        reason = f"no array {error}" if isinstance(error, KeyError) else first_line(error)
        raise DataError(f"{path}: not TinyFace's list: {reason}; restore it, or remove it to use the names") from error
    if len(listed) != len(people) or len(set(listed)) != len(listed):
        raise DataError(f"{path}: {len(set(listed))} names for {len(people)} people; restore it from its source")
    if missing := next((name for name in listed if name not in names), None):
        raise DataError(f"{path}: lists {missing}, which is not in {root / folder}; restore the image")
    if (low := min(people)) < 0:
        raise DataError(f"{path}: {low} is no number of a person; restore it from its source")
    return dict(zip(listed, people, strict=True))


def _person(folder: Path, name: str) -> int:
    """The person in the name of a file, PERSON_IMAGE.jpg."""
    number = name.rpartition("/")[2].partition("_")[0]
    if not (number.isdecimal() and len(number) <= 9):
        raise DataError(f"{folder / name}: no person in the name; rename it to PERSON_IMAGE.jpg, such as 12_3.jpg")
    return int(number)


def _check_searched(root: Path, person: IntArray, gallery: int, probes: int) -> None:
    """Refuse a probe without an image in the gallery: the search is closed."""
    lost = np.setdiff1d(person[-probes:], person[:gallery])
    if lost.size:
        shown = ", ".join(map(str, lost[:3].tolist()))
        raise DataError(
            f"{root / PROBES}: {counted(lost.size, 'person', 'people')} without an image in {GALLERY} ({shown});"
            " restore the images, or the lists of one edition"
        )
