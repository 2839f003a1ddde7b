"""A head of your own: the margin grows with the norm of an embedding, compared with the mean norm so far.

    facebones train demo --data faces --output runs/norm --import examples/norm_head.py --head.name norm_margin

A recipe can name it too: `import: norm_head.py` and `head: {name: norm_margin, margin: 0.3}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from facebones.heads import HeadOptions, register_head
from facebones.heads.partial_fc import PartialFC
from facebones.strict_yaml import setting


@dataclass(frozen=True, kw_only=True)
class NormOptions(HeadOptions):
    """Beside the options of every head: `scale` and `sample_rate`."""

    margin: float = setting(0.3, "subtracted from the cosine at the mean norm", minimum=0)
    decay: float = setting(0.9, "decay of the mean norm", minimum=0, maximum=1)


def norm_margin(
    cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor, state: Mapping[str, Tensor], *, scale: float, margin: float
) -> Tensor:
    """Logits (B, C): scale (cos - margin norm / mean norm) for the true class, scale cos for the others."""
    column_B1 = column_B.clamp(min=0)[:, None]
    margin_B = margin * (norm_B.detach() / state["mean_norm"]).clamp(max=2)
    margin_B1 = torch.where(column_B >= 0, margin_B, 0)[:, None]  # -1: the class is on another shard
    return scale * cosine_BC.scatter(1, column_B1, cosine_BC.gather(1, column_B1) - margin_B1)


@register_head("norm_margin", NormOptions)
class NormHead(PartialFC):
    """Softmax whose margin follows the norm."""

    def __init__(self, options: NormOptions, num_classes: int, embedding_size: int, shard: range | None = None) -> None:
        margin = partial(norm_margin, scale=options.scale, margin=options.margin)
        super().__init__(num_classes, embedding_size, margin, sample_rate=options.sample_rate, shard=shard)
        self.decay = options.decay
        self.register_buffer("mean_norm", torch.tensor(20.0))  # a buffer is saved in the checkpoint

    def update_state(self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor) -> None:
        """Move the mean norm towards that of the batch; fp16 may give norms that are not finite."""
        self.mean_norm.lerp_(torch.where(norm_B.isfinite(), norm_B, self.mean_norm).mean(), 1 - self.decay)

    def metrics(self, norm_B: Tensor) -> Mapping[str, Tensor]:
        """Logged in metrics.jsonl under "head"."""
        return {"mean_norm": norm_B.mean()}
