"""Layers that several families share: convolution blocks, fast grouped convolutions, channel shuffles."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

MERGED_WIDTH = 32  # channels per group: a bfloat16 tile of AMX


def divisible_width(channels: float, divisor: int = 8) -> int:
    """Channels rounded to the nearest multiple of `divisor`, halves up, but not to less than 0.9 times as many.

    >>> [divisible_width(16 * 1.3, divisor=4), divisible_width(72 // 4)]
    [20, 24]
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


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


def global_depthwise(channels: int) -> list[nn.Module]:
    """Learned pooling (MobileFaceNet, arXiv 1804.07573): a 7 x 7 filter per channel, then batch normalisation."""
    return [GroupedConv2d(channels, channels, 7, groups=channels, bias=False), nn.BatchNorm2d(channels)]


def initialize(network: nn.Module) -> None:
    """Initialise a compact network: He normal (fan-out) weights, zero biases, normalisation at identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class GroupedConv2d(nn.Conv2d):
    """A grouped convolution with fast paths for autocast on a CPU.

    It computes in the type of its weights, because bfloat16 has no fast CPU kernels for the gradients of depthwise
    convolutions: the input gradient of a 3x3 at stride 2 takes 15 to 100 times as long as in float32, the weight
    gradient of a 5x5 takes 5 times as long. A depthwise convolution to a single pixel becomes a product and a sum.
    Groups of a few channels, slow in both types, are merged into wider groups in bfloat16.
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
        """The same convolution in groups of MERGED_WIDTH channels; weights between the old groups are 0."""
        merged = math.gcd(self.in_channels, MERGED_WIDTH // width * width)
        rows = torch.arange(self.in_channels, device=x.device)[:, None]
        columns = rows % merged // width * width + torch.arange(width, device=x.device)
        weight = self.weight.new_zeros(self.in_channels, merged, *self.kernel_size)
        weight = weight.index_put((rows, columns), self.weight)
        groups = self.in_channels // merged
        return functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation, groups)


class StridedPointConv2d(nn.Conv2d):
    """A 1x1 convolution with a stride: the pixels at the stride are taken first, and convolved.

    The plain one corrupts memory in training on a CPU, where the tensors are channels last and the input has few
    channels: oneDNN's gradient of the weights (torch 2.13; 2, 3, 5, 6 and 12 channels; not 1, 4, 16 and 20).
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.stride
        return functional.conv2d(x[:, :, ::height, ::width], self.weight, self.bias)


class SplitConv(nn.ModuleList):
    """Parallel convolutions, each on its slice of the channels; their outputs are concatenated."""

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
    """Turn autocast off for a block; the meta device has no autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


# ShuffleNet's shuffle in two groups, and its inverse, in the form that suits the device. torch's own operator is
# missing on MPS, and on CUDA it gives up the channels-last layout; plain operations replace it there. On a CPU,
# torch.compile would fuse ShuffleFaceNet's shuffle into the sums of batch normalisation's gradient, which then run
# element by element; a custom operator keeps it one pass over memory and makes training steps 7 % faster.


def shuffle_two(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate two tensors (B, ., H, W) and shuffle the channels in two groups: equal halves alternate."""
    if first.shape != second.shape:  # in some units of the study
        return shuffle(torch.cat((first, second), dim=1))
    if first.device.type != "cpu":
        return _alternate(first, second)
    # Not in exported graphs: they would need this package.
    if torch.compiler.is_dynamo_compiling() and first.requires_grad:
        dtype = torch.promote_types(first.dtype, second.dtype)
        return torch.ops.facebones.interleave(first.to(dtype), second.to(dtype))  # type: ignore[no-any-return]
    return shuffle(torch.cat((first, second), dim=1))


def shuffle(x: Tensor) -> Tensor:
    """Shuffle the channels of a tensor (B, C, H, W) in two groups: channels of both halves alternate."""
    if x.device.type == "cpu":
        return functional.channel_shuffle(x, 2)
    return _alternate(*x.chunk(2, dim=1))


def unshuffle(x: Tensor) -> Tensor:
    """Undo `shuffle`: alternating channels become two halves."""
    if x.device.type == "cpu":
        batch, channels, height, width = x.shape
        return x.view(batch, channels // 2, 2, height, width).transpose(1, 2).flatten(1, 2)
    return _separate(x)


def _alternate(first: Tensor, second: Tensor) -> Tensor:
    pairs = torch.stack((first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1)), dim=-1)
    return pairs.flatten(-2).permute(0, 3, 1, 2)  # channels last


def _separate(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    pairs = x.permute(0, 2, 3, 1).reshape(batch, height, width, channels // 2, 2)
    return pairs.transpose(-1, -2).flatten(-2).permute(0, 3, 1, 2)  # channels last


@torch.library.custom_op("facebones::interleave", mutates_args=())
def _interleave(first: Tensor, second: Tensor) -> Tensor:
    return _alternate(first, second)


@_interleave.register_fake
def _(first: Tensor, second: Tensor) -> Tensor:
    batch, half, height, width = first.shape
    return first.new_empty(batch, height, width, 2 * half).permute(0, 3, 1, 2)


@torch.library.custom_op("facebones::deinterleave", mutates_args=())
def _deinterleave(x: Tensor) -> tuple[Tensor, Tensor]:
    last = torch.channels_last
    return x[:, 0::2].contiguous(memory_format=last), x[:, 1::2].contiguous(memory_format=last)


@_deinterleave.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = x.shape
    first, second = (x.new_empty(batch, height, width, channels // 2).permute(0, 3, 1, 2) for _ in range(2))
    return first, second


def _backward(_: object, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.facebones.deinterleave(gradient)  # type: ignore[no-any-return]


torch.library.register_autograd("facebones::interleave", _backward)
