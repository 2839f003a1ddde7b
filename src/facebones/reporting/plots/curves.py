"""The picture of ROC curves: many models on one set, or one model on many sets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

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
    save_pictures,
    styles_of,
)
from facebones.reporting.plots.thinning import decades, thin_steps
from facebones.statistics.curves import RocCurve, area_under_curve, true_accept_rate_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Band = tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
Bars = tuple[FloatArray, FloatArray, FloatArray]

BAR_DISTANCE = 0.04  # decades between the intervals of two models, but all within:
BARS_WIDTH = 0.16
LEAST_DECADES = 2


def plot_roc(
    curves: Mapping[str, RocCurve],
    paths: Paths,
    title: str = "Face verification",
    *,
    styles: Mapping[str, Style] | None = None,
    bands: Mapping[str, Band] | None = None,
    lowest_far: float | None = None,
) -> None:
    """Draw ROC curves over a logarithmic FAR axis, each from its 1 / impostors on, below which nothing is measured.

    The curves are drawn as steps, without interpolation: the height at a FAR is the strict TAR at that FAR, which a
    marker shows at each power of ten. The TAR axis begins a little below the lowest curve, so look at its labels.

    Args:
        curves: name -> curve; the legend gives each with its AUC, in this order.
        paths: where to write, one file or several; the suffix decides the format.
        title: heading of the picture; that there are intervals is added where there are.
        styles: name -> look, of `model_styles`; without, they are chosen for this picture alone.
        bands: name -> (FAR, lowest TAR, highest TAR), each (T,): intervals, drawn as upright bars. Those of several
            models stand side by side around their FAR, which is where the markers are.
        lowest_far: where the axis begins; without, at the smallest 1 / impostors.

    Raises:
        DataError: there are no curves.
        ConfigError: a format that cannot be written.
        ValueError: a model has no style, a band belongs to no curve, or the axis would not begin between 0 and 1.
    """
    if not curves:
        raise DataError("no ROC curves to draw; evaluate at least one set")
    looks = styles_of(curves, styles)
    figure = roc_figure(curves, title, styles=looks, bands=bands, lowest_far=lowest_far)
    labels = [f"{name} (AUC {area_under_curve(curve):.6f})" for name, curve in curves.items()]
    legend_below(figure, labels, list(looks.values()))
    save_pictures(figure, paths)


def roc_figure(
    curves: Mapping[str, RocCurve],
    title: str,
    *,
    styles: Mapping[str, Style],
    bands: Mapping[str, Band] | None = None,
    lowest_far: float | None = None,
) -> "Figure":
    """The picture of `plot_roc` of at least one curve, without its legend; names may share a look.

    Raises:
        ValueError: as `plot_roc`.
    """
    looks, bars = styles_of(curves, styles), _checked_bands(bands or {}, curves)
    start = _axis_start(curves) if lowest_far is None else lowest_far
    if not 0.0 < start < 1.0:
        raise ValueError(f"lowest_far: {start} cannot begin a logarithmic axis up to 1; give a number in between")
    figure, axes = curve_axes()
    for name, curve in curves.items():
        _draw_curve(axes, curve, looks[name], start, bars[name][0] if name in bars else [])
    for (name, bar), factor in zip(bars.items(), _side_by_side(len(bars)), strict=True):
        _draw_bars(axes, bar, looks[name], factor)
    axes.set_xscale("log")
    axes.set_xlim(start * 10**-BARS_WIDTH if bars else start, 1.0)  # those at the first FAR stand on both sides of it
    axes.set_ylim(*rate_limits(_lowest_rate(curves, bars, start)))
    in_percent(axes.yaxis)
    label_axes(
        axes, f"{title}, with 95 % intervals" if bars else title, "False accept rate (FAR)", "True accept rate (TAR, %)"
    )
    return figure


def _axis_start(curves: Mapping[str, RocCurve]) -> float:
    """The lowest FAR that any of the curves measures, and at least two decades."""
    return min(10.0**-LEAST_DECADES, *(1 / curve.impostors for curve in curves.values()))


def _draw_curve(axes: "Axes", curve: RocCurve, style: Style, start: float, targets: npt.ArrayLike) -> None:
    """Draw the steps, and markers at the powers of ten and at the targets."""
    lowest = max(start, 1 / curve.impostors)
    far, tar = thin_steps(curve.false_accept_rate, curve.true_accept_rate, lowest)
    axes.step(far, tar, where="post", **line_only(style))
    marked = np.union1d(decades(lowest, 0.1), targets)
    axes.plot(marked, [true_accept_rate_at(curve, rate) for rate in marked], **marker_only(style))


def _side_by_side(models: int) -> FloatArray:
    """Factors by which the intervals of the models are moved on the FAR axis, (N,), around 1."""
    step = min(BAR_DISTANCE, BARS_WIDTH / models) if models else 0.0
    return np.asarray(10.0 ** (step * (np.arange(models) - (models - 1) / 2)))


def _draw_bars(axes: "Axes", bars: Bars, style: Style, factor: float) -> None:
    """Draw intervals as bars with caps, moved aside by a factor."""
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
            raise ValueError(f"{name}: an interval, but no curve; give bands of the models that are drawn")
        far, low, high = (np.asarray(part, dtype=np.float64) for part in band)
        if not far.shape == low.shape == high.shape or far.ndim != 1 or not (low <= high).all():
            raise ValueError(f"{name}: no band; give FAR, lowest and highest TAR of one shape (T,)")
        checked[name] = (far, low, high)
    return checked
