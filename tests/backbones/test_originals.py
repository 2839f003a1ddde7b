"""Networks whose originals were run in float64: weights under their keys give their embeddings, to rounding."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.backbones.catalogue import read_catalogue
from facebones.backbones.ghostfacenet import GhostFaceNet
from facebones.backbones.vit import TOKENS, DropPath, VisionTransformer
from facebones.evaluation.models import load_model
from facebones.profiling.cost import unused_parameters

GOLDEN = Path(__file__).parents[1] / "golden"
REGISTERED = {row["name"] for row in read_catalogue()}
FAMILIES = ("facelivt", "ghostfacenet", "ir", "mobilefacenet_cavaface", "mobilenet", "pocketnet", "vit")
QUICK = {  # one of each kind of layer
    *("ghostfacenet_v1_0_5_s2", "ghostfacenet_v1_1_0_s1", "ghostfacenet_v2_1_0_s2", "ir_se_18"),
    *("mobilefacenet_cavaface", "mobilenet_v1_0_25", "mobilenet_v2", "mobilenet_v3_small", "vit_t"),
    *("facelivt_s", "facelivtv2_xs", "facelivtv2_xs_deploy", "pocketnet_m_128"),
}


def registered_name(name):
    """A name of the goldens without its form or embedding size, which a file shows."""
    return re.sub(r"_deploy$|(?<=^pocketnet_[sm])_\d+$", "", name)


NAMES = [
    pytest.param(family, name, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
    for family in FAMILIES
    for name in json.loads((GOLDEN / f"{family}_keys.json").read_text())
    if registered_name(name) in REGISTERED
]


def original(family, name, golden_tensor):
    """The state dict of the original, and its embeddings of the two images of tests/golden; None if it was not run."""
    keys = json.loads((GOLDEN / f"{family}_keys.json").read_text())
    form = name.removesuffix("_deploy")
    weights = {key: golden_tensor(key, shape) for key, shape in keys[form].items()}
    if form != name:  # the original filled the form that is trained, and folded it
        network = create_backbone(form)
        network.load_state_dict(weights)
        weights = network.deploy().state_dict()
        assert {key: list(tensor.shape) for key, tensor in weights.items()} == keys[name]
    return weights, answers(family).get(name)


def answers(family):
    return dict(np.load(GOLDEN / f"{family}_outputs.npz"))


def images():
    return torch.from_numpy(np.random.RandomState(5).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32))


def error(found, expected):
    """The largest error relative to the largest element."""
    return np.abs(found.double().numpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("family", "name"), NAMES)
@torch.no_grad()
def test_a_file_under_the_originals_keys_gives_its_embeddings(family, name, golden_tensor, tmp_path):
    weights, expected = original(family, name, golden_tensor)
    torch.save(weights, tmp_path / "x.pth")
    network = load_model(tmp_path / "x.pth", backbone=registered_name(name), device="cpu").network
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in weights.items())
    if expected is not None:
        assert error(network(images()), expected) < 2e-5
        assert error(network.double()(images().double()), expected) < 1e-6


@torch.no_grad()
def test_ghostfacenet_with_a_bias_before_the_last_normalisation(golden_tensor):
    weights, expected = original("ghostfacenet", "ghostfacenet_v1_1_3_s1_bias", golden_tensor)
    network = GhostFaceNet(width=1.3, stride=1, v2=False, embedding_size=512, dropout=0.0, bias=True).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_060_260
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    network.load_state_dict(weights | counters)
    assert error(network.double()(images().double()), expected) < 1e-6


@pytest.mark.parametrize("name", ["ghostfacenet_v1_1_3_s1", "ghostfacenet_v1_1_3_s1_bias"])
@pytest.mark.parametrize("wrapper", ["", "module."])
@torch.no_grad()
def test_a_file_with_that_bias_gives_the_originals_embeddings(name, wrapper, golden_tensor, tmp_path, capsys):
    weights, expected = original("ghostfacenet", "ghostfacenet_v1_1_3_s1_bias", golden_tensor)
    torch.save({wrapper + key: tensor for key, tensor in weights.items()}, tmp_path / "x.pth")
    network = load_model(tmp_path / "x.pth", backbone=name, device="cpu").network
    assert "x.pth: the bias before its last batch normalisation is subtracted" in capsys.readouterr().err
    assert error(network(images()), expected) < 2e-5
    assert error(network.double()(images().double()), expected) < 1e-6


def small_vit(**options):
    return VisionTransformer(width=16, depth=3, embedding_size=8, dropout=0.0, heads=2, **options)


def test_vit_trains_on_the_tokens_that_are_kept_and_embeds_all():
    torch.manual_seed(0)
    network = small_vit(drop_path=0.0, mask_ratio=0.1)
    lengths, fed = [], []
    network.blocks.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    network.feature[0].register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].view(-1, TOKENS, 16)))
    network(images())
    network.eval()(images())
    assert lengths == [129, TOKENS]
    masked = (fed[0] == network.mask_token).all(2)
    assert masked.sum(1).tolist() == [15, 15] and not torch.equal(*masked)
    # A token that is kept stays in its place: without blocks between, it is the one of evaluation.
    network.blocks = torch.nn.Sequential()
    network(images())
    network.train()(images())
    kept = ~(fed[3] == network.mask_token).all(2)
    assert torch.equal(fed[3][kept], fed[2][kept])


@pytest.mark.parametrize(("mask_ratio", "unused"), [(0.1, []), (0.0, ["mask_token"])])
def test_the_mask_token_is_unused_only_where_nothing_is_masked(mask_ratio, unused):
    network = small_vit(drop_path=0.0, mask_ratio=mask_ratio)
    network(images()).square().sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == unused
    assert unused_parameters(network) == unused


def test_drop_path_rises_to_its_rate_and_keeps_the_mean():
    network = create_backbone("vit_t", 8)
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx(np.linspace(0, 0.1, 12))
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(10_000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3]) and dropped.mean() == pytest.approx(1, abs=0.02)
    assert (dropped == dropped[:, :1, :1]).all()
    assert torch.equal(DropPath(0.25).eval()(torch.ones(9, 2, 3)), torch.ones(9, 2, 3))
