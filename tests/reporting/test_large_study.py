"""A report of 14 backbones, three seeds and five sets, with 100,000 steps each: bounded in memory, and a small page."""

import json

import pytest
import synthetic_study

from facebones.backbones import list_backbones

STEPS, SETS = 100_000, ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
PAGE = """
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text, save_page
from facebones.reporting.answer import answer
from facebones.reporting.tables import report_tables
results = load_results(sys.argv[1])
assert len(results.runs) == 42 and all(run.steps == 100_000 for run in results.runs)
save_page(page_text(results, report_tables(results), answer(results)), Path(sys.argv[2]))
"""


def write_lines(run):
    """A line each ten steps, and the sets a hundred times."""
    line = (
        '{"kind": "train", "step": %d, "epoch": 1, "loss": %.15g, "learning_rate": 0.0186888, "gradient_norm": 555.5}\n'
    )
    with (run / "metrics.jsonl").open("w") as file:
        for start in range(0, STEPS, 1000):
            file.write("".join(line % (step, 9 + step % 97 / 300) for step in range(start + 10, start + 1001, 10)))
            for name in SETS:
                row = synthetic_study.validation(name, start + 1000, 0.5 + start / 3e5, 0.95)
                file.write(json.dumps({"kind": "validation", **row}) + "\n")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"steps": STEPS}))


@pytest.mark.slow
def test_page_of_a_large_study(tmp_path, monkeypatch, added_memory):
    names = [name for name in list_backbones() if not name.startswith("timm")][:14]
    for place, name in enumerate(names, 1):
        monkeypatch.setitem(synthetic_study.PARAMETERS, name, 500_000 * place)
    study = synthetic_study.make_study(tmp_path / "study", backbones=names, seeds=(0, 1, 2), sets=SETS)
    for run in study.glob("runs/*/*"):
        write_lines(run)
    assert sum(path.stat().st_size for path in study.rglob("metrics.jsonl")) > 50 * 2**20
    assert added_memory(PAGE, study, tmp_path / "report.html") <= 250  # MiB; it took gigabytes
    assert (tmp_path / "report.html").stat().st_size <= 15 * 10**6
