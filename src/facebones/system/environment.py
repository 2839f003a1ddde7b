"""The software and hardware of this process: git revision, versions of packages, name of the processor."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@cache
def git_revision() -> str | None:
    """Git revision of the source checkout, with "-dirty" if files were changed; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 (no input in it)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def version_of(package: str) -> str:
    """Installed version of a package; "-" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def processor_model(device: "torch.device") -> str:
    """Product name of the CPU or GPU, if the system reports it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
