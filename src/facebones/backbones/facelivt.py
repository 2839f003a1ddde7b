"""FaceLiVT (Setyawan et al., arXiv 2506.10361) and FaceLiVTv2 (arXiv 2604.09127): linear layers mix the tokens.

Four stages on maps of 28, 14, 7 and 4 pixels. The first two are depthwise convolutions and feed-forward networks. In
the others, linear layers over the pixels of a map take the place of attention. Attribute names (one of them misspelt)
are those of the authors' code, so their weights load unchanged, in training and in deploy form.

The authors train with AdamW. In FaceLiVTv2, token mixing starts at `START_FOR_ADAMW`: its output is multiplied by
1e-10, and so is the gradient of its weights, about 4e-11. SGD does not move them, and float16 rounds them to 0 unless
the loss is scaled, as `training.precision fp16` does (at its first scale, 65536, 5 % of them are 0). The builders take
another start, such as `START_FOR_SGD`; register one under a name of yours, in a file for `--import`:

    @register_backbone()
    def facelivtv2_xs_sgd(embedding_size: int, dropout: float) -> Backbone:
        return facelivtv2_xs(embedding_size, dropout, START_FOR_SGD)

It is no option of recipes, because no other network has one like it; a training with SGD notes it. Weights of either
start load into both networks.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.backbones.base import Backbone
from facebones.backbones.folding import (
    Foldable,
    deploy_copy,
    fold_inside,
    fold_norm_before,
    fold_norm_behind,
    scale_and_shift,
    with_weights,
)
from facebones.backbones.layers import GroupedConv2d, StridedPointConv2d
from facebones.backbones.registry import register_backbone

MAPS = (28, 14, 7, 4)  # pixels along a side, in each stage
HEAD_WIDTH = 1284  # of version 2: the number in the authors' code


class MixingStart(NamedTuple):
    """Initial factors of token mixing in FaceLiVTv2: of its input (`alpha`) and of its output (`layer_scale`)."""

    alpha: float
    layer_scale: float


START_FOR_ADAMW = MixingStart(1e-5, 1e-5)  # as published
START_FOR_SGD = MixingStart(1.0, 1e-2)
LEAST_FOR_SGD = 1e-6  # of alpha times the layer scale: 1e-10 at the first start, 1e-2 at the second


def _conv(i: int, o: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    kind = GroupedConv2d if groups > 1 else StridedPointConv2d if kernel == 1 and stride > 1 else nn.Conv2d
    padding = kernel // 2 if kernel % 2 else 0  # none in the pooling, of the whole map
    return kind(i, o, kernel, stride, padding, groups=groups, bias=bias)


class RepConv(Foldable):
    """A 3x3 and a 1x1 convolution, summed, and batch normalisation: in deploy form one 3x3 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = _conv(in_channels, channels, 3, stride=stride, groups=groups, bias=True)
        self.repconv = _conv(in_channels, channels, 1, stride=stride, groups=groups, bias=True)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) + self.repconv(x))  # type: ignore[no-any-return]

    def folded(self, identity: bool = False) -> nn.Module:
        """The 3x3 convolution; `identity` adds the input to its output, for a depthwise one of stride 1."""
        assert self.conv.bias is not None and self.repconv.bias is not None  # noqa: S101 (built with them)
        scale, shift = scale_and_shift(self.bn)
        weight = self.conv.weight.double() + functional.pad(self.repconv.weight.double(), (1, 1, 1, 1))
        weight = weight * scale[:, None, None, None]
        if identity:
            weight[:, :, 1, 1] += 1
        bias = (self.conv.bias.double() + self.repconv.bias.double()) * scale + shift
        return nn.Sequential(OrderedDict(conv=with_weights(self.conv, weight, bias)))


class ConvBN(Foldable):
    """A convolution without bias and padding, and batch normalisation."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = _conv(in_channels, channels, kernel, groups=groups)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))  # type: ignore[no-any-return]

    def folded(self) -> nn.Module:
        return fold_norm_behind(self.c, self.bn)


class Residual(Foldable):
    """A module whose input is added to its output; its deploy form takes the sum into a `RepConv`."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)  # type: ignore[no-any-return]

    def folded(self) -> nn.Module:
        if isinstance(self.m, RepConv):
            return self.m.folded(identity=True)
        fold_inside(self)
        return self


class FeedForward(nn.Module):
    """Two 1x1 convolutions, each with batch normalisation, and GELU between them."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.pw1 = ConvBN(channels, ratio * channels)
        self.act = nn.GELU()
        self.pw2 = ConvBN(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw2(self.act(self.pw1(x)))  # type: ignore[no-any-return]


class _Affine(nn.Module):
    """A scale and a shift per channel of tokens (B, C, N)."""

    def __init__(self, channels: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1, channels, 1), alpha))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x_BCN: Tensor) -> Tensor:
        return self.beta + self.alpha * x_BCN


class LiteMixing(nn.Module):
    """Token mixing of version 2: a linear layer over the pixels for each quarter of the channels.

    Args:
        channels: C.
        tokens: N, the pixels of the map.
        start: of its factors.
        heads: parts of the channels.
    """

    def __init__(self, channels: int, tokens: int, start: MixingStart, heads: int = 4) -> None:
        super().__init__()
        self.ls = nn.Parameter(torch.full((channels, 1, 1), start.layer_scale))
        self.norm = _Affine(channels, start.alpha)
        self.lin = nn.ModuleList(nn.Linear(tokens, tokens) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        parts_BcN = self.norm(x.flatten(2)).chunk(len(self.lin), dim=1)
        mixed_BCN = torch.cat([linear(part) for linear, part in zip(self.lin, parts_BcN, strict=True)], dim=1)
        return mixed_BCN.view(x.shape) * self.ls


class Mixing(nn.Module):
    """Token mixing of version 1: for each of 16 groups of channels, two linear layers over the pixels, GELU between.

    The authors concatenate the heads along the pixels and reshape, which interleaves the channels: channel j of head h
    becomes output channel 16 j + h.

    Args:
        channels: C.
        tokens: N, the pixels of the map.
        heads: groups of channels.
        expansion: hidden elements, relative to N.
    """

    def __init__(self, channels: int, tokens: int, heads: int = 16, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.linear1 = nn.ModuleList(nn.Linear(tokens, expansion * tokens) for _ in range(heads))
        self.linear2 = nn.ModuleList(nn.Linear(expansion * tokens, tokens) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        parts_BcN = self.norm(x).flatten(2).chunk(len(self.linear1), dim=1)
        heads = zip(self.linear1, self.linear2, parts_BcN, strict=True)
        mixed = [second(functional.gelu(first(part))) for first, second, part in heads]
        return torch.stack(mixed, dim=2).view(x.shape)  # (B, c, heads, N)


class Head(Foldable):
    """Batch normalisation and the linear layer that gives the embedding."""

    def __init__(self, channels: int, embedding_size: int) -> None:
        super().__init__()
        parts = OrderedDict(bn=nn.BatchNorm1d(channels), l=nn.Linear(channels, embedding_size))
        self.classifier = nn.Sequential(parts)

    def forward(self, x_BC: Tensor) -> Tensor:
        return self.classifier(x_BC)  # type: ignore[no-any-return]

    def folded(self) -> nn.Module:
        return fold_norm_before(self.classifier.bn, self.classifier.l)  # type: ignore[arg-type]


class FaceLiVT(Backbone):
    """FaceLiVT, of version 1 or 2.

    Args:
        widths: channels of the stages.
        units: their numbers of units.
        embedding_size: D.
        dropout: probability before the last linear layer; the authors' code of version 2 never drops.
        start: of token mixing in version 2; None builds version 1.
    """

    stage_ends = tuple(f"{part}.{number}" for number in range(len(MAPS)) for part in ("patch_embedds", "stages"))

    def __init__(
        self,
        widths: Sequence[int],
        units: Sequence[int],
        embedding_size: int,
        dropout: float,
        start: MixingStart | None,
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.patch_embedds = nn.ModuleList([_stem(widths[0]), *map(_down, widths, widths[1:])])
        self.stages = nn.ModuleList()
        for size, width, count in zip(MAPS, widths, units, strict=True):
            blocks = [_unit(width, size, start) for _ in range(count)]
            self.stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))
        width = widths[-1]
        self.pre_head: nn.Module = nn.AdaptiveAvgPool2d(1)
        if start is not None:
            pool = ConvBN(HEAD_WIDTH, HEAD_WIDTH, MAPS[-1], groups=HEAD_WIDTH)
            self.pre_head, width = nn.Sequential(ConvBN(width, HEAD_WIDTH), pool), HEAD_WIDTH
        self.dropout = nn.Dropout(dropout)
        self.head = Head(width, embedding_size)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, FeedForward):
                nn.init.zeros_(module.pw2.bn.weight)  # each adds nothing at first

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = x_B3HW
        for embed, stage in zip(self.patch_embedds, self.stages, strict=True):
            x = stage(embed(x))  # (B, C, 28, 28) to (B, C, 4, 4)
        x = self.dropout(self.pre_head(x).flatten(1))
        return self.head(x).float()  # type: ignore[no-any-return]  # (B, D)

    def unmoved_by_sgd(self) -> str:
        mixing = [module for module in self.modules() if isinstance(module, LiteMixing)]
        factors = [module.norm.alpha.abs().max() * module.ls.abs().max() for module in mixing]
        return "token mixing" if any(factor < LEAST_FOR_SGD for factor in factors) else ""

    def deploy(self) -> Backbone:
        """The same network without batch normalisation and parallel convolutions."""
        return self if self.is_deployed else deploy_copy(self)


def _stem(width: int) -> nn.Module:
    first = nn.Sequential(RepConv(3, width // 2, 2), nn.GELU())
    return nn.Sequential(OrderedDict(stem=nn.Sequential(first, nn.Sequential(RepConv(width // 2, width, 2)))))


def _down(in_channels: int, channels: int) -> nn.Module:
    """Between two stages: half the size, then the next width."""
    spatial = nn.Sequential(RepConv(in_channels, in_channels, 2, in_channels), ConvBN(in_channels, channels))
    return nn.Sequential(OrderedDict(spatial=spatial, channel=Residual(FeedForward(channels, 2))))


def _unit(channels: int, size: int, start: MixingStart | None) -> nn.Module:
    """A unit: depthwise convolution (in version 1 of the larger maps only), token mixing of the smaller maps, FFN."""
    mixes = size < 14
    parts: list[nn.Module] = []
    if start is not None or not mixes:
        parts.append(RepConv(channels, channels, 1, channels))
    if mixes:
        parts.append(Mixing(channels, size**2) if start is None else LiteMixing(channels, size**2, start))
    parts.append(FeedForward(channels, 3 if start is None else 2))
    return nn.Sequential(OrderedDict(block=nn.Sequential(*map(Residual, parts))))


UNITS, UNITS_V2 = (2, 4, 6, 2), (3, 3, 9, 3)


@register_backbone()
def facelivt_s(embedding_size: int, dropout: float) -> Backbone:
    """FaceLiVT-S, token mixing by linear layers (arXiv 2506.10361)."""
    return FaceLiVT((40, 80, 160, 320), UNITS, embedding_size, dropout, None)


@register_backbone()
def facelivt_m(embedding_size: int, dropout: float) -> Backbone:
    """FaceLiVT-M, token mixing by linear layers (arXiv 2506.10361)."""
    return FaceLiVT((64, 128, 256, 512), UNITS, embedding_size, dropout, None)


@register_backbone()
def facelivtv2_xs(embedding_size: int, dropout: float, start: MixingStart = START_FOR_ADAMW) -> Backbone:
    """FaceLiVTv2-XS, for AdamW (arXiv 2604.09127)."""
    return FaceLiVT((32, 64, 128, 256), UNITS_V2, embedding_size, dropout, start)


@register_backbone()
def facelivtv2_s(embedding_size: int, dropout: float, start: MixingStart = START_FOR_ADAMW) -> Backbone:
    """FaceLiVTv2-S, for AdamW (arXiv 2604.09127)."""
    return FaceLiVT((48, 96, 192, 320), UNITS_V2, embedding_size, dropout, start)


@register_backbone()
def facelivtv2_m(embedding_size: int, dropout: float, start: MixingStart = START_FOR_ADAMW) -> Backbone:
    """FaceLiVTv2-M, for AdamW (arXiv 2604.09127)."""
    return FaceLiVT((56, 112, 224, 448), UNITS_V2, embedding_size, dropout, start)


@register_backbone()
def facelivtv2_l(embedding_size: int, dropout: float, start: MixingStart = START_FOR_ADAMW) -> Backbone:
    """FaceLiVTv2-L, for AdamW (arXiv 2604.09127)."""
    return FaceLiVT((64, 128, 256, 512), UNITS_V2, embedding_size, dropout, start)
