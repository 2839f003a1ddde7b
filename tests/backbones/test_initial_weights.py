"""Initial weights of the study's networks and of those of other authors: drawn as their code draws them."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from facebones.backbones import create_backbone

RULES = json.loads((Path(__file__).parents[1] / "golden" / "study_init.json").read_text())["nets"]
ERRORS = 6  # standard errors that a mean or a deviation may be off
DIGITS = 1e-4  # of the golden numbers
VARIANCE_OF_SQUARE = {"normal": 2.0, "uniform": 0.8, "truncated": 1.366}  # of a squared draw of variance 1
TRUNCATED_AT = 2 / 0.8796  # deviations: a normal draw cut at two of its own


@pytest.fixture(scope="module", params=RULES)
def network(request):
    """A network and the rule of each of its parameters."""
    torch.manual_seed(0)
    return create_backbone(request.param), RULES[request.param]


def kind_of(key, parameter):
    """The kind of layer that a parameter is drawn for."""
    if parameter.ndim == 4:
        return "depthwise" if parameter.shape[1] == 1 else f"convolution {parameter.shape[2]}"
    return "linear" if parameter.ndim == 2 else key.rpartition(".")[2]


def assert_like(draw, rule, what):
    """Draws of a rule, divided by its standard deviation: mean 0 and variance 1 within their sampling error."""
    assert abs(draw.mean().item()) < ERRORS / math.sqrt(len(draw)), what
    error = math.sqrt(VARIANCE_OF_SQUARE[rule] / len(draw))
    assert abs(draw.square().mean().item() - 1) < ERRORS * error + 2 * DIGITS, what
    if rule == "uniform":
        assert draw.abs().max() <= math.sqrt(3) * (1 + DIGITS), what
    elif rule == "truncated":
        assert draw.abs().max() <= TRUNCATED_AT, what
    elif len(draw) > 1000:
        assert draw.abs().max() > 2.5, what  # beyond what a uniform draw of this variance reaches


def test_every_parameter_has_a_rule_and_constants_are_exact(network):
    backbone, rules = network
    parameters = dict(backbone.named_parameters())
    assert parameters.keys() == rules.keys()
    for key, (rule, value, *frozen) in rules.items():
        assert parameters[key].requires_grad is not bool(frozen), key
        if rule == "constant":
            assert (parameters[key] == value).all(), key


def test_each_layer_and_each_kind_of_layer_is_drawn_by_the_rule_of_the_study(network):
    backbone, rules = network
    kinds = {}
    for key, parameter in backbone.named_parameters():
        rule, value = rules[key][:2]
        if rule != "constant":
            deviation = value / math.sqrt(3) if rule == "uniform" else value
            draw = parameter.detach().flatten().double() / deviation
            assert_like(draw, rule, key)
            kinds.setdefault((kind_of(key, parameter), rule), []).append(draw)
    assert {kind for kind, _ in kinds} >= {"convolution 1", "convolution 3"}
    for (kind, rule), draws in kinds.items():
        assert_like(torch.cat(draws), rule, kind)


# ------------------------------------------------------------------------------------------------ of other authors


def he(module):
    """He's rule over the fan out as torch counts it: all output channels, also of a depthwise convolution."""
    return "normal", math.sqrt(2 / module.weight[:, 0].numel())


def of_mobilenet(key, module):
    return ("normal", 0.01) if isinstance(module, nn.Linear) else he(module)


def of_ghostfacenet_v1(key, module):
    if key.startswith("head."):
        return glorot_of_head(key, module)
    kernel = math.prod(module.kernel_size)
    return "truncated", math.sqrt(2 / (kernel if module.groups > 1 else module.out_channels * kernel))


def of_ghostfacenet_v2(key, module):
    if key.startswith("head."):
        return glorot_of_head(key, module)
    if ".se." in key:
        return "uniform", math.sqrt(2 / (module.in_channels + module.out_channels))
    return "uniform", 1 / math.sqrt(3 * module.in_channels * math.prod(module.kernel_size))


def glorot_of_head(key, module):
    if key == "head.linear":
        return "truncated", math.sqrt(2 / (module.in_channels + module.out_channels))
    assert key == "head.depthwise"
    return "uniform", math.sqrt(2 / (math.prod(module.kernel_size) * (module.in_channels + 1)))


def of_vit(key, module):
    return ("normal", 0.02) if isinstance(module, nn.Linear) else ("uniform", 1 / math.sqrt(3 * 3 * 81))


OTHERS = {
    "ir_se_18": lambda _, module: he(module),
    "mobilefacenet_cavaface": lambda _, module: he(module),
    "mobilenet_v1_0_25": of_mobilenet,
    "mobilenet_v2": of_mobilenet,
    "mobilenet_v3_small": of_mobilenet,
    "ghostfacenet_v1_0_5_s2": of_ghostfacenet_v1,
    "ghostfacenet_v2_1_0_s2": of_ghostfacenet_v2,
    "vit_t": of_vit,
}


@pytest.mark.parametrize("name", OTHERS)
def test_layers_are_drawn_by_the_rule_of_their_authors(name):
    torch.manual_seed(0)
    seen = set()
    for key, module in create_backbone(name).named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Conv2d | nn.Linear):
            rule, deviation = OTHERS[name](key, module)
            assert_like(own.pop("weight").detach().flatten().double() / deviation, rule, key)
        elif key == "":  # the vision transformer's own
            for parameter in own.values():
                assert_like(parameter.detach().flatten().double() / 0.02, "normal", key)
            own = {}
        elif own:
            start = 0.25 if isinstance(module, nn.PReLU) else 1
            assert (own.pop("weight") == start).all(), key
        if key == "patch_embed.proj":
            assert_like(own.pop("bias").detach().double() * math.sqrt(3 * 3 * 81), "uniform", key)
        assert all((parameter == 0).all() for parameter in own.values()), key
        seen.add(type(module).__name__)
    assert seen & {"BatchNorm2d", "LayerNorm"}
