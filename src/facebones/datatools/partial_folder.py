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

from facebones.data.folders import RecordSet
from facebones.data.pair_bins import PairSet
from facebones.data.training_set import LABEL_KEYS, evenly
from facebones.errors import DataError, RunError
from facebones.system.files import BAD_PLACE, cannot_write, write_json

SAMPLE = 64  # images that are looked at, whatever their number: a fraction of a second
HEAD_BYTES = 2**16  # of a photo
SHOWN_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A source, and what decides what is made of it.

    Where the source lies does not count, so that it may be moved or renamed. Of its images a sample is compared, and
    most of it must agree: a source that was mended, or a folder of photos that has grown, is still the same one.

    Attributes:
        name: of the source, for people.
        facts: what must be equal, such as the number of images.
        images: names of the images that a sample may be drawn of.
        digest: gives what tells an image from others by its name; None where it cannot be read.
        settings: what must be equal besides, each by its name.
    """

    name: str
    facts: Mapping[str, Any]
    images: Collection[str]
    digest: Callable[[str], str | None]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What is written into the folder, as plain values."""
        sample = self._sample(evenly(list(self.images), SAMPLE))
        return {**self.settings, "source": {"name": self.name, **self.facts, "sample": sample}}

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """Name what is other than in an earlier record, sorted; an empty list where the folder is of this origin."""
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
    """The origin of what is made from a record file."""
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
    """The origin of what is made from a verification set."""
    size = sum(map(len, pairs.images))
    is_same = hashlib.sha256(pairs.is_same.tobytes()).hexdigest()
    return Origin(
        name=path.absolute().name,
        facts={"kind": "verification set", "images": len(pairs.images), "bytes": size, "is_same_sha256": is_same},
        images=[str(index) for index in evenly(range(len(pairs.images)), SAMPLE)],
        digest=lambda index: _digest(pairs.images[int(index)]),
    )


def photos_origin(root: Path, names: Sequence[str], settings: Mapping[str, Any]) -> Origin:
    """The origin of what is made from a folder of photos, to which others may be added later.

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
    """Read what an earlier run has recorded; None where there is nothing.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
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
    except DataError:  # the conversion comes to it and names it
        return None


def _photo_digest(path: str) -> str | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return _digest(b"%d\0" % os.fstat(file.fileno()).st_size + file.read(HEAD_BYTES))
    except OSError:  # the alignment comes to it and lists it
        return None


def partial_path(destination: Path) -> Path:
    """Where a folder is filled; what an interrupted run leaves is there."""
    return destination.with_name(f"{destination.name}.partial")


class PartialFolder:
    """A folder that is filled as NAME.partial and gets its name when it is complete.

    What it is made from stands in a hidden file in it, which is compared before anything else is done: a folder that
    is not of this origin stays as it is.

    Attributes:
        path: the folder to write into, while the block lasts.
        kept: files that were there already, and right.
    """

    def __init__(self, destination: Path, resume: bool, work: str, origin: Origin, anew: str = "") -> None:
        """Name the folder to make.

        Args:
            destination: where it is when it is complete.
            resume: whether to go on with what an earlier run has left, or to complete what it has made.
            work: what makes it, such as "conversion"; the hidden file is called after it.
            origin: from what it is made.
            anew: a folder inside, of which nothing is kept from a run that was broken off.
        """
        self.destination = destination
        self.work = work
        self.path = partial_path(destination)
        self.origin = origin
        self.anew = anew
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
        self._record(self.destination if self._was_finished else self.path)  # before anything is renamed or removed
        if self._was_finished:
            self._rename(self.destination, self.path)
        elif self.anew and (self.path / self.anew).is_dir():  # a killed run may have left a half there
            shutil.rmtree(self.path / self.anew)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._give_back()
            return
        if self.resume:
            self._refuse_strangers()
        if self.destination.exists():
            self.destination.rmdir()
        self._rename(self.path, self.destination)

    def place(self, name: str, content: bytes) -> None:
        """Write a file, unless it is there with this content; errors as in `put`."""
        self.count(name, self.put(name, content))

    def put(self, name: str, content: bytes) -> bool:
        """Write a file, also from another process, which then leaves the counting to this one.

        Returns:
            Whether it was there already, with this content.

        Raises:
            RunError, ConfigError: it cannot be written.
        """
        path = self._prefix + name
        if self.resume and _holds(path, content):
            return True
        try:
            _write(path, content)
        except OSError as error:
            where = f"{self._shown}/{name}"
            if error.errno in BAD_PLACE:
                raise cannot_write(where, error) from error
            raise RunError(f"{where}: cannot be written: {error.strerror}; mend it and go on with --resume") from error
        return False

    def count(self, name: str, kept: bool) -> None:
        """Know a file that has been put as one of this source."""
        if self.resume:
            self._placed.add(name)
            self.kept += kept

    def keep(self, name: str, is_right: Callable[[str], bool]) -> bool:
        """Whether a file is there from an earlier run, so that its content need not be made again.

        Args:
            name: path inside the folder.
            is_right: tells by the path of a file whether it is whole.
        """
        if not self.resume or not is_right(self._prefix + name):
            return False
        self._placed.add(name)
        self.kept += 1
        return True

    @property
    def _shown(self) -> Path:
        """Where the folder is after an error, for the error to name."""
        return self.destination if self._was_finished else self.path

    def _record(self, folder: Path) -> None:
        """Write down from what a folder is made; refuse one that is made from something else, or not by this work."""
        path, record = folder / self._record_name, self.origin.record()
        if is_occupied(folder):
            earlier = read_record(path)
            if earlier is None:
                work = f"{'an' if self.work[0] in 'aeiou' else 'a'} {self.work}"
                mend = "choose another name, or remove it"
                raise DataError(f"{folder}: not {work} to continue, for it holds no {self._record_name}; {mend}")
            if other := self.origin.differences(earlier):
                mend = "give the same, or choose another name"
                raise DataError(f"{folder}: was begun with another {', '.join(other)}; {mend}")
            if earlier == record:
                return
        write_json(path, record)

    def _give_back(self) -> None:
        """Let a folder that was finished have its name again: no file in it is worse than it was."""
        if self._was_finished:
            with suppress(OSError):  # the error that led here is the one to tell
                self.path.rename(self.destination)

    def _rename(self, old: Path, new: Path) -> None:
        try:
            old.rename(new)
        except OSError as error:
            raise RunError(f"{old}: cannot be renamed to {new.name}: {error.strerror}; mend it and resume") from error

    def _refuse_strangers(self) -> None:
        for folder, folders, files in os.walk(self.path):
            if self.anew in folders:
                folders.remove(self.anew)
            for file in files:
                name = os.path.relpath(f"{folder}/{file}", self.path)
                if name not in self._placed:
                    self._give_back()
                    raise DataError(f"{self._shown}/{name}: does not come from this source; remove it and resume")


def record_name(work: str) -> str:
    """The file in a folder that says from what it is made; hidden, so that readers of image folders pass it over.

    >>> record_name("conversion")
    '.conversion.json'
    """
    return f".{work}.json"


def is_occupied(destination: Path) -> bool:
    """Whether something is there that is not an empty folder."""
    return destination.exists() and not (destination.is_dir() and not any(destination.iterdir()))


def refuse_existing(path: Path) -> None:
    """Raise DataError where something is there."""
    if path.exists():
        raise DataError(f"{path}: exists already; remove it or choose another name")


def _holds(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(len(content) + 1) == content
    except FileNotFoundError:
        return False


def _write(path: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(path.rpartition("/")[0], exist_ok=True)  # noqa: PTH103
        descriptor = os.open(path, flags, 0o666)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
