"""Export: every backbone gives the same embeddings in ONNX as in torch; 8 bits; refusals leave no file behind."""

import json
import os
import stat

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.functional import cosine_similarity

import facebones
from facebones.backbones import create_backbone, list_backbones
from facebones.backbones.weights import save_weights
from facebones.cli.main import main
from facebones.errors import RunError
from facebones.evaluation.models import load_model
from facebones.exporting import export, onnx_file
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import count_onnx
from facebones.onnx.quantize import Calibration
from facebones.profiling.cost import count_macs
from facebones.run_folder import RunFolder

# Between them, one of each kind of layer; tracing takes its time.
QUICK = ["shufflefacenet_0_5", "study_mixfacenet_xs"]
NAMES = [name for name in list_backbones() if name != "tiny_for_tests"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in QUICK]


@pytest.fixture
def trained(tmp_path, golden_tensor):
    """Write the final weights of a run; they keep the scale, as trained ones do. Returns the run and the network."""

    def write(name, size=512):
        backbone = create_backbone(name, size).eval()
        state = {key: golden_tensor(key, tensor.shape) for key, tensor in backbone.state_dict().items()}
        backbone.load_state_dict(state)
        card = {"backbone": name, "embedding_size": size, "training_data": "faces"}
        save_weights(RunFolder(tmp_path / "run"), backbone, card)
        return tmp_path / "run", backbone

    return write


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def random_pixels(batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, 112, 112, 3), dtype=np.uint8)


def scaled(pixels):
    return torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_every_backbone_answers_as_in_torch(name, trained, tmp_path, capfd):
    run, backbone = trained(name)
    result = export(run, tmp_path / "out.onnx")
    assert all(difference <= 1e-4 for difference in result["parity"].values())
    assert names_in(tmp_path) == {"run", "out.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("input", "tensor(float)", [3, 112, 112])
    assert (given.name, given.type, given.shape[1:]) == ("embedding", "tensor(float)", [512])
    assert isinstance(taken.shape[0], str) and taken.shape[0] == given.shape[0]
    for batch in (1, 3):
        x = scaled(random_pixels(batch))
        with torch.no_grad():
            expected = backbone(x).numpy()
        (found,) = session.run(None, {"input": x.numpy()})
        norms = np.linalg.norm(expected, axis=1, keepdims=True)
        assert (np.abs(found - expected) / norms).max() <= 1e-4
    assert capfd.readouterr() == ("", "")


def test_a_network_with_a_deploy_form_is_written_in_it_and_compared_with_the_other(
    trained, tmp_path, capsys, monkeypatch
):
    run, backbone = trained("facelivtv2_xs", 64)
    compared = []
    monkeypatch.setattr(onnx_file, "_parity", lambda network, *rest: compared.append(network) or {})
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "out.onnx")]) == 0
    assert "facelivtv2_xs (deploy form), 64-d" in capsys.readouterr().out
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert (properties["backbone"], properties["form"]) == ("facelivtv2_xs", "deploy")
    assert count_onnx(tmp_path / "out.onnx")["macs"] == count_macs(backbone.deploy()) < count_macs(backbone)
    assert [network.is_deployed for network in compared] == [False]


def test_what_the_file_says_of_itself(trained, tiny_backbone, tmp_path):
    run, _ = trained(tiny_backbone, 16)
    export(run, tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "backbone": "tiny_for_tests",
        "embedding_size": "16",
        "input_layout": "B,3,112,112 float32",
        "preprocessing": "RGB, x / 127.5 - 1",
        "facebones_version": facebones.__version__,
        "training_data": "faces",
    }
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {node.op_type for node in model.graph.node}.isdisjoint({"BatchNormalization", "Dropout"})
    # The exporter would tell where the source lies on this machine.
    assert str(facebones.__path__[0]).encode() not in (tmp_path / "out.onnx").read_bytes()
    assert stat.S_IMODE((tmp_path / "out.onnx").stat().st_mode) == 0o666 & ~_umask()


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current


def test_folded_preprocessing_takes_pixels(trained, tiny_backbone, tmp_path):
    run, _ = trained(tiny_backbone, 16)
    export(run, tmp_path / "plain.onnx")
    result = export(run, tmp_path / "folded.onnx", fold_preprocessing=True)
    assert result["metadata"]["input_layout"] == "B,112,112,3 uint8"
    assert "in the graph" in result["metadata"]["preprocessing"]
    session = onnxruntime.InferenceSession(tmp_path / "folded.onnx", providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("image", "tensor(uint8)", [112, 112, 3])
    plain = OnnxBackbone(tmp_path / "plain.onnx")
    for batch in (1, 4):
        pixels = random_pixels(batch)
        (found,) = session.run(None, {"image": pixels})
        np.testing.assert_allclose(found, plain(scaled(pixels)).numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_network_of_another_input_is_exported_with_ours(tmp_path, golden_tensor):
    """MagFace's files expect BGR from 0 to 1; the exported file states our input, and must take it."""
    state = {key: golden_tensor(key, one.shape) for key, one in create_backbone("iresnet18", 64).state_dict().items()}
    torch.save({"state_dict": {f"features.module.{key}": one for key, one in state.items()}}, tmp_path / "x.pth")
    export(tmp_path / "x.pth", tmp_path / "x.onnx", backbone="iresnet18")
    theirs = load_model(tmp_path / "x.pth", backbone="iresnet18", device="cpu")
    ours = load_model(tmp_path / "x.onnx", device="cpu")
    assert (theirs.preprocessing.colour, ours.preprocessing.colour) == ("bgr", "rgb")
    expected, found = (model.embed(list(random_pixels(2))) for model in (theirs, ours))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.linalg.norm(expected, axis=1).max())


@pytest.mark.slow
def test_parity_on_real_faces(trained, real_faces, tmp_path):
    run, _ = trained("shufflefacenet_0_5")
    result = export(run, tmp_path / "out.onnx", data=[real_faces / "celeba_cfp" / "lfw.bin"])
    assert list(result["parity"]) == ["random, batch of 1", "random, batch of 2", "random, batch of 5", "lfw"]
    assert 0 < result["parity"]["lfw"] <= 1e-4


# The fewer weights a layer has, the more the scales and names count.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("mobilefacenet", 0.35), ("mixfacenet_xs", 0.4)])
@pytest.mark.parametrize("folded", [False, True])
def test_eight_bits(name, size, folded, trained, small_data, tmp_path, capfd):
    run, backbone = trained(name)
    calibration = Calibration(small_data, images=20)
    pairs = [small_data / "tiny.bin"]
    output = tmp_path / "int8.onnx"
    result = export(run, output, calibration=calibration, data=pairs, fold_preprocessing=folded)
    assert names_in(tmp_path) == {"run", "int8.onnx"}
    changes = result["int8"]
    assert changes["calibration_images"] == 20
    assert changes["int8"]["bytes"] == output.stat().st_size
    assert changes["size_ratio"] == changes["int8"]["bytes"] / changes["fp32"]["bytes"] < size
    assert changes["latency_ratio"] > 0
    assert 0.9 < changes["cosine_min"] <= changes["cosine_mean"] < 1
    for kind in ("fp32", "int8"):
        (figures,) = changes[kind]["sets"]
        assert figures["set"] == "tiny" and 0.4 <= figures["accuracy"] <= 1
    quantized = OnnxBackbone(output)
    assert (quantized.name, quantized.batch, quantized.folded) == (name, None, folded)
    assert quantized.metadata["quantization"].startswith("static QDQ; weights int8 per channel")
    x = torch.stack([scaled(image[None])[0] for image in calibration.draw()[:3]])
    with torch.no_grad():
        assert cosine_similarity(quantized(x), backbone(x)).min() > 0.9
    large = [tensor for tensor in onnx.load(output).graph.initializer if np.prod(tensor.dims) > 1000]
    assert large and all(tensor.data_type == onnx.TensorProto.INT8 for tensor in large)
    assert capfd.readouterr() == ("", "")


def test_calibration_images_are_drawn_by_the_seed(small_data):
    def drawn(seed, path=small_data, images=5):
        return np.stack(Calibration(path, images, seed).draw())

    assert drawn(1).shape == (5, 112, 112, 3)
    assert np.array_equal(drawn(1), drawn(1)) and not np.array_equal(drawn(1), drawn(2))
    everything = drawn(0, images=1000)
    assert len(everything) == 28 and len(np.unique(everything, axis=0)) == 28
    assert len(drawn(0, small_data / "tiny.bin", 7)) == 7


@pytest.mark.parametrize(("factor", "figure"), [(1.01, "e-0"), (float("nan"), "nan")])
def test_a_file_that_answers_otherwise_is_not_kept(factor, figure, trained, tiny_backbone, tmp_path, monkeypatch):
    run, _ = trained(tiny_backbone, 16)
    original = onnx_file.OnnxBackbone.forward
    monkeypatch.setattr(onnx_file.OnnxBackbone, "forward", lambda self, x: original(self, x) * factor)
    message = rf"differs from torch by .*{figure}.* of an embedding's norm on random, batch of 1; 1e-04 is"
    with pytest.raises(RunError, match=message):
        export(run, tmp_path / "out.onnx")
    assert names_in(tmp_path) == {"run"}


def test_a_network_that_cannot_be_traced(trained, tiny_backbone, tmp_path, monkeypatch, capfd):
    run, backbone = trained(tiny_backbone, 16)
    original = type(backbone).forward

    def forward(self, x):
        return original(self, x if x.sum() > 0 else -x)

    monkeypatch.setattr(type(backbone), "forward", forward)
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "out.onnx")]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "tiny_for_tests cannot be exported: " in line and "--debug shows the rest" in line
    assert names_in(tmp_path) == {"run"}


def test_the_command_prints_for_people_and_programs(trained, tiny_backbone, small_data, tmp_path, capfd):
    run, _ = trained(tiny_backbone, 16)
    words = ["export", "--model", str(run), "--data", str(small_data / "tiny.bin"), "--output"]
    assert main([*words, str(tmp_path / "new" / "a.onnx"), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["bytes"] == (tmp_path / "new" / "a.onnx").stat().st_size
    assert set(result["parity"]) >= {"random, batch of 5", "tiny"}
    calibration = ["--int8", "--calibration", str(small_data), "--calibration-images", "9"]
    assert main([*words, str(tmp_path / "b.onnx"), *calibration]) == 0
    printed = capfd.readouterr()
    for text in ("tiny_for_tests, 16-d", "int8 after 9 images", "accuracy on tiny", "latency of one image", "RGB"):
        assert text in printed.out
    assert printed.err == ""
    assert main(["evaluate", "pairs", "--model", str(tmp_path / "b.onnx"), *words[3:5]]) == 0


REFUSED = {
    "no checkpoint": (["--model", "{tmp}/nothing"], "nothing: no such run or file"),
    "no calibration data": (["--int8", "--calibration", "{tmp}/nothing"], "nothing"),
    "no calibration": (["--int8"], "--int8 and --calibration DATA go together"),
    "no int8": (["--calibration", "{data}"], "--int8 and --calibration DATA go together"),
    "images without int8": (["--calibration-images", "3"], "--calibration-images and --seed are for --int8"),
    "seed without int8": (["--seed", "3"], "--calibration-images and --seed are for --int8"),
    "a negative seed": (["--int8", "--calibration", "{data}", "--seed", "-1"], "--seed: -1 is negative"),
    "no images": (["--int8", "--calibration", "{data}", "--calibration-images", "0"], "0 is too low; give 1 or more"),
    "no pair set": (["--data", "{tmp}/nothing.bin"], "nothing.bin: cannot be read"),
    "exists": (["--output", "{tmp}/there.onnx"], "there.onnx: exists already"),
    "no folder": (["--output", "{tmp}/there.onnx/out.onnx"], "out.onnx: cannot be written: Not a directory"),
    "another name": (["--output", "{tmp}/model.pt"], "name the file .onnx"),
    "another backbone": (["--backbone", "r50"], "holds tiny_for_tests, not r50"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input(words, message, trained, tiny_backbone, small_data, tmp_path, capfd):
    run, _ = trained(tiny_backbone, 16)
    (tmp_path / "there.onnx").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(tmp=tmp_path, data=small_data) for word in words]
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "out.onnx"), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("facebones: ") and message in line
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "there.onnx").read_bytes() == b"mine"


def test_missing_packages(trained, tiny_backbone, tmp_path, monkeypatch, capfd):
    run, _ = trained(tiny_backbone, 16)
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "no_such_package"))
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "out.onnx")]) == 2
    assert "exporting needs no_such_package; pip install 'facebones[export]'" in capfd.readouterr().err
