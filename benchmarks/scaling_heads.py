"""Memory of a head whose classes several processes share, for `benchmarks/scaling.py`; Linux only.

A child process loads all libraries with a small head first. Then it notes its resident memory, builds its part of the
head with the optimizer's state, and reports its highest resident memory above that (`build`). Where the memory is too
small for the state, the head samples a tenth of its centres, so that the momentum takes no memory before steps write it
(`centres`). `step` builds in all W processes at once, joined by gloo, and takes steps with all centres.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIZE, BATCH, STEPS = 512, 64, 2
MARGIN = 4 * 2**30  # bytes of memory that stay free
LONGEST = 900.0
GIB = 2**30
CLAIM = 1.1


def build(kind: str, classes: int, world: Any) -> tuple[Any, Any]:
    """The part of a head that a process holds, and its optimizer."""
    from facebones.heads.sharded import create_shared_head
    from facebones.recipe import OptimizerConfig, head_config
    from facebones.training.optimizer import build_optimizer

    options = head_config("arcface", sample_rate=0.1 if kind == "centres" else 1.0).options
    head = create_shared_head("arcface", options, classes, SIZE, world=world, batch_size=BATCH)
    return head, build_optimizer(OptimizerConfig(), head)


def step(head: Any, optimizer: Any, world: Any) -> None:
    """One step on random embeddings, of which each process has its rows."""
    import torch
    from torch.nn import functional

    rows = len(world.rows_of(BATCH))
    embedding = functional.normalize(torch.randn(rows, SIZE)).requires_grad_()
    label = torch.randint(head.num_classes, (rows,))
    head.draw_sample(label)
    head(embedding, label).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def child(kind: str, classes: int, rank: int, size: int) -> None:
    """Measure in this process; print the bytes."""
    import torch

    from facebones.profiling.measurements import CLEAR_REFS, RESET_PEAK, _resident
    from facebones.system.distributed import World
    from facebones.system.process_group import joined

    torch.manual_seed(0)
    alone = World(rank=rank, size=size)
    with joined("cpu") if kind == "step" else _given(alone) as world:
        head, optimizer = build(kind, 1000, world)
        if kind == "step":
            step(head, optimizer, world)
        del head, optimizer
        before = _resident("VmRSS")
        CLEAR_REFS.write_text(RESET_PEAK)
        head, optimizer = build(kind, classes, world)
        for _ in range(STEPS if kind == "step" else 0):
            step(head, optimizer, world)
        print(json.dumps(_resident("VmHWM") - before), flush=True)


def _given(value: Any) -> Any:
    from contextlib import nullcontext

    return nullcontext(value)


def run(kind: str, classes: int, size: int) -> list[int]:
    """The bytes of each process: for `build` of the first one alone.

    Raises:
        RuntimeError: a process failed; its last line.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    common = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    children = []
    for rank in range(size if kind == "step" else 1):
        own = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if kind == "step" else {}
        words = [sys.executable, __file__, kind, str(classes), str(rank), str(size)]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(words, env=common | own, stdout=pipe, stderr=pipe, text=True))
    try:
        answers = [each.communicate(timeout=LONGEST) for each in children]
    finally:
        for each in children:
            each.kill()
    for each, (_, error) in zip(children, answers, strict=True):
        if each.returncode:
            raise RuntimeError((error.strip().splitlines() or [f"ended by signal {-each.returncode}"])[-1])
    return [int(output) for output, _ in answers]


def available() -> int:
    """Bytes of memory that processes can still get."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def measure(kind: str, classes: int, size: int) -> dict[str, Any]:
    """One row: of the kind, or only of the centres where the memory is too small for more."""
    centres, free = classes * SIZE * 4, available() - MARGIN
    if kind == "build" and 2 * centres / size > free:
        kind = "centres"
    whole = centres if kind == "centres" else 2 * centres
    row: dict[str, Any] = {"kind": kind, "classes": classes, "processes": size, "whole_bytes": whole}
    # Steps also make gradients and logits, of at most the size of the state.
    needed = 2 * whole if kind == "step" else whole / size
    if needed > free:
        return row | {"not_run": f"needs {needed / GIB:.0f} GiB, and {max(0, free) / GIB:.0f} are free"}
    try:
        row["bytes"] = max(run(kind, classes, size))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return row | {"not_run": str(error)}
    return row | {"share": row["bytes"] / whole}


def measure_heads(classes: Sequence[int], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """All rows, printed: building for all, and steps where these fit."""
    print(f"\nheads: D {SIZE}, ArcFace, SGD; most memory of a process, of centres and momentum of all classes (claimed"
          f" for building: {CLAIM} / W)")  # fmt: skip
    rows = []
    for kind in ("build", "step"):
        for count in classes:
            for size in sizes:
                row = measure(kind, count, size)
                same = [r for r in rows if (r["kind"], r["classes"]) == (row["kind"], count)]
                one = next((r for r in same if r["processes"] == 1), {})
                if "bytes" in row and "bytes" in one:
                    row["of_one"] = row["bytes"] / one["bytes"]
                rows.append(row)
                say(row)
    return rows


def say(row: dict[str, Any]) -> None:
    """Print a row."""
    head = f"  {row['kind']:7} {row['classes']:>10,} classes, W {row['processes']}:"
    if "bytes" not in row:
        print(f"{head} not run: {row['not_run']}", flush=True)
        return
    size = row["processes"]
    of_one = f"; of W 1 {row['of_one']:.3f} = {row['of_one'] * size:.3f} / W" if "of_one" in row else ""
    whole = "the centres" if row["kind"] == "centres" else "the state"
    print(f"{head} {row['bytes'] / GIB:6.2f} GiB = {row['share'] * size:.3f} / W of {whole}{of_one}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("build", "centres", "step"))
    for name in ("classes", "rank", "size"):
        parser.add_argument(name, type=int)
    child(**vars(parser.parse_args()))
