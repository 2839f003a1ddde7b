"""The base of all plots: figures, the look of a model's line, labels, legends and files.

Plots use matplotlib's object interface and no global state. The suffix of a file determines its format (.png, .svg,
.pdf ...). Equal input gives equal bytes: files contain no dates.
"""

import os
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facebones.errors import ConfigError
from facebones.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text

    from facebones.reporting.results import Results

FloatArray = npt.NDArray[np.float64]
Style = dict[str, Any]
PathName = str | os.PathLike[str]
Paths = PathName | Sequence[PathName]

# M. Okabe and K. Ito, "Color Universal Design" (2008): distinguishable for colour-blind readers; without yellow, which
# is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
MARKERS = ("o", "s", "^", "D", "v")
RESOLUTION = 150  # dots per inch
LINE_WIDTH = 1.6
PLOT_KINDS = ("png", "pdf")
# Journals ask for TrueType fonts in PDFs; a fixed salt makes the ids in an SVG reproducible.
FILE_SETTINGS: Any = {"pdf.fonttype": 42, "svg.hashsalt": "facebones"}
NO_LAYOUT: Any = {"figure.autolayout": False, "figure.constrained_layout.use": False}
UNDATED: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
# Columns of a legend, and letters per line at which its names wrap: the first layout that fits is used.
LEGEND_LAYOUTS = ((3, None), (2, None), (1, None), (1, 80), (1, 40))
LEGEND_MARGIN = 0.15  # inches on either side


def model_styles(names: Iterable[str]) -> dict[str, Style]:
    """Give each model one look for all plots of a report: colour, dash and marker.

    The numbers of colours, dashes and markers have no common divisor: the first 28 models differ in colour or dash, the
    first 140 in one of the three, and neighbours in all three, so that they are distinguishable in a grey print.

    Args:
        names: the models, in the order of the legends; equal names share a look.
    """
    return {
        name: {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[index % len(DASHES)],
            "marker": MARKERS[index % len(MARKERS)],
            "linewidth": LINE_WIDTH,
            "markersize": 4.0,
        }
        for index, name in enumerate(dict.fromkeys(names))
    }


def variant_styles(results: "Results") -> dict[str, Style]:
    """The look of each variant: that of `model_styles`, but with factors and several backbones by both.

    Then variants of equal levels share the colour, and those of one backbone the marker and the dash, unless there are
    more of them than looks.
    """
    styles = model_styles(results.variants)
    levels = list(dict.fromkeys(_levels(results, name) for name in results.variants))
    several = 1 < len(results.backbones) < len(results.variants)
    if not several or len(levels) > len(COLOURS) or len(results.backbones) > len(DASHES):
        return styles
    for name, style in styles.items():
        place = results.backbones.index(results.first_run(name).backbone)
        colour = COLOURS[levels.index(_levels(results, name))]
        style |= {"color": colour, "linestyle": DASHES[place], "marker": MARKERS[place]}
    return styles


def side_by_side(results: "Results") -> dict[str, float]:
    """Steps by which each variant's mark is moved along the axis of costs: those of one backbone cost the same.

    Without factors nothing is moved.
    """
    shifts = dict.fromkeys(results.variants, 0.0)
    if results.factors:
        for backbone in results.backbones:
            own = [name for name in results.variants if results.first_run(name).backbone == backbone]
            shifts |= {name: place - (len(own) - 1) / 2 for place, name in enumerate(own)}
    return shifts


def _levels(results: "Results", variant: str) -> tuple[str | None, ...]:
    run = results.first_run(variant)
    return tuple(run.levels.get(factor) for factor in results.factors)


def styles_of(names: Iterable[str], styles: Mapping[str, Style] | None) -> dict[str, Style]:
    """Look up the styles of the models of one plot, or choose them if none are given.

    Raises:
        ValueError: a model has no style.
    """
    names = list(names)
    if styles is None:
        return model_styles(names)
    if missing := [name for name in names if name not in styles]:
        raise ValueError(f"{missing[0]} has no style; give those of all models to model_styles")
    return {name: dict(styles[name]) for name in names}


def line_only(style: Style) -> Style:
    """The style without markers, for lines of many points."""
    return {key: value for key, value in style.items() if not key.startswith("marker")}


def marker_only(style: Style) -> Style:
    """The style without a line, for single points."""
    return style | {"linestyle": ""}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=RESOLUTION, layout="constrained")


def curve_axes() -> tuple["Figure", "Axes"]:
    """The figure and axes of a plot of curves; one size for a whole report."""
    figure = new_figure(7.6, 4.8)
    return figure, figure.add_subplot()


def plot_paths(base: PathName, kinds: Sequence[str] = PLOT_KINDS) -> tuple[Path, ...]:
    """Files of one plot in several formats: "out/roc" -> out/roc.png, out/roc.pdf."""
    return tuple(Path(f"{os.fspath(base)}.{kind}") for kind in kinds)


@contextmanager
def missing_glyphs() -> Iterator[None]:
    """Draw letters that the font lacks as boxes, without a warning for each letter and layout."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from ", UserWarning)
        yield


@missing_glyphs()
def fix_layout(figure: "Figure") -> None:
    """Compute the layout once and keep it: the position of the axes is known, and each file is drawn once.

    With a layout engine, matplotlib draws a figure twice for each file, the first time for the layout alone.
    """
    from matplotlib import rc_context

    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        with rc_context(NO_LAYOUT):
            figure.set_layout_engine(None)


@missing_glyphs()
def save_plot(figure: "Figure", paths: Paths) -> None:
    """Write a figure into one file or several, each atomically; the suffix determines the format.

    The layout is computed once, for all files.

    Raises:
        ConfigError: a format is not supported; then nothing is written.
        RunError, ConfigError: the disk is full, or the place cannot be written.
    """
    from matplotlib import rc_context

    files = [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    kinds = [check_plot_name(path) for path in files]
    fix_layout(figure)
    with rc_context(FILE_SETTINGS):
        for path, kind in zip(files, kinds, strict=True):
            drawn = BytesIO()  # matplotlib's PDF writer hides a full disk behind an AttributeError of its own
            figure.savefig(drawn, format=kind, metadata=UNDATED.get(kind))
            with atomic_write(path) as file:
                file.write(drawn.getbuffer())


def check_plot_name(path: Path) -> str:
    """Check before any work that a plot can be written in the format that a file's suffix names.

    Returns:
        the format, such as "png".

    Raises:
        ConfigError: it is not supported.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    kind = path.suffix.removeprefix(".").lower()
    known = FigureCanvasBase.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"{path}: plots cannot be written as '{path.suffix}'; use one of {', '.join(sorted(known))}")
    return kind


def label_axes(axes: "Axes", title: str | Sequence[str], x: str, y: str) -> None:
    """Write the title, of one line or several, and the axis labels, and draw the grid behind the lines."""
    set_text(axes.set_title("", fontsize=10), *([title] if isinstance(title, str) else title))
    set_text(axes.xaxis.label, x)
    set_text(axes.yaxis.label, y)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def rate_limits(lowest: float, highest: float = 1.0) -> tuple[float, float]:
    """Limits of an axis of rates: close around the curves, so that their differences are visible."""
    span = max(highest - lowest, 0.01)
    return max(-0.01 * span, highest - 1.08 * span), highest + 0.03 * span


def in_percent(axis: "Axis") -> None:
    """Label an axis of rates in percent, without exponents, and with equal digits at all ticks of a linear axis.

    The label of the axis should say that it is percent.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def digits(rate: float) -> int:
        return len(f"{100 * rate:.10f}".rstrip("0").partition(".")[2])

    def percent(rate: float, _: int | None) -> str:
        even = axis.get_scale() == "linear"
        return f"{100 * rate:.{max(map(digits, axis.get_majorticklocs())) if even else digits(rate)}f}"

    axis.set_major_formatter(FuncFormatter(percent))
    axis.set_minor_formatter(NullFormatter())


@missing_glyphs()
def legend_below(figure: "Figure", labels: Sequence[str], styles: Sequence[Style]) -> None:
    """Put the legend below the axes, where it hides no line; the figure grows by its height."""
    width = figure.get_figwidth() - 2 * LEGEND_MARGIN
    for columns, letters in LEGEND_LAYOUTS:
        if columns > max(len(labels), 1):
            continue
        legend = _legend(figure, labels, styles, columns, letters)
        extent = legend.get_window_extent()
        if extent.width <= width * figure.dpi or (columns, letters) == LEGEND_LAYOUTS[-1]:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def _legend(
    figure: "Figure", labels: Sequence[str], styles: Sequence[Style], columns: int, letters: int | None
) -> "Legend":
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style) for style in styles]
    places = [str(number) for number in range(len(labels))]  # matplotlib hides names that begin with "_"
    legend = figure.legend(
        handles, places, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False, handlelength=3.2
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        set_text(text, *(textwrap.wrap(drawable(label), letters) if letters else [label]))
    return legend


def set_text(text: "Text", *lines: str) -> None:
    """Write names literally: a "$" starts no formula, and no byte of a file's name stops the drawing."""
    text.set_parse_math(False)
    text.set_text("\n".join(map(drawable, lines)))


def drawable(content: str) -> str:
    r"""The name in one line, with characters that no font can draw as escapes: control characters, undecodable bytes.

    >>> print(drawable("a\x07b\nc"))
    a\x07b\nc
    """
    return "".join(letter if _is_drawn(letter) else letter.encode("unicode_escape").decode() for letter in content)


def _is_drawn(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"  # spaces of every width
