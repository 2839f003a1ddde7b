"""Image models of timm (extra `timm`) as backbones, named `timm:NAME`.

The model's classifier is replaced by dropout, a linear layer and batch normalisation, the head of the compact face
networks. Weights are random; nothing is downloaded.
"""

import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones.base import IMAGE_SIZE, TIMM_PREFIX, Backbone, BackboneEntry, evaluation_mode
from facebones.errors import ConfigError, MissingExtraError, UnknownNameError, first_line


def import_timm() -> ModuleType:
    """The timm package.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError("timm")
    _declare_torchvision_operators()
    import timm

    return timm


def _declare_torchvision_operators() -> None:
    """Make torchvision importable if its compiled part was built for another torch (CUDA, beside a CPU torch).

    timm imports torchvision, whose import then fails on two missing operators. No model of timm calls them.
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
    """The registry's row for a model of timm.

    Raises:
        MissingExtraError: timm is not installed.
        UnknownNameError: timm has no such model; the message offers the nearest name.
    """
    model = name.removeprefix(TIMM_PREFIX)
    if not import_timm().is_model(model):
        raise UnknownNameError("backbone", name, timm_names())

    def build(embedding_size: int, dropout: float) -> Backbone:
        return TimmBackbone(model, embedding_size, dropout)

    return BackboneEntry(name=name, build=build, summary=f"{model} of timm, with an embedding head", needs="timm")


class TimmBackbone(Backbone):
    """A model of timm whose classifier is replaced by dropout, linear and batch normalisation.

    Args:
        model: timm's name.
        embedding_size: D.
        dropout: probability before the linear layer.

    Raises:
        ConfigError: the model does not take 112x112 images, or returns no feature vector.
    """

    def __init__(self, model: str, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.body = create_timm_model(model, num_classes=0)
        self.stage_ends = feature_ends(self.body, "body")
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(_feature_size(self.body, model), embedding_size, bias=False)
        self.norm = nn.BatchNorm1d(embedding_size)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.dropout(self.body(x_B3HW))  # (B, features)
        return self.norm(self.linear(x)).float()  # type: ignore[no-any-return]  # (B, D)


def create_timm_model(model: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """A model of timm for 112x112 images, with random weights or with those that timm downloads.

    Raises:
        ConfigError: it cannot be built for this size or with these options.
    """
    timm = import_timm()
    if timm.get_pretrained_cfg(model).fixed_input_size:  # most transformers; other models take any size
        options["img_size"] = IMAGE_SIZE
    try:
        return timm.create_model(model, pretrained=pretrained, **options)  # type: ignore[no-any-return]
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise _unfit(model, first_line(error)) from error


def pretrained_weights(model: str) -> dict[str, Tensor]:
    """The state dict of the `body` of a `TimmBackbone` with timm's pretrained weights, which timm downloads and keeps.

    Raises:
        ConfigError: there are none, or they cannot be loaded.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return create_timm_model(model, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # of the network, of the cache of timm or of its file
        raise ConfigError(
            f"{TIMM_PREFIX}{model}: timm's pretrained weights cannot be loaded: {first_line(error)}; check the network,"
            " or give a file of weights"
        ) from error


def feature_ends(body: nn.Module, place: str) -> tuple[str, ...]:
    """The modules that end the stages of a model: its stem, and those whose feature maps timm lists.

    Args:
        body: the model.
        place: its name in the network.
    """
    known = {name for name, _ in body.named_modules()}
    rows = getattr(body, "feature_info", None) or ()
    ends = ["stem", "patch_embed", *(row.get("module") for row in rows if isinstance(row, dict))]
    return tuple(dict.fromkeys(f"{place}.{end}" for end in ends if end in known))


def _feature_size(body: nn.Module, model: str) -> int:
    """Length of the feature vector, from a forward pass: not every model states it."""
    device = next(body.parameters()).device
    try:
        with evaluation_mode(body), torch.no_grad():
            features = body(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise _unfit(model, first_line(error)) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise _unfit(model, "it returns no feature vector")
    return features.shape[1]


def _unfit(model: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{TIMM_PREFIX}{model}: no backbone for {IMAGE_SIZE}x{IMAGE_SIZE} images: {reason}; choose another"
    )
