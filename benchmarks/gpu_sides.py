"""The sides that `benchmarks/gpu.py` compares, ours and plain ones, and how they take turns on one device."""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import PlainTraining
from torch import Tensor

from facebones.backbones import create_backbone
from facebones.backbones.base import evaluation_mode
from facebones.data.training_set import TrainingSet, register_data_format
from facebones.evaluation.models import AUTOCAST_TYPE, load_model
from facebones.evaluation.runtimes import run_by
from facebones.recipe import load_recipe
from facebones.system.device import device_settings
from facebones.training.step import Batch
from facebones.training.trainer import Trainer

WARM_UP = 3  # steps before the first round
TURN = 0.1  # seconds that a side has at least in a round: one short step is mostly waiting
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured: as large as on a GPU, or as small as a test of this script needs."""

    backbones: tuple[str, ...] = ("mobilefacenet_wide", "shufflefacenet_1_0", "mixfacenet_s", "iresnet50")
    batches: tuple[int, ...] = (128, 256, 512, 1024)
    classes: int = 8631
    compiled: tuple[str, ...] = ("mobilefacenet_wide", "iresnet50")
    compiled_batch: int = 256
    head_backbone: str = "iresnet50"
    head_classes: int = 1_000_000
    head_batch: int = 128
    images: int = 4096
    loader_batch: int = 128
    workers: int = min(16, os.cpu_count() or 1)
    embedding_batch: int = 256
    seconds: float = 1.0  # of each side
    rounds: int = 3  # at least


SMALL = Sizes(
    **{"backbones": ("shufflefacenet_0_5",), "batches": (2,), "classes": 20, "compiled": (), "compiled_batch": 2},
    **{"head_backbone": "shufflefacenet_0_5", "head_classes": 200, "head_batch": 2, "images": 32, "loader_batch": 2},
    **{"workers": 1, "embedding_batch": 2, "seconds": 0.01, "rounds": 1},
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Device, sizes, and a folder for files."""

    device: torch.device
    sizes: Sizes
    folder: Path

    @property
    def precision(self) -> str:
        """The 16-bit format of this GPU: bf16, or fp16 where bf16 is only emulated; fp32 on a CPU."""
        if self.device.type == "cpu":
            return "fp32"
        if torch.version.cuda and torch.cuda.get_device_capability(self.device) < (8, 0):
            return "fp16"
        return "bf16"

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def on_host(self, tensor: Tensor) -> Tensor:
        """In memory from which a copy to the device needs no wait, where batches of a loader are."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor


def said(error: BaseException) -> str:
    """One line of an error."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory"
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {first}"


def free() -> None:
    """Give the device's memory back, so that the next row finds all of it."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


Step = Callable[[], object]
Settings = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of those that are compared.

    Attributes:
        build: builds it on the device; what it returns does one step.
        settings: of CUDA while it computes.
    """

    build: Callable[[], Step]
    settings: Settings


@contextmanager
def torch_defaults() -> Iterator[None]:
    """CUDA as torch ships it, and cuDNN benchmarks its algorithms, as most trainers of the field ask for."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32 = True, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before


@dataclass
class Started:
    """A side that has done its first steps.

    Attributes:
        repeats: steps of a turn.
        peak_gib: most memory of the device that its first steps took, its weights included; None on a CPU.
        seconds: of a step, in each round.
    """

    side: Side
    step: Step
    repeats: int
    peak_gib: float | None
    seconds: list[float]


def start(bench: Bench, side: Side) -> Started:
    """Build a side and warm it up."""
    cuda = bench.device.type == "cuda"
    free()
    if cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
        before = torch.cuda.memory_allocated(bench.device)
    with side.settings():
        step = side.build()
        for _ in range(WARM_UP if cuda else 1):
            bench.wait()
            begin = time.perf_counter()
            step()
            bench.wait()
        seconds = time.perf_counter() - begin
    peak = (torch.cuda.max_memory_allocated(bench.device) - before) / GIB if cuda else None
    repeats = max(1, math.ceil(TURN / seconds)) if cuda else 1
    return Started(side, step, repeats, peak, [])


def in_turns(bench: Bench, sides: Mapping[str, Side]) -> tuple[dict[str, Started], dict[str, str]]:
    """Steps of all sides in turn; and the errors of those that could not start."""
    started, errors = {}, {}
    for name, side in sides.items():
        try:
            started[name] = start(bench, side)
        except Exception as error:  # noqa: BLE001 (part of the row)
            errors[name] = said(error)
    ends = time.monotonic() + bench.sizes.seconds * len(started)
    rounds = 0
    while started and (rounds < bench.sizes.rounds or time.monotonic() < ends):
        rounds += 1
        for each in started.values():
            with each.side.settings():
                bench.wait()
                begin = time.perf_counter()
                for _ in range(each.repeats):
                    each.step()
                bench.wait()
                each.seconds.append((time.perf_counter() - begin) / each.repeats)
    return started, errors


def compared(started: Mapping[str, Started], errors: Mapping[str, str], images: int) -> dict[str, Any]:
    """Images a second of each side, peak memory of ours, and its ratio to `plain`: median, lowest, highest."""
    row: dict[str, Any] = {}
    for name, each in started.items():
        prefix = "" if name == "ours" else f"{name}_"
        row[f"{prefix}images_per_second"] = images / statistics.median(each.seconds)
        if each.peak_gib is not None:
            row[f"{prefix}peak_gib"] = each.peak_gib
    if {"plain", "ours"} <= started.keys():
        pairs = zip(started["plain"].seconds, started["ours"].seconds, strict=True)
        ratios = sorted(plain / ours for plain, ours in pairs)
        row |= {"ratio": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1]}
    if errors:
        row["error"] = "; ".join(f"{name}: {text}" for name, text in errors.items())
    return row


@register_data_format
class MadeUp(TrainingSet):
    """As many people as the name of the file says, `8631.people`, with one image each, which nobody reads."""

    name = "made-up"

    @classmethod
    def find(cls, path: Path) -> bool:
        """Whether the file's name says a number of people."""
        return path.suffix == ".people"

    def __init__(self, path: Path) -> None:
        self.path, self.labels = path, np.arange(int(path.stem))

    def read(self, index: int) -> tuple[bytes, int]:
        """No image is needed."""
        raise NotImplementedError


def made_up_batch(bench: Bench, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Images (B, 112, 112, 3) uint8 and labels (B,) on the host."""
    images = torch.randint(0, 256, (count, 112, 112, 3), dtype=torch.uint8)
    return bench.on_host(images), bench.on_host(torch.arange(count) % classes)


def plain_side(bench: Bench, backbone: str, batch: tuple[Tensor, Tensor], classes: int, precision: str) -> Side:
    """`plain.PlainTraining` on images that its loader has normalised in fp32."""

    def build() -> Step:
        training = PlainTraining(backbone, classes, 0.001, 0.5, device=bench.device, autocast=AUTOCAST_TYPE[precision])
        images, label_B = batch
        x_B3HW = bench.on_host(((images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5).contiguous())

        def step() -> None:
            x, labels = (each.to(bench.device, non_blocking=True) for each in (x_B3HW, label_B))
            training.step(x, labels)

        return step

    return Side(build=build, settings=torch_defaults)


def our_side(
    bench: Bench, backbone: str, batch: tuple[Tensor, Tensor], classes: int, fields: Mapping[str, str]
) -> Side:
    """`Trainer.train_step`, as `facebones train` takes it."""

    def build() -> Step:
        data = bench.folder / f"{classes}.people"
        data.touch()
        all_fields = {
            **{"backbone.name": backbone, "data.path": str(data), "validation.sets": ""},
            **{"training.batch_size": str(len(batch[1])), "training.epochs": "1000000", "training.clip_norm": "0"},
            **{"optimizer.learning_rate": "0.001"},
        }
        trainer = Trainer(load_recipe("vggface2_arcface", all_fields | fields), bench.device)
        return lambda: trainer.train_step([Batch(*batch)])

    return Side(build=build, settings=partial(device_settings, bench.device))


def plain_embedding(bench: Bench, backbone: str, images: np.ndarray) -> Side:
    """Eager, fp32, contiguous, on images that are normalised already; embeddings come back to the host."""

    def build() -> Step:
        network = create_backbone(backbone).eval().to(bench.device)
        x_B3HW = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5).contiguous()
        x_B3HW = bench.on_host(x_B3HW)

        def step() -> None:
            with torch.inference_mode():
                network(x_B3HW.to(bench.device, non_blocking=True)).cpu()

        return step

    return Side(build=build, settings=torch_defaults)


def our_embedding(bench: Bench, backbone: str, images: np.ndarray, precision: str, compiled: bool) -> Side:
    """`Model.__call__`, as the embedding pass of an evaluation calls it."""

    def build() -> Step:
        model = load_model(backbone, device=str(bench.device))
        if compiled:
            model = run_by(model, "compiled-bf16", len(images))
        model = replace(model, precision=precision)

        def step() -> None:
            with evaluation_mode(model.network):
                model(images, flip=False)

        return step

    return Side(build=build, settings=partial(device_settings, bench.device))
