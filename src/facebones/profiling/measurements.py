"""Peak memory of inference for one network: weights, activations, and what the libraries allocate for them.

On a GPU it is torch's own count (max_memory_allocated). On a CPU, allocators keep and share memory, and convolution
libraries allocate outside of torch. So a new process runs each network; its peak is the highest resident memory while
it embeds, minus the resident memory before the network was built. By then the interpreter, torch, ONNX Runtime and a
small network have been loaded, so their memory does not count. Temporary memory of building and loading does not count
either. Only Linux reports these numbers; elsewhere the result is missing, and so it is for an ONNX file on a GPU.

Latency and throughput, measured so that a busy machine favours no network.

The networks take turns: each gets a share of every round. Another job that slows the machine for a while thus slows
all networks, and no result depends on one stretch of time. A turn starts with an untimed forward pass, waits for the
device, then repeats until its time is filled. Medians and percentiles are over all repetitions of all rounds.

A result that other work on the machine has changed is marked as busy: the process waited for a processor (the clock ran
WAITED times as long as its processors, or its threads stood in the system's queue for QUEUED of the time, which shows
where a network on several threads got fewer processors), or the rounds disagree (their median latencies are SPREAD of
their median apart).
"""

import importlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import conv_block
from facebones.errors import RunError
from facebones.plugins import import_plugins, imported_plugins
from facebones.profiling.conditions import ROUNDS, Conditions, Inference
from facebones.profiling.networks import Source, open_network
from facebones.system.device import select_device
from facebones.system.progress import track

TASKS = Path("/proc/self/task")
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc_pid_clear_refs
REPETITIONS = 3  # the second pass may need more: the first result is freed only after the second is computed


def measure_peak_memory(source: Source, conditions: Conditions) -> int | None:
    """Peak memory in bytes, measured in a new process; None if the system does not report it.

    Raises:
        RunError: the process was killed, as systems do that run out of memory.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would start with the memory of this process
    start = partial(_start_child, imported_plugins())
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=start) as pool:
        try:
            return pool.submit(_peak_memory, source, conditions).result()
        except BrokenProcessPool as error:
            raise RunError(
                f"{source.name}: the process that measured its memory at batch {conditions.batch_size} was ended, "
                "perhaps for lack of memory; give a smaller --batch-size"
            ) from error


def _start_child(plugins: Sequence[str]) -> None:
    """Ignore Ctrl-C, which a terminal sends to parent and child alike, and import the parent's plug-ins."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    import_plugins(plugins)


def _peak_memory(source: Source, conditions: Conditions) -> int | None:
    kind = select_device(conditions.device).type
    with conditions.threads_set():
        if kind == "cuda" and not source.is_onnx:
            return _on_gpu(source, conditions)
        return _on_cpu(source, conditions) if kind == "cpu" and STATUS.is_file() else None


def _on_gpu(source: Source, conditions: Conditions) -> int:
    infer = Inference(*open_network(source, conditions.device), conditions)
    torch.cuda.reset_peak_memory_stats(infer.device)
    _embed(infer, conditions)
    return torch.cuda.max_memory_allocated(infer.device)


def _on_cpu(source: Source, conditions: Conditions) -> int:
    _embed(Inference(_Small().eval(), torch.device("cpu"), conditions), conditions)
    if source.is_onnx:
        importlib.import_module("onnxruntime")
    elif source.path is not None:
        with torch.device("meta"):  # its first use imports much; loading weights needs it
            nn.init.kaiming_normal_(torch.empty(8, 3, 3, 3))
    before = _resident("VmRSS")
    infer = Inference(*open_network(source, "cpu"), conditions)
    CLEAR_REFS.write_text(RESET_PEAK)
    _embed(infer, conditions)
    return max(0, _resident("VmHWM") - before)


def _embed(infer: Inference, conditions: Conditions) -> None:
    for _ in range(REPETITIONS):
        infer(conditions.batch_size)


class _Small(Backbone):
    """A network that makes torch load what every network on the CPU needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*conv_block(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.layers(x_B3HW)  # type: ignore[no-any-return]


def _resident(kind: str) -> int:
    """Resident memory of this process in bytes: VmRSS now, VmHWM at its peak.

    The maximum of getrusage is no substitute: it starts at the parent's memory.
    """
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{kind}:")]
    return int(line.split()[1]) * 1024


# ------------------------------------------- Latency and throughput, measured so that a busy machine favours no network


LEAST_SINGLES, LEAST_BATCHES = 4, 1  # repetitions per turn, however long they take
WAITED = 1.2
QUEUED = 0.2
SPREAD = 0.25


@dataclass
class Timings:
    """Durations of forward passes, in seconds.

    Attributes:
        batch_size: images per batch.
        single: durations with one image.
        batch: durations with `batch_size` images.
        rounds: median of `single` in each round.
        processor: time of the process on all processors, over all repetitions.
        queued: time that its threads were ready but had no processor, likewise; 0 where the system does not tell it.
    """

    batch_size: int
    single: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    processor: float = 0.0
    queued: float = 0.0

    def add_turn(self, infer: Callable[[int], None], seconds: float) -> None:
        """Time one image, then a batch unless that is one image too, for so many seconds each."""
        before = _queued()
        single, taken = _repeat(infer, 1, seconds, LEAST_SINGLES)
        batch, more = _repeat(infer, self.batch_size, seconds, LEAST_BATCHES) if self.batch_size > 1 else ([], 0.0)
        self.single += single
        self.batch += batch
        self.rounds.append(float(np.median(single)))
        self.processor += taken + more
        self.queued += max(0.0, _queued() - before)  # below 0 if a thread has ended

    def summary(self) -> dict[str, float]:
        """Latency percentiles in milliseconds, images per second from the median batch, and how busy the machine was.

        Where time is spent on another device, the processors' time says nothing, so only the spread does.
        """
        p50, p90 = np.percentile(self.single, [50, 90]) * 1000
        batch = self.batch if self.batch_size > 1 else self.single
        wall = sum(self.single) + sum(self.batch)
        waited = wall / max(self.processor, 1e-9)
        spread = (max(self.rounds) - min(self.rounds)) / float(np.median(self.rounds)) if self.rounds else 0.0
        return {
            "latency_p50_ms": float(p50),
            "latency_p90_ms": float(p90),
            "latency_repetitions": len(self.single),
            "throughput_images_per_second": float(self.batch_size / np.median(batch)),
            "throughput_repetitions": len(batch),
            "wall_to_processor_time": waited,
            "spread_of_rounds": spread,
            "busy": waited > WAITED or self.queued > QUEUED * wall or spread > SPREAD,
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
        timing.add_turn(infer, seconds / ROUNDS)
    return timings


def _queued() -> float:
    """Seconds for which threads of this process were ready but had no processor (man 5 proc_pid_schedstat)."""
    try:
        return sum(int(path.read_text().split()[1]) for path in TASKS.glob("*/schedstat")) / 1e9
    except (OSError, ValueError, IndexError):  # not Linux, or a thread has just ended
        return 0.0


def _repeat(infer: Callable[[int], None], images: int, seconds: float, least: int) -> tuple[list[float], float]:
    """Durations of repetitions that fill `seconds`, after one untimed pass, and the processors' time for them."""
    infer(images)
    durations: list[float] = []
    processor = time.process_time()
    start = now = time.perf_counter()
    while now - start < seconds or len(durations) < least:
        infer(images)
        before, now = now, time.perf_counter()
        durations.append(now - before)
    return durations, time.process_time() - processor
