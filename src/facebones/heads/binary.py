"""Heads without a softmax: each class answers yes or no for itself, and the loss is the sum of all answers.

Sources: unified cross-entropy, UniFace, ICCV 2023; SphereFace2, arXiv 2108.01513. Constants are those of the authors'
code.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.heads.margins import cosface
from facebones.heads.partial_fc import OptionsHead, target_values
from facebones.heads.registry import HeadOptions, SphereFace2Options, UnifiedCrossEntropyOptions


class BinaryHead(OptionsHead):
    """Sums softplus(-logit) of the true class and softplus(logit) of the others, each with a weight.

    Args:
        options: of the head.
        num_classes: C, the number of classes in all.
        embedding_size: D.
        shard: the classes whose centres are held here; None: all.
        own: weight of the true class.
        other: weight of each other class.
        bias: what the learned bias begins with.
    """

    def __init__(
        self,
        options: HeadOptions,
        num_classes: int,
        embedding_size: int,
        *,
        shard: range | None,
        own: float,
        other: float,
        bias: float,
    ) -> None:
        super().__init__(options, num_classes, embedding_size, shard=shard)
        self.own, self.other = own, other
        self.bias = nn.Parameter(torch.tensor([bias]))

    def terms(self, logits_BS: Tensor, column_B: Tensor) -> Tensor:
        """The weighted sum (B,) over the classes of this shard."""
        column_B1 = column_B.clamp(min=0)[:, None]
        if not logits_BS.shape[1]:
            return logits_BS.sum(dim=1)
        target_B1 = logits_BS.gather(1, column_B1)
        own_B1 = torch.where(column_B[:, None] >= 0, -target_B1, target_B1)
        # softplus; torch's own is an approximation above 20.
        answers = -functional.logsigmoid(-logits_BS.scatter(1, column_B1, own_B1))
        return self.other * answers.sum(dim=1) + (self.own - self.other) * target_values(answers, column_B)

    def own_part(self, logits_BS: Tensor, column_B: Tensor) -> Tensor:
        """The weighted sum over the rows whose class is on this shard."""
        own_B = -functional.logsigmoid(target_values(logits_BS, column_B))
        return self.own * torch.where(column_B >= 0, own_B, 0).sum()


class UnifiedCrossEntropy(BinaryHead):
    """One learned threshold between own cosines, less a margin, and other cosines.

    The authors bound the arguments of softplus to the scale, which takes the gradient from the hardest images; here
    they are not bounded.
    """

    options: UnifiedCrossEntropyOptions

    def __init__(
        self, options: UnifiedCrossEntropyOptions, num_classes: int, embedding_size: int, *, shard: range | None = None
    ) -> None:
        bias = math.log(10 * options.sample_rate * num_classes)
        weights = {"own": 1.0, "other": options.negatives, "bias": bias}
        super().__init__(options, num_classes, embedding_size, shard=shard, **weights)

    def margined_logits(
        self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]
    ) -> Tensor:
        """The scaled cosine, less the margin for the true class, less the bias."""
        return cosface(cosine_BC, column_B, scale=self.options.scale, margin=self.options.margin) - self.bias


class SphereFace2(BinaryHead):
    """A binary classification for each class on a similarity that is flat where the classes are easy to distinguish.

    The similarity is applied without being differentiated, as in the authors' code. They also normalise the stored
    centres in every step; here they are normalised where they are used.
    """

    options: SphereFace2Options

    def __init__(
        self, options: SphereFace2Options, num_classes: int, embedding_size: int, *, shard: range | None = None
    ) -> None:
        factor = options.loss_weight / options.scale
        weights = {"own": factor * options.alpha, "other": factor * (1 - options.alpha)}
        super().__init__(
            options, num_classes, embedding_size, shard=shard, bias=balanced_bias(options, num_classes), **weights
        )

    def margined_logits(
        self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]
    ) -> Tensor:
        """The scaled similarity, less the margin for the true class and plus it for the others, plus the bias."""
        options = self.options
        with torch.no_grad():
            similarity = 2 * ((cosine_BC + 1) / 2).pow(options.t) - 1
            column_B1 = column_B.clamp(min=0)[:, None]
            others = similarity + options.margin
            own_B1 = torch.where(column_B[:, None] >= 0, similarity - options.margin, others).gather(1, column_B1)
            value = others.scatter_(1, column_B1, own_B1)
        return options.scale * (value + (cosine_BC - cosine_BC.detach())) + self.bias


def balanced_bias(options: SphereFace2Options, num_classes: int) -> float:
    """The bias at which, for orthogonal embeddings, own and other classes pull alike."""
    z = options.alpha / ((1 - options.alpha) * max(1, num_classes - 1))
    flat = 2 * math.pow(0.5, options.t) - 1
    own, other = options.scale * (flat - options.margin), options.scale * (flat + options.margin)
    root = math.sqrt((1 - z) ** 2 + 4 * z * math.exp(own - other))
    return math.log(2 * z) - other - math.log(1 - z + root)
