"""All plots of a report, drawn on demand, each with a file name that is safe on every disk; and the curves of its runs.

Plots of metrics against cost and of tests are in modules of their own.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from facebones.errors import DataError
from facebones.reporting.plots.cost import cost_plots
from facebones.reporting.plots.curves import cmc_figure, roc_bands, roc_figure
from facebones.reporting.plots.heat_map import heat_map_plots
from facebones.reporting.plots.style import (
    FloatArray,
    Style,
    curve_axes,
    in_percent,
    label_axes,
    legend_below,
    line_only,
    plot_paths,
    save_plot,
    variant_styles,
)
from facebones.reporting.results import EvaluatedSet, Line, Results, Run
from facebones.reporting.words import set_words
from facebones.statistics.curves import RocCurve, area_under_curve
from facebones.system.number_format import decimal, percent
from facebones.system.progress import track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[FloatArray, FloatArray]  # steps and values, each (N,)
Curves = Mapping[str, Sequence[Series]]  # of a variant, one per run that has any

PLOT_KINDS = ("png", "pdf", "svg")
LONGEST_PART = 60  # letters of a part of a file name
MOST_WITH_BANDS = 6  # curves; the intervals of more would hide one another
ONE_OF_SEVERAL: Style = {"linewidth": 0.9, "markersize": 2.5}
THIN: Style = {"linestyle": "-", "linewidth": 0.7, "alpha": 0.4}  # a run, behind the mean over the seeds
SHARED: Style = {"color": "#000000", "linewidth": 1.6}  # equal lines of several runs


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


def write_plots(
    results: Results, folder: Path, kinds: Sequence[str] = PLOT_KINDS, *, progress: bool = False
) -> list[Path]:
    """Write all plots, each in several formats; the folder is created.

    Args:
        results: of a report.
        folder: of the files.
        kinds: formats, by the endings of their files.
        progress: show the progress on stderr.

    Returns:
        the files, those of one plot after another.

    Raises:
        DataError: the metrics of a run are not numbers.
        ConfigError: a format is not supported.
        RunError, ConfigError: the disk is full, or the place cannot be written.
    """
    plots = report_plots(results).items()
    for name, figure in track(plots, "drawing plots", unit="plots") if progress else plots:
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


# ------------------------------------------------------------------------------------------------- ROC and CMC


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
    areas = {name: area_under_curve(curve) for name, curve in curves.items()}
    _name_variants(figure, results, areas, lambda area: f"AUC {decimal(area)}")
    return figure


def _cmc_figure(results: Results, where: EvaluatedSet) -> "Figure":
    rates = results.cmc[where]
    figure = cmc_figure(rates, _title(results, f"{set_words(where)}: CMC", rates), styles=_looks(results, rates))
    first = {name: one[0] for name, one in rates.items()}
    _name_variants(figure, results, first, lambda rate: f"rank 1: {percent(rate)}")
    return figure


def _title(results: Results, title: str, names: Iterable[str]) -> str:
    several = any(len(runs) > 1 for runs in _by_variant(results, names).values())
    return f"{title}, one line per run" if several else title


def _by_variant(results: Results, names: Iterable[str]) -> dict[str, list[str]]:
    """Variant to those of its runs that are among the names, in the order of the report."""
    found = {name: [run.name for run in results.runs_of(name) if run.name in set(names)] for name in results.variants}
    return {backbone: runs for backbone, runs in found.items() if runs}


def _looks(results: Results, names: Iterable[str]) -> dict[str, Style]:
    """The look of each run: that of its variant, thinner with several seeds."""
    looks = variant_styles(results)
    return {
        run: looks[backbone] | (ONE_OF_SEVERAL if len(runs) > 1 else {})
        for backbone, runs in _by_variant(results, names).items()
        for run in runs
    }


def _name_variants(
    figure: "Figure", results: Results, values: Mapping[str, float], words: Callable[[float], str]
) -> None:
    """Add the legend: each variant with the mean of a value over its seeds."""
    looks = variant_styles(results)
    runs = _by_variant(results, values)
    mean = "mean " if any(len(names) > 1 for names in runs.values()) else ""
    labels = [f"{name} ({mean}{words(fmean(values[run] for run in runs[name]))})" for name in runs]
    legend_below(figure, labels, [looks[name] for name in runs])


# ----------------------------------------------------------------------------------------------- training curves


def training_plots(results: Results) -> dict[tuple[str, ...], Callable[[], "Figure"]]:
    """Functions that draw each training plot that has data, by the parts of its name."""
    drawers: dict[tuple[str, ...], Callable[[], Figure]] = {}
    if losses := _curves_of(results, lambda run: _series(run, run.of_kind("train"), "loss")):
        drawers[("loss",)] = partial(_loss_figure, results, losses)
    if rates := _curves_of(results, lambda run: _series(run, run.of_kind("train"), "learning_rate")):
        drawers[("learning_rate",)] = partial(_rate_figure, results, rates)
    if results.scales_gradients:
        scales = _curves_of(results, lambda run: _series(run, run.of_kind("train"), "gradient_scale"))
        drawers[("gradient_scale",)] = partial(_scale_figure, results, scales)
    for name in results.validated_sets:
        if accuracies := _curves_of(results, partial(_accuracy, pair_set=name)):
            drawers[("accuracy", name)] = partial(_accuracy_figure, results, name, accuracies)
    return drawers


def _series(run: Run, lines: Sequence[Line], key: str) -> Series | None:
    """Steps and values of the lines that have a value; None if no line has one.

    Raises:
        DataError: a value is not a number, or its line has no step.
    """
    lines = [line for line in lines if line.get(key) is not None]
    return (_column(lines, "step", run.name), _column(lines, key, run.name)) if lines else None


def _accuracy(run: Run, pair_set: str) -> Series | None:
    return _series(run, [line for line in run.of_kind("validation") if line["set"] == pair_set], "accuracy")


def _curves_of(results: Results, series: Callable[[Run], Series | None]) -> Curves:
    found = {
        backbone: [one for run in results.runs_of(backbone) if (one := series(run)) is not None]
        for backbone in results.variants
    }
    return {backbone: runs for backbone, runs in found.items() if runs}


def _loss_figure(results: Results, curves: Curves) -> "Figure":
    return _means_figure(results, curves, "Training loss", "Loss", smooth=True)


def _accuracy_figure(results: Results, pair_set: str, curves: Curves) -> "Figure":
    figure = _means_figure(results, curves, f"{pair_set}: accuracy while training", "Accuracy (%)", smooth=False)
    in_percent(figure.axes[0].yaxis)
    return figure


def _means_figure(results: Results, curves: Curves, title: str, y: str, *, smooth: bool) -> "Figure":
    """Draw the mean over the seeds of each variant, in front of its runs, which are thin lines."""
    figure, axes = curve_axes()
    looks = variant_styles(results)
    for backbone, runs in curves.items():
        _draw_mean(axes, runs, looks[backbone], smooth)
    several = any(len(runs) > 1 for runs in curves.values())
    heading = f"{title}: mean over the seeds, thin lines are runs" if several else title
    _finish(figure, heading, y, {backbone: _legend_look(looks[backbone], smooth) for backbone in curves})
    return figure


def _draw_mean(axes: "Axes", runs: Sequence[Series], look: Style, smooth: bool) -> None:
    """Draw one variant; the mean covers the steps that all runs have, and without such steps only runs are drawn."""
    mean = _mean(runs)
    behind = THIN if mean[0].size else ONE_OF_SEVERAL
    thin = (runs if len(runs) > 1 or smooth else []) if mean[0].size else runs
    for step, value in thin:
        axes.plot(step, value, **line_only(look) | behind)
    if mean[0].size:
        axes.plot(mean[0], running_mean(mean[1]) if smooth else mean[1], **_legend_look(look, smooth))


def _mean(runs: Sequence[Series]) -> Series:
    """Mean over the runs, at the steps that all of them have.

    >>> step, mean = _mean([(np.array([1.0, 2, 3]), np.array([5.0, 4, 3])), (np.array([2.0, 3]), np.array([6.0, 7]))])
    >>> step.tolist(), mean.tolist()
    ([2.0, 3.0], [5.0, 5.0])
    """
    of_step = [dict(zip(step.tolist(), value.tolist(), strict=True)) for step, value in runs]
    common = sorted(set.intersection(*(set(values) for values in of_step)))
    means = [sum(values[step] for values in of_step) / len(of_step) for step in common]
    return np.array(common), np.array(means)


def _legend_look(look: Style, smooth: bool) -> Style:
    return line_only(look) if smooth else look


def _rate_figure(results: Results, curves: Curves) -> "Figure":
    return _runs_figure(results, curves, "Learning rate")


def _scale_figure(results: Results, curves: Curves) -> "Figure":
    """Draw the gradient scales on an axis of powers of two."""
    figure = _runs_figure(results, curves, "Gradient scale", drawstyle="steps-post")
    figure.axes[0].set_yscale("log", base=2)
    return figure


def _runs_figure(results: Results, curves: Curves, title: str, **more: Any) -> "Figure":
    """Draw a line per run, in the look of its variant and thinner with several seeds; equal lines are drawn once."""
    figure, axes = curve_axes()
    everything = [series for runs in curves.values() for series in runs]
    if len(everything) > 1 and all(_equal(series, everything[0]) for series in everything):
        axes.plot(*everything[0], **SHARED, **more)
        _finish(figure, title, title, {f"all {len(everything)} runs": SHARED})
        return figure
    looks = {name: line_only(look) for name, look in variant_styles(results).items()}
    for backbone, runs in curves.items():
        for step, value in runs:
            axes.plot(step, value, **looks[backbone] | (ONE_OF_SEVERAL if len(runs) > 1 else {}), **more)
    several = any(len(runs) > 1 for runs in curves.values())
    _finish(figure, f"{title}: one line per run" if several else title, title, {name: looks[name] for name in curves})
    return figure


def _equal(first: Series, second: Series) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def _finish(figure: "Figure", title: str, y: str, legend: Mapping[str, Style]) -> None:
    from matplotlib.ticker import MaxNLocator

    (axes,) = figure.axes
    label_axes(axes, title, "Step", y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    axes.margins(x=0.02)
    legend_below(figure, list(legend), list(legend.values()))


def running_mean(values: FloatArray) -> FloatArray:
    """Mean over the last fiftieth of the values, fewer at the start: (N,) -> (N,); NaN is skipped."""
    window = max(1, values.size // 50)
    there = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(there)])
    end = np.arange(1, values.size + 1)
    start = np.maximum(end - window, 0)
    counted = count[end] - count[start]
    return np.where(counted > 0, (total[end] - total[start]) / np.maximum(counted, 1), np.nan)


def _column(lines: Sequence[Mapping[str, Any]], key: str, run: str) -> FloatArray:
    """The numbers of the lines under a key, (N,)."""
    try:
        return np.array(_values(lines, key, run), dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{run}: metrics.jsonl has a value of '{key}' that is not a number; restore the file") from None


def _values(lines: Sequence[Mapping[str, Any]], key: str, run: str) -> list[Any]:
    for number, line in enumerate(lines):
        if key not in line:
            raise DataError(f"{run}: {line['kind']} line {number} of metrics.jsonl has no '{key}'; restore the file")
    return [line[key] for line in lines]
