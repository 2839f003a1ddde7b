"""Claim: `facebones --help` takes at most 0.3 s, `facebones backbones` 0.4 s, `import facebones` next to nothing.

Each command runs several times in a process of its own, in turn with an empty Python, and with one that builds and
counts all the backbones, which is what listing them would take without the catalogue; first both must answer the same.
The results are medians. Processor time is that of the process and is little disturbed by what else runs; the time of
the wall is that of a user, and wants a machine that does nothing else. Ratios are of processor time.

    python benchmarks/startup.py [--runs 9] [--output FILE.json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

COUNT = (
    "import json; from facebones.profiling.cost import describe_backbones; print(json.dumps(describe_backbones('*')))"
)
EMPTY, COUNTED = "python -c pass", "build and count all"
PROCESSES = {
    EMPTY: ("-c", "pass"),
    "import facebones": ("-c", "import facebones"),
    "facebones --help": ("-m", "facebones", "--help"),
    "facebones backbones": ("-m", "facebones", "backbones"),
    COUNTED: ("-c", COUNT),
}
LIMITS = {"facebones --help": 0.3, "facebones backbones": 0.4}  # seconds


def check_same_answers() -> None:
    """Stop with an AssertionError where the catalogue and the networks differ; this warms the caches of files too."""
    listed, counted = (
        json.loads(subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE).stdout)
        for words in (("-m", "facebones", "backbones", "--json"), PROCESSES[COUNTED])
    )
    assert listed == counted, "the catalogue is not that of the networks"


def seconds(words: Sequence[str]) -> tuple[float, float]:
    """Run Python with these words; give its processor time and that of the wall."""
    silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    start = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, *words], os.environ, file_actions=silent)
    _, status, usage = os.wait4(process, 0)
    elapsed = time.perf_counter() - start
    assert status == 0, f"{' '.join(words)} failed"
    return usage.ru_utime + usage.ru_stime, elapsed


def measure(runs: int) -> dict[str, dict[str, float | None]]:
    """Run all in turn; seconds and ratios by the name of the process."""
    rounds = [{name: seconds(words) for name, words in PROCESSES.items()} for _ in range(runs)]
    medians = {
        name: [statistics.median(times) for times in zip(*(timed[name] for timed in rounds), strict=True)]
        for name in PROCESSES
    }
    return {
        name: {
            "processor_seconds": processor,
            "wall_seconds": wall,
            "limit_seconds": LIMITS.get(name),
            "times_empty_python": processor / medians[EMPTY][0],
            "times_quicker_than_counting": medians[COUNTED][0] / processor,
        }
        for name, (processor, wall) in medians.items()
    }


def print_results(results: dict[str, dict[str, float | None]]) -> None:
    """Print a line for each process, and what the claim says of it."""
    print(f"{'':20} {'processor':>10} {'wall':>10} {'x empty':>8} {'counting / it':>14}  limit")
    for name, row in results.items():
        limit = row["limit_seconds"]
        kept = "" if limit is None else f"{limit} s: {'kept' if row['processor_seconds'] <= limit else 'BROKEN'}"
        print(
            f"{name:20} {1000 * row['processor_seconds']:7.0f} ms {1000 * row['wall_seconds']:7.0f} ms"
            f" {row['times_empty_python']:8.1f} {row['times_quicker_than_counting']:14.1f}  {kept}".rstrip()
        )


def main() -> None:
    """Check the answers, measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    arguments = parser.parse_args()
    check_same_answers()
    results = measure(arguments.runs)
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()}
    print(f"medians of {arguments.runs} runs; Python {machine['python']}, {machine['cores']} cores, same answers")
    print_results(results)
    if arguments.output:
        content = {"runs": arguments.runs, "machine": machine, "processes": results}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
