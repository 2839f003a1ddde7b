"""Freed memory is kept by the process, because to give it back and fetch it anew costs more than many a network.

A step allocates tensors of many megabytes and frees them again. By default the C library (glibc) maps each from the
kernel and unmaps it at once, so that every page of it is cleared and faulted in anew, step for step: on two cores a
third of the time of a training step (`benchmarks/training_step.py`).
"""

import ctypes
import os
import sys

# Of <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
GROWTH = 64 * 2**20  # bytes by which the heap grows at least


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed, for the rest of the process; says whether it does.

    Left alone are other systems and C libraries, and what the environment says of it (MALLOC_..., GLIBC_TUNABLES). The
    process stays as large as it ever was; no result depends on it.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST) and mallopt(M_TOP_PAD, GROWTH))


def give_back_freed_memory() -> bool:
    """Give to the system what was freed and kept; says whether that is possible here.

    For a forked process: what its parent had freed is of no use to it, yet would stay with it once the parent writes
    there again.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return trim is not None and bool(trim(0))
