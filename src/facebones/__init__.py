"""facebones: train and compare face-recognition backbones under one fair recipe."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from facebones.reporting.results import Results

__version__ = "0.2.0.dev0"


def load_results(*folders: "str | Path") -> "Results":
    """Read what trainings, studies, evaluations and profiles have left in folders; see `reporting.gathering`."""
    from facebones.reporting.gathering import load_results as load

    return load(*folders)
