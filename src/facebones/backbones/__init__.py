"""Face-recognition backbones: from an aligned 112x112 face to an embedding.

`create_backbone("shufflefacenet_1_0")` builds one; `list_backbones("mobile*")` names them. Names are imported at their
first use, so that the catalogue can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facebones.backbones.base import IMAGE_SIZE as IMAGE_SIZE
    from facebones.backbones.base import Backbone as Backbone
    from facebones.backbones.base import BackboneEntry as BackboneEntry
    from facebones.backbones.registry import create_backbone as create_backbone
    from facebones.backbones.registry import list_backbones as list_backbones
    from facebones.backbones.registry import lookup_backbone as lookup_backbone
    from facebones.backbones.registry import register_backbone as register_backbone

_API = {
    "IMAGE_SIZE": "base",
    "Backbone": "base",
    "BackboneEntry": "base",
    "create_backbone": "registry",
    "list_backbones": "registry",
    "lookup_backbone": "registry",
    "register_backbone": "registry",
}
__all__ = [*_API]  # noqa: PLE0604 (strings all the same)


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'facebones.backbones' has no attribute '{name}'")
    return getattr(import_module(f"facebones.backbones.{_API[name]}"), name)
