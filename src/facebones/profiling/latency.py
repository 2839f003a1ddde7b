"""Latency and throughput, measured so that a busy machine does not favour one network over another.

The networks take turns: each has its share of the time in each of several rounds. A neighbour's job that slows the
machine for a while so falls upon all of them, and no figure hangs on one stretch of time. In each turn an untimed
forward pass comes first, the device is waited for, and repetitions follow until the turn's time is filled. Medians and
percentiles are over the repetitions of all rounds; nothing is left out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from facebones.profiling.conditions import ROUNDS
from facebones.system.progress import track

LEAST_SINGLES, LEAST_BATCHES = 4, 1  # repetitions a turn, however long they take


@dataclass
class Timings:
    """Durations of forward passes, in seconds.

    Attributes:
        single: of one image.
        batch: of `batch_size` images.
    """

    batch_size: int
    single: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Latency percentiles in milliseconds, and images a second by the median batch."""
        p50, p90 = np.percentile(self.single, [50, 90]) * 1000
        return {
            "latency_p50_ms": float(p50),
            "latency_p90_ms": float(p90),
            "latency_repetitions": len(self.single),
            "throughput_images_per_second": float(self.batch_size / np.median(self.batch)),
            "throughput_repetitions": len(self.batch),
        }


def measure_timings(inferences: Sequence[Callable[[int], None]], batch_size: int, seconds: float) -> list[Timings]:
    """Time networks in turns, at one image and at a batch.

    Args:
        inferences: each embeds as many images as it is told to, and returns when the device has finished.
        batch_size: images a forward pass, for throughput.
        seconds: the least time for each figure of each network, over all rounds.
    """
    timings = [Timings(batch_size) for _ in inferences]
    turns = [pair for _ in range(ROUNDS) for pair in zip(inferences, timings, strict=True)]
    for infer, timing in track(turns, f"latency and throughput, {ROUNDS} rounds"):
        timing.single += _repeat(infer, 1, seconds / ROUNDS, LEAST_SINGLES)
        timing.batch += _repeat(infer, batch_size, seconds / ROUNDS, LEAST_BATCHES)
    return timings


def _repeat(infer: Callable[[int], None], images: int, seconds: float, least: int) -> list[float]:
    """Durations of repetitions that fill `seconds`, after one that is not counted."""
    infer(images)
    durations: list[float] = []
    start = now = time.perf_counter()
    while now - start < seconds or len(durations) < least:
        infer(images)
        before, now = now, time.perf_counter()
        durations.append(now - before)
    return durations
