"""Plot of error versus discard: FNMR as the genuine pairs of the lowest quality are left out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from facebones.reporting.plots.style import (
    Paths,
    Style,
    curve_axes,
    in_percent,
    label_axes,
    legend_below,
    line_only,
    model_styles,
    save_plot,
)
from facebones.system.number_format import percent

BOUND: Style = {"color": "#888888", "linewidth": 1.1, "marker": ""}
BAR_DISTANCE = 0.012  # of the axis, between the intervals of two scores
BOUNDS = {"at random": (0, (4, 3)), "best possible": (0, (1, 1.2))}


def plot_discards(
    curves: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], paths: Paths, title: str = "Error versus discard"
) -> None:
    """Draw a line for each quality score, with intervals, between discarding at random and the best possible.

    Args:
        curves: "discarded" (F,); "fnmr": name of a score -> (F,); "best" (F,).
        metrics: FNMR at some shares and pAUC, in the JSON of result files; the legend shows the pAUC.
        paths: one file or several; the suffix determines the format.
        title: heading.

    Raises:
        ConfigError: a format is not supported.
    """
    shares, lines = np.asarray(curves["discarded"]), {name: np.asarray(row) for name, row in curves["fnmr"].items()}
    looks = model_styles(lines)
    figure, axes = curve_axes()
    start = float(next(iter(lines.values()))[0])
    bounds = dict(zip(BOUNDS, (np.full(shares.size, start), np.asarray(curves["best"])), strict=True))
    for name, row in bounds.items():
        axes.plot(shares, row, **BOUND, linestyle=BOUNDS[name])
    points = [one for one in metrics if one["name"] == "fnmr"]
    highest = start
    for place, (name, row) in enumerate(lines.items()):
        axes.plot(shares, row, **line_only(looks[name]))
        moved = (place - (len(lines) - 1) / 2) * BAR_DISTANCE * shares[-1]
        for one in points:
            low, high = (one["intervals"][name][end] for end in ("low", "high"))
            axes.vlines(one["at"]["discarded"] + moved, low, high, color=looks[name]["color"], linewidth=1.0)
            highest = max(highest, high)
        highest = max(highest, float(row.max()))
        marked = [one["at"]["discarded"] for one in points]
        axes.plot(marked, np.interp(marked, shares, row), **{**looks[name], "linestyle": ""})
    axes.set_xlim(0, shares[-1] * 1.02)
    axes.set_ylim(0, 1.05 * highest)
    in_percent(axes.xaxis)
    in_percent(axes.yaxis)
    heading = f"{title}, with 95 % intervals" if points else title
    label_axes(axes, heading, "Discarded genuine pairs of the lowest quality (%)", "FNMR of the others (%)")
    area = next(one for one in metrics if one["name"] == "pauc")["values"]
    labels = [f"{name} (pAUC {percent(area[name])})" for name in lines]
    bound_looks = [{**BOUND, "linestyle": dashes} for dashes in BOUNDS.values()]
    legend_below(figure, [*labels, *BOUNDS], [*looks.values(), *bound_looks])
    save_plot(figure, paths)
