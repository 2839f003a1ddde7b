"""Equal to torch's own, bit by bit, whatever the blocks."""

import pytest
import torch
from torch.nn import functional

from facebones.heads import cosines as module
from facebones.heads.cosines import cosines


def plain(embedding, centres):
    return functional.linear(embedding, functional.normalize(centres)).clamp(-1, 1)


def values_and_gradients(function, embedding, centres, upstream):
    embedding, centres = (tensor.clone().requires_grad_() for tensor in (embedding, centres))
    value = function(embedding, centres)
    value.backward(upstream)
    return value.detach(), embedding.grad, centres.grad


@pytest.mark.parametrize(("classes", "block"), [(1, 8), (7, 8), (8, 8), (300, 7), (5000, 2048)])
@pytest.mark.parametrize(("batch", "size"), [(1, 5), (6, 64), (64, 512)])
def test_values_and_gradients_are_those_of_torch(classes, block, batch, size, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    torch.manual_seed(0)
    embedding, centres = torch.randn(batch, size), torch.randn(classes, size)  # about a third is beyond 1
    upstream = torch.randn(batch, classes)
    centres[0] = 0  # a centre without a direction
    expected = values_and_gradients(plain, embedding, centres, upstream)
    found = values_and_gradients(cosines, embedding, centres, upstream)
    assert all(map(torch.equal, expected, found))
