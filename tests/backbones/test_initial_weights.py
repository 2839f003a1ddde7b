"""Initial weights of the study's networks: drawn as its own code draws them, layer by layer."""

import json
import math
from pathlib import Path

import pytest
import torch

from facebones.backbones import create_backbone

RULES = json.loads((Path(__file__).parents[1] / "golden" / "study_init.json").read_text())["nets"]
ERRORS = 6  # standard errors that a mean or a deviation may be off
DIGITS = 1e-4  # of the golden numbers
VARIANCE_OF_SQUARE = {"normal": 2.0, "uniform": 0.8}  # of a squared draw of variance 1


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
