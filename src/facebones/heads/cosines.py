"""Cosines between embeddings and class centres, whose gradient takes little memory beside itself."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from facebones.heads.blocks import block_rows


def cosines(embedding_BD: Tensor, centres_CD: Tensor) -> Tensor:
    """Products (B, C) of normalised embeddings with the centres at norm 1, held within [-1, 1].

    Values and gradients are bit by bit those of torch's `linear`, `normalize` and `clamp`, which would keep the
    normalised centres and the products from forward to backward, and make five more tensors of the size of the centres
    in backward.

    >>> cosines(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[0.6000, 0.0000]])
    """
    return _Cosines.apply(embedding_BD, centres_CD)  # type: ignore[no-untyped-call,no-any-return]


def sampled_cosines(embedding_BD: Tensor, rows_SD: Tensor, matrix_CD: Tensor, index_S: Tensor) -> Tensor:
    """`cosines` (B, S) with the rows `index_S` of a matrix, which are copied block by block and never all at once.

    The gradient is that of `rows_SD`, whose values are not looked at.
    """
    return _SampledCosines.apply(embedding_BD, rows_SD, matrix_CD, index_S)  # type: ignore[no-untyped-call,no-any-return]


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
            rows = block_rows(centres_CD.device)
            for block, part in zip(gradient_CD.split(rows), centres_CD.split(rows), strict=True):
                centres, normalised = _normalised(part)
                block.copy_(torch.autograd.grad(normalised, centres, block)[0])
        return gradient_BD, gradient_CD


class _SampledCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_BD: Tensor, rows_SD: Tensor, matrix_CD: Tensor, index_S: Tensor) -> Tensor:
        cosine_BS = embedding_BD.new_empty(len(embedding_BD), len(index_S))
        for start, centres in _drawn_blocks(matrix_CD, index_S):
            block = functional.linear(embedding_BD, functional.normalize(centres))
            cosine_BS[:, start : start + len(centres)] = block
        is_within_BS = (cosine_BS >= -1).logical_and_(cosine_BS <= 1)
        ctx.save_for_backward(embedding_BD, matrix_CD, index_S, is_within_BS)
        return cosine_BS.clamp_(-1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BS: Tensor) -> tuple[Tensor, Tensor, None, None]:
        embedding_BD, matrix_CD, index_S, is_within_BS = ctx.saved_tensors
        gradient_BS = torch.where(is_within_BS, gradient_BS, 0)
        gradient_BD = torch.zeros_like(embedding_BD)
        gradient_SD = embedding_BD.new_empty(len(index_S), matrix_CD.shape[1])
        with torch.autocast(gradient_BS.device.type, enabled=False):
            for start, rows in _drawn_blocks(matrix_CD, index_S):
                block_BS = gradient_BS[:, start : start + len(rows)]
                centres, normalised = _normalised(rows)
                gradient_BD += block_BS @ normalised.detach()
                own = torch.autograd.grad(normalised, centres, block_BS.T @ embedding_BD)[0]
                gradient_SD[start : start + len(rows)] = own
        return gradient_BD, gradient_SD, None, None


def _drawn_blocks(matrix_CD: Tensor, index_S: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Where each block of the drawn rows begins, and a copy of its rows."""
    rows = block_rows(matrix_CD.device)
    for start in range(0, len(index_S), rows):
        yield start, matrix_CD.index_select(0, index_S[start : start + rows])


def _normalised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows as a leaf, and normalised, so that torch itself differentiates the one by the other."""
    with torch.enable_grad():
        centres = rows.detach().requires_grad_()
        return centres, functional.normalize(centres)
