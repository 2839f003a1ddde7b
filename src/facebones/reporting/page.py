"""The report as one HTML page that works without a network: the answer, tables and interactive plots.

This module joins text, style and data; `page_assets/report.js` holds what the reader can do with them.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.reporting.answer import Answer
from facebones.reporting.page_data import page_data
from facebones.reporting.plots.heat_map import heat_tables
from facebones.reporting.results import Results
from facebones.reporting.seeds import bars_words
from facebones.reporting.tables import Cell, Table
from facebones.system.files import atomic_write
from facebones.system.number_format import MINUS

if TYPE_CHECKING:
    from facebones.reporting.face_pairs import SetFaces


def save_page(text: str, path: Path) -> None:
    """Write the page atomically.

    Raises:
        RunError, ConfigError: the disk is full, or the place cannot be written.
    """
    with atomic_write(path) as file:
        # Python reads a byte of a file name that is not UTF-8 as a surrogate, which UTF-8 cannot encode.
        file.write(text.encode(errors="backslashreplace"))


def page_text(results: Results, tables: Sequence[Table], answer: Answer, faces: "Sequence[SetFaces]" = ()) -> str:
    """The page: the answer, the first table (the overview), the plots, pairs as faces, and the other tables."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"unbroken": unbroken, "minus": minus}
    data = page_data(results)
    plotly, script = (_inline(text) for text in (get_plotlyjs(), _resource("report.js")))
    return environment.from_string(
        _resource("report.html.j2")
    ).render(
        title=results.title or "facebones",
        answer=answer,
        cautions=cautions(results),
        bars=bars_words(results),
        data=data,
        json=Markup(script_json(data)),  # noqa: S704 - escaped by script_json
        overview=[_shown(results, table) for table in tables[:1]],
        tables=[_shown(results, table) for table in tables[1:] if table.section == "tables"],
        tuning=[_shown(results, table) for table in tables[1:] if table.section == "tuning"],
        overlap=results.overlap,
        trust=[_shown(results, table) for table in tables[1:] if table.section == "trust"],
        heat_tables=heat_tables(results),
        faces=faces,
        can_show_faces=bool(results.pair_scores),
        recipe=sections(results.recipe),
        conditions=sections(results.conditions),
        environments=environments(results),
        command=results.command,
        style=Markup(_resource("report.css")),  # noqa: S704 - part of this package
        plotly=Markup(plotly),  # noqa: S704 - from plotly's package
        script=Markup(script),  # noqa: S704 - part of this package
        hashes=[_hash(plotly), _hash(script)],
    )


def unbroken(text: str) -> str:
    """Keep numbers, their units and their intervals on one line.

    >>> unbroken("90.00 % ± 0.50 at 2 M MACs").replace("\N{NO-BREAK SPACE}", "~")
    '90.00~%~±~0.50 at 2~M MACs'
    >>> unbroken("10.83 % [5.57, 20.02]; 3 runs").replace("\N{NO-BREAK SPACE}", "~")
    '10.83~%~[5.57,~20.02]; 3 runs'
    """
    return re.sub(
        r"(?<=\d) (?=[%GMk](?:\W|$))|(?<=%) (?=[±\[])|(?<=±) |(?<=\d,) (?=[\d.]+\])", "\N{NO-BREAK SPACE}", text
    )


def minus(text: str) -> str:
    """Numbers and intervals with minus signs for hyphens, as in the heat map; any other text as it is.

    >>> [minus(text).replace(MINUS, "~") for text in ("[-0.23, +1.77]", "-0.5", "-", "net-1", "2e-05")]
    ['[~0.23, +1.77]', '~0.5', '-', 'net-1', '2e-05']
    """
    return re.sub(r"(?<![\d.])-(?=\d)", MINUS, text) if re.fullmatch(r"[-+\d., ±%\[\]]+", text) else text


def script_json(content: Any) -> str:
    """JSON for a script element: no name in it can end the element or open another."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def cautions(results: Results) -> list[str]:
    """What a reader must know before relying on the page: runs that are not done, and notes on the results."""
    noted = "\n".join(results.notes)
    found = []
    for run in results.runs:
        if run.state != "done" and not (run.error is None and f"{run.name}: " in noted):
            found.append(f"{run.name}: {run.state}" + (f": {run.error}" if run.error else ""))
    return list(dict.fromkeys([*found, *results.notes]))


def environments(results: Results) -> list[dict[str, Any]]:
    """Versions, device and data of the runs; runs with equal ones are grouped."""
    groups: dict[str, dict[str, Any]] = {}
    for run in results.runs:
        if run.environment:
            key = json.dumps(run.environment, sort_keys=True, default=str)
            groups.setdefault(key, {"runs": [], "sections": sections(run.environment)})["runs"].append(run.name)
    return list(groups.values())


def sections(content: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A mapping as sections with a name and rows; values outside of a section come first, in "general".

    >>> sections({"data": {"images": 720}, "device": "cpu"})
    [('general', [('device', 'cpu')]), ('data', [('images', '720')])]
    """
    alone = {key: value for key, value in content.items() if not isinstance(value, Mapping)}
    found = [("general", flat(alone))]
    found += [(str(key), flat(value)) for key, value in content.items() if key not in alone]
    return [(name, rows) for name, rows in found if rows]


def flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted names and values as text.

    >>> flat({"data": {"path": "faces", "images": 720}, "device": "cpu"})
    [('data.path', 'faces'), ('data.images', '720'), ('device', 'cpu')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _shown(results: Results, table: Table) -> dict[str, Any]:
    """A table with what the page needs: which columns are numbers, and the variants of each row."""
    places = {name: place for place, name in enumerate(results.variants)}
    owners = {run.name: places[run.variant] for run in results.runs} | places
    return {
        "key": table.key,
        "title": table.title,
        "note": table.note,
        "folded": table.folded,
        "columns": table.columns,
        "numeric": [_is_numeric(row[number] for row in table.rows) for number in range(len(table.columns))],
        "rows": [{"cells": row, "models": _models(row, owners)} for row in table.rows],
    }


def _is_numeric(cells: Iterable[Cell]) -> bool:
    values = [cell.value for cell in cells if cell.value is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def _models(row: Iterable[Cell], owners: Mapping[str, int]) -> list[int]:
    """Indices of the variants that the cells are about or name, directly or by a run."""
    names = [name for cell in row for name in (cell.text, cell.value, *cell.about) if isinstance(name, str)]
    return sorted({owners[name] for name in names if name in owners})


def _resource(name: str) -> str:
    return (resources.files("facebones.reporting") / "page_assets" / name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """The script with line ends as a browser hashes them, and no text that would end its element."""
    return script.replace("\r\n", "\n").replace("</script", "<\\/script")


def _hash(script: str) -> str:
    """Hash of an inline script for the Content-Security-Policy, which blocks every other script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
