"""Rows that the processes of a group have computed, brought together."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from facebones.system.distributed import World

PIECE_BYTES = 2**23  # of the rows that are sent at a time


def rows_in_first(own: World, rows: Any) -> Any:
    """Bring the rows of all processes together in process 0, in order; the others get their own back.

    The rows travel in pieces, straight into their place: process 0 holds nothing twice.

    Args:
        own: the group.
        rows: (n, ...) array of this process; of one type, and of one shape but for n, which may be 0.
    """
    shapes = own.gather_objects(rows.shape)
    if not own.is_first:
        _in_pieces(own, torch.from_numpy(np.ascontiguousarray(rows)), 0, sends=True)
        return rows
    shape = next(shape for shape in shapes if shape[0])
    everything = np.empty((sum(shape[0] for shape in shapes), *shape[1:]), dtype=rows.dtype)
    everything[: len(rows)] = rows
    start = len(rows)
    for rank, (count, *_) in enumerate(shapes[1:], 1):
        _in_pieces(own, torch.from_numpy(everything[start : start + count]), rank, sends=False)
        start += count
    return everything


def _in_pieces(own: World, rows: Tensor, rank: int, *, sends: bool) -> None:
    """Send rows to another process, or receive them from it, a bounded number of bytes at a time."""
    flat = rows.flatten()
    each = PIECE_BYTES // flat.element_size()
    move = torch.distributed.send if sends else torch.distributed.recv
    for start in range(0, len(flat), each):
        with own.guarded("the gathering of features"):
            move(flat[start : start + each], rank)
