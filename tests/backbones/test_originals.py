"""Networks whose originals were run in float64: weights under their keys give their embeddings, to rounding."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.backbones.catalogue import read_catalogue
from facebones.evaluation.models import load_model

GOLDEN = Path(__file__).parents[1] / "golden"
MACS = {row["name"]: row["macs"] for row in read_catalogue()}
FAMILIES = ("ir", "mobilenet", "mobilefacenet_cavaface")
QUICK = 3e9  # MACs
NAMES = [
    pytest.param(family, name, id=name, marks=[pytest.mark.slow] if MACS.get(name, 0) > QUICK else [])
    for family in FAMILIES
    for name in json.loads((GOLDEN / f"{family}_keys.json").read_text())
]


def original(family, name, golden_tensor):
    """The state dict of the original, and its embeddings of the two images of tests/golden; None if it was not run."""
    shapes = json.loads((GOLDEN / f"{family}_keys.json").read_text())[name]
    return {key: golden_tensor(key, shape) for key, shape in shapes.items()}, answers(family).get(name)


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
    network = load_model(tmp_path / "x.pth", backbone=name, device="cpu").network
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in weights.items())
    if expected is not None:
        assert error(network(images()), expected) < 2e-5
        assert error(network.double()(images().double()), expected) < 1e-6
