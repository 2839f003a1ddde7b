"""Cosines between embeddings and class centres, whose gradient takes little memory beside itself."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Of 512 numbers each, 4 MiB: small beside the centres, large enough to keep a GPU or a processor busy.
BLOCK_ROWS = 2048


def cosines(embedding_BD: Tensor, centres_CD: Tensor) -> Tensor:
    """Products (B, C) of normalised embeddings with the centres at norm 1, held within [-1, 1].

    Values and gradients are bit by bit those of torch's `linear`, `normalize` and `clamp`, which would keep the
    normalised centres and the products from forward to backward, and make five more tensors of the size of the centres
    in backward.

    >>> cosines(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[0.6000, 0.0000]])
    """
    return _Cosines.apply(embedding_BD, centres_CD)  # type: ignore[no-untyped-call,no-any-return]


class _Cosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_BD: Tensor, centres_CD: Tensor) -> Tensor:
        cosine_BC = functional.linear(embedding_BD, functional.normalize(centres_CD))
        is_within_BC = (cosine_BC >= -1).logical_and_(cosine_BC <= 1)
        ctx.save_for_backward(embedding_BD, centres_CD, is_within_BC)
        return cosine_BC.clamp_(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BC: Tensor) -> tuple[Tensor, Tensor]:
        embedding_BD, centres_CD, is_within_BC = ctx.saved_tensors
        gradient_BC = torch.where(is_within_BC, gradient_BC, 0)
        with torch.autocast(gradient_BC.device.type, enabled=False):
            gradient_BD = gradient_BC @ functional.normalize(centres_CD)
            gradient_CD = gradient_BC.T @ embedding_BD  # by the normalised centres, and in place by the centres
            for start in range(0, len(centres_CD), BLOCK_ROWS):
                block = gradient_CD[start : start + BLOCK_ROWS]
                block.copy_(_through_normalize(centres_CD[start : start + BLOCK_ROWS], block))
        return gradient_BD, gradient_CD


def _through_normalize(centres: Tensor, gradient: Tensor) -> Tensor:
    """By torch's own differentiation of a block that is normalised again."""
    with torch.enable_grad():
        centres = centres.detach().requires_grad_()
        return torch.autograd.grad(functional.normalize(centres), centres, gradient)[0]
