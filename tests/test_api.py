"""The public Python API: each name resolves, is documented, and its example runs."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import facebones
from facebones.evaluation.protocol import list_protocols
from facebones.heads import list_heads

ROOT = Path(__file__).parents[1]
# Name to the section of the page that describes it, in the page's order.
SECTIONS = {
    part.partition("\n")[0]: part for part in re.split("^### ", (ROOT / "docs/api.md").read_text(), flags=re.M)[1:]
}


def blocks(text, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in found if name == language]


def signature(name):
    """The call of a function, with names and defaults."""
    found = inspect.signature(getattr(facebones, name))
    plain = [parameter.replace(annotation=parameter.empty) for parameter in found.parameters.values()]
    text = f"facebones.{name}{found.replace(parameters=plain, return_annotation=found.empty)}"
    return re.sub(r"<class '[\w.]+\.(\w+)'>", r"\1", text)


@pytest.mark.parametrize("name", facebones._API)
def test_each_public_name_is_a_documented_function(name):
    function = getattr(facebones, name)
    assert inspect.isfunction(function) and function.__name__ == name
    assert len(inspect.getdoc(function).splitlines()[0]) > 20
    assert name in dir(facebones) and name in facebones.__all__


def test_each_public_name_is_typed_for_editors():
    source = inspect.getsource(facebones)
    for name, module in facebones._API.items():
        assert f"from {module} import {name} as {name}" in source


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = facebones.nothing


def test_import_and_dir_need_no_torch():
    code = "import sys, facebones; dir(facebones); sys.exit(len({'torch', 'numpy', 'cv2'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------ docs/api.md


def test_the_page_describes_every_public_name():
    assert set(SECTIONS) == set(facebones._API)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_shows_each_signature(name):
    shown, *_ = blocks(SECTIONS[name], "")
    assert " ".join(shown.split()) == signature(name)
    assert blocks(SECTIONS[name], "python")


def run_examples(names):
    """Run the examples in order, in one namespace; names in a traceback tell the section."""
    namespace = {}
    for name in names:
        for code in blocks(SECTIONS[name], "python"):
            exec(compile(code, f"docs/api.md: {name}", "exec"), namespace)
    return namespace


@pytest.fixture
def faces(tmp_path, monkeypatch):
    from facebones.synthetic.dataset import synthesize

    synthesize(tmp_path / "faces", identities=4, images_per_identity=4, pairs=20, template_subjects=2, workers=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def no_network(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", no_network)


SLOW = ("profile", "costs", "export", "compare")


@pytest.mark.usefixtures("faces")
def test_the_examples_run():
    namespace = run_examples([name for name in SECTIONS if name not in SLOW])
    assert namespace["results"].runs[0].final_accuracy("synthetic") is not None
    assert "mean_norm" in list_protocols() and "plain_arcface" in list_heads()


@pytest.mark.slow
@pytest.mark.usefixtures("faces")
def test_the_slow_examples_run(capsys):
    pytest.importorskip("onnxscript")
    namespace = run_examples(["list_backbones", "create_backbone", "load_recipe", "train", "load_model", *SLOW])
    assert Path("mixfacenet.onnx").is_file()
    content = namespace["content"]
    assert [run["state"] for run in content["runs"]] == ["done", "done"]
    assert Path(content["report"]).is_file() and content["report"] in capsys.readouterr().out
