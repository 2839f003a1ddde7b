"""Claims: W processes hold 1/W of the head each, and two train at least 1.7 times as fast as one.

The second holds where each normalises its own part of the batch (`--batch-norm own`, as DistributedDataParallel does);
over the whole batch it is not reached yet.

Efficiency: images/s of `facebones train --devices W` on W cores against W times those of one process on one core, each
process with one thread. The trainings take turns; the ratio is the median of those within a turn. The batch grows with
W (so many images a process), or stays as it is. `at once` is what the machine gives: W trainings of one process beside
each other, which share nothing but memory and caches. Where other programs use the machine too, no ratio of rates
holds; that of the processor time of an image on one process to that on W still says what sharing costs.

Canonical shards: W processes with W shards against W processes without, by the rate and by the processor time of an
image; and one process with W shards against one without.

Bytes: what all processes of a machine send in a step, by the counter of its loopback device, of which the least of some
steps is taken (others may use the device too), against the least that any way could send: gradients, sums of batch
normalisation, embeddings and their gradients, labels, and three numbers a row for the softmax.

Heads: the most resident memory of a process while it builds its part of a head with the optimizer's state, and, with
all W processes, takes steps; against 1/W of the centres and momentum of the whole. Where these do not fit into the
memory, that is said.

    python benchmarks/scaling.py [--processes 2] [--turns 3] [--parts efficiency canonical heads] [--output FILE.json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from scaling_heads import measure_heads

CLASSES, EMBEDDING = 8631, 512
LONGEST = 1800.0  # seconds of a training
ENDING = 30.0  # seconds that it has to end after SIGTERM
POLL = 0.01
AIM = 0.85
PARTS = ("efficiency", "canonical", "heads")


class NoRunError(Exception):
    """A training that did not run, in one line."""


def write_data(folder: Path, images: int) -> Path:
    """A record file of so many images, whose labels reach to the last class."""
    import cv2
    import numpy as np

    from facebones.data.record_writer import RecordWriter
    from facebones.data.recordio import Header, pack

    coarse = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC))[1].tobytes()
    path = folder / f"{images}.rec"
    if not path.exists():
        with RecordWriter(path) as writer:
            for index in range(images):
                label = index * (CLASSES - 1) // max(1, images - 1)
                writer.write(index + 1, pack(Header(label=float(label), id=index + 1), jpeg))
    return path


class Training:
    """A training in processes of one thread each, on cores of its own.

    Args:
        folder: for data and run.
        processes: W.
        batch: images of a step, of all processes.
        cores: where it may run.
        shards: canonical shards; 0: none.
        arguments: of the command line, an argparse.Namespace.

    Attributes:
        sent: bytes over the loopback device up to the end of each step.
        used: processor time of its processes up to the end of each step.
    """

    def __init__(
        self, folder: Path, processes: int, batch: int, cores: set[int], *, shards: int, arguments: argparse.Namespace
    ) -> None:
        self.processes, self.batch, self.steps = processes, batch, arguments.steps + arguments.warm_up
        self.sent: list[int] = []
        self.used: list[float] = []
        self.output = Path(tempfile.mkdtemp(dir=folder)) / "run"
        data = write_data(folder, batch * self.steps)
        words = [sys.executable, "-m", "facebones", "train", "vggface2_arcface", "--data", data]
        words += ["--backbone", arguments.backbone, "--output", self.output, "--device", arguments.device]
        fields = {
            **{"training.batch_size": batch, "training.epochs": 1, "training.precision": arguments.precision},
            **{"training.canonical_shards": shards, "training.clip_norm": 0, "validation.sets": "", "log.every": 1},
            "training.batch_norm": arguments.batch_norm,
            "data.workers": 0 if arguments.device == "cpu" else min(8, (os.cpu_count() or 1) // processes),
            **{"optimizer.learning_rate": 0.001, "training.checkpoint_every": 1_000_000},
        }
        words += [word for name, value in fields.items() for word in (f"--{name}", value)]
        words += ["--devices", processes] if processes > 1 else []
        self.error = (folder / "error").open("w+")
        self.process = subprocess.Popen(
            [*pinned(cores, arguments.device), *map(str, words)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=self.error,
            stderr=self.error,
        )

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its steps so far."""
        path = self.output / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        read = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in read if line["kind"] == "train"]

    def wait(self) -> "Training":
        """Until it has ended.

        Raises:
            NoRunError: it failed, or took too long.
        """
        ends = time.monotonic() + LONGEST
        while self.process.poll() is None and time.monotonic() < ends:
            if (count := len(self.lines())) > len(self.sent):
                self.sent += [loopback_bytes()] * (count - len(self.sent))
                self.used += [processor_seconds(self.process.pid)] * (count - len(self.used))
            time.sleep(POLL)
        if self.process.poll() != 0 or len(self.lines()) != self.steps:
            status = self.process.poll()
            self.close()
            self.error.seek(0)
            said = (self.error.read().strip().splitlines() or ["nothing"])[-1]
            how = f"is not over after {LONGEST:.0f} s" if status is None else f"ended with status {status}"
            raise NoRunError(f"facebones train on {self.processes} processes {how}: {said}")
        return self

    def seconds_per_image(self, warm_up: int) -> float:
        """Processor time of all processes, which does not count what other programs do."""
        last = len(self.used) - 1
        return (self.used[last] - self.used[warm_up - 1]) / (self.batch * (last - warm_up + 1))

    def bytes_per_step(self, warm_up: int) -> int:
        """The least of the steps: other programs can only add to it."""
        return min((after - before for before, after in pairwise(self.sent[warm_up - 1 :])), default=0)

    def rate(self, warm_up: int) -> float:
        """Images a second: the median over the steps after the first ones."""
        return statistics.median(line["images_per_second"] for line in self.lines()[warm_up:])

    def close(self) -> None:
        """End its processes: the first one ends the others."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(ENDING)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def pinned(cores: set[int], device: str) -> list[str]:
    """The beginning of a command that stays on these cores; on a GPU it may use all."""
    if device != "cpu" or not hasattr(os, "sched_setaffinity"):
        return []
    program = f"import os, sys; os.sched_setaffinity(0, {cores}); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", program]


def own_cores(count: int, device: str) -> list[int]:
    """Cores for so many processes.

    Raises:
        NoRunError: there are fewer.
    """
    if not hasattr(os, "sched_getaffinity"):
        return list(range(count))
    cores = sorted(os.sched_getaffinity(0))
    if device == "cpu" and len(cores) < count:
        raise NoRunError(f"{count} processes need as many cores, and this machine has {len(cores)}")
    return cores[:count]


def turn(folder: Path, batch: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Images a second of one process, of W, and of W trainings at once; and the bytes of a step of W."""
    several, warm_up = arguments.processes, arguments.warm_up
    cores = own_cores(several, arguments.device)
    started: list[Training] = []

    def train(processes: int, images: int, on: Sequence[int], shards: int = 0) -> Training:
        started.append(Training(folder, processes, images, set(on), shards=shards, arguments=arguments))
        return started[-1]

    try:
        one = train(1, arguments.batch_size, cores[:1]).wait()
        together = train(several, batch, cores).wait()
        found = {"one": one.rate(warm_up), "several": together.rate(warm_up)}
        if "canonical" in arguments.parts:
            canonical = train(several, batch, cores, several).wait()
            found |= {"canonical": canonical.rate(warm_up), "canonical_processor": canonical.seconds_per_image(warm_up)}
            found["canonical_one"] = train(1, batch, cores[:1], several).wait().seconds_per_image(warm_up)
            found["one_of_batch"] = train(1, batch, cores[:1]).wait().seconds_per_image(warm_up)
        if arguments.device == "cpu":
            found |= {"bytes": together.bytes_per_step(warm_up), "one_processor": one.seconds_per_image(warm_up)}
            found["several_processor"] = together.seconds_per_image(warm_up)
            beside = [train(1, arguments.batch_size, [core]) for core in cores]
            found["at_once"] = sum(each.wait().rate(warm_up) for each in beside)
    finally:
        for each in started:
            each.close()
    return found


def processor_seconds(root: int) -> float:
    """Processor time of a process and all that descend from it; 0 where the system does not say."""
    parents, times = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # man 5 proc_pid_stat, from the state on
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
        times[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    family, size = {root}, 0
    while size != len(family):
        size = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return sum(times.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


def loopback_bytes() -> int:
    """Bytes sent over the loopback device since the machine started; 0 where the system does not say."""
    path = Path("/proc/net/dev")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")]
    return int(found[0][8]) if found else 0


def least_bytes(backbone: str, processes: int, batch: int, value_bytes: int, batch_norm: str) -> dict[str, int]:
    """The least that all processes together can send in a step, by purpose.

    A sum of n numbers that all W need costs 2 (W - 1) n of them in all (a ring); rows that all need, or that are summed
    for their owner, W - 1 times their size.

    Args:
        backbone: its name.
        processes: W.
        batch: rows of all processes.
        value_bytes: of an embedding's number on its way to the others.
        batch_norm: whole: its sums travel; own: they do not.
    """
    from torch import nn

    from facebones.backbones import create_backbone

    network = create_backbone(backbone, EMBEDDING, 0.0)
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    channels = sum(module.num_features for module in network.modules() if isinstance(module, kinds))
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    others = processes - 1
    return {
        "gradients": 2 * others * 4 * parameters,
        "batch_norm": 2 * others * 4 * 4 * channels * (batch_norm == "whole"),  # two sums forward, two backward
        "embeddings": others * batch * EMBEDDING * value_bytes,
        "embedding_gradients": others * batch * EMBEDDING * 4,
        "labels": others * batch * 8,
        "softmax": 2 * others * 3 * batch * 4,
    }


def measure_efficiency(batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All turns at one size of the whole batch."""
    with tempfile.TemporaryDirectory() as name:
        turns = [turn(Path(name), batch, arguments) for _ in range(arguments.turns)]
    several = arguments.processes
    row: dict[str, Any] = {"backbone": arguments.backbone, "precision": arguments.precision, "processes": several}
    row |= {"batch_norm": arguments.batch_norm, "batch_of_one": arguments.batch_size, "batch": batch, "turns": turns}
    row["efficiency"] = spread([each["several"] / (several * each["one"]) for each in turns])
    if "at_once" in turns[0]:
        row["at_once"] = spread([each["at_once"] / (several * each["one"]) for each in turns])
        row["processor"] = spread([each["one_processor"] / each["several_processor"] for each in turns])
        row["of_at_once"] = spread([each["several"] / each["at_once"] for each in turns])
    if "canonical" in turns[0]:
        row["canonical"] = spread([each["several"] / each["canonical"] for each in turns])
        row["canonical_processor"] = spread([each["canonical_processor"] / each["several_processor"] for each in turns])
        row["canonical_one"] = spread([each["canonical_one"] / each["one_of_batch"] for each in turns])
    value_bytes = 4 if arguments.precision == "fp32" else 2
    least = least_bytes(arguments.backbone, several, batch, value_bytes, arguments.batch_norm)
    row |= {"least_bytes": least, "bytes": min(each.get("bytes", 0) for each in turns)}
    say_efficiency(row)
    return row


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def say_efficiency(row: dict[str, Any]) -> None:
    """Print a row."""
    several, one = (statistics.median(each[key] for each in row["turns"]) for key in ("several", "one"))
    print(f"{row['backbone']}, {row['precision']}, batch norm {row['batch_norm']}:"
          f" {row['processes']} processes, batch {row['batch']}:"
          f" {several:.1f} images/s; one, batch {row['batch_of_one']}: {one:.1f}")  # fmt: skip
    names = {
        "efficiency": f"efficiency (aim {AIM})",
        "at_once": "trainings at once",
        "of_at_once": "of these",
        "processor": "processor time of one, of W",
        "canonical": "time with canonical shards",
        "canonical_processor": "  processor time",
        "canonical_one": "  processor time, one process",
    }
    for key, title in names.items():
        if key in row:
            print(f"  {title:28} {row[key]['ratio']:.3f} ({row[key]['lowest']:.3f} to {row[key]['highest']:.3f})")
    least = sum(row["least_bytes"].values())
    measured = f"{row['bytes'] / 1e6:.2f} MB, {row['bytes'] / least:.3f} of it" if row["bytes"] else "not measured here"
    print(f"  bytes of a step              at least {least / 1e6:.2f} MB; sent {measured}", flush=True)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--backbone", default="mobilefacenet_wide")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64, help="of one process")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--batch-norm", default="whole", choices=("whole", "own"), help="over the batch of all, or not")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=6, help="that are measured")
    parser.add_argument("--warm-up", type=int, default=6, help="steps before them: the heap grows for a while")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--same-batch", action="store_true", help="the whole batch stays --batch-size for W processes")
    parser.add_argument("--classes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--heads-of", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": platform.platform(), "host_cores": os.cpu_count()}
    try:
        if {"efficiency", "canonical"} & set(arguments.parts):
            batch = arguments.batch_size * (1 if arguments.same_batch else arguments.processes)
            found["efficiency"] = measure_efficiency(batch, arguments)
        if "heads" in arguments.parts:
            found["heads"] = measure_heads(arguments.classes, arguments.heads_of)
    except NoRunError as failure:
        sys.exit(f"{failure}")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
