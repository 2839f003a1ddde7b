"""What a run says: lines for people, one JSON object a line in metrics.jsonl, TensorBoard where asked.

metrics.jsonl is the source of every plot and table. A checkpoint knows how long the file was when it was made; a
resumed run cuts it back to there, so that a killed run leaves no line twice. Where lines before that have been lost,
this is said and the run goes on: no weight depends on them, and a gap in a plot is less than a run that cannot end.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facebones.errors import ConfigError, RunError
from facebones.system.progress import format_seconds, say

SummaryWriter = Callable[[str], Any]


class Meter:
    """What the steps since the last line add up to; part of the saved state, so that a resumed line is the same.

    The figures of a step stay where they were computed until `settle`: to read them at once would make the host wait
    for the device.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """Begin an interval."""
        self.loss_sum = 0.0
        self.counted = 0
        self.skipped = 0

    def add(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Note a step."""
        self._waiting.append(torch.stack([loss, gradient_norm]))

    def settle(self) -> list[tuple[float, float]]:
        """Count the noted steps and hand out their losses and gradient norms; of those not finite, no loss is added."""
        figures = [tuple(row) for row in torch.stack(self._waiting).tolist()] if self._waiting else []
        self._waiting.clear()
        for loss, gradient_norm in figures:
            usable = math.isfinite(loss + gradient_norm)
            self.loss_sum += loss if usable else 0.0
            self.counted += usable
            self.skipped += not usable
        return figures

    @property
    def loss(self) -> float | None:
        """Mean loss of the counted steps."""
        return self.loss_sum / self.counted if self.counted else None

    def state_dict(self) -> dict[str, float]:
        """The sums."""
        return {"loss_sum": self.loss_sum, "counted": self.counted, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the sums of `state_dict`."""
        vars(self).update(state)


class Stopwatch:
    """Images a second and the time left, from the time spent in training steps only."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._images = self._all_images = 0
        self._seconds = self._all_seconds = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._start = time.monotonic()

    def stop(self, images: int) -> None:
        """End a step that took so many images."""
        seconds = time.monotonic() - self._start
        self._seconds += seconds
        self._all_seconds += seconds
        self._images += images
        self._all_images += images

    def read(self, images_left: int) -> tuple[float, float]:
        """Images a second since the last reading, and the seconds left at the rate so far."""
        rate = self._images / max(self._seconds, 1e-9)
        left = images_left * self._all_seconds / max(self._all_images, 1)
        self._images, self._seconds = 0, 0.0
        return rate, left


class MetricsLog:
    """Appends to metrics.jsonl, and to TensorBoard files where asked.

    Args:
        path: metrics.jsonl.
        length: bytes of the file that stand; what a killed run wrote beyond is cut off.
        summary_writer: what writes TensorBoard files beside it.
    """

    def __init__(self, path: Path, length: int, summary_writer: SummaryWriter | None = None) -> None:
        self.path = path
        self._board = summary_writer(str(path.parent / "tensorboard")) if summary_writer else None
        try:
            self._file = path.open("a+b")
            self._cut(length)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}; mend that, then resume") from error

    def _cut(self, length: int) -> None:
        """Keep the whole lines among the first `length` bytes."""
        self._file.seek(0)
        standing = self._file.read(length).rfind(b"\n") + 1
        if standing < length:
            say(f"note: {self.path}: lines are missing, {standing} of {length} bytes are there; it goes on behind them")
        self._file.truncate(standing)
        self._file.seek(standing)  # the next save asks where the file ends, perhaps before the next line

    @property
    def length(self) -> int:
        """Bytes written."""
        return self._file.tell()

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append a line; numbers that JSON lacks become null."""
        line = {"kind": kind, **finite_or_none(values)}
        try:
            self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}; free space, then resume") from error
        if self._board is not None:
            prefix = "/".join(str(part) for part in (kind, values.get("set")) if part)
            for key, value in line.items():
                if isinstance(value, int | float) and key not in ("step", "epoch"):
                    self._board.add_scalar(f"{prefix}/{key}", value, values["step"])

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a killed run left half-written is left out."""
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def train_line(values: Mapping[str, Any], steps: int, epochs: int, seconds_left: float) -> str:
    """The line for people of an interval."""
    loss = "-" if values["loss"] is None else f"{values['loss']:.4f}"
    scale = "" if values["gradient_scale"] == 1.0 else f"  scale {values['gradient_scale']:g}"
    skipped = f"  ({values['skipped_steps']} steps skipped by the scaler)" if values["skipped_steps"] else ""
    return (
        f"step {values['step']:>{len(str(steps))}}/{steps}  epoch {values['epoch']}/{epochs}  loss {loss}"
        f"  lr {values['learning_rate']:.3g}{scale}  {values['images_per_second']:.0f} images/s"
        f"  {format_seconds(seconds_left)} left{skipped}"
    )


def validation_line(values: Mapping[str, Any]) -> str:
    """The line for people of a validation on one set."""
    return (
        f"  {values['set']}: accuracy {values['accuracy']:.2%} +- {values['accuracy_std']:.2%}"
        f" (best {values['best_accuracy']:.2%})  TAR@FAR=1e-3 {values['tar_at_far_1e3']:.2%}"
        f"  AUC {values['auc']:.4f}  XNorm {values['xnorm']:.2f}"
    )


def finite_or_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None for the numbers that JSON lacks."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }


def find_summary_writer() -> SummaryWriter:
    """TensorBoard's writer of files.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "log.tensorboard: TensorBoard is not installed; pip install 'facebones[tensorboard]', or set it to false"
        ) from error
    return SummaryWriter
