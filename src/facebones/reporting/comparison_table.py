"""Compared figures for people, from their JSON: cells with intervals and marks, tests of models, bars for pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from facebones.reporting.console import MARKS, format_interval, mark_best, print_table
from facebones.reporting.plots.curves import Band
from facebones.statistics.bootstrap import Unmeasured
from facebones.statistics.significance import FigureComparison

FigureJson = Mapping[str, Any]  # of a FigureComparison or an Unmeasured

TAR_NAME = "TAR at FAR "
MOST_MODELS_BY_PAIRS = 4  # with more, the tests are printed against the best only; the JSON has all


def figure_cells(figure: FigureJson, models: Sequence[str]) -> list[str]:
    """Each model's value with its interval; with several models the best is marked, and what is as good as it."""
    if figure["values"] is None:
        return ["-"] * len(models)
    intervals = figure["intervals"]
    cells = [
        format_interval(figure["values"][model], intervals[model]["low"], intervals[model]["high"]) for model in models
    ]
    if len(models) == 1:
        return cells
    alike = [model in figure["not_different_from_best"] for model in models]
    return mark_best(cells, models.index(figure["best"]), alike)


def print_tests(figures: Mapping[str, FigureJson], models: Sequence[str], title: str) -> None:
    """Print the tests of the figures between every two models, or against the best where there are many models."""
    if len(models) < 2:
        return
    rows = []
    for name, figure in figures.items():
        if figure["values"] is not None:
            shown = figure["comparisons"]
            if len(models) > MOST_MODELS_BY_PAIRS:
                shown = [one for one in shown if figure["best"] in (one["first"], one["second"])]
            rows += [_test_row(name, comparison) for comparison in shown]
    columns = ("figure", "models", "difference in points [95 %]", "p", "p after Holm", "test")
    print(MARKS)
    print_table(columns, rows, title=f"{title}: differences")


def print_unmeasured(figures: Mapping[str, FigureJson]) -> None:
    """Say which figures the data cannot give, and why."""
    for name, figure in figures.items():
        if figure["values"] is None:
            print(f"{name}: not measured; {figure['reason']}")


def tar_bands(figures: Mapping[str, FigureComparison | Unmeasured]) -> dict[str, Band]:
    """For `plot_roc`: of each model the intervals of its TAR at the measured FARs."""
    measured = {
        float(name.removeprefix(TAR_NAME)): figure
        for name, figure in figures.items()
        if name.startswith(TAR_NAME) and isinstance(figure, FigureComparison)
    }
    if not measured:
        return {}
    far = np.array(list(measured))
    models = next(iter(measured.values())).values
    return {
        model: (
            far,
            np.array([figure.intervals[model].low for figure in measured.values()]),
            np.array([figure.intervals[model].high for figure in measured.values()]),
        )
        for model in models
    }


def format_p(p_value: float) -> str:
    """Write a p-value with as many digits as it can carry.

    >>> format_p(0.0312), format_p(0.00001)
    ('0.031', '< 0.0001')
    """
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}" if p_value < 0.01 else f"{p_value:.3f}"


def _test_row(name: str, comparison: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = (100 * comparison["interval"][end] for end in ("low", "high"))
    return (
        name,
        f"{comparison['first']} - {comparison['second']}",
        f"{100 * comparison['difference']:+.2f} [{low:+.2f}, {high:+.2f}]",
        format_p(comparison["p_value"]),
        format_p(comparison["adjusted"]),
        comparison["method"],
    )
