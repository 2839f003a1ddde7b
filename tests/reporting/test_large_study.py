"""A report of 14 backbones, three seeds and five sets, with 100,000 steps each: bounded in memory, and a small page."""

import pytest
from browser import chromium, open_and_sort
from synthetic_study import make_large_study

PAGE = """
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text, save_page
from facebones.reporting.answer import answer
from facebones.reporting.tables import report_tables
results = load_results(sys.argv[1])
assert len(results.runs) == 42 and all(run.steps == 100_000 for run in results.runs)
save_page(page_text(results, report_tables(results), answer(results)), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_page_of_a_large_study(tmp_path, added_memory):
    study = make_large_study(tmp_path / "study")
    assert sum(path.stat().st_size for path in study.rglob("metrics.jsonl")) > 50 * 2**20
    assert added_memory(PAGE, study, tmp_path / "report.html") <= 250  # MiB; it took gigabytes
    assert (tmp_path / "report.html").stat().st_size <= 15 * 10**6
    with chromium() as browser:
        took = open_and_sort(browser, (tmp_path / "report.html").as_uri(), seconds=300)
    assert took["processor"] < 10  # seconds; `benchmarks/report_page.py` says how many
