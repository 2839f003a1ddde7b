"""Any image model of timm (extra `timm`) as a backbone, under the name `timm:NAME`.

The model's own classifier is left out: its pooled features go through dropout, a linear layer and batch normalisation,
the head of the compact face networks. Weights are drawn, never fetched.
"""

import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones.registry import IMAGE_SIZE, TIMM_PREFIX, Backbone, BackboneEntry, evaluation_mode
from facebones.errors import ConfigError, MissingExtraError, UnknownNameError, first_line


def import_timm() -> ModuleType:
    """The timm package.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError("timm")
    _mend_torchvision()
    import timm

    return timm


def _mend_torchvision() -> None:
    """Let torchvision be imported where its compiled part is of another build of torch (CUDA beside a CPU torch).

    timm asks for torchvision at its import, and nothing that its models compute is in that part; but without it the
    import ends at two operators whose names are missing.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


def timm_names(pattern: str = "*") -> list[str]:
    """Names, with the prefix, of timm's models that match a shell pattern (with or without the prefix)."""
    names = import_timm().list_models(pattern.removeprefix(TIMM_PREFIX))
    return [f"{TIMM_PREFIX}{name}" for name in names]


def timm_entry(name: str) -> BackboneEntry:
    """The registry's row of a model of timm.

    Raises:
        MissingExtraError: timm is not installed.
        UnknownNameError: timm has no such model; the message offers the nearest.
    """
    model = name.removeprefix(TIMM_PREFIX)
    if not import_timm().is_model(model):
        raise UnknownNameError("backbone", name, timm_names())

    def build(embedding_size: int, dropout: float) -> Backbone:
        return TimmBackbone(model, embedding_size, dropout)

    return BackboneEntry(name=name, build=build, summary=f"{model} of timm, with an embedding head", needs="timm")


class TimmBackbone(Backbone):
    """A model of timm, its classifier replaced by dropout, linear and batch normalisation.

    Args:
        model: timm's name.
        embedding_size: D.
        dropout: probability before the linear layer.

    Raises:
        ConfigError: the model does not take 112x112 images, or gives no feature vector.
    """

    def __init__(self, model: str, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.body = _create_body(model)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(_feature_size(self.body, model), embedding_size, bias=False)
        self.norm = nn.BatchNorm1d(embedding_size)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.dropout(self.body(x_B3HW))  # (B, features)
        return self.norm(self.linear(x)).float()  # type: ignore[no-any-return]  # (B, D)


def create_timm_model(model: str, **options: Any) -> nn.Module:
    """A model of timm with newly drawn weights, for 112x112 images.

    Raises:
        ConfigError: it cannot be built so.
    """
    timm = import_timm()
    if timm.get_pretrained_cfg(model).fixed_input_size:  # as most transformers have it; others take any size
        options["img_size"] = IMAGE_SIZE
    try:
        return timm.create_model(model, pretrained=False, **options)  # type: ignore[no-any-return]
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise _unfit(model, reason) from error


def _create_body(model: str) -> nn.Module:
    return create_timm_model(model, num_classes=0)


def _feature_size(body: nn.Module, model: str) -> int:
    """Length of the feature vector, which some models do not state; found by a forward pass."""
    device = next(body.parameters()).device
    try:
        with evaluation_mode(body), torch.no_grad():
            features = body(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise _unfit(model, first_line(error)) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise _unfit(model, "it gives no feature vector")
    return features.shape[1]


def _unfit(model: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{TIMM_PREFIX}{model}: no backbone for {IMAGE_SIZE}x{IMAGE_SIZE} images: {reason}; choose another"
    )
