"""Claim: the page of a large study has at most 15 MB, and its tables can be sorted within three seconds.

The study has 14 backbones, three seeds, five sets and 100,000 steps. Its page is opened in the browser of the tests, in
turn with a page that holds nothing but plotly.js and a table: the plain reference. Said are seconds up to
DOMContentLoaded, to the first sorting that has succeeded and to the last plot that is not folded, and processor seconds
of the page's main thread.

    python benchmarks/report_page.py [--page REPORT.html | --plots] [--turns 5] [--output FILE.json]

With `--plots`, the plots of the study are written as well, and their processor seconds are said.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reporting"))

from browser import chromium, open_and_sort
from synthetic_study import make_large_study

from facebones.reporting.answer import answer
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text, save_page
from facebones.reporting.plots.report_plots import write_plots
from facebones.reporting.tables import report_tables

PLAIN = """<!doctype html><meta charset="utf-8"><title>plain</title><table class="sortable"><thead><tr><th>
<button onclick="this.parentNode.setAttribute('aria-sort', 'ascending')">a</button></th></tr></thead></table>
<script>{script}</script>"""
SECONDS = 120  # a busy machine may take long


def measure(pages: dict[str, Path], turns: int) -> dict[str, dict[str, float]]:
    """Medians over the turns, by page."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pages}
    with chromium() as browser:
        for _ in range(turns):
            for name, path in pages.items():
                found[name].append(open_and_sort(browser, path.absolute().as_uri(), SECONDS))
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def main() -> None:
    """Make the page, measure, print, and write where asked."""
    from plotly.offline import get_plotlyjs

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--page", type=Path, help="a page that is there; by default one of a large study is made")
    parser.add_argument("--plots", action="store_true", help="of the study that is made, write the plots as well")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages = {"ours": arguments.page or folder / "report.html", "plain": folder / "plain.html"}
        pages["plain"].write_text(PLAIN.format(script=get_plotlyjs()))
        if arguments.page is None:
            found = load_results(make_large_study(folder / "study"))
            save_page(page_text(found, report_tables(found), answer(found)), pages["ours"])
            if arguments.plots:
                start = time.process_time()
                files = write_plots(found, folder / "plots")
                print(f"{len(files)} files of plots: {time.process_time() - start:.1f} s (processor)")
        results = measure(pages, arguments.turns)
        size = pages["ours"].stat().st_size / 1e6
    print(f"{size:.1f} MB; {'parsed':>8} {'sorted':>8} {'drawn':>8} {'processor':>9} s, medians of {arguments.turns}")
    for name, row in results.items():
        print(f"{name:7}  {row['parsed']:8.2f} {row['sorted']:8.2f} {row['drawn']:8.2f} {row['processor']:9.2f}")
    print(f"ours / plain: {results['ours']['processor'] / results['plain']['processor']:.1f} (processor)")
    if arguments.output:
        arguments.output.write_text(json.dumps({"megabytes": size, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
