"""ROC and CMC curves of the runs of a report, in the looks of their backbones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from facebones.reporting.plots.curves import Band, roc_figure
from facebones.reporting.plots.identification import cmc_figure
from facebones.reporting.plots.style import Style, legend_below, model_styles
from facebones.reporting.results import Results, false_accept_rate_of
from facebones.statistics.curves import RocCurve, area_under_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_WITH_BANDS = 6  # curves; of more the intervals hide one another
ONE_OF_SEVERAL: Style = {"linewidth": 0.9, "markersize": 2.5}


def curve_pictures(results: Results) -> dict[tuple[str, ...], Callable[[], "Figure"]]:
    """What draws each picture of curves, by the parts of its name; those only that have something to show."""
    drawers: dict[tuple[str, ...], Callable[[], Figure]] = {}
    for where, curves in results.curves.items():
        if curves:
            drawers[("roc", where)] = partial(_roc_figure, results, where)
    for where, rates in results.cmc.items():
        if rates:
            drawers[("cmc", where)] = partial(_cmc_figure, results, where)
    return drawers


def _roc_figure(results: Results, where: str) -> "Figure":
    curves: Mapping[str, RocCurve] = results.curves[where]
    bands = _bands(results, where, curves) if len(curves) <= MOST_WITH_BANDS else {}
    figure = roc_figure(curves, _title(results, f"{where}: ROC", curves), styles=_looks(results, curves), bands=bands)
    _name_backbones(figure, results, {name: area_under_curve(curve) for name, curve in curves.items()}, "AUC {:.4f}")
    return figure


def _cmc_figure(results: Results, where: str) -> "Figure":
    rates = results.cmc[where]
    figure = cmc_figure(rates, _title(results, f"{where}: CMC", rates), styles=_looks(results, rates))
    first = {name: 100 * one[0] for name, one in rates.items()}
    _name_backbones(figure, results, first, "rank 1: {:.2f} %")
    return figure


def _title(results: Results, title: str, names: Iterable[str]) -> str:
    several = any(len(runs) > 1 for runs in _by_backbone(results, names).values())
    return f"{title}, a line a run" if several else title


def _by_backbone(results: Results, names: Iterable[str]) -> dict[str, list[str]]:
    """Backbone to the runs of it that are among the names, in the order of the report."""
    found = {name: [run.name for run in results.runs_of(name) if run.name in set(names)] for name in results.backbones}
    return {backbone: runs for backbone, runs in found.items() if runs}


def _looks(results: Results, names: Iterable[str]) -> dict[str, Style]:
    """The look of each run: its backbone's, and thinner where there are several seeds."""
    looks = model_styles(results.backbones)
    return {
        run: looks[backbone] | (ONE_OF_SEVERAL if len(runs) > 1 else {})
        for backbone, runs in _by_backbone(results, names).items()
        for run in runs
    }


def _name_backbones(figure: "Figure", results: Results, values: Mapping[str, float], form: str) -> None:
    """The legend: each backbone with the mean of a value over its seeds."""
    looks = model_styles(results.backbones)
    runs = _by_backbone(results, values)
    mean = "mean " if any(len(names) > 1 for names in runs.values()) else ""
    labels = [f"{name} ({mean}{form.format(_mean([values[run] for run in runs[name]]))})" for name in runs]
    legend_below(figure, labels, [looks[name] for name in runs])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _bands(results: Results, where: str, names: Iterable[str]) -> dict[str, Band]:
    """Of each run the 95 % intervals of its TAR at the FARs that were asked for."""
    found = {}
    for name in names:
        bars = [
            (far, figure.intervals[name]["low"], figure.intervals[name]["high"])
            for figure in results.figures
            if figure.where == where and name in figure.intervals and (far := false_accept_rate_of(figure)) is not None
        ]
        if bars:
            found[name] = (*np.array(sorted(bars)).T,)
    return found
