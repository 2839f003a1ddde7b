"""All pictures of a report for papers, each drawn when it is asked for, with a safe name of its own."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from facebones.reporting.plots.backbone_curves import curve_pictures
from facebones.reporting.plots.cost import cost_pictures
from facebones.reporting.plots.heat_map import heat_map_pictures
from facebones.reporting.plots.style import picture_paths, save_pictures
from facebones.reporting.plots.training_curves import course_pictures
from facebones.reporting.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_KINDS = ("png", "pdf", "svg")
LONGEST_PART = 60  # of a name, in letters


class Pictures(Mapping[str, "Figure"]):
    """Name to picture: what a dict would be, but that a picture is drawn anew each time it is taken.

    Args:
        drawers: what draws each picture, by the parts of its name.
    """

    def __init__(self, drawers: Mapping[tuple[str, ...], Callable[[], "Figure"]]) -> None:
        self._drawers: dict[str, Callable[[], Figure]] = {}
        for parts, draw in drawers.items():
            self._drawers[_unlike("_".join(map(slug, parts)), self._drawers)] = draw

    def __getitem__(self, name: str) -> "Figure":
        return self._drawers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._drawers

    def __iter__(self) -> Iterator[str]:
        return iter(self._drawers)

    def __len__(self) -> int:
        return len(self._drawers)

    def __repr__(self) -> str:
        return f"Pictures({', '.join(self)})"


def report_pictures(results: Results) -> Pictures:
    """The pictures that the results can fill, by name; nothing is drawn before one is taken.

    These are `loss`, `learning_rate`, `gradient_scale`, `accuracy_SET`, `roc_SET`, `cmc_SET`, `FIGURE_against_macs`,
    `FIGURE_against_parameters`, `FIGURE_against_latency` and `tests_FIGURE`.
    """
    return Pictures(
        course_pictures(results) | curve_pictures(results) | cost_pictures(results) | heat_map_pictures(results)
    )


def write_pictures(results: Results, folder: Path, kinds: Sequence[str] = REPORT_KINDS) -> list[Path]:
    """Write all pictures, each in several formats; the folder is made.

    Returns:
        the files, those of a picture one after another.

    Raises:
        DataError: a run's metrics hold something else than numbers.
        ConfigError: a format that cannot be written.
        RunError, ConfigError: the disk is full, or the place cannot be written.
    """
    for name, figure in report_pictures(results).items():
        save_pictures(figure, picture_paths(folder / name, kinds))
    return picture_files(results, folder, kinds)


def picture_files(results: Results, folder: Path, kinds: Sequence[str] = REPORT_KINDS) -> list[Path]:
    """The files that `write_pictures` writes, before any is drawn."""
    return [path for name in report_pictures(results) for path in picture_paths(folder / name, kinds)]


def slug(text: str) -> str:
    """A part of a file name, the same on every disk: small letters, digits and "_".

    >>> slug("IJBC 1:1 TAR at FAR 0.0001"), slug("../<b>")
    ('ijbc_1_1_tar_at_far_0_0001', 'b')
    """
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:LONGEST_PART].rstrip("_") or "unnamed"


def _unlike(name: str, taken: Mapping[str, object]) -> str:
    """The name, or the first of name_2, name_3 ... that is not taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
