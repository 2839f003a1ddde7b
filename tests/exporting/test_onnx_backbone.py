"""ONNX files as backbones: exported by us, by other tools, with a fixed batch of 1, and hostile ones."""

import json
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from facebones.cli.main import main
from facebones.data.preprocessing import Preprocessing, to_network_input
from facebones.errors import CheckpointError, ConfigError
from facebones.evaluation.models import load_model
from facebones.onnx.backbone import OnnxBackbone

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
FACES = (3, 112, 112)


def network(path, *, batch="B", shape=FACES, kind=FLOAT, weights=None, nodes=None, outputs=("embedding",), metadata=()):
    """Write a file whose embedding is the mean of each channel, unless other nodes are given."""
    axes = numpy_helper.from_array(np.array([1, 2] if kind == UINT8 else [2, 3]), "axes")
    if nodes is None:
        nodes = [
            helper.make_node("Cast", ["input"], ["x"], to=FLOAT),
            helper.make_node("ReduceMean", ["x", "axes"], ["embedding"], keepdims=0),
        ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", kind, [batch, *shape])],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [axes, *([weights] if weights is not None else [])],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("strange", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=9)
    helper.set_model_props(model, dict(metadata))
    path.write_bytes(model.SerializeToString())
    return path


def pixels(batch=256):
    """All values that a pixel may have."""
    values = torch.arange(256, dtype=torch.uint8)[:batch, None, None, None]
    return values.expand(-1, 112, 112, 3).contiguous()


@pytest.mark.parametrize("batch", ["B", 1])
def test_any_number_of_faces_also_where_the_file_takes_one(tmp_path, batch):
    backbone = OnnxBackbone(network(tmp_path / "other.onnx", batch=batch))
    assert (backbone.name, backbone.said_name, backbone.embedding_size) == ("other", None, 3)
    assert backbone.batch == (1 if batch == 1 else None)
    x = torch.rand(5, *FACES)
    found = backbone(x)
    assert found.dtype == torch.float32
    assert torch.allclose(found, x.mean((2, 3)), atol=1e-5)
    assert torch.allclose(backbone(x.contiguous(memory_format=torch.channels_last).flip(3)), found, atol=1e-5)


def test_a_folded_file_gets_the_very_pixels(tmp_path):
    path = network(tmp_path / "folded.onnx", shape=(112, 112, 3), kind=UINT8)
    backbone = OnnxBackbone(path)
    assert backbone.folded
    expected = torch.arange(256.0)[:, None].expand(-1, 3)
    assert torch.equal(backbone(to_network_input(pixels())), expected)


def test_other_preprocessing_reaches_the_file_unless_it_has_its_own(tmp_path):
    other = Preprocessing(mean=10, scale=2, colour="bgr")
    shades = pixels().clone().numpy()
    shades[..., 0] = 255
    model = load_model(network(tmp_path / "other.onnx", batch=1), device="cpu", preprocessing=other)
    expected = (torch.arange(256.0)[:, None] - 10) / 2
    expected = torch.cat([expected, expected, torch.full_like(expected, 122.5)], dim=1)
    assert np.array_equal(model(shades, flip=False)[:, 0], expected.numpy())
    folded = network(tmp_path / "folded.onnx", shape=(112, 112, 3), kind=UINT8)
    with pytest.raises(ConfigError, match=r"folded\.onnx: takes 8-bit pixels and scales them itself; leave out --mean"):
        load_model(folded, device="cpu", preprocessing=other)
    swapped = load_model(folded, device="cpu", preprocessing=Preprocessing(colour="bgr"))
    assert np.array_equal(swapped(shades, flip=False)[:, 0], shades[:, 0, 0, ::-1])
    assert np.array_equal(load_model(folded, device="cpu")(shades, flip=True)[:, 1], shades[:, 0, 0])


def test_external_data_belongs_to_the_digest(tmp_path):
    (tmp_path / "models").mkdir()
    path, digests = external(tmp_path, "external.onnx.data"), set()
    for weights in (np.eye(3), 2 * np.eye(3)):
        (tmp_path / "models" / "external.onnx.data").write_bytes(weights.astype(np.float32).tobytes())
        digests.add(load_model(path, device="cpu").weights_sha256)
    assert len(digests) == 2


def test_the_name_is_believed_in_our_files_only(tmp_path):
    card = {"backbone": "mobilefacenet"}
    assert OnnxBackbone(network(tmp_path / "other.onnx", metadata=card)).name == "other"
    ours = OnnxBackbone(network(tmp_path / "ours.onnx", metadata={**card, "facebones_version": "1"}))
    assert ours.name == ours.said_name == "mobilefacenet"


def test_the_number_of_threads(tmp_path):
    path = network(tmp_path / "other.onnx")
    options = [OnnxBackbone(path, threads=threads)._session.get_session_options() for threads in (None, 3)]
    assert [option.intra_op_num_threads for option in options] == [torch.get_num_threads(), 3]


FLAT = [
    helper.make_node("Cast", ["input"], ["x"], to=FLOAT),
    helper.make_node("ReduceMean", ["x"], ["embedding"], keepdims=0),
]
TWO = [helper.make_node("Identity", ["input"], [name]) for name in ("embedding", "second")]
PARTS = [  # one face's numbers cannot be split into five parts
    helper.make_node("Reshape", ["input", "parts"], ["x"]),
    helper.make_node("ReduceMean", ["x", "axes"], ["embedding"], keepdims=0),
]
FIVE = numpy_helper.from_array(np.array([5, 5, -1, 1]), "parts")
STRANGE = [helper.make_node("Strange", ["input"], ["embedding"], domain="strange")]
UNFIT = {
    "size": ({"shape": (3, 224, 224)}, r"input is tensor\(float\) \['B', 3, 224, 224\]; known are float"),
    "layout": ({"shape": (112, 3, 112)}, "known are float"),
    "rank": ({"shape": (3, 112), "nodes": FLAT}, "known are float"),
    "type": ({"kind": TensorProto.DOUBLE}, r"tensor\(double\)"),
    "batch": ({"batch": 100_000}, "takes 100000 images at a time, and 512 are the most here"),
    "outputs": ({"nodes": TWO, "outputs": ("embedding", "second")}, "none of its 2 outputs is an embedding"),
    "no embedding": ({"nodes": FLAT}, r"output for one image is of shape \(\), one number; an embedding is \(B, D\)"),
    "fails in the run": (
        {"nodes": PARTS, "weights": FIVE},
        "cannot be run on 1 image:",
    ),
    "operator": ({"nodes": STRANGE}, "no ONNX file that can be run: .*Strange"),
}


@pytest.mark.parametrize(("options", "message"), UNFIT.values(), ids=UNFIT)
def test_networks_that_are_no_backbone(tmp_path, options, message):
    path = network(tmp_path / "unfit.onnx", **options)
    with pytest.raises(CheckpointError, match=message) as refusal:
        OnnxBackbone(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"hello " * 100, b"\x08\x09"])
def test_files_that_are_no_network(tmp_path, content, capfd):
    (tmp_path / "junk.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match="no ONNX file that can be run"):
        OnnxBackbone(tmp_path / "junk.onnx")
    with pytest.raises(CheckpointError, match="no such file"):
        OnnxBackbone(tmp_path / "missing.onnx")
    assert capfd.readouterr() == ("", "")


def test_metadata_that_are_no_text(tmp_path):
    path = network(tmp_path / "x.onnx", metadata={"backbone": "letters"})
    path.write_bytes(path.read_bytes().replace(b"letters", b"\xa3etters"))
    with pytest.raises(CheckpointError, match=r"x\.onnx: names or metadata in it are not UTF-8"):
        OnnxBackbone(path)


def test_names_of_dimensions_that_are_no_text(tmp_path):
    """They are read with the shape, after the file has been opened."""
    path = network(tmp_path / "x.onnx", batch="letters")
    path.write_bytes(path.read_bytes().replace(b"letters", b"\xa3etters"))
    with pytest.raises(CheckpointError, match=r"x\.onnx: names or metadata in it are not UTF-8"):
        OnnxBackbone(path)


def external(tmp_path, location):
    """A file that wants its weights from another file."""
    weights = TensorProto(name="w", data_type=FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=str(location))
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["x"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["embedding"]),
    ]
    return network(tmp_path / "models" / "external.onnx", nodes=nodes, weights=weights)


@pytest.mark.parametrize("location", ["../secret", "absolute", "link", "sub/../../secret"])
def test_weights_outside_of_the_folder_are_refused(tmp_path, location):
    (tmp_path / "models" / "sub").mkdir(parents=True)
    for name in ("secret", "models/inside"):
        (tmp_path / name).write_bytes(np.eye(3, dtype=np.float32).tobytes())
    (tmp_path / "models" / "link").symlink_to("../secret")
    assert OnnxBackbone(external(tmp_path, "inside")).embedding_size == 3
    with pytest.raises(CheckpointError, match=r"external\.onnx: no ONNX file that can be run: External data path"):
        OnnxBackbone(external(tmp_path, tmp_path / "secret" if location == "absolute" else location))


def test_devices_and_a_missing_onnx_runtime(tmp_path, monkeypatch):
    path = network(tmp_path / "other.onnx")
    assert OnnxBackbone(path, "auto").provider in ("CPUExecutionProvider", "CUDAExecutionProvider")
    for device, message in (("tpu", "run on cpu or cuda"), ("cuda:x", "run on cpu or cuda|no CUDA")):
        with pytest.raises(ConfigError, match=message):
            OnnxBackbone(path, device)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs ONNX Runtime; pip install 'facebones\[export\]'"):
        OnnxBackbone(path)


def test_evaluate_pairs_takes_an_onnx_file(tmp_path, small_data, capsys):
    path = network(tmp_path / "ours.onnx", metadata={"facebones_version": "1", "backbone": "mobilefacenet"})
    words = ["evaluate", "pairs", "--model", str(path), "--data", str(small_data / "tiny.bin"), "--json"]
    assert main([*words, "--backbone", "mobilefacenet"]) == 0
    result = json.loads(capsys.readouterr().out)
    model = result["models"]["ours"]
    assert (model["backbone"], model["embedding_size"]) == ("mobilefacenet", 3)
    assert (
        result["results"][0]["details"]["ours"]["accuracy"] > 0.6
    )  # the mean colour tells these people apart, now and then
    assert main([*words, "--backbone", "r50"]) == 2
    assert "holds mobilefacenet, not r50; leave --backbone out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_foreign_recogniser_on_real_faces(real_faces):
    from facebones.data.pair_bins import PairSet, read_pairs
    from facebones.evaluation.verification import evaluate_pair_set

    model = real_faces.parent / "models" / "mobile_512d.onnx"
    if not model.is_file():
        pytest.skip(f"the foreign recogniser is not here: {model}")
    pairs = read_pairs(real_faces / "celeba_cfp" / "lfw.bin")
    few = [*range(30), *range(300, 330)]  # each fold of 600 begins with its genuine pairs
    images = [pairs.images[2 * pair + side] for pair in few for side in (0, 1)]
    sample = PairSet("lfw", images, pairs.is_same[few])
    result = evaluate_pair_set(OnnxBackbone(model), sample, device=torch.device("cpu"), batch_size=16)
    assert result.verification.accuracy > 0.9
