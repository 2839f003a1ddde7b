"""Equal to torch's own, bit by bit, whatever the blocks."""

import pytest
import torch
from torch.nn import functional

from facebones.heads.cosines import cosines, sampled_cosines


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
    monkeypatch.setattr("facebones.heads.cosines.CPU_ROWS", block)
    torch.manual_seed(0)
    embedding, centres = torch.randn(batch, size), torch.randn(classes, size)  # about a third is beyond 1
    upstream = torch.randn(batch, classes)
    centres[0] = 0  # a centre without a direction
    expected = values_and_gradients(plain, embedding, centres, upstream)
    found = values_and_gradients(cosines, embedding, centres, upstream)
    assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("block", [1, 7, 2048])
def test_those_of_drawn_rows_are_those_of_the_rows(block, monkeypatch):
    monkeypatch.setattr("facebones.heads.cosines.CPU_ROWS", block)
    torch.manual_seed(0)
    embedding, matrix, index = torch.randn(6, 64), torch.randn(300, 64), torch.tensor([0, 3, 4, 9, 200, 298, 299])
    matrix[3] = 0
    upstream = torch.randn(6, len(index))
    expected = values_and_gradients(cosines, embedding, matrix[index], upstream)
    without_values = torch.zeros(1, 1).expand(len(index), 64)

    def sampled(embedding, rows):
        return sampled_cosines(embedding, rows, matrix, index)

    found = values_and_gradients(sampled, embedding, without_values, upstream)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain)
