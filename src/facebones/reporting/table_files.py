"""Tables as files: Markdown, LaTeX and one tidy CSV; names are escaped, because anyone may choose them."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from facebones.reporting.tables import Cell, Table
from facebones.reporting.words import markdown_table
from facebones.system.files import atomic_write
from facebones.system.number_format import is_number

CSV_COLUMNS = ("table", "row", "column", "value", "text")
FORMULA_BEGINS = ("=", "+", "-", "@")
LONGEST_FLOAT = 40  # rows; a longer table does not fit on a page and becomes a longtable
MARKDOWN_ESCAPES = str.maketrans(
    {**{character: f"\\{character}" for character in "\\`*_{}[]|$~#!@"}, "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)
# Braces prevent a bracket or star from becoming an argument of a preceding \\, and quotes from forming ligatures.
LATEX_ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "{}&%$#_"},
        **{character: f"{{{character}}}" for character in "[]*'`"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\char34{}",
    }
)
LATEX_HEAD = r"""% To copy a table into a paper, add \usepackage{booktabs}, and \usepackage{longtable} for long tables.
\documentclass{article}
\usepackage[a3paper,landscape,margin=15mm]{geometry}
\usepackage[T1]{fontenc}
\usepackage{booktabs}
\usepackage{longtable}
\begin{document}
"""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The beginning of tables.md: the answer and its caveats.

    Attributes:
        title: of the report.
        sentences: of the answer.
        notes: what a reader must know before relying on the tables.
    """

    title: str
    sentences: Sequence[str] = ()
    notes: Sequence[str] = ()


def table_texts(tables: Sequence[Table], beginning: Beginning | None = None) -> dict[str, str]:
    """The content of each file of tables, by file name."""
    return {
        "tables.md": markdown_text(tables, beginning),
        "tables.tex": latex_text(tables),
        "tables.csv": csv_text(tables),
    }


def save_tables(texts: Mapping[str, str], output: Path) -> list[Path]:
    """Write the files of `table_texts`.

    Raises:
        RunError, ConfigError: a file cannot be written.
    """
    for name, text in texts.items():
        with atomic_write(output / name) as file:
            file.write(text.encode())
    return [output / name for name in texts]


def one_line(text: str) -> str:
    """The text with line feeds and other unprintable characters, such as direction marks, as spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


# ----------------------------------------------------------------------------------------------------- Markdown


def markdown_text(tables: Sequence[Table], beginning: Beginning | None = None) -> str:
    """The beginning, then each table with its heading and note."""
    first = [_markdown_beginning(beginning)] if beginning else []
    return "\n".join([*first, *(_markdown_section(table) for table in tables)])


def escape_markdown(text: str) -> str:
    r"""Escape a text for Markdown: nothing in it is read as HTML, a link, a formula or the end of a cell.

    >>> print(escape_markdown("a_b | <i>"))
    a\_b \| &lt;i&gt;
    """
    escaped = one_line(text).translate(MARKDOWN_ESCAPES)
    return escaped.replace("://", ":\\//").replace("www.", "www\\.")  # many renderers turn bare addresses into links


def _markdown_beginning(beginning: Beginning) -> str:
    """The title, the answer's sentences and the notes."""
    answer = "".join(f"- {_markdown_prose(sentence)}\n" for sentence in beginning.sentences)
    notes = "".join(f"- {_markdown_prose(note)}\n" for note in beginning.notes)
    parts = [f"# {_markdown_prose(beginning.title)}\n", answer, f"Read this first:\n\n{notes}" if notes else ""]
    return "\n".join(filter(None, parts))


def _markdown_prose(text: str) -> str:
    """Escape a text outside of cells; its first characters start no list or heading."""
    escaped = escape_markdown(text.strip())
    return re.sub(r"^(\d*)([-+.)=])", r"\1\\\2", escaped)


def _markdown_section(table: Table) -> str:
    right = [number for number in range(len(table.columns)) if _is_numeric(table, number)]
    rows = [[escape_markdown(cell.text) for cell in row] for row in table.rows]
    body = markdown_table([escape_markdown(name) for name in table.columns], rows, right)
    note = f"{escape_markdown(table.note)}\n\n" if table.note else ""
    return f"## {escape_markdown(table.title)}\n\n{note}{body}"


def _is_numeric(table: Table, number: int) -> bool:
    """Whether a column holds only numbers and dashes."""
    values = [row[number].value for row in table.rows]
    return any(value is not None for value in values) and not any(isinstance(value, str) for value in values)


# -------------------------------------------------------------------------------------------------------- LaTeX


def latex_text(tables: Sequence[Table]) -> str:
    """A document with all tables, in booktabs style."""
    return LATEX_HEAD + "".join(_latex_table(table) for table in tables) + "\\end{document}\n"


def escape_latex(text: str) -> str:
    r"""Escape a text for LaTeX; characters outside of Latin-1 become their Unicode number.

    >>> print(escape_latex("a_b 50 %"))
    a\_b 50 \%
    """
    known = "".join(
        character if ord(character) < 0x100 else f"(U+{ord(character):04X})" for character in one_line(text)
    )
    return re.sub(r"([-,])(?=[-,])", r"\1{}", known.translate(LATEX_ESCAPES))  # -- and ,, are ligatures


def _latex_table(table: Table) -> str:
    kinds = "".join("r" if _is_numeric(table, number) else "l" for number in range(len(table.columns)))
    caption = f"\\caption{{{_latex_cell(f'{table.title}. {table.note}'.strip())}}}\\label{{tab:{table.key}}}"
    head = _latex_row(table.columns)
    body = "".join(_latex_row([cell.text for cell in row]) for row in table.rows)
    if len(table.rows) > LONGEST_FLOAT:
        return (
            f"\n\\begin{{longtable}}{{{kinds}}}\n{caption}\\\\\n\\toprule\n{head}\\midrule\n\\endhead\n\\bottomrule\n"
            f"\\endfoot\n{body}\\end{{longtable}}\n\\clearpage\n"
        )
    return (
        f"\n\\begin{{table}}[htbp]\n\\centering\n{caption}\n\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{head}\\midrule\n"
        f"{body}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n\\clearpage\n"  # LaTeX holds few floats at a time
    )


def _latex_row(texts: Sequence[str]) -> str:
    return f"{' & '.join(map(_latex_cell, texts))} \\\\\n"


def _latex_cell(text: str) -> str:
    return escape_latex(text).replace("±", r"$\pm$")


# ---------------------------------------------------------------------------------------------------------- CSV


def csv_text(tables: Sequence[Table]) -> str:
    """One line per cell: key of its table, row (as few of its first cells as name it alone), column, value, text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for name, row in zip(_row_names(table), table.rows, strict=True):
            for column, cell in zip(table.columns, row, strict=True):
                value = "" if cell.value is None else cell.value
                writer.writerow([_guarded(part) for part in (table.key, name, column, value, cell.text)])
    return text.getvalue()


def _row_names(table: Table) -> list[str]:
    def named(row: Sequence[Cell], cells: int) -> str:
        return ", ".join(cell.text for cell in row[:cells])

    for cells in range(1, len(table.columns)):
        names = [named(row, cells) for row in table.rows]
        if len(set(names)) == len(names):
            return names
    return [named(row, 2) for row in table.rows]


def _guarded(part: float | str) -> float | str:
    """Prefix a text that a spreadsheet would run as a formula with an apostrophe; numbers and dashes stay."""
    if not isinstance(part, str):
        return part
    text = one_line(part)
    return f"'{text}" if text.lstrip().startswith(FORMULA_BEGINS) and text != "-" and not is_number(text) else text
