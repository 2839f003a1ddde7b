"""Protocols: ways to measure a backbone on a data set, and the registry that finds them.

A protocol is a class with a name, registered by `register_protocol`; an object of it is one data set. It says which
images it needs and turns their embeddings into metrics. `evaluation.run` embeds the images and writes the results, so a
new protocol is one class in one file, which may be a plug-in of the user's (`facebones.plugins`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import IMAGE_SIZE
from facebones.errors import ConfigError, DataError, UnknownNameError
from facebones.evaluation.built_in import BUILT_IN
from facebones.plugins import import_entry_points
from facebones.statistics.metric import Metric, MetricComparison, untested

if TYPE_CHECKING:
    from facebones.data.group_lists import Faces, Grouping
    from facebones.data.image_sources import ImageSource
    from facebones.statistics.calibration import ScoredPairs

Features = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProtocolResult:
    """What a protocol measures of several models on one set in one setting.

    Attributes:
        protocol: name of the protocol.
        set: name of the data set.
        setting: variant of the protocol, such as "N1D1F1"; empty where there is one only.
        data: where the data set was read from.
        fingerprint: of the images that were embedded (`ImageSource.fingerprint`); filled in by the caller.
        sizes: counts of the data set, such as {"pairs": 6000}.
        metrics: the metrics of all models, with intervals and tests where the protocol computes them.
        details: for each model what else the protocol measures, as plain values.
        curves: kind of curve ("roc", "cmc", "det_G1", ...) -> model -> file name in the output folder, or points.
        notes: messages for the user about the data set.
    """

    protocol: str
    set: str
    setting: str = ""
    data: Path
    fingerprint: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    metrics: Sequence[MetricComparison] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def of(self, model: str) -> list[Metric]:
        """The metrics of one model, with their values and intervals."""
        return [comparison.of(model) for comparison in self.metrics]

    def to_json(self) -> dict[str, Any]:
        """Return the section of a result file."""
        return {
            "protocol": self.protocol,
            "set": self.set,
            "setting": self.setting,
            "data": str(self.data),
            **({"fingerprint": self.fingerprint} if self.fingerprint else {}),
            "sizes": dict(self.sizes),
            "metrics": [metric.to_json() for metric in self.metrics],
            "details": dict(self.details),
            "curves": {kind: dict(curves) for kind, curves in self.curves.items()},
            **({"notes": list(self.notes)} if self.notes else {}),
        }


class Protocol(ABC):
    """A way to measure backbones; an object is one data set.

    Args:
        path: file or folder of the data set.

    Attributes:
        name: name of the protocol; unique among all protocols.
        file: name of its result file, `NAME.json` by default.
        keep_features: whether features are written to disk, so that a stopped pass can be resumed.
        needs_flip: whether the mirror images are needed, whatever the caller asks for.
        path: as given.
        set: name of the data set: the file's name without ending, or the folder's name.
    """

    name: ClassVar[str]
    file: ClassVar[str]
    keep_features: ClassVar[bool] = False
    needs_flip: ClassVar[bool] = False

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.set = self.path.resolve().name if self.path.is_dir() else self.path.stem

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls) and "file" not in vars(cls):
            cls.file = f"{cls.name}.json"

    @classmethod
    @abstractmethod
    def find(cls, path: Path) -> list[Self]:
        """The data sets of this protocol that a file or folder holds; an empty list where there are none.

        It should look at names only: a broken set is found, and refused by `check`.
        """

    @abstractmethod
    def images(self) -> "ImageSource":
        """The N images to embed.

        Raises:
            DataError: the data set cannot be read.
        """

    @abstractmethod
    def evaluate(self, features_NxVxD: Features) -> list[Metric]:
        """Measure one model.

        Args:
            features_NxVxD: float32 embeddings in the order of `images`, neither summed nor normalised; `[:, 0]` of the
                images, `[:, 1]` of their mirror images where V = 2.

        Returns:
            metrics; protocol and set are filled in by the caller.

        Raises:
            DataError: the data set cannot be measured.
        """

    def scored_pairs(self, features_NxVxD: Features) -> "ScoredPairs":
        """The pairs that the protocol compares by one model, as cosines; `calibrate` chooses thresholds on them.

        Args:
            features_NxVxD: as for `evaluate`.

        Raises:
            ConfigError: the protocol has no pairs.
            DataError: the data set cannot be measured.
        """
        raise ConfigError(f"{self.path}: the protocol {self.name} has no pairs to choose a threshold on; leave it out")

    def faces(self) -> "Faces":
        """The names of images and people that a file of groups may use; `scored_pairs` numbers its items likewise.

        Raises:
            ConfigError: the protocol has no such names.
            DataError: the data set cannot be read.
        """
        raise ConfigError(f"{self.path}: the protocol {self.name} does not name its images; groups need another set")

    def groupings(self) -> "list[Grouping]":
        """Groups of its people that the set itself states, for `evaluate groups` without a file; by default none."""
        return []

    def items(self) -> "npt.NDArray[np.integer[Any]]":
        """(N,) the number that `scored_pairs` gives each image; by default its place in `images`."""
        return np.arange(len(self.images()))

    def check(self) -> None:
        """Refuse, in seconds, a data set that would fail later; by default the first image is read.

        Raises:
            DataError: missing, broken, or unfit for the protocol.
        """
        images = self.images()
        if not len(images):
            raise DataError(f"{self.path}: no images for the protocol {self.name}; check the path")
        images.read(0, IMAGE_SIZE)

    def written_files(self, models: Sequence[str]) -> list[str]:
        """Names of the files that `compare` writes into the output folder, so that their place is checked first."""
        return []

    def notes(self) -> list[str]:
        """Messages for the user about the data set, said beside its figures; by default none."""
        return []

    def sizes(self) -> dict[str, int]:
        """Counts of the data set; by default its images."""
        return {"images": len(self.images())}

    def compare(
        self,
        features: Mapping[str, Features],
        *,
        bootstrap: int,
        seed: int,
        output: Path | None = None,
    ) -> list[ProtocolResult]:
        """Measure several models; by default each by `evaluate`, without tests between them.

        Args:
            features: model -> (N, V, D), see `evaluate`.
            bootstrap: number of bootstrap replicates.
            seed: of the bootstrap.
            output: folder for the scores, or None.

        Returns:
            one result for each setting of the protocol.
        """
        measured = {model: [self.stamped(metric) for metric in self.evaluate(row)] for model, row in features.items()}
        return [self.result(untested(measured))]

    def without(self, found_N: npt.NDArray[np.bool_]) -> tuple["Protocol", npt.NDArray[np.bool_] | None]:
        """The data set without some of its images, for `evaluate --without-overlap`.

        Args:
            found_N: (N,) which images to leave out.

        Returns:
            a protocol of the rest, and which images it uses, (N,); None if its `compare` takes the features of all.

        Raises:
            DataError: what is left cannot be measured.
        """
        raise ConfigError(f"{self.path}: the protocol {self.name} cannot leave images out (it defines no `without`)")

    def stamped(self, metric: Metric) -> Metric:
        """The metric with this protocol's name and set."""
        return metric.measured_by(self.name, self.set, metric.setting)

    def result(self, metrics: Sequence[MetricComparison], setting: str = "", **more: Any) -> ProtocolResult:
        """A result of this set; `more` are further attributes of `ProtocolResult`."""
        named = [replace(one, metric=one.metric.measured_by(self.name, self.set, setting)) for one in metrics]
        sizes = more.pop("sizes", None) or self.sizes()
        notes = more.pop("notes", None) or self.notes()
        where: dict[str, Any] = {"protocol": self.name, "set": self.set, "setting": setting, "data": self.path}
        return ProtocolResult(**where, sizes=sizes, metrics=named, notes=notes, **more)


_REGISTRY: dict[str, type[Protocol]] = {}
_ProtocolClass = TypeVar("_ProtocolClass", bound=type[Protocol])


def register_protocol(protocol: _ProtocolClass) -> _ProtocolClass:
    """Class decorator: register a protocol under its `name`.

    Raises:
        ConfigError: not a protocol with a name, or the name is taken.
    """
    if not (isinstance(protocol, type) and issubclass(protocol, Protocol)):
        raise ConfigError(f"protocol {protocol!r:.80}: not a class derived from facebones.evaluation.protocol.Protocol")
    name = getattr(protocol, "name", "")
    if lacking := [*([] if name else ["name"]), *sorted(protocol.__abstractmethods__)]:
        raise ConfigError(f"protocol {name or protocol.__name__}: lacks {', '.join(lacking)}; define them in the class")
    ours = name in BUILT_IN and protocol.__module__ != f"{__package__}.{BUILT_IN[name].module}"
    if ours or (name in _REGISTRY and _REGISTRY[name].__module__ != protocol.__module__):
        raise ConfigError(f"protocol {name}: the name is taken; choose another name")
    _REGISTRY[name] = protocol
    return protocol


def list_protocols() -> list[str]:
    """Names of all protocols, the built-in ones first.

    >>> list_protocols()[:3]
    ['pairs', 'ijb_verification', 'ijb_identification']
    """
    import_entry_points()
    return [*BUILT_IN, *(name for name in _REGISTRY if name not in BUILT_IN)]


def lookup_protocol(name: str) -> type[Protocol]:
    """The protocol of a name.

    Raises:
        UnknownNameError: no such protocol; the message offers the nearest name.

    >>> lookup_protocol("pairs").file
    'pairs.json'
    """
    if name in BUILT_IN:
        import_module(f"{__package__}.{BUILT_IN[name].module}")
    elif name not in _REGISTRY:
        import_entry_points()
    if name not in _REGISTRY:
        raise UnknownNameError("protocol", name, list_protocols())
    return _REGISTRY[name]


def find_protocols(path: Path | str, protocol: str | None = None) -> list[Protocol]:
    """All data sets that a file or folder holds, by the protocols that know it.

    Args:
        path: such as "lfw.bin", a list of pairs, a folder of `.bin` files, or an IJB folder; or "PROTOCOL=PATH", such
            as "folder=friends".
        protocol: name of the only protocol to ask.

    Raises:
        UnknownNameError: no such protocol.
        DataError: no such path, or no protocol knows it.
    """
    name, equals, place = str(path).partition("=")
    path = Path(path)
    if equals and protocol is None and not path.exists():
        path, protocol = Path(place), name
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; check the path of the evaluation set")
    asked = list_protocols() if protocol is None else [protocol]
    names = [name for name in asked if name == protocol or name not in BUILT_IN or BUILT_IN[name].may_hold(path)]
    found = [one for name in names for one in lookup_protocol(name).find(path)]
    if not found:
        named = f", or name a protocol for it, such as folder={path} for all pairs of a folder of people"
        raise DataError(
            f"{path}: no evaluation set of the protocols {', '.join(asked)}; check the path"
            + (named if protocol is None and path.is_dir() else "")
        )
    return found


def given_protocols(given: Protocol | Path | str | Sequence[Protocol | Path | str]) -> list[Protocol]:
    """The data sets that a caller names: protocols as they are, and what `find_protocols` finds at each path."""
    listed = [given] if isinstance(given, Protocol | Path | str) else list(given)
    found = [[one] if isinstance(one, Protocol) else find_protocols(one) for one in listed]
    return [one for row in found for one in row]


def protocols_with_pairs(given: Protocol | Path | str | Sequence[Protocol | Path | str]) -> list[Protocol]:
    """The data sets that a caller names, for their pairs: of an IJB folder, the listed pairs of templates alone.

    Its galleries and probes are pairs of the same templates, which would count twice.
    """
    return [one for one in given_protocols(given) if one.name != "ijb_identification"]
