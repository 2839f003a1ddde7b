"""A head whose class centres are shared among the processes of a training, so that none holds all of them.

Each process holds a range of the classes (with canonical shards, several ranges). In a step, all get the embeddings
and labels of the whole batch, and each computes the logits of its classes. The cross-entropy over all classes needs
three numbers of a row from the others: the largest logit, the sum of exponentials and the logit of the true class. The
gradients of the embeddings are summed over the shards, and each process gets those of its own rows. Source: the
distributed softmax of ArcFace, arXiv 1801.07698, section 3; sampled centres: Partial FC, arXiv 2203.15565.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facebones.heads.partial_fc import (
    Head,
    HeadOutput,
    PartialFC,
    balance_metrics,
    directions,
    sample_classes,
    target_values,
)
from facebones.heads.registry import create_head
from facebones.system.distributed import World

REPLICATED = 0


def create_shared_head(
    name: str, options: Any, num_classes: int, embedding_size: int, *, world: World, batch_size: int
) -> Head:
    """Build a head for the processes of a training.

    Softmax heads share their centres among the processes; a head with a loss of its own (`Head.forward` overridden) is
    computed as a whole by each process. Every process draws the same initial centres as one process alone.

    Args:
        name: a registered name.
        options: an instance of the head's options.
        num_classes: C, the number of classes in all.
        embedding_size: D.
        world: the processes.
        batch_size: rows of a forward pass, of all processes.
    """
    if world.alone:
        return create_head(name, options, num_classes, embedding_size)
    state = torch.get_rng_state()
    heads: list[PartialFC] = []
    for shard in world.class_ranges(num_classes):
        torch.set_rng_state(state)  # each head draws the numbers of the whole matrix and keeps those of its rows
        head = create_head(name, options, num_classes, embedding_size, shard=shard)
        if not isinstance(head, PartialFC) or type(head).forward is not PartialFC.forward:
            torch.set_rng_state(state)
            return ReplicatedHead(create_head(name, options, num_classes, embedding_size), world, batch_size)
        heads.append(head)
    return ShardedHead(heads, world, batch_size)


class _SharedHead(Head):
    """What both kinds do: gather the labels of a step's batches once, and hand them out batch by batch."""

    def __init__(self, world: World, batch_size: int) -> None:
        super().__init__()
        self.world, self.batch_size = world, batch_size
        self._labels: list[Tensor] = []

    def gather_labels(self, label: Tensor) -> list[Tensor]:
        """Labels (B,) of all processes for each batch, from the labels of the own rows, batch after batch."""
        own = label.view(-1, len(self.world.rows_of(self.batch_size)))
        return list(self.world.gather_rows(own.T, self.batch_size).T.contiguous())

    def draw_sample(self, label: Tensor) -> None:
        """Prepare a step: gather the labels of all its batches."""
        self._labels = self.gather_labels(label)

    def next_labels(self, label_B: Tensor) -> Tensor:
        """The labels of all processes for the batch that this process has these labels of."""
        labels = self._labels.pop(0) if self._labels else self.gather_labels(label_B.cpu())[0]
        return labels.to(label_B.device)


class ReplicatedHead(_SharedHead):
    """A head with a loss of its own, computed by every process on the whole batch; nothing of it is shared.

    Args:
        head: the whole head.
        world: the processes.
        batch_size: rows of all processes.
    """

    def __init__(self, head: Head, world: World, batch_size: int) -> None:
        super().__init__(world, batch_size)
        self.head = head
        self.norm_is_quality = head.norm_is_quality

    def draw_sample(self, label: Tensor) -> None:
        """Gather the labels; the head itself may draw."""
        super().draw_sample(label)
        self.head.draw_sample(torch.cat(self._labels))

    def forward(self, embedding_BD: Tensor, label_B: Tensor) -> HeadOutput:
        """The loss of the whole batch, the same in each process."""
        gathered_BD = gather_embeddings(embedding_BD, self.world, self.batch_size)
        output: HeadOutput = self.head(gathered_BD, self.next_labels(label_B))
        return output


class ShardedHead(_SharedHead):
    """Softmax over class centres that the processes share.

    Args:
        heads: for each own shard the head on its classes.
        world: the processes.
        batch_size: rows of all processes.
    """

    def __init__(self, heads: Sequence[PartialFC], world: World, batch_size: int) -> None:
        super().__init__(world, batch_size)
        self.shards = nn.ModuleList(heads)
        self.num_classes = heads[0].num_classes
        self.norm_is_quality = heads[0].norm_is_quality

    @property
    def heads(self) -> list[PartialFC]:
        """The head of each own shard."""
        return [head for head in self.shards if isinstance(head, PartialFC)]

    def sharded_parameters(self) -> list[list[nn.Parameter]]:
        """The centres of each own shard, or those of the step's sample."""
        return [[head.centres if head.sampled is None else head.sampled.leaf] for head in self.heads]

    def whole_parameters(self) -> list[nn.Parameter]:
        """Parameters that every shard has a copy of, such as a learned bias: those of the first own shard."""
        return [copies[0] for copies in self._copied_parameters()]

    def complete_gradients(self) -> None:
        """Sum the gradients of copied parameters over all shards; a shard without classes gets a gradient, too."""
        for copies in self._copied_parameters():
            if copies[0].requires_grad:
                parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in copies]
                summed = self.world.total(parts)
                for one in copies:
                    one.grad = summed.clone()
        for head in self.heads:
            if not len(head.shard) and head.sampled is None:
                head.centres.grad = torch.zeros_like(head.centres)

    def _copied_parameters(self) -> list[list[nn.Parameter]]:
        names = [name for name, _ in self.heads[0].named_parameters() if name != "centres"]
        return [[head.get_parameter(name) for head in self.heads] for name in names]

    def draw_sample(self, label: Tensor) -> None:
        """Gather the labels of the step, and draw its centres over all classes, as one process does."""
        super().draw_sample(label)
        first = self.heads[0]
        if first.sampled is None:
            return
        present = torch.cat(self._labels).to(first.centres.device)
        drawn = sample_classes(self.num_classes, first.sample_rate, present[present >= 0])
        for head in self.heads:
            if head.sampled is not None:
                here = (drawn >= head.shard.start) & (drawn < head.shard.stop)
                head.sampled.draw(drawn[here] - head.shard.start)

    def forward(self, embedding_BD: Tensor, label_B: Tensor) -> HeadOutput:
        """Mean cross-entropy of the rows with a class, of all processes; the same number in each.

        Args:
            embedding_BD: of the own rows.
            label_B: of the own rows.
        """
        label = self.next_labels(label_B)
        copies = _GatherRows.apply(embedding_BD, self.world, self.batch_size, len(self.heads))  # type: ignore[no-untyped-call]
        pairs = [directions(copy) for copy in copies]
        norm_B = pairs[0][1]
        for head in self.heads:
            head.begin_batch(len(label))
        cosines = [
            head.cosines(direction_BD, label) if len(head.shard) else (direction_BD[:, :0], torch.full_like(label, -1))
            for head, (direction_BD, _) in zip(self.heads, pairs, strict=True)
        ]
        columns = [column_B for _, column_B in cosines]
        has_class_B = label >= 0
        target_B1 = self._prepare_margin([cosine_BS for cosine_BS, _ in cosines], columns, has_class_B, norm_B)
        logits = [
            head.margined(cosine_BS, column_B, own_norm_B, target_B1) if cosine_BS.shape[1] else cosine_BS
            for head, (cosine_BS, column_B), (_, own_norm_B) in zip(self.heads, cosines, pairs, strict=True)
        ]
        loss = self._loss(logits, columns, has_class_B)
        balance = self._balance(loss, logits, columns, has_class_B)
        if (added := self.heads[0].regulariser(norm_B, has_class_B)) is not None:
            # The gradients of all shards with respect to the rows are summed: the first shard has that of this part.
            loss = loss + (added if self.world.own_shards.start == 0 else added.detach())
        with torch.no_grad():
            return HeadOutput(loss, {**self.heads[0].metrics(norm_B), **balance})

    @torch.no_grad()
    def _balance(
        self, loss: Tensor, logits: list[Tensor], columns: list[Tensor], has_class_B: Tensor
    ) -> dict[str, Tensor]:
        """The parts of a loss that is a sum over classes, of all shards; none of a softmax."""
        own = [head.own_part(one, column) for head, one, column in zip(self.heads, logits, columns, strict=True)]
        parts = [one for one in own if one is not None]
        return balance_metrics(loss, self.world.total(parts) / has_class_B.sum().clamp(min=1)) if parts else {}

    def _loss(self, logits: list[Tensor], columns: list[Tensor], has_class_B: Tensor) -> Tensor:
        """Mean over the rows with a class: of the cross-entropy over all shards, or of the sum of their terms."""
        terms = [head.terms(one, column) for head, one, column in zip(self.heads, logits, columns, strict=True)]
        parts = [torch.where(has_class_B, term_B, 0).sum() for term_B in terms if term_B is not None]
        if not parts:
            return _CrossEntropy.apply(self.world, has_class_B, columns, *logits)  # type: ignore[no-untyped-call,no-any-return]
        return _Total.apply(self.world, *parts) / has_class_B.sum().clamp(min=1)  # type: ignore[no-untyped-call,no-any-return]

    @torch.no_grad()
    def _prepare_margin(
        self, cosines: list[Tensor], columns: list[Tensor], has_class_B: Tensor, norm_B: Tensor
    ) -> Tensor | None:
        """Update the buffers of all shards alike; the cosine (B, 1) of each true class, if the margin reads it."""
        first = self.heads[0]
        updates = self.training and type(first).update_state is not PartialFC.update_state
        if not (updates or first.needs_target):
            return None
        target_B = self.world.total([target_values(one, column) for one, column in zip(cosines, columns, strict=True)])
        if updates:
            column_B = torch.where(has_class_B, 0, -1)
            for head in self.heads:
                head.update_state(target_B[:, None], column_B, norm_B)
        return torch.where(has_class_B, target_B, math.nan)[:, None] if first.needs_target else None


def gather_embeddings(embedding_BD: Tensor, world: World, batch_size: int) -> Tensor:
    """The embeddings of all processes in float32, for a loss that each of them computes as a whole."""
    if world.alone:
        return embedding_BD if embedding_BD.dtype == torch.float64 else embedding_BD.float()
    (gathered_BD,) = _GatherRows.apply(embedding_BD, world, batch_size, REPLICATED)  # type: ignore[no-untyped-call]
    return gathered_BD  # type: ignore[no-any-return]


class _GatherRows(torch.autograd.Function):
    """The rows of all processes in float32, in a copy for each own shard; backward sums what the shards answer.

    The rows travel in the type that the backbone computes in; their gradients are summed in float32. With `REPLICATED`
    for the number of copies there is one, and each process has the whole gradient already.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, world: World, total: int, copies: int) -> tuple[Tensor, ...]:
        ctx.world, ctx.kind, ctx.replicated = world, own.dtype, copies == REPLICATED
        gathered = world.gather_rows(own, total).float()
        if gathered is own:
            gathered = own.clone()
        return (gathered, *(gathered.clone() for _ in range(copies - 1)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.replicated:
            rows = ctx.world.rows_of(len(gradients[0]))
            own = gradients[0][rows.start : rows.stop]
        else:
            own = ctx.world.sum_rows([gradient.contiguous() for gradient in gradients])
        return own.to(ctx.kind), None, None, None


class _Total(torch.autograd.Function):
    """The sum of a number of each shard, the same in each process; each gets its gradient."""

    @staticmethod
    def forward(ctx: Any, world: World, *parts: Tensor) -> Tensor:
        ctx.count = len(parts)
        return world.total(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *[gradient] * ctx.count


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of rows whose logits are cut into shards; a row without a class adds nothing."""

    @staticmethod
    def forward(ctx: Any, world: World, has_class_B: Tensor, columns: list[Tensor], *logits: Tensor) -> Tensor:
        largest_B = world.largest([_row_maxima(one) for one in logits])
        exponentials = [(one - largest_B[:, None]).exp_() for one in logits]
        parts = [
            torch.stack([exponential.sum(dim=1), target_values(one, column)])
            for exponential, one, column in zip(exponentials, logits, columns, strict=True)
        ]
        sum_B, target_B = world.total(parts)
        count = has_class_B.sum().clamp(min=1)
        ctx.save_for_backward(sum_B, has_class_B, count, *columns, *exponentials)
        loss_B = torch.where(has_class_B, sum_B.log() + largest_B - target_B, 0)
        return loss_B.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sum_B, has_class_B, count, *rest = ctx.saved_tensors
        columns, exponentials = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        factor_B1 = (has_class_B * (gradient / count))[:, None]
        found = []
        for column_B, exponential_BS in zip(columns, exponentials, strict=True):
            gradient_BS = exponential_BS / sum_B[:, None]
            if gradient_BS.shape[1]:
                is_here_B1 = (column_B >= 0).to(gradient_BS.dtype)[:, None]
                gradient_BS.scatter_add_(1, column_B.clamp(min=0)[:, None], -is_here_B1)
            found.append(gradient_BS.mul_(factor_B1))
        return None, None, None, *found


def _row_maxima(logits_BS: Tensor) -> Tensor:
    return logits_BS.amax(dim=1) if logits_BS.shape[1] else logits_BS.new_full((len(logits_BS),), -math.inf)
