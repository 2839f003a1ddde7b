"""The deploy form has the originals' counts, names and embeddings, and gives those of the form that is trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone, list_backbones
from facebones.backbones.facelivt import START_FOR_SGD, facelivtv2_xs
from facebones.backbones.state_dicts import shapes_of
from facebones.errors import CheckpointError
from facebones.evaluation.models import load_model
from facebones.profiling.cost import count_macs, count_parameters

GOLDEN = Path(__file__).parents[1] / "golden"
COSTS = json.loads((GOLDEN / "backbones.json").read_text())["backbones"]
NAMES = [name for name in COSTS if "deploy_parameters" in COSTS[name]]
KEYS = json.loads((GOLDEN / "facelivt_keys.json").read_text())
OUTPUTS = dict(np.load(GOLDEN / "facelivt_outputs.npz"))


@pytest.fixture
def faces():
    return torch.from_numpy(np.random.RandomState(5).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_names_of_both_forms_are_the_originals(name):
    with torch.device("meta"):
        network = create_backbone(name)
    for form, kind in ((network, ""), (network.deploy(), "deploy_")):
        assert count_parameters(form) == COSTS[name][f"{kind}parameters"]
        assert count_macs(form) / 1e6 == pytest.approx(COSTS[name][f"{kind}macs_millions"], abs=0.0005)
        given = KEYS[f"{name}{'_deploy' if kind else ''}"]
        assert shapes_of(form) == {key: tuple(shape) for key, shape in given.items()}


def unrounded(network, x):
    """What the last layer gives: a backbone rounds to float32."""
    found = []
    hook = network.head.register_forward_hook(lambda *arguments: found.append(arguments[-1]))
    with torch.no_grad():
        network(x)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_folding_changes_embeddings_by_rounding_alone(name, scaled_backbone, faces):
    network = scaled_backbone(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    deployed = network.deploy()
    assert (deployed.name, deployed.embedding_size, deployed.training) == (name, 512, False)
    assert deployed.is_deployed and not network.is_deployed and deployed.deploy() is deployed
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert {p.data_ptr() for p in network.parameters()}.isdisjoint(p.data_ptr() for p in deployed.parameters())
    expected = OUTPUTS.get(f"{name}_deploy")
    if expected is not None:
        with torch.no_grad():
            assert np.abs(deployed(faces).numpy() - expected).max() <= 2e-5 * np.abs(expected).max()
            assert np.abs(deployed.double()(faces.double()).numpy() - expected).max() <= 1e-6 * np.abs(expected).max()
    network, x = network.double(), faces.double()
    trained, folded = unrounded(network, x), unrounded(network.deploy(), x)
    assert (folded - trained).abs().max() <= 1e-12 * trained.abs().max()


@pytest.mark.parametrize("name", [name for name in list_backbones() if name not in NAMES])
def test_a_network_of_one_form_is_its_own_deploy_form(name):
    with torch.device("meta"):
        network = create_backbone(name)
    assert network.deploy() is network and not network.is_deployed


@pytest.mark.parametrize("name", [pytest.param("facelivt_s", marks=pytest.mark.slow), "facelivtv2_xs"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_files_of_the_authors_load_in_either_form(name, wrapper, scaled_backbone, tmp_path):
    network = scaled_backbone(name, embedding_size=64)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    embeddings = []
    for form in (network, network.deploy()):
        torch.save(
            {"state_dict": {wrapper + key: value for key, value in form.state_dict().items()}}, tmp_path / "x.pt"
        )
        model = load_model(tmp_path / "x.pt", backbone=name, device="cpu")
        assert model.network.is_deployed == form.is_deployed and model.network.embedding_size == 64
        embeddings.append(model.embed(list(pixels)))
        with pytest.raises(CheckpointError, match=f"its names and shapes are those of {name}; give --backbone {name}"):
            load_model(tmp_path / "x.pt", device="cpu")
    np.testing.assert_allclose(*embeddings, atol=1e-5 * np.abs(embeddings[0]).max())


def test_a_deploy_form_that_lacks_a_tensor_is_compared_with_the_deploy_form(scaled_backbone, tmp_path):
    weights = scaled_backbone("facelivtv2_xs").deploy().state_dict()
    del weights["head.bias"]
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"not the weights of facelivtv2_xs: it lacks head\.bias;"):
        load_model(tmp_path / "x.pt", backbone="facelivtv2_xs", device="cpu")


def gradient_of_token_mixing(network, x):
    torch.manual_seed(0)
    (network(x).square().sum() / 1e3).backward()
    return network.stages[2].blocks[0].block[1].m.lin[0].weight.grad.abs().max()


def test_token_mixing_starts_as_published_or_so_that_sgd_moves_it(faces):
    torch.manual_seed(0)
    published, other = create_backbone("facelivtv2_xs"), facelivtv2_xs(512, 0.0, START_FOR_SGD)
    smallest_float16 = 2**-24
    assert gradient_of_token_mixing(published, faces) < smallest_float16 / 2
    assert gradient_of_token_mixing(other, faces) > 100 * smallest_float16
    other.load_state_dict(published.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights(name):
    network = create_backbone(name)
    for key, parameter in network.named_parameters():
        if parameter.ndim > 1 and not key.endswith((".ls", ".alpha", ".beta")):
            assert abs(parameter.std().item() - 0.02) < 0.02 * 5 / parameter.numel() ** 0.5, key
        elif key.endswith((".ls", ".alpha")):
            assert (parameter == 1e-5).all(), key
        else:
            assert (parameter == float(key.endswith((".bn.weight", "norm.weight")) and ".pw2." not in key)).all(), key
