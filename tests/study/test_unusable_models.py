"""A model that fails in the measurements of a study is recorded, and the others keep their metrics."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from facebones.errors import CheckpointError, RunError
from facebones.study.compare import compare, preview, raise_failures
from facebones.study.study import load_study

STUDY = """
recipe: demo
overrides: {{backbone.embedding_size: 16, data.workers: 0, validation.sets: tiny}}
backbones: [{models}]
data: {data}
profile: false
"""


def network(path, more=(), output="embedding", reshape=(1, -1)):
    """A linear map of an image's mean colours by block; takes one image, and declares any number."""
    weight = np.random.default_rng(0).standard_normal((147, 16)).astype(np.float32)
    held = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(reshape), "shape")]
    held += [numpy_helper.from_array(np.array(0.01, np.float32), "limit")]
    node = helper.make_node
    nodes = [
        node("AveragePool", ["input"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Reshape", ["pooled", "shape"], ["flat"]),
        node("MatMul", ["flat", "weight"], ["embedding"]),
        *more,
    ]
    value = helper.make_tensor_value_info
    inputs = [value("input", TensorProto.FLOAT, ["B", 3, 112, 112])]
    graph = helper.make_graph(nodes, "graph", inputs, [value(output, TensorProto.FLOAT, ["B", 16])], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def no_number_for_faces(path):
    """Noise, which files are opened with, has a mean near 0; that of the drawn people is further off."""
    node = helper.make_node
    more = [
        node("ReduceMean", ["input"], ["mean"], keepdims=0),
        node("Abs", ["mean"], ["off"]),
        node("Sub", ["limit", "off"], ["room"]),
        node("Sqrt", ["room"], ["root"]),
        node("Mul", ["embedding", "root"], ["answer"]),
    ]
    return network(path, more, "answer")


def is_zero(path):
    return network(path, [helper.make_node("Sub", ["embedding", "embedding"], ["answer"])], "answer")


def is_cut_short(path):
    path.write_bytes(network(path).read_bytes()[:300])
    return path


UNUSABLE = {"zero": (is_zero, "all zero"), "cut short": (is_cut_short, "no ONNX file that can be run")}


@pytest.mark.parametrize(("write", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_model_that_cannot_be_used_is_found_at_the_beginning(tmp_path, small_data, capsys, write, reason):
    files = [write(tmp_path / "bad.onnx"), network(tmp_path / "good.onnx")]
    (tmp_path / "study.yaml").write_text(STUDY.format(models=", ".join(map(str, files)), data=small_data))
    study, output = load_study(str(tmp_path / "study.yaml")), tmp_path / "out"
    preview(study, output, device="cpu")
    assert "note: bad will be left out: " in capsys.readouterr().err
    content = compare(study, output, device="cpu")
    (entry,) = [entry for entry in content["evaluation"] if entry["kind"] == "model_left_out"]
    assert entry["name"] == "bad" and reason in entry["error"]
    assert [row["backbone"] for row in content["summary"] if row["metrics"]] == ["good"]
    with pytest.raises(RunError, match="failed: model bad; the rest is done"):
        raise_failures(content)
    (tmp_path / "study.yaml").write_text(STUDY.format(models=files[0], data=small_data))
    with pytest.raises(CheckpointError, match=reason):
        preview(load_study(str(tmp_path / "study.yaml")), output, device="cpu")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_model_that_fails_while_it_is_measured_costs_the_others_nothing(tmp_path, small_data, capsys):
    files = [network(tmp_path / "good.onnx"), no_number_for_faces(tmp_path / "bad.onnx")]
    (tmp_path / "study.yaml").write_text(STUDY.format(models=", ".join(map(str, files)), data=small_data))
    study, output = load_study(str(tmp_path / "study.yaml")), tmp_path / "out"
    for _ in range(2):  # the second time everything stands, and says the same
        content = compare(study, output, device="cpu")
        entries = {entry["kind"]: entry for entry in content["evaluation"]}
        assert entries["model_left_out"]["name"] == "bad" and "not finite" in entries["model_left_out"]["error"]
        assert entries["protocol"]["error"] is None
        rows = {row["backbone"]: row for row in content["summary"]}
        assert [len(rows[name]["metrics"]) > 0 for name in ("good", "bad")] == [True, False]
        result = json.loads((output / entries["protocol"]["file"]).read_text())["results"][0]
        assert list(result["details"]) == ["good"]
        with pytest.raises(RunError, match="failed: model bad; the rest is done"):
            raise_failures(content)
    assert capsys.readouterr().err.count("measuring") == 1
