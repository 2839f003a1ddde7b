"""`facebones report`: all that folders of runs, studies and evaluations say, as tables, pictures and one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facebones.reporting.answer import answer
from facebones.reporting.html_page import cautions, page_text, save_page
from facebones.reporting.load import load_results
from facebones.reporting.plots.report_plots import picture_files, write_pictures
from facebones.reporting.report_folder import PICTURES, RESULTS, check_places, listed_pictures, remove_pictures
from facebones.reporting.report_json import results_json
from facebones.reporting.table_files import Beginning, save_tables, table_texts
from facebones.reporting.tables import report_tables
from facebones.system.files import write_json
from facebones.system.progress import say

PAGE = "report.html"


def write_report(folders: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write `report.html`, `tables.md`, `.tex` and `.csv`, `results.json`, and `pictures/` (PNG, PDF, SVG).

    Args:
        folders: studies, runs, evaluations; see `load_results`.
        output: folder of the report, made here; an earlier report in it is replaced, with its pictures.

    Returns:
        what results.json holds: the sentences of the "answer", the file names of the "pictures", and `results_json`.

    Raises:
        FaceBonesError: a folder holds nothing to report or something damaged, or the report cannot be written.
    """
    results = load_results(*folders)
    for note in results.notes:
        say(f"note: {note}")
    tables, words = report_tables(results), answer(results)
    pictures = picture_files(results, output / PICTURES)
    content = {
        "answer": list(words.sentences),
        "pictures": [path.name for path in pictures],
        **results_json(results),
    }
    # All is built and every place looked at before the first file, so that old and new do not mix on an error.
    beginning = Beginning(title=results.title or "facebones", sentences=words.sentences, notes=cautions(results))
    texts, page = table_texts(tables, beginning), page_text(results, tables, words)
    check_places(output, [*pictures, *(output / name for name in (*texts, RESULTS, PAGE))])
    stale = listed_pictures(output / RESULTS) - set(content["pictures"])
    write_pictures(results, output / PICTURES)
    remove_pictures(output / PICTURES, stale)
    save_tables(texts, output)
    write_json(output / RESULTS, content)
    save_page(page, output / PAGE)
    return content
