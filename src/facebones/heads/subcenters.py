"""Sub-center ArcFace: several centres a class, of which the nearest counts, so that wrong labels find one of their own.

Source: ECCV 2020 (paper 123570715). The centres of a class are one row of K D numbers: so they are shared, saved and
stepped like the one centre of another head.
"""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from facebones.heads.cosines import cosines
from facebones.heads.margins import combined_margin
from facebones.heads.partial_fc import OptionsHead
from facebones.heads.registry import SubcenterArcFaceOptions


class SubcenterArcFace(OptionsHead):
    """Softmax over the largest cosine of each class's centres, with the margin of ArcFace.

    Args:
        options: of the head.
        num_classes: C, the number of classes in all.
        embedding_size: D.
        shard: the classes whose centres are held here; None: all.
    """

    def __init__(
        self, options: SubcenterArcFaceOptions, num_classes: int, embedding_size: int, *, shard: range | None = None
    ) -> None:
        super().__init__(options, num_classes, options.subcenters * embedding_size, shard=shard)
        self.subcenters = options.subcenters
        self.arcface = asdict(options.combined())
        del self.arcface["sample_rate"]

    def cosines(self, direction_BD: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """The largest cosine (B, S) of each class, and the columns."""
        with torch.autocast(direction_BD.device.type, enabled=False):
            each = cosines(direction_BD, self.centres.view(-1, direction_BD.shape[1]))
            return each.view(len(each), -1, self.subcenters).max(dim=2).values, self._columns(label_B)

    def margined_logits(
        self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]
    ) -> Tensor:
        """The logits of ArcFace."""
        return combined_margin(cosine_BC, column_B, **self.arcface)
