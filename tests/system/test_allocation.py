"""What the C library does with freed memory, asked of processes of their own: it cannot be undone."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy
from facebones.system.malloc import trim_malloc, tune_malloc

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

kept = tune_malloc() if sys.argv[1] != "leave" else False
before = resident()
block = numpy.ones(200 * 2**20, dtype=numpy.uint8)
del block
if sys.argv[1] == "give back":
    assert trim_malloc()
print(kept, resident() - before)
"""


def left_after_200_mib(word, **environment):
    """Whether freed memory is kept, and the MiB that are left after 200 were taken and freed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    words = [sys.executable, "-c", SCRIPT, word]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=clean | environment)
    kept, left = done.stdout.split()
    return kept == "True", int(left)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_freed_memory_is_kept_only_where_it_is_asked_for():
    kept, left = left_after_200_mib("keep")
    assert kept and left >= 200
    kept, left = left_after_200_mib("leave")
    assert not kept and left < 100
    kept, left = left_after_200_mib("give back")
    assert kept and left < 100


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_what_the_environment_says_of_allocation_stands():
    kept, left = left_after_200_mib("keep", MALLOC_MMAP_MAX_="65536")
    assert not kept and left < 100
