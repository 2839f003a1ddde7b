"""Backbones that a user's own file or an installed package registers."""

import json

import numpy as np
import pytest
import torch

from facebones import plugins
from facebones.backbones import create_backbone, list_backbones, lookup_backbone, registry
from facebones.backbones.weights import load_backbone, save_weights
from facebones.cli.main import main
from facebones.errors import CheckpointError, ConfigError, UnknownNameError
from facebones.exporting import export
from facebones.onnx.backbone import OnnxBackbone
from facebones.plugins import import_plugins
from facebones.profiling import Conditions
from facebones.profiling.cost import network_costs
from facebones.profiling.profile import profile
from facebones.run_folder import RunFolder

FILE = '''
from torch import nn
from facebones.backbones import register_backbone

@register_backbone("mine")
def my_net(embedding_size, dropout):
    """A network of the user's.

    With more about it."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 16, 16), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * 49, embedding_size)
    )

@register_backbone()
class MyClass(nn.Module):
    def __init__(self, embedding_size):
        super().__init__()
        self.linear = nn.Linear(3, embedding_size)

    def forward(self, x):
        return self.linear(x.mean((2, 3)))
'''
MACS = 4 * 49 * 3 * 16 * 16 + 4 * 49 * 512
PARAMETERS = 4 * (3 * 16 * 16 + 1) + (4 * 49 + 1) * 512


@pytest.fixture
def plugin(tmp_path):
    """Write and import a plug-in file."""
    network_costs.cache_clear()

    def write(text=FILE, name="my_file.py"):
        path = tmp_path / name
        path.write_text(text)
        import_plugins([str(path)])
        return path

    return write


def test_a_function_and_a_class_are_backbones(plugin):
    plugin()
    assert list_backbones("m[iy]*")[-1] == "my_net"
    assert list_backbones()[-2:] == ["my_net", "MyClass"]
    entry = lookup_backbone("mine")
    assert (entry.name, entry.summary, entry.family) == ("my_net", "A network of the user's", "my_file")
    for name, dropout in (("mine", 0.5), ("MyClass", 0.0)):
        backbone = create_backbone(name, 32, dropout).eval()
        assert (backbone.name, backbone.embedding_size) == (lookup_backbone(name).name, 32)
        assert backbone(torch.zeros(2, 3, 112, 112)).shape == (2, 32)


def test_the_contract_is_checked_without_touching_the_random_state_or_the_mode(plugin):
    plugin()
    torch.manual_seed(0)
    backbone = create_backbone("my_net", 8, 0.5)
    after = torch.rand(3)
    torch.manual_seed(0)
    torch.nn.Sequential(torch.nn.Conv2d(3, 4, 16, 16), torch.nn.Linear(4 * 49, 8))
    assert torch.equal(after, torch.rand(3))
    assert all(module.training for module in backbone.modules())


def test_the_command_lists_it_with_its_counts(plugin, capsys):
    plugin()
    assert main(["backbones", "my_*", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["parameters"], row["macs"], row["unused_parameters"]) == (PARAMETERS, MACS, 0)
    assert main(["backbones", "m*"]) == 0
    printed = capsys.readouterr().out
    assert "mobilefacenet_wide" in printed and "A network of the user's" in printed
    assert main(["backbones", "zzz*"]) == 2
    assert network_costs("my_net", 512)["macs"] == MACS


def test_it_is_profiled_its_memory_too_which_another_process_measures(plugin):
    plugin()
    before = torch.get_rng_state()
    (row,) = profile("my_net", Conditions(device="cpu", threads=1, batch_size=1, seconds=0.01))["networks"]
    assert torch.equal(torch.get_rng_state(), before)
    assert (row["family"], row["macs"], row["parameters"]) == ("my_file", MACS, PARAMETERS)
    assert row["latency_p50_ms"] > 0
    assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] > 4 * PARAMETERS / 2


def test_its_weights_are_loaded_and_exported(plugin, tmp_path, monkeypatch):
    plugin()
    backbone = create_backbone("my_net", 16).eval()
    save_weights(RunFolder(tmp_path / "run"), backbone, {"backbone": "my_net", "embedding_size": 16})
    torch.save(backbone.state_dict(), tmp_path / "bare.pth")
    x = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(x)
        for path, name in ((tmp_path / "run", None), (tmp_path / "bare.pth", "mine")):
            assert torch.equal(load_backbone(path, name)[0](x), expected)
    export(tmp_path / "run", tmp_path / "my.onnx")
    exported = OnnxBackbone(tmp_path / "my.onnx")
    assert exported.name == "my_net"
    np.testing.assert_allclose(exported(x), expected, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"bare\.pth: .* are those of my_net; give --backbone my_net"):
        load_backbone(tmp_path / "bare.pth")
    registry._REGISTRY.pop("my_net")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: unknown backbone 'my_net'.* --import"):
        load_backbone(tmp_path / "run")


NET = """
import torch
from torch import nn
from facebones.backbones import register_backbone

class Net(nn.Module):
    def __init__(self, embedding_size):
        super().__init__()
        self.linear = nn.Linear(3, embedding_size)
    def forward(self, x):
        return {answer}

@register_backbone()
def bad(embedding_size):
    {before}
    return {network}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer": "x"},
            r"bad: forward returned \(1, 3, 112, 112\) torch.float32 for one .* must return \(1, 8\)",
        ),
        ({"answer": "self.linear(x.mean((2, 3))).double()"}, r"\(1, 8\) torch.float64 for one image; it must return"),
        ({"answer": "[x]"}, "bad: forward returned list for one image"),
        ({"answer": "self.missing(x)"}, "bad: cannot be built or cannot embed .* AttributeError: 'Net' object has no"),
        ({"before": "raise ValueError('too\\nlong')"}, "bad: cannot be built or cannot embed .* ValueError: too"),
        ({"network": "3"}, "bad: its builder returned int, not an nn.Module"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused_in_one_line(change, message, plugin):
    values = {"answer": "self.linear(x.mean((2, 3)))", "before": "pass", "network": "Net(embedding_size)"}
    plugin(NET.format(**(values | change)))
    with pytest.raises(ConfigError, match=message) as caught:
        create_backbone("bad", 8)
    assert "\n" not in str(caught.value)


def test_dropout_that_a_network_lacks_is_refused(plugin):
    plugin()
    with pytest.raises(ConfigError, match=r"MyClass has no dropout; set backbone\.dropout to 0"):
        create_backbone("MyClass", dropout=0.1)


@pytest.mark.parametrize(
    ("name", "alias", "taken"),
    [
        ("iresnet50", "", "'iresnet50' is taken by iresnet50"),
        ("other", "r50", "'r50' is taken by iresnet50"),
        ("mbf", "", "'mbf' is taken by mobilefacenet_wide"),
        ("my_net", "", "'my_net' is taken by my_net"),
    ],
)
def test_a_taken_name_is_refused(name, alias, taken, plugin):
    plugin()
    with pytest.raises(ConfigError) as caught:
        plugin(FILE.replace('"mine"', f'"{alias}"').replace("my_net", name).replace("MyClass", "Third"), "second.py")
    assert "second.py: backbone name " in str(caught.value) and taken in str(caught.value)
    assert lookup_backbone("r50").family == "iresnet"


def test_an_installed_package_offers_one_by_its_entry_point(plugin, tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(FILE)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[facebones.plugins]\nnets = my_package\n")
    with pytest.raises(UnknownNameError):
        lookup_backbone("my_net")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.import_entry_points.cache_clear()
    try:
        assert lookup_backbone("mine").family == "my_package"
        assert "my_net" in list_backbones()
    finally:
        plugins.import_entry_points.cache_clear()
