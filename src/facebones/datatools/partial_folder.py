"""A folder that is filled as NAME.partial and renamed when it is complete, so that an interrupted run can resume.

A hidden file in the folder records its source: a resumed run must come from the same one.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from facebones.data.pair_bins import PairSet
from facebones.data.record_set import RecordSet
from facebones.data.training_set import LABEL_KEYS, evenly
from facebones.errors import DataError, RunError
from facebones.system.files import BAD_PLACE, cannot_write, remove_leftovers, write_json
from facebones.system.regular_files import open_regular, read_regular

SAMPLE = 64  # images that are compared, whatever their number: takes a fraction of a second
HEAD_BYTES = 2**16  # of a photo
SHOWN_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The source of a folder, and the settings that decide the result.

    The path of the source does not count: it may be moved or renamed. A sample of its images is compared, and at least
    half must agree: a source with some repaired images, or a folder of photos that has grown, counts as the same.

    Attributes:
        name: name of the source, for people.
        facts: values that must be equal, such as the number of images.
        images: names of the images to sample from.
        digest: returns a digest of an image by its name; None if it cannot be read.
        settings: further values that must be equal.
    """

    name: str
    facts: Mapping[str, Any]
    images: Collection[str]
    digest: Callable[[str], str | None]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The record that is written into the folder, as plain values."""
        sample = self._sample(evenly(list(self.images), SAMPLE))
        return {**self.settings, "source": {"name": self.name, **self.facts, "sample": sample}}

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """Names of values that differ from an earlier record, sorted; [] if the folder has this origin."""
        names = {*earlier, *self.settings} - {"source"}
        other = [name for name in names if earlier.get(name) != self.settings.get(name)]
        source = earlier.get("source")
        if not isinstance(source, dict):
            return sorted([*other, "source"])
        if not self._is_source(source):
            other.append(f"source ({str(source.get('name'))[:SHOWN_CHARACTERS]})")
        return sorted(other)

    def _is_source(self, source: Mapping[str, Any]) -> bool:
        sample = source.get("sample")
        facts = {name: value for name, value in source.items() if name not in ("name", "sample")}
        if facts != self.facts or not isinstance(sample, dict):
            return False
        known = set(self.images)
        found = self._sample([name for name in list(sample)[:SAMPLE] if name in known])
        agreeing = [name for name, digest in found.items() if sample[name] == digest]
        return 2 * len(agreeing) >= len(sample)

    def _sample(self, names: Sequence[str]) -> dict[str, str]:
        return {name: digest for name in names if (digest := self.digest(name)) is not None}


def records_origin(data: RecordSet) -> Origin:
    """Origin of a folder that is made from a record file."""
    path = data.path.absolute()
    keys = hashlib.sha256(data.records.keys[data.positions].astype("<i8").tobytes()).hexdigest()
    labels = {key: value for key, value in data.fingerprint().items() if key in LABEL_KEYS}
    return Origin(
        name=path.parent.name if path.name == "train.rec" else path.name,
        facts={"kind": "RecordIO", "bytes": data.records.size, "keys_sha256": keys, **labels},
        images=[str(index) for index in evenly(range(len(data)), SAMPLE)],
        digest=lambda index: _record_digest(data, int(index)),
    )


def pairs_origin(pairs: PairSet, path: Path) -> Origin:
    """Origin of a folder that is made from a verification set."""
    size = sum(map(len, pairs.images))
    is_same = hashlib.sha256(pairs.is_same.tobytes()).hexdigest()
    return Origin(
        name=path.absolute().name,
        facts={"kind": "verification set", "images": len(pairs.images), "bytes": size, "is_same_sha256": is_same},
        images=[str(index) for index in evenly(range(len(pairs.images)), SAMPLE)],
        digest=lambda index: _digest(pairs.images[int(index)]),
    )


def photos_origin(root: Path, names: Sequence[str], settings: Mapping[str, Any]) -> Origin:
    """Origin of a folder that is made from photos; photos may be added to these later.

    Args:
        root: the folder.
        names: paths of the photos inside it.
        settings: see `Origin`.
    """
    return Origin(
        name=root.absolute().name,
        facts={"kind": "photos"},
        images=names,
        digest=lambda name: _photo_digest(f"{root}/{name}"),
        settings=settings,
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the record of an earlier run; None if there is none.

    Raises:
        DataError: the record cannot be read.
    """
    try:
        content = json.loads(read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read; choose another name, or remove {path.parent} and begin again"
        ) from error
    return content if isinstance(content, dict) else {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _record_digest(data: RecordSet, index: int) -> str | None:
    try:
        return _digest(data.read(index)[0])
    except DataError:  # the conversion names it
        return None


def _photo_digest(path: str) -> str | None:
    try:
        with open_regular(path) as file:
            return _digest(b"%d\0" % os.fstat(file.fileno()).st_size + file.read(HEAD_BYTES))
    except OSError:  # the alignment lists it
        return None


def partial_path(destination: Path) -> Path:
    """Path of a folder while it is filled; an interrupted run leaves it there."""
    return destination.with_name(f"{destination.name}.partial")


class PartialFolder:
    """A folder that is filled as NAME.partial and renamed when it is complete.

    A hidden file in it records its origin. It is compared first: a folder of another origin is not changed.

    Attributes:
        path: the folder to write into, inside the block.
        kept: number of files that existed already with the right content.
    """

    def __init__(self, destination: Path, resume: bool, work: str, origin: Origin, rewritten: str = "") -> None:
        """Name the folder to make.

        Args:
            destination: the complete folder.
            resume: continue the folder of an interrupted run, or add to a complete folder.
            work: the kind of work, such as "conversion"; names the hidden file.
            origin: the source of the folder.
            rewritten: a folder inside; nothing in it is kept from an interrupted run.
        """
        self.destination = destination
        self.work = work
        self.path = partial_path(destination)
        self.origin = origin
        self.rewritten = rewritten
        self._record_name = record_name(work)
        self._prefix = f"{self.path}/"
        self.resume = resume
        self.kept = 0
        self._placed = {self._record_name}
        self._was_finished = False

    def __enter__(self) -> Self:
        self._was_finished = is_occupied(self.destination)
        if self._was_finished and not self.resume:
            refuse_existing(self.destination)
        if self.path.exists() and not self.resume:
            raise DataError(f"{self.path}: left by an interrupted {self.work}; continue with --resume or remove it")
        if self._was_finished and self.path.exists():
            raise DataError(f"{self.path}: stands beside the finished {self.destination}; remove one of them")
        self._record(self.destination if self._was_finished else self.path)  # before a file is renamed or removed
        if self._was_finished:
            self._rename(self.destination, self.path)
        elif self.rewritten and (self.path / self.rewritten).is_dir():  # a killed run may have left part of it
            shutil.rmtree(self.path / self.rewritten)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._give_back()
            return
        if not (self.path / self._record_name).is_file():
            raise self._removed()
        if self.resume:
            self._refuse_other_files()
        if self.destination.exists():
            self.destination.rmdir()
        self._rename(self.path, self.destination)

    def place(self, name: str, content: bytes) -> None:
        """Write a file, unless it exists with this content; raises the errors of `put`."""
        self.count(name, self.put(name, content))

    def put(self, name: str, content: bytes) -> bool:
        """Write a file without counting it, so that other processes can call this; the parent calls `count`.

        Returns:
            Whether the file existed with this content.

        Raises:
            RunError, ConfigError: the file cannot be written.
        """
        path = self._prefix + name
        if self.resume and _holds(path, content):
            return True
        try:
            self._write(path, content)
        except OSError as error:
            where = f"{self._shown}/{name}"
            if error.errno in BAD_PLACE:
                raise cannot_write(where, error) from error
            raise RunError(
                f"{where}: cannot be written: {error.strerror}; fix this and continue with --resume"
            ) from error
        return False

    def count(self, name: str, kept: bool) -> None:
        """Count a file of this source that `put` has written."""
        if self.resume:
            self._placed.add(name)
            self.kept += kept

    def keep(self, name: str, is_right: Callable[[str], bool]) -> bool:
        """Whether a file exists from an earlier run, and so need not be written again.

        Args:
            name: path inside the folder.
            is_right: tells from the path of a file whether it is complete.
        """
        if not self.resume or not is_right(self._prefix + name):
            return False
        self._placed.add(name)
        self.kept += 1
        return True

    @property
    def _shown(self) -> Path:
        """Path of the folder after an error, for the message."""
        return self.destination if self._was_finished else self.path

    def _record(self, folder: Path) -> None:
        """Record the origin of a folder; refuse a folder of another origin, or of other work."""
        path, record = folder / self._record_name, self.origin.record()
        if folder == self.path:
            remove_leftovers(path)  # of a run that was killed before it had a record
        if is_occupied(folder):
            earlier = read_record(path)
            if earlier is None:
                work = f"{'an' if self.work[0] in 'aeiou' else 'a'} {self.work}"
                fix = "choose another name, or remove it"
                raise DataError(f"{folder}: not {work} to continue, because it has no {self._record_name}; {fix}")
            if other := self.origin.differences(earlier):
                fix = "give the same, or choose another name"
                raise DataError(f"{folder}: was begun with another {', '.join(other)}; {fix}")
            if earlier == record:
                return
        write_json(path, record)

    def _give_back(self) -> None:
        """Rename a folder that was complete back: no file in it is worse than before."""
        if self._was_finished:
            with suppress(OSError):  # the first error is the one to report
                self.path.rename(self.destination)

    def _write(self, path: str, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            if not self.path.is_dir():  # or else it would be made again, without what was in it
                raise self._removed() from None
            os.makedirs(path.rpartition("/")[0], exist_ok=True)  # noqa: PTH103
            descriptor = os.open(path, flags, 0o666)
        try:
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    def _removed(self) -> RunError:
        return RunError(f"{self.path}: was removed while it was filled; run the same command again")

    def _rename(self, old: Path, new: Path) -> None:
        try:
            old.rename(new)
        except OSError as error:
            raise RunError(f"{old}: cannot be renamed to {new.name}: {error.strerror}; fix this and resume") from error

    def _refuse_other_files(self) -> None:
        for folder, folders, files in os.walk(self.path):
            if self.rewritten in folders:
                folders.remove(self.rewritten)
            for file in files:
                name = os.path.relpath(f"{folder}/{file}", self.path)
                if name not in self._placed:
                    self._give_back()
                    raise DataError(f"{self._shown}/{name}: does not come from this source; remove it and resume")


def record_name(work: str) -> str:
    """Name of the file that records the origin of a folder; hidden, so that readers of image folders skip it.

    >>> record_name("conversion")
    '.conversion.json'
    """
    return f".{work}.json"


def is_occupied(destination: Path) -> bool:
    """Whether the path exists and is not an empty folder."""
    return destination.exists() and not (destination.is_dir() and not any(destination.iterdir()))


def refuse_existing(path: Path) -> None:
    """Raise DataError if the path exists."""
    if path.exists():
        raise DataError(f"{path}: exists already; remove it or choose another name")


def _holds(path: str, content: bytes) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(content) + 1) == content
    except FileNotFoundError:
        return False
