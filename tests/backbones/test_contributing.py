"""The steps of CONTRIBUTING.md for a new family, done in a copy of the checkout."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAMILY = '''"""A family that only this test knows (no paper)."""

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import conv_block
from facebones.backbones.registry import register_backbone


class NewNet(Backbone):
    def __init__(self, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.stem = nn.Sequential(*conv_block(3, 8, 7, 16), nn.Flatten(), nn.Dropout(dropout))
        self.linear = nn.Linear(8 * 49, embedding_size)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.linear(self.stem(x_B3HW)).float()


@register_backbone("brand_new")
def newnet(embedding_size: int, dropout: float) -> Backbone:
    """A network that only a test knows."""
    return NewNet(embedding_size, dropout)
'''
PARAMETERS = 8 * 3 * 49 + 8 * 2 + 8 + (8 * 49 + 1) * 512
MACS = 49 * 8 * 3 * 49 + 8 * 49 * 512


def documented_commands():
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Adding a backbone")[2].partition("\n## ")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ") and "facebones" in line]


@pytest.fixture
def checkout(tmp_path):
    copy = tmp_path / "checkout"
    for name in ("src", "docs", "recipes", "tests/backbones", "tests/golden", "tests/reporting"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def run(folder, command):
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_documented_steps_add_a_family(checkout):
    python = shlex.quote(sys.executable)
    backbones = checkout / "src" / "facebones" / "backbones"
    (backbones / "newnet.py").write_text(FAMILY)
    registry = (backbones / "registry.py").read_text()
    assert registry.count("FAMILIES = (") == 1
    (backbones / "registry.py").write_text(registry.replace("FAMILIES = (", 'FAMILIES = ("newnet", '))
    costs = json.loads((checkout / "tests" / "golden" / "backbones.json").read_text())
    costs["backbones"]["newnet"] = {"parameters": PARAMETERS, "macs_millions": MACS / 1e6}
    (checkout / "tests" / "golden" / "backbones.json").write_text(json.dumps(costs))

    commands = documented_commands()
    assert [command.split()[-1] for command in commands] == [
        "src/facebones/backbones/catalogue.json",
        "docs/backbones.md",
        "docs/costs.md",
    ]
    for command in commands:
        done = run(checkout, command.replace("facebones ", f"{python} -m facebones ", 1))
        assert done.returncode == 0, done.stderr

    rows = json.loads((backbones / "catalogue.json").read_text())
    before = json.loads((ROOT / "src" / "facebones" / "backbones" / "catalogue.json").read_text())
    assert rows[1:] == before
    assert rows[0] == {
        "name": "newnet", "aliases": ["brand_new"], "summary": "A network that only a test knows",
        "parameters": PARAMETERS, "unused_parameters": 0, "macs": MACS, "needs": None, "family": "newnet",
    }  # fmt: skip
    assert f"| `newnet` | {PARAMETERS:,} | 0 |" in (checkout / "docs" / "backbones.md").read_text()
    assert f"| `newnet` | {PARAMETERS:,} | {MACS / 1e6:.2f} |" in (checkout / "docs" / "costs.md").read_text()
    done = run(checkout, f"{python} -m facebones backbones brand_new --json")
    assert json.loads(done.stdout)[0]["macs"] == MACS
    done = run(
        checkout, f"{python} -m pytest -q -p no:cacheprovider tests/backbones tests/reporting -k 'newnet or docs'"
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout
    assert sum(int(word) for word in done.stdout.split(" passed")[0].split()[-1:]) >= 6
