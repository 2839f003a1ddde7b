"""Plots of ROC, CMC and DET curves: many models on one set, or one model on many sets.

Curves have up to millions of steps; they are thinned without a visible change before they are drawn.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.reporting.plots.style import (
    FloatArray,
    Paths,
    Style,
    curve_axes,
    in_percent,
    label_axes,
    legend_below,
    line_only,
    marker_only,
    rate_limits,
    save_plot,
    styles_of,
)
from facebones.statistics.curves import RocCurve, area_under_curve, true_accept_rate_at
from facebones.system.number_format import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from facebones.reporting.results import MetricResult

Band = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
Bars = tuple[FloatArray, FloatArray, FloatArray]

COLUMNS = 2000  # more than a plot has dots from left to right
BAR_DISTANCE = 0.04  # decades between the intervals of two models; all of them within
BARS_WIDTH = 0.16
LEAST_DECADES = 2
FPIR_MARKS = (0.01, 0.1)
HIGHEST_START = 0.1  # the FPIR axis begins here or lower, even if no impostor search measures it
LINEAR_RANKS = 20  # so many can be read one by one
MARKED_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
FULL_DECADES = 2  # an axis longer than this is labelled at powers of ten only


# ------------------------------------------------------------------------------------------------------ thinning


def decades(lowest: float, highest: float = 1.0) -> FloatArray:
    """Powers of ten from `lowest` to `highest`, inclusive, exactly as the literals 1e-3, 1e-2 ..."""
    first, last = int(np.floor(np.log10(lowest))), int(np.ceil(np.log10(highest)))
    powers = np.array([float(f"1e{exponent}") for exponent in range(first, last + 1)])
    return powers[(powers >= lowest) & (powers <= highest)]


def thin_steps(
    x_K: npt.NDArray[np.floating[Any]], y_K: npt.NDArray[np.floating[Any]], lowest: float
) -> tuple[FloatArray, FloatArray]:
    """Keep the corners that are visible on a logarithmic axis from `lowest` to 1.

    The steps have the height y_k from x_k up to the next x. At the edges of COLUMNS equally wide columns and at each
    power of ten the result is exact; in between, steps move sideways by less than a column.

    Args:
        x_K: (K,) ascending, at most 1.
        y_K: (K,) heights.
        lowest: start of the axis, between 0 and 1.

    Returns:
        x and y of the corners, each (M,), M <= COLUMNS + number of decades; the first x is at least `lowest`.
    """
    edges = np.union1d(np.geomspace(lowest, 1.0, COLUMNS), decades(lowest))
    last_up_to = np.unique(np.searchsorted(x_K, edges, side="right") - 1)
    last_up_to = last_up_to[last_up_to >= 0]
    x, y = (np.asarray(values[last_up_to], dtype=np.float64) for values in (x_K, y_K))
    corner = np.ones(x.size, dtype=np.bool_)
    corner[1:-1] = y[1:-1] != y[:-2]
    return np.maximum(x, lowest)[corner], y[corner]


def height_at(x_K: npt.NDArray[np.floating[Any]], y_K: npt.NDArray[np.floating[Any]], x: float) -> float | None:
    """Height of the steps at x; None before the first step."""
    index = int(np.searchsorted(x_K, x, side="right")) - 1
    return float(y_K[index]) if index >= 0 else None


# ------------------------------------------------------------------------------------------------------------ ROC


def plot_roc(
    curves: Mapping[str, RocCurve],
    paths: Paths,
    title: str = "Face verification",
    *,
    styles: Mapping[str, Style] | None = None,
    bands: Mapping[str, Band] | None = None,
    lowest_far: float | None = None,
) -> None:
    """Draw ROC curves over a logarithmic FAR axis, each from 1 / impostors, its lowest measurable FAR.

    The curves are steps without interpolation: the height at a FAR is the strict TAR at that FAR, with a marker at each
    power of ten. The TAR axis does not start at 0, but a little below the lowest curve.

    Args:
        curves: name -> curve; the legend shows each with its AUC, in this order.
        paths: one file or several; the suffix determines the format.
        title: heading; ", with 95 % intervals" is added if there are any.
        styles: name -> look, from `model_styles`; by default chosen for this plot alone.
        bands: name -> (FAR, lowest TAR, highest TAR), each (T,): intervals, drawn as vertical bars. Bars of several
            models are side by side around their FAR, where the markers are.
        lowest_far: start of the axis; by default the smallest 1 / impostors.

    Raises:
        DataError: there are no curves.
        ConfigError: a format is not supported.
        ValueError: a model has no style, a band has no curve, or the axis would not start between 0 and 1.
    """
    if not curves:
        raise DataError("no ROC curves to draw; evaluate at least one set")
    looks = styles_of(curves, styles)
    figure = roc_figure(curves, title, styles=looks, bands=bands, lowest_far=lowest_far)
    labels = [f"{name} (AUC {area_under_curve(curve):.6f})" for name, curve in curves.items()]
    legend_below(figure, labels, list(looks.values()))
    save_plot(figure, paths)


def roc_figure(
    curves: Mapping[str, RocCurve],
    title: str,
    *,
    styles: Mapping[str, Style],
    bands: Mapping[str, Band] | None = None,
    lowest_far: float | None = None,
) -> "Figure":
    """The figure of `plot_roc` for at least one curve, without its legend; names may share a look.

    Raises:
        ValueError: as `plot_roc`.
    """
    looks, bars = styles_of(curves, styles), _checked_bands(bands or {}, curves)
    start = _axis_start(curves) if lowest_far is None else lowest_far
    if not 0.0 < start < 1.0:
        raise ValueError(f"lowest_far: {start} cannot start a logarithmic axis up to 1; give a number between 0 and 1")
    figure, axes = curve_axes()
    for name, curve in curves.items():
        _draw_curve(axes, curve, looks[name], start, bars[name][0] if name in bars else [])
    for (name, bar), factor in zip(bars.items(), _side_by_side(len(bars)), strict=True):
        _draw_bars(axes, bar, looks[name], factor)
    axes.set_xscale("log")
    axes.set_xlim(start * 10**-BARS_WIDTH if bars else start, 1.0)  # bars at the first FAR are on both sides of it
    axes.set_ylim(*rate_limits(_lowest_rate(curves, bars, start)))
    in_percent(axes.yaxis)
    label_axes(
        axes, f"{title}, with 95 % intervals" if bars else title, "False accept rate (FAR)", "True accept rate (TAR, %)"
    )
    return figure


def roc_bands(metrics: Iterable["MetricResult"], models: Iterable[str]) -> dict[str, Band]:
    """For `plot_roc`: of each model the intervals of its strict TAR at the evaluated FARs."""
    strict = [metric for metric in metrics if set(metric.at) == {"far"} and metric.rule == "strict"]
    rates = {metric.at["far"]: metric.intervals for metric in strict}
    found: dict[str, Band] = {}
    for model in models:
        known = [(far, rates[far][model]) for far in sorted(rates) if model in rates[far]]
        if known:
            far, low, high = np.array([(far, interval["low"], interval["high"]) for far, interval in known]).T
            found[model] = (far, low, high)
    return found


def _axis_start(curves: Mapping[str, RocCurve]) -> float:
    """The lowest FAR that any curve measures; the axis has at least two decades."""
    return min(10.0**-LEAST_DECADES, *(1 / curve.impostors for curve in curves.values()))


def _draw_curve(axes: "Axes", curve: RocCurve, style: Style, start: float, targets: npt.ArrayLike) -> None:
    """Draw the steps, with markers at the powers of ten and at the targets."""
    lowest = max(start, 1 / curve.impostors)
    far, tar = thin_steps(curve.false_accept_rate, curve.true_accept_rate, lowest)
    axes.step(far, tar, where="post", **line_only(style))
    marked = np.union1d(decades(lowest, 0.1), targets)
    axes.plot(marked, [true_accept_rate_at(curve, rate) for rate in marked], **marker_only(style))


def _side_by_side(models: int) -> FloatArray:
    """Factors around 1, (N,), by which the intervals of the models move on the FAR axis."""
    step = min(BAR_DISTANCE, BARS_WIDTH / models) if models else 0.0
    return np.asarray(10.0 ** (step * (np.arange(models) - (models - 1) / 2)))


def _draw_bars(axes: "Axes", bars: Bars, style: Style, factor: float) -> None:
    """Draw intervals as bars with caps, moved by a factor."""
    far, low, high = bars
    axes.vlines(far * factor, low, high, color=style["color"], linewidth=1.0)
    for end in (low, high):
        axes.plot(far * factor, end, color=style["color"], linestyle="", marker="_", markersize=4.0)


def _lowest_rate(curves: Mapping[str, RocCurve], bars: Mapping[str, Bars], start: float) -> float:
    """The lowest TAR that is drawn."""
    lines = [true_accept_rate_at(curve, max(start, 1 / curve.impostors)) for curve in curves.values()]
    return min(lines + [float(rate) for far, low, _ in bars.values() for rate in low[far >= start]])


def _checked_bands(bands: Mapping[str, Band], curves: Mapping[str, RocCurve]) -> dict[str, Bars]:
    checked = {}
    for name, band in bands.items():
        if name not in curves:
            raise ValueError(f"{name}: a band without a curve; give bands of the models that are drawn")
        far, low, high = (np.asarray(part, dtype=np.float64) for part in band)
        if not far.shape == low.shape == high.shape or far.ndim != 1 or not (low <= high).all():
            raise ValueError(f"{name}: not a band; give FAR, lowest and highest TAR of one shape (T,)")
        checked[name] = (far, low, high)
    return checked


# ---------------------------------------------------------------------------------------------------- CMC and DET


def plot_cmc(
    hit_rates: Mapping[str, npt.ArrayLike],
    paths: Paths,
    title: str = "Closed-set identification",
    *,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Draw cumulative match characteristics: the share of probes whose subject is among the first k candidates.

    Up to 20 ranks the axis is linear with a marker at each rank; beyond, it is logarithmic with markers at 1, 2, 5 ...

    Args:
        hit_rates: name -> (K,) hit rate at ranks 1 to K; K may differ. The legend shows the hit rate at rank 1.
        paths: one file or several; the suffix determines the format.
        title: heading.
        styles: name -> look, from `model_styles`; by default chosen for this plot alone.

    Raises:
        DataError: there are no curves.
        ConfigError: a format is not supported.
        ValueError: a model has no style, or hit rates are not ascending rates.
    """
    if not hit_rates:
        raise DataError("no CMC curves to draw; evaluate at least one model")
    looks = styles_of(hit_rates, styles)
    figure = cmc_figure(hit_rates, title, styles=looks)
    labels = [f"{name} (rank 1: {percent(float(np.asarray(rates)[0]))})" for name, rates in hit_rates.items()]
    legend_below(figure, labels, list(looks.values()))
    save_plot(figure, paths)


def cmc_figure(hit_rates: Mapping[str, npt.ArrayLike], title: str, *, styles: Mapping[str, Style]) -> "Figure":
    """The figure of `plot_cmc` for at least one curve, without its legend; names may share a look.

    Raises:
        ValueError: as `plot_cmc`.
    """
    curves = {name: _checked_hit_rates(name, rates) for name, rates in hit_rates.items()}
    looks = styles_of(curves, styles)
    figure, axes = curve_axes()
    ranks = max(rates.size for rates in curves.values())
    for name, rates in curves.items():
        marked = [rank - 1 for rank in MARKED_RANKS if rank <= rates.size] if ranks > LINEAR_RANKS else None
        axes.plot(np.arange(1, rates.size + 1), rates, markevery=marked, **looks[name])
    _rank_axis(axes, ranks)
    highest = max(float(rates[-1]) for rates in curves.values())
    axes.set_ylim(*rate_limits(min(float(rates[0]) for rates in curves.values()), highest))
    in_percent(axes.yaxis)
    label_axes(axes, title, "Rank", "Hit rate (%)")
    return figure


def plot_det(
    errors: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
    paths: Paths,
    title: str = "Open-set identification",
    *,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Draw detection error tradeoffs: FNIR over FPIR, both logarithmic and in percent, as steps without interpolation.

    The height at an FPIR is the lowest FNIR of all thresholds with at most that FPIR. FPIR 1 % and 10 % are marked. A
    line with an FNIR of 0 leaves the plot at the bottom.

    Args:
        errors: name -> (FPIR, FNIR), each (K,), by falling threshold: FPIR ascends, FNIR descends.
        paths: one file or several; the suffix determines the format.
        title: heading.
        styles: name -> look, from `model_styles`; by default chosen for this plot alone.

    Raises:
        DataError: there are no curves.
        ConfigError: a format is not supported.
        ValueError: a model has no style, or a curve is not valid.
    """
    if not errors:
        raise DataError("no DET curves to draw; evaluate at least one model")
    curves = {name: _checked_errors(name, *pair) for name, pair in errors.items()}
    looks = styles_of(curves, styles)
    start = min(HIGHEST_START, *(float(fpir[fpir > 0].min(initial=1.0)) for fpir, _ in curves.values()))
    thinned = {name: thin_steps(fpir, fnir, start) for name, (fpir, fnir) in curves.items()}
    low, high = _error_limits([fnir for _, fnir in thinned.values()])
    figure, axes = curve_axes()
    for name, (fpir, fnir) in thinned.items():
        axes.step(fpir, np.maximum(fnir, low / 10), where="post", **line_only(looks[name]))
        marks = [(mark, height_at(*curves[name], mark)) for mark in FPIR_MARKS if mark >= start]
        axes.plot(*np.array([mark for mark in marks if mark[1]]).reshape(-1, 2).T, **marker_only(looks[name]))
    for mark in (mark for mark in FPIR_MARKS if mark >= start):
        axes.axvline(mark, color="#888888", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.9)
    for axis, limits in ((axes.xaxis, (start, 1.0)), (axes.yaxis, (low, high))):
        _error_axis(axes, axis.axis_name, limits)
    label_axes(axes, title, "FPIR (%)", "FNIR (1 - TPIR, %)")
    legend_below(figure, [_det_label(name, *curve) for name, curve in curves.items()], list(looks.values()))
    save_plot(figure, paths)


def _det_label(name: str, fpir: FloatArray, fnir: FloatArray) -> str:
    """The name, and the FPIR from which FNIR is 0 and the line is below the logarithmic axis."""
    if fnir[-1] > 0:
        return name
    first = float(fpir[np.argmax(fnir == 0)])
    return f"{name} (FNIR 0 {f'from FPIR {100 * first:.3g} %' if first else 'throughout'})"


def _checked_hit_rates(name: str, rates: npt.ArrayLike) -> FloatArray:
    checked = np.asarray(rates, dtype=np.float64)
    if checked.ndim != 1 or not checked.size or not _are_rates(checked) or (np.diff(checked) < 0).any():
        raise ValueError(f"{name}: not a CMC curve; give ascending hit rates (K,) from 0 to 1")
    return checked


def _checked_errors(name: str, fpir: npt.ArrayLike, fnir: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(fpir, dtype=np.float64), np.asarray(fnir, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size or not (_are_rates(x) and _are_rates(y)):
        raise ValueError(f"{name}: not a DET curve; give FPIR and FNIR (K,), (K,) from 0 to 1")
    if (np.diff(x) < 0).any() or (np.diff(y) > 0).any():
        raise ValueError(f"{name}: not a DET curve; order the points by falling threshold: FPIR rises, FNIR falls")
    return x, y


def _are_rates(values: FloatArray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _rank_axis(axes: "Axes", ranks: int) -> None:
    """A linear axis for few ranks, else a logarithmic one, with whole numbers at the ticks."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

    if ranks <= LINEAR_RANKS:
        axes.set_xlim(0.8, ranks + 0.2)
        axes.xaxis.set_major_locator(FixedLocator(range(1, ranks + 1)))
        return
    axes.set_xscale("log")
    axes.set_xlim(0.95, 1.05 * ranks)
    axes.xaxis.set_major_locator(FixedLocator([rank for rank in MARKED_RANKS if rank <= ranks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _error_limits(fnirs: list[FloatArray]) -> tuple[float, float]:
    """Limits of the FNIR axis, around the values above 0."""
    positive = np.concatenate([fnir[fnir > 0] for fnir in fnirs])
    if not positive.size:
        return 1e-3, 1.0
    low, high = float(positive.min()), float(positive.max())
    return min(low / 1.15, high / 2), min(1.15 * high, 1.03)


def _error_axis(axes: "Axes", which: str, limits: tuple[float, float]) -> None:
    from matplotlib.ticker import LogLocator

    axis = getattr(axes, f"{which}axis")
    axes.set(**{f"{which}scale": "log", f"{which}lim": limits})
    steps = (1.0,) if which == "x" or limits[1] / limits[0] > 10**FULL_DECADES else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps, numticks=40))
    in_percent(axis)
