"""Latency and throughput, measured so that a busy machine favours no network.

The networks take turns: each gets a share of every round. Another job that slows the machine for a while thus slows
all networks, and no result depends on one stretch of time. A turn starts with an untimed forward pass, waits for the
device, then repeats until its time is filled. Medians and percentiles are over all repetitions of all rounds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from facebones.profiling.conditions import ROUNDS
from facebones.system.progress import track

LEAST_SINGLES, LEAST_BATCHES = 4, 1  # repetitions per turn, however long they take


@dataclass
class Timings:
    """Durations of forward passes, in seconds.

    Attributes:
        batch_size: images per batch.
        single: durations with one image.
        batch: durations with `batch_size` images.
    """

    batch_size: int
    single: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Latency percentiles in milliseconds, and images per second from the median batch."""
        p50, p90 = np.percentile(self.single, [50, 90]) * 1000
        return {
            "latency_p50_ms": float(p50),
            "latency_p90_ms": float(p90),
            "latency_repetitions": len(self.single),
            "throughput_images_per_second": float(self.batch_size / np.median(self.batch)),
            "throughput_repetitions": len(self.batch),
        }


def measure_timings(inferences: Sequence[Callable[[int], None]], batch_size: int, seconds: float) -> list[Timings]:
    """Time networks in turns, with one image and with a batch.

    Args:
        inferences: functions that embed a given number of images and return when the device has finished.
        batch_size: images per forward pass, for throughput.
        seconds: the least time for each measurement of each network, over all rounds.
    """
    timings = [Timings(batch_size) for _ in inferences]
    turns = [pair for _ in range(ROUNDS) for pair in zip(inferences, timings, strict=True)]
    for infer, timing in track(turns, f"latency and throughput, {ROUNDS} rounds"):
        timing.single += _repeat(infer, 1, seconds / ROUNDS, LEAST_SINGLES)
        timing.batch += _repeat(infer, batch_size, seconds / ROUNDS, LEAST_BATCHES)
    return timings


def _repeat(infer: Callable[[int], None], images: int, seconds: float, least: int) -> list[float]:
    """Durations of repetitions that fill `seconds`, after one untimed pass."""
    infer(images)
    durations: list[float] = []
    start = now = time.perf_counter()
    while now - start < seconds or len(durations) < least:
        infer(images)
        before, now = now, time.perf_counter()
        durations.append(now - before)
    return durations
