"""The tests of every two backbones by one metric as a heat map: a plot for papers, and a table for the page.

On the page it is a table with coloured cells, so that its text can be selected and read aloud.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from facebones.reporting.plots.labels import short_names
from facebones.reporting.plots.style import new_figure, set_text
from facebones.reporting.results import MetricResult, Results
from facebones.reporting.variant_tests import VariantTest
from facebones.system.number_format import MINUS, p_words, percent, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

Colour = tuple[float, float, float, float]  # red, green, blue and opacity, from 0 to 1

WHITE: Colour = (1.0, 1.0, 1.0, 1.0)
CELL = (0.56, 0.36)  # inches
LETTER = 0.075  # inches of width, about
FRAME = (1.7, 1.0)  # inches for the scale and the heading
NAME_SIZE = 8.0
CELL_SIZE = 7.0
SLANT = 50  # degrees
SCALE = "PuOr"  # diverging, white in the middle, distinguishable for colour-blind readers (C. Brewer)
STRONGEST = 0.85  # of the scale: its very ends are nearly black
NOT_TESTED = "#e4e4e4"
MOST_TINT = 0.42  # of the colour in a cell of the page: more would make its text hard to read
HATCH: dict[str, Any] = {"hatch": "////", "edgecolor": "#c4c4c4", "facecolor": "white", "linewidth": 0}


def heat_map_plots(results: Results) -> dict[tuple[str, ...], Callable[[], "Figure"]]:
    """Functions that draw the tests of each main metric that has tests, by the parts of the plot's name."""
    return {
        ("tests", metric.title): partial(_heat_map, results, metric)
        for metric in results.main_metrics()
        if results.tests(metric)
    }


def _heat_map(results: Results, metric: MetricResult) -> "Figure":
    """A cell is its row minus its column, in points, coloured if significant.

    Rows and columns start with the best backbone.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = results.ranking(metric)
    tests = results.tests(metric)
    widest = max((abs(100 * test.difference) for test in tests if test.significant), default=1.0)
    scale, colours = Normalize(-widest / STRONGEST, widest / STRONGEST), colormaps[SCALE]
    longest = max(map(len, short_names(names))) * LETTER
    figure = new_figure(FRAME[0] + longest + CELL[0] * len(names), FRAME[1] + 0.8 * longest + CELL[1] * len(names))
    axes = figure.add_subplot()
    _draw_grid(axes, names)
    cells: dict[tuple[int, int], tuple[float, Colour | None]] = {}
    for test in tests:
        first, second = names.index(test.first), names.index(test.second)
        for place, sign in (((first, second), 1), ((second, first), -1)):
            difference = sign * test.difference
            cells[place] = (difference, colours(scale(100 * difference)) if test.significant else None)
    _draw_cells(axes, cells)
    if any(test.significant for test in tests):
        _draw_scale(figure, axes, ScalarMappable(scale, colours))
    title = figure.suptitle("", fontsize=10)
    set_text(title, f"{metric.title}: row minus column, in points", "hatched: not significant at 5 %")
    return figure


def _draw_scale(figure: "Figure", axes: "Axes", mappable: "ScalarMappable") -> None:
    bar = figure.colorbar(mappable, ax=axes, fraction=0.05, pad=0.02, aspect=25)
    bar.set_label("Row minus column (points)", fontsize=NAME_SIZE)
    bar.ax.tick_params(labelsize=CELL_SIZE)


def _draw_grid(axes: "Axes", names: list[str]) -> None:
    """Draw empty cells, with the names beside and above them."""
    count = len(names)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), facecolor=NOT_TESTED)
    axes.xaxis.tick_top()
    slanted: dict[str, Any] = {"rotation": SLANT, "ha": "left", "va": "bottom", "rotation_mode": "anchor"}
    straight: dict[str, Any] = {}
    for axis, options in ((axes.xaxis, slanted), (axes.yaxis, straight)):
        axis.set_ticks(range(count), short_names(names), fontsize=NAME_SIZE, **options)
        for label in axis.get_ticklabels():
            label.set_parse_math(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_cells(axes: "Axes", cells: Mapping[tuple[int, int], tuple[float, Colour | None]]) -> None:
    """Draw the cells by row and column: the difference and its colour; without a colour, a cell is hatched."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    squares = {place: Rectangle((place[1] - 0.5, place[0] - 0.5), 1, 1) for place in cells}
    coloured = [place for place, (_, colour) in cells.items() if colour]
    hatched = [place for place in cells if place not in coloured]
    # One artist for all cells of a kind: matplotlib takes as long for one square as for a hundred in a collection.
    for places, look in (
        (coloured, {"facecolor": [cells[place][1] for place in coloured], "edgecolor": "none"}),
        (hatched, HATCH),
        (list(cells), {"facecolor": "none", "edgecolor": "white", "linewidth": 1.2}),
    ):
        if places:
            axes.add_collection(PatchCollection([squares[place] for place in places], **look), autolim=False)
    for (row, column), (difference, colour) in cells.items():
        text = axes.text(
            column,
            row,
            points(difference),
            ha="center",
            va="center",
            fontsize=CELL_SIZE,
            color=_readable_on(colour or WHITE),
            fontweight="bold" if colour else "normal",
            # no hatch behind the letters
            bbox=None if colour else {"facecolor": WHITE, "edgecolor": "none", "pad": 1.0},
        )
        text.set_in_layout(False)  # it is inside the axes


def _readable_on(colour: Colour) -> str:
    """Black or white, whichever has more contrast (WCAG 2, relative luminance)."""
    linear = [(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


# ----------------------------------------------------------------------------------------------------------- page


@dataclass(frozen=True, kw_only=True)
class HeatCell:
    """A row's backbone against a column's.

    Attributes:
        column: index of the column's backbone.
        difference: such as "+1.25", in points; "" on the diagonal and without a test.
        p_value: as text.
        kind: "better", "worse", "alike" (not significantly different) or "none".
        tint: share of the colour, 0 to MOST_TINT.
        words: shown on hovering.
    """

    column: int
    difference: str = ""
    p_value: str = ""
    kind: str = "none"
    tint: float = 0.0
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class HeatTable:
    """The heat map of one metric for the page.

    Attributes:
        title: of the metric.
        models: indices of the backbones, the best first.
        rows: the cells of each backbone, in the same order.
        caption: its content in words.
    """

    title: str
    models: Sequence[int]
    rows: Sequence[Sequence[HeatCell]]
    caption: str


def heat_tables(results: Results) -> list[HeatTable]:
    """The heat map of each main metric that has tests."""
    return [
        _heat_table(results, metric, tests) for metric in results.main_metrics() if (tests := results.tests(metric))
    ]


def _heat_table(results: Results, metric: MetricResult, tests: Sequence[VariantTest]) -> HeatTable:
    ranking = results.ranking(metric)
    places = {name: place for place, name in enumerate(results.variants)}
    both_ways = {(test.first, test.second): (test.difference, test) for test in tests}
    both_ways |= {(test.second, test.first): (-test.difference, test) for test in tests}
    widest = max((abs(test.difference) for test in tests if test.significant), default=1.0)
    scale = (widest, metric.higher_is_better)
    rows = [[_cell(row, (column, places[column]), both_ways, scale) for column in ranking] for row in ranking]
    return HeatTable(
        title=metric.title, models=[places[name] for name in ranking], rows=rows, caption=_caption(results, metric)
    )


def _cell(
    row: str,
    column_at: tuple[str, int],
    tests: Mapping[tuple[str, str], tuple[float, VariantTest]],
    scale: tuple[float, bool],
) -> HeatCell:
    (column, place), (widest, higher_is_better) = column_at, scale
    if (row, column) not in tests:
        return HeatCell(column=place)
    difference, test = tests[row, column]
    is_better = (difference > 0) == higher_is_better
    kind = "alike" if not test.significant else "better" if is_better else "worse"
    verdict = {"alike": "not significantly different from", "better": "better than", "worse": "worse than"}[kind]
    written, p_value = points(difference).replace("-", MINUS), p_words(test.p_value)
    return HeatCell(
        column=place,
        difference=written,
        p_value=p_value,
        kind=kind,
        tint=0.0 if kind == "alike" else round(MOST_TINT * (0.3 + 0.7 * abs(difference) / widest), 3),
        words=f"{row} is {verdict} {column}: {written} points, p {p_value}",
    )


def _caption(results: Results, metric: MetricResult) -> str:
    best = results.ranking(metric)[0]
    spread, alike = results.spread(metric, best), results.not_different_from(metric, best)
    value = f" ({percent(spread.mean)})" if spread else ""
    others = (
        f"not significantly different: {', '.join(alike)}" if alike else f"every other tested {results.noun} differs"
    )
    return f"{metric.title}: best is {best}{value}; {others}."
