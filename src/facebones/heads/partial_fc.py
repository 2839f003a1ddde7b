"""The classification head: one centre a class, of which a sample takes part in each step.

Source: Partial FC, arXiv 2203.15565. A head holds one shard of the classes and knows which; in a single process
the shard is the whole. Below a rate of 1, nothing in a step is of the size of all centres, save one byte a class while
the sample is drawn.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.heads.cosines import cosines, sampled_cosines
from facebones.heads.sampled_centres import StepRows

Margin = Callable[[Tensor, Tensor], Tensor]


class PartialFC(nn.Module):
    """Softmax over margined cosines to class centres, of which a random sample of the negatives takes part.

    Args:
        num_classes: C, the number of classes in all.
        embedding_size: D.
        margin: (cosine_BC, label_B) -> logits_BC.
        sample_rate: share of this shard's centres that takes part in a step; the classes present in its batches
            always do. 1 is the plain softmax. Below 1, `draw_sample` comes first in each step, and what is trained is
            not `centres` but `rows.leaf`, which is no parameter of this module.
        shard: the classes whose centres are held here; all where it is None.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: Margin,
        *,
        sample_rate: float = 1.0,
        shard: range | None = None,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate {sample_rate} is not in (0, 1]")
        self.num_classes = num_classes
        self.shard = range(num_classes) if shard is None else shard
        self.margin = margin
        self.sample_rate = sample_rate
        self.centres = nn.Parameter(torch.empty(len(self.shard), embedding_size), requires_grad=sample_rate == 1)
        nn.init.normal_(self.centres, std=0.01)  # (C, D)
        self.rows = StepRows(self.centres) if sample_rate < 1 else None

    def draw_sample(self, label: Tensor) -> None:
        """Draw the centres of a step from torch's global generator; at a rate of 1 there is nothing to draw.

        Args:
            label: classes of all batches of the step, counted over all shards, or -1.
        """
        if self.rows is not None:
            label = label.to(self.centres.device)
            present = label[self._is_here(label)] - self.shard.start
            self.rows.draw(sample_classes(len(self.shard), self.sample_rate, present))

    def logits(self, embedding_BD: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Margined logits over the centres that take part, and each row's column among them.

        Args:
            embedding_BD: normalised embeddings.
            label_B: classes counted over all shards, or -1.

        Returns:
            logits (B, S) in float32, and columns (B,), -1 where the class is not on this shard.

        Raises:
            ValueError: a class is not in the step's sample.
        """
        here = self._is_here(label_B)
        column_B = torch.where(here, label_B - self.shard.start, -1)
        # In float32: times 64, half a bfloat16 step is a logit of 0.1.
        with torch.autocast(embedding_BD.device.type, enabled=False):
            if self.rows is None:
                cosine_BS = cosines(embedding_BD.float(), self.centres)
            else:
                column_B = self.rows.place(column_B)
                cosine_BS = sampled_cosines(embedding_BD.float(), self.rows.leaf, self.centres, self.rows.index)
            return self.margin(cosine_BS, column_B), column_B

    def forward(self, embedding_BD: Tensor, label_B: Tensor) -> Tensor:
        """Mean cross-entropy of the rows with a class; rows of label -1 add nothing. Shapes as in `logits`."""
        if len(self.shard) != self.num_classes:
            raise ValueError(f"the loss needs all {self.num_classes} classes, and this shard holds {self.shard}")
        logits, column = self.logits(embedding_BD, label_B)
        total = functional.cross_entropy(logits, column, ignore_index=-1, reduction="sum")
        return total / (column >= 0).sum().clamp(min=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.rows is not None:  # the leaf is moved with the centres, to where the optimizer keeps its state
            self.rows.clear()
        return self

    def _is_here(self, label: Tensor) -> Tensor:
        return (label >= self.shard.start) & (label < self.shard.stop)


def sample_classes(num_classes: int, rate: float, present: Tensor) -> Tensor:
    """Classes that take part in a step: those present, filled up with others, each set of which is equally likely.

    Classes are drawn with replacement, as many as are missing, until none is. No class is preferred in this, so every
    set of the final size comes with the same probability. Where more than half take part, those left out are drawn.

    Args:
        num_classes: C, of which ceil(rate C) take part, or as many as are present.
        rate: in (0, 1].
        present: any number of classes, in any order, also several times.

    Returns:
        Sorted indices (S,), on the device of `present`.
    """
    present = torch.unique(present)
    size = max(math.ceil(rate * num_classes), len(present))
    leave_out = 2 * size > num_classes
    wanted = num_classes - size if leave_out else size - len(present)
    drawn = torch.zeros(num_classes, dtype=torch.bool, device=present.device)
    while (missing := wanted - int(drawn.count_nonzero())) > 0:
        drawn[torch.randint(num_classes, (missing,), device=present.device)] = True
        drawn[present] = False
    drawn = ~drawn if leave_out else drawn.index_fill_(0, present, True)
    return drawn.nonzero()[:, 0]
