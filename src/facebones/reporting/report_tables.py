"""The tables of a report: what stands in them, once, for Markdown, LaTeX, CSV and the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from facebones.reporting.results import Results


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Of a table.

    Attributes:
        text: for people.
        value: by which a column is sorted and which CSV holds, unrounded; None of a cell without one.
    """

    text: str
    value: float | str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Of a report.

    Attributes:
        key: short name in files and anchors: letters, digits and "_".
        title: heading.
        note: how to read it; a sentence or two.
        columns: their headings.
        rows: a cell for each column.
    """

    key: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def report_tables(results: Results) -> list[Table]:
    """All tables that the results can fill, the most important first."""
    raise NotImplementedError
