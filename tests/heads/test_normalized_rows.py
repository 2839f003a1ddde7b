"""Equal to torch's own, bit by bit, whatever the blocks."""

import pytest
import torch
from torch.nn import functional

from facebones.heads import normalized_rows as module
from facebones.heads.normalized_rows import normalized_rows


def value_and_gradient(function, matrix, upstream):
    matrix = matrix.clone().requires_grad_()
    value = function(matrix)
    value.backward(upstream)
    return value.detach(), matrix.grad


@pytest.mark.parametrize(("rows", "block"), [(0, 8), (1, 8), (7, 8), (8, 8), (300, 7), (20_000, 8192)])
@pytest.mark.parametrize("size", [5, 64])
def test_values_and_gradients_are_those_of_torch(rows, block, size, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    torch.manual_seed(0)
    matrix, upstream = torch.randn(rows, size), torch.randn(rows, size)
    matrix[:1] = 0  # a centre without a direction
    expected = value_and_gradient(functional.normalize, matrix, upstream)
    found = value_and_gradient(normalized_rows, matrix, upstream)
    assert all(map(torch.equal, expected, found))
