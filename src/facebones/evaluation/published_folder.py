"""What the protocols of sets have in common that are one folder, in the layout in which they are published."""

from pathlib import Path
from typing import Self

from facebones.errors import DataError
from facebones.evaluation.protocol import Features, Protocol
from facebones.statistics.bootstrap import REPLICATES
from facebones.statistics.metric import Metric


class PublishedFolder(Protocol):
    """A set that is one folder; what the folder lacks is said by name, and `compare` is what measures.

    Args:
        path: the folder.
    """

    @classmethod
    def find(cls, path: Path) -> list[Self]:
        """The folder itself; `check` says what it lacks."""
        return [cls(path)] if path.is_dir() else []

    def check(self) -> None:
        """List the images and read the first, and let them go."""
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder; check the path of the evaluation set")
        Protocol.check(type(self)(self.path))

    def evaluate(self, features_NxVxD: Features) -> list[Metric]:
        """Measure one model; intervals by bootstrap over people."""
        results = self.compare({"": features_NxVxD}, bootstrap=REPLICATES, seed=0)
        return [metric for result in results for metric in result.of("")]
