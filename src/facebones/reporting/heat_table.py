"""Tests of every two backbones as a square table with coloured cells: it is text, so it can be read aloud."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from facebones.reporting.comparison_table import format_p
from facebones.reporting.results import BackboneTest, Figure, Results

MOST_TINT = 0.42  # of the colour in a cell: beyond, its text would be hard to read


@dataclass(frozen=True, kw_only=True)
class HeatCell:
    """A row's backbone against a column's.

    Attributes:
        column: place of the column's backbone.
        difference: such as "+1.25", in points; "" on the diagonal and where nothing was tested.
        p_value: as text.
        kind: "better", "worse", "alike" (not told apart), or "none".
        tint: share of the colour, 0 to MOST_TINT.
        words: for those who hover.
    """

    column: int
    difference: str = ""
    p_value: str = ""
    kind: str = "none"
    tint: float = 0.0
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Of one figure.

    Attributes:
        title: of the figure.
        models: places of the backbones, the best first.
        rows: of each, its cells, in the same order.
        caption: what it shows, in words.
    """

    title: str
    models: Sequence[int]
    rows: Sequence[Sequence[HeatCell]]
    caption: str


def heat_maps(results: Results) -> list[HeatMap]:
    """Of each main figure by which backbones were tested."""
    return [_heat_map(results, figure, tests) for figure in results.main_figures() if (tests := results.tests(figure))]


def _heat_map(results: Results, figure: Figure, tests: Sequence[BackboneTest]) -> HeatMap:
    ranking = results.ranking(figure)
    places = {name: place for place, name in enumerate(results.backbones)}
    both_ways = {(test.first, test.second): (test.difference, test) for test in tests}
    both_ways |= {(test.second, test.first): (-test.difference, test) for test in tests}
    widest = max((abs(test.difference) for test in tests if test.significant), default=1.0)
    scale = (widest, figure.lower_is_better)
    rows = [[_cell(row, (column, places[column]), both_ways, scale) for column in ranking] for row in ranking]
    return HeatMap(
        title=figure.title, models=[places[name] for name in ranking], rows=rows, caption=_caption(results, figure)
    )


def _cell(
    row: str,
    column_at: tuple[str, int],
    tests: Mapping[tuple[str, str], tuple[float, BackboneTest]],
    scale: tuple[float, bool],
) -> HeatCell:
    (column, place), (widest, lower_is_better) = column_at, scale
    if (row, column) not in tests:
        return HeatCell(column=place)
    difference, test = tests[row, column]
    is_better = (difference > 0) != lower_is_better
    kind = "alike" if not test.significant else "better" if is_better else "worse"
    verdict = {"alike": "not told apart from", "better": "better than", "worse": "worse than"}[kind]
    points, p_value = f"{100 * difference:+.2f}".replace("-", "\u2212"), format_p(test.p_value)
    return HeatCell(
        column=place,
        difference=points,
        p_value=p_value,
        kind=kind,
        tint=0.0 if kind == "alike" else round(MOST_TINT * (0.3 + 0.7 * abs(difference) / widest), 3),
        words=f"{row} is {verdict} {column}: {points} points, p {p_value}",
    )


def _caption(results: Results, figure: Figure) -> str:
    best = results.ranking(figure)[0]
    spread, alike = results.spread(figure, best), results.as_good_as(figure, best)
    value = f" ({100 * spread.mean:.2f} %)" if spread else ""
    told = f"not told apart from it: {', '.join(alike)}" if alike else "it differs from every other that was tested"
    return f"{figure.title}: best is {best}{value}; {told}."
