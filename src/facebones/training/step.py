"""One training step: batches in, one update of the optimizer out, and its metrics, which are read back later."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from facebones.data.preprocessing import to_network_input
from facebones.errors import DivergedError
from facebones.evaluation.models import AUTOCAST_TYPE
from facebones.system.device import to_device
from facebones.training.advice import norm_sharpness_correlation
from facebones.training.optimizer import RATE_FACTOR, skip_step_if_nonfinite

if TYPE_CHECKING:
    from facebones.training.trainer import Trainer

# Below this, the gradient scaler has halved more than sixteen times in a row without a finite gradient.
SMALLEST_GRADIENT_SCALE = 1.0


class Batch(NamedTuple):
    """The rows of a batch that this process computes.

    Attributes:
        images: (B, 112, 112, 3) uint8 RGB.
        labels: (B,) int64.
        numbers: (B,) int64 of each image in the training set; only a training with a teacher has them.
    """

    images: Tensor
    labels: Tensor
    numbers: Tensor | None = None


def train_step(trainer: "Trainer", batches: Sequence[Batch]) -> None:
    """Update the weights once from `accumulation_steps` batches; a gradient that is not finite is not applied.

    Does not wait for the device, except to draw the sample of a sampled head: `read_back_metrics` reads the results.
    """
    learning_rate = trainer.schedule(trainer.step)
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate * group.get(RATE_FACTOR, 1.0)
    trainer.training_mode.begin()
    if trainer.parallel is not None:
        trainer.parallel.begin_step(trainer.step, len(batches))
    trainer.head.draw_sample(torch.cat([batch.labels for batch in batches]))
    loss_sum = torch.zeros((), device=trainer.device)
    head_metrics: dict[str, Tensor] = {}
    precision = trainer.recipe.training.precision
    for number, batch in enumerate(batches, start=trainer.step * len(batches)):
        mirror_B = draw_mirrored(trainer, len(batch.labels), number)
        x_B3HW = network_input(trainer, batch.images, mirror_B)
        with torch.autocast(trainer.device.type, dtype=AUTOCAST_TYPE[precision], enabled=precision != "fp32"):
            embedding_BD = trainer.compiled_backbone(x_B3HW)
        label_B = batch.labels.to(trainer.device, non_blocking=True)
        loss, metrics = trainer.head(embedding_BD, label_B)
        if trainer.head.norm_is_quality:
            measured = norm_sharpness_correlation(
                embedding_BD, x_B3HW, trainer.world, trainer.recipe.training.batch_size
            )
            metrics = {**metrics, **measured}
        if trainer.teaching is not None and batch.numbers is not None:
            taught = trainer.teaching.loss(embedding_BD, trainer.teaching.rows(batch.numbers, mirror_B), label_B)
            loss, metrics = loss + taught.loss, {**metrics, **taught.metrics}
        loss = loss / len(batches)
        if trainer.parallel is not None and number + 1 == (trainer.step + 1) * len(batches):
            trainer.parallel.last_backward_begins()
        trainer.scaler.scale(loss).backward()
        loss_sum += loss.detach()
        for name, value in metrics.items():
            head_metrics[name] = head_metrics.get(name, 0) + value.detach() / len(batches)
    if trainer.parallel is not None:
        trainer.parallel.sum_gradients()
        trainer.head.complete_gradients()
    trainer.scaler.unscale_(trainer.optimizer)
    if trainer.world.size > 1:
        _share_overflow(trainer)
    gradient_norm = _clip_gradients(trainer)
    skip_step_if_nonfinite(trainer.optimizer, loss_sum + gradient_norm)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.step += 1
    trainer.latest["learning_rate"] = learning_rate
    trainer.meter.add(loss_sum, gradient_norm, head_metrics)


def read_back_metrics(trainer: "Trainer") -> None:
    """Read losses and gradient norms since the last call from the device; precedes every log line, save and validation.

    Raises:
        DivergedError: a loss or gradient is not finite. In fp16, where the gradient scaler skips such steps, only once
            the scaler has given up.
    """
    rows = trainer.meter.read_back()
    steps = range(trainer.step - len(rows) + 1, trainer.step + 1)
    bad = [(step, *row) for step, row in zip(steps, rows, strict=True) if not math.isfinite(sum(row))]
    trainer.skipped_steps += len(bad)
    if rows:
        trainer.latest["gradient_norm"] = rows[-1][1]
    scaled = trainer.scaler.is_enabled()
    if bad and not (scaled and trainer.scaler.get_scale() >= SMALLEST_GRADIENT_SCALE):
        step, loss, gradient_norm = bad[-1 if scaled else 0]
        raise DivergedError(
            f"step {step}: loss {loss:g}, gradient norm {gradient_norm:g}: not applied; the last checkpoint is kept;"
            " try a lower --optimizer.learning_rate, --schedule.warmup_epochs 1, --training.clip_norm 5 or"
            " --training.precision fp32"
        )


def draw_mirrored(trainer: "Trainer", rows: int, number: int) -> Tensor | None:
    """Draw which of the own rows of a batch are mirrored, (rows,) bool; None if the recipe mirrors none.

    Args:
        trainer: knows the recipe.
        rows: of this process.
        number: of the batch, counted from the start of the training; repeated flips depend on its place in the epoch.
    """
    data, world = trainer.recipe.data, trainer.world
    if not data.flip:
        return None
    count = trainer.recipe.training.batch_size if world.size > 1 else rows  # all draw those of the whole batch
    draw_B = torch.rand(count) if data.flip_draw == "fresh" else _repeated_draw(trainer, number, count)
    own = world.rows_of(count)
    return draw_B[own.start : own.stop] < 0.5


def network_input(trainer: "Trainer", images_BHWC: Tensor, mirror_B: Tensor | None) -> Tensor:
    """The images on the device as network input (B, 3, H, W), mirrored where `mirror_B` is true."""
    mirror_B = None if mirror_B is None else to_device(mirror_B, trainer.device)
    images_BHWC = images_BHWC.to(trainer.device, non_blocking=True)
    return to_network_input(images_BHWC, trainer.channels_last, mirror_B)


def _repeated_draw(trainer: "Trainer", number: int, count: int) -> Tensor:
    """Numbers from 0 to 1 (count,), the same for the batches of one place in every epoch."""
    training = trainer.recipe.training
    place = number % (trainer.steps_per_epoch * training.accumulation_steps)
    # The last number keeps these draws apart from those of the order of the images.
    return torch.from_numpy(np.random.default_rng([training.seed, place, 1]).random(count))


def _share_overflow(trainer: "Trainer") -> None:
    """Let the gradient scalers of all processes decide alike: each sees the centres of its own classes only."""
    if trainer.scaler.is_enabled():
        found = trainer.scaler._per_optimizer_states[id(trainer.optimizer)]["found_inf_per_device"]
        for value in found.values():
            value.copy_(trainer.world.largest([value]))


def _clip_shared_gradients(trainer: "Trainer") -> Tensor:
    """As `_clip_gradients` where the centres are shared: the squares of their gradients are summed over the shards."""
    training = trainer.recipe.training
    of_backbone = list(trainer.backbone.parameters())
    backbone_norm = _gradient_norm(of_backbone)
    whole = [*trainer.head.whole_parameters(), *(trainer.teaching.loss.parameters() if trainer.teaching else ())]
    square = backbone_norm.square() + _gradient_norm(whole).square()
    if squares := [_gradient_norm(own).square() for own in trainer.head.sharded_parameters()]:
        square = square + trainer.world.total(squares)
    norm = square.sqrt()
    if training.clip_norm and training.clip_of == "backbone":
        torch.nn.utils.clip_grads_with_norm_(of_backbone, training.clip_norm, backbone_norm)
    elif training.clip_norm:
        every = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(every, training.clip_norm, norm)
    return norm


def _clip_gradients(trainer: "Trainer") -> Tensor:
    """The norm of the whole gradient (backbone and head) before it is clipped as the recipe says."""
    if not trainer.world.alone:
        return _clip_shared_gradients(trainer)
    training = trainer.recipe.training
    clipped = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    others: list[Tensor] = []
    if training.clip_norm and training.clip_of == "backbone":
        whole, clipped = clipped, list(trainer.backbone.parameters())
        of_backbone = {id(p) for p in clipped}
        others = [p for p in whole if id(p) not in of_backbone]
    norm = _gradient_norm(clipped)
    if training.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(clipped, training.clip_norm, norm)
    return torch.hypot(norm, _gradient_norm(others)) if others else norm


def _gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
