"""Latencies of the built-in backbones in several runtimes, measured one network at a time and kept in a file.

A run measures what the file lacks, what a busy machine has disturbed, and what could not be prepared. So all networks
can be measured in pieces, and a run that was stopped continues. A disturbed latency is measured again at once, a few
times, for preparing a network takes far longer than timing it.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facebones.backbones.base import IMAGE_SIZE, Backbone
from facebones.errors import ConfigError, RunError, first_line
from facebones.evaluation.runtimes import RUNTIMES
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import check_packages, quiet, to_onnx
from facebones.onnx.openvino import onnx_in_openvino
from facebones.onnx.quantize import quantize
from facebones.profiling.conditions import ROUNDS, Conditions, Inference
from facebones.profiling.measurements import measure_timings
from facebones.profiling.networks import Source, open_network
from facebones.system.environment import processor_model, version_of
from facebones.system.progress import say

CPU = torch.device("cpu")
THREADS = (1, 2)
# In the order of the page's columns. torch has no int8 here: `facebones export --int8` writes ONNX files.
RUNTIMES_MEASURED = ("torch", "compiled", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-int8")
KEPT = ("latency_p50_ms", "latency_p90_ms", "latency_repetitions", "wall_to_processor_time", "spread_of_rounds", "busy")
ATTEMPTS = 4  # of a latency that the machine's other work disturbs, before it is left to the next run
CALIBRATION_IMAGES = 16  # of noise: ranges of activations do not change the speed
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino")

Latencies = dict[str, dict[str, dict[str, Any]]]  # by threads, then by runtime


def measuring_conditions(seconds: float) -> dict[str, Any]:
    """What all latencies of a file must have in common: the machine, the versions, and how long each was measured."""
    versions = {package: version_of(package) for package in ("torch", *PACKAGES)}
    machine = {"processor": processor_model(CPU), "processors": os.cpu_count()}
    return machine | versions | {"image_size": IMAGE_SIZE, "batch_size": 1, "rounds": ROUNDS, "seconds": seconds}


def check_measurable() -> None:
    """Check before long work that all runtimes can be measured.

    Raises:
        ConfigError: packages are missing, or there are fewer processors than threads.
    """
    check_packages("measuring latencies", PACKAGES, "export,openvino")
    if (os.cpu_count() or 1) < max(THREADS):
        raise ConfigError(f"latencies are measured on up to {max(THREADS)} threads; this machine has 1 processor")


def is_settled(cell: Mapping[str, Any] | None) -> bool:
    """Whether a latency needs no further measurement: it was measured while the machine was idle."""
    return cell is not None and cell.get("busy") is False


def unsettled(latencies: Latencies) -> dict[int, list[str]]:
    """The runtimes that are to be measured, by threads; thread counts without any are left out."""
    left = {
        threads: [one for one in RUNTIMES_MEASURED if not is_settled(latencies.get(str(threads), {}).get(one))]
        for threads in THREADS
    }
    return {threads: runtimes for threads, runtimes in left.items() if runtimes}


def measure_latencies(name: str, latencies: Latencies, seconds: float) -> Latencies:
    """Measure what is unsettled of one backbone, with random weights and in deploy form.

    Args:
        name: in the registry.
        latencies: what is known of it.
        seconds: the least time for each latency.

    Returns:
        the same with new entries: KEPT of `Timings.summary`, or "problem", why it cannot be measured.
    """
    found = {threads: dict(cells) for threads, cells in latencies.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = _Files(name, Path(folder))
        for threads, runtimes in unsettled(latencies).items():
            conditions = Conditions(device="cpu", threads=threads, batch_size=1, seconds=seconds)
            with conditions.threads_set():
                new = _measure(files, runtimes, conditions)
            found[str(threads)] = found.get(str(threads), {}) | new
            torch.compiler.reset()  # a network compiled for one number of threads is no use to another
    return {threads: {one: cells[one] for one in RUNTIMES_MEASURED} for threads, cells in found.items()}


def _measure(files: "_Files", runtimes: Iterable[str], conditions: Conditions) -> dict[str, dict[str, Any]]:
    """Prepare a network for each runtime, then time all of them in turns; once more those that were disturbed."""
    cells: dict[str, dict[str, Any]] = {}
    ready: dict[str, Callable[[int], None]] = {}
    for runtime in runtimes:
        say(f"{files.name}: preparing {runtime}, {conditions.threads} thread{'s' * (conditions.threads != 1)}")
        try:
            infer = _PREPARE[runtime](files, conditions)
            infer(1)
        except Exception as error:  # noqa: BLE001 (exporters, compilers and runtimes raise errors of many kinds)
            cells[runtime] = {"problem": first_line(error).replace(f"{files.folder}{os.sep}", "")[:200]}
            say(f"{files.name}: {runtime}: {cells[runtime]['problem']}")
        else:
            ready[runtime] = infer
    for _ in range(ATTEMPTS):
        left = [runtime for runtime in ready if not is_settled(cells.get(runtime))]
        timings = measure_timings([ready[runtime] for runtime in left], 1, conditions.seconds) if left else []
        for runtime, timing in zip(left, timings, strict=True):
            summary = timing.summary()
            cells[runtime] = {key: summary[key] for key in KEPT}
    return cells


class _Files:
    """A network and the files that are made of it, each once; a file that cannot be made fails once, then at once."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.network: Backbone = open_network(Source(name), "cpu")[0]
        self._made: dict[str, Path | Exception] = {}

    def fp32(self) -> Path:
        """The network as ONNX."""

        def export(path: Path) -> None:
            path.write_bytes(to_onnx(self.network, self.name).SerializeToString())

        return self._once("fp32.onnx", export)

    def int8(self) -> Path:
        """The same in 8 bits, as `facebones export --int8` makes it."""

        def make(path: Path) -> None:
            shape = (CALIBRATION_IMAGES, IMAGE_SIZE, IMAGE_SIZE, 3)
            images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            with quiet():
                quantize(OnnxBackbone(self.fp32()), path, list(images))

        return self._once("int8.onnx", make)

    def int8_for_openvino(self) -> Path:
        """The same, tried in another process: OpenVINO 2026.4 crashes on some of these files."""

        def try_it(path: Path) -> None:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                try:
                    pool.submit(_run_in_openvino, self.int8()).result()
                except BrokenProcessPool as error:
                    raise RunError("OpenVINO crashes when it compiles the int8 file") from error

        self._once("tried", try_it)
        return self.int8()

    def _once(self, file: str, make: Callable[[Path], None]) -> Path:
        if file not in self._made:
            try:
                make(self.folder / file)
                self._made[file] = self.folder / file
            except Exception as error:  # noqa: BLE001 (raised below, each time)
                self._made[file] = error
        made = self._made[file]
        if isinstance(made, Exception):
            raise made
        return made


def _run_in_openvino(path: Path) -> None:
    onnx_in_openvino(OnnxBackbone(path), 1, "f32")(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))


def _torch(files: _Files, conditions: Conditions) -> Inference:
    return Inference(files.network, CPU, conditions)


def _compiled(files: _Files, conditions: Conditions) -> Inference:
    """As `--runtime compiled` does it: channels last, with frozen weights."""
    prepare = RUNTIMES["compiled"].prepare
    assert prepare is not None  # noqa: S101 (the table says so)
    network = open_network(Source(files.name), "cpu")[0].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layout = Conditions(device="cpu", threads=conditions.threads, batch_size=1, channels_last=True)
    return Inference(prepare(network, 1), CPU, layout)


def _onnx(files: _Files, conditions: Conditions) -> Inference:
    return Inference(OnnxBackbone(files.fp32(), threads=conditions.threads), CPU, conditions)


def _onnx_int8(files: _Files, conditions: Conditions) -> Inference:
    return Inference(OnnxBackbone(files.int8(), threads=conditions.threads), CPU, conditions)


def _openvino(files: _Files, conditions: Conditions) -> Inference:
    return Inference(onnx_in_openvino(OnnxBackbone(files.fp32()), 1, "f32"), CPU, conditions)


def _openvino_int8(files: _Files, conditions: Conditions) -> Inference:
    return Inference(onnx_in_openvino(OnnxBackbone(files.int8_for_openvino()), 1, "f32"), CPU, conditions)


_PREPARE: dict[str, Callable[[_Files, Conditions], Callable[[int], None]]] = dict(
    zip(RUNTIMES_MEASURED, (_torch, _compiled, _onnx, _onnx_int8, _openvino, _openvino_int8), strict=True)
)
