"""Building blocks that several families share."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

MERGED_WIDTH = 32  # channels a group: what a tile of AMX takes in bfloat16


def conv_bn(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, padded to keep the size at stride 1, and batch normalisation."""
    kind = GroupedConv2d if groups > 1 else nn.Conv2d
    conv = kind(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def conv_block(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution, batch normalisation, per-channel PReLU."""
    return [*conv_bn(in_channels, out_channels, kernel, stride, groups), nn.PReLU(out_channels)]


def global_depthwise(channels: int, size: int = 7) -> list[nn.Module]:
    """Learned pooling (MobileFaceNet, arXiv 1804.07573): one size x size filter a channel, then batch normalisation."""
    return [GroupedConv2d(channels, channels, size, groups=channels, bias=False), nn.BatchNorm2d(channels)]


def initialize(network: nn.Module) -> None:
    """Draw the weights of a compact network: He normal by outgoing connections, normalisation at identity, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class GroupedConv2d(nn.Conv2d):
    """A convolution in groups, which under autocast on a CPU goes the ways that are fast there.

    They compute in their weights' type, for a reduced precision has no fast kernels for the gradients of depthwise
    ones: by the input of a 3x3 at stride 2, bfloat16 takes 15 to 100 times as long as float32, by a 5x5's weights 5
    times. A depthwise one that leaves a single pixel is a product and a sum. But groups of a few channels, which are
    slow in either type, are merged into wider ones in bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        width = self.in_channels // self.groups
        plain = self.in_channels == self.out_channels and self.bias is None and self.padding_mode == "zeros"
        if plain and 1 < width < MERGED_WIDTH and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            return self._merged(x, width)
        with full_precision(x.device):
            x = x.to(self.weight.dtype)
            single = x.shape[2:] == self.weight.shape[2:] and self.padding == (0, 0) and self.dilation == (1, 1)
            if plain and width == 1 and single:
                return (x * self.weight.squeeze(1)).sum((2, 3), keepdim=True)
            return super().forward(x)

    def _merged(self, x: Tensor, width: int) -> Tensor:
        """The same in groups of MERGED_WIDTH channels, whose weights between the old groups are 0."""
        merged = math.gcd(self.in_channels, MERGED_WIDTH // width * width)
        rows = torch.arange(self.in_channels, device=x.device)[:, None]
        columns = rows % merged // width * width + torch.arange(width, device=x.device)
        weight = self.weight.new_zeros(self.in_channels, merged, *self.kernel_size)
        weight = weight.index_put((rows, columns), self.weight)
        groups = self.in_channels // merged
        return functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation, groups)


class SplitConv(nn.ModuleList):
    """Convolutions side by side, each on its own slice of the channels; their outputs are concatenated."""

    def __init__(self, convolutions: Iterable[nn.Conv2d]) -> None:
        super().__init__(convolutions)
        self.slices = [int(convolution.in_channels) for convolution in self]  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.slices, dim=1)
        return torch.cat([convolution(part) for convolution, part in zip(self, parts, strict=True)], dim=1)


class Residual(nn.Sequential):
    """A sequence whose input is added to its output."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for module in self:
            y = module(y)
        return x + y


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A block in which autocast is off; the meta device, which only counts, has no autocast to turn off."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
