"""Heads: the losses that train a backbone, with their class centres; recognition needs none of this.

Importing this package does not import torch: the registry knows names and options, and builds a head on demand.
"""

from facebones.heads.registry import HeadOptions, create_head, list_heads, lookup_head, register_head

__all__ = ["HeadOptions", "create_head", "list_heads", "lookup_head", "register_head"]
