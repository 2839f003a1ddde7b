"""The compact networks of the study "ArcFace Backbone Comparative" (14 backbones, VGGFace2), as its code builds them.

They are called ShuffleFaceNet and MixFaceNet but differ from the papers' networks. The study's ShuffleFaceNets have a
max-pooling after the stem and so start at 28x28; its MixFaceNets have no expansion and end at 2x2. They need an eighth
to a twenty-eighth of the papers' multiply-accumulates. They are here to reproduce the study's table and to check its
conclusion; for your own work, use `shufflefacenet_*`, `mixfacenet_*` and `shufflemixfacenet_*`. Attribute names are
those of the study's code, so its `model.pt` files load unchanged. Initial weights are drawn as there: He normal and,
for the last layer, Glorot normal in its ShuffleFaceNets; torch's defaults in its MixFaceNets.

Two of the study's names are swapped: `sfn1_0` builds the network of width 1.5, and `sfn1_5` that of width 1.0. The
aliases here follow the study, so that its files load; our names state the true width.
"""

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import (
    GroupedConv2d,
    SplitConv,
    conv_block,
    conv_bn,
    global_depthwise,
    initialize,
    shuffle,
    shuffle_two,
)
from facebones.backbones.registry import register_backbone

STAGE_UNITS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNetV2 (arXiv 1807.11164), split as in its authors' code.

    It has two branches if the number of channels changes; else it has one, and half of the channels pass unchanged.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.one_branch = in_channels == channels
        if self.one_branch:
            self.branch2 = _transform(half, half, half, stride)
            return
        self.branch1 = _transform(in_channels, half, channels - in_channels, stride)
        self.branch2 = nn.Sequential(
            *conv_bn(in_channels, in_channels, 3, stride, groups=in_channels),
            *conv_block(in_channels, in_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.one_branch:
            kept, transformed = x.chunk(2, dim=1)
            parts = (kept, self.branch2(transformed))
        else:
            parts = (self.branch1(x), self.branch2(x))
        return shuffle_two(*parts)


def _transform(in_channels: int, mid: int, channels: int, stride: int) -> nn.Sequential:
    depthwise = conv_bn(mid, mid, 3, stride, groups=mid)
    return nn.Sequential(*conv_block(in_channels, mid), *depthwise, *conv_block(mid, channels))


class StudyShuffleFaceNet(Backbone):
    """The study's ShuffleFaceNet: max-pooling after the stem, and stride 1 in stage 4.

    Args:
        stage_widths: output channels of stages 2, 3 and 4.
        tail_width: channels of the last 7x7 map.
        embedding_size: D.
        dropout: probability before the last linear layer.
    """

    stage_ends = ("conv1", "stage2", "stage3", "stage4", "gdc")
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(
        self, stage_widths: tuple[int, int, int], tail_width: int, embedding_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        channels = 24
        self.conv1 = nn.Sequential(*conv_block(3, channels, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for number, (width, units) in enumerate(zip(stage_widths, STAGE_UNITS, strict=True), start=2):
            first = ShuffleUnit(channels, width, stride=1 if number == 4 else 2)
            setattr(
                self, f"stage{number}", nn.Sequential(first, *(ShuffleUnit(width, width, 1) for _ in range(units - 1)))
            )
            channels = width
        self.conv5 = nn.Sequential(*conv_block(channels, tail_width))
        self.gdc = nn.Sequential(*global_depthwise(tail_width), nn.PReLU(tail_width))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(tail_width, embedding_size)
        self.bn = nn.BatchNorm1d(embedding_size)
        initialize(self)
        nn.init.xavier_normal_(self.fc.weight)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x_B3HW))  # (B, 24, 28, 28)
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))  # (B, tail_width, 7, 7)
        x = self.dropout(self.gdc(x).flatten(1))
        return self.bn(self.fc(x)).float()  # type: ignore[no-any-return]  # (B, D)


class _MixedKernels(nn.Module):
    """Depthwise 3x3, 5x5 and 7x7 convolutions, each on its share of the channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.convs = SplitConv(
            GroupedConv2d(share, share, kernel, stride, kernel // 2, groups=share, bias=False)
            for share, kernel in zip(_even_shares(channels, 3), (3, 5, 7), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)  # type: ignore[no-any-return]


def _even_shares(total: int, parts: int) -> list[int]:
    """Shares of `total` that differ by at most one, larger ones first.

    >>> _even_shares(32, 3)
    [11, 11, 10]
    """
    return [total // parts + (index < total % parts) for index in range(parts)]


class _Block(nn.Module):
    """Convolution, batch normalisation and optional activation, under the study's attribute names."""

    def __init__(self, conv: nn.Module, channels: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(channels)
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class _SqueezeExcite(nn.Module):
    """Channel weights from a bottleneck with a quarter of the channels and batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 4)
        self.conv1 = _Block(nn.Conv2d(channels, squeezed, 1, bias=False), squeezed, nn.SiLU())
        self.conv2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))  # (B, C, 1, 1)
        return x * weight.sigmoid()


class MixUnit(nn.Module):
    """Depthwise convolution with one or three kernel sizes, squeeze-and-excitation, 1x1 projection; no expansion.

    Args:
        in_channels: input channels.
        channels: output channels.
        stride: of the depthwise convolution; with stride 1 and equal channels, the unit is residual.
        mixed: kernels 3, 5 and 7 on thirds of the channels instead of 3 on all.
        stem: whether this is the unit after the first convolution: PReLU, no squeeze-and-excitation.
        shuffle: shuffle the channels at the end.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, mixed: bool = False, stem: bool = False, shuffle: bool
    ) -> None:
        super().__init__()
        activation = nn.PReLU(in_channels) if stem else nn.SiLU()
        self.conv1: nn.Module
        if mixed:
            self.conv1 = _Block(_MixedKernels(in_channels, stride), in_channels, activation)
        else:
            self.conv1 = nn.Sequential(*conv_bn(in_channels, in_channels, 3, stride, groups=in_channels), activation)
        self.se = nn.Identity() if stem else _SqueezeExcite(in_channels)
        self.conv2 = _Block(nn.Conv2d(in_channels, channels, 1, bias=False), channels)
        self.residual = stride == 1 and in_channels == channels
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.se(self.conv1(x)))
        if self.residual:
            out = out + x
        return shuffle(out) if self.shuffle else out


class _Embedding(nn.Module):
    """The study's two output heads: one for a 7x7 map, which never runs, and the one for the 2x2 map."""

    def __init__(self, channels: int, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 1024, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(1024)
        self.expand_act = nn.PReLU(1024)
        self.dw = GroupedConv2d(1024, 1024, 7, groups=1024, bias=False)
        self.dw_bn = nn.BatchNorm2d(1024)
        self.project = nn.Conv2d(1024, embedding_size, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(embedding_size)
        self.fallback_proj = nn.Conv2d(channels, embedding_size, 1, bias=False)
        self.fallback_bn = nn.BatchNorm2d(embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.final_bn = nn.BatchNorm1d(embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x.mean((2, 3), keepdim=True))
        return self.final_bn(self.fallback_bn(self.fallback_proj(x)).flatten(1))  # type: ignore[no-any-return]


class StudyMixFaceNet(Backbone):
    """The study's MixFaceNet, or ShuffleMixFaceNet.

    Most of its parameters are in an output head that never runs: they get no gradient and do not affect the output.

    Args:
        widths: channels of the stem and after each of the six units.
        mixed: which units mix kernel sizes.
        shuffle: shuffle the channels after each unit.
        embedding_size: D.
        dropout: probability before the last convolution.
    """

    stage_ends = ("head", *(f"stages.stage{number}" for number in range(1, 7)))

    def __init__(
        self, widths: tuple[int, ...], mixed: tuple[bool, ...], shuffle: bool, embedding_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        first, *rest = widths
        stem = _Block(nn.Conv2d(3, first, 3, 2, 1, bias=False), first, nn.PReLU(first))
        self.head = nn.Sequential(stem, MixUnit(first, first, 1, stem=True, shuffle=shuffle))
        self.stages = nn.Sequential()
        channels = first
        for number, (width, mix) in enumerate(zip(rest, mixed, strict=True), start=1):
            unit = MixUnit(channels, width, stride=1 if number == 1 else 2, mixed=mix, shuffle=shuffle)
            self.stages.add_module(f"stage{number}", unit)
            channels = width
        self.embedding = _Embedding(channels, embedding_size, dropout)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.stages(self.head(x_B3HW))  # (B, C, 2, 2)
        return self.embedding(x).float()  # type: ignore[no-any-return]  # (B, D)


MIX_WIDTHS = {
    "xs": (8, 12, 16, 32, 64, 128, 256),
    "s": (16, 24, 32, 64, 128, 256, 512),
    "m": (16, 24, 40, 80, 160, 320, 640),
}
MIXED_UNITS = {
    "xs": (False, True, True, True, True, False),
    "s": (False, True, True, True, True, False),
    "m": (False, True, False, True, True, False),
}


@register_backbone("sfn0_5")
def study_shufflefacenet_0_5(embedding_size: int, dropout: float) -> Backbone:
    """The study's own ShuffleFaceNet at width 0.5."""
    return StudyShuffleFaceNet((48, 96, 192), 1024, embedding_size, dropout)


@register_backbone("sfn1_5")  # the study's pair of names is swapped
def study_shufflefacenet_1_0(embedding_size: int, dropout: float) -> Backbone:
    """The study's own ShuffleFaceNet at width 1.0, which it calls 1.5."""
    return StudyShuffleFaceNet((116, 232, 464), 1024, embedding_size, dropout)


@register_backbone("sfn1_0")  # the study's pair of names is swapped
def study_shufflefacenet_1_5(embedding_size: int, dropout: float) -> Backbone:
    """The study's own ShuffleFaceNet at width 1.5, which it calls 1.0."""
    return StudyShuffleFaceNet((176, 352, 704), 1024, embedding_size, dropout)


@register_backbone("sfn2_0")
def study_shufflefacenet_2_0(embedding_size: int, dropout: float) -> Backbone:
    """The study's own ShuffleFaceNet at width 2.0."""
    return StudyShuffleFaceNet((244, 488, 976), 2048, embedding_size, dropout)


@register_backbone("mfn_xs")
def study_mixfacenet_xs(embedding_size: int, dropout: float) -> Backbone:
    """The study's own MixFaceNet-XS."""
    return StudyMixFaceNet(MIX_WIDTHS["xs"], MIXED_UNITS["xs"], False, embedding_size, dropout)


@register_backbone("mfn_s")
def study_mixfacenet_s(embedding_size: int, dropout: float) -> Backbone:
    """The study's own MixFaceNet-S."""
    return StudyMixFaceNet(MIX_WIDTHS["s"], MIXED_UNITS["s"], False, embedding_size, dropout)


@register_backbone("mfn_m")
def study_mixfacenet_m(embedding_size: int, dropout: float) -> Backbone:
    """The study's own MixFaceNet-M."""
    return StudyMixFaceNet(MIX_WIDTHS["m"], MIXED_UNITS["m"], False, embedding_size, dropout)


@register_backbone("smfn_xs")
def study_shufflemixfacenet_xs(embedding_size: int, dropout: float) -> Backbone:
    """The study's own ShuffleMixFaceNet-XS."""
    return StudyMixFaceNet(MIX_WIDTHS["xs"], MIXED_UNITS["xs"], True, embedding_size, dropout)


@register_backbone("smfn_s")
def study_shufflemixfacenet_s(embedding_size: int, dropout: float) -> Backbone:
    """The study's own ShuffleMixFaceNet-S."""
    return StudyMixFaceNet(MIX_WIDTHS["s"], MIXED_UNITS["s"], True, embedding_size, dropout)


@register_backbone("smfn_m")
def study_shufflemixfacenet_m(embedding_size: int, dropout: float) -> Backbone:
    """The study's own ShuffleMixFaceNet-M."""
    return StudyMixFaceNet(MIX_WIDTHS["m"], MIXED_UNITS["m"], True, embedding_size, dropout)
