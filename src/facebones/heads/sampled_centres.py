"""The class centres that take part in one step: only they get a gradient, and only their optimizer state is updated.

The sampled rows have a leaf tensor of their own. So backward makes a gradient of their size only, and the gradient
norm, clipping and the gradient scaler treat them like any parameter. The leaf has a shape but no memory; values are
read from the matrix block by block. The torch optimizer holds the leaf. When it begins a step, an optimizer of the same
kind steps the rows, block by block, on the matrix and on the state; the state has the size of the whole matrix and is
kept where the optimizer keeps all state. A row that is not sampled keeps its value and its momentum bit by bit. A
skipped step changes nothing. A step count, as AdamW has, is shared by all rows, as in torch's SparseAdam.
"""

import mmap
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from facebones.heads.cosines import block_rows


class SampledCentres:
    """Rows of a matrix, drawn for each step.

    Args:
        matrix: (C, D), which needs no gradient of its own.

    `leaf` (S, D) gets the gradient of the rows `index` (S,). Both are empty before a draw and after the optimizer's
    step. The values of the leaf have no meaning.
    """

    def __init__(self, matrix: nn.Parameter) -> None:
        self.matrix = matrix
        self.leaf = nn.Parameter(torch.empty(0))
        self.clear()

    def clear(self) -> None:
        """Drop the sample."""
        self.draw(torch.empty(0, dtype=torch.long, device=self.matrix.device))

    @torch.no_grad()
    def draw(self, index_S: Tensor) -> None:
        """Take the rows of these sorted, unique indices as the sample; drop the previous one."""
        self.leaf.grad = None
        # Expanded from one number: no memory, on the device of the matrix, and its gradient is laid out in rows.
        self.leaf.data = self.matrix.new_zeros(1, 1).expand(len(index_S), self.matrix.shape[1])
        self.index = index_S

    def place(self, row_B: Tensor) -> Tensor:
        """Positions in the leaf of rows of the matrix; -1 stays -1.

        Raises:
            ValueError: a row is not in the sample.
        """
        place_B = torch.searchsorted(self.index, row_B)
        drawn_B = torch.cat([self.index, row_B.new_tensor([-1])])[place_B] == row_B
        if not (drawn_B | (row_B == -1)).all():
            raise ValueError("a class is not in this step's sample; call draw_sample with all of the step's labels")
        return torch.where(row_B >= 0, place_B, -1)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the steps of an optimizer that holds the leaf act on the matrix."""
        optimizer.register_step_pre_hook(self._step)

    @torch.no_grad()
    def _step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Step the sampled rows; the optimizer then finds no gradient here and steps its other parameters."""
        if self.leaf.grad is None:
            return
        (group,) = (group for group in optimizer.param_groups if any(p is self.leaf for p in group["params"]))
        whole, index, gradient = optimizer.state[self.leaf], self.index, self.leaf.grad
        before, size = dict(whole), block_rows(self.matrix.device)
        self.clear()
        for rows, part in zip(torch.split(index, size), torch.split(gradient, size), strict=True):
            block = nn.Parameter(self.matrix.index_select(0, rows))
            block.grad = part
            own = cast(Any, type(optimizer))([{**group, "params": [block]}])
            own.found_inf = getattr(optimizer, "found_inf", None)
            own.state[block] = {
                key: value.index_select(0, rows) if _has_shape(value, self.matrix) else deepcopy(value)
                for key, value in before.items()
            }
            own.step()
            self.matrix.index_copy_(0, rows, block)
            self._store_state(own.state[block], rows, whole)

    def _store_state(self, state: dict[str, Any], rows: Tensor, whole: dict[str, Any]) -> None:
        for key, value in state.items():
            if not _has_shape(value, self.matrix[: len(rows)]):
                whole[key] = value
                continue
            if key not in whole:
                whole[key] = lazy_zeros(self.matrix)
            whole[key].index_copy_(0, rows, value)


def lazy_zeros(like: Tensor) -> Tensor:
    """Zeros of a tensor's shape that take memory only where they are written, where the system supports it.

    torch.zeros writes all of them. Huge pages are switched off: a few scattered rows would touch every huge page.
    """
    if like.device.type != "cpu" or not hasattr(mmap, "MADV_NOHUGEPAGE") or like.numel() == 0:
        return torch.zeros_like(like)
    memory = mmap.mmap(-1, like.numel() * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape)


def _has_shape(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape
