"""Untrusted files of weights: a file that does not fit is refused in one line that names it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from facebones.backbones import create_backbone
from facebones.backbones.weights import load_backbone
from facebones.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
NAME = "shufflefacenet_0_5"
FIRST = "stem.0.weight"


@pytest.fixture(scope="module")
def weights():
    return create_backbone(NAME, 32).state_dict()


def safetensors_of(header):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


HOSTILE = {
    "a header of 2**60 bytes": (2**60).to_bytes(8, "little") + b"{}",
    "a tensor of 4 TB": safetensors_of({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
    "numbers torch has not": safetensors_of({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}) + b"ab",
    "nothing": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_safetensors_file_that_is_none_or_claims_too_much(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no safetensors file, or cut short"):
        load_backbone(path)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ('{"embedding_size": 1000000000000}', "of embedding size 1000000000000, which cannot be"),
        (f'{{"embedding_size": {10**400}}}', "which cannot be"),
        ('{"embedding_size": -3}', "of embedding size -3, which cannot be"),
        ('{"embedding_size": 1e999}', "of embedding size inf, which cannot be"),
        ('{"backbone": ["r50"]}', "which cannot be"),
        ("[" * 100_000, "no safetensors file"),
        ('{"embedding_size": 64}', f"not the weights of {NAME}: it differs in the shape of"),
        ("[1]", f"does not say which backbone it is; its names and shapes are those of {NAME}; give"),
    ],
)
def test_a_card_that_claims_what_cannot_be(tmp_path, weights, card, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(weights, {"facebones": card}))
    with pytest.raises(CheckpointError) as error:
        load_backbone(path, None if card == "[1]" else NAME)
    assert str(error.value).startswith(str(path)) and message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {key: value.to(torch.int64) for key, value in w.items()}, "no plain floating-point numbers in stem"),
        (lambda w: w | {FIRST: w[FIRST].to_sparse()}, f"no plain floating-point numbers in {FIRST}"),
        (lambda w: w | {FIRST: w[FIRST].to("meta")}, f"no plain floating-point numbers in {FIRST}"),
        (lambda w: w | {FIRST: w[FIRST].to(torch.complex64)}, f"no plain floating-point numbers in {FIRST}"),
        (
            lambda w: {
                key: torch.zeros(2**17, *value.shape[1:])
                if key.startswith(("norm.", "linear.")) and value.ndim
                else value
                for key, value in w.items()
            },
            "embedding size 131072 is not in 1 to 65536",
        ),
        (lambda w: {"more": [1]}, "holds no state dict"),
        (lambda w: {}, "holds no state dict"),
    ],
)
def test_a_state_dict_that_is_not_one_of_weights(tmp_path, weights, change, message):
    torch.save(change(dict(weights)), tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as error:
        load_backbone(tmp_path / "x.pth", NAME)
    assert str(error.value).startswith(str(tmp_path / "x.pth")) and message in str(error.value)


def test_loading_leaves_the_random_state_as_it_was(tmp_path, weights):
    torch.save(weights, tmp_path / "x.pth")
    before = torch.get_rng_state()
    load_backbone(tmp_path / "x.pth", NAME)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_weights_are_taken(tmp_path, weights):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    torch.save(halves, tmp_path / "x.pth")
    backbone, _ = load_backbone(tmp_path / "x.pth", NAME, 32)
    assert backbone(torch.zeros(1, 3, 112, 112)).dtype == torch.float32
    with pytest.raises(CheckpointError, match="its embeddings have 32 elements, not 64"):
        load_backbone(tmp_path / "x.pth", NAME, 64)


WRAPPED = {
    "bare": lambda w: w,
    "arcface_torch's checkpoint": lambda w: {"epoch": 3, "state_dict_backbone": w, "state_dict_softmax_fc": {}},
    "a state_dict among others": lambda w: {"state_dict": w, "optimizer": {}},
    "saved through DistributedDataParallel": lambda w: {f"module.{key}": value for key, value in w.items()},
    "saved through torch.compile": lambda w: {f"_orig_mod.{key}": value for key, value in w.items()},
    "without batch counters": lambda w: {k: value for k, value in w.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_state_dicts_of_others_as_they_are_saved(tmp_path, weights, wrap):
    torch.save(wrap(dict(weights)), tmp_path / "model.pt")
    backbone, _ = load_backbone(tmp_path / "model.pt", NAME)
    assert backbone.embedding_size == 32 and not backbone.training
    assert all(torch.equal(value, weights[key]) for key, value in backbone.state_dict().items())


FAMILIES = {"insightface": "r18", "study": "sfn1_0", "mixfacenets": "shufflemixfacenet_xs"}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(("family", "name"), FAMILIES.items())
def test_files_under_the_originals_names(tmp_path, family, name, suffix):
    shapes = json.loads((GOLDEN / f"{family}_keys.json").read_text())[name]
    content = {key: torch.full(shape, 0.5, dtype=torch.float32) for key, shape in shapes.items()}
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(save(content)) if suffix == "safetensors" else torch.save(content, path)
    backbone, _ = load_backbone(path, name)
    assert {tuple(tensor.shape) for tensor in backbone.state_dict().values()} == {tuple(s) for s in shapes.values()}
    with pytest.raises(CheckpointError, match=r"not the weights of mobilefacenet: it lacks stem\.0\.weight, stem\.1"):
        load_backbone(path, "mobilefacenet")


def test_without_a_name_the_ones_that_fit_are_named_and_none_is_chosen(tmp_path):
    torch.save(create_backbone("mixfacenet_xs", 64).state_dict(), tmp_path / "x.pth")
    message = "fit mixfacenet_xs and shufflemixfacenet_xs, which compute different things; give the right one"
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "x.pth")


def test_networks_that_differ_in_training_only_are_named_as_such(tmp_path):
    torch.save(create_backbone("vit_t", 8).state_dict(), tmp_path / "x.pth")
    message = "fit vit_t and vit_t_dp005_mask0, which differ in training only; give either: --backbone vit_t"
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "x.pth")


def test_wrappers_in_safetensors(tmp_path, weights):
    for prefix in ("module.", "backbone."):
        (tmp_path / f"{prefix}safetensors").write_bytes(save({prefix + key: w for key, w in weights.items()}))
        assert load_backbone(tmp_path / f"{prefix}safetensors", NAME)[0].embedding_size == 32


def test_an_onnx_file_is_no_file_of_weights(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is an ONNX file, which only evaluate and profile take"):
        load_backbone(tmp_path / "x.onnx", NAME)


@pytest.mark.parametrize("name", ["edgeface_xs", "timm:swin_s3_tiny_224"])
def test_networks_whose_buffers_are_not_saved(tmp_path, name):
    # Built without memory, as shapes alone, such buffers would have no content.
    saved = create_backbone(name, 32).eval()
    torch.save(saved.state_dict(), tmp_path / "x.pth")
    loaded, _ = load_backbone(tmp_path / "x.pth", name)
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(loaded(x), saved(x))
