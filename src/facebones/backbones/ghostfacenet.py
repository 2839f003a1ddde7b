"""GhostFaceNets V1 and V2 (Alansari et al., IEEE Access 2023, doi 10.1109/ACCESS.2023.3266068).

GhostNet (arXiv 1911.11907) and GhostNetV2 (arXiv 2211.12905) with PReLU and a global depthwise convolution. The
authors' code is for Keras, and its details are kept: V1 pads as TensorFlow's "same", unevenly at stride 2, and its hard
sigmoid is that of Keras 2. Attribute names are ours. The published weights take (x - 127.5) / 128 as their input.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.backbones.base import Backbone
from facebones.backbones.layers import GroupedConv2d, divisible_width
from facebones.backbones.registry import register_backbone

# kernel, expanded channels, output channels, squeeze-and-excitation, stride; V2 expands the last unit to 960
UNITS = (
    *((3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1)),
    *((5, 72, 40, True, 2), (5, 120, 40, True, 1)),
    *((3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1)),
    *((3, 480, 112, True, 1), (3, 672, 112, True, 1)),
    *((5, 672, 160, True, 2), (5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1)),
    (5, 512, 160, True, 1),
)
FIRST_GATED = 2  # of V2's units
TAIL_WIDTH_V1, TAIL_WIDTH_V2 = 512, 960
TRUNCATED_DEVIATION = 0.87962566103423978  # of a normal distribution cut at two deviations


class SameConv2d(GroupedConv2d):
    """A convolution with stride 2 that pads as TensorFlow's "same": on even maps one row and column more at the end."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel_size[0]
        total = [kernel - 2 + size % 2 for size in (x.shape[3], x.shape[2])]
        return super().forward(functional.pad(x, [side for one in total for side in (one // 2, one - one // 2)]))


def _conv(in_channels: int, channels: int, kernel: int, stride: int, same: bool) -> nn.Conv2d:
    """Convolution without bias, depthwise where a kernel above 1 keeps the channels."""
    groups = channels if in_channels == channels and kernel > 1 else 1
    if same and stride > 1:
        return SameConv2d(in_channels, channels, kernel, stride, groups=groups, bias=False)
    kind = GroupedConv2d if groups > 1 else nn.Conv2d
    return kind(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def _block(conv: nn.Conv2d, active: bool) -> nn.Sequential:
    """A convolution, its normalisation, and PReLU if it is active."""
    layers: dict[str, nn.Module] = {"conv": conv, "bn": nn.BatchNorm2d(conv.out_channels)}
    if active:
        layers["prelu"] = nn.PReLU(conv.out_channels)
    return nn.Sequential(OrderedDict(layers))


class GhostModule(nn.Module):
    """Half of the output by a 1x1 convolution, the other half from it by a cheap 3x3 depthwise one."""

    def __init__(self, in_channels: int, channels: int, active: bool) -> None:
        super().__init__()
        half = channels // 2
        self.primary = _block(nn.Conv2d(in_channels, half, 1, bias=False), active)
        self.cheap = _block(GroupedConv2d(half, half, 3, 1, 1, groups=half, bias=False), active)

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return torch.cat((primary, self.cheap(primary)), dim=1)


class Gate(nn.Module):
    """V2's attention over rows, then columns, of the map at half its size: weights from 0 to 1."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.row_conv = GroupedConv2d(channels, channels, (1, 5), padding=(0, 2), groups=channels, bias=False)
        self.row_bn = nn.BatchNorm2d(channels)
        self.column_conv = GroupedConv2d(channels, channels, (5, 1), padding=(2, 0), groups=channels, bias=False)
        self.column_bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(functional.avg_pool2d(x, 2)))
        y = self.column_bn(self.column_conv(self.row_bn(self.row_conv(y))))
        return functional.interpolate(y.sigmoid(), x.shape[2:], mode="bilinear", align_corners=False)


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over the map, by a hard sigmoid of the given slope."""

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        squeezed = divisible_width(channels / 4, 4)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.prelu = nn.PReLU(squeezed)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        weight = self.expand(self.prelu(self.reduce(x.mean((2, 3), keepdim=True))))  # (B, C, 1, 1)
        return x * functional.hardsigmoid(6 * self.slope * weight)  # torch's slope is 1/6


class Shortcut(nn.Module):
    """Depthwise convolution with the stride, then 1x1, each with its normalisation."""

    def __init__(self, depthwise: nn.Conv2d, channels: int) -> None:
        super().__init__()
        self.depthwise = depthwise
        self.depthwise_bn = nn.BatchNorm2d(depthwise.out_channels)
        self.conv = nn.Conv2d(depthwise.out_channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.depthwise_bn(self.depthwise(x))))  # type: ignore[no-any-return]


class Unit(nn.Module):
    """Ghost module, V2's gate, depthwise convolution with the stride, SE, ghost module; no activation after the sum."""

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, int],
        kernel: int,
        stride: int,
        *,
        squeeze: bool,
        gated: bool,
        v2: bool,
    ) -> None:
        super().__init__()
        mid, channels = widths
        self.ghost1 = GhostModule(in_channels, mid, active=True)
        self.gate = Gate(in_channels, mid) if gated else None
        self.down = _block(_conv(mid, mid, kernel, stride, not v2), active=False) if stride > 1 else nn.Identity()
        self.se = SqueezeExcite(mid, 1 / 6 if v2 else 0.2) if squeeze else nn.Identity()
        self.ghost2 = GhostModule(mid, channels, active=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = Shortcut(_conv(in_channels, in_channels, kernel, stride, not v2), channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ghost1(x)
        if self.gate is not None:
            y = y * self.gate(x)
        return self.ghost2(self.se(self.down(y))) + self.shortcut(x)  # type: ignore[no-any-return]


class Head(nn.Module):
    """Global depthwise convolution, 1x1 convolution to the embedding, each with its normalisation."""

    def __init__(self, channels: int, size: int, embedding_size: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.depthwise = GroupedConv2d(channels, channels, size, groups=channels, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Conv2d(channels, embedding_size, 1, bias=bias)
        self.bn = nn.BatchNorm1d(embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.depthwise_bn(self.depthwise(x)))
        return self.bn(self.linear(x).flatten(1))  # type: ignore[no-any-return]


class GhostFaceNet(Backbone):
    """GhostFaceNet V1 or V2.

    Args:
        width: factor of the channels.
        stride: of the stem: 1 or 2.
        v2: V2, with its gates, padding and hard sigmoid.
        embedding_size: D.
        dropout: probability before the last convolution; 0 as published.
        bias: of the last convolution, as some of the authors' scripts have it; the normalisation after it undoes it.
    """

    stage_ends = ("stem", "blocks.2", "blocks.4", "blocks.10", "blocks.15", "head.depthwise_bn")

    def __init__(
        self, *, width: float, stride: int, v2: bool, embedding_size: int, dropout: float, bias: bool = False
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size

        def scaled(channels: int) -> int:
            return divisible_width(channels * width, 4)

        channels = scaled(16)
        stem = SameConv2d if stride > 1 and not v2 else nn.Conv2d
        self.stem = _block(stem(3, channels, 3, stride, 0 if stem is SameConv2d else 1, bias=False), active=True)
        tail_width = TAIL_WIDTH_V2 if v2 else TAIL_WIDTH_V1
        units: list[nn.Module] = []
        for number, (kernel, table_mid, table_channels, squeeze, unit_stride) in enumerate(UNITS):
            mid = tail_width if number == len(UNITS) - 1 else table_mid
            widths = (scaled(mid), scaled(table_channels))
            gated = v2 and number >= FIRST_GATED
            units.append(Unit(channels, widths, kernel, unit_stride, squeeze=squeeze, gated=gated, v2=v2))
            channels = widths[1]
        self.blocks = nn.Sequential(*units)
        self.tail = _block(nn.Conv2d(channels, scaled(tail_width), 1, bias=False), active=True)
        self.head = Head(scaled(tail_width), 7 if stride == 1 else 4, embedding_size, dropout, bias)
        (_initialize_v2 if v2 else _initialize_v1)(self)
        _draw_glorot(self.head.depthwise.weight)
        _draw_glorot(self.head.linear.weight, normal=True)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.tail(self.blocks(self.stem(x_B3HW)))  # (B, C, 7, 7), or 4x4 where the stem has stride 2
        return self.head(x).float()  # type: ignore[no-any-return]  # (B, D)


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for convolution in found:
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
    return found


def _initialize_v1(network: nn.Module) -> None:
    """Keras' variance scaling by 2 over the fan out; that of a depthwise convolution is its kernel's size."""
    for convolution in _convolutions(network):
        out, _, height, width = convolution.weight.shape
        fan_out = height * width * (1 if convolution.groups > 1 else out)
        _draw_truncated(convolution.weight, math.sqrt(2 / fan_out))


def _initialize_v2(network: nn.Module) -> None:
    """Uniform up to 1 / sqrt(fan in), where the fan of a depthwise convolution counts all channels; SE by Glorot."""
    for convolution in _convolutions(network):
        kernel = math.prod(convolution.kernel_size)
        bound = 1 / math.sqrt(convolution.in_channels * kernel)
        nn.init.uniform_(convolution.weight, -bound, bound)
    for module in network.modules():
        if isinstance(module, SqueezeExcite):
            _draw_glorot(module.reduce.weight)
            _draw_glorot(module.expand.weight)


def _draw_truncated(weight: Tensor, deviation: float) -> None:
    """A normal distribution that keeps its deviation although it is cut at two of them, as Keras draws."""
    full = deviation / TRUNCATED_DEVIATION
    nn.init.trunc_normal_(weight, 0, full, -2 * full, 2 * full)


def _draw_glorot(weight: Tensor, normal: bool = False) -> None:
    """Glorot's rule by Keras' fans: the fan in of a depthwise convolution counts all channels, its fan out one."""
    out, per_group, height, width = weight.shape
    fans = height * width * (out + per_group)  # also of a depthwise convolution, where per_group is 1
    if normal:
        _draw_truncated(weight, math.sqrt(2 / fans))
    else:
        bound = math.sqrt(6 / fans)
        nn.init.uniform_(weight, -bound, bound)


@register_backbone()
def ghostfacenet_v1_0_5_s2(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV1-0.5-2 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=0.5, stride=2, v2=False, embedding_size=embedding_size, dropout=dropout)


@register_backbone()
def ghostfacenet_v1_1_0_s2(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV1-1.0-2 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=1.0, stride=2, v2=False, embedding_size=embedding_size, dropout=dropout)


@register_backbone()
def ghostfacenet_v1_1_0_s1(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV1-1.0-1 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=1.0, stride=1, v2=False, embedding_size=embedding_size, dropout=dropout)


@register_backbone()
def ghostfacenet_v1_1_3_s2(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV1-1.3-2, the authors' V1-2 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=1.3, stride=2, v2=False, embedding_size=embedding_size, dropout=dropout)


@register_backbone("ghostfacenet_v1_1_3_s1_bias")  # whose bias is taken into the normalisation behind it
def ghostfacenet_v1_1_3_s1(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV1-1.3-1, the authors' V1-1 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=1.3, stride=1, v2=False, embedding_size=embedding_size, dropout=dropout)


@register_backbone()
def ghostfacenet_v2_1_0_s2(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV2-1.0-2 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=1.0, stride=2, v2=True, embedding_size=embedding_size, dropout=dropout)


@register_backbone()
def ghostfacenet_v2_1_0_s1(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV2-1.0-1 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=1.0, stride=1, v2=True, embedding_size=embedding_size, dropout=dropout)


@register_backbone()
def ghostfacenet_v2_1_3_s2(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV2-1.3-2, the authors' V2-2 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=1.3, stride=2, v2=True, embedding_size=embedding_size, dropout=dropout)


@register_backbone()
def ghostfacenet_v2_1_3_s1(embedding_size: int, dropout: float) -> Backbone:
    """GhostFaceNetV2-1.3-1, the authors' V2-1 (doi 10.1109/ACCESS.2023.3266068)."""
    return GhostFaceNet(width=1.3, stride=1, v2=True, embedding_size=embedding_size, dropout=dropout)
