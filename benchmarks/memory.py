"""Claim: where a tenth of the class centres takes part in a step, a step needs about a tenth of the time and memory.

Time and memory of training steps of the head alone, by class count and sample rate, against a plain dense head: cosines
to all centres, torch's cross-entropy and SGD. Each case has a process of its own. The state is the centres and their
momentum; memory is what a step takes over it at its highest (VmHWM, so Linux only), time the median of several steps.
The C library is told to hand back at once what is freed: what it would keep for later, some 100 MiB, is not counted.
The momentum is written once before, as after many steps; with --large it is not, for it would not fit, and what a step
writes of it first counts as the step's.

    python benchmarks/memory.py [--classes 100000 1000000] [--without-plain] [--large] [--output FILE.json]
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.heads import create_head
from facebones.profiling.measurements import CLEAR_REFS, RESET_PEAK, _resident
from facebones.recipe import OptimizerConfig, head_config
from facebones.training.optimizer import build_optimizer

RATES, LARGE_CLASSES, LARGE_RATE = (1.0, 0.3, 0.1), 10_000_000, 0.01
WARM_UP = 2
HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # man 3 mallopt
BUDGET = 16 * 2**30
GIB = 2**30


def plain_steps(classes: int, size: int) -> tuple[Callable[[Tensor, Tensor], None], torch.optim.Optimizer]:
    """The dense head as anyone would write it first; a step's function, and its optimizer."""
    weight = nn.Parameter(0.01 * torch.randn(classes, size))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step(embedding: Tensor, label: Tensor) -> None:
        cosine = functional.linear(embedding, functional.normalize(weight))
        functional.cross_entropy(64 * cosine, label).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, optimizer


def head_steps(classes: int, size: int, rate: float) -> tuple[Callable[[Tensor, Tensor], None], torch.optim.Optimizer]:
    """Ours, as a training takes its steps."""
    head = create_head("arcface", head_config("arcface", sample_rate=rate).options, classes, size)
    optimizer = build_optimizer(OptimizerConfig(), head)

    def step(embedding: Tensor, label: Tensor) -> None:
        head.draw_sample(label)
        head(embedding, label).loss.backward()
        torch.nn.utils.get_total_norm([p.grad for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()
        optimizer.zero_grad()

    return step, optimizer


def measure(case: tuple[int, float | None], *, size: int, batch: int, steps: int, write_momentum: bool) -> dict:
    """One case of classes and rate in this process; a rate of None is the plain head."""
    classes, rate = case
    torch.manual_seed(0)
    step, optimizer = plain_steps(classes, size) if rate is None else head_steps(classes, size, rate)
    embedding = functional.normalize(torch.randn(batch, size)).requires_grad_()
    take = partial(step, embedding, torch.randint(classes, (batch,)))
    for _ in range(WARM_UP):
        take()
    if write_momentum:
        for state in optimizer.state.values():
            state["momentum_buffer"].mul_(1)
    seconds, extra = [], []
    for _ in range(steps):
        before = _resident("VmRSS")
        CLEAR_REFS.write_text(RESET_PEAK)
        start = time.perf_counter()
        take()
        seconds.append(time.perf_counter() - start)
        extra.append(_resident("VmHWM") - before)
    state = 2 * classes * size * 4
    within = int(BUDGET / ((state + max(extra)) / classes))
    return {
        "classes": classes, "rate": rate, "seconds": statistics.median(seconds), "state_bytes": state,
        "extra_bytes": max(extra), "peak_rss_bytes": _resident("VmHWM"), "classes_within_budget": within,
    }  # fmt: skip


def in_new_process(case: tuple[int, float | None], **options: int) -> dict:
    """Measure where nothing else has run."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case, **options).result()


def say(row: dict, whole: dict | None, plain: dict | None) -> None:
    """Print a line of the table, with ratios to rate 1 and to the plain head."""
    name = "plain" if row["rate"] is None else f"{row['rate']:g}"
    ratios = [
        f"{100 * row[key] / of[key]:6.0f}%" if of else "      -"
        for of in (whole, plain)
        for key in ("seconds", "extra_bytes")
    ]
    print(
        f"{row['classes']:>10,} {name:>6} {row['seconds']:>8.3f} {row['state_bytes'] / GIB:>7.2f} "
        f"{row['extra_bytes'] / GIB:>7.2f} {' '.join(ratios)} {row['classes_within_budget'] / 1e6:>8.2f} M",
        flush=True,
    )


def main() -> None:
    """Measure each case and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--without-plain", action="store_true", help="not the plain head: 14 GiB at 1 M classes")
    parser.add_argument(
        "--large", action="store_true", help="10 M classes at rate 0.01 alone: 20 GiB, and 0.4 more a step"
    )
    parser.add_argument("--embedding-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    os.environ.update(HAND_BACK)
    rates = RATES if arguments.without_plain else (None, *RATES)
    cases = [(classes, rate) for classes in arguments.classes for rate in rates]
    if arguments.large:
        cases = [(LARGE_CLASSES, LARGE_RATE)]
    print(f"D {arguments.embedding_size}, batch {arguments.batch_size}, {torch.get_num_threads()} threads, SGD, fp32")
    print("                              GiB          of rate 1       of plain       within 16 GiB")
    print("   classes   rate     s/step   state   extra    time  memory    time  memory  most classes")
    rows: dict[tuple[int, float | None], dict] = {}
    sizes = {"size": arguments.embedding_size, "batch": arguments.batch_size}
    for case in cases:
        rows[case] = in_new_process(case, **sizes, steps=arguments.steps, write_momentum=not arguments.large)
        say(rows[case], rows.get((case[0], 1.0)), rows.get((case[0], None)))
    if arguments.output:
        conditions = {**sizes, "threads": torch.get_num_threads(), "torch": torch.__version__}
        arguments.output.write_text(json.dumps({**conditions, "rows": list(rows.values())}, indent=2) + "\n")


if __name__ == "__main__":
    main()
