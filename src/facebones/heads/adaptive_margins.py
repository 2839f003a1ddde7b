"""Heads whose margin depends on the image or on the training: its norm, its difficulty, chance.

Each is a softmax over scaled cosines, in which the cosine of the true class is replaced. The replaced value has the
derivatives that the formula has, kept finite where the angle is 0 or pi.

Sources, with the constants of the authors' code: AdaFace, arXiv 2204.00964; MagFace, arXiv 2103.06627; CurricularFace,
arXiv 2004.00288; ElasticFace, arXiv 2109.09416.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from facebones.errors import CheckpointError, ConfigError
from facebones.heads.margins import smallest_sine
from facebones.heads.partial_fc import OptionsHead, target_values
from facebones.heads.registry import AdaFaceOptions, CurricularFaceOptions, ElasticFaceOptions, MagFaceOptions


class MarginedHead(OptionsHead):
    """A softmax in which `margined_target` replaces the cosine of the true class, and `others` those of the others."""

    def margined_target(self, target_B1: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What replaces the cosine (B, 1) of the true class; differentiable."""
        raise NotImplementedError

    def others(self, cosine_BC: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What replaces the cosines of the other classes."""
        return cosine_BC

    def margined_logits(
        self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]
    ) -> Tensor:
        """Logits (B, C) with the replaced cosines."""
        has_class_B1, column_B1 = (column_B >= 0)[:, None], column_B.clamp(min=0)[:, None]
        others = self.others(cosine_BC, state)
        target_B1 = self.margined_target(cosine_BC.gather(1, column_B1), norm_B, state)
        replaced_B1 = torch.where(has_class_B1, target_B1, others.gather(1, column_B1))
        scale = self.options.scale
        return (scale * others).scatter_(1, column_B1, scale * replaced_B1)  # in place: one (B, C) copy less


def turned(target_B1: Tensor, margin: Tensor | float) -> Tensor:
    """cos(angle + margin), differentiable with respect to the cosine of the angle and to the margin."""
    with torch.no_grad():
        angle = target_B1.clamp(-1, 1).arccos()
        sine = (angle + margin).sin()
        slope = sine / angle.sin().clamp(min=smallest_sine(angle.dtype))
        value = (angle + margin).cos()
    result = value + slope * (target_B1 - target_B1.detach())
    if isinstance(margin, Tensor) and margin.requires_grad:
        result = result - sine * (margin - margin.detach())
    return result


class AdaFace(MarginedHead):
    """AdaFace: images of a large norm, which show a face well, get a margin that presses on the hard ones, others less.

    The mean and the deviation of the norms are running averages over the batches of all processes. Norms that are not
    finite, as fp16 may give, are left out: the gradient scaler skips the step, but would not restore the averages.
    """

    norm_is_quality = True
    options: AdaFaceOptions
    LEAST_NORM, MOST_NORM = 1e-3, 100.0
    EDGE = 1e-3  # of cosines and of angles
    mean: Tensor
    deviation: Tensor

    def __init__(
        self, options: AdaFaceOptions, num_classes: int, embedding_size: int, *, shard: range | None = None
    ) -> None:
        super().__init__(options, num_classes, embedding_size, shard=shard)
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def update_state(self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor) -> None:
        """Move mean and deviation towards those of the batch's finite norms; one image alone has no deviation."""
        is_finite_B = norm_B.isfinite()
        count = is_finite_B.sum()
        norm_B = norm_B.clamp(self.LEAST_NORM, self.MOST_NORM)
        mean = torch.where(is_finite_B, norm_B, 0).sum() / count.clamp(min=1)
        squares = torch.where(is_finite_B, (norm_B - mean).square(), 0).sum()
        self._move(self.mean, mean, count > 0)
        self._move(self.deviation, (squares / (count - 1).clamp(min=1)).sqrt(), count > 1)

    def _move(self, average: Tensor, value: Tensor, moves: Tensor) -> None:
        """Move a running average where `moves` is true, without waiting for the device."""
        average.lerp_(torch.where(moves, value.to(average.dtype), average), self.options.momentum)

    def others(self, cosine_BC: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Cosines near -1 and 1 are cut off, without a gradient."""
        return bounded(cosine_BC, self.EDGE - 1, 1 - self.EDGE)

    def margined_target(self, target_B1: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """cos(angle - m z) - (m + m z) with z from the norm."""
        margin = self.options.margin
        norm_B = norm_B.detach().clamp(self.LEAST_NORM, self.MOST_NORM)
        z_B = (self.options.h * (norm_B - state["mean"]) / (state["deviation"] + 1e-3)).clamp(-1, 1)
        z_B1 = z_B[:, None].to(target_B1.dtype)
        with torch.no_grad():
            cut = target_B1.clamp(self.EDGE - 1, 1 - self.EDGE)
            angle, added = cut.arccos(), cut.arccos() - margin * z_B1
            kept = added.clamp(self.EDGE, math.pi - self.EDGE)
            value = kept.cos() - (margin + margin * z_B1)
            slope = torch.ones_like(value)
            if self.options.gradient == "exact":
                slope = torch.where((cut == target_B1) & (kept == added), added.sin() / angle.sin(), 0)
        return value + slope * (target_B1 - target_B1.detach())


class MagFace(MarginedHead):
    """MagFace: the margin grows with the norm, and the loss pulls the norm up.

    A norm outside `lower_norm` to `upper_norm` gets no gradient from either, as in the authors' code.
    """

    options: MagFaceOptions

    def __init__(
        self, options: MagFaceOptions, num_classes: int, embedding_size: int, *, shard: range | None = None
    ) -> None:
        if options.lower_norm >= options.upper_norm:
            raise ConfigError(
                f"head magface: lower_norm {options.lower_norm:g} is not below upper_norm {options.upper_norm:g}"
            )
        super().__init__(options, num_classes, embedding_size, shard=shard)

    def margined_target(self, target_B1: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """cos(angle + margin of the norm); where the cosine is negative, or past the turn, as `easy_margin` says."""
        options = self.options
        slope = (options.upper_margin - options.lower_margin) / (options.upper_norm - options.lower_norm)
        margin_B1 = (slope * (self._bounded(norm_B) - options.lower_norm) + options.lower_margin)[:, None]
        margined = turned(target_B1, margin_B1)
        if options.easy_margin:
            return torch.where(target_B1 > 0, margined, target_B1)
        return torch.where(target_B1 > -margin_B1.cos(), margined, target_B1 - margin_B1 * margin_B1.sin())

    def regulariser(self, norm_B: Tensor, has_class_B: Tensor) -> Tensor | None:
        """The mean of norm / upper_norm^2 + 1 / norm over all images."""
        norm_B = self._bounded(norm_B)
        pull: Tensor = (norm_B / self.options.upper_norm**2 + 1 / norm_B).mean()
        return self.options.regulariser * pull

    def _bounded(self, norm_B: Tensor) -> Tensor:
        return bounded(norm_B, self.options.lower_norm, self.options.upper_norm)


class CurricularFace(MarginedHead):
    """CurricularFace: ArcFace in which negatives above the margined target count more as the training progresses.

    `progress`, the running mean of the true classes' cosines, decides how much. Rows that are not finite are left out.
    """

    options: CurricularFaceOptions
    needs_target = True
    progress: Tensor

    def __init__(
        self, options: CurricularFaceOptions, num_classes: int, embedding_size: int, *, shard: range | None = None
    ) -> None:
        super().__init__(options, num_classes, embedding_size, shard=shard)
        self.register_buffer("progress", torch.tensor(0.0))

    def update_state(self, cosine_BC: Tensor, column_B: Tensor, norm_B: Tensor) -> None:
        """Move the running mean towards the mean cosine of the true classes of the batch's finite rows."""
        target_B = target_values(cosine_BC, column_B)
        counts_B = (column_B >= 0) & norm_B.isfinite() & target_B.isfinite()
        mean = torch.where(counts_B, target_B, 0).sum() / counts_B.sum().clamp(min=1)
        moved = self.progress.lerp(mean.to(self.progress.dtype), self.options.momentum)
        self.progress.copy_(torch.where(counts_B.any(), moved, self.progress))

    def others(self, cosine_BC: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The cosines above the margined target, times progress + cosine; NaN, of no class, is below none."""
        threshold_B1 = turned(state["target_cosine"], self.options.margin)
        is_hard = cosine_BC.detach() > threshold_B1
        return torch.where(is_hard, cosine_BC * (state["progress"] + cosine_BC), cosine_BC)

    def margined_target(self, target_B1: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """cos(angle + margin); past the turn, the cosine minus margin sin(margin)."""
        margin = self.options.margin
        is_before_turn = target_B1 > -math.cos(margin)
        return torch.where(is_before_turn, turned(target_B1, margin), target_B1 - margin * math.sin(margin))


class ElasticFace(MarginedHead):
    """ElasticFace: the margin of each image is drawn at random in each step.

    The generator is part of the state, so a resumed training draws the same margins. Every shard draws those of the
    whole batch, also one that has no centre in a step, so that all generators stay equal.
    """

    options: ElasticFaceOptions

    def __init__(
        self, options: ElasticFaceOptions, num_classes: int, embedding_size: int, *, shard: range | None = None
    ) -> None:
        super().__init__(options, num_classes, embedding_size, shard=shard)
        self.needs_target = options.plus
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self._margin_B = torch.empty(0)

    def get_extra_state(self) -> Tensor:
        """The state of the generator."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state of the generator.

        Raises:
            CheckpointError: it is none.
        """
        try:
            self.generator.set_state(state.cpu())
        except (AttributeError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                "head elasticface: no state of a random generator; damaged: restore the file"
            ) from error

    def begin_batch(self, rows: int) -> None:
        """Draw the margins of a batch."""
        self._margin_B = self.margins(rows)

    def margin_state(self, target_B1: Tensor | None) -> Mapping[str, Tensor]:
        """With the margins (B,) of the batch."""
        return {**super().margin_state(target_B1), "margin": self._margin_B}

    def margins(self, rows: int) -> Tensor:
        """Margins (B,) of a batch; outside of training, their mean."""
        if not self.training:
            return torch.full((rows,), self.options.margin)
        return self.options.margin + self.options.deviation * torch.randn(rows, generator=self.generator)

    def margined_target(self, target_B1: Tensor, norm_B: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """cos(angle + margin), or the cosine minus the margin."""
        margin_B1 = state["margin"].to(target_B1)[:, None]
        if self.options.plus:
            far_first_B = torch.argsort(state["target_cosine"][:, 0], stable=True)
            margin_B1 = torch.empty_like(margin_B1).index_copy_(
                0, far_first_B, margin_B1.sort(dim=0, descending=True).values
            )
        return target_B1 - margin_B1 if self.options.kind == "cos" else turned(target_B1, margin_B1)


def bounded(values: Tensor, lowest: float, highest: float) -> Tensor:
    """Values kept within bounds; the gradient is 0 outside, and 1 at the bounds, in every version of torch."""
    kept = values.detach().clamp(lowest, highest)
    return kept + torch.where(kept == values.detach(), values - values.detach(), 0)
