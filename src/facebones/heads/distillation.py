"""Losses that draw a student's embeddings to those of a teacher, which were computed before the training.

Some compare embeddings alone and need no label; the others are softmaxes over class centres in the teacher's space.
Where the sizes differ, a learned linear map takes the student's embeddings there; it is no part of the backbone, so no
export holds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.heads.margins import combined_margin
from facebones.heads.partial_fc import INITIAL_DEVIATION, Head, HeadOutput, directions
from facebones.heads.sharded import gather_embeddings
from facebones.system.distributed import World

LEAST_ALPHA = 1e-6


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What a loss may know of the teacher.

    Attributes:
        size: D of its embeddings.
        num_classes: C of the training set.
        class_means: computes the means (C, D) of its unit embeddings of each class.
    """

    size: int
    num_classes: int
    class_means: Callable[[], Tensor]


class TeacherLoss(nn.Module):
    """Base of all losses between embeddings of a student and of its teacher.

    Attributes:
        same_space: the loss compares vectors of one size; else any two sizes will do.
        needs_labels: the loss reads the classes of the rows.
    """

    same_space = True
    needs_labels = False

    @classmethod
    def build(cls, teacher: Teacher, options: Mapping[str, Any]) -> Self:
        """The loss for a teacher.

        Args:
            teacher: what may be known of it.
            options: scale, margin and kind, of the losses that have them.
        """
        return cls()

    def forward(self, student_BD: Tensor, teacher_BD: Tensor, label_B: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar.

        Args:
            student_BD: not normalised, float32 or float64.
            teacher_BD: likewise, without a gradient.
            label_B: class of each row, or -1.
        """
        raise NotImplementedError


class EmbeddingCosine(TeacherLoss):
    """1 - cos(student, teacher)."""

    def forward(self, student_BD: Tensor, teacher_BD: Tensor, label_B: Tensor) -> Tensor:
        """See `TeacherLoss`."""
        return 1 - (directions(student_BD)[0] * directions(teacher_BD)[0]).sum(dim=1).mean()


class EmbeddingMSE(TeacherLoss):
    """Mean square of the differences of all numbers, which teaches the norm, too."""

    def forward(self, student_BD: Tensor, teacher_BD: Tensor, label_B: Tensor) -> Tensor:
        """See `TeacherLoss`."""
        return functional.mse_loss(student_BD, teacher_BD)


class Relational(TeacherLoss):
    """Mean square of the differences between the cosines of all pairs in a batch (after arXiv 1904.05068)."""

    same_space = False

    def forward(self, student_BD: Tensor, teacher_BD: Tensor, label_B: Tensor) -> Tensor:
        """See `TeacherLoss`."""
        student_BD, teacher_BD = directions(student_BD)[0], directions(teacher_BD)[0]
        difference_BB = student_BD @ student_BD.T - teacher_BD @ teacher_BD.T
        pairs = len(student_BD) * (len(student_BD) - 1)
        # A row's cosine to itself is 1 on both sides, up to rounding.
        return difference_BB.fill_diagonal_(0).square().sum() / max(1, pairs)


class FrozenCentres(TeacherLoss):
    """Softmax with a margin over the means of the teacher's embeddings of each class, which stay as they are.

    Args:
        centres_CD: the means.
        scale: factor on all cosines.
        margin: added to the angle, or subtracted from the cosine.
        kind: "arc" or "cos", for these two.

    Attributes:
        moves: whether the centres move, and belong to the checkpoint; else they can be computed again.
    """

    needs_labels = True
    moves = False

    def __init__(self, centres_CD: Tensor, scale: float, margin: float, kind: str) -> None:
        super().__init__()
        self.register_buffer("centres", centres_CD, persistent=self.moves)
        m2, m3 = (margin, 0.0) if kind == "arc" else (0.0, margin)
        self.margin = partial(combined_margin, scale=scale, m2=m2, m3=m3, gradient="exact")

    @classmethod
    def build(cls, teacher: Teacher, options: Mapping[str, Any]) -> Self:
        """See `TeacherLoss`."""
        return cls(teacher.class_means(), **options)

    def forward(self, student_BD: Tensor, teacher_BD: Tensor, label_B: Tensor) -> Tensor:
        """See `TeacherLoss`; rows without a class add nothing."""
        logits_BC = self.logits(student_BD, label_B)
        total = functional.cross_entropy(logits_BC, label_B, ignore_index=-1, reduction="sum")
        return total / (label_B >= 0).sum().clamp(min=1)

    def logits(self, student_BD: Tensor, label_B: Tensor) -> Tensor:
        """Margined logits (B, C)."""
        centres_CD = directions(self.get_buffer("centres"))[0]
        return self.margin(directions(student_BD)[0] @ centres_CD.T, label_B)


class AdaDistill(FrozenCentres):
    """The same over centres that follow the teacher, the more closely the less a student's row agrees (2407.01332).

    In each step, the centre w of a class moves to alpha w + (1 - alpha) v, where v is the teacher's direction and alpha
    = cos(student, v) max(0, cos(w, v)), before the loss reads it. Several rows of a class count alike: the centre moves
    to the mean of what each of them asks for. (In the authors' code the last row of a class wins.) Rows that are not
    finite, as fp16 may give, move nothing.
    """

    moves = True

    @classmethod
    def build(cls, teacher: Teacher, options: Mapping[str, Any]) -> Self:
        """See `TeacherLoss`; the centres begin at random."""
        centres_CD = torch.empty(teacher.num_classes, teacher.size).normal_(std=INITIAL_DEVIATION)
        return cls(centres_CD, **options)

    def forward(self, student_BD: Tensor, teacher_BD: Tensor, label_B: Tensor) -> Tensor:
        """See `TeacherLoss`; in training, the centres move first."""
        if self.training:
            self.move(student_BD.detach(), teacher_BD, label_B)
        return super().forward(student_BD, teacher_BD, label_B)

    @torch.no_grad()
    def move(self, student_BD: Tensor, teacher_BD: Tensor, label_B: Tensor) -> None:
        """Move the centres of the classes that are present."""
        (student_BD, student_norm_B), (teacher_BD, teacher_norm_B) = directions(student_BD), directions(teacher_BD)
        counts_B = (label_B >= 0) & student_norm_B.isfinite() & teacher_norm_B.isfinite()
        student_BD, teacher_BD, label_B = student_BD[counts_B], teacher_BD[counts_B], label_B[counts_B]
        stored_CD = self.get_buffer("centres")
        centre_BD = stored_CD[label_B]
        agreement_B1 = (directions(centre_BD)[0] * teacher_BD).sum(dim=1, keepdim=True).clamp(LEAST_ALPHA, 1)
        alpha_B1 = (student_BD * teacher_BD).sum(dim=1, keepdim=True).mul(agreement_B1).clamp(LEAST_ALPHA, 1)
        wanted_BD = alpha_B1 * centre_BD + (1 - alpha_B1) * teacher_BD
        present, row_B = torch.unique(label_B, return_inverse=True)
        # One matrix product instead of adding rows in place, whose order is not fixed on a GPU.
        share_SB = functional.one_hot(row_B, len(present)).T.to(wanted_BD)
        stored_CD[present] = (share_SB / share_SB.sum(dim=1, keepdim=True)) @ wanted_BD


# By name of `distillation.loss`.
TEACHER_LOSSES: dict[str, type[TeacherLoss]] = {
    "embedding_cosine": EmbeddingCosine,
    "embedding_mse": EmbeddingMSE,
    "relational": Relational,
    "frozen_centres": FrozenCentres,
    "adadistill": AdaDistill,
}


class Distillation(nn.Module):
    """A loss between student and teacher with its weight, on the whole batch of all processes.

    Every process computes the loss of all rows, and gets the gradient of its own rows; the map between the sizes has
    the same gradient in all of them.

    Args:
        loss: see `TEACHER_LOSSES`.
        student_size: D of the backbone.
        teacher_size: D of the teacher.
        weight: factor on the loss.
        world: the processes that share the batch.
        batch_size: rows of a batch, of all processes.

    Attributes:
        projection: the map from the student's size to the teacher's; None where no map is needed.

    >>> from facebones.system.distributed import ALONE
    >>> distillation = Distillation(EmbeddingCosine(), 4, 8, weight=1.0, world=ALONE, batch_size=2)
    >>> distillation(torch.ones(2, 4), torch.ones(2, 8), torch.tensor([0, 1])).loss.shape
    torch.Size([])
    """

    def __init__(
        self, loss: TeacherLoss, student_size: int, teacher_size: int, *, weight: float, world: World, batch_size: int
    ) -> None:
        super().__init__()
        self.loss, self.weight, self.world, self.batch_size = loss, weight, world, batch_size
        self.projection: nn.Linear | None = None
        if loss.same_space and student_size != teacher_size:
            self.projection = nn.Linear(student_size, teacher_size, bias=False)
            nn.init.normal_(self.projection.weight, std=student_size**-0.5)

    def forward(self, embedding_BD: Tensor, teacher_BD: Tensor, label_B: Tensor) -> HeadOutput:
        """The weighted loss, and for the log the loss without its weight and the mean cosine of the two.

        Args:
            embedding_BD: the student's, of the own rows, not normalised.
            teacher_BD: of the same images.
            label_B: their classes, or -1.
        """
        student_BD = gather_embeddings(embedding_BD, self.world, self.batch_size)
        teacher_BD = self.world.gather_rows(teacher_BD, self.batch_size)
        label_B = self.world.gather_rows(label_B, self.batch_size)
        with torch.autocast(embedding_BD.device.type, enabled=False):
            if self.projection is not None:
                student_BD = self.projection(student_BD)
            loss = self.loss(student_BD, teacher_BD, label_B)
        metrics = {"distillation_loss": loss.detach()}
        if self.loss.same_space:
            with torch.no_grad():
                metrics["teacher_cosine"] = (directions(student_BD)[0] * directions(teacher_BD)[0]).sum(dim=1).mean()
        return HeadOutput(self.weight * loss, metrics)


class NoHead(Head):
    """The head of a training whose teacher is all: it has no loss."""

    def forward(self, embedding_BD: Tensor, label_B: Tensor) -> HeadOutput:
        """Zero."""
        return HeadOutput(torch.zeros((), device=embedding_BD.device))
