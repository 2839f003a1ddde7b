"""The classification head: one centre a class, of which a random sample takes part in each step.

Source: Partial FC, arXiv 2203.15565. A head holds one shard of the classes; in a single process the shard is all of
them. At a sample rate below 1, no tensor of a step has the size of all centres, except one byte a class while the
sample is drawn.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.heads.cosines import cosines, sampled_cosines
from facebones.heads.registry import HeadOptions
from facebones.heads.sampled_centres import SampledCentres

Margin = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
INITIAL_DEVIATION = 0.01
DRAWN_ROWS = 2048  # a multiple of 16
SMALLEST_NORM = 1e-12  # as torch's `normalize` has it


class HeadOutput(NamedTuple):
    """What a head returns.

    Attributes:
        loss: scalar, to be minimised.
        metrics: scalars for the training log, such as the mean norm; they stay on the device.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = MappingProxyType({})


class Head(nn.Module):
    """Base of all heads: embeddings (B, D), float32 and not normalised, and labels (B,) to a loss.

    What a head learns is its parameters; what it keeps from step to step, such as moving averages, is its buffers. Both
    are in the checkpoint.

    Attributes:
        sampled: the centres of a step, where the head trains a sample of them only.
        norm_is_quality: the head takes the norm of an embedding for the quality of its image.
    """

    sampled: SampledCentres | None = None
    norm_is_quality = False

    def draw_sample(self, label: Tensor) -> None:
        """Prepare a step, given the labels of all its batches; most heads have nothing to do."""

    def sharded_parameters(self) -> list[list[nn.Parameter]]:
        """For each own shard, what is trained of it and is nowhere else; none where every process has all."""
        return []

    def whole_parameters(self) -> list[nn.Parameter]:
        """The parameters that every process has, each once."""
        return list(self.parameters())

    def complete_gradients(self) -> None:
        """Sum what the gradients of the own shards lack, after the last backward of a step."""

    def forward(self, embedding_BD: Tensor, label_B: Tensor) -> HeadOutput:
        """The loss of a batch, and metrics for the log; a label of -1 has no class here."""
        raise NotImplementedError


class PartialFC(Head):
    """Softmax over margined cosines to class centres, of which a random sample of the negatives takes part.

    For a margin that needs norms or state, derive a class: register buffers, write them in `update_state`, and read
    both in the margin. For a loss that is a sum over classes instead of a softmax, override `terms`.

    Args:
        num_classes: C, the number of classes in all.
        embedding_size: D.
        margin: (cosine_BC, column_B, norm_B, state) -> logits_BC, as in `facebones.heads.margins`.
        sample_rate: share of this shard's centres that takes part in a step; the classes present in its batches always
            do. 1 is the plain softmax. Below 1, call `draw_sample` first in each step; the optimizer then trains
            `sampled.leaf` (no parameter of this module) instead of `centres`.
        shard: the classes whose centres are held here; None: all.

    Attributes:
        needs_target: the margin reads `state["target_cosine"]` (B, 1), the cosine of each row's true class, on every
            shard; NaN for a row without a class.

    >>> from facebones.heads.margins import arcface
    >>> head = PartialFC(10, 4, arcface)
    >>> head(torch.ones(2, 4), torch.tensor([3, 7])).loss.shape
    torch.Size([])
    """

    needs_target = False

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
        _draw_centres(self.centres, self.shard, num_classes)
        self.sampled = SampledCentres(self.centres) if sample_rate < 1 else None

    def draw_sample(self, label: Tensor) -> None:
        """Draw the centres of a step from torch's global generator; at a rate of 1 there is nothing to draw.

        Args:
            label: classes of all batches of the step, counted over all shards, or -1.
        """
        if self.sampled is not None:
            label = label.to(self.centres.device)
            present = label[self._is_here(label)] - self.shard.start
            self.sampled.draw(sample_classes(len(self.shard), self.sample_rate, present))

    def begin_batch(self, rows: int) -> None:
        """Draw what is random in a batch; most heads draw nothing.

        Called once a batch, in training and evaluation, on every shard, also on one without classes. So each of them
        draws the same numbers.

        Args:
            rows: of the batch, of all processes.
        """

    def update_state(self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor) -> None:
        """Update the buffers from a batch, before the margin reads them; called in training, without gradients.

        In fp16, rows may be NaN or infinite; the gradient scaler skips such a step. Leave these rows out, or they stay
        in the buffers.

        Read only the cosine of each row's true class. Where the centres are shared among processes, these are all that
        is passed: `cosine_BC` is (B, 1), and `column_B` is 0, or -1 without a class. All processes get the same values.
        """

    def margin_state(self, target_B1: Tensor | None) -> Mapping[str, Tensor]:
        """What the margin reads beside cosines and norms: the buffers, and the target's cosine if it is needed."""
        target = {} if target_B1 is None else {"target_cosine": target_B1}
        return dict(self.named_buffers()) | target

    def terms(self, logits_BS: Tensor, column_B: Tensor) -> Tensor | None:
        """For a loss that is a sum over classes, what those of this shard add to each row (B,); None: a softmax."""
        return None

    def own_part(self, logits_BS: Tensor, column_B: Tensor) -> Tensor | None:
        """For a loss that is a sum over classes, what the true classes of this shard add to all rows; for the log."""
        return None

    def regulariser(self, norm_B: Tensor, has_class_B: Tensor) -> Tensor | None:
        """What the norms of a batch add to its loss."""
        return None

    def metrics(self, norm_B: Tensor) -> Mapping[str, Tensor]:
        """Scalars of a batch for the training log, here mean and deviation of the norms. Called without gradients.

        They stay on the device. Where the centres are shared, the norms are those of all processes.
        """
        return {"norm": norm_B.mean(), "norm_deviation": norm_B.std(correction=0)}

    def logits(self, embedding_BD: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Margined logits over the centres that take part, and each row's column among them.

        Args:
            embedding_BD: of any norm.
            label_B: classes counted over all shards, or -1.

        Returns:
            logits (B, S) in float32, and columns (B,), -1 where the class is not on this shard.

        Raises:
            ValueError: a class is not in the step's sample.
        """
        return self._logits(*directions(embedding_BD), label_B)

    def forward(self, embedding_BD: Tensor, label_B: Tensor) -> HeadOutput:
        """Mean loss of the rows with a class; rows of label -1 add nothing. Shapes as in `logits`."""
        if len(self.shard) != self.num_classes:
            raise ValueError(f"the loss needs all {self.num_classes} classes, and this shard holds {self.shard}")
        direction_BD, norm_B = directions(embedding_BD)
        logits, column = self._logits(direction_BD, norm_B, label_B)
        has_class_B = column >= 0
        if (term_B := self.terms(logits, column)) is None:
            total = functional.cross_entropy(logits, column, ignore_index=-1, reduction="sum")
        else:
            total = torch.where(has_class_B, term_B, 0).sum()
        count = has_class_B.sum().clamp(min=1)
        loss = total / count
        with torch.no_grad():
            own = self.own_part(logits, column)
            balance = {} if own is None else balance_metrics(loss, own / count)
        if (added := self.regulariser(norm_B, has_class_B)) is not None:
            loss = loss + added
        with torch.no_grad():
            return HeadOutput(loss, {**self.metrics(norm_B), **balance})

    def _logits(self, direction_BD: Tensor, norm_B: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        self.begin_batch(len(label_B))
        cosine_BS, column_B = self.cosines(direction_BD, label_B)
        if self.training:
            with torch.no_grad():
                self.update_state(cosine_BS, column_B, norm_B)
        target_B1 = None
        if self.needs_target:
            target_B = torch.where(column_B >= 0, target_values(cosine_BS.detach(), column_B), math.nan)
            target_B1 = target_B[:, None]
        return self.margined(cosine_BS, column_B, norm_B, target_B1), column_B

    def cosines(self, direction_BD: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines (B, S) of unit vectors to the centres that take part, and the columns of `logits`."""
        column_B = self._columns(label_B)
        # In float32: times 64, half a bfloat16 step is a logit of 0.1.
        with torch.autocast(direction_BD.device.type, enabled=False):
            if self.sampled is None:
                return cosines(direction_BD, self.centres), column_B
            column_B = self.sampled.place(column_B)
            return sampled_cosines(direction_BD, self.sampled.leaf, self.centres, self.sampled.index), column_B

    def margined(self, cosine_BS: Tensor, column_B: Tensor, norm_B: Tensor, target_B1: Tensor | None = None) -> Tensor:
        """The margin on cosines."""
        with torch.autocast(cosine_BS.device.type, enabled=False):
            return self.margin(cosine_BS, column_B, norm_B, self.margin_state(target_B1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.sampled is not None:  # the leaf moves with the centres, to where the optimizer keeps its state
            self.sampled.clear()
        return self

    def _is_here(self, label: Tensor) -> Tensor:
        return (label >= self.shard.start) & (label < self.shard.stop)

    def _columns(self, label_B: Tensor) -> Tensor:
        """The row of each class among the own centres (B,), -1 where it is elsewhere."""
        return torch.where(self._is_here(label_B), label_B - self.shard.start, -1)


class OptionsHead(PartialFC):
    """Base of heads that are built from options and whose margin is a method.

    Args:
        options: of the head.
        num_classes: C, the number of classes in all.
        embedding_size: D.
        shard: the classes whose centres are held here; None: all.
    """

    def __init__(
        self, options: HeadOptions, num_classes: int, embedding_size: int, *, shard: range | None = None
    ) -> None:
        super().__init__(
            num_classes, embedding_size, self.margined_logits, sample_rate=options.sample_rate, shard=shard
        )
        self.options = options

    def margined_logits(
        self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]
    ) -> Tensor:
        """Logits (B, C); a margin as in `facebones.heads.margins`."""
        raise NotImplementedError


def balance_metrics(loss: Tensor, own: Tensor) -> dict[str, Tensor]:
    """The two parts of a mean loss that is a sum over classes."""
    return {"own_class": own, "other_classes": (loss.detach() - own).clamp(min=0)}


def directions(embedding_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, D), bit by bit those of torch's `normalize`, and the norms (B,); both in float32, or float64."""
    with torch.autocast(embedding_BD.device.type, enabled=False):
        embedding_BD = embedding_BD if embedding_BD.dtype == torch.float64 else embedding_BD.float()
        norm_B1 = torch.linalg.vector_norm(embedding_BD, dim=1, keepdim=True)
        return embedding_BD / norm_B1.clamp_min(SMALLEST_NORM), norm_B1[:, 0]


def target_values(values_BS: Tensor, column_B: Tensor) -> Tensor:
    """The value of each row's column (B,); 0 where the class is elsewhere."""
    if not values_BS.shape[1]:
        return values_BS.new_zeros(len(values_BS))
    found_B = values_BS.gather(1, column_B.clamp(min=0)[:, None])[:, 0]
    return torch.where(column_B >= 0, found_B, 0)


def _draw_centres(centres: Tensor, shard: range, num_classes: int) -> None:
    """Fill the rows of a shard with the numbers that they have in a matrix of all classes, drawn by one call.

    Torch's generator draws whole blocks of 16 numbers, so the matrix may be drawn block by block; the blocks of other
    shards are dropped. The generator ends in the state that the whole matrix leaves.
    """
    if len(shard) == num_classes:
        nn.init.normal_(centres, std=INITIAL_DEVIATION)  # (C, D)
        return
    size = centres.shape[1]
    first = 0
    while first < num_classes:
        # The last block takes a short rest with it: its end is drawn as that of the whole matrix is.
        last = num_classes if num_classes - first < 2 * DRAWN_ROWS else first + DRAWN_ROWS
        block = torch.empty(last - first, size).normal_(std=INITIAL_DEVIATION)
        start, stop = max(first, shard.start), min(last, shard.stop)
        if start < stop:
            with torch.no_grad():
                centres[start - shard.start : stop - shard.start] = block[start - first : stop - first]
        first = last


def sample_classes(num_classes: int, rate: float, present: Tensor) -> Tensor:
    """Classes that take part in a step: those present, and more drawn at random, every choice equally likely.

    Classes are drawn with replacement, as many as are missing, until none is missing. This prefers no class, so every
    set of the final size has the same probability. If more than half take part, those left out are drawn instead.

    Args:
        num_classes: C, of which ceil(rate C) take part, or as many as are present.
        rate: in (0, 1].
        present: classes, in any order, possibly repeated.

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
