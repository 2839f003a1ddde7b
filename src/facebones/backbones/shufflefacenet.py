"""ShuffleFaceNet (Martinez-Diaz et al., ICCV Workshops 2019, doi 10.1109/ICCVW.2019.00333).

ShuffleNetV2 (arXiv 1807.11164) with a global depthwise convolution instead of average pooling, PReLU instead of ReLU,
and no max-pooling after the stem. The paper does not say whether a PReLU has one parameter or one per channel; the
default is one per channel.
"""

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import conv_bn, global_depthwise, initialize, shuffle_two
from facebones.backbones.registry import register_backbone

STEM_WIDTH, TAIL_WIDTH = 24, 1024
STAGE_UNITS = (4, 8, 4)  # the first unit of each stage has stride 2


class Unit(nn.Module):
    """Stride 1: half of the channels pass unchanged, the other half is transformed; both are then shuffled."""

    def __init__(self, channels: int, shared_prelu: bool) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *conv_bn(half, half), _prelu(half, shared_prelu),
            *conv_bn(half, half, 3, groups=half),
            *conv_bn(half, half), _prelu(half, shared_prelu),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, transformed = x.chunk(2, dim=1)
        return shuffle_two(kept, self.branch(transformed))


class DownUnit(nn.Module):
    """Stride 2: both branches take all channels, and each computes half of the output."""

    def __init__(self, in_channels: int, channels: int, shared_prelu: bool) -> None:
        super().__init__()
        half = channels // 2
        self.shortcut = nn.Sequential(
            *conv_bn(in_channels, in_channels, 3, 2, groups=in_channels),
            *conv_bn(in_channels, half), _prelu(half, shared_prelu),
        )  # fmt: skip
        self.branch = nn.Sequential(
            *conv_bn(in_channels, half), _prelu(half, shared_prelu),
            *conv_bn(half, half, 3, 2, groups=half),
            *conv_bn(half, half), _prelu(half, shared_prelu),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return shuffle_two(self.shortcut(x), self.branch(x))


class ShuffleFaceNet(Backbone):
    """ShuffleFaceNet with three stages.

    Args:
        stage_widths: output channels of stages 2, 3 and 4.
        embedding_size: D.
        dropout: probability before the last linear layer.
        shared_prelu: one PReLU parameter per layer instead of one per channel.
    """

    stage_ends = ("stem", "stages.0", "stages.1", "stages.2", "pool")

    def __init__(
        self, stage_widths: tuple[int, int, int], embedding_size: int, dropout: float, shared_prelu: bool = False
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.stem = nn.Sequential(*conv_bn(3, STEM_WIDTH, 3, 2), _prelu(STEM_WIDTH, shared_prelu))
        stages: list[nn.Module] = []
        in_channels = STEM_WIDTH
        for width, units in zip(stage_widths, STAGE_UNITS, strict=True):
            repeats = (Unit(width, shared_prelu) for _ in range(units - 1))
            stages.append(nn.Sequential(DownUnit(in_channels, width, shared_prelu), *repeats))
            in_channels = width
        self.stages = nn.Sequential(*stages)
        self.tail = nn.Sequential(*conv_bn(in_channels, TAIL_WIDTH), _prelu(TAIL_WIDTH, shared_prelu))
        self.pool = nn.Sequential(*global_depthwise(TAIL_WIDTH), _prelu(TAIL_WIDTH, shared_prelu))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(TAIL_WIDTH, embedding_size)
        self.norm = nn.BatchNorm1d(embedding_size)
        initialize(self)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.tail(self.stages(self.stem(x_B3HW)))  # (B, 1024, 7, 7)
        x = self.dropout(self.pool(x).flatten(1))
        return self.norm(self.linear(x)).float()  # type: ignore[no-any-return]  # (B, D)


def _prelu(channels: int, shared: bool) -> nn.PReLU:
    return nn.PReLU(1 if shared else channels)


@register_backbone()
def shufflefacenet_0_5(embedding_size: int, dropout: float) -> Backbone:
    """ShuffleFaceNet at width 0.5 (ICCVW 2019)."""
    return ShuffleFaceNet((48, 96, 192), embedding_size, dropout)


@register_backbone()
def shufflefacenet_1_0(embedding_size: int, dropout: float) -> Backbone:
    """ShuffleFaceNet at width 1.0 (ICCVW 2019)."""
    return ShuffleFaceNet((116, 232, 464), embedding_size, dropout)


@register_backbone()
def shufflefacenet_1_5(embedding_size: int, dropout: float) -> Backbone:
    """ShuffleFaceNet at width 1.5 (ICCVW 2019)."""
    return ShuffleFaceNet((176, 352, 704), embedding_size, dropout)


@register_backbone()
def shufflefacenet_2_0(embedding_size: int, dropout: float) -> Backbone:
    """ShuffleFaceNet at width 2.0 (ICCVW 2019)."""
    return ShuffleFaceNet((244, 488, 976), embedding_size, dropout)
