"""`facebones report`: all that folders of runs, studies and evaluations say, as tables, pictures and one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facebones.errors import ConfigError
from facebones.files import write_json
from facebones.reporting.answer import answer
from facebones.reporting.gathering import load_results
from facebones.reporting.html_page import write_page
from facebones.reporting.report_json import results_json
from facebones.reporting.report_pictures import write_pictures
from facebones.reporting.report_tables import report_tables
from facebones.reporting.table_files import write_tables
from facebones.training.logs import say

PAGE = "report.html"


def write_report(folders: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write `report.html`, `tables.md`, `.tex` and `.csv`, `results.json`, and `pictures/` (PNG, PDF, SVG).

    Args:
        folders: studies, runs, evaluations; see `load_results`.
        output: folder of the report, made here; an earlier report in it is replaced.

    Returns:
        what results.json holds.

    Raises:
        FaceBonesError: a folder holds nothing to report or something damaged, or the report cannot be written.
    """
    results = load_results(*folders)
    for note in results.notes:
        say(f"note: {note}")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file; give --output a folder")
    tables, words = report_tables(results), answer(results)
    content = {"answer": list(words.sentences), **results_json(results)}
    write_tables(tables, output)
    write_json(output / "results.json", content)
    write_pictures(results, output / "pictures")
    write_page(results, tables, words, output / PAGE)
    return content
