"""The conditions of a measurement: device, threads, precision, layout, batch, duration."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facebones import __version__
from facebones.backbones.base import IMAGE_SIZE, Backbone
from facebones.errors import ConfigError, RunError, counted
from facebones.system.device import device_settings, select_device
from facebones.system.environment import processor_model

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How to measure.

    Attributes:
        device: "auto", "cpu", "cuda", ...
        threads: CPU threads per operator; None takes torch's number.
        precision: "fp32", or autocast to "bf16" or "fp16". ONNX files compute in their own precision.
        channels_last: whether torch keeps weights and images in the layout (B, H, W, C).
        batch_size: images per forward pass, for throughput and memory.
        seconds: the least time for each measurement of each network.
    """

    device: str = "auto"
    threads: int | None = None
    precision: str = "fp32"
    channels_last: bool = False
    batch_size: int = 32
    seconds: float = 2.0

    def check(self, option: str = "--") -> None:
        """Check that the device, the precision and the threads are available.

        Args:
            option: prefix of "threads" and "precision" in errors.

        Raises:
            ConfigError: one of them is not.
        """
        device = select_device(self.device)
        processors = os.cpu_count() or 1
        if self.threads and self.threads > processors:
            raise ConfigError(
                f"{option}threads {self.threads}: this machine has {processors} processor{'s' * (processors > 1)}; give"
                " no more"
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(f"{option}precision {self.precision}: known are {', '.join(PRECISIONS)}")
        if self.precision != "fp32" and not torch.amp.is_autocast_available(device.type):
            raise ConfigError(f"{option}precision {self.precision}: {device.type} has no autocast; take fp32")

    @contextmanager
    def threads_set(self) -> Iterator[None]:
        """Compute with these threads in the block; restore torch's number after it."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            with device_settings(select_device(self.device)):
                yield
        finally:
            torch.set_num_threads(before)

    def describe(self) -> dict[str, Any]:
        """The conditions as JSON, with versions and hardware; call it inside `threads_set`."""
        device = select_device(self.device)
        return {
            "facebones": __version__,
            "torch": torch.__version__,
            "device": str(device),
            "processor": processor_model(device),
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "channels_last": self.channels_last,
            "batch_size": self.batch_size,
            "image_size": IMAGE_SIZE,
            "rounds": ROUNDS,
            "seconds": self.seconds,
        }


class Inference:
    """A network with random images under given conditions; calling it with n embeds n images and waits.

    Args:
        network: in eval mode.
        device: the device of its input.
        conditions: precision, layout and the largest batch.

    Raises:
        RunError: the images do not fit into memory.
    """

    def __init__(self, network: Backbone, device: torch.device, conditions: Conditions) -> None:
        layout = torch.channels_last if conditions.channels_last else torch.contiguous_format
        self.network = network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        self.device = device
        self.dtype = PRECISIONS[conditions.precision]
        shape = (conditions.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
        try:
            images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
            self.images: Tensor = images.to(device, memory_format=layout)
        except RuntimeError as error:
            raise _too_large(conditions.batch_size, error) from error

    def __call__(self, count: int) -> None:
        """Embed `count` images; return when the device has finished."""
        try:
            with torch.inference_mode(), self._autocast():
                self.network(self.images[:count])
        except RuntimeError as error:
            raise _too_large(count, error) from error
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()


def _too_large(count: int, error: RuntimeError) -> RuntimeError | RunError:
    """The error to raise for a failed batch: ours if memory ran out, else torch's own."""
    if "memory" not in str(error):
        return error
    return RunError(f"a batch of {counted(count, 'image')} does not fit into memory; give a smaller --batch-size")
