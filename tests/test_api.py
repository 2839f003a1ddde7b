"""The public Python API: each name resolves, is documented, and its example runs."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import facebones

ROOT = Path(__file__).parents[1]


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
