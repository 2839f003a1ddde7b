"""Counts that follow from a network's structure, against published figures and another counter."""

import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from facebones.backbones import create_backbone, list_backbones
from facebones.profiling.cost import count_macs, count_operations, weights_bytes

NAMES = [name for name in list_backbones() if name != "tiny_for_tests"]
QUICK = ["edgeface_xs", "facelivtv2_xs", "mixfacenet_xs", "vit_t"]  # with and without attention
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in QUICK]


def on_meta(name):
    with torch.device("meta"):
        return create_backbone(name)


@pytest.mark.parametrize(
    ("name", "flops"),
    [("mixfacenet_m", 626_139_948), ("mixfacenet_s", 451_720_268), ("mixfacenet_xs", 161_988_532)],
)
def test_flops_are_those_that_the_mixfacenet_paper_prints(name, flops):
    assert count_operations(on_meta(name)).flops_mixfacenet == flops


@pytest.fixture(scope="module")
def ptflops_aten():
    """ptflops' counter of ATen operators; its optional use of torchvision is left out, whatever is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", None)
        from ptflops.aten_engine import get_flops_aten
    return lambda network: get_flops_aten(network, (3, 112, 112), print_per_layer_stat=False)[0]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_macs_agree_with_ptflops(name, ptflops_aten):
    """ptflops' aten backend counts convolutions and matrix products as we do.

    It also counts the products of two maps in EdgeFace's attention, and one for each bias added (but not where torch
    adds the bias of a linear layer apart, as it does in EdgeFace).
    """
    counts = count_operations(on_meta(name))
    network = on_meta(name).eval()
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 112, 112, device="meta"))
        found = ptflops_aten(network)
    attention = counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0) // 2
    assert (attention > 0) == name.startswith(("edgeface", "vit"))
    assert counts.attention == attention
    assert found - attention == pytest.approx(counts.macs + counts.biases, rel=0 if not attention else 1e-3)
    few = 0.05 if name.startswith("mobilenet_") else 0.02  # their convolutions have biases
    assert counts.biases < few * counts.macs


class Everything(nn.Module):
    """One of each thing that is counted, with and without a module of its own, and some that are not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)  # to (4, 4, 4)
        self.norm2d = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        x = nn.functional.silu(self.norm2d(self.conv(x)), inplace=True)
        x = nn.functional.max_pool2d(x * x.mean((2, 3), keepdim=True).sigmoid() + x, 2)
        return self.norm(self.linear(x.mean((2, 3)))).relu()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_each_operation_is_counted_by_its_rule(device):
    with torch.device(device):
        network = Everything()
    counts = count_operations(network, image_size=8)
    assert counts.macs == count_macs(network, image_size=8) == 64 * 27 + 20
    assert counts.activations == counts.biases == counts.normalised == 64 + 5
    assert counts.activated == 64 + 4 + 5  # swish, sigmoid, ReLU
    assert counts.pooled == 64 + 64 + 16  # mean of the map, max-pool, mean of the map
    assert counts.flops == 2 * counts.macs
    assert counts.flops_mixfacenet == 2 * counts.macs + 69 + 2 * 69 + 73 + 144
    assert network.training


def test_size_of_the_weights_is_that_of_the_state_dict():
    running = 4 * (2 * 4 + 2 * 5) + 2 * 8  # mean and variance; the two counts of batches are 64-bit
    assert weights_bytes(Everything()) == 4 * (4 * 27 + 4 + 2 * 4 + 20 + 5 + 2 * 5) + running
