"""The classification head: one centre a class, of which a sample takes part in each step.

Source: Partial FC, arXiv 2203.15565. A head holds one shard of the classes and knows which; in a single process
the shard is the whole.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

Margin = Callable[[Tensor, Tensor], Tensor]


class PartialFC(nn.Module):
    """Softmax over margined cosines to class centres, of which a random sample of the negatives takes part.

    Args:
        num_classes: C, the number of classes in all.
        embedding_size: D.
        margin: (cosine_BC, label_B) -> logits_BC.
        sample_rate: share of this shard's centres that takes part in a step; the classes present in the batch always
            do. 1 is the plain softmax.
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
        self.centres = nn.Parameter(torch.empty(len(self.shard), embedding_size))  # (C, D)
        nn.init.normal_(self.centres, std=0.01)

    def logits(self, embedding_BD: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Margined logits over the centres that take part, and each row's column among them.

        Args:
            embedding_BD: normalised embeddings.
            label_B: classes counted over all shards, or -1.

        Returns:
            logits (B, S) in float32, and columns (B,), -1 where the class is not on this shard.
        """
        here = (label_B >= self.shard.start) & (label_B < self.shard.stop)
        column_B = torch.where(here, label_B - self.shard.start, -1)
        centres: Tensor = self.centres
        if self.sample_rate < 1:
            sample = self._sample(column_B[here])
            centres = centres[sample]  # (S, D)
            column_B = torch.where(here, torch.searchsorted(sample, column_B.clamp(min=0)), -1)
        with torch.autocast(
            embedding_BD.device.type, enabled=False
        ):  # times 64, half a bfloat16 step is a logit of 0.1
            cosine = functional.linear(embedding_BD.float(), functional.normalize(centres))
            return self.margin(cosine.clamp(-1, 1), column_B), column_B

    def forward(self, embedding_BD: Tensor, label_B: Tensor) -> Tensor:
        """Mean cross-entropy of the rows with a class; rows of label -1 add nothing. Shapes as in `logits`."""
        if len(self.shard) != self.num_classes:
            raise ValueError(f"the loss needs all {self.num_classes} classes, and this shard holds {self.shard}")
        logits, column = self.logits(embedding_BD, label_B)
        total = functional.cross_entropy(logits, column, ignore_index=-1, reduction="sum")
        return total / (column >= 0).sum().clamp(min=1)

    def _sample(self, present: Tensor) -> Tensor:
        """Sorted indices of the centres that take part: those present, filled up with random others."""
        present = torch.unique(present)
        size = max(math.ceil(self.sample_rate * len(self.shard)), len(present))
        draw = torch.rand(len(self.shard), device=present.device)
        draw[present] = 2.0
        return draw.topk(size).indices.sort().values
