"""MobileFaceNet (arXiv 1804.07573), and InsightFace's two wider networks `mbf` and `mbf_large`.

`mobilefacenet_cavaface` is the original as cavaface and AdaDistill build it: its last normalisation has no scale and
shift, and its attribute names are theirs, so AdaDistill's state dicts load unchanged.

The original follows table 1 of the paper. The wide networks have two or four times the channels but the same widths
inside the bottlenecks, so their expansion is 1 or less. Their attribute names are InsightFace's, so its `backbone.pth`
state dicts load unchanged.
"""

from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import Residual, conv_block, conv_bn, full_precision, global_depthwise, initialize
from facebones.backbones.registry import register_backbone

# expansion t, output channels c, repeats n, stride s of the first unit (arXiv 1804.07573, table 1)
ORIGINAL_BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def bottleneck(in_channels: int, mid: int, out_channels: int, stride: int) -> list[nn.Sequential]:
    """1x1 expansion, 3x3 depthwise convolution with the stride, linear 1x1 projection."""
    return [
        nn.Sequential(*conv_block(in_channels, mid)),
        nn.Sequential(*conv_block(mid, mid, 3, stride, groups=mid)),
        nn.Sequential(*conv_bn(mid, out_channels)),
    ]


class MobileFaceNet(Backbone):
    """The network of the paper, whose embedding has 128 elements."""

    stage_ends = ("stem", "blocks.4", "blocks.11", "blocks.14", "pool")  # 56, 28, 14, 7 pixels, 1

    def __init__(self, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.stem = nn.Sequential(*conv_block(3, 64, 3, 2), *conv_block(64, 64, 3, groups=64))
        blocks: list[nn.Module] = []
        in_channels = 64
        for expansion, channels, repeats, first_stride in ORIGINAL_BOTTLENECKS:
            for stride in (first_stride, *[1] * (repeats - 1)):
                residual = stride == 1 and in_channels == channels
                layers = bottleneck(in_channels, expansion * in_channels, channels, stride)
                blocks.append(Residual(*layers) if residual else nn.Sequential(*layers))
                in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.tail = nn.Sequential(*conv_block(in_channels, 512))
        self.pool = nn.Sequential(*global_depthwise(512))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(512, embedding_size, bias=False)
        self.norm = nn.BatchNorm1d(embedding_size)
        initialize(self)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.tail(self.blocks(self.stem(x_B3HW)))  # (B, 512, 7, 7)
        x = self.dropout(self.pool(x).flatten(1))
        return self.norm(self.linear(x)).float()  # type: ignore[no-any-return]  # (B, D)


def _named(layers: Iterable[nn.Module], names: Iterable[str] = ("conv", "bn", "prelu")) -> nn.Sequential:
    """A sequence under cavaface's names, as many as there are layers."""
    return nn.Sequential(OrderedDict(zip(names, layers)))  # noqa: B905


def _cavaface_bottlenecks(channels: int, mid: int, repeats: int) -> nn.Sequential:
    return _named(
        [nn.Sequential(*(_cavaface_bottleneck(channels, mid, channels, 1) for _ in range(repeats)))], ["model"]
    )


def _cavaface_bottleneck(in_channels: int, mid: int, out_channels: int, stride: int) -> nn.Sequential:
    names = ("conv", "conv_dw", "project")
    layers = dict(zip(names, map(_named, bottleneck(in_channels, mid, out_channels, stride)), strict=True))
    return (Residual if stride == 1 else nn.Sequential)(OrderedDict(layers))


class CavafaceMobileFaceNet(Backbone):
    """The network of the paper under cavaface's names."""

    stage_ends = ("conv2_dw", "conv_3", "conv_4", "conv_5", "output_layer.conv_6_dw")  # 56, 28, 14, 7 pixels, 1

    def __init__(self, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.conv1 = _named(conv_block(3, 64, 3, 2))
        self.conv2_dw = _named(conv_block(64, 64, 3, groups=64))
        self.conv_23 = _cavaface_bottleneck(64, 128, 64, 2)
        self.conv_3 = _cavaface_bottlenecks(64, 128, 4)
        self.conv_34 = _cavaface_bottleneck(64, 256, 128, 2)
        self.conv_4 = _cavaface_bottlenecks(128, 256, 6)
        self.conv_45 = _cavaface_bottleneck(128, 512, 128, 2)
        self.conv_5 = _cavaface_bottlenecks(128, 256, 2)
        self.conv_6_sep = _named(conv_block(128, 512))
        linear = nn.Linear(512, embedding_size, bias=False)
        norm = nn.BatchNorm1d(embedding_size, affine=False)
        head = [_named(global_depthwise(512)), nn.Flatten(), nn.Dropout(dropout), linear, norm]
        self.output_layer = _named(head, ["conv_6_dw", "flatten", "dropout", "linear", "bn"])
        initialize(self)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = x_B3HW
        for layer in self.children():
            x = layer(x)
        return x.float()  # (B, D)


class _Layers(nn.Module):
    """A sequence under the attribute `layers`: a level that InsightFace's key names have."""

    def __init__(self, layers: Iterable[nn.Module], residual: bool = False) -> None:
        super().__init__()
        self.layers = (Residual if residual else nn.Sequential)(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def _block(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> _Layers:
    return _Layers(conv_block(in_channels, out_channels, kernel, stride, groups))


def _wide_bottleneck(in_channels: int, mid: int, out_channels: int, stride: int, residual: bool = False) -> _Layers:
    return _Layers((_Layers(layer) for layer in bottleneck(in_channels, mid, out_channels, stride)), residual)


def _repeated(channels: int, mid: int, repeats: int) -> _Layers:
    return _Layers(_wide_bottleneck(channels, mid, channels, 1, residual=True) for _ in range(repeats))


class WideMobileFaceNet(Backbone):
    """InsightFace's `mbf` (scale 2) and `mbf_large` (scale 4).

    Args:
        scale: channels relative to the original.
        repeats: residual bottlenecks at 56, 28, 14 and 7 pixels; at 56, a single one becomes a grouped convolution.
        embedding_size: D.
        dropout: probability before the last linear layer.
    """

    stage_ends = ("layers.1", "layers.3", "layers.5", "layers.7", "features.layers.0")  # 56, 28, 14, 7 pixels, 1

    def __init__(self, scale: int, repeats: tuple[int, int, int, int], embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        c1, c2 = 64 * scale, 128 * scale
        self.layers = nn.ModuleList(
            [
                _block(3, c1, 3, 2),
                # Always 64 groups: depthwise in the original, not at these widths.
                _block(c1, c1, 3, groups=64) if repeats[0] == 1 else _repeated(c1, 128, repeats[0]),
                _wide_bottleneck(c1, 128, c1, 2),
                _repeated(c1, 128, repeats[1]),
                _wide_bottleneck(c1, 256, c2, 2),
                _repeated(c2, 256, repeats[2]),
                _wide_bottleneck(c2, 512, c2, 2),
                _repeated(c2, 256, repeats[3]),
            ]
        )
        self.conv_sep = _block(c2, 512)
        linear = nn.Linear(512, embedding_size, bias=False)
        flatten = nn.Sequential(nn.Flatten(), nn.Dropout(dropout))
        self.features = _Layers([_Layers(global_depthwise(512)), flatten, linear, nn.BatchNorm1d(embedding_size)])
        initialize(self)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = x_B3HW
        for layer in self.layers:
            x = layer(x)
        with full_precision(x.device):  # InsightFace's code computes this layer in float32
            x = self.conv_sep(x.float())  # (B, 512, 7, 7)
        return self.features(x).float()  # type: ignore[no-any-return]  # (B, D)


@register_backbone()
def mobilefacenet(embedding_size: int, dropout: float) -> Backbone:
    """MobileFaceNet, the paper's network (arXiv 1804.07573)."""
    return MobileFaceNet(embedding_size, dropout)


@register_backbone("mbf")
def mobilefacenet_wide(embedding_size: int, dropout: float) -> Backbone:
    """MobileFaceNet with doubled channels, InsightFace's `mbf`."""
    return WideMobileFaceNet(2, (1, 4, 6, 2), embedding_size, dropout)


@register_backbone("mbf_large")
def mobilefacenet_large(embedding_size: int, dropout: float) -> Backbone:
    """MobileFaceNet with fourfold channels and doubled depth, InsightFace's `mbf_large`."""
    return WideMobileFaceNet(4, (2, 8, 12, 4), embedding_size, dropout)


@register_backbone()
def mobilefacenet_cavaface(embedding_size: int, dropout: float) -> Backbone:
    """MobileFaceNet as cavaface and AdaDistill build it, its last normalisation not affine."""
    return CavafaceMobileFaceNet(embedding_size, dropout)
