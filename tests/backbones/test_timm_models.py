"""Models of timm as backbones, and what is said where timm or the model is not there."""

import importlib.util

import pytest
import torch

from facebones.backbones import create_backbone, list_backbones, lookup_backbone
from facebones.cli.main import main
from facebones.errors import ConfigError, UnknownNameError
from facebones.profiling.cost import describe_backbones


@pytest.mark.parametrize(
    "name",
    [
        "timm:mobilenetv4_conv_small",  # a hidden layer after the pool
        "timm:resnet18",
        "timm:convnext_atto",
        "timm:vit_tiny_patch16_224",  # a fixed input size
        "timm:deit_tiny_distilled_patch16_224",  # two classifiers
    ],
)
def test_a_model_gives_embeddings_and_every_used_parameter_a_gradient(name):
    backbone = create_backbone(name, embedding_size=128, dropout=0.1)
    embeddings = backbone(torch.randn(3, 3, 112, 112))
    assert embeddings.shape == (3, 128) and embeddings.dtype == torch.float32
    assert backbone.name == name and backbone.embedding_size == 128
    embeddings.square().sum().backward()
    assert [key for key, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    again = create_backbone(name, embedding_size=128)
    again.load_state_dict(backbone.state_dict())


def test_models_are_listed_by_pattern(capsys):
    names = list_backbones("timm:mobilenetv4*")
    assert "timm:mobilenetv4_conv_small" in names and all(name.startswith("timm:mobilenetv4") for name in names)
    assert main(["backbones", "timm:mobilenetv4_conv_s*"]) == 0
    assert "timm:mobilenetv4_conv_small" in capsys.readouterr().out


def test_an_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'timm:resnet18'"):
        lookup_backbone("timm:resnet81")
    with pytest.raises(UnknownNameError, match="unknown backbone 'timm:zzz"):
        describe_backbones("timm:zzz*")


def test_a_model_that_does_not_take_the_input_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"timm:maxvit_tiny_tf_224: no backbone for 112x112 images") as caught:
        create_backbone("timm:maxvit_tiny_tf_224")
    assert "\n" not in str(caught.value)


def test_without_timm_each_use_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else find(name, *rest))
    for name in ("edgeface_xs", "timm:resnet18"):
        with pytest.raises(ConfigError, match=r"timm is not installed; pip install 'facebones\[timm\]'"):
            create_backbone(name)
    assert main(["backbones", "*_xs"]) == 0
    listed = capsys.readouterr().out
    assert "facebones[timm]" in listed and "1,040,866" in listed
