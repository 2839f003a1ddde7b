"""Preprocessing inside ONNX graphs, as exporters write it, and what it says of the input that they are to get."""

import cv2
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from facebones.data.image_sources import EncodedImages
from facebones.data.preprocessing import OURS, Preprocessing
from facebones.errors import CheckpointError
from facebones.evaluation.embed import embed
from facebones.evaluation.models import load_model
from facebones.onnx.scaling import find_scaling

node = helper.make_node
SIZE = 16
WEIGHT = (np.random.default_rng(0).standard_normal((7 * 7 * 3, SIZE)) / 10).astype(np.float32)
PIXELS, UNIT = Preprocessing(mean=0, scale=1), Preprocessing(mean=0, scale=255)


def network(path, before, constants, after=()):
    """A linear projection of block means; `before` leads from "x" to "y", `after` from "means" to "embedding"."""
    nodes = [
        *before,
        node("AveragePool", ["y"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        node("Flatten", ["pooled"], ["flat"], axis=1),
        node("MatMul", ["flat", "weight"], ["means" if after else "embedding"]),
        *after,
    ]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in {"weight": WEIGHT, **constants}.items()]
    shapes = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 112, 112])]
    answer = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", SIZE])]
    graph = helper.make_graph(nodes, "graph", shapes, answer, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def f(values):
    return np.asarray(values, np.float32)


def i(values):
    return np.asarray(values, np.int64)


USE = [node("Sub", ["x", "m"], ["c"]), node("Div", ["c", "s"], ["y"])]
HALF = {"m": f(127.5), "s": f(127.5)}
CLIP = node("Clip", ["x", "low", "high"], ["k"])
BEHIND = [node("Sub", ["k", "m"], ["c"]), node("Div", ["c", "s"], ["y"])]
DIAGONAL = np.diag(f([1 / 127.5] * 3)).reshape(3, 3, 1, 1)
KNOWN = {
    "equal buffers": ([node("Identity", ["m"], ["s"]), *USE], {"m": f([[[127.5]]] * 3)}, PIXELS),
    "cast": (
        [node("Cast", ["d"], ["m"], to=1), node("Identity", ["m"], ["s"]), *USE],
        {"d": np.float64(127.5)},
        PIXELS,
    ),
    "unsqueezed": (
        [node("Unsqueeze", ["d", "axes"], ["m"]), *USE],
        {"d": f([[[127.5]]] * 3), "axes": i([0]), "s": f(128)},
        PIXELS,
    ),
    "reshaped": (
        [node("Reshape", ["d", "to"], ["m"]), *USE],
        {"d": f([127.5] * 3), "to": i([1, 3, 1, 1]), "s": f(128)},
        PIXELS,
    ),
    "computed": (
        [
            node("Div", ["x", "largest"], ["k"]),
            node("Div", ["d", "largest"], ["m"]),
            node("Identity", ["m"], ["s"]),
            *BEHIND,
        ],
        {"d": f(127.5), "largest": f(255)},
        PIXELS,
    ),
    "clipped pixels": ([CLIP, *BEHIND], {**HALF, "low": f(0), "high": f(255)}, PIXELS),
    "clipped pixels alone": ([node("Clip", ["x", "low", "high"], ["y"])], {"low": f(0), "high": f(255)}, PIXELS),
    "clipped to 0 .. 1": (
        [CLIP, *BEHIND],
        {"m": f(0.2), "s": f(0.5), "low": f(0), "high": f(1)},
        UNIT,
    ),
    "largest and smallest": (
        [node("Max", ["low", "x"], ["j"]), node("Min", ["j", "high"], ["k"]), *BEHIND],
        {**HALF, "low": f(0), "high": f(255)},
        PIXELS,
    ),
    "clipped behind 255 x": (
        [node("Mul", ["x", "high"], ["j"]), node("Clip", ["j", "low", "high"], ["k"]), *BEHIND],
        {**HALF, "low": f(0), "high": f(255)},
        UNIT,
    ),
    "mean alone": ([node("Sub", ["x", "m"], ["y"])], {"m": f(127.5)}, PIXELS),
    "red, green and blue means alone": (
        [node("Sub", ["x", "m"], ["y"])],
        {"m": f([131.0912, 103.8827, 91.4953]).reshape(1, 3, 1, 1)},
        PIXELS,
    ),
    "blue, green and red means alone": (
        [node("Sub", ["x", "m"], ["y"])],
        {"m": f([91.4953, 103.8827, 131.0912]).reshape(1, 3, 1, 1)},
        Preprocessing(mean=0, scale=1, colour="bgr"),
    ),
    "convolution": ([node("Conv", ["x", "w", "b"], ["y"])], {"w": DIAGONAL, "b": f([-1] * 3)}, PIXELS),
}


@pytest.mark.parametrize(("before", "constants", "wanted"), KNOWN.values(), ids=KNOWN)
def test_what_graphs_begin_with_says_what_they_are_to_be_given(tmp_path, capsys, before, constants, wanted):
    model = load_model(network(tmp_path / "x.onnx", before, constants), device="cpu")
    assert model.preprocessing == wanted
    assert "has preprocessing inside the graph" in capsys.readouterr().err


NETWORKS = {
    "activation of six": ([node("Clip", ["x", "low", "high"], ["y"])], {"low": f(0), "high": f(6)}),
    "mixing convolution": ([node("Conv", ["x", "w"], ["y"])], {"w": DIAGONAL + f(0.001)}),
    "too deep": ([node("Identity", [f"m{k + 1}"], [f"m{k}"]) for k in range(40)][::-1], {"m40": f(127.5)}),
    "within itself": ([], {}),
}


@pytest.mark.parametrize(("before", "constants"), NETWORKS.values(), ids=NETWORKS)
def test_what_belongs_to_the_network_is_no_preprocessing(tmp_path, before, constants):
    if not before:  # no runtime opens it
        path = network(tmp_path / "x.onnx", [node("Identity", ["m"], ["m"]), node("Sub", ["x", "m"], ["y"])], {})
    elif before[-1].output[0] == "y":
        path = network(tmp_path / "x.onnx", before, constants)
    else:
        path = network(tmp_path / "x.onnx", [*before, node("Sub", ["x", "m0"], ["y"])], constants)
    assert find_scaling(path, "x") is None


def test_a_constant_that_would_be_large_is_not_computed(tmp_path):
    before = [node("Add", ["row", "column"], ["m"]), node("Sub", ["x", "m"], ["y"])]
    constants = {"row": np.zeros((1, 10**5), np.float32), "column": np.zeros((10**5, 1), np.float32)}
    assert find_scaling(network(tmp_path / "x.onnx", before, constants), "x") is None


def test_constants_that_double_and_double_take_no_time(tmp_path, monkeypatch):
    """A sum of a sum with itself is computed for both of its inputs, and at each use."""
    import onnx.numpy_helper as helpers

    reads = []
    read = helpers.to_array
    monkeypatch.setattr(helpers, "to_array", lambda tensor, *more: reads.append(tensor) or read(tensor, *more))
    sums = [node("Add", [f"m{k + 1}"] * 2, [f"m{k}"]) for k in range(7)][::-1]
    steps = [node("Sub", [f"x{k}" if k else "x", "m0"], [f"x{k + 1}"]) for k in range(20)]
    path = network(tmp_path / "x.onnx", [*sums, *steps, node("Identity", ["x20"], ["y"])], {"m7": f(1)})
    find_scaling(path, "x")
    assert len(reads) <= 200


def test_preprocessing_that_does_not_show_the_input_is_said(tmp_path, capsys):
    path = network(tmp_path / "odd.onnx", [node("Mul", ["x", "m"], ["y"])], {"m": f(3)})
    assert load_model(path, device="cpu").preprocessing == OURS
    said = capsys.readouterr().err
    assert "odd.onnx has preprocessing inside the graph (x * 3 + 0), which does not show what numbers" in said
    load_model(path, device="cpu", preprocessing=PIXELS)
    assert "does not show" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ embeddings of one direction


@pytest.fixture(scope="module")
def faces():
    random = np.random.default_rng(0)
    small = [random.integers(0, 256, (7, 7, 3), dtype=np.uint8) for _ in range(8)]
    large = [cv2.resize(face, (112, 112), interpolation=cv2.INTER_CUBIC) for face in small]
    return [cv2.imencode(".png", face)[1].tobytes() for face in large]


COLLAPSE = "far gives nearly the same embedding for different images; is the input right (--mean, --scale, --colour)?"


def test_embeddings_of_one_direction_are_said_once(tmp_path, faces, capsys):
    """As with numbers from -1 to 1 for a network that is to get pixels."""
    after = [node("Add", ["means", "far"], ["embedding"])]
    path = network(tmp_path / "far.onnx", [node("Identity", ["x"], ["y"])], {"far": f([1e4] * SIZE)}, after)
    model = load_model(path, device="cpu")
    for _ in range(2):
        embed({"far": model}, EncodedImages("set", faces), batch_size=8)
    assert capsys.readouterr().err.count(COLLAPSE) == 1


def test_equal_images_and_sound_models_are_no_collapse(tmp_path, faces, capsys):
    sound = load_model(network(tmp_path / "sound.onnx", [node("Identity", ["x"], ["y"])], {}), device="cpu")
    embed({"sound": sound}, EncodedImages("set", faces), batch_size=8)
    embed({"sound": sound}, EncodedImages("one", faces[:1] * 8), batch_size=8)
    embed({"sound": sound}, EncodedImages("two", faces[:2]), batch_size=1)
    assert "nearly the same" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- outputs of a name


@pytest.mark.parametrize("wanted", ["length", "pooled"])
def test_an_output_that_is_no_embedding_names_those_that_are(tmp_path, wanted):
    from onnx import load, save

    after = [
        node("Identity", ["means"], ["embedding"]),
        node("ReduceL2", ["means"], ["length"], axes=[1], keepdims=1),
    ]
    path = network(tmp_path / "x.onnx", [node("Identity", ["x"], ["y"])], {}, after)
    model = load(path)
    for name, shape in (("length", ["N", 1]), ("pooled", ["N", 3, 7, 7]), ("flat", ["N", 147])):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    save(model, path)
    with pytest.raises(CheckpointError) as error:
        load_model(path, device="cpu", output_name=wanted)
    assert f"its output {wanted} for one image is" in str(error.value)
    assert str(error.value).endswith("choose another one by --output-name: embedding, flat")
