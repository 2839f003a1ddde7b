"""All plots of a report, drawn on demand, each with a file name that is safe on every disk."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from facebones.reporting.plots.cost import cost_plots
from facebones.reporting.plots.curves import cmc_figure, roc_bands, roc_figure
from facebones.reporting.plots.heat_map import heat_map_plots
from facebones.reporting.plots.style import Style, legend_below, model_styles, plot_paths, save_plot
from facebones.reporting.plots.training_curves import training_plots
from facebones.reporting.results import EvaluatedSet, Results
from facebones.reporting.words import set_words
from facebones.statistics.curves import RocCurve, area_under_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT_KINDS = ("png", "pdf", "svg")
LONGEST_PART = 60  # letters of a part of a file name
MOST_WITH_BANDS = 6  # curves; the intervals of more would hide one another
ONE_OF_SEVERAL: Style = {"linewidth": 0.9, "markersize": 2.5}


class Plots(Mapping[str, "Figure"]):
    """Name to figure, like a dict that draws a figure each time it is accessed.

    Args:
        drawers: functions that draw the plots, by the parts of their names.
    """

    def __init__(self, drawers: Mapping[tuple[str, ...], Callable[[], "Figure"]]) -> None:
        self._drawers: dict[str, Callable[[], Figure]] = {}
        for parts, draw in drawers.items():
            self._drawers[_distinct("_".join(map(slug, parts)), self._drawers)] = draw

    def __getitem__(self, name: str) -> "Figure":
        return self._drawers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._drawers

    def __iter__(self) -> Iterator[str]:
        return iter(self._drawers)

    def __len__(self) -> int:
        return len(self._drawers)

    def __repr__(self) -> str:
        return f"Plots({', '.join(self)})"


def report_plots(results: Results) -> Plots:
    """The plots that the results can fill, by name; each is drawn when it is accessed.

    These are `loss`, `learning_rate`, `gradient_scale`, `accuracy_SET`, `roc_SET`, `cmc_SET`, `METRIC_against_macs`,
    `METRIC_against_parameters`, `METRIC_against_latency` and `tests_METRIC`. In a notebook,
    `report_plots(load_results("my_study"))["loss"]` shows a plot.
    """
    return Plots(training_plots(results) | curve_plots(results) | cost_plots(results) | heat_map_plots(results))


def write_plots(results: Results, folder: Path, kinds: Sequence[str] = PLOT_KINDS) -> list[Path]:
    """Write all plots, each in several formats; the folder is created.

    Returns:
        the files, those of one plot after another.

    Raises:
        DataError: the metrics of a run are not numbers.
        ConfigError: a format is not supported.
        RunError, ConfigError: the disk is full, or the place cannot be written.
    """
    for name, figure in report_plots(results).items():
        save_plot(figure, plot_paths(folder / name, kinds))
    return plot_files(results, folder, kinds)


def plot_files(results: Results, folder: Path, kinds: Sequence[str] = PLOT_KINDS) -> list[Path]:
    """The files that `write_plots` writes; nothing is drawn."""
    return [path for name in report_plots(results) for path in plot_paths(folder / name, kinds)]


def slug(text: str) -> str:
    """A part of a file name that is valid on every disk: small letters, digits and "_".

    >>> slug("IJBC 1:1 TAR at FAR 0.0001"), slug("../<b>")
    ('ijbc_1_1_tar_at_far_0_0001', 'b')
    """
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:LONGEST_PART].rstrip("_") or "unnamed"


def _distinct(name: str, taken: Mapping[str, object]) -> str:
    """The name, or the first free one of name_2, name_3 ..."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


# ------------------------------------------------------------------------------------------------- curves of runs


def curve_plots(results: Results) -> dict[tuple[str, ...], Callable[[], "Figure"]]:
    """Functions that draw the ROC and CMC of each set that has curves, by the parts of the plot's name."""
    drawers: dict[tuple[str, ...], Callable[[], Figure]] = {}
    for where, curves in results.curves.items():
        if curves:
            drawers[("roc", set_words(where))] = partial(_roc_figure, results, where)
    for where, rates in results.cmc.items():
        if rates:
            drawers[("cmc", set_words(where))] = partial(_cmc_figure, results, where)
    return drawers


def _roc_figure(results: Results, where: EvaluatedSet) -> "Figure":
    curves: Mapping[str, RocCurve] = results.curves[where]
    metrics = [metric for metric in results.metrics if metric.evaluated_set == where]
    bands = roc_bands(metrics, curves) if len(curves) <= MOST_WITH_BANDS else {}
    title = _title(results, f"{set_words(where)}: ROC", curves)
    figure = roc_figure(curves, title, styles=_looks(results, curves), bands=bands)
    _name_backbones(figure, results, {name: area_under_curve(curve) for name, curve in curves.items()}, "AUC {:.4f}")
    return figure


def _cmc_figure(results: Results, where: EvaluatedSet) -> "Figure":
    rates = results.cmc[where]
    figure = cmc_figure(rates, _title(results, f"{set_words(where)}: CMC", rates), styles=_looks(results, rates))
    first = {name: 100 * one[0] for name, one in rates.items()}
    _name_backbones(figure, results, first, "rank 1: {:.2f} %")
    return figure


def _title(results: Results, title: str, names: Iterable[str]) -> str:
    several = any(len(runs) > 1 for runs in _by_backbone(results, names).values())
    return f"{title}, one line per run" if several else title


def _by_backbone(results: Results, names: Iterable[str]) -> dict[str, list[str]]:
    """Backbone to those of its runs that are among the names, in the order of the report."""
    found = {name: [run.name for run in results.runs_of(name) if run.name in set(names)] for name in results.backbones}
    return {backbone: runs for backbone, runs in found.items() if runs}


def _looks(results: Results, names: Iterable[str]) -> dict[str, Style]:
    """The look of each run: that of its backbone, thinner with several seeds."""
    looks = model_styles(results.backbones)
    return {
        run: looks[backbone] | (ONE_OF_SEVERAL if len(runs) > 1 else {})
        for backbone, runs in _by_backbone(results, names).items()
        for run in runs
    }


def _name_backbones(figure: "Figure", results: Results, values: Mapping[str, float], form: str) -> None:
    """Add the legend: each backbone with the mean of a value over its seeds."""
    looks = model_styles(results.backbones)
    runs = _by_backbone(results, values)
    mean = "mean " if any(len(names) > 1 for names in runs.values()) else ""
    labels = [f"{name} ({mean}{form.format(_mean([values[run] for run in runs[name]]))})" for name in runs]
    legend_below(figure, labels, [looks[name] for name in runs])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
