"""The device that computes: chosen by name, and the settings of CUDA that a computation needs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from facebones.errors import ConfigError


def select_device(name: str = "auto") -> torch.device:
    """The device of a name: "cpu", "cuda", "cuda:1", "mps"; "auto" takes an accelerator if there is one.

    Changes no setting; compute within `device_settings`.

    Raises:
        ConfigError: no such device here.

    >>> select_device("cpu")
    device(type='cpu')
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    available = f"available here: cpu{f', {accelerator.type}' if accelerator else ''}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: no such device; {available}") from error
    known = device.type == "cpu" or (accelerator is not None and device.type == accelerator.type)
    if not known or (device.index or 0) >= max(1, torch.accelerator.device_count()):
        raise ConfigError(f"--device {name}: no such device; {available}")
    return device


@contextmanager
def device_settings(device: torch.device) -> Iterator[None]:
    """Compute on a device within the block; afterwards, CUDA's settings are as before.

    On CUDA: the device becomes the current one, cuDNN benchmarks its algorithms (shapes seldom change), and fp32
    convolutions do not use TF32, whose mantissas have 10 bits (for speed, choose bf16).
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.allow_tf32, torch.cuda.current_device())
    try:
        if device.index is not None:
            torch.cuda.set_device(device)  # else the thread that pins memory would use the first device too
        cudnn.benchmark, cudnn.allow_tf32 = True, False
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before[:2]
        torch.cuda.set_device(before[2])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators: of the CPU, and of the accelerator if it is the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore torch's random state after the block."""
    before = random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # a copy from pageable memory would wait
