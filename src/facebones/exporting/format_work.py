"""What the child process of an export does for each format: write, compare, evaluate, time. All names are pickled."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from facebones.backbones.base import Backbone
from facebones.data.images import ImageArray
from facebones.evaluation.pairs import read_sound_set
from facebones.evaluation.verification import PairSetResult, evaluate_pair_set
from facebones.exporting.formats import FORMATS, Material
from facebones.exporting.int8_diagnosis import diagnose
from facebones.exporting.onnx_file import load_for_export
from facebones.onnx.quantize import stack_images
from facebones.plugins import import_plugins
from facebones.profiling.measurements import measure_timings
from facebones.system.crash_proof import State

PYTORCH = "pytorch"  # the network itself, which the files are compared with
CPU = torch.device("cpu")
KEPT = ("latency_p50_ms", "latency_p90_ms", "latency_repetitions", "wall_to_processor_time", "spread_of_rounds", "busy")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a new process needs to know.

    Attributes:
        model: a run's folder or a file of weights.
        backbone: its name, if the file does not state it.
        folder: for files that other files are made of.
        calibration: images for the ranges of activations, (112, 112, 3) uint8 RGB.
        float_layers: layers that 8-bit files leave in fp32.
        threads: of torch and the runtimes.
        plugins: to import first.
    """

    model: Path
    backbone: str | None
    folder: Path
    calibration: Sequence[ImageArray]
    float_layers: Sequence[str]
    threads: int
    plugins: Sequence[str]


def prepare(state: State, order: Order) -> None:
    """Load the network; the other functions need it."""
    _keep_tqdm_in_process()
    import_plugins(order.plugins)
    torch.set_num_threads(order.threads)
    network, path = load_for_export(order.model, order.backbone)
    state["material"] = Material(network, path, order.folder, order.calibration, order.float_layers)


def _keep_tqdm_in_process() -> None:
    """Give tqdm, which torch's exporter shows its progress by, a lock that a crash does not leave to the system."""
    with suppress(ImportError):
        import_module("tqdm").tqdm.set_lock(RLock())


def size_of_weights(state: State) -> int:
    """Bytes of the network's weights, in its deploy form."""
    return sum(tensor.nbytes for tensor in state["material"].deployed.state_dict().values())


def write(state: State, name: str, path: Path) -> None:
    """Write a format's files, of which `path` is the first."""
    FORMATS[name].write(state["material"], path)


def compare(state: State, name: str, path: Path, faces: Sequence[ImageArray]) -> dict[str, float | None]:
    """Compare embeddings of a file with those of the network as it was trained.

    Returns:
        "deviation": the largest difference of a number, relative to the embedding's norm; "cosine_min", "cosine_mean".
        None if an embedding is zero or not finite.
    """
    x = stack_images(faces)
    if "expected" not in state:
        state["expected"] = _embedded(state["material"].network, x)
    expected = state["expected"]
    found = _embedded(_opened(state, name, path, len(faces)), x)
    deviation = ((found - expected).abs().amax(1) / expected.norm(dim=1)).max()
    cosines = (found * expected).sum(1) / (found.norm(dim=1) * expected.norm(dim=1))
    if not (cosines.isfinite().all() and deviation.isfinite()):
        return {"deviation": None, "cosine_min": None, "cosine_mean": None}
    return {"deviation": float(deviation), "cosine_min": float(cosines.min()), "cosine_mean": float(cosines.mean())}


def evaluate(state: State, name: str, path: Path, pairs: Path, batch_size: int) -> PairSetResult:
    """Verify a pair set by a file, or by the network, as `facebones evaluate pairs` does."""
    network = _opened(state, name, path, batch_size)
    return evaluate_pair_set(network, read_sound_set(pairs), device=CPU, batch_size=batch_size)


def time_all(state: State, paths: Mapping[str, Path], seconds: float) -> dict[str, dict[str, Any]]:
    """Latencies of one face: all files and the network in its deploy form take turns.

    Returns:
        KEPT of `Timings.summary` for each.
    """
    image = torch.zeros(1, 3, 112, 112)
    networks = [
        state["material"].deployed if name == PYTORCH else _opened(state, name, path, 1) for name, path in paths.items()
    ]
    inferences = [partial(_embed_copies, network, image) for network in networks]
    summaries = [timing.summary() for timing in measure_timings(inferences, 1, seconds)]
    return {name: {key: one[key] for key in KEPT} for name, one in zip(paths, summaries, strict=True)}


def find_loss(state: State, faces: Sequence[ImageArray]) -> dict[str, Any]:
    """The diagnosis of the 8-bit file."""
    material: Material = state["material"]
    return diagnose(material.fp32, material.int8, material.calibration, faces, material.folder)


def _opened(state: State, name: str, path: Path, batch_size: int) -> Backbone:
    if name == PYTORCH:
        network: Backbone = state["material"].network
        return network
    return FORMATS[name].open(path, batch_size)


def _embedded(network: Backbone, x_B3HW: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        embeddings: torch.Tensor = network(x_B3HW)
        return embeddings.double()


def _embed_copies(network: Backbone, image: torch.Tensor, copies: int) -> None:
    with torch.inference_mode():
        network(image.expand(copies, -1, -1, -1))
