"""The picture of the tests of every two backbones by one figure: how far they are apart, and whether that is real."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from facebones.reporting.plots.point_names import shortened
from facebones.reporting.plots.style import new_figure, set_text
from facebones.reporting.results import Figure, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure as Picture

Colour = tuple[float, float, float, float]  # red, green, blue and opacity, from 0 to 1

WHITE: Colour = (1.0, 1.0, 1.0, 1.0)
CELL = (0.56, 0.36)  # inches
LETTER = 0.075  # inches of width, about
FRAME = (1.7, 1.0)  # inches for the scale and the heading
NAME_SIZE = 8.0
CELL_SIZE = 7.0
SLANT = 50  # degrees
SCALE = "PuOr"  # diverging, white in the middle, and told apart by colour-blind readers (C. Brewer)
STRONGEST = 0.85  # of the scale: its very ends are nearly black
NOT_TESTED = "#e4e4e4"
HATCH: dict[str, Any] = {"hatch": "////", "edgecolor": "#c4c4c4", "facecolor": "white", "linewidth": 0}


def heat_map_pictures(results: Results) -> dict[tuple[str, ...], Callable[[], "Picture"]]:
    """What draws the tests of each main figure, by the parts of its name; those only where there are tests."""
    return {
        ("tests", figure.title): partial(_heat_map, results, figure)
        for figure in results.main_figures()
        if results.tests(figure)
    }


def _heat_map(results: Results, figure: Figure) -> "Picture":
    """A cell is its row minus its column, in points, coloured where that is significant.

    The best backbone is the first of both rows and columns.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = results.ranking(figure)
    tests = results.tests(figure)
    widest = max((abs(100 * test.difference) for test in tests if test.significant), default=1.0)
    scale, colours = Normalize(-widest / STRONGEST, widest / STRONGEST), colormaps[SCALE]
    longest = max(len(shortened(name)) for name in names) * LETTER
    picture = new_figure(FRAME[0] + longest + CELL[0] * len(names), FRAME[1] + 0.8 * longest + CELL[1] * len(names))
    axes = picture.add_subplot()
    _draw_grid(axes, names)
    for test in tests:
        first, second = names.index(test.first), names.index(test.second)
        for place, sign in (((first, second), 100), ((second, first), -100)):
            points = sign * test.difference
            _draw_cell(axes, place, points, colours(scale(points)) if test.significant else None)
    if any(test.significant for test in tests):
        _draw_scale(picture, axes, ScalarMappable(scale, colours))
    title = picture.suptitle("", fontsize=10)
    set_text(title, f"{figure.title}: row minus column, in points", "hatched: not significant at 5 %")
    return picture


def _draw_scale(picture: "Picture", axes: "Axes", mappable: "ScalarMappable") -> None:
    bar = picture.colorbar(mappable, ax=axes, fraction=0.05, pad=0.02, aspect=25)
    bar.set_label("Row minus column (points)", fontsize=NAME_SIZE)
    bar.ax.tick_params(labelsize=CELL_SIZE)


def _draw_grid(axes: "Axes", names: list[str]) -> None:
    """Draw empty cells, and the names beside and above them."""
    count = len(names)
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), facecolor=NOT_TESTED)
    axes.xaxis.tick_top()
    slanted: dict[str, Any] = {"rotation": SLANT, "ha": "left", "va": "bottom", "rotation_mode": "anchor"}
    straight: dict[str, Any] = {}
    for axis, options in ((axes.xaxis, slanted), (axes.yaxis, straight)):
        axis.set_ticks(range(count), [shortened(name) for name in names], fontsize=NAME_SIZE, **options)
        for label in axis.get_ticklabels():
            label.set_parse_math(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_cell(axes: "Axes", place: tuple[int, int], points: float, colour: Colour | None) -> None:
    """Draw the cell of a row and a column, hatched if it has no colour."""
    from matplotlib.patches import Rectangle

    row, column = place
    behind = colour or WHITE
    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, **({"facecolor": colour} if colour else HATCH)))
    axes.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor="white", linewidth=1.2))
    axes.text(
        column,
        row,
        difference_text(points),
        ha="center",
        va="center",
        fontsize=CELL_SIZE,
        color=_readable_on(behind),
        fontweight="bold" if colour else "normal",
        bbox={"facecolor": behind, "edgecolor": "none", "pad": 1.0},  # no hatch behind the letters
    )


def difference_text(points: float) -> str:
    """With its sign and two digits; what rounds to nothing has no sign.

    >>> difference_text(1.239), difference_text(-0.004)
    ('+1.24', '0.00')
    """
    return f"{points:+.2f}" if round(points, 2) else "0.00"


def _readable_on(colour: Colour) -> str:
    """Black or white, whichever has more contrast (WCAG 2, relative luminance)."""
    linear = [(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"
