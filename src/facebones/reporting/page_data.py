"""What the page's script draws: each plot as data, with the looks of the variants and their costs.

`page_assets/report.js` reads it as JSON.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.reporting.plots.curves import thin_steps
from facebones.reporting.plots.style import COLOURS as PLOT_COLOURS
from facebones.reporting.plots.style import DASHES, MARKERS, Style, side_by_side, variant_styles
from facebones.reporting.results import MetricResult, Results, Run
from facebones.reporting.words import set_words
from facebones.statistics.curves import RocCurve, area_under_curve

# The colours of `plots.style`, each with a contrast of at least 3:1 on a light page and, second, on a dark one.
COLOURS = (
    ("#0072B2", "#3B9AE1"),
    ("#D55E00", "#F07F3C"),
    ("#00875F", "#2BC79A"),
    ("#B85C90", "#E3A0C6"),
    ("#A87400", "#F0B429"),
    ("#3288C0", "#A5D8F7"),
    ("#000000", "#F0EEE9"),
)
DASH_NAMES = dict(zip(DASHES, ("solid", "dash", "dot", "dashdot"), strict=True))
MARKER_NAMES = dict(zip(MARKERS, ("circle", "square", "triangle-up", "diamond", "triangle-down"), strict=True))
MOST_POINTS = 1000  # of a training curve
MOST_RANKS = 200
SCORE_BINS = 40
COSTS = {"macs": "MACs of one image", "parameters": "parameters", "latency_ms": "latency of one image (ms)"}
TRAINING = {"loss": "Loss", "learning_rate": "Learning rate", "gradient_scale": "Gradient scale"}


@dataclass(frozen=True, kw_only=True)
class LinePlot:
    """A plot with a line for each run.

    Attributes:
        key: anchor in the page.
        group: the section, "roc", "scores", "cmc" or "training".
        title: heading.
        x: name of the axis.
        y: name of the axis.
        measure: what the `value` of a line is; empty if a line has none.
        best: "highest" or "lowest" value; empty if neither is better.
        percent: whether y are rates, shown in percent.
        log: whether the x axis is logarithmic.
        steps: whether y is constant from its x to the next.
        lines: "model" is the index of the variant, "run" the name of its run; "x", "y" and "value".
    """

    key: str
    group: str
    title: str
    x: str
    y: str
    measure: str = ""
    best: str = ""
    percent: bool = False
    log: bool = False
    steps: bool = False
    lines: Sequence[Mapping[str, Any]]


def page_data(results: Results) -> dict[str, Any]:
    """All data that the page's script draws; every number is finite or None."""
    return {
        "noun": results.noun,
        "models": [
            look | {"shift": shift}
            for look, shift in zip(model_looks(variant_styles(results)), side_by_side(results).values(), strict=True)
        ],
        "costs": _costs(results),
        "metrics": [_metric(results, metric) for metric in results.headline_metrics()],
        "plots": [asdict(plot) for plot in line_plots(results)],
    }


def model_looks(styles: Mapping[str, Style]) -> list[dict[str, Any]]:
    """Name, colours, dash and marker of each variant, from its style in the other plots."""
    colours = dict(zip(PLOT_COLOURS, COLOURS, strict=True))
    return [
        {
            "name": name,
            "light": colours[style["color"]][0],
            "dark": colours[style["color"]][1],
            "dash": DASH_NAMES[style["linestyle"]],
            "marker": MARKER_NAMES[style["marker"]],
        }
        for name, style in styles.items()
    ]


def line_plots(results: Results) -> list[LinePlot]:
    """ROC, scores and CMC of each set, then the training curves; plots without a line are left out."""
    plots = [*_roc_plots(results), *_score_plots(results), *_cmc_plots(results), *_training_plots(results)]
    return [plot for plot in plots if plot.lines]


def _costs(results: Results) -> list[dict[str, Any]]:
    """Each cost that is known for some variant."""
    found = []
    for name, title in COSTS.items():
        values = [getattr(results.costs.get(variant), name, None) for variant in results.variants]
        if any(value is not None for value in values):
            found.append({"name": name, "title": title, "values": values})
    return found


def _metric(results: Results, metric: MetricResult) -> dict[str, Any]:
    spreads = [results.spread(metric, variant) for variant in results.variants]
    return {
        "title": metric.title,
        "higher_is_better": metric.higher_is_better,
        "values": [
            None
            if spread is None
            else {"mean": spread.mean, "low": spread.low, "high": spread.high, "runs": len(spread.values)}
            for spread in spreads
        ],
    }


def _roc_plots(results: Results) -> list[LinePlot]:
    return [
        LinePlot(
            key=f"roc{number}",
            group="roc",
            title=set_words(where),
            x="false accept rate",
            y="true accept rate (%)",
            measure="area under the curve",
            best="highest",
            percent=True,
            log=True,
            steps=True,
            lines=_lines(results, partial(_roc_line, curves)),
        )
        for number, (where, curves) in enumerate(results.curves.items())
    ]


def _roc_line(curves: Mapping[str, RocCurve], run: Run) -> dict[str, Any] | None:
    curve = curves.get(run.name)
    if curve is None:
        return None
    x, y = thin_steps(curve.false_accept_rate, curve.true_accept_rate, min(1 / curve.impostors, 0.1))
    return {"x": _numbers(x), "y": _numbers(y), "value": area_under_curve(curve)}


def _score_plots(results: Results) -> list[LinePlot]:
    plots = []
    for number, (where, curves) in enumerate(results.curves.items()):
        first = {run.variant: run.name for run in reversed(results.runs) if run.name in curves}
        shown = {name: curves[name] for name in first.values()}
        ends = [curve.threshold[place] for curve in shown.values() for place in (1, -1)]
        edges = np.linspace(min(ends), max(ends), SCORE_BINS + 1) if ends else np.empty(0)
        plots.append(
            LinePlot(
                key=f"scores{number}",
                group="scores",
                title=set_words(where),
                x="score",
                y="share of pairs (%)",
                percent=True,
                steps=True,
                lines=_lines(results, partial(_score_line, shown, edges)),
            )
        )
    return plots


def _score_line(curves: Mapping[str, RocCurve], edges: npt.NDArray[np.float64], run: Run) -> dict[str, Any] | None:
    """The histograms of impostor and genuine pairs, with a gap between them."""
    if (curve := curves.get(run.name)) is None:
        return None
    parts = [_histogram(curve, rate, edges) for rate in (curve.false_accept_rate, curve.true_accept_rate)]
    x, y = (np.concatenate([parts[0][side], [np.nan], parts[1][side]]) for side in (0, 1))
    return {"x": _numbers(x), "y": _numbers(y), "value": None}


def _histogram(
    curve: RocCurve, accepted: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The share of pairs from each edge to the next, from the share that each threshold accepts; empty ends left out.

    Between the corners of a curve that has no other points, pairs are taken to be spread evenly.
    """
    at_least = np.interp(edges, curve.threshold[:0:-1], accepted[:0:-1], left=1.0, right=0.0)
    at_least[-1] = 0.0  # the highest score belongs to the last bin
    share = -np.diff(at_least)
    held = np.flatnonzero(share > 0)
    first, last = held[0], held[-1] + 1
    return edges[first : last + 1], np.append(share[first:last], 0.0)


def _cmc_plots(results: Results) -> list[LinePlot]:
    return [
        LinePlot(
            key=f"cmc{number}",
            group="cmc",
            title=set_words(where),
            x="rank",
            y="hit rate (%)",
            measure="rank-1 hit rate",
            best="highest",
            percent=True,
            log=True,
            steps=True,
            lines=_lines(results, partial(_cmc_line, rates)),
        )
        for number, (where, rates) in enumerate(results.cmc.items())
    ]


def _cmc_line(rates_of: Mapping[str, Sequence[float]], run: Run) -> dict[str, Any] | None:
    rates = rates_of.get(run.name, ())
    if not rates:
        return None
    ranks = np.unique(np.geomspace(1, len(rates), MOST_RANKS).round().astype(int))
    return {"x": ranks.tolist(), "y": _numbers(rates[rank - 1] for rank in ranks), "value": rates[0]}


def _training_plots(results: Results) -> list[LinePlot]:
    plots = [
        LinePlot(
            key=key,
            group="training",
            title=title,
            x="step",
            y=title.lower(),
            measure="last value",
            best="lowest" if key == "loss" else "",
            lines=_lines(results, partial(_trained, key)),
        )
        for key, title in TRAINING.items()
        if key != "gradient_scale" or results.scales_gradients
    ]
    return plots + [
        LinePlot(
            key=f"validation{number}",
            group="training",
            title=f"Accuracy on {name}",
            x="step",
            y="accuracy (%)",
            measure="last value",
            best="highest",
            percent=True,
            lines=_lines(results, partial(_validated, name)),
        )
        for number, name in enumerate(results.validated_sets)
    ]


def _trained(key: str, run: Run) -> dict[str, Any] | None:
    return _over_steps(run.of_kind("train"), key)


def _validated(pair_set: str, run: Run) -> dict[str, Any] | None:
    return _over_steps([line for line in run.of_kind("validation") if line.get("set") == pair_set], "accuracy")


def _over_steps(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """A value over the steps; long runs keep MOST_POINTS evenly spaced ones, including the first and the last."""
    rows = [row for row in rows if row.get(key) is not None and row.get("step") is not None]
    if not rows:
        return None
    places = np.unique(np.linspace(0, len(rows) - 1, MOST_POINTS).round().astype(int))
    x, y = ([rows[place][name] for place in places] for name in ("step", key))
    values = _numbers(y)
    return {"x": x, "y": values, "value": values[-1]}


def _lines(results: Results, line_of: Callable[[Run], dict[str, Any] | None]) -> list[dict[str, Any]]:
    places = {name: place for place, name in enumerate(results.variants)}
    return [
        {"model": places[run.variant], "run": run.name} | line
        for run in results.runs
        if (line := line_of(run)) is not None
    ]


def _numbers(values: Iterable[float]) -> list[float | None]:
    """The values with six digits; one that is not finite leaves a gap."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
