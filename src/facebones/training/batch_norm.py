"""Batch normalisation over the batch of all processes, so that their number does not change a training.

Each shard adds its sums to those of the others, in forward and in backward. Torch's SyncBatchNorm does the same, on
GPUs only and without a fixed order.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CACHED_VALUES = 2**17

Meet = Callable[[Tensor], Tensor]  # a value of one shard -> the sum over all shards


def share_batch_norm(network: nn.Module, meet: Meet, *, keeps_statistics: bool) -> None:
    """Make the batch normalisation of a network, while it trains, use the batch of all shards.

    Args:
        network: changed in place.
        meet: sums a vector over the shards.
        keeps_statistics: update the running statistics; networks that share their buffers leave that to one of them.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = partial(_forward, module, meet, keeps_statistics)  # type: ignore[method-assign]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _forward(module: Any, meet: Meet, keeps_statistics: bool, x: Tensor) -> Tensor:
    if not (module.training or module.running_mean is None):
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    y, mean_C, variance_C, count = _SharedNorm.apply(x, module.weight, module.bias, module.eps, meet)  # type: ignore[no-untyped-call]
    if module.running_mean is not None and keeps_statistics:
        with torch.no_grad():
            module.num_batches_tracked.add_(1)
            factor = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
            unbiased_C = variance_C * (count / (count - 1).clamp(min=1)).to(variance_C.dtype)
            module.running_mean.mul_(1 - factor).add_(mean_C, alpha=factor)
            module.running_var.mul_(1 - factor).add_(unbiased_C, alpha=factor)
    return y  # type: ignore[no-any-return]


class _SharedNorm(torch.autograd.Function):
    """The normalised values, mean and variance of all shards, and the number of values of a channel."""

    @staticmethod
    def forward(  # noqa: PLR0917 (torch passes them by position)
        ctx: Any, x: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, meet: Meet
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean_C, variance_C = _statistics(x)
        own = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
        sums = torch.cat([mean_C * own, (variance_C + mean_C * mean_C) * own, own])
        channels = x.shape[1]
        total, count = (summed := meet(sums))[:-1], summed[-1]
        mean_C, square_C = torch.split(total / count, channels)
        variance_C = (square_C - mean_C * mean_C).clamp_(min=0)
        kind = torch.float32 if weight_C is None else weight_C.dtype
        mean_C, variance_C = mean_C.to(kind), variance_C.to(kind)
        y = functional.batch_norm(x, mean_C, variance_C, weight_C, bias_C, False, 0.0, eps)
        ctx.save_for_backward(x, weight_C, mean_C, variance_C, count)
        ctx.eps, ctx.meet, ctx.has_bias = eps, meet, bias_C is not None
        ctx.mark_non_differentiable(mean_C, variance_C, count)
        return y, mean_C, variance_C, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, variance_C, count = ctx.saved_tensors
        _, gradient_weight_C, gradient_bias_C = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight_C, mean_C, variance_C, None, None, False, ctx.eps, [False, True, True]
        )
        sums = ctx.meet(torch.cat([gradient_weight_C, gradient_bias_C]).double())
        of_weight_C, of_bias_C = (sums / count).to(mean_C.dtype).chunk(2)
        inverse_C = (variance_C + ctx.eps).rsqrt()
        slope_C = inverse_C if weight_C is None else weight_C * inverse_C
        of_x_C = -slope_C * inverse_C * of_weight_C  # mean and variance depend on x, too
        offset_C = -slope_C * of_bias_C - mean_C * of_x_C
        gradient_x = _weighted_sum(gradient, slope_C, x, of_x_C, offset_C)
        return (
            gradient_x,
            None if weight_C is None else gradient_weight_C,
            gradient_bias_C if ctx.has_bias else None,
            None,
            None,
        )


def _weighted_sum(one: Tensor, factor_C: Tensor, other: Tensor, other_factor_C: Tensor, offset_C: Tensor) -> Tensor:
    """`one * factor + other * other_factor + offset`, in the layout of `other`."""
    shape = (1, -1, *[1] * (other.ndim - 2))
    factor, other_factor, offset = (values_C.view(shape) for values_C in (factor_C, other_factor_C, offset_C))
    result = torch.empty_like(other)
    # Torch has no one operation for it: of a few images at a time, the second finds all in the cache of the processor.
    images = len(other) if other.is_cuda else max(1, CACHED_VALUES // max(1, math.prod(other.shape[1:])))
    parts = (torch.split(values, images) for values in (result, one, other))
    for part, one_part, other_part in zip(*parts, strict=True):
        torch.addcmul(offset, one_part, factor, out=part).addcmul_(other_part, other_factor)
    return result


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of a shard, in float64."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        # The kernel that torch's own normalisation uses; `var_mean` takes twenty times as long in channels-last.
        mean_C, variance_C = torch.ops.aten.batch_norm_update_stats(x, None, None, 0.0)
    else:
        variance_C, mean_C = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)
    return mean_C.double(), variance_C.double()
