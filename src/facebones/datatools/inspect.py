"""Inspect a data set: decode every image, count, and find broken and identical images."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facebones.data.folders import open_labelled_images, pair_sets
from facebones.data.ijb_lists import listed_targets
from facebones.data.image_folder import is_system_folder
from facebones.data.images import decode, image_suffix, single_threaded_opencv
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.data.training_set import TrainingSet
from facebones.data.unreadable import lacks_end
from facebones.datatools.contact_sheet import refuse_image_of, write_contact_sheet
from facebones.datatools.jpeg_damage import DecoderWarnings, decoder_warnings
from facebones.errors import ConfigError, DataError, counted
from facebones.system.files import check_writable
from facebones.system.progress import track

CHUNK = 64  # images that a thread takes at a time
FOLDS = 10
SHOWN = 5  # examples in the text output; JSON has all
HISTOGRAM_STARTS = (1, 2, 5, 10, 20, 50, 100, 200, 500)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One training set or verification set.

    Attributes:
        path: the file or folder.
        images: number of images.
        sizes: number of images of each size, "height x width".
        encodings: number of images of each encoding, by the usual file ending.
        broken: images that cannot be decoded, with the reason.
        damaged: images that lost part of their content but can be decoded, with the reason; counted in `images`.
        identical: groups of names of images with the same pixels; empty for a verification set, which uses a photo in
            several pairs by design.
        same_bytes: number of these groups whose files are equal byte for byte.
        distinct: number of images with different pixels.
        conflicts: identical images of two identities, or in an impostor pair.
        notes: other messages for the user.
    """

    path: str
    images: int
    sizes: dict[str, int]
    encodings: dict[str, int]
    broken: list[str]
    damaged: list[str]
    identical: list[list[str]]
    same_bytes: int
    distinct: int
    conflicts: list[list[str]]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class TrainingPart(Part):
    """A training set.

    Attributes:
        identities: number of identities with an image.
        per_identity: minimum, median and maximum number of images per identity.
        histogram: number of identities by their number of images, such as {"5-9": 12}.
    """

    identities: int
    per_identity: dict[str, float]
    histogram: dict[str, int]

    def lines(self) -> list[str]:
        """Lines of text for a terminal."""
        spread = ", ".join(f"{name} {value:g}" for name, value in self.per_identity.items())
        identities = counted(self.identities, "identity", "identities")
        head = f"{self.path}: training set, {counted(self.images, 'image')} of {identities}"
        rows = [
            f"{name:>8} {'image ' if name == '1' else 'images'}  {_bar(count, self.histogram)} {count}"
            for name, count in self.histogram.items()
        ]
        return [head, *_indent([f"images per identity: {spread}", *rows, *_image_lines(self)])]


@dataclass(frozen=True, kw_only=True)
class PairPart(Part):
    """A verification set.

    Attributes:
        pairs: number of pairs.
        genuine: number of pairs of one person.
        impostor: number of pairs of two people.
        folds: how the pairs split into ten folds, in words.
    """

    pairs: int
    genuine: int
    impostor: int
    folds: str

    def lines(self) -> list[str]:
        """Lines of text for a terminal."""
        pairs = counted(self.pairs, "pair")
        head = f"{self.path}: verification set, {pairs}, {self.genuine} genuine, {self.impostor} impostor"
        return [head, *_indent([f"folds: {self.folds}", *_image_lines(self)])]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Images with the same pixels in two sets.

    Attributes:
        first: path of one set.
        second: path of the other.
        images: number of different images in both.
        examples: of each such image, a name in the first set and one in the second.
    """

    first: str
    second: str
    images: int
    examples: list[tuple[str, str]]

    def lines(self) -> list[str]:
        """Lines of text for a terminal."""
        head = f"{self.first} and {self.second}: {counted(self.images, 'image')} in common"
        return [head, *_indent(_first([f"{a} = {b}" for a, b in self.examples]))]


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect_data`.

    Attributes:
        parts: the sets, the training set first.
        overlaps: one for every two sets, even if they have nothing in common.
    """

    parts: list[TrainingPart | PairPart]
    overlaps: list[Overlap] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values for JSON."""
        return {"parts": [asdict(part) for part in self.parts], "overlaps": [asdict(each) for each in self.overlaps]}

    def lines(self) -> list[str]:
        """Lines of text for a terminal."""
        return [line for each in (*self.parts, *self.overlaps) for line in each.lines()]


@dataclass(frozen=True)
class _Images:
    """The images of any set, by number."""

    path: Path
    count: int
    read: Callable[[int], bytes]
    describe: Callable[[int], str]

    def name(self, index: int) -> str:
        """Short name of an image: without the folder of the set."""
        return self.describe(index).removeprefix(f"{self.path.parent}/")


class _Findings(NamedTuple):
    """The result of decoding N images.

    Attributes:
        files: (N,) hash of the encoded image.
        pixels: (N,) hash of the decoded image, 0 for a broken one.
    """

    files: Hashes
    pixels: Hashes
    sizes: Counter[str]
    encodings: Counter[str]
    broken: list[str]
    damaged: list[str]


def inspect_data(path: Path, contact_sheet: Path | None = None, *, threads: int | None = None) -> Inspection:
    """Inspect every image of a training set, a `.bin` file, or a folder with several of these.

    Args:
        path: a `.bin` file, a folder of these, or a training set in any data format.
        contact_sheet: a PNG file to write, with some of the images.
        threads: decoding threads; by default one per core.

    Raises:
        DataError: nothing is there, or a set cannot be read as a whole. Broken images are reported, not raised.
        ConfigError: the contact sheet is not a PNG or cannot be written; raised before the work.
    """
    if contact_sheet is not None:
        _check_contact_sheet(contact_sheet, path)
    sets = _open(path)
    workers = threads or os.cpu_count() or 1
    parts: list[TrainingPart | PairPart] = []
    hashes: list[tuple[_Images, Hashes]] = []
    for each in sets:
        images = _images(*each)
        with decoder_warnings() as warnings:
            found = _decode_all(images, workers, warnings)
        parts.append(
            _pair_part(images, found, each[1])
            if isinstance(each[1], PairSet)
            else _training_part(images, found, each[1])
        )
        hashes.append((images, found.pixels))
    if contact_sheet is not None:
        with decoder_warnings():  # the inspection reported them already
            write_contact_sheet(contact_sheet, sets)
    overlaps = [_overlap(*hashes[i], *hashes[k]) for i in range(len(hashes)) for k in range(i + 1, len(hashes))]
    return Inspection(parts, overlaps)


def _check_contact_sheet(path: Path, data: Path) -> None:
    if path.suffix.lower() != ".png":  # another ending may be a data set, which would be overwritten
        raise ConfigError(f"{path}: a contact sheet is a PNG; name it {path.stem}.png")
    check_writable(path)
    refuse_image_of(data, path, beside_folders=True)


def _open(path: Path) -> list[tuple[Path, TrainingSet | PairSet]]:
    """Open the training set, if there is one, and the verification sets, each with its path."""
    if path.is_file() and path.suffix.lower() == ".bin":
        return [(path, read_pairs(path))]
    pairs = [(each, read_pairs(each)) for each in pair_sets(path)] if path.is_dir() else []
    try:
        training = open_labelled_images(path)
    except DataError:
        if not pairs or _claims_training(path):
            raise
        return [*pairs]
    return [(training.path, training), *pairs]


def _claims_training(path: Path) -> bool:
    """Whether something in the folder looks like a training set: then its error is raised."""
    shown = [each for each in path.iterdir() if not (each.name.startswith(".") or is_system_folder(each.name))]
    return any(each.is_dir() or each.suffix in {".rec", ".idx"} for each in shown)


def _images(path: Path, data: TrainingSet | PairSet) -> _Images:
    if isinstance(data, PairSet):
        return _Images(path, len(data.images), data.images.__getitem__, lambda index: f"{path}, image {index}")
    return _Images(path, len(data), lambda index: data.read(index)[0], data.describe)


def _decode_all(images: _Images, threads: int, warnings: DecoderWarnings) -> _Findings:
    files, pixels = np.zeros((2, images.count), dtype=np.uint64)
    found = _Findings(files, pixels, Counter(), Counter(), [], [])
    starts = range(0, images.count, CHUNK)
    suspects = []
    with single_threaded_opencv(), ThreadPoolExecutor(threads) as pool:
        chunks = pool.map(lambda start: _decode_chunk(images, start, warnings), starts)
        rows: Iterator[_Row] = (row for chunk in chunks for row in chunk)
        for index, row in enumerate(track(rows, f"inspecting {images.path.name}", images.count)):
            if row.problem:
                found.broken.append(row.problem)
                continue
            files[index], pixels[index] = row.file, row.pixels
            found.sizes[row.size] += 1
            found.encodings[row.encoding] += 1
            if row.suspect:
                suspects.append(index)
    damages = ((index, _damage(images.read(index), warnings)) for index in suspects)
    found.damaged.extend(
        f"{images.describe(index)}: damaged image ({damage}); remove it or restore it from the source"
        for index, damage in damages
        if damage
    )
    return found


class _Row(NamedTuple):
    file: int = 0
    pixels: int = 0
    size: str = ""
    encoding: str = ""
    problem: str = ""
    suspect: bool = False


def _decode_chunk(images: _Images, start: int, warnings: DecoderWarnings) -> list[_Row]:
    return [_examine(images, index, warnings) for index in range(start, min(start + CHUNK, images.count))]


def _examine(images: _Images, index: int, warnings: DecoderWarnings) -> _Row:
    before = warnings.size()
    try:
        encoded = images.read(index)
        pixels = decode(encoded, images.describe(index))
    except DataError as error:
        return _Row(problem=str(error))
    size = f"{pixels.shape[0]}x{pixels.shape[1]}"
    return _Row(
        _hash(encoded),
        _hash(size.encode(), np.ascontiguousarray(pixels).data),
        size,
        (image_suffix(encoded) or ".other")[1:],
        suspect=lacks_end(encoded) or warnings.size() > before,  # perhaps from the image of another thread
    )


def _damage(encoded: bytes, warnings: DecoderWarnings) -> str:
    """Decode a suspect again, alone, to find what is wrong with it; "" if nothing is."""
    before = warnings.size()
    decode(encoded, "an image that was decoded before")
    return warnings.of_damage(before) or ("its end is missing" if lacks_end(encoded) else "")


def _hash(*contents: bytes | memoryview) -> int:
    """Hash to 64 bits, never 0; two of ten million images collide with a probability of 1 in 400,000."""
    state = hashlib.blake2b(digest_size=8)
    for content in contents:
        state.update(content)
    return int.from_bytes(state.digest(), "little") or 1


def _training_part(images: _Images, found: _Findings, data: TrainingSet) -> TrainingPart:
    counts = np.bincount(data.labels)
    counts = counts[counts > 0]
    groups = _groups(found.pixels)
    conflicts = [group for group in groups if len(set(data.labels[group].tolist())) > 1]
    spread = {"min": float(counts.min()), "median": float(np.median(counts)), "max": float(counts.max())}
    return TrainingPart(
        identities=len(counts),
        per_identity=spread,
        histogram=_histogram(counts),
        identical=[[images.name(index) for index in group] for group in groups],
        conflicts=[[f"{images.name(k)}, identity {data.identity_name(data.labels[k])}" for k in c] for c in conflicts],
        notes=_training_notes(data),
        **_image_facts(images, found, groups),
    )


def _training_notes(data: TrainingSet) -> list[str]:
    """Notes on a training set; for an IJB folder, only that it is not a training set."""
    if not (targets := listed_targets(data.path)):
        return list(data.notes)
    what = f"an IJB folder, by the lists of {' and '.join(targets)} in meta, and no training set"
    return [f"{data.path}: {what}; it is for `evaluate templates` and `evaluate identification`"]


def _pair_part(images: _Images, found: _Findings, data: PairSet) -> PairPart:
    first, second = found.pixels[::2], found.pixels[1::2]
    twins = np.flatnonzero((first == second) & (first > 0))
    conflicts = [
        [f"{images.path.name}, pair {pair}: an impostor pair of one image"] for pair in twins if not data.is_same[pair]
    ]
    genuine = int(data.is_same.sum())
    notes = list(data.notes)
    if len(twins):
        show = counted(len(twins), "pair shows", "pairs show")
        notes.append(f"{show} one image twice: {', '.join(map(str, twins[:SHOWN]))}")
    return PairPart(
        pairs=len(data),
        genuine=genuine,
        impostor=len(data) - genuine,
        folds=_folds(data.is_same),
        identical=[],
        conflicts=conflicts,
        notes=notes,
        **_image_facts(images, found, _groups(found.pixels)),
    )


def _image_facts(images: _Images, found: _Findings, groups: Sequence[npt.NDArray[np.int64]]) -> dict[str, Any]:
    sound = found.pixels[found.pixels > 0]
    return {
        "path": str(images.path),
        "images": images.count,
        "sizes": dict(found.sizes.most_common()),
        "encodings": dict(found.encodings.most_common()),
        "broken": found.broken,
        "damaged": found.damaged,
        "same_bytes": sum(len(np.unique(found.files[group])) == 1 for group in groups),
        "distinct": len(np.unique(sound)),
    }


def _groups(hashes: Hashes) -> list[npt.NDArray[np.int64]]:
    """Groups of images with equal hashes; broken images (0) belong to no group."""
    order = np.argsort(hashes, kind="stable")
    order = order[hashes[order] > 0]
    edges = np.flatnonzero(np.diff(hashes[order])) + 1
    starts, ends = np.append(0, edges), np.append(edges, len(order))
    groups = [order[start:end] for start, end in zip(starts, ends, strict=True) if end - start > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def _overlap(first: _Images, first_hashes: Hashes, second: _Images, second_hashes: Hashes) -> Overlap:
    common, here, there = np.intersect1d(first_hashes, second_hashes, return_indices=True)
    places = [
        (first.name(a), second.name(b)) for h, a, b in zip(common, here.tolist(), there.tolist(), strict=True) if h
    ]
    return Overlap(first=str(first.path), second=str(second.path), images=len(places), examples=places)


def _histogram(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    """Number of identities by their number of images.

    >>> _histogram(np.array([1, 3, 4]))
    {'1': 1, '2-4': 2}
    """
    rows = {}
    for start, end in zip(HISTOGRAM_STARTS, (*HISTOGRAM_STARTS[1:], None), strict=True):
        name = f"{start}+" if end is None else f"{start}-{end - 1}" if end - start > 1 else str(start)
        rows[name] = int(((counts >= start) & (counts < (end or np.inf))).sum())
    return {name: count for name, count in rows.items() if count}


def _folds(is_same: npt.NDArray[np.bool_]) -> str:
    if len(is_same) < FOLDS:
        return f"{counted(len(is_same), 'pair is', 'pairs are')} too few for {FOLDS}"
    folds = np.array_split(is_same, FOLDS)
    sizes = sorted({len(fold) for fold in folds})
    uniform = sum(fold.all() or not fold.any() for fold in folds)
    kinds = f"; {uniform} of them hold one kind of pair only" if uniform else ""
    return f"{FOLDS} of {' or '.join(map(str, sizes))} pairs{kinds}"


def _image_lines(part: Part) -> list[str]:
    sizes = ", ".join(f"{size} ({count})" for size, count in list(part.sizes.items())[:SHOWN])
    more = f" and {len(part.sizes) - SHOWN} more sizes" if len(part.sizes) > SHOWN else ""
    encodings = ", ".join(f"{name} ({count})" for name, count in part.encodings.items())
    lines = [f"sizes: {sizes or 'none'}{more}", f"encodings: {encodings or 'none'}"]
    lines += [f"different images: {part.distinct}"]
    lines += [*_listed("broken images", part.broken), *_listed("damaged images", part.damaged)]
    groups = [" = ".join(group) for group in part.identical]
    if groups:
        lines += _listed(f"groups of identical images ({part.same_bytes} byte for byte)", groups)
    conflicts = [" = ".join(conflict) for conflict in part.conflicts]
    return [*lines, *_listed("label conflicts", conflicts), *(f"note: {note}" for note in part.notes)]


def _listed(title: str, names: Sequence[str]) -> list[str]:
    return [f"{title}: {len(names)}", *_indent(_first(names))]


def _first(names: Sequence[str]) -> list[str]:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [*names[:SHOWN], *more]


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _bar(count: int, histogram: dict[str, int]) -> str:
    return "#" * max(1, round(30 * count / max(histogram.values())))
