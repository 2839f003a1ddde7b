"""Plot of identification among distractors: Rank-1 over their number, as the MegaFace challenge shows it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from facebones.reporting.plots.style import (
    Paths,
    Style,
    curve_axes,
    in_percent,
    label_axes,
    legend_below,
    rate_limits,
    save_plot,
    styles_of,
)
from facebones.system.number_format import percent


def plot_distractors(
    curves: Mapping[str, Mapping[str, Any]],
    paths: Paths,
    title: str = "Identification among distractors",
    *,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Draw the Rank-1 rate of each model over the number of distractors, on a logarithmic axis.

    Args:
        curves: name -> "distractors" and "rank_1", (C,) each. The legend shows the rate among the most distractors.
        paths: one file or several; the suffix determines the format.
        title: heading.
        styles: name -> look, from `model_styles`; by default chosen for this plot alone.

    Raises:
        ConfigError: a format is not supported.
        ValueError: a model has no style, or a curve has other shapes.
    """
    looks = styles_of(curves, styles)
    figure, axes = curve_axes()
    lowest, labels = 1.0, []
    for name, curve in curves.items():
        count, rate = (np.asarray(curve[key], dtype=np.float64) for key in ("distractors", "rank_1"))
        axes.plot(count, rate, **looks[name])
        lowest = min(lowest, float(rate.min()))
        labels.append(f"{name} ({percent(float(rate[-1]))})")
    axes.set_xscale("log")
    axes.set_ylim(*rate_limits(lowest))
    in_percent(axes.yaxis)
    label_axes(axes, title, "Distractors", "Rank-1 (%)")
    legend_below(figure, labels, list(looks.values()))
    save_plot(figure, paths)
