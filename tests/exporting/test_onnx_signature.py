"""ONNX files as other tools leave them: every one gives the metrics of the plain file, or is named and left out."""

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from facebones.cli.main import main
from facebones.data.preprocessing import OURS, Preprocessing
from facebones.errors import CheckpointError, ConfigError
from facebones.evaluation.models import load_model, open_models
from facebones.evaluation.run import evaluate
from facebones.evaluation.runtimes import run_by, smallest_cosine
from facebones.onnx.backbone import OnnxBackbone

FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
PLACES, SIZE = 7 * 7 * 3, 16
WEIGHT = (np.random.default_rng(0).standard_normal((PLACES, SIZE)) / 10).astype(np.float32)
node = helper.make_node


def constant(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def network(path, *, batch="N", kind=FLOAT, nhwc=False, before=(), flat=None, after=(), outputs=None, constants=()):
    """A linear projection of block means.

    Args:
        before: operators from "input" to "pixels".
        flat: reshape to this instead of flattening.
        after: operators on "embedding".
        outputs: names and declared shapes.
    """
    nodes = [*before] if before else [node("Identity", ["input"], ["pixels"])]
    if nhwc:
        nodes.append(node("Transpose", ["pixels"], ["first"], perm=[0, 3, 1, 2]))
    nodes.append(
        node("AveragePool", ["first" if nhwc else "pixels"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16])
    )
    nodes.append(
        node("Reshape", ["pooled", "shape"], ["flat"]) if flat else node("Flatten", ["pooled"], ["flat"], axis=1)
    )
    held = [constant("weight", WEIGHT, np.float16 if kind == HALF else np.float32), *constants]
    held += [constant("shape", flat, np.int64)] if flat else []
    real = HALF if kind == HALF else FLOAT
    graph = helper.make_graph(
        [*nodes, node("MatMul", ["flat", "weight"], ["embedding"]), *after],
        "graph",
        [helper.make_tensor_value_info("input", kind, [batch, *((112, 112, 3) if nhwc else (3, 112, 112))])],
        [helper.make_tensor_value_info(name, real, shape) for name, shape in outputs or [("embedding", [batch, SIZE])]],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


NORM = [node("ReduceL2", ["embedding"], ["norm"], axes=[1], keepdims=1)]
DIVIDED = [*NORM, node("Div", ["embedding", "norm"], ["direction"])]
ONE = [node("Unsqueeze", ["embedding", "axes"], ["tall"])]
PIXELS = [node("Sub", ["input", "half"], ["centred"]), node("Mul", ["centred", "factor"], ["pixels"])]
HALVES = [constant("half", 127.5), constant("factor", 1 / 127.5)]
CHANNELS = [node("Sub", ["input", "half"], ["centred"]), node("Div", ["centred", "factor"], ["pixels"])]
THREE = [constant("half", np.full((1, 3, 1, 1), 127.5)), constant("factor", np.full((3, 1, 1), 127.5))]
NORMALISED = [node("BatchNormalization", ["input", "s", "b", "m", "v"], ["pixels"], epsilon=0.0)]
STATISTICS = [constant("s", [1] * 3), constant("b", [0] * 3), constant("m", [127.5] * 3), constant("v", [127.5**2] * 3)]

WHOLE = [constant("half", np.full((1, 3, 112, 112), 127.5)), constant("factor", np.full((3, 112, 112), 127.5))]
SWAP = constant("bgr", [2, 1, 0], np.int64)
SWAPPED = [node("Gather", ["input", "bgr"], ["swapped"], axis=1)]
SCALED = [node("Sub", ["swapped", "half"], ["centred"]), node("Div", ["centred", "factor"], ["pixels"])]
LATER = [
    *CHANNELS[:1],
    node("Div", ["centred", "factor"], ["scaled"]),
    node("Gather", ["scaled", "bgr"], ["pixels"], axis=1),
]
PARTS = [
    node("Split", ["input"], ["one", "two", "three"], axis=1),
    node("Concat", ["three", "two", "one"], ["swapped"], axis=1),
]
BACKWARDS = [node("Slice", ["input", "minus", "far", "along", "minus"], ["swapped"])]
BACKWARDS_BY = [constant(*one, np.int64) for one in (("minus", [-1]), ("far", [-(2**63)]), ("along", [1]))]
SLICES = [
    *(node("Slice", ["input", f"p{place}", f"p{place + 1}", "along"], [f"s{place}"]) for place in range(3)),
    node("Concat", ["s2", "s1", "s0"], ["swapped"], axis=1),
]
SLICES_BY = [constant(f"p{place}", [place], np.int64) for place in range(4)] + [BACKWARDS_BY[2]]
STACKED = [
    *(node("Gather", ["input", f"i{place}"], [f"g{place}"], axis=1) for place in range(3)),
    *(node("Unsqueeze", [f"g{place}", "along"], [f"u{place}"]) for place in range(3)),
    node("Concat", ["u2", "u1", "u0"], ["swapped"], axis=1),
]
STACKED_BY = [constant(f"i{place}", place, np.int64) for place in range(3)] + [BACKWARDS_BY[2]]
# Each part is scaled by itself: (x - 127.5) / 127.5, as x / 127.5 - 1.
ALONE = [
    PARTS[0],
    *(node("Div", [part, "factor"], [f"{part}_d"]) for part in ("one", "two", "three")),
    *(node("Sub", [f"{part}_d", "unit"], [f"{part}_s"]) for part in ("one", "two", "three")),
    node("Concat", ["three_s", "two_s", "one_s"], ["pixels"], axis=1),
]
ALONE_BY = [constant("factor", 127.5), constant("unit", 1.0)]
# In: (B, H, W, 3); out: (B, 3, H, W), which `network(nhwc=True)` expects the other way round.
TURNED = [
    node("Transpose", ["input"], ["turned"], perm=[0, 3, 1, 2]),
    node("Gather", ["turned", "bgr"], ["swapped"], axis=1),
    *SCALED[:1],
    node("Div", ["centred", "factor"], ["scaled"]),
    node("Transpose", ["scaled"], ["pixels"], perm=[0, 2, 3, 1]),
]
DYNAMIC = [node("Shape", ["input"], ["sizes"]), *PIXELS]  # exporters read sizes from the input
HALVES_BESIDE = [node("Sub", ["input", "half"], ["centred"]), node("Mul", ["centred", "factor"], ["scaled"])]
NUMBERS = [
    node("Constant", [], ["half"], value_float=127.5),
    node("Constant", [], ["factor"], value_float=1 / 127.5),
    *PIXELS,
]

# name: options, images at a time, what the notes say, whether it gets pixels
FILES = {
    "plain": ({}, None, "", False),
    "one image, declared free": ({"flat": [1, -1]}, 1, "one image at a time, whatever it declares", False),
    "one image, declared": ({"batch": 1}, 1, "takes one image at a time", False),
    "four images": ({"batch": 4}, 4, "takes 4 images at a time", False),
    "four images, declared free": (
        {"flat": [4, PLACES], "outputs": [("embedding", [4, SIZE])]},
        4,
        "takes 4 images at a time",
        False,
    ),
    "norm behind": (
        {"after": NORM, "outputs": [("embedding", ["N", SIZE]), ("norm", ["N", 1])]},
        None,
        "has 2 outputs, embedding (1, 16), norm (1, 1); took embedding",
        False,
    ),
    "norm before": (
        {"after": NORM, "outputs": [("norm", ["N", 1]), ("embedding", ["N", SIZE])]},
        None,
        "took embedding",
        False,
    ),
    "feature maps before": (
        {"outputs": [("pooled", ["N", 3, 7, 7]), ("embedding", ["N", SIZE])]},
        None,
        "took embedding",
        False,
    ),
    "normalised beside": (
        {"after": DIVIDED, "outputs": [("embedding", ["N", SIZE]), ("direction", ["N", SIZE])]},
        None,
        "took embedding",
        False,
    ),
    "four axes": (
        {
            "after": ONE,
            "outputs": [("tall", ["N", SIZE, 1, 1])],
            "constants": [constant("axes", [2, 3], np.int64)],
        },
        None,
        "",
        False,
    ),
    "half precision": ({"kind": HALF}, None, "takes float16 input", False),
    "channels last": ({"nhwc": True}, None, "takes its input as (B, H, W, 3)", False),
    "8 bits": (
        {
            "kind": UINT8,
            "nhwc": True,
            "before": [node("Cast", ["input"], ["x"], to=FLOAT), *[node("Sub", ["x", "half"], ["centred"]), PIXELS[1]]],
            "constants": HALVES,
        },
        None,
        "takes 8-bit pixels: its preprocessing is inside the graph",
        False,
    ),
    "scaled inside": ({"before": PIXELS, "constants": HALVES}, None, "has preprocessing inside the graph (x * ", True),
    "scaled inside by channel": ({"before": CHANNELS, "constants": THREE}, None, "inside the graph", True),
    "scaled inside, channels last": ({"before": PIXELS, "constants": HALVES, "nhwc": True}, None, "inside the", True),
    "scaled by constants of the image's shape": (
        {"before": CHANNELS, "constants": WHOLE},
        None,
        "* 0.0078431 + -1)",
        True,
    ),
    "scaled by operators' constants": ({"before": NUMBERS}, None, "inside the graph", True),
    "scaled, and its shape read": ({"before": DYNAMIC, "constants": HALVES}, None, "inside the graph", True),
    "swapped": (
        {"before": [node("Gather", ["input", "bgr"], ["pixels"], axis=1)], "constants": [SWAP]},
        None,
        "(channels swapped; the network behind is taken to compute on RGB): it gets (x - 127.5) / 127.5, BGR",
        True,
    ),
    "swapped and scaled": (
        {"before": [*SWAPPED, *SCALED], "constants": [*THREE, SWAP]},
        None,
        "+ -1, channels swapped; the network behind is taken to compute on RGB): it gets pixels from 0 to 255, BGR",
        True,
    ),
    "scaled and swapped": ({"before": LATER, "constants": [*THREE, SWAP]}, None, "255, BGR", True),
    "swapped by parts": ({"before": [*PARTS, *SCALED], "constants": WHOLE}, None, "255, BGR", True),
    "swapped backwards": (
        {"before": [*BACKWARDS, *SCALED], "constants": [*WHOLE, *BACKWARDS_BY]},
        None,
        "255, BGR",
        True,
    ),
    "swapped by slices": ({"before": [*SLICES, *SCALED], "constants": [*WHOLE, *SLICES_BY]}, None, "255, BGR", True),
    "swapped by stacking": (
        {"before": [*STACKED, *SCALED], "constants": [*WHOLE, *STACKED_BY]},
        None,
        "255, BGR",
        True,
    ),
    "scaled and swapped by parts": ({"before": ALONE, "constants": ALONE_BY}, None, "255, BGR", True),
    "turned, swapped and scaled": (
        {"before": TURNED, "constants": [*THREE, SWAP], "nhwc": True},
        None,
        "255, BGR",
        True,
    ),
    "8 bits, swapped": (
        {
            "kind": UINT8,
            "nhwc": True,
            "before": [
                node("Cast", ["input"], ["x"], to=FLOAT),
                node("Gather", ["x", "bgr"], ["swapped"], axis=3),
                node("Sub", ["swapped", "half"], ["centred"]),
                PIXELS[1],
            ],
            "constants": [*HALVES, SWAP],
        },
        None,
        "swaps channels inside the graph: it gets (x - 127.5) / 127.5, BGR",
        True,
    ),
    "scaled by normalisation": ({"before": NORMALISED, "constants": STATISTICS}, None, "inside the graph", True),
}
RUNTIMES = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (7, 112, 112, 3), dtype=np.uint8)


def embedded(model, images, batch_size=7):
    rows = [model(images[start : start + batch_size], flip=True) for start in range(0, len(images), batch_size)]
    return np.concatenate(rows)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("options", "batch", "note", "pixels"), FILES.values(), ids=FILES)
def test_files_that_other_tools_leave(tmp_path, images, capsys, options, batch, note, pixels, runtime):
    pytest.importorskip(runtime)
    expected = embedded(load_model(network(tmp_path / "plain.onnx"), device="cpu"), images)
    capsys.readouterr()
    model = load_model(network(tmp_path / "theirs.onnx", **options), device="cpu")
    assert note in capsys.readouterr().err
    assert (model.network.batch, model.preprocessing != OURS) == (batch, pixels)
    model = run_by(model, runtime, 3)
    found = embedded(model, images, 3)
    assert found.shape == (7, 2, SIZE) and found.dtype == np.float32
    tolerance = 0.02 if options.get("kind") == HALF else 1e-4
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"colour": "rgb"}, Preprocessing(mean=0, scale=1)),
        ({"mean": 1}, Preprocessing(mean=1, scale=1)),
        ({"mean": 127.5, "scale": 128, "colour": "bgr"}, Preprocessing(scale=128, colour="bgr")),
        (Preprocessing(colour="bgr"), Preprocessing(colour="bgr")),
        ({}, Preprocessing(mean=0, scale=1)),
    ],
)
def test_what_is_given_replaces_its_part_of_the_likely_input(tmp_path, capsys, given, expected):
    path = network(tmp_path / "scales.onnx", before=PIXELS, constants=HALVES)
    assert load_model(path, device="cpu", preprocessing=given).preprocessing == expected
    assert ("has preprocessing inside the graph" in capsys.readouterr().err) == (
        len(given) < 3 if isinstance(given, dict) else False
    )


def test_a_graph_that_mixes_the_images_of_a_batch_gets_one_at_a_time(tmp_path, images, capsys):
    mixing = [
        node("ReduceMean", ["embedding"], ["mean"], axes=[0], keepdims=1),
        node("Add", ["embedding", "mean"], ["y"]),
    ]
    model = load_model(network(tmp_path / "mixing.onnx", after=mixing, outputs=[("y", ["N", SIZE])]), device="cpu")
    assert model.network.batch == 1 and "another embedding in a batch than alone" in capsys.readouterr().err
    plain = load_model(network(tmp_path / "plain.onnx"), device="cpu")
    np.testing.assert_allclose(embedded(model, images), 2 * embedded(plain, images), rtol=1e-4, atol=1e-5)


TWO = [node("MatMul", ["flat", "other"], ["logits"])]


def two_outputs(path):
    other = constant("other", np.random.default_rng(2).standard_normal((PLACES, 5)))
    outputs = [("logits", ["N", 5]), ("embedding", ["N", SIZE])]
    return network(path, after=TWO, outputs=outputs, constants=[other])


def test_outputs_that_may_all_be_embeddings_are_chosen_by_name(tmp_path, images):
    path = two_outputs(tmp_path / "two.onnx")
    with pytest.raises(CheckpointError, match=r"logits \(1, 5\), embedding \(1, 16\); choose one by --output-name"):
        OnnxBackbone(path)
    plain = load_model(network(tmp_path / "plain.onnx"), device="cpu")
    for runtime in RUNTIMES:
        model = run_by(load_model(path, device="cpu", output_name="embedding"), runtime, 7)
        np.testing.assert_allclose(embedded(model, images), embedded(plain, images), rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="has no output 'embeding'; it has logits"):
        OnnxBackbone(path, output_name="embeding")
    with pytest.raises(
        ConfigError, match=r"--output-name nothing: no ONNX file among .*plain\.onnx has such an output"
    ):
        load_model(tmp_path / "plain.onnx", device="cpu", output_name="nothing")


def test_scaling_for_a_scaled_input_is_no_preprocessing_of_pixels(tmp_path):
    constants = [constant("half", -1.0), constant("factor", 0.5)]
    model = load_model(network(tmp_path / "x.onnx", before=PIXELS, constants=constants), device="cpu")
    assert model.preprocessing == OURS and not model.network.scaling.takes_pixels


@pytest.mark.parametrize(("half", "factor"), [(0.5, 2.0), (0.485, 1 / 0.229)])
def test_scaling_of_numbers_from_0_to_1_is_given_these(tmp_path, capsys, half, factor):
    constants = [constant("half", half), constant("factor", factor)]
    model = load_model(network(tmp_path / "x.onnx", before=PIXELS, constants=constants), device="cpu")
    assert model.preprocessing == Preprocessing(mean=0, scale=255)
    assert "it gets pixels from 0 to 1, RGB" in capsys.readouterr().err


IMAGENET = np.array([0.485, 0.456, 0.406])


@pytest.mark.parametrize("largest", [1, 255])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("order", [1, -1])
def test_imagenets_means_say_which_order_the_network_computes_on(tmp_path, largest, swapped, order):
    mean = (IMAGENET[::order] * largest).reshape(3, 1, 1)
    before = [*(SWAPPED if swapped else [node("Identity", ["input"], ["swapped"])]), *SCALED]
    constants = [constant("half", mean), constant("factor", np.full((3, 1, 1), 0.226 * largest)), SWAP]
    model = load_model(network(tmp_path / "x.onnx", before=before, constants=constants), device="cpu")
    colour = "bgr" if (order < 0) != swapped else "rgb"
    assert model.preprocessing == Preprocessing(mean=0, scale=255 / largest, colour=colour)


OTHERS = {
    "another value at each pixel": (
        CHANNELS,
        [constant("half", np.arange(3 * 112 * 112.0).reshape(3, 112, 112)), THREE[1]],
    ),
    "some pixels": (
        [node("Slice", ["input", "from", "to", "rows"], ["pixels"])],
        [constant("from", [0], np.int64), constant("to", [112], np.int64), constant("rows", [2], np.int64)],
    ),
    "a channel twice": (
        [node("Gather", ["input", "twice"], ["pixels"], axis=1)],
        [constant("twice", [0, 0, 2], np.int64)],
    ),
    "added to itself": ([node("Add", ["input", "input"], ["pixels"])], []),
    "scaled beside": ([*HALVES_BESIDE, node("Add", ["scaled", "input"], ["pixels"])], HALVES),
}


@pytest.mark.parametrize(("before", "constants"), OTHERS.values(), ids=OTHERS)
def test_other_beginnings_are_no_preprocessing(tmp_path, before, constants):
    model = load_model(network(tmp_path / "x.onnx", before=before, constants=constants), device="cpu")
    assert model.preprocessing == OURS and model.network.scaling is None


def test_what_the_user_says_wins_over_what_the_graph_begins_with(tmp_path):
    path = network(tmp_path / "x.onnx", before=PIXELS, constants=HALVES)
    said = Preprocessing(mean=0, scale=255, colour="bgr")
    assert load_model(path, device="cpu", preprocessing=said).preprocessing == said
    assert load_model(path, device="cpu").preprocessing == Preprocessing(mean=0, scale=1)


# ------------------------------------------------------------------------------------- one unusable model of several


def refuses_some(path):
    """Its embedding of a face brighter than the noise with which files are opened is no number."""
    after = [
        node("ReduceMean", ["pixels"], ["brightness"], axes=[1, 2, 3], keepdims=0),
        node("Sub", ["limit", "brightness"], ["room"]),
        node("Sqrt", ["room"], ["root"]),
        node("Unsqueeze", ["root", "axes"], ["column"]),
        node("Mul", ["embedding", "column"], ["answer"]),
    ]
    constants = [constant("limit", 0.1), constant("axes", [1], np.int64)]
    return network(path, after=after, outputs=[("answer", ["N", SIZE])], constants=constants)


def fails_on_some(path):
    """A face brighter than that noise makes it look up a row that is not there."""
    after = [
        node("ReduceMean", ["pixels"], ["brightness"], axes=[1, 2, 3], keepdims=0),
        node("Sub", ["brightness", "limit"], ["over"]),
        node("Ceil", ["over"], ["row"]),
        node("Cast", ["row"], ["index"], to=TensorProto.INT64),
        node("Gather", ["ones", "index"], ["column"], axis=0),
        node("Mul", ["embedding", "column"], ["answer"]),
    ]
    constants = [constant("limit", 0.1), constant("ones", np.ones((1, 1)))]
    return network(path, after=after, outputs=[("answer", ["N", SIZE])], constants=constants)


def is_never_a_number(path):
    """The root of negative numbers, which every image has."""
    return network(path, after=[node("Sqrt", ["embedding"], ["y"])], outputs=[("y", ["N", SIZE])])


def is_zero(path):
    after = [node("Mul", ["embedding", "zero"], ["y"])]
    return network(path, after=after, outputs=[("y", ["N", SIZE])], constants=[constant("zero", 0.0)])


def is_broken(path):
    path.write_bytes(network(path).read_bytes()[:300])
    return path


@pytest.fixture
def bright_pairs(tmp_path):
    import cv2

    from facebones.data.pair_bins import write_pairs

    random = np.random.default_rng(0)
    faces = [random.integers(0, 256, (7, 7, 3), dtype=np.uint8) for _ in range(40)]
    faces = [cv2.resize(face, (112, 112), interpolation=cv2.INTER_CUBIC) for face in faces]
    faces[3] = faces[3] // 4 + 190
    write_pairs(tmp_path / "pairs.bin", [cv2.imencode(".png", face)[1].tobytes() for face in faces], [True, False] * 10)
    return tmp_path / "pairs.bin"


UNUSABLE = {"broken": is_broken, "no number": refuses_some, "fails": fails_on_some, "two outputs": two_outputs} | (
    NEVER := {"never a number": is_never_a_number, "zero": is_zero}
)


@pytest.mark.parametrize("bad", UNUSABLE.values(), ids=UNUSABLE)
def test_one_unusable_model_never_costs_the_others_their_metrics(tmp_path, bright_pairs, capsys, bad):
    good, unusable = network(tmp_path / "good.onnx"), bad(tmp_path / "bad.onnx")
    words = ["evaluate", "pairs", "--data", str(bright_pairs), "--bootstrap", "100", "--json"]
    assert main([*words, "--model", str(good)]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([*words, "--model", str(unusable), "--model", str(good)]) == 1
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert content["results"][0]["details"]["good"] == alone["results"][0]["details"]["good"]
    assert list(content["left_out"]) == ["bad"] and "facebones: bad was left out: " in err
    assert list(content["results"][0]["details"]) == ["good"]
    assert main([*words, "--model", str(unusable)]) == 2  # alone, it is an error
    metrics = evaluate({"good": good, "bad": unusable}, bright_pairs, device="cpu", bootstrap=100)
    assert all(list(metric.values) == ["good"] for metric in metrics if metric.values)


def test_an_unusable_file_is_found_before_anything_is_embedded(tmp_path, capsys):
    left_out = {}
    models = {"good": network(tmp_path / "good.onnx"), "bad": is_broken(tmp_path / "bad.onnx")}
    assert list(open_models(models, device="cpu", left_out=left_out)) == ["good"] and list(left_out) == ["bad"]
    assert "note: bad is left out: " in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="no such file"):  # a path mistyped
        open_models({**models, "typo": tmp_path / "typo.onnx"}, device="cpu", left_out={})
    with pytest.raises(CheckpointError, match="no ONNX file"):
        open_models({"a": models["bad"], "b": models["bad"]}, device="cpu", left_out={})


@pytest.mark.parametrize("write", NEVER.values(), ids=NEVER)
def test_embeddings_that_are_no_direction_are_found_at_the_beginning(tmp_path, capsys, write):
    good, bad = network(tmp_path / "good.onnx"), write(tmp_path / "bad.onnx")
    left_out = {}
    assert list(open_models({"good": good, "bad": bad}, device="cpu", left_out=left_out)) == ["good"]
    assert "bad.onnx: its embedding" in left_out["bad"] and "note: bad is left out: " in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"bad\.onnx: its embedding.* (not finite|all zero); export"):
        load_model(bad, device="cpu")


def test_auto_takes_openvino_for_a_file_where_it_is_faster(tmp_path, images, monkeypatch, capsys):
    from facebones.evaluation import runtimes
    from facebones.evaluation.runtimes import Speed, choose

    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = load_model(network(tmp_path / "x.onnx", flat=[1, -1]), device="cpu")
    speeds = {"onnxruntime": 100.0, "openvino": 900.0, "openvino-bf16": 50.0}
    measure = runtimes._Trial.measure

    def measured(trial, runtime):
        measure(trial, runtime)
        return Speed(0.0, speeds[runtime])

    monkeypatch.setattr(runtimes._Trial, "measure", measured)
    chosen = choose("x", model, images, 7, 1_000_000)
    assert chosen.runtime == "openvino" and chosen.describe()["runtime"] == "openvino"
    assert "--runtime auto takes openvino: 900 images/s, onnxruntime 100 (9.0 times)" in capsys.readouterr().err
    assert smallest_cosine(embedded(model, images)[:, 0], embedded(chosen, images)[:, 0]) > 0.99999


def test_a_fixed_batch_that_is_too_large_names_the_limit(tmp_path):
    with pytest.raises(CheckpointError, match="takes 1000 images at a time, and 512 are the most here; export it with"):
        OnnxBackbone(network(tmp_path / "x.onnx", batch=1000))


def shaped(path, shape, **options):
    """The embeddings in another shape."""
    return network(
        path,
        after=[node("Reshape", ["embedding", "form"], ["y"])],
        outputs=[("y", ["N"] * len(shape))],
        constants=[constant("form", shape, np.int64)],
        **options,
    )


def test_flat_outputs_are_used_image_by_image(tmp_path, images, capsys):
    model = load_model(shaped(tmp_path / "flat.onnx", [-1]), device="cpu")
    assert "takes one image at a time: its output for 2 images is of shape (32,), flat" in capsys.readouterr().err
    plain = load_model(network(tmp_path / "plain.onnx"), device="cpu")
    np.testing.assert_allclose(embedded(model, images), embedded(plain, images), rtol=1e-4, atol=1e-5)


NO_EMBEDDINGS = {
    "flat": (
        lambda path: shaped(path, [-1], batch=4),
        r"its output for 4 images is of shape \(64,\), flat; an embedding is \(B, D\)",
    ),
    "scalar": (
        lambda path: network(path, after=[node("ReduceSum", ["embedding"], ["y"], keepdims=0)], outputs=[("y", [])]),
        r"its output for one image is of shape \(\), one number; an",
    ),
    "one number for each": (
        lambda path: network(path, after=NORM, outputs=[("norm", ["N", 1])]),
        r"its output for one image is of shape \(1, 1\), one number for each;",
    ),
    "feature maps": (
        lambda path: network(path, outputs=[("pooled", ["N", 3, 7, 7])]),
        r"its output for one image is of shape \(1, 3, 7, 7\), a feature map for each",
    ),
}


@pytest.mark.parametrize(("write", "message"), NO_EMBEDDINGS.values(), ids=NO_EMBEDDINGS)
def test_outputs_that_are_no_embeddings_are_named(tmp_path, write, message):
    with pytest.raises(CheckpointError, match=message):
        OnnxBackbone(write(tmp_path / "x.onnx"))
