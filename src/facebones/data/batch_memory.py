"""Memory for batches that workers fill and the training reads: shared, allocated once, used over and over.

What torch would do instead, new shared memory for every batch, costs a sixth of the decoding: each page is cleared and
faulted in on both sides, and a socket is opened to hand it over (`benchmarks/data_path.py`). Anonymous memory that
workers inherit has no name either: nothing is left in /dev/shm by a process that was killed, nor is its size a limit.
"""

import math
import mmap
import weakref
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facebones.errors import RunError

Batch = tuple[Tensor, Tensor]
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_numbers = count()
_known: "weakref.WeakValueDictionary[int, BatchMemory]" = weakref.WeakValueDictionary()


class BatchMemory:
    """Places for batches of images, of which each is free again once no tensor uses it.

    Made before the workers are forked; these write into it, and only this process hands out and takes back places.

    Args:
        places: how many batches there is room for.
        shape: (B, H, W, 3) of a batch.

    Raises:
        RunError: there is no memory for so many.
    """

    def __init__(self, places: int, shape: tuple[int, int, int, int]) -> None:
        size = math.prod(shape)
        try:
            memory = mmap.mmap(-1, places * size)  # a place takes memory once it is used
        except (OSError, OverflowError) as error:
            needed = f"{places * size / 2**30:.1f} GiB of shared memory for batches"
            raise RunError(f"{needed} cannot be had; give fewer --workers or a smaller --batch-size") from error
        self._images = np.frombuffer(memory, np.uint8).reshape(places, *shape)
        # The last that came back is taken first: its pages are there already, and perhaps still in the cache.
        self._free = deque(range(places))
        self._number = next(_numbers)
        _known[self._number] = self

    def take(self) -> int | None:
        """A free place, or None where there is none."""
        return self._free.pop() if self._free else None

    def images(self, place: int, count: int) -> Images:
        """The memory of the first `count` images of a place, (count, H, W, 3)."""
        return self._images[place, :count]

    def filled(self, place: int, labels: Labels) -> "FilledPlace":
        """What a worker sends once it has written into a place."""
        return FilledPlace(self._number, place, labels)

    def batch(self, place: int, labels: Labels) -> Batch:
        """A place as tensors: images (B, H, W, 3) and labels (B,). It is free once the images' memory is not used."""
        images = self.images(place, len(labels))
        # torch keeps this very array for as long as any tensor shares its memory.
        weakref.finalize(images, self._free.append, place).atexit = False
        return torch.from_numpy(images), torch.from_numpy(labels)


class FilledPlace:
    """Sent by a worker; what arrives in the process that made the memory is the batch itself."""

    def __init__(self, memory: int, place: int, labels: Labels) -> None:
        self.content = (memory, place, labels)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _arrived, self.content


def _arrived(memory: int, place: int, labels: Labels) -> Batch:
    return _known[memory].batch(place, labels)
