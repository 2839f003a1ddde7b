"""Choose the computing device by name."""

import torch
from torch import Tensor

from facebones.errors import ConfigError


def select_device(name: str = "auto") -> torch.device:
    """The device of a name: "cpu", "cuda", "cuda:1", "mps"; "auto" takes an accelerator where there is one.

    CUDA is told to take this GPU for all that names none, that shapes seldom change, and that fp32 means fp32.

    Raises:
        ConfigError: no such device here.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return _prepared(accelerator or torch.device("cpu"))
    available = f"available here: cpu{f', {accelerator.type}' if accelerator else ''}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: no such device; {available}") from error
    known = device.type == "cpu" or (accelerator is not None and device.type == accelerator.type)
    if not known or (device.index or 0) >= max(1, torch.accelerator.device_count()):
        raise ConfigError(f"--device {name}: no such device; {available}")
    return _prepared(device)


def _prepared(device: torch.device) -> torch.device:
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)  # the thread that pins memory would take up the first one beside it
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # its mantissas have 10 bits; whoever wants speed takes bf16
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for the work that the device is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # a copy from pageable memory waits
