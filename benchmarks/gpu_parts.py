"""The measurements of `benchmarks/gpu.py`: each part writes its rows, one JSON object a line, as soon as it has them.

A part first says which rows it plans. So whoever reads the file knows which are missing, even if this process is
killed. An error, such as a lack of memory, is a row of its own; the next row is measured.
"""

import argparse
import json
import math
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import data_path
import numpy as np
import scaling
import torch
from gpu_sides import (
    GIB,
    SMALL,
    Bench,
    Sizes,
    Step,
    compared,
    free,
    in_turns,
    made_up_batch,
    our_embedding,
    our_side,
    plain_embedding,
    plain_side,
    said,
)

from facebones.data.folders import open_training_set
from facebones.data.loader import PREFETCH, EpochOrder, training_batches
from facebones.data.preprocessing import to_network_input
from facebones.evaluation.models import AUTOCAST_TYPE
from facebones.system.environment import git_revision, processor_model

ROOT = Path(__file__).parents[1]


class Log:
    """Rows of one part, appended to a file and printed."""

    def __init__(self, path: Path, part: str, seconds: float) -> None:
        self.path, self.part, self.ends = path, part, time.monotonic() + seconds

    def write(self, **values: Any) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"part": self.part, **values}) + "\n")

    def row(self, name: str, values: Mapping[str, Any]) -> None:
        """Append a row; NaN and infinity, which JSON lacks, become None."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self.write(row=name, values=clean)
        print(f"{self.part}: {name}: {', '.join(f'{k} {v:.4g}' for k, v in clean.items() if isinstance(v, float))}"
              f"{clean.get('error', '')}", flush=True)  # fmt: skip

    def measure(self, planned: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
        """Measure the rows one after the other while there is time."""
        self.write(planned=list(planned))
        for name, work in planned.items():
            if time.monotonic() >= self.ends:
                return
            self.row(name, attempt(work))


def attempt(work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The values of a row, or its error, whose memory is freed."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 (any error is a row)
        return {"error": said(error)}
    finally:
        free()


def training_row(bench: Bench, backbone: str, count: int, compiled: bool) -> dict[str, Any]:
    """Ours and the plain loop in the 16-bit format, and the plain one in fp32."""
    classes, precision = bench.sizes.classes, bench.precision
    batch = made_up_batch(bench, count, classes)
    fields = {"training.precision": precision, "training.compile": str(compiled).lower()}
    sides = {"ours": our_side(bench, backbone, batch, classes, fields)}
    sides["plain"] = plain_side(bench, backbone, batch, classes, precision)
    if not compiled and precision != "fp32":
        sides["plain_fp32"] = plain_side(bench, backbone, batch, classes, "fp32")
    setting = f"{precision} compile" if compiled else precision
    return {"setting": setting} | compared(*in_turns(bench, sides), count)


def training(bench: Bench, log: Log) -> None:
    """Images a second of training steps: all backbones at the smallest batch first."""
    sizes = bench.sizes
    rows = [(name, count, False) for count in sizes.batches for name in sizes.backbones]
    rows += [(name, sizes.compiled_batch, True) for name in sizes.compiled]
    log.measure({
        f"{name}, batch {count}{', compiled' * compiled}": partial(training_row, bench, name, count, compiled)
        for name, count, compiled in rows
    })  # fmt: skip


def head_row(bench: Bench, rate: float | None) -> dict[str, Any]:
    """Ours at a sample rate, or the plain dense head; alone on the device."""
    sizes, precision = bench.sizes, bench.precision
    batch = made_up_batch(bench, sizes.head_batch, sizes.head_classes)
    if rate is None:
        side = plain_side(bench, sizes.head_backbone, batch, sizes.head_classes, precision)
    else:
        fields = {"training.precision": precision, "head.sample_rate": str(rate)}
        side = our_side(bench, sizes.head_backbone, batch, sizes.head_classes, fields)
    started, errors = in_turns(bench, {"ours": side})
    row = {"backbone": sizes.head_backbone, "classes": sizes.head_classes, "batch": sizes.head_batch}
    row |= {"setting": precision}
    if started:
        row["seconds_per_step"] = statistics.median(started["ours"].seconds)
    return row | compared(started, errors, sizes.head_batch)


def head(bench: Bench, log: Log) -> None:
    """A step with a large head: sampled centres, all centres, and the plain head."""
    log.measure({("plain" if rate is None else f"rate {rate:g}"): partial(head_row, bench, rate)
                 for rate in (0.1, 1.0, None)})  # fmt: skip


def rate_over(seconds: float, images: int, work: Step) -> dict[str, float]:
    """Images a second of work on so many images, repeated for some time."""
    begin, done = time.perf_counter(), 0
    while not done or time.perf_counter() - begin < seconds:
        work()
        done += images
    return {"images_per_second": done / (time.perf_counter() - begin)}


def bare_row(bench: Bench, records: Path) -> dict[str, Any]:
    """`cv2.imdecode` over images in memory, in this process."""
    import cv2

    data = open_training_set(records)
    encoded = [np.frombuffer(data.read(index)[0], np.uint8) for index in range(min(len(data), 1024))]

    def decode_all() -> None:
        for buffer in encoded:
            cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB)

    return {"workers": 0} | rate_over(2 * bench.sizes.seconds, len(encoded), decode_all)


def loader_row(bench: Bench, records: Path, workers: int, to_input: bool) -> dict[str, Any]:
    """Batches as a training gets them; with `to_input`, flipped and normalised on the device."""
    data, size = open_training_set(records), bench.sizes.loader_batch
    order = EpochOrder(data, batch_size=size, batches_per_epoch=len(data) // size, first=0, last=10**9, seed=0)
    with closing(training_batches(order, workers=workers, pin_memory=bench.device.type == "cuda")) as batches:

        def take() -> None:
            images, _ = next(batches)
            if to_input:
                mirror_B = bench.on_host(torch.rand(len(images)) < 0.5).to(bench.device, non_blocking=True)
                to_network_input(images.to(bench.device, non_blocking=True), True, mirror_B)
                bench.wait()

        for _ in range((PREFETCH + 2) * workers):  # those that were ready before the clock ran
            take()
        return {"workers": workers} | rate_over(3 * bench.sizes.seconds, size, take)


def loader(bench: Bench, log: Log) -> None:
    """The loader alone, from a record file of drawn images."""
    records, workers = bench.folder / "train.rec", bench.sizes.workers
    data_path.generate(records, bench.sizes.images, 0)
    log.measure({
        "cv2.imdecode alone": partial(bare_row, bench, records),
        "in the training process": partial(loader_row, bench, records, 0, False),
        f"{workers} workers": partial(loader_row, bench, records, workers, False),
        f"{workers} workers, to the network's input": partial(loader_row, bench, records, workers, True),
    })  # fmt: skip


def embedding_row(bench: Bench, backbone: str, precision: str, compiled: bool) -> dict[str, Any]:
    """Ours and plain fp32 in turn."""
    count = bench.sizes.embedding_batch
    images = np.random.default_rng(0).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)
    sides = {
        "plain": plain_embedding(bench, backbone, images),
        "ours": our_embedding(bench, backbone, images, precision, compiled),
    }
    setting = f"{precision} compile" if compiled else precision
    return {"setting": setting} | compared(*in_turns(bench, sides), count)


def embedding(bench: Bench, log: Log) -> None:
    """Images a second of the embedding pass, without reading."""
    count = bench.sizes.embedding_batch
    rows = [(name, precision, False) for precision in AUTOCAST_TYPE for name in bench.sizes.backbones]
    rows += [(name, "bf16", True) for name in bench.sizes.compiled]
    log.measure({
        f"{name}, batch {count}, {setting[0]}{', compiled' * setting[1]}": partial(embedding_row, bench, name, *setting)
        for name, *setting in rows
    })  # fmt: skip


def devices_row(bench: Bench, backbone: str, count: int) -> dict[str, Any]:
    """`facebones train` on all GPUs and on one, in turn."""
    settings = argparse.Namespace(
        **{"backbone": backbone, "device": "cuda", "precision": bench.precision, "processes": count},
        **{"batch_size": bench.sizes.batches[0], "steps": 40, "warm_up": 20},
    )
    found = scaling.turn(bench.folder, count * settings.batch_size, settings)
    return {
        **{"gpus": count, "batch": count * settings.batch_size, "setting": bench.precision},
        **{"images_per_second": found["several"], "one_images_per_second": found["one"]},
        "efficiency": found["several"] / (count * found["one"]),
    }


def devices(bench: Bench, log: Log) -> None:
    """Training on all GPUs of this machine, against one of them."""
    count = torch.cuda.device_count() if bench.device.type == "cuda" else 0
    if count < 2:
        log.write(error=f"it needs two GPUs; {count} here")
        return
    log.measure({name: partial(devices_row, bench, name, count) for name in bench.sizes.compiled})


class Reporter:
    """A plug-in of pytest that logs each test as a row."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def pytest_collection_finish(self, session: Any) -> None:
        """Plan what will run."""
        self.log.write(planned=[item.name for item in session.items])

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Log a test that ended."""
        name = report.nodeid.partition("::")[2]
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.log.row(name, {"outcome": "skipped", "reason": reason.removeprefix("Skipped: ")})
        elif report.failed:
            lines = re.findall(r"^E +(.*)", report.longreprtext, re.MULTILINE)
            reason = " | ".join(lines)[:500] or report.longreprtext[-500:]
            self.log.row(
                name, {"outcome": "failed", "reason": reason, "error": reason, "log": report.longreprtext[-3000:]}
            )
        elif report.when == "call":
            self.log.row(name, {"outcome": "passed", "seconds": report.duration})


def tests(bench: Bench, log: Log) -> None:
    """The tests that need CUDA (marker `gpu`)."""
    try:
        import pytest
    except ImportError:
        log.write(error="pytest is not installed here")
        return
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]  # of a pytest that runs this script
    words = ["-m", "gpu", "-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib"]
    words += ["-p", "no:cacheprovider", "-p", "no:terminal", "-c", str(ROOT / "pyproject.toml")]
    status = pytest.main([*words, str(ROOT / "tests" / "gpu")], plugins=[Reporter(log)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        log.write(error=f"pytest ended with status {int(status)}")


PARTS: dict[str, Callable[[Bench, Log], None]] = {
    **{"tests": tests, "training": training, "head": head, "embedding": embedding, "loader": loader},
    "devices": devices,
}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures hold for."""
    found: dict[str, Any] = {
        **{"platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__},
        **{"cpu": processor_model(torch.device("cpu")), "cores": os.cpu_count(), "revision": git_revision()},
        "device": str(device),
    }
    if device.type == "cuda":
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found["gpus"] = [f"{each.name}, {each.total_memory / GIB:.0f} GiB" for each in properties]
        found |= {"cuda": torch.version.cuda, "hip": torch.version.hip, "cudnn": torch.backends.cudnn.version()}
    return found


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="+", help="NAME=SECONDS")
    parser.add_argument("--rows", type=Path, required=True, help="file to append to")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    Log(arguments.rows, "machine", 0).write(values=machine(device))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device=device, sizes=SMALL if arguments.small else Sizes(), folder=Path(folder))
        for name, _, seconds in (part.partition("=") for part in arguments.parts):
            begin, log = time.monotonic(), Log(arguments.rows, name, float(seconds))
            try:
                PARTS[name](bench, log)
            except Exception as error:  # noqa: BLE001 (the other parts run)
                log.write(error=said(error))
            log.write(ended=time.monotonic() - begin)


if __name__ == "__main__":
    main()
