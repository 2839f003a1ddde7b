"""Tables on stdout, whole also where stdout is no terminal, and in Markdown; how their figures are written."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

MARKS = "best: the best of its column; *: not significantly different from it"
FEWEST_DECIMALS, MOST_DECIMALS = 2, 4
PIPED_WIDTH = 240  # at least: where no terminal is, nothing else says how wide a line may be


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows of text under column names; columns of numbers, or "-", are right-aligned.

    Names of columns and texts are broken at blanks where a terminal is narrow, never inside a word; figures never. A
    table that does not fit even so is turned: a block a row, with a line a column.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    room = console.width if console.is_terminal else PIPED_WIDTH
    widths = _fitted(columns, rows, room - _frame(columns))
    needed = sum(widths) + _frame(columns)
    for line in title.splitlines():
        console.print(Text(_broken_at_blanks(line, room), style="table.title"), soft_wrap=True)
    if needed > room and console.is_terminal:
        _print_turned(console, columns, rows)
        return
    console.width = max(needed, room)
    table = Table()
    for number, name in enumerate(columns):
        numeric = all(row[number][:1].isdigit() or row[number] == "-" for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", width=widths[number])
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _print_turned(console: "Console", columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a block a row: its first cell, and under it a line for each other cell that holds something."""
    from rich.text import Text

    margin = max(map(len, columns[1:]), default=0) + len("  : ")
    for first, *others in rows:
        console.print(Text(first, style="table.header"), soft_wrap=True)
        for name, cell in zip(columns[1:], others, strict=True):
            if cell:
                print(_broken_at_blanks(cell, console.width, f"  {name}:".ljust(margin), " " * margin))


def _broken_at_blanks(text: str, width: int, first: str = "", later: str = "") -> str:
    """Text in lines of a width, the first and the later ones behind a margin; a longer word is left whole."""
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of the columns: what they hold, the widest narrowed until all fit, or until none can give more."""
    from rich.cells import cell_len

    widths, least = [], []
    for number, name in enumerate(columns):
        cells = [row[number] for row in rows]
        pieces = [*name.split(), *(piece for cell in cells for piece in _unbroken(cell))]
        widths.append(max(map(cell_len, [name, *cells])))
        least.append(max(map(cell_len, pieces), default=0))
    while sum(widths) > room:
        loose = [number for number, width in enumerate(widths) if width > least[number]]
        if not loose:
            break
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths


def _unbroken(cell: str) -> list[str]:
    """The parts of a cell that stay in one line: words, but a figure as a whole, with unit, interval and mark."""
    figure = cell[:1].isdigit() or cell.startswith(("+", "-", "<"))
    return [cell] if figure else cell.split()


def _frame(columns: Sequence[str]) -> int:
    """How much of a line borders take: one and two blanks a column, and the last border."""
    return 3 * len(columns) + 1


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
