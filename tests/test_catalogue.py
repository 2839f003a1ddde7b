"""The catalogue of the backbones agrees with the registry, and commands that need only the catalogue are fast.

tests/backbones compares its counts with those of the networks.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

from facebones.backbones import list_backbones
from facebones.backbones.catalogue import CATALOGUE, catalogued_backbones, format_catalogue, read_catalogue
from facebones.backbones.registry import is_built_in, lookup_backbone
from facebones.cli.main import main
from facebones.errors import UnknownNameError
from facebones.profiling.cost import describe_backbones

HEAVY = {"torch", "numpy", "cv2", "timm", "matplotlib"}


def ours(pattern="*"):
    return [name for name in list_backbones(pattern) if is_built_in(lookup_backbone(name))]  # others are of other tests


@pytest.fixture
def no_timm(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else find(name, *rest))


def test_the_file_is_as_the_command_prints_it(monkeypatch, capsys):
    rows = read_catalogue()
    monkeypatch.setattr("facebones.profiling.cost.count_catalogue", lambda: rows)
    assert main(["backbones", "--catalogue"]) == 0
    assert capsys.readouterr().out == CATALOGUE.read_text() == format_catalogue(rows)
    assert len(CATALOGUE.read_text().splitlines()) == len(rows) + 2


@pytest.mark.parametrize("pattern", ["*", "mobile*", "r50", "*_xs", "sfn[12]_?", "[!s]*"])
def test_a_pattern_finds_what_it_finds_in_the_registry(pattern):
    assert [row["name"] for row in catalogued_backbones(pattern)] == ours(pattern) != []


@pytest.mark.parametrize("pattern", ["mobilfacenet", "nope*", "[", ""])
def test_an_unknown_name_is_refused_as_the_registry_refuses_it(pattern):
    with pytest.raises(UnknownNameError) as error:
        catalogued_backbones(pattern)
    assert str(error.value) == str(UnknownNameError("backbone", pattern, ours()))


def test_without_an_extra_the_listing_says_what_building_says(no_timm, capsys):
    rows = [row for row in catalogued_backbones() if row["problem"]]
    assert [row["name"] for row in rows] == [row["name"] for row in read_catalogue() if row["needs"] == "timm"] != []
    assert json.dumps(rows) == json.dumps([describe_backbones(row["name"])[0] for row in rows])
    assert main(["backbones", rows[0]["name"]]) == 0
    assert "not available: timm is not installed; pip install 'facebones[timm]'" in capsys.readouterr().out


def test_without_an_extra_no_catalogue_is_made(no_timm, monkeypatch, capsys):
    monkeypatch.setattr("facebones.profiling.cost.list_backbones", lambda _: ["edgeface_xs"])
    assert main(["backbones", "--catalogue"]) == 2
    assert "the catalogue needs every backbone: timm is not installed" in capsys.readouterr().err


def test_timm_models_are_still_counted(monkeypatch, capsys):
    monkeypatch.setattr("facebones.profiling.cost.describe_backbones", lambda pattern: [{"asked": pattern}])
    assert main(["backbones", "timm:x*", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"asked": "timm:x*"}]


@pytest.mark.parametrize(
    "code",
    [
        "import facebones, facebones.cli.main",
        "from facebones.backbones.catalogue import catalogued_backbones; catalogued_backbones('r50')",
        "import facebones.cli.main; facebones.cli.main.main(['backbones'])",
        "import facebones.cli.main; facebones.cli.main.main(['backbones', 'nope*'])",
        "import facebones.cli.main; facebones.cli.main.main(['backbones', '--json'])",
        "import facebones.cli.main; facebones.cli.main.main(['backbones', '--markdown'])",
    ],
)
def test_no_heavy_import(code):
    code = f"import sys; {code}; sys.exit(', '.join({HEAVY} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_lookup_imports_only_its_family():
    code = (
        "import sys; from facebones.backbones import lookup_backbone; lookup_backbone('r50');"
        "names = {name.rpartition('.')[2] for name in sys.modules if name.startswith('facebones.backbones.')};"
        "sys.exit(0 if 'iresnet' in names and not names & {'edgeface', 'mixfacenet', 'study', 'timm_models'} else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("words", "modules"), [(["--help"], 200), (["backbones"], 300)])
def test_the_command_starts_with_few_modules(words, modules):
    """What it loads is counted, for times differ between machines; benchmarks/startup.py measures them."""
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('facebones', run_name='__main__')\n"
        "finally: print('', *sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    loaded = done.stderr.split()
    assert "facebones.cli.main" in loaded and len(loaded) < modules
