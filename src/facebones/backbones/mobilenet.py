"""MobileNet V1, V2 and V3 for faces, as yakhyo/face-recognition builds them.

Sources: arXiv 1704.04861, 1801.04381 and 1905.02244. The stem has stride 1, PReLU replaces ReLU and ReLU6, and a global
depthwise convolution replaces average pooling. Most convolutions have a bias that the normalisation after them undoes,
as the published weights do; these load unchanged.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import GroupedConv2d, Residual, divisible_width, global_depthwise
from facebones.backbones.registry import register_backbone

Activation = Callable[[int], nn.Module]

# output channels and stride of each depthwise-separable unit (1704.04861, table 1; strides for faces)
V1_STAGES = (
    ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    ((512, 2), *[(512, 1)] * 5),
    ((1024, 2), (1024, 1)),
)
# expansion t, output channels c, repeats n, stride s of the first unit (1801.04381, table 2; strides for faces)
V2_BOTTLENECKS = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


class V3Unit(NamedTuple):
    """A row of tables 1 and 2 of 1905.02244: kernel, expanded channels, output, SE, hard swish or PReLU, stride."""

    kernel: int
    expanded: int
    channels: int
    squeeze: bool
    swish: bool
    stride: int


V3_LARGE = (
    *(V3Unit(3, 16, 16, False, False, 1), V3Unit(3, 64, 24, False, False, 2), V3Unit(3, 72, 24, False, False, 1)),
    *(V3Unit(5, 72, 40, True, False, 2), *[V3Unit(5, 120, 40, True, False, 1)] * 2),
    *(V3Unit(3, 240, 80, False, True, 2), V3Unit(3, 200, 80, False, True, 1)),
    *([V3Unit(3, 184, 80, False, True, 1)] * 2),
    *(V3Unit(3, 480, 112, True, True, 1), V3Unit(3, 672, 112, True, True, 1)),
    *(V3Unit(5, 672, 160, True, True, 2), *[V3Unit(5, 960, 160, True, True, 1)] * 2),
)
V3_SMALL = (
    *(V3Unit(3, 16, 16, True, False, 2), V3Unit(3, 72, 24, False, False, 2), V3Unit(3, 88, 24, False, False, 1)),
    *(V3Unit(5, 96, 40, True, True, 2), *[V3Unit(5, 240, 40, True, True, 1)] * 2),
    *(V3Unit(5, 120, 48, True, True, 1), V3Unit(5, 144, 48, True, True, 1)),
    *(V3Unit(5, 288, 96, True, True, 2), *[V3Unit(5, 576, 96, True, True, 1)] * 2),
)


def _swish(channels: int) -> nn.Module:
    return nn.Hardswish()


def _block(in_channels: int, channels: int, kernel: int = 1, *, act: Activation | None = nn.PReLU) -> nn.Sequential:
    """Convolution with bias, batch normalisation, optional activation."""
    conv = nn.Conv2d(in_channels, channels, kernel, 1, kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), *([act(channels)] if act else []))


def _depthwise(channels: int, kernel: int, stride: int, act: Activation = nn.PReLU) -> nn.Sequential:
    conv = GroupedConv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), act(channels))


def _separable(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_depthwise(in_channels, 3, stride), _block(in_channels, channels))


def _named(name: str, layers: Iterable[nn.Module], residual: bool = False) -> nn.Module:
    """A sequence, or a residual, under a name that the authors' keys have."""
    return nn.Sequential(OrderedDict({name: (Residual if residual else nn.Sequential)(*layers)}))


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over the map, by a hard sigmoid (arXiv 1905.02244, section 5.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible_width(channels // 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))))  # type: ignore[no-any-return]


class Head(nn.Module):
    """Global depthwise convolution 7x7, linear layer, batch normalisation."""

    def __init__(self, channels: int, embedding_size: int, dropout: float) -> None:
        super().__init__()
        pool = _named("layers", global_depthwise(channels))
        self.features = nn.Sequential(pool, nn.Flatten(), nn.Dropout(dropout))
        self.fc = nn.Sequential(nn.Linear(channels, embedding_size, bias=False), nn.BatchNorm1d(embedding_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))  # type: ignore[no-any-return]


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)


class MobileNetV1(Backbone):
    """MobileNet V1.

    Args:
        width: factor of the channels.
        embedding_size: D.
        dropout: probability before the last linear layer.
    """

    # 112, 56, 28, 14, 7 pixels, 1
    stage_ends = ("stage1.1", "stage1.3", "stage1.5", "stage2", "stage3", "output_layer.features")

    def __init__(self, width: float, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        channels = divisible_width(32 * width)
        stages = [[_block(3, channels, 3)], [], []]
        for stage, units in zip(stages, V1_STAGES, strict=True):
            for table_channels, stride in units:
                scaled = divisible_width(table_channels * width)
                stage.append(_separable(channels, scaled, stride))
                channels = scaled
        self.stage1, self.stage2, self.stage3 = (nn.Sequential(*stage) for stage in stages)
        self.output_layer = Head(channels, embedding_size, dropout)
        _initialize(self)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(x_B3HW)))  # (B, C, 7, 7)
        return self.output_layer(x).float()  # type: ignore[no-any-return]  # (B, D)


class MobileNet(Backbone):
    """MobileNet V2 or V3: a stem, units, a 1x1 convolution and the head.

    Args:
        features: these but the head.
        strides: of each of `features`; a stage ends before each one that is not 1.
        channels: of the last map.
        embedding_size: D.
        dropout: probability before the last linear layer.
    """

    def __init__(
        self, features: list[nn.Module], strides: list[int], channels: int, embedding_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        ends = [place - 1 for place, stride in enumerate(strides) if stride != 1] + [len(strides) - 2]
        self.stage_ends = (*(f"features.{end}" for end in ends), "output_layer.features")
        self.features = nn.Sequential(*features)
        self.output_layer = Head(channels, embedding_size, dropout)
        _initialize(self)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.output_layer(self.features(x_B3HW)).float()  # type: ignore[no-any-return]  # (B, D)


def _inverted_residual(in_channels: int, expansion: int, channels: int, stride: int) -> nn.Module:
    mid = expansion * in_channels
    layers = [
        *([_block(in_channels, mid)] if expansion != 1 else []),
        _depthwise(mid, 3, stride),
        nn.Conv2d(mid, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]
    return _named("conv", layers, residual=stride == 1 and in_channels == channels)


def _v3_unit(in_channels: int, unit: V3Unit) -> nn.Module:
    act: Activation = _swish if unit.swish else nn.PReLU
    mid = unit.expanded
    layers = [
        *([_block(in_channels, mid, act=act)] if mid != in_channels else []),
        _depthwise(mid, unit.kernel, unit.stride, act),
        *([SqueezeExcite(mid)] if unit.squeeze else []),
        _block(mid, unit.channels, act=None),
    ]
    return _named("block", layers, residual=unit.stride == 1 and in_channels == unit.channels)


def _v3(units: Iterable[V3Unit], embedding_size: int, dropout: float) -> Backbone:
    features: list[nn.Module] = [_block(3, 16, 3, act=_swish)]
    strides = [1]
    channels = 16
    for unit in units:
        features.append(_v3_unit(channels, unit))
        strides.append(unit.stride)
        channels = unit.channels
    features.append(_block(channels, 6 * channels, act=_swish))
    return MobileNet(features, [*strides, 1], 6 * channels, embedding_size, dropout)


@register_backbone()
def mobilenet_v1_0_25(embedding_size: int, dropout: float) -> Backbone:
    """MobileNet V1 at width 0.25, of yakhyo/face-recognition (arXiv 1704.04861)."""
    return MobileNetV1(0.25, embedding_size, dropout)


@register_backbone()
def mobilenet_v1_0_50(embedding_size: int, dropout: float) -> Backbone:
    """MobileNet V1 at width 0.5, of yakhyo/face-recognition (arXiv 1704.04861)."""
    return MobileNetV1(0.5, embedding_size, dropout)


@register_backbone()
def mobilenet_v1_1_0(embedding_size: int, dropout: float) -> Backbone:
    """MobileNet V1, of yakhyo/face-recognition (arXiv 1704.04861)."""
    return MobileNetV1(1.0, embedding_size, dropout)


@register_backbone()
def mobilenet_v2(embedding_size: int, dropout: float) -> Backbone:
    """MobileNet V2, of yakhyo/face-recognition (arXiv 1801.04381)."""
    features: list[nn.Module] = [_block(3, 32, 3)]
    strides = [1]
    channels = 32
    for expansion, width, repeats, first_stride in V2_BOTTLENECKS:
        for stride in (first_stride, *[1] * (repeats - 1)):
            features.append(_inverted_residual(channels, expansion, width, stride))
            strides.append(stride)
            channels = width
    features.append(_block(channels, 512))
    return MobileNet(features, [*strides, 1], 512, embedding_size, dropout)


@register_backbone()
def mobilenet_v3_small(embedding_size: int, dropout: float) -> Backbone:
    """MobileNet V3 small, of yakhyo/face-recognition (arXiv 1905.02244)."""
    return _v3(V3_SMALL, embedding_size, dropout)


@register_backbone()
def mobilenet_v3_large(embedding_size: int, dropout: float) -> Backbone:
    """MobileNet V3 large, of yakhyo/face-recognition (arXiv 1905.02244)."""
    return _v3(V3_LARGE, embedding_size, dropout)
