"""What a path names or a folder holds: training data of any format, pair sets, images."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from facebones.data.image_folder import is_system_folder, listing, suffixes
from facebones.data.images import is_image_name
from facebones.data.joined_sets import JoinedSets, data_roots, without_data
from facebones.data.record_set import RecordSet, record_file
from facebones.data.record_shards import RecordShards, are_separate, compare_property, unused_labels
from facebones.data.training_set import TrainingSet, data_formats
from facebones.data.wrapped_sets import only_used_labels
from facebones.errors import DataError, counted, some
from facebones.system.files import is_file

SHARD_ENDINGS = frozenset({".rec", PARQUET := ".parquet"})  # of files that may be the shards of one set
# A head has a centre for each label. Beyond so many, labels are renumbered: a file of 200 bytes may say 16 million.
MOST_LABELS, LABELS_EACH = 10_000, 10  # of any set; for each image


def open_training_set(path: str | os.PathLike[str]) -> TrainingSet:
    """Open a training set in the first data format that recognises it.

    The formats are asked in this order: a `.rec` file or InsightFace folder, the formats of plug-ins, LMDB, Parquet, an
    image folder.

    Args:
        path: a file or a folder; several, or a pattern, are opened as `JoinedSets` (see `data_roots`), and record files
            of one folder as `RecordShards`.

    Raises:
        DataError: nothing is there, no format recognises it, it is broken, or it holds one identity only.
    """
    data = open_labelled_images(Path(path))
    if data.labels.min() == data.labels.max():
        raise DataError(
            f"{path}: {counted(len(data), 'image')}, all of one identity; training needs two or more (without labels:"
            " --distillation.alone true)"
        )
    return data


def open_labelled_images(path: Path) -> TrainingSet:
    """Open a training set as `open_training_set` does, even if it holds one identity only."""
    sets = [data for roots in _by_folder(data_roots(path)) for data in _open_together(roots)]
    data = sets[0] if len(sets) == 1 else JoinedSets(path, sets)
    if data.num_identities > MOST_LABELS + LABELS_EACH * len(data):
        data = only_used_labels(data)
    if idle := without_data(path):
        left_out = f"{path}: {counted(len(idle), 'folder')} without images or records left out: {some(idle)}"
        data.notes = [*data.notes, left_out]
    return data


def _by_folder(roots: Iterable[Path]) -> list[list[Path]]:
    """The record files of each folder together, likewise its Parquet files; every other place by itself."""
    groups: dict[tuple[str, Path], list[Path]] = {}
    for root in roots:
        ending = root.suffix.lower() if root.suffix.lower() in SHARD_ENDINGS and root.is_file() else ""
        groups.setdefault((ending, root.parent.resolve() if ending else root), []).append(root)
    return list(groups.values())


def _open_together(roots: list[Path]) -> Sequence[TrainingSet]:
    """Open a place, or several record or Parquet files of one folder, as one set if they are shards."""
    if len(roots) == 1:
        return [_open_one(roots[0])]
    if roots[0].suffix.lower() == PARQUET:
        from facebones.data.parquet_set import ParquetSet

        return [ParquetSet(roots[0].parent, roots)]
    parts = [RecordSet(root, shard=True) for root in roots]
    if not are_separate(parts, [part.complete for part in parts]):
        return [RecordShards(roots[0].parent, parts)]
    for part in parts:
        part.notes += [*compare_property(part, [part.path]), *unused_labels(part.path, part.labels)]
    return parts


def _open_one(path: Path) -> TrainingSet:
    formats = data_formats()
    format = next((format for format in formats if format.find(path)), None)
    if format is None:
        _fail_unrecognised(path, [each.name for each in formats if not each.__module__.startswith("facebones.data.")])
    data = format.open(path)
    labels = np.asarray(data.labels)
    if labels.shape != (len(data),) or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise DataError(
            f"{path}: data format {format.name}: labels of {labels.dtype}, shape {labels.shape}, for {len(data)}"
            " images; give one whole number from 0 for each"
        )
    return data


def find_records(path: Path) -> Path | None:
    """Find the `.rec` file of a training set; None if `path` is a folder of folders.

    Raises:
        DataError: `path` is missing, or is neither of the two; or as `record_file`.
    """
    if RecordSet.find(path):
        return record_file(path)
    if not path.is_dir() or not listing(path)[0]:
        _fail_unrecognised(path)
    return None


def pair_sets(path: Path) -> list[Path]:
    """List the verification sets (`.bin`) in a folder, or next to a file, by name."""
    folder = path if path.is_dir() else path.parent
    return sorted(folder / name for name in listing(folder)[1] if name.lower().endswith(".bin"))


def find_pair_set(name_or_path: str, beside: Path) -> Path:
    """Find a verification set.

    Args:
        name_or_path: a path, or the name of a `.bin` file with or without its ending.
        beside: the folder to search, or a file in it.

    Raises:
        DataError: there is no such set; the message names the sets of the folder.
    """
    folder = beside if beside.is_dir() else beside.parent
    candidates = (Path(name_or_path), folder / name_or_path, folder / f"{name_or_path}.bin")
    for candidate in candidates:
        if is_file(candidate):
            return candidate
    present = some([path.name for path in pair_sets(folder)]) if folder.is_dir() else ""
    held = f"{folder} holds {present or 'no .bin file'}"
    raise DataError(f"{name_or_path}: no such verification set; {held}; name one that is there, or give a path")


def images_below(folder: Path) -> list[str]:
    """Paths of all images inside a folder, at any depth, sorted; without hidden files and system folders.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[str] = []
    level = [""]
    while level:
        below: list[str] = []
        for above in level:
            folders, files = listing(folder / above)
            found += [f"{above}{name}" for name in files if is_image_name(name)]
            below += [f"{above}{name}/" for name in folders if not is_system_folder(name)]
        level = below
    return sorted(found)


def _fail_unrecognised(path: Path, formats: Iterable[str] = ()) -> NoReturn:
    """Raise for a path that is not a training set, in the words that fit what is there."""
    others = f"; or data of the format {', '.join(formats)}" if formats else ""
    if path.is_file():
        wanted = "name a .rec, .lmdb or .parquet file, or a folder with train.rec or image folders"
        raise DataError(f"{path}: not a training set; {wanted}{others}")
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; check the path of the training set")
    files = listing(path)[1]
    if "train.idx" in files:
        raise DataError(f"{path}: train.idx is there, but train.rec is not; restore it from its source")
    found = f"only {some(files)}" if files else "an empty folder"
    wanted = f"train.rec, data.mdb, *.parquet, or <identity>/*{{{suffixes()}}}"
    raise DataError(f"{path}: {found}; looked for {wanted}{others}")
