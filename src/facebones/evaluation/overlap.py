"""Audit of the overlap between training and test data: the same bytes, near-identical images, and shared people.

Test images are held in blocks, and the training images stream past each block; embeddings are memory maps. So the
memory does not grow with the data. `datatools.near_images` compares images, `evaluation.shared_people` people; docs/
trust.md says what is found and what is not.
"""

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import facebones
from facebones.backbones.base import IMAGE_SIZE
from facebones.data.folders import open_labelled_images
from facebones.data.image_sources import DistinctImages, ImageSource, TrainingImages, distinct
from facebones.data.images import ImageArray, decode, single_threaded_opencv
from facebones.data.training_set import TrainingSet, evenly
from facebones.datatools import near_images
from facebones.errors import ConfigError, DataError, counted
from facebones.evaluation.protocol import Protocol, given_protocols
from facebones.system.files import atomic_write, check_output, check_written, write_json
from facebones.system.hub import origin

if TYPE_CHECKING:
    from facebones.data.preprocessing import Preprocessing
    from facebones.evaluation.models import Model

FORMAT = 1
OVERLAP_FILE, TABLE = "overlap.json", "overlap.csv"
KINDS = {"identical": "the same bytes", "near": "near-identical images", "person": "likely shared people"}
FALSE_RATE = 0.01
SAMPLE = 2048  # training images to which the hash is fitted
TEST_BLOCK = 16_384  # test images in memory at a time, with 10 kB of hashes each
TRAINING_BLOCK = 2048
CHUNK = 64  # images per task of a thread
MOST_SHOWN = 40  # pairs on a contact sheet

Digests = list[bytes | None]


@dataclass(frozen=True)
class Finding:
    """A test image that the training data seem to hold.

    Attributes:
        kind: "identical" (the same bytes), "near" (near-identical) or "person" (of a person trained on, likely).
        set: name of the test set.
        image: its number in the set, from 0; pair k of a pair set is images 2k and 2k + 1.
        score: 1 for the same bytes, the correlation of near-identical images, or the cosine to the person's centroid.
        training_image: number of the matching training image; of a person, the nearest one.
        person: label of that image.
        name: name of that person.
    """

    kind: str
    set: str
    image: int
    score: float
    training_image: int
    person: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The result of an audit.

    Attributes:
        training: what was trained on: path, counts, fingerprint.
        sets: the test sets: "set", "protocols", "data", "images", "fingerprint", of a pair set "pairs_sha256" (as runs
            record it of their validation sets), and "found", the number of images of each kind.
        findings: all findings, by set, image and kind; of an image at most one of each kind.
        people: how the cut-off was chosen, or None without a model: "model", "false_rate", "cut_off", "impostors",
            "repeated".
        notes: messages for the user.
    """

    training: Mapping[str, Any]
    sets: Sequence[Mapping[str, Any]]
    findings: Sequence[Finding]
    people: Mapping[str, Any] | None = None
    notes: Sequence[str] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """What overlap.json holds."""
        from facebones.system.environment import git_revision

        rules = {"least_correlation": near_images.SAME_DETAIL, "candidates": near_images.CANDIDATES}
        return {
            "format": FORMAT,
            "facebones": facebones.__version__,
            "git_revision": git_revision(),
            "training": dict(self.training),
            "near": rules,
            "people": None if self.people is None else dict(self.people),
            "sets": [dict(one) for one in self.sets],
            "findings": [asdict(one) for one in self.findings],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The result for people."""
        told = []
        for one in self.sets:
            found = [f"{one['found'][kind]} {words}" for kind, words in KINDS.items() if kind in one["found"]]
            told.append(f"{one['set']}: {counted(one['images'], 'image')}: {', '.join(found)}")
        if self.people is not None:
            told.append(
                f"people by {self.people['model']}: cosine {self.people['cut_off']:.3f} and above, which"
                f" {self.people['false_rate']:.2%} of {self.people['impostors']} training images reach with the nearest"
                " other person; about as many images of strangers are listed by chance"
            )
        return told + [f"note: {note}" for note in self.notes]


def find_overlap(
    train: str | Path,
    sets: Path | str | Sequence[Path | str],
    output: Path | str,
    *,
    model: "Model | Path | str | None" = None,
    false_rate: float = FALSE_RATE,
    device: str = "auto",
    preprocessing: "Preprocessing | Mapping[str, Any] | None" = None,
    runtime: str | None = None,
    backbone: str | None = None,
    output_name: str | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    progress: bool = False,
) -> Overlap:
    """Find test images that the training data hold: the same bytes, near-identical images, and likely shared people.

    Args:
        train: what a training reads: a record file, an InsightFace folder, an image folder, or several.
        sets: what `find_protocols` finds, such as "lfw.bin" or an IJB folder; or several of these.
        output: folder for overlap.json, overlap.csv, a contact sheet of each kind, and with a model the embeddings,
            from which a stopped audit resumes.
        model: what recognises people: a model, or what `load_model` opens. Without one, people are not compared.
        false_rate: the share of strangers' images that may be listed as of a shared person.
        device: "auto", "cpu", "cuda", ...
        preprocessing: input that a file from elsewhere expects, or some of its fields.
        runtime: name of `evaluation.runtimes`; None runs PyTorch, and ONNX files by ONNX Runtime.
        backbone: backbone of a file that does not state it.
        output_name: the output of an ONNX file that is the embedding, if several may be.
        batch_size: images per forward pass.
        workers: threads that read and compare images; None uses all cores.
        progress: show the progress on stderr.

    Raises:
        DataError: data cannot be read, or the people are too few for the false rate.
        ConfigError: a model with random weights, a false rate out of range, or the output cannot be written.
        CheckpointError: the model cannot be used.
    """
    if not 0 < false_rate < 1:
        raise ConfigError(f"false_rate {false_rate:g}: is not between 0 and 1; give a share such as 0.01")
    output, workers = Path(output), workers or os.cpu_count() or 1
    check_output(output, [OVERLAP_FILE, TABLE, *map(_sheet, KINDS)])
    data = open_labelled_images(Path(train))
    tests = [_TestSet(group) for group in _groups(sets)]
    opened = None
    if model is not None:
        from facebones.evaluation.shared_people import check_people, open_recogniser

        options = {"device": device, "preprocessing": preprocessing, "backbone": backbone, "output_name": output_name}
        opened = open_recogniser(model, runtime, **options)
        check_people(data.labels, false_rate, str(data.path))
    found = _images_in(data, tests, workers, progress)
    people: dict[str, Any] | None = None
    if opened is not None:
        passing: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
        shared, people = _people_in(data, tests, opened, output / "features", false_rate, **passing)
        found += shared
    result = _result(data, tests, found, people)
    _write(output, result, data, tests)
    return result


class _TestSet:
    """The distinct images of a test set, with the protocols that measure it."""

    def __init__(self, protocols: Sequence[Protocol]) -> None:
        self.protocols = protocols
        self.name = protocols[0].set
        self.images: DistinctImages = distinct(protocols[0].images())
        self._sorted_places = np.argsort(self.images.row, kind="stable")
        self._sorted_rows = self.images.row[self._sorted_places]
        self._encoded: Callable[[int], bytes] | None = getattr(self.images.source, "encoded", None)

    @property
    def has_bytes(self) -> bool:
        """Whether the encoded images can be read."""
        return self._encoded is not None

    def read(self, row: int) -> tuple[bytes | None, ImageArray]:
        """Digest and small grey image of a distinct image."""
        place = int(self.images.order[row])
        digest = None if self._encoded is None else hashlib.sha256(self._encoded(place)).digest()
        return digest, near_images.small_grey(self.images.read(row, IMAGE_SIZE))

    def places(self, row: int) -> list[int]:
        """Where a distinct image stands in the set."""
        first, end = np.searchsorted(self._sorted_rows, [row, row + 1])
        return [int(place) for place in self._sorted_places[first:end]]

    def to_json(self) -> dict[str, Any]:
        from facebones.evaluation.pairs import PairsProtocol

        pairs = [one.pair_set.digest() for one in self.protocols if isinstance(one, PairsProtocol)]
        return {
            "set": self.name,
            "protocols": [one.name for one in self.protocols],
            "data": str(self.protocols[0].path),
            "images": len(self.images.row),
            "fingerprint": self.images.fingerprint(),
            **({"pairs_sha256": pairs[0]} if pairs else {}),
        }


@dataclass(frozen=True)
class _Match:
    """A distinct test image, and the training image that it matches."""

    kind: str
    test: _TestSet
    row: int
    training_image: int
    score: float


def _groups(sets: Path | str | Sequence[Path | str]) -> list[list[Protocol]]:
    from facebones.evaluation.run import check_sets, protocols_by_images

    protocols = given_protocols(sets)
    check_sets(protocols)
    return protocols_by_images(protocols)


# --------------------------------------------------------------------------------------------------------- images


def _images_in(data: TrainingSet, tests: Sequence[_TestSet], workers: int, progress: bool) -> list[_Match]:
    """The test images that are identical or nearly identical to training images."""

    def read(index: int) -> tuple[bytes | None, ImageArray]:
        encoded = data.read(index)[0]
        pixels = decode(encoded, lambda: data.describe(index))
        return hashlib.sha256(encoded).digest(), near_images.small_grey(pixels)

    places = [(test, row) for test in tests for row in range(len(test.images))]
    found: list[_Match] = []
    with ThreadPoolExecutor(workers) as pool, single_threaded_opencv():
        _, sample = _read_all(pool, read, evenly(range(len(data)), SAMPLE))
        hashing = near_images.PerceptualHash.fitted(sample)
        for start in range(0, len(places), TEST_BLOCK):
            block = places[start : start + TEST_BLOCK]
            digests, greys = _read_all(pool, lambda place: place[0].read(place[1]), block)
            first_of = {digest: number for number, digest in reversed([*enumerate(digests)]) if digest is not None}
            same: dict[bytes, int] = {}
            nearest = near_images.NearestImages(hashing, greys)
            for first, trained, training_greys in _training_blocks(pool, read, data, progress):
                for number, digest in enumerate(trained, first):
                    if digest is not None and digest in first_of:
                        same.setdefault(digest, number)
                nearest.add(first, training_greys)
            identical = {number: same[digest] for number, digest in enumerate(digests) if digest in same}
            found += [_Match("identical", *block[number], index, 1.0) for number, index in identical.items()]
            for number, (score, index) in _verified(pool, read, nearest, greys).items():
                if number not in identical:
                    found.append(_Match("near", *block[number], index, score))
    return found


def _read_all(
    pool: ThreadPoolExecutor, read: Callable[[Any], tuple[bytes | None, ImageArray]], places: Sequence[Any]
) -> tuple[Digests, ImageArray]:
    """Digests, and small grey images (N, 64, 64), by threads."""
    chunks = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]
    rows = [row for part in pool.map(lambda chunk: [read(place) for place in chunk], chunks) for row in part]
    return [digest for digest, _ in rows], np.stack([grey for _, grey in rows])


def _training_blocks(
    pool: ThreadPoolExecutor, read: Callable[[int], tuple[bytes | None, ImageArray]], data: TrainingSet, progress: bool
) -> Iterator[tuple[int, Digests, ImageArray]]:
    from facebones.system.progress import track

    starts: Sequence[int] = range(0, len(data), TRAINING_BLOCK)
    shown = track(starts, "comparing images", len(data), size=TRAINING_BLOCK, unit="images") if progress else starts
    for start in shown:
        end = min(start + TRAINING_BLOCK, len(data))
        data.read_ahead(start, end)
        yield start, *_read_all(pool, read, range(start, end))


def _verified(
    pool: ThreadPoolExecutor,
    read: Callable[[int], tuple[bytes | None, ImageArray]],
    nearest: near_images.NearestImages,
    greys: ImageArray,
) -> dict[int, tuple[float, int]]:
    """For each image that has a near-identical one: the correlation with the best one, and its number."""
    best: dict[int, tuple[float, int]] = {}
    images, training = nearest.candidates()
    for start in range(0, len(images), TRAINING_BLOCK):
        own, numbers = images[start : start + TRAINING_BLOCK], training[start : start + TRAINING_BLOCK]
        different, place = np.unique(numbers, return_inverse=True)
        others = _read_all(pool, read, different.tolist())[1][place]
        tasks = zip(own.tolist(), others, nearest.starts(own, others), strict=True)
        scores = pool.map(lambda task: _score(greys[task[0]], task[1], *task[2]), tasks)
        for image, number, score in zip(own.tolist(), numbers.tolist(), scores, strict=True):
            if score >= near_images.SAME_DETAIL and (image not in best or score > best[image][0]):
                best[image] = (score, number)
    return best


def _score(grey: ImageArray, other: ImageArray, mirrored: bool, start: npt.NDArray[np.float32]) -> float:
    image = np.ascontiguousarray(grey[:, ::-1]) if mirrored else grey
    return near_images.same_detail(image, other, start)


# --------------------------------------------------------------------------------------------------------- people


def _people_in(
    data: TrainingSet, tests: Sequence[_TestSet], model: "Model", folder: Path, false_rate: float, **passing: Any
) -> tuple[list[_Match], dict[str, Any]]:
    """The test images that show people trained on, likely; and how the cut-off was chosen.

    Args:
        data: the training data.
        tests: the test sets.
        model: that recognises people.
        folder: of the embeddings.
        false_rate: the share of strangers' images that may be listed.
        passing: options of `shared_people.embedded`.
    """
    from facebones.evaluation.shared_people import SharedPeople, embedded

    trained = embedded(model, TrainingImages(data), folder / "training", **passing)
    known = SharedPeople.fitted(data.labels, trained, false_rate, str(data.path))
    found = []
    for test in tests:
        rows = embedded(model, test.images, folder / "sets" / test.name, **passing)
        found += [_Match("person", test, *match) for match in known.matches(rows)]
    return found, {"model": str(model.path and origin(model.path)), **known.to_json(data.identity_name)}


# --------------------------------------------------------------------------------------------------------- result


def _result(
    data: TrainingSet, tests: Sequence[_TestSet], found: Sequence[_Match], people: Mapping[str, Any] | None
) -> Overlap:
    names = list(KINDS) if people is not None else ["identical", "near"]
    order = {kind: number for number, kind in enumerate(KINDS)}
    findings, sets = [], []
    for test in tests:
        matches = [match for match in found if match.test is test]
        own = [_finding(match, place, data) for match in matches for place in test.places(match.row)]
        findings += sorted(own, key=lambda one: (one.image, order[one.kind]))
        sets.append(test.to_json() | {"found": {kind: sum(one.kind == kind for one in own) for kind in names}})
    notes = [
        f"{test.name}: its protocol gives no encoded images, so equal bytes are not looked for"
        for test in tests
        if not test.has_bytes
    ]
    training = {"data": str(data.path), **data.fingerprint()}
    return Overlap(training=training, sets=sets, findings=findings, people=people, notes=[*data.notes, *notes])


def _finding(match: _Match, place: int, data: TrainingSet) -> Finding:
    person = int(data.labels[match.training_image])
    score = round(match.score, 4)
    return Finding(match.kind, match.test.name, place, score, match.training_image, person, data.identity_name(person))


def _write(output: Path, result: Overlap, data: TrainingSet, tests: Sequence[_TestSet]) -> None:
    """The contact sheets and the table, then overlap.json."""
    sets, written = {test.name: test for test in tests}, [output / TABLE, output / OVERLAP_FILE]
    for kind, words in KINDS.items():
        own = [one for one in result.findings if one.kind == kind]
        if own:
            written.append(output / _sheet(kind))
            _write_sheet(written[-1], f"{words}: test image, training image", own, data, sets)
        else:
            (output / _sheet(kind)).unlink(missing_ok=True)  # of an earlier audit
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow([*Finding.__dataclass_fields__, "training_file"])
    for one in result.findings:
        rows.writerow([*asdict(one).values(), data.describe(one.training_image)])
    with atomic_write(output / TABLE) as file:
        file.write(table.getvalue().encode(errors="backslashreplace"))
    write_json(output / OVERLAP_FILE, result.to_json())
    check_written(written)


def _sheet(kind: str) -> str:
    return f"overlap_{kind}.png"


def _write_sheet(
    path: Path, title: str, findings: Sequence[Finding], data: TrainingSet, sets: Mapping[str, _TestSet]
) -> None:
    """The pairs of some findings, from the highest score to the lowest: an image that stands in many places once."""
    from facebones.datatools.contact_sheet import write_pair_sheet

    distinct_ones = {(one.set, int(sets[one.set].images.row[one.image])): one for one in reversed(findings)}
    shown = evenly(sorted(distinct_ones.values(), key=lambda one: -one.score), MOST_SHOWN)
    pairs = []
    for one in shown:
        images = sets[one.set].images
        first = images.read(int(images.row[one.image]), IMAGE_SIZE)
        second = decode(data.read(one.training_image)[0], data.describe(one.training_image))
        pairs.append((f"{one.score:.2f} {one.set} {one.image}, {one.training_image}", first, second))
    write_pair_sheet(path, f"{title} ({len(shown)} of {len(distinct_ones)})", pairs)


# ------------------------------------------------------------------------------------------- evaluation without it


class KnownOverlap:
    """The findings of an audit, to leave them out of an evaluation.

    Args:
        path: overlap.json, or the folder that holds it.

    Raises:
        DataError: missing, damaged, or of a newer version.
    """

    def __init__(self, path: Path | str) -> None:
        from facebones.system.files import parse_json
        from facebones.system.regular_files import read_regular

        self.path = Path(path) / OVERLAP_FILE if Path(path).is_dir() else Path(path)
        try:
            content = parse_json(read_regular(self.path))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r:.20} is not supported; update facebones")
            self._sets = {str(one["fingerprint"]): (str(one["set"]), int(one["images"])) for one in content["sets"]}
            self._set_of = np.array([str(one["set"]) for one in content["findings"]], dtype=object)
            self._place = np.array([int(one["image"]) for one in content["findings"]], dtype=np.int64)
        except FileNotFoundError as error:
            raise DataError(f"{self.path}: no such file; make the audit by `facebones data overlap`") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{self.path}: no audit of overlap ({reason:.100}); make it by `facebones data overlap`"
            ) from error

    def of(self, name: str, source: ImageSource) -> npt.NDArray[np.bool_]:
        """Which of the N images of a set were found, (N,).

        Raises:
            DataError: the set was not audited, or holds other images now.
        """
        images = len(source)
        if (audited := self._sets.get(source.fingerprint())) is None or audited[1] != images:
            known = ", ".join(sorted(one for one, _ in self._sets.values()))
            raise DataError(
                f"{self.path}: was not made with the images of {name}, but with those of {known}; audit it by"
                " `facebones data overlap`"
            )
        places = self._place[self._set_of == audited[0]]
        if places.size and not (places.min() >= 0 and places.max() < images):
            raise DataError(f"{self.path}: names an image that {name} lacks; make it again by `facebones data overlap`")
        found = np.zeros(images, dtype=np.bool_)
        found[places] = True
        return found
