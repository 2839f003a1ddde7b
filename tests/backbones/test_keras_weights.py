"""`.h5` files of Keras: GhostFaceNets under the layer names of their authors' code, and files that are none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from facebones.backbones import create_backbone
from facebones.backbones.hdf5_file import read_hdf5
from facebones.backbones.weights import load_backbone
from facebones.cli.main import main
from facebones.errors import CheckpointError
from facebones.evaluation.models import load_model

h5py = pytest.importorskip("h5py")

GOLDEN = Path(__file__).parents[1] / "golden"
# Our keys to Keras' layer and the index of the weight in it, of the authors' code run on Keras.
LAYERS = json.loads((GOLDEN / "ghostfacenet_keras_layers.json").read_text())
V1, V2 = "ghostfacenet_v1_0_5_s2", "ghostfacenet_v2_1_0_s2"
OUTPUTS = dict(np.load(GOLDEN / "ghostfacenet_outputs.npz"))
OF_NORMALISATION = ("gamma", "beta", "moving_mean", "moving_variance")


def keras_weights(name, golden_tensor, first=0):
    """Keras' weights of a network that is filled by the rule of the goldens: layer to weight name to array.

    Args:
        first: the number at which the numbered layers begin, as in a session that built other models before.
    """
    shapes = json.loads((GOLDEN / "ghostfacenet_keys.json").read_text())[name]
    found = {}
    for key, (original, index, shape) in LAYERS[name].items():
        array, layer = golden_tensor(key, shapes[key]).numpy(), original
        if numbered := re.fullmatch(r"(conv2d|depthwise_conv2d|batch_normalization|activation)(?:_(\d+))?", original):
            number = int(numbered[2] or 0) + first
            layer = numbered[1] + (f"_{number}" if number else "")
        if array.ndim == 4:
            depthwise = "dw" in layer.split("_") or layer.startswith("depthwise")
            weight = "depthwise_kernel" if depthwise else "kernel"
            array = array.transpose(2, 3, 0, 1) if depthwise else array.transpose(2, 3, 1, 0)
        elif "prelu" in layer or layer.startswith("activation"):
            weight, array = "alpha", array[None, None]
        elif "conv" in layer:
            weight = "bias"
        else:
            weight = OF_NORMALISATION[index]
        assert list(array.shape) == shape
        found.setdefault(layer, {})[weight] = array
    return found


def write(path, layers, inside="", **options):
    """As Keras 2 writes them: a group of each layer, in it the names of its weights, which begin with the layer's."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.10.0"
        top = file.create_group(inside) if inside else file
        top.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, weights in layers.items():
            group = top.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{weight}:0".encode() for weight in weights]
            for weight, array in weights.items():
                group.create_dataset(f"{layer}/{weight}:0", data=array, **options)
    return path


IN_A_SESSION = {V1: (97, "model_weights"), V2: (0, "model_weights")}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_file_of_the_authors_layers_gives_the_originals_embeddings(name, golden_tensor, tmp_path, capsys):
    first, inside = IN_A_SESSION.get(name, (0, ""))
    layers = keras_weights(name, golden_tensor, first)
    path = write(
        tmp_path / "x.h5", layers | {"dropout": {}, "arcface": {"norm_dense_w": np.ones((512, 9), "f4")}}, inside
    )
    with h5py.File(path, "a") as file:  # a whole model has its optimizer beside it
        file.create_dataset("optimizer_weights/SGD/iter:0", data=np.int64(7))
        file.create_dataset("optimizer_weights/SGD/conv2d/kernel/momentum:0", data=np.zeros((3, 3), "f4"))
    model = load_model(path, backbone=name, device="cpu")
    said = capsys.readouterr().err
    assert "left out what" in said and "norm_dense_w" in said and "its input is (x - 127.5) / 128" in said
    assert ("the bias before its last batch normalisation" in said) == name.endswith("_bias")
    if name in OUTPUTS:  # of the ten, eight were run
        assert error(model.network.double()(images().double()), OUTPUTS[name]) < 1e-6
    else:
        shapes = json.loads((GOLDEN / "ghostfacenet_keys.json").read_text())[name]
        state = model.network.state_dict()
        assert all(torch.equal(state[key], golden_tensor(key, shape)) for key, shape in shapes.items())


def images():
    return torch.from_numpy(np.random.RandomState(5).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32))


def error(found, expected):
    """The largest error relative to the largest element."""
    return np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max()


def with_relu(module):
    """The same network with ReLU in the place of every PReLU."""
    for name, child in module.named_children():
        setattr(module, name, nn.ReLU() if isinstance(child, nn.PReLU) else with_relu(child))
    return module


@pytest.mark.parametrize("name", [V1, V2])
@torch.no_grad()
def test_a_network_that_was_trained_with_relu_gives_its_embeddings(name, golden_tensor, tmp_path, capsys):
    layers = keras_weights(name, golden_tensor)
    without = {layer: weights for layer, weights in layers.items() if "alpha" not in weights}
    assert len(without) < len(layers)
    path = write(tmp_path / "x.h5", without)
    model = load_model(path, backbone=name, device="cpu")
    assert "has no PReLU weights: trained with ReLU" in capsys.readouterr().err
    theirs = with_relu(create_backbone(name)).eval()
    assert not any(isinstance(module, nn.PReLU) for module in theirs.modules())
    shapes = json.loads((GOLDEN / "ghostfacenet_keys.json").read_text())[name]
    theirs.load_state_dict({key: golden_tensor(key, shape) for key, shape in shapes.items() if "prelu" not in key})
    assert error(model.network(images()), theirs(images())) < 2e-6
    with pytest.raises(CheckpointError, match=f"give --backbone {name}"):
        load_backbone(path)


def test_without_a_name_the_fitting_backbone_is_named(golden_tensor, tmp_path):
    path = write(tmp_path / "x.h5", keras_weights(V1, golden_tensor))
    with pytest.raises(CheckpointError, match=f"are those of {V1}; give --backbone {V1}"):
        load_backbone(path)
    assert main(["profile", str(tmp_path / "none.h5")]) == 2


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("activation_3", "has 40 PReLUs, not the 41 of a GhostFaceNetV1; take other weights"),
        ("conv2d_7", "has 52 convolutions, not the 53 of a GhostFaceNetV1; take other weights"),
        ("GDC_dw", "is of Keras, but no GhostFaceNet, which has the layers GDC_dw, GDC_batchnorm"),
    ],
)
def test_other_networks_of_keras_are_refused(layer, message, golden_tensor, tmp_path):
    layers = keras_weights(V1, golden_tensor)
    del layers[layer]
    path = write(tmp_path / "x.h5", layers)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: {message}")):
        load_backbone(path, V1)


# ------------------------------------------------------------------------------------------------------------ the file


def test_arrays_are_those_that_h5py_reads(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        f"group{n % 3}/deep/a{n}:0": random.random((n % 5 + 1, 3)).astype(("f2", "f4", "f8")[n % 3]) for n in range(300)
    }
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for place, array in arrays.items():
            file[place] = array
        file["scalar"], file["text"], file["whole"], file["empty"] = (
            np.float32(3),
            "text",
            np.arange(3),
            np.zeros((0, 9)),
        )
        file["big_endian"] = np.ones(3, ">f4")
        file.create_group("nothing")
        file["group0/itself"] = file["group0"]  # a hard link to the group that holds it
    found = read_hdf5(tmp_path / "x.h5")
    assert found.keys() == arrays.keys() | {"scalar"} and found["scalar"] == 3
    assert all((found[place] == array).all() and found[place].dtype == array.dtype for place, array in arrays.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": (8, 8), "compression": "gzip"}, "'a' is compressed"),
        ({"chunks": (8, 8)}, "'a' is stored in pieces, or larger than the file"),
        ({"external": [("elsewhere.bin", 0, 1024)]}, "'a' is compressed, or in another file"),
    ],
)
def test_arrays_that_keras_does_not_write_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("x.h5", "w") as file:
        file.create_dataset("a", data=np.ones((16, 16), "f4"), **options)
    with pytest.raises(CheckpointError, match=f"x.h5: no HDF5 file of Keras: {message}"):
        read_hdf5(Path("x.h5"))


def test_links_and_newer_formats_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = h5py.SoftLink("/b")
    with pytest.raises(CheckpointError, match="it holds links"):
        read_hdf5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w", libver="latest") as file:
        file["a"] = np.ones(3)
    with pytest.raises(CheckpointError, match="newer than that of h5py's default"):
        read_hdf5(tmp_path / "y.h5")


def test_a_shape_beyond_the_file_is_refused(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.ones((1234, 4321), "f4")
    shape = np.array([1234, 4321], "<u8").tobytes()
    data = path.read_bytes()
    assert data.count(shape) >= 1
    path.write_bytes(data.replace(shape, np.array([2**40, 2**20], "<u8").tobytes()))
    with pytest.raises(CheckpointError, match="larger than the file"):
        read_hdf5(path)


def test_any_damage_is_an_error_or_harmless(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for number in range(40):
            file[f"g{number % 4}/a{number}"] = np.full(3, number, "f4")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(300):
        data = bytearray(whole[: random.integers(1, len(whole))] if number % 3 == 0 else whole)
        for place in random.integers(0, len(data), 4):
            data[place] = random.choice([0, 1, 255, random.integers(256)])
        path.write_bytes(data)
        try:
            read_hdf5(path)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert refused > 50


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_no_hdf5_file_is_one_line(content, tmp_path, capsys):
    (tmp_path / "x.h5").write_bytes(content)
    assert main(["profile", str(tmp_path / "x.h5"), "--backbone", V1]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("facebones: ")]
    assert len(lines) == 1 and "x.h5: " in lines[0]
