"""From what a folder is made: recorded in it, so that only the same source goes on with it."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facebones.data.folders import RecordSet
from facebones.data.pair_bins import PairSet
from facebones.datatools.choice import evenly
from facebones.errors import DataError

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
    return Origin(
        name=path.parent.name if path.name == "train.rec" else path.name,
        facts={"kind": "RecordIO", "bytes": data.records.size, "keys_sha256": keys, **data.fingerprint()},
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
