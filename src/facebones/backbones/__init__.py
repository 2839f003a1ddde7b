"""Face-recognition backbones: from an aligned 112x112 face to an embedding.

`create_backbone("shufflefacenet_1_0")` builds one; `list_backbones("mobile*")` names them.
"""

from facebones.backbones import edgeface, iresnet, mixfacenet, mobilefacenet, shufflefacenet, study
from facebones.backbones.registry import (
    Backbone,
    BackboneEntry,
    create_backbone,
    list_backbones,
    lookup_backbone,
    register_backbone,
)

__all__ = [
    "Backbone",
    "BackboneEntry",
    "create_backbone",
    "edgeface",
    "iresnet",
    "list_backbones",
    "lookup_backbone",
    "mixfacenet",
    "mobilefacenet",
    "register_backbone",
    "shufflefacenet",
    "study",
]
