"""What a run logs: lines for people, one JSON object a line in metrics.jsonl, trackers on request.

metrics.jsonl is the source of every plot and table. A checkpoint stores the length of the file; a resumed run cuts the
file back to it, so that no line is written twice. If lines before that are lost, the run says so and continues: no
weight depends on them.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

from facebones.errors import RunError
from facebones.system.number_format import percent
from facebones.system.progress import format_seconds, say
from facebones.system.regular_files import open_in_place
from facebones.training.trackers import Trackers

SHUFFLED = "accuracy_shuffled"  # in the line of a set whose own folds hold one kind of pair

LARGEST_WRITTEN_OUT = 1e5


class Meter:
    """Sums over the steps since the last log line; saved in checkpoints, so that a resumed line is the same.

    The metrics of a step stay on the device until `read_back`: reading them at each step would make the host wait.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._names: tuple[str, ...] = ()
        self.reset()

    def reset(self) -> None:
        """Begin an interval."""
        self.loss_sum = 0.0
        self.counted = 0
        self.skipped = 0
        self.head_sums: dict[str, float] = {}
        # Counted steps of a version whose head had fewer metrics, and those that it had.
        self._earlier, self._known = 0, set[str]()

    def add(self, loss: Tensor, gradient_norm: Tensor, head: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Add a step.

        Args:
            loss: of the step.
            gradient_norm: of the step.
            head: metrics of the head; the same names in each step.
        """
        if self._waiting and tuple(head) != self._names:
            raise ValueError(f"the head returned metrics {', '.join(head)}, and before {', '.join(self._names)}")
        self._names = tuple(head)
        self._waiting.append(torch.stack([loss, gradient_norm, *(value.to(loss) for value in head.values())]))

    def read_back(self) -> list[tuple[float, float]]:
        """Count the added steps; return their losses and gradient norms. A step that is not finite adds no loss."""
        rows = torch.stack(self._waiting).tolist() if self._waiting else []
        self._waiting.clear()
        for loss, gradient_norm, *head in rows:
            usable = math.isfinite(loss + gradient_norm)
            self.loss_sum += loss if usable else 0.0
            self.counted += usable
            self.skipped += not usable
            for name, value in zip(self._names, head, strict=True):
                self.head_sums[name] = self.head_sums.get(name, 0.0) + (value if usable else 0.0)
        return [(row[0], row[1]) for row in rows]

    @property
    def loss(self) -> float | None:
        """Mean loss of the counted steps."""
        return self.loss_sum / self.counted if self.counted else None

    @property
    def head(self) -> dict[str, float]:
        """Mean metrics of the head over the counted steps."""
        counts = {name: self.counted - (0 if name in self._known else self._earlier) for name in self.head_sums}
        return {name: total / counts[name] for name, total in self.head_sums.items() if counts[name]}

    def state_dict(self) -> dict[str, Any]:
        """The sums; those of the head only if it has metrics."""
        sums = {"loss_sum": self.loss_sum, "counted": self.counted, "skipped": self.skipped}
        return sums | ({"head": dict(self.head_sums)} if self.head_sums else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums of `state_dict`."""
        self.loss_sum, self.counted, self.skipped = (state[key] for key in ("loss_sum", "counted", "skipped"))
        self.head_sums = dict(state.get("head", {}))
        self._earlier, self._known = self.counted, set(self.head_sums)


class Stopwatch:
    """Images per second and the time left, from the time spent in training steps."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._images = self._all_images = 0
        self._seconds = self._all_seconds = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._start = time.monotonic()

    def stop(self, images: int) -> None:
        """End a step of this many images."""
        seconds = time.monotonic() - self._start
        self._seconds += seconds
        self._all_seconds += seconds
        self._images += images
        self._all_images += images

    def read(self, images_left: int) -> tuple[float, float]:
        """Images per second since the last call, and the seconds left at the mean rate."""
        rate = self._images / max(self._seconds, 1e-9)
        self._images, self._seconds = 0, 0.0
        return rate, self.left(images_left)

    def left(self, images: int) -> float:
        """Seconds that this many images take at the mean rate."""
        return images * self._all_seconds / max(self._all_images, 1)


class MetricsLog:
    """Appends to metrics.jsonl, and writes the same to trackers.

    Args:
        path: metrics.jsonl.
        length: bytes to keep; what a killed run wrote after its last checkpoint is cut off.
        trackers: of the run, if it has any.
    """

    def __init__(self, path: Path, length: int, trackers: Trackers | None = None) -> None:
        self.path = path
        self._trackers = trackers
        try:
            self._file = os.fdopen(open_in_place(path), "a+b")
            self._cut(length)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}; fix that, then resume") from error

    def _cut(self, length: int) -> None:
        """Keep the whole lines among the first `length` bytes."""
        self._file.seek(0)
        standing = self._file.read(length).rfind(b"\n") + 1
        if standing < length:
            say(f"note: {self.path}: lines are missing, {standing} of {length} bytes are left; new lines follow them")
        self._file.truncate(standing)
        self._file.seek(standing)  # a save may ask for the length before the next line is written

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
        if self._trackers is not None:
            prefix = "/".join(str(part) for part in (kind, values.get("set")) if part)
            scalars = line | {f"head/{key}": value for key, value in line.get("head", {}).items()}
            numbers = {
                f"{prefix}/{key}": value
                for key, value in scalars.items()
                if isinstance(value, int | float) and key not in ("step", "epoch")
            }
            self._trackers.write(values["step"], numbers)

    def close(self, *, failed: bool = False) -> None:
        """Close the files.

        Args:
            failed: whether the training ends before its last step.
        """
        with suppress(OSError):  # what could not be written has been an error of `write`
            self._file.close()
        if self._trackers is not None:
            self._trackers.close(failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(failed=kind is not None)


class NoLog(MetricsLog):
    """The log of the other processes of a training: the first one writes."""

    def __init__(self) -> None:
        self.path = Path()

    @property
    def length(self) -> int:
        """Nothing is written."""
        return 0

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Write nothing."""

    def close(self, *, failed: bool = False) -> None:
        """Close nothing."""


def train_line(values: Mapping[str, Any], steps: int, epochs: int, seconds_left: float) -> str:
    """The log line of an interval, for people."""
    loss = "-" if values["loss"] is None else f"{values['loss']:.4f}"
    scale = "" if values["gradient_scale"] == 1.0 else f"  scale {values['gradient_scale']:g}"
    skipped = f"  ({values['skipped_steps']} steps skipped by the scaler)" if values["skipped_steps"] else ""
    head = "".join(f"  {name} {value:.4g}" for name, value in values.get("head", {}).items())
    return (
        f"step {values['step']:>{len(str(steps))}}/{steps}  epoch {values['epoch']}/{epochs}  loss {loss}{head}"
        f"  lr {values['learning_rate']:.3g}{scale}  {values['images_per_second']:.0f} images/s"
        f"  {format_seconds(seconds_left)} left{skipped}"
    )


def validation_line(values: Mapping[str, Any]) -> str:
    """The log line of a validation on one set, for people."""
    accuracy = percent(values["accuracy"], values["accuracy_std"])
    shuffled = f"  shuffled folds {percent(values[SHUFFLED])}" if SHUFFLED in values else ""
    return (
        f"  {values['set']}: accuracy {accuracy} (best {percent(values['best_accuracy'])}){shuffled}"
        f"  TAR@FAR=1e-3 {percent(values['tar_at_far_1e3'])}  AUC {values['auc']:.4f}  XNorm {_length(values['xnorm'])}"
    )


def _length(value: float) -> str:
    """A length with two decimals; a large one, as of networks without a last normalisation, in powers of ten."""
    return f"{value:.2f}" if abs(value) < LARGEST_WRITTEN_OUT else f"{value:.3g}"


def finite_or_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None for numbers that JSON does not have; also within a mapping of values.

    >>> finite_or_none({"loss": math.nan, "head": {"norm": math.inf}, "step": 3})
    {'loss': None, 'head': {'norm': None}, 'step': 3}
    """

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return finite_or_none(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: finite(value) for key, value in values.items()}
