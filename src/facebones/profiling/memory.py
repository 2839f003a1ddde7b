"""Peak memory of inference: weights, activations and what the libraries need besides, for one network.

On a GPU it is torch's own count (max_memory_allocated). On the CPU, allocators keep and share what they have, and
convolution libraries allocate past torch; so a new process is asked, for each network, how far its resident memory has
risen at its highest while it embeds, over what it held before the network was built (the interpreter, torch, ONNX
Runtime, and a small network that has run, so that what a library loads once is not charged to the network). What
building and loading took for a moment is not counted. The system tells this on Linux; elsewhere the figure is missing,
and so is that of an ONNX file on a GPU.
"""

import importlib
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from torch import Tensor, nn

from facebones.backbones.layers import conv_block
from facebones.backbones.registry import Backbone
from facebones.errors import RunError
from facebones.profiling.conditions import Conditions, Inference
from facebones.profiling.networks import Source, open_network
from facebones.system.device import select_device

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc_pid_clear_refs
REPETITIONS = 3  # the second pass may need more than the first: its answer is made before the first is given up


def measure_peak_memory(source: Source, conditions: Conditions) -> int | None:
    """Bytes, in a process of its own; None where the system does not tell.

    Raises:
        RunError: the process was ended from outside, which is what a system does that has no memory left.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would start with the memory of this process
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_ignore_interrupt) as pool:
        try:
            return pool.submit(_peak_memory, source, conditions).result()
        except BrokenProcessPool as error:
            raise RunError(
                f"{source.name}: the process that measured its memory at batch {conditions.batch_size} was ended, "
                "perhaps for lack of memory; give a smaller --batch-size"
            ) from error


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal signals the whole group; the parent ends this process


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
        with torch.device("meta"):  # where the embedding size is looked for; its first use imports much
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
    """Enough of a network to load what every network on the CPU needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*conv_block(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8))

    def forward(self, x_B3HW: Tensor) -> Tensor:
        return self.layers(x_B3HW)  # type: ignore[no-any-return]


def _resident(kind: str) -> int:
    """Bytes of this process's memory by the system's books: VmRSS now, VmHWM at its highest.

    Not getrusage: its maximum begins with what the parent process held.
    """
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{kind}:")]
    return int(line.split()[1]) * 1024
