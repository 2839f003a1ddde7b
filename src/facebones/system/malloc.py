"""Settings of glibc's allocator that save page faults in long computations.

A training step allocates tensors of many megabytes and frees them again. By default, glibc maps each from the kernel
and unmaps it at once, so the kernel clears every page again in every step: a third of the time of a CPU training step
on two cores (`benchmarks/training_step.py`).
"""

import ctypes
import os
import sys

# From <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
GROWTH = 64 * 2**20  # bytes: the least growth of the heap


def tune_malloc() -> bool:
    """Tell glibc not to return freed memory to the kernel, for the rest of the process.

    Does nothing on other systems and C libraries, or if the environment configures the allocator (MALLOC_...,
    GLIBC_TUNABLES). The process keeps its peak size; no result depends on it. The command calls it; the library does
    not, because it cannot be undone.

    Returns:
        Whether glibc accepted the settings.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST) and mallopt(M_TOP_PAD, GROWTH))


def trim_malloc() -> bool:
    """Return freed memory to the kernel now, in a forked process.

    A fork shares the freed memory of its parent, and would keep a copy once the parent writes to it again.

    Returns:
        Whether memory was returned.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return trim is not None and bool(trim(0))
