"""One training step: batches in, one update of the optimizer out, and its metrics, which are read back later."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facebones.data.loader import Batch
from facebones.data.preprocessing import to_network_input
from facebones.errors import RunError
from facebones.evaluation.embedder import AUTOCAST_TYPE
from facebones.system.device import to_device
from facebones.training.optimizer import skip_step_if_nonfinite

if TYPE_CHECKING:
    from facebones.training.trainer import Trainer

# Below this, the gradient scaler has halved more than sixteen times in a row without a finite gradient.
SMALLEST_GRADIENT_SCALE = 1.0


def train_step(trainer: "Trainer", batches: list[Batch]) -> None:
    """Update the weights once from `accumulation_steps` batches; a gradient that is not finite is not applied.

    Does not wait for the device, except to draw the sample of a sampled head: `read_back_metrics` reads the results.
    """
    learning_rate = trainer.schedule(trainer.step)
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate
    trainer.backbone.train()
    trainer.head.draw_sample(torch.cat([label_B for _, label_B in batches]))
    loss_sum = torch.zeros((), device=trainer.device)
    head_metrics: dict[str, Tensor] = {}
    precision = trainer.recipe.training.precision
    for images_BHWC, label_B in batches:
        x_B3HW = network_input(trainer, images_BHWC)
        with torch.autocast(trainer.device.type, dtype=AUTOCAST_TYPE[precision], enabled=precision != "fp32"):
            embedding_BD = trainer.compiled_backbone(x_B3HW)
        loss, metrics = trainer.head(embedding_BD, label_B.to(trainer.device, non_blocking=True))
        loss = loss / len(batches)
        trainer.scaler.scale(loss).backward()
        loss_sum += loss.detach()
        for name, value in metrics.items():
            head_metrics[name] = head_metrics.get(name, 0) + value.detach() / len(batches)
    trainer.scaler.unscale_(trainer.optimizer)
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
        RunError: a loss or gradient is not finite. In fp16, where the gradient scaler skips such steps, only once the
            scaler has given up.
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
        raise RunError(
            f"step {step}: loss {loss:g}, gradient norm {gradient_norm:g}: not applied; the last checkpoint is kept;"
            " try a lower --optimizer.learning_rate, --schedule.warmup_epochs 1, --training.clip_norm 5 or"
            " --training.precision fp32"
        )


def network_input(trainer: "Trainer", images_BHWC: Tensor) -> Tensor:
    """The images on the device as network input (B, 3, H, W), a random half of them mirrored if the recipe says so."""
    mirror_B = None
    if trainer.recipe.data.flip:
        mirror_B = to_device(torch.rand(len(images_BHWC)) < 0.5, trainer.device)
    images_BHWC = images_BHWC.to(trainer.device, non_blocking=True)
    return to_network_input(images_BHWC, trainer.channels_last, mirror_B)


def _clip_gradients(trainer: "Trainer") -> Tensor:
    """The norm of the whole gradient (backbone and head); the gradient is scaled down to `clip_norm` if that is set."""
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip_norm := trainer.recipe.training.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm
