"""EdgeFace (George et al., arXiv 2307.01838): EdgeNeXt (arXiv 2206.10589) for faces, through the extra `timm`.

timm's EdgeNeXt at 112x112; its classifier computes the embedding. In the variants xs and s, every linear layer is
factored into two of low rank (section III of the paper), which saves parameters and multiply-accumulates. This includes
the embedding layer: only then do the counts match the published ones (1.77 M and 3.65 M).
"""

from typing import Any, cast

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.registry import register_backbone
from facebones.backbones.timm_models import create_timm_model, feature_ends


class LowRankLinear(nn.Module):
    """A linear layer factored into two: input to `rank` elements, and these to the output.

    Args:
        linear: the layer to replace; its weights are not used.
        ratio: rank relative to the smaller side of its weight matrix; the rank is at least 2.
    """

    def __init__(self, linear: nn.Linear, ratio: float) -> None:
        super().__init__()
        rank = max(2, int(min(linear.in_features, linear.out_features) * ratio))
        self.linear1 = nn.Linear(linear.in_features, rank, bias=False)
        self.linear2 = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.linear1(x))  # type: ignore[no-any-return]


class EdgeFace(Backbone):
    """EdgeFace.

    Args:
        model: timm's name of the EdgeNeXt.
        embedding_size: D.
        dropout: probability before the last linear layer.
        rank_ratio: ratio at which linear layers are factored; None for no factoring.
    """

    def __init__(self, model: str, embedding_size: int, dropout: float, rank_ratio: float | None = None) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.model = cast(Any, create_timm_model(model, num_classes=embedding_size, drop_rate=dropout))
        self.stage_ends = feature_ends(self.model, "model")
        if rank_ratio is not None:
            _factor_linear_layers(self.model, rank_ratio)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.model(x_B3HW).float()  # type: ignore[no-any-return]  # (B, D)


def _factor_linear_layers(module: nn.Module, ratio: float) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, LowRankLinear(child, ratio))
        else:
            _factor_linear_layers(child, ratio)


@register_backbone(needs="timm")
def edgeface_xxs(embedding_size: int, dropout: float) -> Backbone:
    """EdgeFace-XXS (arXiv 2307.01838)."""
    return EdgeFace("edgenext_xx_small", embedding_size, dropout)


@register_backbone(needs="timm")
def edgeface_xs(embedding_size: int, dropout: float) -> Backbone:
    """EdgeFace-XS, linear layers of rank ratio 0.6 (arXiv 2307.01838)."""
    return EdgeFace("edgenext_x_small", embedding_size, dropout, rank_ratio=0.6)


@register_backbone(needs="timm")
def edgeface_s(embedding_size: int, dropout: float) -> Backbone:
    """EdgeFace-S, linear layers of rank ratio 0.5 (arXiv 2307.01838)."""
    return EdgeFace("edgenext_small", embedding_size, dropout, rank_ratio=0.5)


@register_backbone(needs="timm")
def edgeface_base(embedding_size: int, dropout: float) -> Backbone:
    """EdgeFace, the base network (arXiv 2307.01838)."""
    return EdgeFace("edgenext_base", embedding_size, dropout)
