"""PocketNet (Boutros et al., arXiv 2108.10710): cells that an architecture search found.

A cell takes the outputs of the two cells before it. Each of its four nodes is the sum of two operations on earlier
maps, and its output is the nodes, concatenated. Attribute names are those of the authors' code, so their weights load
unchanged. The paper's networks have embeddings of 128 and 256 elements: PocketNetS-128 is `pocketnet_s` of this size.
Its files load under `pocketnet_s`, because their shapes show the size. `pocketnet_s_128` is no name: no name decides
the embedding size, so a training under it would have 512 elements.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import GroupedConv2d, conv_bn, global_depthwise
from facebones.backbones.registry import register_backbone

NODES = 4
WIDE_TAIL_FROM = 512  # the embedding size from which the tail has twice the channels


class Term(NamedTuple):
    """One of the two terms of a node.

    Attributes:
        operation: the kernel size of a separable convolution, "max pool", or "itself".
        source: the map that it takes: 0 and 1 are the inputs of the cell, 2 is the first node, and so on.
    """

    operation: int | str
    source: int


NORMAL = (
    (Term(3, 0), Term(1, 1)),
    (Term(3, 2), Term(5, 0)),
    (Term(3, 3), Term(3, 0)),
    (Term(3, 4), Term("itself", 0)),
)
REDUCTION = (
    (Term(3, 1), Term(7, 0)),
    (Term("itself", 2), Term(5, 1)),
    (Term("max pool", 0), Term("itself", 2)),
    (Term("max pool", 0), Term("max pool", 1)),
)


class Separable(nn.Module):
    """PReLU, depthwise convolution (also of kernel 1), 1x1 convolution, batch normalisation."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        depthwise = _depthwise(in_channels, kernel, stride)
        self.net = nn.Sequential(nn.PReLU(in_channels), depthwise, *conv_bn(in_channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class Halved(nn.Module):
    """Half the size: one half of the channels from the even pixels, the other from the odd ones."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.relu = nn.PReLU(in_channels)
        self.conv11 = _depthwise(in_channels, 1, 2)
        self.conv12 = nn.Conv2d(in_channels, channels // 2, 1, bias=False)
        self.conv21 = _depthwise(in_channels, 1, 2)
        self.conv22 = nn.Conv2d(in_channels, channels // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        even, odd = self.conv12(self.conv11(x)), self.conv22(self.conv21(x[:, :, 1:, 1:]))
        return self.bn(torch.cat((even, odd), dim=1))  # type: ignore[no-any-return]


class Pool(nn.Module):
    """Max pooling to half the size, and batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pool(x))  # type: ignore[no-any-return]


class Cell(nn.Module):
    """A cell.

    Args:
        in_channels: of the outputs of the cells before it: the one before the last, and the last.
        channels: of each node.
        reduces: whether it halves the size.
        before_reduces: whether the last cell before it does, so that its first input is larger.
    """

    def __init__(self, in_channels: tuple[int, int], channels: int, *, reduces: bool, before_reduces: bool) -> None:
        super().__init__()
        first, second = in_channels
        self.preproc0 = Halved(first, channels) if before_reduces else Separable(first, channels, 1)
        self.preproc1 = Separable(second, channels, 1)
        nodes = REDUCTION if reduces else NORMAL
        self.dag = nn.ModuleList(nn.ModuleList(_operation(term, channels, reduces) for term in node) for node in nodes)
        self.sources = [[term.source for term in node] for node in nodes]

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        maps = [self.preproc0(x0), self.preproc1(x1)]
        for node, sources in zip(self.dag, self.sources, strict=True):
            assert isinstance(node, nn.ModuleList)  # noqa: S101 (for mypy)
            first, second = (operation(maps[source]) for operation, source in zip(node, sources, strict=True))
            maps.append(first + second)
        return torch.cat(maps[2:], dim=1)


def _operation(term: Term, channels: int, reduces: bool) -> nn.Module:
    if term.operation == "itself":
        return nn.Identity()
    if term.operation == "max pool":
        return Pool(channels)
    assert isinstance(term.operation, int)  # noqa: S101 (the tables have no other)
    return Separable(channels, channels, term.operation, 2 if reduces and term.source < 2 else 1)


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return GroupedConv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


class PocketNet(Backbone):
    """PocketNet.

    Args:
        channels: of a node of the first cell; doubled by each of the three cells that halve the size.
        cells: their number L; those at L // 3, 2 L // 3 and L - 1 halve the size.
        embedding_size: D.
        dropout: probability before the last convolution; the authors have none.
    """

    def __init__(self, channels: int, cells: int, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        reductions = (cells // 3, 2 * cells // 3, cells - 1)
        self.stage_ends = ("stem", *(f"cells.{number - 1}" for number in reductions), "tail.5")
        widths = [NODES * channels] * 2
        self.stem = nn.Sequential(*conv_bn(3, widths[0], 3, 2))
        self.cells = nn.ModuleList()
        for number in range(cells):
            reduces = number in reductions
            channels *= 2 if reduces else 1
            inputs = (widths[-2], widths[-1])
            self.cells.append(Cell(inputs, channels, reduces=reduces, before_reduces=number - 1 in reductions))
            widths.append(NODES * channels)
        self.tail = _tail(widths[-1], embedding_size, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        before = last = self.stem(x_B3HW)  # (B, 4 C, 56, 56)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.tail(last).flatten(1).float()  # type: ignore[no-any-return]  # (B, D)


def _tail(in_channels: int, embedding_size: int, dropout: float) -> nn.Sequential:
    width = 1024 if embedding_size >= WIDE_TAIL_FROM else 512
    expand = [nn.PReLU(in_channels), *conv_bn(in_channels, width), nn.PReLU(width)]
    embed = conv_bn(width, embedding_size)
    layers: Sequence[nn.Module] = [*expand, *global_depthwise(width), *embed]
    tail = nn.Sequential()
    for number, layer in enumerate(layers):
        if layer is embed[0]:
            tail.add_module("dropout", nn.Dropout(dropout))  # the authors' keys number the others
        tail.add_module(str(number), layer)
    return tail


@register_backbone()
def pocketnet_s(embedding_size: int, dropout: float) -> Backbone:
    """PocketNetS, 18 cells found by a search (arXiv 2108.10710)."""
    return PocketNet(16, 18, embedding_size, dropout)


@register_backbone()
def pocketnet_m(embedding_size: int, dropout: float) -> Backbone:
    """PocketNetM, 9 wider cells found by a search (arXiv 2108.10710)."""
    return PocketNet(32, 9, embedding_size, dropout)
