"""Fuzz the readers: mutate sound files, read each in a child with limits, and keep what ends in a fault.

    python tests/fuzz/run.py --minutes 60                       all targets, in turns
    python tests/fuzz/run.py --minutes 5 --target onnx --seed 3
    python tests/fuzz/run.py --target onnx --replay found/onnx/17_raised/input

Inputs whose outcome is new, in its words or in the lines that it reaches, are mutated further. A found input is made
smaller and written with the command that replays it. The exit status is 1 if anything was found.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import seeds
from harness import TRACED, Finding, Outcome, made_in_child, run_inputs, smaller
from mutators import Files, mutate
from targets import TARGETS

BATCH = 200
MOST_KEPT = 500  # inputs that are mutated further
MOST_OF_A_SORT = 3  # that are written


class Fuzzing:
    """The state of one target."""

    def __init__(self, name: str, seed: int, output: Path) -> None:
        self.name, self.target, self.output = name, TARGETS[name], output
        self.rng = random.Random(f"{name} {seed}")
        self.inputs, self.seconds, self.slowest = 0, 0.0, 0.0
        self.kinds: Counter[str] = Counter()
        self.sorts: Counter[str] = Counter()
        self.lines: set[tuple[str, int]] = set()
        self.kept: list[Files] = made_in_child(self.target.seeds)
        self.sound = len(self.kept)
        for number, outcome in enumerate(run_inputs(self.target.read, self.kept, trace=1)):
            self.lines |= outcome.lines
            if outcome.kind != "read":
                raise SystemExit(f"{name}: seed {number} is {outcome.kind}: {outcome.words}")

    def batch(self) -> None:
        """Run some inputs, and keep those that are new."""
        begun = time.monotonic()
        inputs = [self._mutated() for _ in range(BATCH)]
        for files, outcome in zip(inputs, run_inputs(self.target.read, inputs, trace=TRACED), strict=True):
            self._count(files, outcome)
        self.seconds += time.monotonic() - begun

    def _mutated(self) -> Files:
        chosen = self.rng.choice(self.kept if self.rng.random() < 0.6 else self.kept[: self.sound])
        open_to = {
            name: content for name, content in chosen.items() if not name.startswith(self.target.fixed or ("\0",))
        }
        closed = {name: content for name, content in chosen.items() if name not in open_to}
        return {**closed, **mutate(open_to, self.kept, self.rng)}

    def _count(self, files: Files, outcome: Outcome) -> None:
        self.inputs += 1
        self.kinds[outcome.kind] += 1
        self.sorts[outcome.sort] += 1
        self.slowest = max(self.slowest, outcome.seconds)
        is_new = self.sorts[outcome.sort] == 1 or not outcome.lines <= self.lines
        self.lines |= outcome.lines
        if outcome.is_fault:
            if self.sorts[outcome.sort] <= MOST_OF_A_SORT:
                files = smaller(self.target.read, files, outcome, self.target.fixed or ("\0",))
                place = Finding(self.name, outcome, files, self.inputs).save(self.output)
                print(f"FOUND {outcome.kind} {outcome.words!r}\n  {place}", flush=True)
        elif is_new and sum(map(len, files.values())) < 200_000:
            if len(self.kept) >= MOST_KEPT:
                self.kept.pop(self.rng.randrange(self.sound, len(self.kept)))
            self.kept.append(files)

    @property
    def faults(self) -> int:
        """Inputs that ended in a fault."""
        return self.inputs - self.kinds["read"] - self.kinds["refused"]

    def row(self) -> dict[str, object]:
        """The figures."""
        faults = {sort: count for sort, count in self.sorts.items() if not sort.startswith(("read", "refused"))}
        return {
            "target": self.name,
            "inputs": self.inputs,
            "read": self.kinds["read"],
            "refused": self.kinds["refused"],
            "found": self.faults,
            "outcomes": len(self.sorts),
            "lines": len(self.lines),
            "minutes": round(self.seconds / 60, 1),
            "slowest": round(self.slowest, 1),
            "faults": faults,
        }


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="in all (default 60)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="one of them; may be given again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("found"), help="where faults are written (default: found)")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="read the input in this folder once")
    arguments = parser.parse_args()
    prepare(weights=not arguments.target or bool({*arguments.target} & {"checkpoints", "safetensors", "sharded"}))
    if arguments.replay:
        return _replay(arguments.target[0], arguments.replay)
    fuzzings = [Fuzzing(name, arguments.seed, arguments.output) for name in arguments.target or TARGETS]
    share = 60 * arguments.minutes / len(fuzzings)
    for fuzzing in fuzzings:
        end = time.monotonic() + share
        while time.monotonic() < end:
            fuzzing.batch()
        print(json.dumps({key: value for key, value in fuzzing.row().items() if value != {}}), flush=True)
    total = sum(fuzzing.inputs for fuzzing in fuzzings)
    found = sum(fuzzing.faults for fuzzing in fuzzings)
    print(f"{total} inputs, {found} found" + (f"; see {arguments.output}" if found else ""))
    return int(found > 0)


def prepare(weights: bool = True) -> None:
    """Import once what the children use, and register the seeds' network."""
    import cv2
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch

    from facebones.backbones import list_backbones
    from facebones.backbones.state_dicts import network_shapes
    from facebones.exporting import export  # noqa: F401
    from facebones.reporting.report import write_report  # noqa: F401
    from facebones.training.run import resume  # noqa: F401

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    seeds.register_tiny()
    if weights:
        for name in list_backbones():  # a file that names no network is compared with each; they are built once
            network_shapes(name)


def _replay(target: str, folder: Path) -> int:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (outcome,) = run_inputs(TARGETS[target].read, [files])
    print(f"{outcome.kind} in {outcome.seconds:.1f} s: {outcome.words}")
    return int(outcome.is_fault)


if __name__ == "__main__":
    sys.exit(main())
