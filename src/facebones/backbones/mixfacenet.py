"""MixFaceNet and ShuffleMixFaceNet (Boutros et al., IJCB 2021, arXiv 2107.13046).

MixNet (arXiv 1907.09595) adapted to faces: PReLU in the first layers, a global depthwise convolution instead of average
pooling and, in the shuffle variants, a channel shuffle after each unit. Layers, widths and attribute names (one of them
misspelt) are those of the authors' released modules, so their weights load unchanged.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import GroupedConv2d, SplitConv, unshuffle
from facebones.backbones.registry import register_backbone


class UnitSpec(NamedTuple):
    """A unit: a row of the architecture table.

    Attributes:
        channels: of the output.
        stride: of the depthwise convolution.
        expand_groups: groups of the 1x1 expansion.
        kernels: number of kernel sizes in the depthwise convolution: the first of 3, 5, 7, 9, 11.
        project_groups: groups of the 1x1 projection.
        expansion: channels between expansion and projection, relative to the input.
        squeeze: input channels relative to the channels inside squeeze-and-excitation; 0 for none.
    """

    channels: int
    stride: int
    expand_groups: int
    kernels: int
    project_groups: int
    expansion: int
    squeeze: int


INIT_UNIT = {"stride": 1, "expand_groups": 1, "kernels": 1, "project_groups": 1, "expansion": 1, "squeeze": 0}

STAGES_S = (
    [UnitSpec(24, 1, 2, 1, 2, 6, 0), UnitSpec(24, 1, 2, 1, 2, 3, 0)],
    [UnitSpec(40, 2, 1, 3, 1, 6, 2), *[UnitSpec(40, 1, 2, 2, 2, 6, 2)] * 3],
    [UnitSpec(80, 2, 1, 3, 2, 6, 4), *[UnitSpec(80, 1, 1, 2, 2, 6, 4)] * 2],
    [
        UnitSpec(120, 1, 2, 3, 2, 6, 2), *[UnitSpec(120, 1, 2, 4, 2, 3, 2)] * 2,
        UnitSpec(200, 2, 1, 5, 1, 6, 2), *[UnitSpec(200, 1, 1, 4, 2, 6, 2)] * 2,
    ],
)  # fmt: skip
STAGES_M = (
    [UnitSpec(32, 1, 2, 3, 2, 6, 0), UnitSpec(32, 1, 2, 1, 2, 3, 0)],
    [UnitSpec(40, 2, 1, 4, 1, 6, 2), *[UnitSpec(40, 1, 2, 2, 2, 6, 2)] * 3],
    [UnitSpec(80, 2, 1, 3, 1, 6, 4), *[UnitSpec(80, 1, 2, 4, 2, 6, 4)] * 3],
    [
        UnitSpec(120, 1, 1, 1, 1, 6, 2), *[UnitSpec(120, 1, 2, 4, 2, 3, 2)] * 3,
        UnitSpec(200, 2, 1, 4, 1, 6, 2), *[UnitSpec(200, 1, 1, 4, 2, 6, 2)] * 3,
    ],
)  # fmt: skip


def scaled_width(channels: int, width: float) -> int:
    """`channels` times `width`, rounded to the nearest multiple of 8, halves up.

    >>> [scaled_width(channels, 0.5) for channels in (16, 24, 40, 80, 120, 200)]
    [8, 16, 24, 40, 64, 104]
    """
    return int(channels * width + 4) // 8 * 8


def split_evenly(total: int, parts: int) -> list[int]:
    """Equal shares of `total`; the first also takes the remainder.

    >>> split_evenly(384, 5)
    [80, 76, 76, 76, 76]
    """
    share = total // parts
    return [total - share * (parts - 1), *[share] * (parts - 1)]


def _pointwise(in_channels: int, channels: int, groups: int) -> nn.Module:
    """1x1 convolution in groups; if the channels do not divide evenly, the first group takes the remainder."""
    slices = zip(split_evenly(in_channels, groups), split_evenly(channels, groups), strict=True)
    convolutions = [nn.Conv2d(i, o, 1, bias=False) for i, o in slices]
    return convolutions[0] if groups == 1 else SplitConv(convolutions)


def _depthwise(channels: int, kernels: int, stride: int) -> nn.Module:
    """Depthwise convolution with the first `kernels` sizes of 3, 5, 7, ..., each on its share of the channels."""
    convolutions = [
        GroupedConv2d(share, share, kernel, stride, kernel // 2, groups=share, bias=False)
        for share, kernel in zip(split_evenly(channels, kernels), range(3, 3 + 2 * kernels, 2), strict=True)
    ]
    return convolutions[0] if kernels == 1 else SplitConv(convolutions)


class _ConvBlock(nn.Module):
    """Convolution, optional batch normalisation, optional activation."""

    def __init__(self, conv: nn.Module, channels: int, activation: nn.Module | None, norm: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.activ = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activ(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class _SqueezeExcite(nn.Module):
    """Channel weights from the mean over the map (arXiv 1709.01507); only these convolutions have a bias."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, squeezed, 1)
        self.activ = nn.SiLU()
        self.conv2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.conv2(self.activ(self.conv1(x.mean((2, 3), keepdim=True))))  # (B, C, 1, 1)
        return x * weight.sigmoid()


class Unit(nn.Module):
    """Expansion, mixed depthwise convolution, squeeze-and-excitation, projection; residual if shapes allow it."""

    def __init__(self, in_channels: int, spec: UnitSpec, activation: Callable[[int], nn.Module], shuffle: bool) -> None:
        super().__init__()
        mid = spec.expansion * in_channels
        self.exp_conv: nn.Module = nn.Identity()
        if spec.expansion > 1:
            self.exp_conv = _ConvBlock(_pointwise(in_channels, mid, spec.expand_groups), mid, activation(mid))
        self.conv1 = _ConvBlock(_depthwise(mid, spec.kernels, spec.stride), mid, activation(mid))
        self.se = _SqueezeExcite(mid, in_channels // spec.squeeze) if spec.squeeze else nn.Identity()
        self.conv2 = _ConvBlock(_pointwise(mid, spec.channels, spec.project_groups), spec.channels, None)
        self.residual = spec.stride == 1 and in_channels == spec.channels
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.se(self.conv1(self.exp_conv(x))))
        if self.residual:
            out = x + out
        # As in the authors' code: the inverse of ShuffleNet's order.
        return unshuffle(out) if self.shuffle else out


def _swish(channels: int) -> nn.Module:
    return nn.SiLU()


class MixFaceNet(Backbone):
    """MixFaceNet with four stages.

    Args:
        stages: the units of each stage.
        width: factor of the channels.
        stem_width: channels of the stem before that factor.
        tail_width: channels of the last 7x7 map.
        shuffle: shuffle the channels after each unit.
        embedding_size: D.
        dropout: probability before the last convolution.
        init_shuffle: shuffle after the first unit; the authors' code does so in all variants.
    """

    stage_ends = (
        *("features.init_block", "features.stage1", "features.stage2", "features.stage3", "features.stage4"),
        "feautre_layer.dw_conv",
    )

    def __init__(
        self,
        *,
        stages: tuple[list[UnitSpec], ...],
        width: float,
        stem_width: int,
        tail_width: int,
        shuffle: bool,
        embedding_size: int,
        dropout: float,
        init_shuffle: bool = True,
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        channels = scaled_width(stem_width, width)
        stem = _ConvBlock(nn.Conv2d(3, channels, 3, 2, 1, bias=False), channels, nn.PReLU(channels))
        first = Unit(channels, UnitSpec(channels=channels, **INIT_UNIT), nn.PReLU, init_shuffle)
        self.features = nn.Sequential()
        self.features.add_module("init_block", _named({"conv1": stem, "conv2": first}))
        for number, stage in enumerate(stages, start=1):
            units: dict[str, nn.Module] = {}
            for index, spec in enumerate(stage, start=1):
                scaled = spec._replace(channels=scaled_width(spec.channels, width))
                units[f"unit{index}"] = Unit(channels, scaled, nn.PReLU if number == 1 else _swish, shuffle)
                channels = scaled.channels
            self.features.add_module(f"stage{number}", _named(units))
        self.tail = _ConvBlock(nn.Conv2d(channels, tail_width, 1, bias=False), tail_width, nn.PReLU(tail_width))
        pool = _ConvBlock(GroupedConv2d(tail_width, tail_width, 7, groups=tail_width, bias=False), tail_width, None)
        project = _ConvBlock(nn.Conv2d(tail_width, embedding_size, 1, bias=False), embedding_size, None, norm=False)
        # "feautre" is the authors' spelling, and thus a key of their weights.
        self.feautre_layer = _named({"dw_conv": pool, "dropout": nn.Dropout(dropout), "pw_conv": project})
        self.features_norm = nn.BatchNorm1d(embedding_size)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # The head normalises the embedding: a learned scale per element would act as a second head.
        self.features_norm.weight.requires_grad_(False)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.tail(self.features(x_B3HW))  # (B, tail_width, 7, 7)
        x = self.feautre_layer(x).flatten(1)
        return self.features_norm(x).float()  # type: ignore[no-any-return]  # (B, D)


def _named(modules: dict[str, nn.Module]) -> nn.Sequential:
    """A sequence whose modules have names instead of numbers."""
    sequence = nn.Sequential()
    for name, module in modules.items():
        sequence.add_module(name, module)
    return sequence


@register_backbone()
def mixfacenet_xs(embedding_size: int, dropout: float) -> Backbone:
    """MixFaceNet-XS, MixNet-S at half the width (arXiv 2107.13046)."""
    return MixFaceNet(
        stages=STAGES_S, width=0.5, stem_width=16, tail_width=512, shuffle=False,
        embedding_size=embedding_size, dropout=dropout,
    )  # fmt: skip


@register_backbone()
def mixfacenet_s(embedding_size: int, dropout: float) -> Backbone:
    """MixFaceNet-S (arXiv 2107.13046)."""
    return MixFaceNet(
        stages=STAGES_S, width=1.0, stem_width=16, tail_width=1024, shuffle=False,
        embedding_size=embedding_size, dropout=dropout,
    )  # fmt: skip


@register_backbone()
def mixfacenet_m(embedding_size: int, dropout: float) -> Backbone:
    """MixFaceNet-M (arXiv 2107.13046)."""
    return MixFaceNet(
        stages=STAGES_M, width=1.0, stem_width=24, tail_width=1024, shuffle=False,
        embedding_size=embedding_size, dropout=dropout,
    )  # fmt: skip


@register_backbone()
def shufflemixfacenet_xs(embedding_size: int, dropout: float) -> Backbone:
    """MixFaceNet-XS with channel shuffle (arXiv 2107.13046)."""
    return MixFaceNet(
        stages=STAGES_S, width=0.5, stem_width=16, tail_width=512, shuffle=True,
        embedding_size=embedding_size, dropout=dropout,
    )  # fmt: skip


@register_backbone()
def shufflemixfacenet_s(embedding_size: int, dropout: float) -> Backbone:
    """MixFaceNet-S with channel shuffle (arXiv 2107.13046)."""
    return MixFaceNet(
        stages=STAGES_S, width=1.0, stem_width=16, tail_width=1024, shuffle=True,
        embedding_size=embedding_size, dropout=dropout,
    )  # fmt: skip


@register_backbone()
def shufflemixfacenet_m(embedding_size: int, dropout: float) -> Backbone:
    """MixFaceNet-M with channel shuffle (arXiv 2107.13046)."""
    return MixFaceNet(
        stages=STAGES_M, width=1.0, stem_width=24, tail_width=1024, shuffle=True,
        embedding_size=embedding_size, dropout=dropout,
    )  # fmt: skip
