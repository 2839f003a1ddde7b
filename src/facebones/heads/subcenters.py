"""Sub-center ArcFace: several centres a class, of which the nearest counts, so that wrong labels find one of their own.

Source: ECCV 2020 (paper 123570715). The centres of a class are one row of K D numbers: so they are shared, saved and
stepped like the one centre of another head.
"""

from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from facebones.heads.cosines import cosines
from facebones.heads.margins import combined_margin
from facebones.heads.partial_fc import PartialFC
from facebones.heads.shipped import SubcenterArcFaceOptions


class SubcenterArcFace(PartialFC):
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
        values = asdict(options.combined())
        values.pop("sample_rate")
        super().__init__(
            num_classes, options.subcenters * embedding_size, partial(combined_margin, **values), shard=shard
        )
        self.subcenters = options.subcenters

    def cosines(self, direction_BD: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """The largest cosine (B, S) of each class, and the columns."""
        column_B = torch.where(self._is_here(label_B), label_B - self.shard.start, -1)
        with torch.autocast(direction_BD.device.type, enabled=False):
            each = cosines(direction_BD, self.centres.view(-1, direction_BD.shape[1]))
            return each.view(len(each), -1, self.subcenters).max(dim=2).values, column_B
