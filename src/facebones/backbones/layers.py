"""Building blocks that several families share."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def conv_bn(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, padded to keep the size at stride 1, and batch normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def conv_block(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution, batch normalisation, per-channel PReLU."""
    return [*conv_bn(in_channels, out_channels, kernel, stride, groups), nn.PReLU(out_channels)]


def global_depthwise(channels: int, size: int = 7) -> list[nn.Module]:
    """Learned pooling (MobileFaceNet, arXiv 1804.07573): one size x size filter a channel, then batch normalisation."""
    return [nn.Conv2d(channels, channels, size, groups=channels, bias=False), nn.BatchNorm2d(channels)]


def initialize(network: nn.Module) -> None:
    """Draw the weights of a compact network: He normal by outgoing connections, normalisation at identity, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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
