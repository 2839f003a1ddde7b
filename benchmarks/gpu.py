"""All that can only be measured on a GPU, in at most eight minutes: one JSON file, and one Markdown file beside it.

The tests that need CUDA; training steps at several batch sizes, in the same process as a plain loop and in turn with it
(`plain.py`: eager, contiguous, dense head, images normalised in fp32 by its loader, cuDNN's benchmark on; in the same
16-bit format by torch.autocast, to which the ratio is, and in fp32 as torch ships it, that is with TF32 convolutions);
a head of 1 M classes; embedding; all GPUs against one; the loader alone.

Each part is a process of its own with a number of seconds. A row that fails, for lack of memory for one, holds the
error; what did not fit into the time is listed as not run. It needs torch and the package's dependencies, pytest for
the tests, and no network. `--device cpu --small` tries the script out, and its figures mean nothing.

    PYTHONPATH=src python benchmarks/gpu.py [--output gpu.json] [--parts NAME ...]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT = 470.0  # seconds in all; what is left of eight minutes is for the last kill and the files
# Of each part.
SECONDS = {"tests": 100, "training": 145, "head": 45, "embedding": 50, "devices": 45, "loader": 25}
START = 20.0  # seconds that a process may need besides, to import torch and to end
SMALL_SECONDS = 30.0
SCRIPT = Path(__file__).with_name("gpu_parts.py")
SOURCE = Path(__file__).parents[1] / "src"

Part = dict[str, Any]


def run(parts: Sequence[str], seconds: float, rows: Path, options: Sequence[str]) -> str | int:
    """Run parts in a process that has some seconds in all; returns its status, or why it was ended."""
    words = [sys.executable, str(SCRIPT), *parts, "--rows", str(rows), *options]
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(words, env=environment, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"{seconds:.0f} s were over"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and its data workers
            process.wait()


def collect(rows: Path, ends: dict[str, str | int]) -> tuple[dict[str, Any], dict[str, Part]]:
    """The machine, and of each part its rows, what was not run, and why.

    Args:
        rows: what the processes wrote.
        ends: how the process of each part ended: its status, or a reason.
    """
    lines = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    machine = next((line["values"] for line in lines if line["part"] == "machine"), {})
    return machine, {part: collect_part([line for line in lines if line["part"] == part], end)
                     for part, end in ends.items()}  # fmt: skip


def collect_part(lines: list[dict[str, Any]], end: str | int) -> Part:
    """One part of `collect`."""
    found: Part = {"rows": {line["row"]: line["values"] for line in lines if "row" in line}}
    planned = next((line["planned"] for line in lines if "planned" in line), None)
    finished = next((line["ended"] for line in lines if "ended" in line), None)
    error = next((line["error"] for line in lines if "error" in line), None)
    why = error or (end if isinstance(end, str) else f"the process ended with status {end}")
    if finished is not None:
        found["seconds"] = finished
        why = error or "its seconds were over"
    missing = [name for name in planned if name not in found["rows"]] if planned is not None else ["all of it"]
    found["not_run"] = dict.fromkeys(missing, why)
    return found


# ------------------------------------------------------------------------------------------------------------ the table


COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "training": (
        ("setting", "setting", ""),
        *(("images_per_second", "ours, images/s", ",.0f"), ("plain_images_per_second", "plain", ",.0f")),
        *(("ratio", "ratio", ".2f"), ("lowest", "lowest", ".2f"), ("highest", "highest", ".2f")),
        *(("plain_fp32_images_per_second", "plain fp32, images/s", ",.0f"), ("peak_gib", "ours, peak GiB", ".1f")),
        ("plain_peak_gib", "plain", ".1f"),
    ),
    "head": (
        *(("classes", "classes", ",d"), ("backbone", "backbone", ""), ("batch", "batch", "")),
        *(("setting", "setting", ""), ("seconds_per_step", "s per step", ".4f")),
        *(("images_per_second", "images/s", ",.0f"), ("peak_gib", "peak GiB", ".1f")),
    ),
    "embedding": (
        ("setting", "setting", ""),
        *(("images_per_second", "ours, images/s", ",.0f"), ("plain_images_per_second", "plain fp32", ",.0f")),
        *(("ratio", "ratio", ".2f"), ("lowest", "lowest", ".2f"), ("highest", "highest", ".2f")),
    ),
    "loader": (("workers", "workers", ""), ("images_per_second", "images/s", ",.0f")),
    "devices": (
        *(("gpus", "GPUs", ""), ("batch", "batch", ""), ("setting", "setting", "")),
        *(("images_per_second", "images/s", ",.0f"), ("one_images_per_second", "one GPU, images/s", ",.0f")),
        ("efficiency", "efficiency", ".2f"),
    ),
    "tests": (("outcome", "outcome", ""), ("seconds", "s", ".1f")),
}
TITLES = {
    "tests": "Tests that need CUDA",
    "training": "Training steps",
    "head": "A large head",
    "embedding": "Embedding",
    "devices": "All GPUs against one",
    "loader": "The loader alone",
}


def markdown(content: dict[str, Any]) -> str:
    """All tables."""
    machine = "; ".join(f"{key} {value}" for key, value in content["machine"].items() if value)
    lines = ["# facebones on a GPU", "", machine or "no machine: nothing ran", ""]
    if content["small"]:
        lines += ["A trial of the script: no figure means anything.", ""]
    for part, found in content["parts"].items():
        lines += [f"## {TITLES[part]}", ""]
        rows = found["rows"]
        if part == "tests":
            lines += [counted(rows), *skipped(rows), ""]
            rows = {name: row for name, row in rows.items() if row.get("outcome") != "skipped"}
        lines += [*table(COLUMNS[part], rows), ""]
        for name, why in found["not_run"].items():
            lines.append(f"* not run: {name} ({one_line(why)})")
        lines += [""] * bool(found["not_run"])
    return "\n".join(lines)


def counted(rows: dict[str, dict[str, Any]]) -> str:
    """Numbers of tests by outcome."""
    outcomes = [row.get("outcome") for row in rows.values()]
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))


def skipped(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Each reason, and how many tests were skipped for it."""
    reasons = [row["reason"] for row in rows.values() if row.get("outcome") == "skipped"]
    return [f"* {reasons.count(reason)} skipped: {one_line(reason)}" for reason in dict.fromkeys(reasons)]


def table(columns: Sequence[tuple[str, str, str]], rows: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of a table: a row's name, its values, and its error."""
    titles = ["row", *(title for _, title, _ in columns), "error"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, row in rows.items():
        values = [format(row[key], form) if row.get(key) is not None else "" for key, _, form in columns]
        cells = [name, *values, row.get("error", "")]
        lines.append(f"| {' | '.join(one_line(cell) for cell in cells)} |")
    return lines if rows else []


def one_line(text: object) -> str:
    """A text that a cell of a table can hold."""
    return " ".join(str(text).split()).replace("|", "/")


def missing(device: str) -> str:
    """Why a device is not there; empty if it is. The GPU's memory stays free: nothing is computed on it here."""
    if not device.startswith("cuda"):
        return ""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    try:
        import torch
    except ImportError as error:
        return f"{sys.executable} has no torch ({one_line(error)}); name a Python that has it"

    if not (torch.version.cuda or torch.version.hip):
        return f"torch {torch.__version__} is built without CUDA"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return "" if (torch.device(device).index or 0) < count else f"{count} GPUs are visible"


def measure(parts: Sequence[str], options: Sequence[str], small: bool) -> dict[str, Any]:
    """Run the parts, each in a process of its own; in a trial, all in one."""
    begin = time.monotonic()
    ends: dict[str, str | int] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        for group in [list(parts)] if small else [[part] for part in parts]:
            left = LIMIT - (time.monotonic() - begin)
            seconds = SMALL_SECONDS if small else min(SECONDS[group[0]], left - START)
            if seconds <= 0:
                ends |= dict.fromkeys(group, "the eight minutes were over")
                continue
            status = run(
                [f"{part}={seconds:.0f}" for part in group], min(seconds * len(group) + START, left), rows, options
            )
            ends |= dict.fromkeys(group, status)
        machine, found = collect(rows, ends)
    return {"machine": machine, "small": small, "seconds": time.monotonic() - begin, "parts": found}


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a trial")
    parser.add_argument("--small", action="store_true", help="a trial of the script: tiny sizes, a few seconds")
    parser.add_argument("--parts", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="JSON; the Markdown is beside it")
    arguments = parser.parse_args()
    if why := missing(arguments.device):
        print(f"--device {arguments.device}: {why} (`--device cpu --small` tries this script out)", file=sys.stderr)
        sys.exit(2)
    options = ["--device", arguments.device, *["--small"] * arguments.small]
    content = measure(arguments.parts, options, arguments.small)
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")
    tables = arguments.output.with_suffix(".md")
    tables.write_text(markdown(content))
    print(f"{arguments.output} and {tables}: {content['seconds']:.0f} s")


if __name__ == "__main__":
    main()
