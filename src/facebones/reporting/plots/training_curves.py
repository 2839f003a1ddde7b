"""Plots of training curves: loss, learning rate, gradient scale and accuracy over the steps."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from facebones.errors import DataError
from facebones.reporting.plots.style import (
    FloatArray,
    Style,
    curve_axes,
    in_percent,
    label_axes,
    legend_below,
    line_only,
    model_styles,
)
from facebones.reporting.results import Line, Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[FloatArray, FloatArray]  # steps and values, each (N,)
Curves = Mapping[str, Sequence[Series]]  # of a backbone, one per run that has any

THIN: Style = {"linestyle": "-", "linewidth": 0.7, "alpha": 0.4}  # a run, behind the mean over the seeds
ONE_OF_SEVERAL: Style = {"linewidth": 0.9}  # a run, without a mean
SHARED: Style = {"color": "#000000", "linewidth": 1.6}


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
        for backbone in results.backbones
    }
    return {backbone: runs for backbone, runs in found.items() if runs}


def _loss_figure(results: Results, curves: Curves) -> "Figure":
    return _means_figure(results, curves, "Training loss", "Loss", smooth=True)


def _accuracy_figure(results: Results, pair_set: str, curves: Curves) -> "Figure":
    figure = _means_figure(results, curves, f"{pair_set}: accuracy while training", "Accuracy (%)", smooth=False)
    in_percent(figure.axes[0].yaxis)
    return figure


def _means_figure(results: Results, curves: Curves, title: str, y: str, *, smooth: bool) -> "Figure":
    """Draw the mean over the seeds of each backbone, in front of its runs, which are thin lines."""
    figure, axes = curve_axes()
    looks = model_styles(results.backbones)
    for backbone, runs in curves.items():
        _draw_mean(axes, runs, looks[backbone], smooth)
    several = any(len(runs) > 1 for runs in curves.values())
    heading = f"{title}: mean over the seeds, thin lines are runs" if several else title
    _finish(figure, heading, y, {backbone: _legend_look(looks[backbone], smooth) for backbone in curves})
    return figure


def _draw_mean(axes: "Axes", runs: Sequence[Series], look: Style, smooth: bool) -> None:
    """Draw one backbone; the mean covers the steps that all runs have, and without such steps only runs are drawn."""
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
    """Draw a line per run, in the look of its backbone and thinner with several seeds; equal lines are drawn once."""
    figure, axes = curve_axes()
    everything = [series for runs in curves.values() for series in runs]
    if len(everything) > 1 and all(_equal(series, everything[0]) for series in everything):
        axes.plot(*everything[0], **SHARED, **more)
        _finish(figure, title, title, {f"all {len(everything)} runs": SHARED})
        return figure
    looks = {name: line_only(look) for name, look in model_styles(results.backbones).items()}
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
