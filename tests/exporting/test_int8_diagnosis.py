"""Where 8 bits lose: the layer that is made to collapse is named, and leaving it in fp32 helps."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from facebones.backbones import Backbone
from facebones.errors import UnknownNameError
from facebones.exporting import int8_diagnosis, onnx_file
from facebones.exporting.int8_diagnosis import advice, diagnose, embedding_cosines, is_below_bound, worst_layers
from facebones.exporting.onnx_file import write_int8, write_model
from facebones.onnx.activations import LayerActivation, Sums
from facebones.onnx.graph import to_onnx
from facebones.onnx.graph_layers import layers_of, nodes_in_float, owners_of

SCALE = 1e4


class Convolutions(Backbone):
    """Four layers, of which one channel between the second and the third can be scaled without effect in fp32."""

    name = "convolutions"

    def __init__(self):
        super().__init__()
        self.embedding_size = 32
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.PReLU(8))
        self.middle = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.PReLU(16))
        self.end = nn.Sequential(nn.Conv2d(16, 16, 2, 2, groups=16), nn.PReLU(16))
        self.linear = nn.Linear(16 * 7 * 7, 32)
        for layer in (self.stem[0], self.middle[0], self.end[0], self.linear):
            nn.init.zeros_(layer.bias)  # what is lost must not be outweighed by what all images share

    def forward(self, x):
        return self.linear(self.end(self.middle(self.stem(x))).flatten(1))

    def scale_a_channel(self):
        with torch.no_grad():
            self.middle[0].weight[5] *= SCALE
            self.middle[0].bias[5] *= SCALE
            self.end[0].weight[5] /= SCALE


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(0).integers(0, 256, (12, 112, 112, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Convolutions().eval()


@pytest.fixture(scope="module")
def plain(network, tmp_path_factory):
    """The network as ONNX."""
    return write_model(tmp_path_factory.mktemp("plain") / "fp32.onnx", to_onnx(network, "here"), {})


@pytest.fixture(scope="module")
def collapsed(network, images, tmp_path_factory):
    """The files of the network with one channel scaled, and their diagnosis."""
    torch.manual_seed(0)
    scaled = Convolutions().eval()
    scaled.scale_a_channel()
    x = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(scaled(x), network(x), atol=1e-4, rtol=1e-3)
    folder = tmp_path_factory.mktemp("collapsed")
    before = write_model(folder / "fp32.onnx", to_onnx(scaled, "here"), {})
    after = write_int8(before, folder / "int8.onnx", images, {})
    return before, after, diagnose(before, after, images, images, folder), folder


def test_the_layer_of_the_scaled_channel_is_named(collapsed, images):
    before, after, found, folder = collapsed
    assert is_below_bound(embedding_cosines(before, after, images)[0])
    assert found["worst"][0] == "middle.0"
    first = found["layers"][found["first"]]
    assert (first["layer"], first["operator"]) == ("middle.0", "Conv")
    assert first["cosine"] < 0.5 < found["layers"][found["first"] - 1]["cosine"]
    assert first["spread"] > 1000
    # The norm alone does not show it: the large channel keeps it.
    assert first["norm_int8"] == pytest.approx(first["norm_fp32"], rel=0.05)
    assert {path.name for path in folder.iterdir()} == {"fp32.onnx", "int8.onnx", "int8.prepared.onnx"}


def test_leaving_it_in_fp32_helps_and_is_said(collapsed, images):
    found = collapsed[2]
    trials = {one["name"]: one for one in found["trials"]}
    assert trials["middle.0 in fp32"]["cosine_min"] > 0.95
    assert trials["ranges from extremes, not means"]["cosine_min"] < 0.9
    assert found["trials"][0]["cosine_min"] == embedding_cosines(*collapsed[:2], images)[0]
    words = " ".join(advice(found, 0.999987))
    assert "first layer that departs is middle.0 (Conv, activation 3 of 7)" in words
    assert "times its median one" in words and "--float-layers middle.0" in words and "0.999987" in words


def test_a_sound_network_has_no_layer_that_departs(plain, images, tmp_path):
    after = write_int8(plain, tmp_path / "int8.onnx", images, {})
    assert not is_below_bound(embedding_cosines(plain, after, images)[0])
    found = diagnose(plain, after, images, images, tmp_path)
    assert found["first"] is None and len(found["worst"]) == 1
    assert "small losses of many layers add up" in advice(found)[0]
    assert [row["layer"] for row in found["layers"] if row["operator"] in ("Conv", "Gemm")] == [
        "stem.0",
        "middle.0",
        "end.0",
        "linear",
    ]


def test_layers_in_float_are_not_quantised(plain, images, tmp_path):
    after = write_int8(plain, tmp_path / "int8.onnx", images, {}, ["first", "linear"])
    held = {tensor.name: tensor.data_type for tensor in onnx.load(after.path).graph.initializer}
    assert held["stem.0.weight"] == onnx.TensorProto.FLOAT == held["linear.weight"]
    assert held["end.0.weight_quantized"] == onnx.TensorProto.INT8
    with pytest.raises(UnknownNameError, match=r"--float-layers: unknown layer 'middel\.0'; did you mean 'middle\.0'"):
        write_int8(plain, tmp_path / "int8.onnx", images, {}, ["middel.0"])


def test_a_float_layer_reaches_to_the_next_layers_and_no_further():
    def node(kind, taken, given):
        return onnx.helper.make_node(kind, taken, [given], name=f"n_{given}")

    names = ["a.weight", "b.weight", "c.weight"]
    weights = [onnx.helper.make_tensor(one, onnx.TensorProto.FLOAT, [1], [1.0]) for one in names]
    nodes = [
        node("Conv", ["x", "a.weight"], "a"),
        node("Relu", ["a"], "r"),
        node("Conv", ["r", "b.weight"], "b"),
        node("Add", ["b", "r"], "s"),
        node("Conv", ["s", "c.weight"], "c"),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], [], weights)
    assert list(layers_of(graph)) == ["a", "b", "c"]
    assert nodes_in_float(graph, ["a"]) == ["n_a", "n_r", "n_b", "n_s"]
    assert nodes_in_float(graph, ["last", "b"]) == ["n_c", "n_b", "n_s"]
    assert owners_of(graph) == {"a": "a", "r": "a", "b": "b", "s": "b", "c": "c"}


def test_a_setting_that_changes_little_is_no_advice():
    def trial(name, cosine):
        return {"name": name, "options": f"--{name}", "cosine_min": cosine, "cosine_mean": cosine}

    found = {"layers": [], "first": None, "worst": [], "trials": [trial("as exported", 0.977), trial("a", 0.978)]}
    assert any("helps much" in sentence for sentence in advice(found))
    found["trials"].append(trial("b", 0.99))
    assert "What helps: b, by --b: least cosine 0.9900." in advice(found)
    found["trials"] = [trial("as exported", None), trial("a", None), trial("b", 0.6)]
    assert any("helps much" in sentence for sentence in advice(found))


def test_each_channel_counts_alike():
    sums = Sums()
    one = np.zeros((1, 2, 2, 2), np.float32)
    one[0, 0], one[0, 1] = 1000, np.array([[1, -1], [1, 1]])
    other = one.copy()
    other[0, 1] = 0
    sums.add(one, other)
    assert sums.cosine == pytest.approx(0.5)  # one channel is kept and one is lost
    assert sums.norms[1] == pytest.approx(sums.norms[0], rel=1e-5)
    empty = Sums()
    empty.add(np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32))
    assert empty.cosine == 1.0


def test_the_worst_layers_are_those_that_lose_by_themselves():
    def row(layer, step):
        values = {"operator": "Conv", "norm_fp32": 1.0, "norm_int8": 1.0, "cosine": 0.5, "spread": float("inf")}
        return LayerActivation(layer=layer, step=step, **values)

    assert worst_layers([row("a", 0.02), row("b", 0.3), row("c", 0.5), row("input", 0.9)]) == ["c", "b"]
    assert worst_layers([row("a", 0.02), row("b", 0.01)]) == ["a"]
    assert row("a", 0.0).to_json()["spread"] is None


def test_one_file_below_its_bound_is_diagnosed_too(monkeypatch, tiny_run, small_data, tmp_path, capsys):
    from facebones.cli.main import main

    monkeypatch.setattr(int8_diagnosis, "LEAST_COSINE", 1.5)
    words = ["--int8", "--calibration", str(small_data), "--calibration-images", "6"]
    assert main(["export", str(tiny_run), "--output", str(tmp_path / "a.onnx"), *words]) == 0
    printed = capsys.readouterr().out
    for text in (
        "int8 is below its bound",
        "tried against it",
        "None of the settings that were tried",
        "--formats onnx-fp16",
    ):
        assert text in printed
    assert onnx_file.is_below_bound is is_below_bound and (tmp_path / "a.onnx").is_file()


@pytest.fixture
def tiny_run(tmp_path, tiny_backbone):
    from facebones.backbones import create_backbone
    from facebones.backbones.weights import save_weights
    from facebones.run_folder import RunFolder

    torch.manual_seed(0)
    backbone = create_backbone(tiny_backbone, 16).eval()
    save_weights(RunFolder(tmp_path / "run"), backbone, {"backbone": tiny_backbone, "embedding_size": 16})
    return tmp_path / "run"
