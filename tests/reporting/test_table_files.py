"""Tables as files: what stands in them, and that no name of a stranger is more than text there."""

import csv
import re
import shutil
import subprocess

import pytest
from synthetic_study import SMALL, make_study, write

from facebones.errors import ConfigError
from facebones.reporting.load import load_results
from facebones.reporting.table_files import (
    Beginning,
    csv_text,
    escape_latex,
    escape_markdown,
    latex_text,
    save_tables,
    table_texts,
)
from facebones.reporting.tables import Cell, Table, report_tables

HOSTILE = "=<script>a|b</script> $x_1$ & 50% #1 {\\input{x}} ~^\"'` [x](http://y.z) *b* ,,--\n# h \u202e\u4e2d\ud800"


def table(*rows, key="t", title="T", note="", columns=("name", "value")):
    return Table(key=key, title=title, note=note, columns=columns, rows=rows)


def row(name, value=0.5, text="50.00 %"):
    return [Cell(text=name, value=name), Cell(text=text, value=value)]


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def hostile(tmp_path):
    """Files of tables whose every text is hostile; by ending."""
    bad = table(row(HOSTILE), title=HOSTILE, note=HOSTILE, columns=(HOSTILE, "value"))
    return {path.suffix: path for path in save_tables(table_texts([bad]), tmp_path / "out")}


def test_all_tables_of_a_study_are_in_every_file(tmp_path):
    tables = report_tables(load_results(make_study(tmp_path / "s")))
    paths = save_tables(table_texts(tables), tmp_path / "out")
    assert [path.name for path in paths] == ["tables.md", "tables.tex", "tables.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    markdown, latex = paths[0].read_text(), paths[1].read_text()
    cells = read_csv(paths[2])
    assert re.findall("^## (.*)$", markdown, re.M) == [escape_markdown(each.title) for each in tables]
    assert re.findall(r"\\label{tab:(\w+)}", latex) == [each.key for each in tables]
    assert list(dict.fromkeys(cell["table"] for cell in cells)) == [each.key for each in tables]
    assert len(cells) == sum(len(each.columns) * len(each.rows) for each in tables)
    for each in tables:
        assert markdown.count(f"| {escape_markdown(each.rows[0][0].text)} |") >= 1


def test_the_csv_holds_values_unrounded_and_texts(tmp_path):
    tables = report_tables(load_results(make_study(tmp_path / "s", seeds=(0, 1, 2))))
    cells = read_csv(save_tables(table_texts(tables), tmp_path / "out")[2])
    found = {(cell["table"], cell["row"], cell["column"]): cell for cell in cells}
    assert len(found) == len(cells)  # so that a row and a column name one cell
    accuracy = found["overview", SMALL, "lfw accuracy"]
    assert float(accuracy["value"]) == pytest.approx(0.951, abs=1e-12) and accuracy["text"] == "95.10 % ± 0.10 best"
    assert found["training", SMALL, "set"]["value"] == "lfw"
    assert found["overview", SMALL, "parameters"]["value"] == "500000"
    assert found["pairs_lfw", SMALL, "TAR at FAR 0.001"] | {"row": ""} == {
        "table": "pairs_lfw",
        "row": "",
        "column": "TAR at FAR 0.001",
        "value": "",
        "text": "-",
    }


def test_rows_of_one_name_are_distinct_in_the_csv():
    rows = [[Cell(text="a"), Cell(text=name)] for name in ("x", "y")]
    names = [line.split(",", 2)[1:] for line in csv_text([table(*rows)]).splitlines()[1:]]
    assert names[0][0] == '"a' and {line[1].split('"')[0] for line in names} == {" x", " y"}


# ------------------------------------------------------------------------------------------------- strangers' names


def test_in_markdown_a_hostile_name_is_text(hostile):
    content = hostile[".md"].read_text()
    assert content.count("\n## ") == 0 and content.startswith("## ")
    lines = content.splitlines()
    assert len(lines) == 7  # heading, note, columns, rule, row, and empty lines between
    for line in lines[4:]:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert "<" not in content and "http://" not in content and "\u202e" not in content
    bare = re.sub(r"\\.", "", content)
    assert not re.search(r"[$_*`\[\]~]", bare)


def test_in_latex_a_hostile_name_is_text(hostile):
    content = hostile[".tex"].read_text()
    name = escape_latex(HOSTILE)
    assert name in content
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|char34){}", "", name)
    bare = re.sub(r"\\[{}&%$#_]", "", bare)
    assert not re.search(r"[\\&%$#_~^<>|\"]", bare)
    assert not re.search("--|,,", bare) and bare.isascii() and "\n" not in bare
    assert bare.count("{") == bare.count("}") and "(U+4E2D)" in bare
    assert content.count(r"\begin{") == content.count(r"\end{")


def test_a_cell_that_begins_with_a_bracket_is_no_argument_of_the_line_break():
    content = latex_text([table(row("a"), row("[9999mm]"), row("*"))])
    assert not re.search(r"\\\\\s*[\[*]", content)


def test_the_latex_compiles_if_latex_is_here(hostile, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("LaTeX is not installed")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", hostile[".tex"].name]
    done = subprocess.run(command, cwd=hostile[".tex"].parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-cmd", "@sum(a1)", " =1", "\t=1", "\n=1"])
def test_no_name_is_a_formula_in_a_spreadsheet(tmp_path, name):
    paths = save_tables(table_texts([table(row(name), columns=(name, "value"))]), tmp_path)
    for cell in read_csv(paths[2]):
        for part in cell.values():
            assert not part.lstrip().startswith(("=", "+", "-", "@")) or part in ("-",)
    first = read_csv(paths[2])[0]
    assert first["value"].startswith("'") and first["column"].startswith("'") and first["row"].startswith("'")


@pytest.mark.parametrize("text", ["-", "+0.15", "-3.20", "-1e-05"])
def test_numbers_and_dashes_are_not_guarded(tmp_path, text):
    cells = read_csv(save_tables(table_texts([table(row("a", -0.5, text))]), tmp_path)[2])
    assert (cells[1]["text"], cells[1]["value"]) == (text, "-0.5")


def test_a_hostile_name_keeps_the_csv_in_shape(hostile):
    cells = read_csv(hostile[".csv"])
    assert len(cells) == 2 and all(None not in cell and None not in cell.values() for cell in cells)
    assert cells[0]["row"].startswith("'=<script>a|b")


def test_a_hostile_study_goes_through(tmp_path):
    study = make_study(tmp_path / "s", failed=[f"{SMALL}_seed0"], sets=("a|b <i>",))
    content = (study / "study.json").read_text()
    write(study / "study.json", content.replace("no memory left", "=cmd|'x'!A1\\n</table> \\\\end{table}"))
    paths = save_tables(table_texts(report_tables(load_results(study))), tmp_path / "out")
    assert "<" not in paths[0].read_text()
    assert paths[1].read_text().count(r"\end{table}") == paths[1].read_text().count(r"\begin{table}")
    errors = [cell["text"] for cell in read_csv(paths[2]) if cell["column"] == "error" and cell["text"]]
    assert errors == ["'=cmd|'x'!A1 </table> \\end{table}"]


# ---------------------------------------------------------------------------------------------------------- forms


def test_columns_of_numbers_are_to_the_right():
    markdown = escape_markdown("x")
    content = latex_text([table(row(markdown), row("b", None, "-"))])
    assert r"\begin{tabular}{lr}" in content


def test_a_long_table_may_go_over_pages():
    long = table(*(row(f"n{number}") for number in range(100)))
    content = latex_text([long, table(row("a"), key="short")])
    assert content.count(r"\begin{longtable}") == content.count(r"\end{longtable}") == 1
    assert content.count(r"\begin{tabular}") == 1 and content.count("n99 &") == 1


def test_without_tables_the_files_are_there_and_valid(tmp_path):
    paths = save_tables(table_texts([]), tmp_path)
    assert paths[0].read_text() == "" and read_csv(paths[2]) == []
    assert r"\begin{document}" in paths[1].read_text()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"tables\.md: cannot be written: .*; choose another place$"):
        save_tables(table_texts([table(row("a"))]), tmp_path / "file")


def test_the_markdown_begins_with_the_answer_and_the_notes(tmp_path):
    beginning = Beginning(title="My study", sentences=["Take a_b.", "Or c."], notes=["d failed", "1. - e", HOSTILE])
    paths = save_tables(table_texts([table(row("a"))], beginning), tmp_path)
    head, _, rest = paths[0].read_text().partition("\n## T\n")
    title, answer, notes = head.split("\n\n", 2)
    assert title == "# My study" and rest
    assert answer.splitlines() == ["- Take a\\_b.", "- Or c."]
    assert notes.startswith("Read this first:\n\n- d failed\n- 1\\. - e\n- \\=&lt;script") and notes.count("\n") == 5
    for text in (latex_text([table(row("a"))]), csv_text([table(row("a"))])):
        assert any(path.read_text() == text for path in paths[1:])
