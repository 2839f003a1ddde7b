"""The notebooks run from top to bottom, with small numbers; their saved output stays small and names no machine."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
SMALL = {
    "first_comparison": 'epochs, batch_size = 1, 8\nbackbones = "study_mixfacenet_xs"',
    "reading_results": "short, long, batch_size = 1, 2, 8",
}
MOST_KIB = 150


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_saved_output_is_complete_and_small(path):
    text, notebook = path.read_text(encoding="utf-8"), read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert len(text) < MOST_KIB * 1024
    assert "/tmp/" not in text and "/home/" not in text and '"stderr"' not in text


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = read(path)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"identities, images_each, pairs = 6, 4, 40\n{SMALL[path.stem]}"
    client.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
