"""State dicts as trainers leave them: wrappers anywhere, classifiers beside them, and files that are something else."""

import argparse
import importlib.util
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from facebones.backbones import create_backbone
from facebones.backbones.authors import MAGFACE_EPS
from facebones.backbones.state_dicts import network_shapes
from facebones.backbones.weights import load_backbone
from facebones.data.preprocessing import OURS, Preprocessing
from facebones.errors import CheckpointError
from facebones.evaluation.models import load_model

NAME, SIZE = "shufflefacenet_0_5", 32
HEAD = {"fc.weight": torch.zeros(10, SIZE), "fc.bias": torch.zeros(10)}
KERNEL = {"head.kernel": torch.zeros(SIZE, 10), "head.t": torch.zeros(1), "head.batch_mean": torch.zeros(())}


@pytest.fixture(scope="module")
def weights():
    return create_backbone(NAME, SIZE).state_dict()


@pytest.fixture
def load(tmp_path):
    def saved_and_loaded(content, name=NAME):
        torch.save(content, tmp_path / "x.pth")
        return load_backbone(tmp_path / "x.pth", name)[0]

    return saved_and_loaded


def under(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def nested(levels, content):
    for level in range(levels):
        content = {f"part{level}": content}
    return content


def inside(part, weights):
    """A wrapper around each top module, as activation checkpointing and compiled parts leave it."""
    return {key.replace(".", f".{part}.", 1): value for key, value in weights.items()}


WRAPPERS = ("_orig_mod.module.", "module._orig_mod.", "features.module.", "net.", "model.net.backbone.", "encoder.")
WRAPPED = {prefix: lambda w, prefix=prefix: under(prefix, w) for prefix in (*WRAPPERS, "unheard_of.0.")} | {
    "inside": lambda w: inside("_checkpoint_wrapped_module", w),
    "inside and before": lambda w: under("module.", inside("_orig_mod", w)),
    "inside, with a classifier": lambda w: under("backbone.", inside("_orig_mod", w)) | under("head.", HEAD),
    "a classifier beside": lambda w: w | HEAD,
    "a classifier beside a wrapper": lambda w: under("features.module.", w) | HEAD,
    "Lightning": lambda w: {
        "epoch": 3,
        "state_dict": under("model.", w) | KERNEL,
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
        "hyper_parameters": {"lr": 0.1},
    },
    "a place of its own": lambda w: {"step": 7, "networks": {"student": {"weights": under("module.", w)}}},
    "in a list": lambda w: [{"epoch": 3}, under("module.", w)],
    "in a tuple beside numbers": lambda w: (12, {"state_dict": w}, "iresnet"),
    "in a list in dictionaries": lambda w: {"run": {"models": [{"net": w}]}},
    "pairs of names and tensors": lambda w: {"model": list(under("module.", w).items())},
    "deep": lambda w: nested(20, under("net.", w)),
    "numbers beside": lambda w: {**w, "epoch": 3},
    "two places, one usual": lambda w: {"ema": w, "state_dict": w},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_in_any_nesting_with_classifiers_beside(load, weights, wrap, capsys):
    backbone = load(wrap(dict(weights)))
    assert backbone.embedding_size == SIZE
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())
    left_out = any(name in str(wrap({})) for name in ("fc.weight", "kernel", "'ema'"))
    assert ("left out" in capsys.readouterr().err) == left_out


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.module."])
def test_edgeface_keeps_its_own_prefix(load, prefix):
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    saved = create_backbone("edgeface_xs", SIZE).state_dict()
    assert all(key.startswith("model.") for key in saved)
    loaded = load(under(prefix, saved), "edgeface_xs").state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)
    bare = {key.removeprefix("model."): value for key, value in saved.items()}
    loaded = load(under(prefix, bare), "edgeface_xs").state_dict()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


def test_two_copies_of_a_network_are_not_chosen_between(load, weights):
    for content, names in (
        (under("student.", weights) | under("teacher.", weights), ("student.", "teacher.")),
        ({"a": weights, "b": weights}, ("a", "b")),
    ):
        with pytest.raises(
            CheckpointError, match=r"holds the network several times: .* save the one that you mean"
        ) as it:
            load(content)
        assert all(name in str(it.value) for name in names)


def test_a_list_is_named_by_its_indices_in_the_python_that_saves_a_part(load, weights):
    with pytest.raises(CheckpointError, match=r"and nets\[1\]; save .*x\.pth'\)\['nets'\]\[0\], 'weights\.pth'\)"):
        load({"nets": [weights, weights]})


NOTHING = {
    "tensors without names": ([torch.zeros(3)], "but a list of Tensor without names; save one by"),
    "an empty tuple": ((), "but a tuple of nothing"),
    "one tensor": (torch.zeros(3), "holds a Tensor, not a dictionary of weights"),
    "deeper than anything": (nested(40, {"linear.weight": torch.zeros(3)}), "but part39; save one by"),
}


@pytest.mark.parametrize(("content", "message"), NOTHING.values(), ids=NOTHING)
def test_content_without_a_state_dict_is_one_line(load, content, message):
    with pytest.raises(CheckpointError, match=message):
        load(content)


def test_dictionaries_within_themselves_and_in_each_other_take_no_time(load, weights):
    loop = {"state_dict": weights}
    loop["again"] = [loop]
    assert load(loop).embedding_size == SIZE
    content = {"end": 0}
    for _ in range(40):
        content = {"a": content, "b": content}
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load(content)


def test_a_tensor_of_the_networks_own_modules_is_never_left_out(load, weights):
    with pytest.raises(CheckpointError, match=rf"{NAME} has no place for linear\.extra"):
        load(weights | {"linear.extra": torch.zeros(SIZE, 3)})
    with pytest.raises(CheckpointError, match=rf"{NAME} has no place for stage9\.0\.weight"):
        load(weights | {"stage9.0.weight": torch.zeros(8, 8, 3, 3)})


HEADS = {
    "an MLP": {"fc.0.weight": torch.ones(9, SIZE), "fc.0.bias": torch.ones(9), "fc.2.weight": torch.ones(5, 9)},
    "neck and classifier": {"bottleneck.weight": torch.ones(SIZE), "classifier.weight": torch.ones(9, SIZE)},
    "a normalisation": {"neck.weight": torch.ones(SIZE), "neck.num_batches_tracked": torch.tensor(3)},
    "a number": {"logit_scale": torch.tensor(1.0)},
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_heads_beside_a_network_are_left_out_with_a_note(load, weights, head, wrapper, capsys):
    loaded = load(under(wrapper, weights | head)).state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    said = capsys.readouterr().err
    assert "left out" in said and all(wrapper + key in said for key in list(head)[:2])


def test_whole_numbers_are_keys_too(load, weights):
    assert load({3: {"epoch": 1, -1: weights}}).embedding_size == SIZE
    with pytest.raises(
        CheckpointError, match=r"several times: \[0\] and \[1\]; save .*x\.pth'\)\[0\], 'weights\.pth'\)"
    ):
        load({0: weights, 1: weights})


@pytest.mark.parametrize("place", [0, 1])
def test_the_embedding_size_is_what_most_tensors_say(load, weights, place):
    """Whichever of the tensors is another one, the message blames it and no other."""
    names = [key for key in weights if key.endswith("weight") and SIZE in weights[key].shape]
    name = next(name for name in names if weights[name].ndim == 2 - place)
    wrong = weights[name].t() if weights[name].ndim == 2 else torch.ones(SIZE + 1)
    with pytest.raises(CheckpointError) as error:
        load(weights | {name: wrong.contiguous()})
    assert name in str(error.value)
    others = [key for key in weights if key.startswith(("linear.", "norm.", "features.")) and key != name]
    assert not any(key in str(error.value) for key in others)


def test_the_closest_networks_and_what_is_missing(load, weights):
    with pytest.raises(CheckpointError, match=r"x\.pth: not the weights of iresnet18: .*those of iresnet50"):
        load(under("net.", create_backbone("iresnet50", SIZE).state_dict()), "r18")
    lacking = {key: value for key, value in weights.items() if not key.startswith("norm.")}
    for name in (NAME, None, "mobilefacenet"):
        with pytest.raises(CheckpointError) as error:
            load(under("module.", lacking), name)
        assert f"{NAME} (lacks 4 of " in str(error.value) or (
            name == NAME and "it lacks norm.weight" in str(error.value)
        )
        assert "norm.weight" in str(error.value) and len(str(error.value).splitlines()) == 1
    with pytest.raises(CheckpointError, match=r"no registered backbone fits its names and shapes$"):
        load({"a.weight": torch.zeros(3)}, None)


def test_shapes_of_a_network_are_built_once():
    assert network_shapes(NAME) is network_shapes(NAME)
    assert [shapes["linear.weight"][0] for shapes in network_shapes(NAME)] == [-1]


def test_magfaces_eps(load, capsys):
    def eps(network):
        return {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}

    saved = create_backbone("iresnet18", SIZE).state_dict()
    theirs = {"epoch": 25, "arch": "iresnet18", "state_dict": under("features.module.", saved) | HEAD}
    assert eps(load(theirs, "r18")) == {MAGFACE_EPS}
    assert "batch normalisation computes with its eps 2e-05" in capsys.readouterr().err
    for ours in (saved, under("module.", saved), under("my_features.", saved)):
        assert eps(load(ours, "r18")) == {1e-5}


def test_magfaces_files_are_measured_with_their_authors_input(tmp_path, capsys):
    saved = under("features.module.", create_backbone("iresnet18", SIZE).state_dict())
    torch.save({"epoch": 25, "arch": "iresnet18", "state_dict": saved}, tmp_path / "x.pth")
    torch.save({key.removeprefix("features."): value for key, value in saved.items()}, tmp_path / "ours.pth")
    model = load_model(tmp_path / "x.pth", backbone="r18", device="cpu")
    assert model.preprocessing == Preprocessing(mean=0, scale=255, colour="bgr")
    assert "is of an author whose input is known: it gets pixels from 0 to 1, BGR" in capsys.readouterr().err
    said = Preprocessing(colour="bgr")
    assert load_model(tmp_path / "x.pth", backbone="r18", device="cpu", preprocessing=said).preprocessing == said
    assert load_model(tmp_path / "ours.pth", backbone="r18", device="cpu").preprocessing == OURS


@pytest.fixture(scope="module")
def ir():
    return create_backbone("ir_18", SIZE).state_dict()


def test_adafaces_files_get_bgr(tmp_path, ir, capsys):
    lightning = {"epoch": 25, "state_dict": under("model.", ir) | KERNEL, "hyper_parameters": {"lr": 0.1}}
    torch.save(lightning, tmp_path / "x.ckpt")
    model = load_model(tmp_path / "x.ckpt", backbone="ir_18", device="cpu")
    assert model.preprocessing == Preprocessing(colour="bgr")
    said = capsys.readouterr().err
    assert "as AdaFace's are: BGR" in said and "it gets (x - 127.5) / 127.5, BGR" in said
    torch.save(ir, tmp_path / "bare.pth")
    assert load_model(tmp_path / "bare.pth", backbone="ir_18", device="cpu").preprocessing == OURS


def colour_of(path, capsys):
    colour = load_model(path, backbone="ir_18", device="cpu").preprocessing.colour
    return colour, capsys.readouterr().err


def test_what_the_line_for_a_refused_adaface_file_saves_gets_bgr_too(tmp_path, ir, capsys):
    lightning = {"state_dict": under("model.", ir) | KERNEL, "hyper_parameters": argparse.Namespace(lr=0.1)}
    torch.save(lightning, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"\['state_dict'\], 'weights\.pth'\)") as error:
        load_backbone(tmp_path / "x.ckpt", "ir_18")
    saved = saved_weights(str(error.value), tmp_path)
    assert saved.keys() == lightning["state_dict"].keys()
    save_file(saved, tmp_path / "x.safetensors")
    for path in (tmp_path / "weights.pth", tmp_path / "x.safetensors"):
        colour, said = colour_of(path, capsys)
        assert colour == "bgr" and "a head beside the network, as AdaFace's state dicts have: BGR" in said


def test_ir_weights_under_model_alone_are_likely_adafaces_and_a_note_says_so(tmp_path, ir, capsys):
    torch.save(under("model.", ir), tmp_path / "x.pth")
    colour, said = colour_of(tmp_path / "x.pth", capsys)
    assert colour == "bgr" and "BGR is likely; `evaluate` has --colour" in said


@pytest.mark.parametrize(
    ("settings", "colour", "note"),
    [
        ("color_space: 'RGB'\nname: ir18\n", "rgb", "model.yaml says RGB"),
        ("name: ir18\ncolor_space: BGR\n", "bgr", "model.yaml says BGR"),
        ("name: ir18\n", "rgb", "model.yaml states no color_space, and CVLface's default is RGB"),
        (None, "rgb", "no model.yaml with its channel order is beside it: it is taken for RGB"),
    ],
)
@pytest.mark.parametrize("name", ["ir_18", "iresnet18"])
def test_cvlfaces_files_get_the_channel_order_of_their_settings(tmp_path, ir, name, settings, colour, note, capsys):
    saved = ir if name == "ir_18" else create_backbone(name, SIZE).state_dict()
    torch.save(under("net.", saved), tmp_path / "model.pt")
    if settings:
        (tmp_path / "model.yaml").write_text(settings)
    model = load_model(tmp_path / "model.pt", backbone=name, device="cpu")
    assert model.preprocessing == Preprocessing(colour=colour)
    said = capsys.readouterr().err
    assert note in said and ("model.yaml says" in said) == ("color_space" in (settings or ""))
    assert all(torch.equal(value, saved[key]) for key, value in model.network.state_dict().items())


def test_ghostfacenets_from_keras_get_the_authors_input(tmp_path, capsys):
    saved = create_backbone("ghostfacenet_v1_0_5_s2", SIZE).state_dict()
    torch.save(saved, tmp_path / "torch.pth")
    torch.save({k: v for k, v in saved.items() if not k.endswith("num_batches_tracked")}, tmp_path / "keras.pth")
    model = load_model(tmp_path / "keras.pth", backbone="ghostfacenet_v1_0_5_s2", device="cpu")
    assert model.preprocessing == Preprocessing(scale=128)
    assert "has no counters of batch normalisation, as weights from Keras" in capsys.readouterr().err
    model = load_model(tmp_path / "torch.pth", backbone="ghostfacenet_v1_0_5_s2", device="cpu")
    assert model.preprocessing == OURS


def ghost(name="ghostfacenet_v1_0_5_s2"):
    return {key: value.clone() for key, value in create_backbone(name, SIZE).state_dict().items()}


@pytest.mark.parametrize("wrapper", ["", "module.", "teacher.net."])
def test_a_ghostfacenet_that_was_trained_with_relu_is_prelu_with_weight_0(load, wrapper, capsys):
    saved = {key: value for key, value in ghost().items() if "prelu" not in key}
    with pytest.raises(CheckpointError, match=r"are those of ghostfacenet_v1_0_5_s2; give --backbone"):
        load(under(wrapper, saved), None)
    loaded = load(under(wrapper, saved), "ghostfacenet_v1_0_5_s2").state_dict()
    added = loaded.keys() - saved.keys()
    assert len(added) == 41 and not any(loaded[key].any() for key in added)
    assert all(torch.equal(loaded[key], value) for key, value in saved.items())
    assert "x.pth: has no PReLU weights: trained with ReLU, which is PReLU with weight 0" in capsys.readouterr().err


def test_a_ghostfacenet_that_lacks_some_prelus_is_damaged(load):
    saved = ghost()
    del saved["blocks.3.se.prelu.weight"]
    with pytest.raises(CheckpointError, match=r"it lacks blocks\.3\.se\.prelu\.weight$"):
        load(saved, "ghostfacenet_v1_0_5_s2")


@pytest.mark.parametrize(
    "bias", [torch.ones(SIZE - 1), torch.ones(SIZE, dtype=torch.int64), torch.ones(SIZE).to_sparse(), torch.tensor(1.0)]
)
def test_a_bias_before_the_last_normalisation_that_does_not_fit_it_is_refused(load, bias):
    with pytest.raises(CheckpointError, match=r"has no place for head\.linear\.bias$"):
        load(ghost() | {"head.linear.bias": bias}, "ghostfacenet_v1_0_5_s2")


def test_a_ghostfacenet_without_prelus_and_with_odd_tensors_is_refused_in_one_line(load):
    saved = {key: value for key, value in ghost().items() if "prelu" not in key}
    for key, value in {
        "stem.bn.weight": torch.tensor(1.0),
        "blocks.3.se.reduce.weight": torch.ones(9).to_sparse(),
    }.items():
        with pytest.raises(CheckpointError, match=r"x\.pth: not the weights of ghostfacenet_v1_0_5_s2: it ") as error:
            load(saved | {key: value}, "ghostfacenet_v1_0_5_s2")
        assert "\n" not in str(error.value)


def test_an_unknown_channel_order_is_one_line(tmp_path, ir):
    torch.save(under("net.", ir), tmp_path / "model.pt")
    (tmp_path / "model.yaml").write_text("color_space: HSV\n")
    with pytest.raises(CheckpointError, match=r"model\.yaml: color_space is 'hsv'; it must be RGB or BGR"):
        load_backbone(tmp_path / "model.pt", "ir_18")


# ------------------------------------------------------------------------------------------ files of another kind


class Odd:
    """A value that is no tensor."""

    def __init__(self, value):
        self.value = value


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)


def saved_weights(message, folder):
    """Run the Python of a message, which the user would; returns what it saved."""
    line = message[message.index("torch.save(") :].replace("'weights.pth'", repr(str(folder / "weights.pth")))
    exec(line, {"torch": torch})
    return torch.load(folder / "weights.pth")


OTHERS = {
    "TorchScript": (lambda path: torch.jit.save(torch.jit.script(Net()), path), "is a TorchScript archive"),
    "module": (lambda path: torch.save(Net(), path), r"is a pickled module \(.*Net\)"),
    "legacy module": (
        lambda path: torch.save(Net(), path, _use_new_zipfile_serialization=False),
        r"is a pickled module \(.*Net\)",
    ),
    "module in a checkpoint": (lambda path: torch.save({"epoch": 1, "model": Net()}, path), "holds a pickled module"),
    "arrays": (
        lambda path: torch.save({key: value.numpy() for key, value in Net().state_dict().items()}, path),
        r"holds NumPy arrays \(numpy\.",
    ),
    "arrays in an ordered dictionary": (
        lambda path: torch.save(OrderedDict((key, value.numpy()) for key, value in Net().state_dict().items()), path),
        r"holds NumPy arrays \(numpy\.",
    ),
    "arrays in a checkpoint": (
        lambda path: torch.save(
            {"epoch": 1, "model": {key: value.numpy() for key, value in Net().state_dict().items()}}, path
        ),
        r"holds NumPy arrays \(numpy\.",
    ),
    "weights beside arguments": (
        lambda path: torch.save({**Net().state_dict(), "extra": Odd(2)}, path),
        r"holds more than tensors and plain values \(.*Odd\)",
    ),
    "arguments beside weights": (
        lambda path: torch.save({"args": argparse.Namespace(lr=1), "state_dict": Net().state_dict()}, path),
        r"holds more than tensors and plain values \(argparse\.Namespace\)",
    ),
}


@pytest.mark.parametrize(("write", "message"), OTHERS.values(), ids=OTHERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_files_of_another_kind_are_named_with_the_line_that_saves_a_state_dict(tmp_path, write, message):
    write(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message) as error:
        load_backbone(tmp_path / "x.pt", NAME)
    assert str(error.value).startswith(str(tmp_path / "x.pt")) and "if you trust it" in str(error.value)
    assert saved_weights(str(error.value), tmp_path).keys() == Net().state_dict().keys()


def test_an_archive_on_several_disks_is_one_line(tmp_path):
    """Its end says so; Python's zipfile raises an error of its own kind while it looks whether this is an archive."""
    end = b"PK\x06\x07" + (5).to_bytes(4, "little") + bytes(8) + (7).to_bytes(4, "little")
    (tmp_path / "x.pt").write_bytes(bytes(100) + end + b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2))
    with pytest.raises(CheckpointError, match=r"x\.pt: no checkpoint, or cut short"):
        load_backbone(tmp_path / "x.pt", NAME)


def test_files_under_the_originals_names_and_wrappers(tmp_path):
    golden = json.loads((Path(__file__).parents[1] / "golden" / "study_keys.json").read_text())
    for name in ("sfn1_0", "mbf"):
        if name in golden:
            content = {key: torch.full(shape, 0.5) for key, shape in golden[name].items()}
            torch.save(under("_orig_mod.module.", content), tmp_path / "x.pth")
            assert load_backbone(tmp_path / "x.pth", name)[0].embedding_size


@pytest.mark.parametrize("size", [64, 512])
def test_a_tail_that_widens_with_the_embedding_is_found_without_a_name(load, size):
    saved = create_backbone("pocketnet_m", size).state_dict()
    with pytest.raises(CheckpointError, match="its names and shapes are those of pocketnet_m; give --backbone"):
        load(saved, None)
    assert load(under("module.", saved), "pocketnet_m").embedding_size == size
