"""facebones: train and compare face-recognition backbones under one fair recipe."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facebones.reporting.load import load_results as load_results

__version__ = "0.2.0"

# Where each public name is defined; it is imported at its first use, so that `import facebones` stays without torch.
_API = {"load_results": "facebones.reporting.load"}
__all__ = ["__version__", *_API]  # noqa: PLE0604 (strings all the same)


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'facebones' has no attribute '{name}'")
    return getattr(import_module(_API[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
