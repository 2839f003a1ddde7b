"""The rows of a large matrix that take part in one step: only they get a gradient, and only their state is updated.

The rows are a leaf of their own, so a backward pass makes a gradient of their size and no larger, and the norm, the
clipping and the gradient scaler see them like any parameter. An ordinary torch optimizer holds the leaf. Just before
its step, hooks put the leaf's rows of momentum where the optimizer looks for them; just after, they bring rows and
momentum home. A row that is not drawn keeps its value and its momentum bit by bit; a step that is skipped changes
nothing. A count of steps, as AdamW's, is one for all rows, as in torch's SparseAdam.
"""

import mmap
from typing import Any

import torch
from torch import Tensor, nn


class StepRows:
    """Rows of a matrix, drawn anew for each step.

    Args:
        matrix: (C, D), which needs no gradient of its own.

    `leaf` (S, D) holds the rows `index` (S,); both are empty before the first draw.
    """

    def __init__(self, matrix: nn.Parameter) -> None:
        self.matrix = matrix
        self.leaf = nn.Parameter(torch.empty(0))
        self._whole: dict[str, Any] = {}
        self.draw(torch.empty(0, dtype=torch.long, device=matrix.device))

    @torch.no_grad()
    def draw(self, index_S: Tensor) -> None:
        """Take up the rows of these sorted indices, each at most once, and drop those of the step before."""
        self.leaf.grad = None
        self.leaf.data = self.matrix[:0]  # the old rows go before the new ones come
        self.leaf.data = self.matrix.index_select(0, index_S)
        self.index = index_S

    def place(self, row_B: Tensor) -> Tensor:
        """Where rows of the matrix stand in the leaf; -1 stays -1.

        Raises:
            ValueError: one of them is not in this step's draw.
        """
        place_B = torch.searchsorted(self.index, row_B)
        drawn_B = torch.cat([self.index, row_B.new_tensor([-1])])[place_B] == row_B
        if not (drawn_B | (row_B == -1)).all():
            raise ValueError("a class is not in this step's sample; call draw_sample with all of the step's labels")
        return torch.where(row_B >= 0, place_B, -1)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Have the steps of an optimizer that holds the leaf act on the matrix; its state is of the whole matrix."""
        optimizer.register_step_pre_hook(self._gather_state)
        optimizer.register_step_post_hook(self._scatter)

    @torch.no_grad()
    def _gather_state(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._whole = optimizer.state[self.leaf]
        optimizer.state[self.leaf] = {
            key: value.index_select(0, self.index) if _has_shape(value, self.matrix) else value
            for key, value in self._whole.items()
        }

    @torch.no_grad()
    def _scatter(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for key, value in optimizer.state[self.leaf].items():
            if _has_shape(value, self.leaf):
                if key not in self._whole:
                    self._whole[key] = lazy_zeros(self.matrix)
                self._whole[key].index_copy_(0, self.index, value)
            else:
                self._whole[key] = value
        optimizer.state[self.leaf], self._whole = self._whole, {}
        self.matrix.index_copy_(0, self.index, self.leaf)


def lazy_zeros(like: Tensor) -> Tensor:
    """Zeros of a tensor's shape that take memory only where they have been written, on systems that can.

    torch.zeros writes them all. The pages are small ones: with huge pages, a few rows here and there would be
    everything.
    """
    if like.device.type != "cpu" or not hasattr(mmap, "MADV_NOHUGEPAGE") or like.numel() == 0:
        return torch.zeros_like(like)
    memory = mmap.mmap(-1, like.numel() * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)


def _has_shape(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape
