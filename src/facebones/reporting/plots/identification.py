"""Pictures of 1:N identification: CMC of the closed set, DET of the open set."""

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
from facebones.reporting.plots.thinning import height_at, thin_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FPIR_MARKS = (0.01, 0.1)
HIGHEST_START = 0.1  # the FPIR axis begins there or lower, but where no impostor search has measured it
LINEAR_RANKS = 20  # so many can be read one by one
MARKED_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
FULL_DECADES = 2  # from there on only the powers of ten are labelled


def plot_cmc(
    hit_rates: Mapping[str, npt.ArrayLike],
    paths: Paths,
    title: str = "Closed-set identification",
    *,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Draw cumulative match characteristics: the share of the probes whose subject is among the first k.

    Up to 20 ranks the axis is linear and every rank has its marker; beyond, it is logarithmic, and 1, 2, 5 ... have.

    Args:
        hit_rates: name -> (K,) hit rate at ranks 1 to K; K may differ. The legend gives each with that at rank 1.
        paths: where to write, one file or several; the suffix decides the format.
        title: heading of the picture.
        styles: name -> look, of `model_styles`; without, they are chosen for this picture alone.

    Raises:
        DataError: there are no curves.
        ConfigError: a format that cannot be written.
        ValueError: a model has no style, or hit rates are not rates that never fall.
    """
    if not hit_rates:
        raise DataError("no CMC curves to draw; evaluate at least one model")
    looks = styles_of(hit_rates, styles)
    figure = cmc_figure(hit_rates, title, styles=looks)
    labels = [f"{name} (rank 1: {100 * np.asarray(rates)[0]:.2f} %)" for name, rates in hit_rates.items()]
    legend_below(figure, labels, list(looks.values()))
    save_pictures(figure, paths)


def cmc_figure(hit_rates: Mapping[str, npt.ArrayLike], title: str, *, styles: Mapping[str, Style]) -> "Figure":
    """The picture of `plot_cmc` of at least one curve, without its legend; names may share a look.

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
    """Draw detection error tradeoffs: FNIR over FPIR, both logarithmic, in percent, as steps without interpolation.

    The height at an FPIR is the lowest FNIR among the thresholds whose FPIR is at most that. FPIR 1 % and 10 % are
    marked. An FNIR of 0 lies below a logarithmic axis: such a line leaves the picture at the bottom.

    Args:
        errors: name -> (FPIR, FNIR), each (K,), as the threshold falls: FPIR never falls and FNIR never rises.
        paths: where to write, one file or several; the suffix decides the format.
        title: heading of the picture.
        styles: name -> look, of `model_styles`; without, they are chosen for this picture alone.

    Raises:
        DataError: there are no curves.
        ConfigError: a format that cannot be written.
        ValueError: a model has no style, or a curve is none.
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
    save_pictures(figure, paths)


def _det_label(name: str, fpir: FloatArray, fnir: FloatArray) -> str:
    """The name, and from where on the line has left a logarithmic axis because nobody is missed."""
    if fnir[-1] > 0:
        return name
    first = float(fpir[np.argmax(fnir == 0)])
    return f"{name} (FNIR 0 {f'from FPIR {100 * first:.3g} % on' if first else 'throughout'})"


def _checked_hit_rates(name: str, rates: npt.ArrayLike) -> FloatArray:
    checked = np.asarray(rates, dtype=np.float64)
    if checked.ndim != 1 or not checked.size or not _are_rates(checked) or (np.diff(checked) < 0).any():
        raise ValueError(f"{name}: no CMC curve; give hit rates (K,) from 0 to 1 that never fall")
    return checked


def _checked_errors(name: str, fpir: npt.ArrayLike, fnir: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(fpir, dtype=np.float64), np.asarray(fnir, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size or not (_are_rates(x) and _are_rates(y)):
        raise ValueError(f"{name}: no DET curve; give FPIR and FNIR (K,), (K,) from 0 to 1")
    if (np.diff(x) < 0).any() or (np.diff(y) > 0).any():
        raise ValueError(f"{name}: no DET curve; order the points by falling threshold: FPIR rises, FNIR falls")
    return x, y


def _are_rates(values: FloatArray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _rank_axis(axes: "Axes", ranks: int) -> None:
    """Choose the axis on which the ranks read best, with whole numbers at the ticks."""
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
    """Limits of the FNIR axis, around what is above 0."""
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
