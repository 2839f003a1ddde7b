"""The whole of a report: it replaces an earlier one and nothing else, and is refused before anything is written."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from synthetic_study import make_study

from facebones.cli.main import main
from facebones.errors import ConfigError, RunError
from facebones.reporting.plots.report_plots import write_plots
from facebones.reporting.report import PAGE, PLOTS, RESULTS, listed_plots, remove_plots, write_report
from facebones.reporting.table_files import escape_markdown


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study") / "s")


@pytest.fixture
def undrawn(monkeypatch):
    """Plots are empty files, which is quicker."""

    def touch(figure, paths):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("new")

    monkeypatch.setattr("facebones.reporting.plots.report_plots.save_plot", touch)


@pytest.mark.parametrize("lost", ["one plot", "the folder"])
def test_plots_that_are_removed_while_it_is_written_are_missed(study, tmp_path, undrawn, monkeypatch, lost):
    def write_and_remove(results, folder, **options):
        write_plots(results, folder, **options)
        shutil.rmtree(folder) if lost == "the folder" else next(folder.iterdir()).unlink()

    monkeypatch.setattr("facebones.reporting.report.write_plots", write_and_remove)
    with pytest.raises(RunError, match=r"plots.*: was removed while files were written beside it"):
        write_report([study], tmp_path / "report")


def all_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_lists_its_plots_and_removes_those_of_an_earlier_one(study, undrawn, tmp_path):
    content = write_report([study], tmp_path)
    folder = tmp_path / PLOTS
    assert sorted(content["plots"]) == sorted(path.name for path in folder.iterdir()) != []
    assert json.loads((tmp_path / RESULTS).read_text())["plots"] == content["plots"]
    markdown = (tmp_path / "tables.md").read_text()
    assert markdown.startswith("# ") and all(
        escape_markdown(text) in markdown.partition("\n## ")[0] for text in [*content["answer"], *content["notes"]]
    )
    earlier = {**content, "plots": [*content["plots"], "old.png", "gone.pdf"]}
    (tmp_path / RESULTS).write_text(json.dumps(earlier))
    for name in ("old.png", "mine.png"):
        (folder / name).write_text("old")
    write_report([study], tmp_path)
    assert {path.name for path in folder.iterdir()} == {*content["plots"], "mine.png"}


def test_plots_of_an_older_version_are_removed_from_their_folder(study, undrawn, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / RESULTS).write_text(json.dumps({"pictures": ["loss.png", "../loss.png"]}))
    for path in (folder / "loss.png", folder / "mine.png", tmp_path / "loss.png"):
        path.write_text("old")
    write_report([study], tmp_path)
    assert [path.name for path in folder.iterdir()] == ["mine.png"] and (tmp_path / "loss.png").is_file()
    (tmp_path / RESULTS).write_text(json.dumps({"pictures": ["mine.png"]}))
    write_report([study], tmp_path)
    assert not folder.exists()


def test_the_command_shows_its_progress_and_a_call_from_python_does_not(study, undrawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("facebones.system.progress.PLAIN_LINE_SECONDS", 0)
    write_report([study], tmp_path / "report")
    assert "reading" not in (said := capsys.readouterr().err) and "drawing" not in said
    assert main(["report", str(study), "--output", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().err
    assert re.search(r"reading runs: 3/4, \d+s left", said)
    assert re.search(r"drawing plots: 2/\d+, \d+s left, \d[\d,.]* plots/s", said)


HOSTILE_LISTS = [
    "../results.png",
    "sub/a.png",
    "/etc/a.png",
    "a.png\n",
    "a.txt",
    "..",
    "",
    None,
    7,
    ["a.png"],
]


@pytest.mark.parametrize(("key", "place"), [("plots", PLOTS), ("pictures", "pictures")])
def test_a_hostile_list_removes_nothing(tmp_path, key, place):
    results = tmp_path / RESULTS
    results.write_text(json.dumps({key: HOSTILE_LISTS}))
    assert listed_plots(results) == set()
    for text in ("{", "[]", f'{{"{key}": {{"a.png": 1}}}}', f'{{"{key}": "a.png"}}', "[" * 100_000, "\x00"):
        results.write_text(text)
        assert listed_plots(results) == set()
    results.write_text(f'{{"{key}": ["a.png"]}}')
    assert listed_plots(results) == {tmp_path / place / "a.png"}
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_text("")
    (tmp_path / place).symlink_to(tmp_path / "elsewhere")
    remove_plots([tmp_path / "folder.png", tmp_path / "none.png"])
    remove_plots([tmp_path / place / "a.png"])
    assert (tmp_path / "folder.png").is_dir() and (tmp_path / "elsewhere" / "a.png").is_file()


def file_at(path):
    path.write_text("mine")


def link_to_nowhere(path):
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize(
    ("make", "place", "below"),
    [
        (file_at, "out/plots", "out"),
        (link_to_nowhere, "out/plots", "out"),
        (os.mkdir, "out/plots/loss.png", "out"),
        (os.mkdir, f"out/{PAGE}", "out"),
        (os.mkdir, "out/tables.csv", "out"),
        (os.mkdir, f"out/{RESULTS}", "out"),
        (file_at, "file", "file"),
        (file_at, "file", "file/below/it"),
        (link_to_nowhere, "link", "link"),
        (link_to_nowhere, "link", "link/below"),
    ],
)
def test_what_is_in_the_way_is_named_before_anything_is_written(study, undrawn, tmp_path, make, place, below, capsys):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    make(tmp_path / place)
    before = all_files(tmp_path)
    assert main(["report", str(study), "--output", str(tmp_path / below)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert str(tmp_path / place) in line
    assert all_files(tmp_path) == before


@pytest.mark.parametrize("part", ["page_text", "table_texts", "results_json"])
def test_what_cannot_be_built_leaves_the_old_report(study, undrawn, tmp_path, monkeypatch, part):
    write_report([study], tmp_path)
    for path in tmp_path.rglob("*.*"):
        path.write_text("old")
    before = all_files(tmp_path)

    def fail(*arguments, **options):
        raise ConfigError("no")

    monkeypatch.setattr(f"facebones.reporting.report.{part}", fail)
    with pytest.raises(ConfigError):
        write_report([study], tmp_path)
    assert all_files(tmp_path) == before


MODULES = """
import sys
from pathlib import Path
from facebones.reporting.plots import report_plots
report_plots.save_plot = lambda figure, paths: [p.parent.mkdir(parents=True, exist_ok=True) or p.touch() for p in paths]
from facebones.reporting.report import write_report
write_report([Path({study!r})], Path({output!r}))
loaded = [name for name in sys.modules if name.partition(".")[0] == "facebones"]
assert len(loaded) <= 46, sorted(loaded)
assert "torch" not in sys.modules
assert not [name for name in loaded if name.split(".")[1:2] in (["evaluation"], ["study"], ["training"], ["profiling"])]
"""


def test_a_report_of_a_finished_study_loads_few_modules_and_no_torch(study, tmp_path):
    code = MODULES.format(study=str(study), output=str(tmp_path / "report"))
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_title_of_ones_own_is_that_of_page_tables_and_json(tmp_path):
    study = make_study(tmp_path / "s")
    content = write_report([study], tmp_path / "report", title="Which network for our <door>?")
    assert content["title"] == "Which network for our <door>?"
    assert "<h1>Which network for our &lt;door&gt;?</h1>" in (tmp_path / "report/report.html").read_text()
    assert (tmp_path / "report/tables.md").read_text().startswith("# Which network for our ")
