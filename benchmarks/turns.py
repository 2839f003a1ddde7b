"""Two processes that take turns, for benchmarks whose sides cannot share one.

What the C library does with freed memory, for one, holds for a whole process.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def serve(work: Callable[[], object], told: Mapping[str, Any]) -> None:
    """Work twice, to compile and to fill the heap; tell what is to be told; then work at each line of stdin.

    Each time, the seconds that it took are the answer.
    """
    for _ in range(2):
        work()
    print(json.dumps(told), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        print(time.perf_counter() - start, flush=True)


class Side:
    """A process that works when asked; `told` is what it said of itself.

    Args:
        words: a script that comes to `serve`, and its arguments.
        environment: what it has beside our own.
    """

    def __init__(self, *words: object, **environment: str) -> None:
        pipe, command = subprocess.PIPE, [sys.executable, *map(str, words)]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"does not run: {' '.join(command)}"
        self.told: dict[str, Any] = json.loads(line)

    def take(self) -> float:
        """Seconds of one piece of work."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def compare(plain: Side, ours: Side, turns: int) -> dict[str, float]:
    """Seconds of both sides in turn, medians; and the ratios of neighbours: median, lowest, highest."""
    pairs = [(plain.take(), ours.take()) for _ in range(turns)]
    ratios = sorted(first / second for first, second in pairs)
    return {
        "plain_seconds": statistics.median(first for first, _ in pairs),
        "seconds": statistics.median(second for _, second in pairs),
        "ratio": statistics.median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
    }
