"""Tables on stdout, whole also where stdout is no terminal, and in Markdown; how their figures are written."""

import math
from collections.abc import Iterable, Sequence

MARKS = "best: the best of its column; *: not significantly different from it"
FEWEST_DECIMALS, MOST_DECIMALS = 2, 4


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows of text under column names; columns of numbers, or "-", are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 240
    table = Table(title=title or None, title_justify="left")
    for number, name in enumerate(columns):
        numeric = all(row[number][:1].isdigit() or row[number] == "-" for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def format_interval(value: float, low: float, high: float) -> str:
    """Write a rate and its confidence interval in percent: two decimals, or more where the interval is narrow.

    >>> format_interval(0.97351, 0.96802, 0.97813)
    '97.35 % [96.80, 97.81]'
    >>> format_interval(0.999731, 0.999702, 0.999758)
    '99.9731 % [99.9702, 99.9758]'
    """
    if not low <= high:
        raise ValueError(f"low, high: {low} to {high} is no interval; give its lower end first")
    width = 100 * (high - low)
    wanted = 1 - math.floor(math.log10(width)) if width > 0 else FEWEST_DECIMALS  # two digits of the width
    decimals = min(max(wanted, FEWEST_DECIMALS), MOST_DECIMALS)
    value, low, high = (round(100 * rate, decimals) for rate in (value, low, high))
    return f"{value:.{decimals}f} % [{low:.{decimals}f}, {high:.{decimals}f}]"


def mark_best(cells: Sequence[str], best: int, alike: Sequence[bool]) -> list[str]:
    """Mark in a column the best cell, and with a star those not significantly different from it; MARKS explains both.

    Args:
        cells: texts of the column.
        best: index of the best.
        alike: for each cell, that a test has not told it from the best; that of the best itself does not matter.

    >>> mark_best(["99.1 %", "99.3 %", "95.0 %"], 1, [True, True, False])
    ['99.1 % *', '99.3 % best', '95.0 %']
    """
    marks = ["best" if index == best else "*" if same else "" for index, same in enumerate(alike)]
    return [f"{cell} {mark}".rstrip() for cell, mark in zip(cells, marks, strict=True)]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table in Markdown; the columns numbered in `right` are right-aligned.

    >>> print(markdown_table(("name", "size"), [("a", "1")], right=(1,)))
    | name | size |
    |---|--:|
    | a | 1 |
    <BLANKLINE>
    """
    rule = "|".join("--:" if number in right else "---" for number in range(len(columns)))
    lines = [f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
