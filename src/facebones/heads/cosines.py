"""Cosines between embeddings and class centres; backward keeps no second matrix of the size of the centres."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Rows of 512 numbers that are worked on at a time: 4 MiB on a CPU, 128 MiB where each block launches kernels.
CPU_ROWS, ACCELERATOR_ROWS = 2048, 65_536


def block_rows(device: torch.device) -> int:
    """Rows of a large matrix that are worked on at a time."""
    return CPU_ROWS if device.type == "cpu" else ACCELERATOR_ROWS


def cosines(embedding_BD: Tensor, centres_CD: Tensor) -> Tensor:
    """Cosines (B, C) of normalised embeddings (B, D) and class centres (C, D) of any norm, clamped to [-1, 1].

    Values and gradients equal those of torch's `linear`, `normalize` and `clamp` bit by bit. Those would keep the
    normalised centres and the products for backward, and backward would make five more tensors of the size of the
    centres.

    >>> cosines(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[0.6000, 0.0000]])
    """
    return _Cosines.apply(embedding_BD, centres_CD)  # type: ignore[no-untyped-call,no-any-return]


def sampled_cosines(embedding_BD: Tensor, rows_SD: Tensor, matrix_CD: Tensor, index_S: Tensor) -> Tensor:
    """`cosines` (B, S) with the rows `index_S` of a matrix (C, D), copied block by block and never all at once.

    The gradient goes to `rows_SD`; its values are not used.
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
            gradient_CD = (
                gradient_BC.T @ embedding_BD
            )  # with respect to the normalised centres; then, in place, to the centres
            rows = block_rows(centres_CD.device)
            for block, part in zip(gradient_CD.split(rows), centres_CD.split(rows), strict=True):
                centres, normalised = _normalised(part)
                block.copy_(torch.autograd.grad(normalised, centres, block)[0])
        return gradient_BD, gradient_CD


class _SampledCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_BD: Tensor, rows_SD: Tensor, matrix_CD: Tensor, index_S: Tensor) -> Tensor:
        cosine_BS = embedding_BD.new_empty(len(embedding_BD), len(index_S))
        for start, centres in _sampled_blocks(matrix_CD, index_S):
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
            for start, rows in _sampled_blocks(matrix_CD, index_S):
                block_BS = gradient_BS[:, start : start + len(rows)]
                centres, normalised = _normalised(rows)
                gradient_BD += block_BS @ normalised.detach()
                own = torch.autograd.grad(normalised, centres, block_BS.T @ embedding_BD)[0]
                gradient_SD[start : start + len(rows)] = own
        return gradient_BD, gradient_SD, None, None


def _sampled_blocks(matrix_CD: Tensor, index_S: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Start of each block of the sampled rows, and a copy of its rows."""
    rows = block_rows(matrix_CD.device)
    for start in range(0, len(index_S), rows):
        yield start, matrix_CD.index_select(0, index_S[start : start + rows])


def _normalised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows as a leaf, and the normalised rows, for torch to differentiate one by the other."""
    with torch.enable_grad():
        centres = rows.detach().requires_grad_()
        return centres, functional.normalize(centres)
