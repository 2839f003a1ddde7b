"""The stages of every registered backbone: a partition of its parameters, in the order in which it computes."""

import pytest
import torch
from torch import nn

from facebones.backbones import create_backbone, list_backbones
from facebones.backbones.stages import LAST, TrainingMode, freeze, layer_factors, stages_of
from facebones.errors import ConfigError

TIMM = ["timm:resnet18", "timm:mobilenetv3_small_050", "timm:vit_tiny_patch16_224", "timm:densenet121"]
NAMES = [*list_backbones(), *TIMM]


def shapes_of(name):
    """A backbone without memory."""
    with torch.device("meta"):
        return create_backbone(name, 32)


@pytest.mark.parametrize("name", NAMES)
def test_stages_partition_the_parameters_in_the_order_of_computing(name):
    network = shapes_of(name)
    stages = stages_of(network)
    parameters = [p for stage in stages for p in stage.parameters]
    assert len(parameters) == len(set(parameters)) and {*parameters} == {*network.parameters()}
    if not name.startswith("facelivt"):  # its authors register all reductions before all units
        assert parameters == list(network.parameters())
    modules = [module for stage in stages for module in stage.modules]
    assert len(modules) == len(set(modules)) and {*network.modules()} - {*modules} == set()
    if network.stage_ends:  # a new family may leave them to the rule
        assert [stage.name for stage in stages] == [*network.stage_ends, LAST] and len(stages) >= 5

    number_of = {module: number for number, stage in enumerate(stages) for module in stage.modules}
    order = []
    for module in network.modules():
        if any(True for _ in module.parameters(recurse=False)) and not any(True for _ in module.children()):
            module.register_forward_hook(lambda module, *_: order.append(number_of[module]))
    network.eval()(torch.zeros(2, 3, 112, 112, device="meta"))
    assert order == sorted(order) and {*order} == {*range(len(stages))}


@pytest.mark.parametrize("name", ["shufflefacenet_0_5", "iresnet18", "mixfacenet_xs", "timm:mobilenetv3_small_050"])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(name):
    network = create_backbone(name, 32)
    freeze(network, 2)
    first, second, *others = stages_of(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    TrainingMode(network, 2).begin()
    network(torch.randn(4, 3, 112, 112)).square().sum().backward()
    for stage in (first, second):
        assert all(p.grad is None for p in stage.parameters)
        assert not any(module.training for module in stage.modules if not any(True for _ in module.children()))
    frozen = {module for stage in (first, second) for module in stage.modules}
    moved = set()
    for key, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            changed = not torch.equal(module.running_mean, before[f"{key}.running_mean"])
            assert changed == (module not in frozen), key
            moved.add(changed)
    assert moved == {True, False}
    assert all(module.training for stage in others for module in stage.modules)
    TrainingMode(network, 0).begin()
    assert all(module.training for module in network.modules())


def test_too_many_frozen_stages_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"has 6 stages \(stem, stages\.0, .*, embedding\).*; give at most 5"):
        freeze(create_backbone("shufflefacenet_0_5", 32), 6)


def test_rates_fall_from_the_last_stage_to_the_first():
    network = shapes_of("shufflefacenet_0_5")
    factors = layer_factors(network, 0.5)
    assert factors.keys() == {*network.parameters()}
    assert [factors[stage.parameters[0]] for stage in stages_of(network)] == [0.5**k for k in (5, 4, 3, 2, 1, 0)]


class Shared(nn.Module):
    """Stages by rule: a wrapper, parameters of its own, normalisation without parameters, a weight that two share."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.token = nn.Parameter(torch.zeros(1, 3))
        self.inner.first = nn.Linear(3, 4)
        self.inner.norm = nn.BatchNorm1d(4, affine=False)
        self.inner.act = nn.PReLU()
        self.inner.second = nn.Linear(4, 4)
        self.inner.drop = nn.Dropout(0.1)
        self.inner.third = nn.Linear(4, 4)
        self.inner.third.weight = self.inner.second.weight
        self.inner.last_norm = nn.BatchNorm1d(4, affine=False)


def test_the_rule_for_a_network_that_names_no_stages():
    network = Shared()
    inner, stages = network.inner, stages_of(network)
    assert [stage.name for stage in stages] == ["inner.act", "inner.drop", LAST]
    assert stages[0].parameters == [inner.token, *inner.first.parameters(), *inner.act.parameters()]
    assert stages[1].parameters == [*inner.second.parameters()] and stages[2].parameters == [inner.third.bias]
    assert inner.norm in stages[0].modules and inner.last_norm in stages[2].modules


def test_declared_ends_without_parameters_or_at_the_end_make_no_stage():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 2))
    network.stage_ends = ("0", "2", "3", "4")
    assert [(stage.name, len(stage.parameters)) for stage in stages_of(network)] == [("2", 2), ("3", 2), ("4", 2)]
