"""Plots of a metric against cost: MACs, parameters and latency."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from facebones.reporting.plots.labels import draw_names, label_log_axis
from facebones.reporting.plots.style import (
    FloatArray,
    Style,
    fix_layout,
    in_percent,
    label_axes,
    legend_below,
    marker_only,
    new_figure,
    side_by_side,
    variant_styles,
)
from facebones.reporting.results import MetricResult, Results, Spread, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"macs": "MACs", "parameters": "parameters", "latency_ms": "latency"}
NAMES = {"macs": "macs", "parameters": "parameters", "latency_ms": "latency"}
SIZE = (7.6, 5.2)  # inches
MARKER_SIZE = 6.0
SEED_SIZE = 2.5
SHIFT = 0.025  # of the width, between marks of equal cost
LEAST_SPAN = 0.004  # of the rates that are shown
FRONT: Style = {"color": "#888888", "linewidth": 1.1, "drawstyle": "steps-post", "zorder": 1.5}
FRONT_WIDTH = 2.0  # pixels on either side that names keep away
Ends = tuple[float, float]


def cost_plots(results: Results) -> dict[tuple[str, ...], Callable[[], "Figure"]]:
    """Functions that draw each main metric against each cost that is known, by the parts of the plot's name."""
    return {
        (metric.title, "against", NAMES[cost]): partial(_cost_figure, results, metric, cost)
        for metric in results.main_metrics()
        for cost in COSTS
        if _points(results, metric, cost)
    }


def _points(results: Results, metric: MetricResult, cost: str) -> dict[str, tuple[float, Spread]]:
    """Cost and metric of the variants that have both."""
    return {
        name: (float(price), spread)
        for name in results.variants
        if (price := getattr(results.costs.get(name), cost, None))
        and (spread := results.spread(metric, name)) is not None
    }


def _cost_figure(results: Results, metric: MetricResult, cost: str) -> "Figure":
    points = _points(results, metric, cost)
    looks = variant_styles(results)
    figure = new_figure(*SIZE)
    axes = figure.add_subplot()
    low, high = _shown([spread for _, spread in points.values()])
    front = _front(metric, points)
    places = _side_by_side(results, points)
    axes.plot([places[name] for name in front], [points[name][1].mean for name in front], **FRONT)
    for name, (_, spread) in points.items():
        _draw_point(axes, places[name], spread, looks[name], (low, high))
    _scale_axes(axes, list(places.values()), (low, high))
    label_axes(axes, _title(results, metric, cost, points), _cost_label(results, cost), f"{metric.words} (%)")
    if results.factors:  # as many names as levels would hide one another
        legend_below(figure, list(points), [marker_only(looks[name]) for name in points])
        return figure
    fix_layout(figure)
    _name_points(axes, points, front, looks)
    return figure


def _side_by_side(results: Results, points: Mapping[str, tuple[float, Spread]]) -> dict[str, float]:
    """The place of each mark on the axis: levels of one backbone, which cost the same, are set side by side."""
    prices = [price for price, _ in points.values()]
    step = (max(prices) / min(prices) * 1.7) ** SHIFT
    shifts = side_by_side(results)
    return {name: price * step ** shifts[name] for name, (price, _) in points.items()}


def _front(metric: MetricResult, points: Mapping[str, tuple[float, Spread]]) -> list[str]:
    sign = 1 if metric.higher_is_better else -1
    costs = {name: price for name, (price, _) in points.items()}
    return pareto_front(costs, {name: sign * spread.mean for name, (_, spread) in points.items()})


def _shown(spreads: list[Spread]) -> Ends:
    """Limits of the axis: all runs, and the intervals as far as the runs keep a third of the height."""
    values = [value for spread in spreads for value in (spread.mean, *spread.values.values())]
    lowest, highest = min(values), max(values)
    span = max(highest - lowest, LEAST_SPAN)
    ends = [end for spread in spreads for end in (spread.low, spread.high) if end is not None]
    low = max(min(ends, default=lowest), lowest - span)
    high = min(max(ends, default=highest), highest + span)
    room = 0.07 * max(high - low, span)
    return max(min(low, lowest), 0.0) - room, min(max(high, highest), 1.0) + room


def _draw_point(axes: "Axes", price: float, spread: Spread, look: Style, shown: Ends) -> None:
    """Draw the mean, its interval, and each seed as a dot; an interval that leaves the plot ends in an arrow."""
    colour = look["color"]
    if spread.low is not None and spread.high is not None:
        axes.vlines(price, max(spread.low, shown[0]), min(spread.high, shown[1]), color=colour, linewidth=1.0)
        for end, limit, arrow in ((spread.low, shown[0], "v"), (spread.high, shown[1], "^")):
            inside = shown[0] <= end <= shown[1]
            axes.plot(
                price, end if inside else limit, marker="_" if inside else arrow, color=colour, markersize=5.0,
                clip_on=False,
            )  # fmt: skip
    if len(spread.values) > 1:
        seeds = list(spread.values.values())
        axes.plot([price] * len(seeds), seeds, linestyle="", marker="o", color=colour, markersize=SEED_SIZE, alpha=0.6)
    axes.plot(
        price, spread.mean, marker=look["marker"], color=colour, markersize=MARKER_SIZE, markeredgecolor="white",
        markeredgewidth=0.5, zorder=3,
    )  # fmt: skip


def _scale_axes(axes: "Axes", prices: list[float], shown: Ends) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_xscale("log")
    margin = max((max(prices) / min(prices)) ** 0.12, 1.3)
    axes.set_xlim(min(prices) / margin, max(prices) * margin)
    axes.set_ylim(*shown)
    label_log_axis(axes.xaxis, axes.get_xlim())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    in_percent(axes.yaxis)


def _title(results: Results, metric: MetricResult, cost: str, points: Mapping[str, Any]) -> tuple[str, ...]:
    """The heading, and a line on the marks and on backbones that cannot be shown."""
    spreads: list[Spread] = [spread for _, spread in points.values()]
    marks = ["line: Pareto front"]
    if any(spread.low is not None for spread in spreads):
        marks.append("bars: 95 % intervals, cut off at arrows")
    if any(len(spread.values) > 1 for spread in spreads):
        marks.append("dots: seeds")
    if missing := len(results.ranking(metric)) - len(points):
        marks.append(f"{missing} not shown: {COSTS[cost]} unknown")
    beside = ["the levels of a backbone are moved side by side"] if results.factors else []
    return f"{metric.title} against {COSTS[cost]}", "; ".join(marks), *beside


def _cost_label(results: Results, cost: str) -> str:
    if cost == "macs":
        return "MACs of one image"
    if cost == "parameters":
        return "Parameters"
    known = results.conditions
    said = [str(known[key]) for key in ("device", "processor") if known.get(key)]
    if known.get("threads"):
        said.append(f"{known['threads']} thread{'s' if known['threads'] != 1 else ''}")
    said += [str(known["precision"])] if known.get("precision") else []
    return f"Latency of one image, median (ms{'; ' if said else ''}{', '.join(said)})"


def _name_points(
    axes: "Axes", points: Mapping[str, tuple[float, Spread]], front: list[str], looks: Mapping[str, Style]
) -> None:
    places = np.array([(price, spread.mean) for price, spread in points.values()])
    areas = np.full(len(points), (MARKER_SIZE + 1) ** 2)
    colours = [looks[name]["color"] for name in points]
    draw_names(axes, list(points), places, areas, colours, obstacles=_obstacles(axes, points, front))


def _obstacles(axes: "Axes", points: Mapping[str, tuple[float, Spread]], front: list[str]) -> FloatArray:
    """Boxes in pixels, (M, 4), of the intervals, the seeds and the steps of the front."""
    low, high = axes.get_ylim()
    lines = []
    for price, spread in points.values():
        ends = [*spread.values.values(), spread.low, spread.high]
        known = np.clip([end for end in ends if end is not None], low, high)
        lines.append(((price, known.min()), (price, known.max())))
    for first, second in pairwise(front):
        (x, left), (end, right) = points[first], points[second]
        lines += [((x, left.mean), (end, left.mean)), ((end, left.mean), (end, right.mean))]
    corners = axes.transData.transform(np.array(lines).reshape(-1, 2)).reshape(-1, 2, 2)
    return np.concatenate([corners.min(axis=1) - FRONT_WIDTH, corners.max(axis=1) + FRONT_WIDTH], axis=1)
