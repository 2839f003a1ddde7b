"""Claim: files of millions of lines open in a small multiple of the memory of what is kept of them.

Made files (0.9 GB in a temporary folder) are read by facebones and by the plain way, which holds the text or a Python
object a line, in a new process each, in turn. Said are processor seconds and the highest memory beyond that of the
imports (/proc, so Linux only). The plain ways are those of earlier versions: what they give is compared first.

    python benchmarks/scale.py [--millions 10] [--turns 3] [--folder FOLDER] [--output FILE.json]
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from facebones.data.ijb_pairs import read_pair_labels
from facebones.data.pair_lists import read_pair_list
from facebones.data.record_index import read_index
from facebones.data.record_set import RecordSet
from facebones.data.recordio import MAGIC
from facebones.reporting.runs import read_run
from facebones.run_folder import RunFolder

PEOPLE = 100_000
BLOCK = 100_000  # lines that are written at once
FRAME = [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")]


def make_files(folder: Path, millions: float) -> None:
    """Records of a header each with their index, a fifth as many lines of metrics, and pairs, half again as many."""
    count = int(millions * 1e6)
    keys = np.arange(count)
    records = np.zeros(count, FRAME)
    records["magic"], records["length"], records["label"], records["id"] = MAGIC, 24, keys % PEOPLE, keys
    records.tofile(folder / "train.rec")
    _write(folder / "train.idx", count, lambda key: f"{key}\t{32 * key}\n")
    loss = np.random.default_rng(0).normal(9, 1, count // 5).tolist()
    known = (
        ', "gradient_norm": 555.5679931640625, "gradient_scale": 1.0, "skipped_steps": 0, "images_per_second": 169.7}\n'
    )
    start = '{"kind": "train", "step": %d, "epoch": 1, "loss": %.17g, "learning_rate": 0.0186'
    _write(folder / "metrics.jsonl", count // 5, lambda line: start % (line + 1, loss[line]) + known)
    _write(
        folder / "ijbc_template_pair_label.txt",
        3 * count // 2,
        lambda n: f"{n % 23_123} {n % 22_777} {n % 97 == 0:d}\n",
    )
    for image in range(100):
        (folder / f"{image:03d}.jpg").write_bytes(b"not decoded")
    _write(folder / "pairs.txt", count // 5, lambda n: f"{n % 100:03d}.jpg {n % 97:03d}.jpg {n % 2}\n")


def _write(path: Path, count: int, line: Callable[[int], str]) -> None:
    with path.open("w") as file:
        for start in range(0, count, BLOCK):
            file.write("".join(map(line, range(start, min(start + BLOCK, count)))))


def plain_index(folder: Path) -> Any:
    """The text as a whole, parsed by NumPy: what versions up to 0.2.0.dev0 did."""
    text = (folder / "train.idx").read_bytes()
    if text.translate(None, b"0123456789") != b"\t\n" * text.count(b"\n"):
        raise ValueError("not an index")
    return np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ").reshape(-1, 2).T.copy()


def plain_set(folder: Path) -> Any:
    """That index, and the header of every record in one table."""
    keys, offsets = plain_index(folder)
    content = np.memmap(folder / "train.rec", "<u4", "r")
    headers = content[(offsets >> 2)[:, None] + np.arange(2, 8)]
    ids = headers[:, 2].astype(np.uint64) | headers[:, 3].astype(np.uint64) << np.uint64(32)
    order = np.argsort(keys, kind="stable")
    return keys, offsets, order, ids, headers[:, 1].copy().view(np.float32)[order].astype(np.int64)


def plain_lines(folder: Path) -> Any:
    """Every line as a dictionary."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]]


def plain_pairs(folder: Path) -> Any:
    """Every line as a list of whole numbers."""
    lines = (folder / "ijbc_template_pair_label.txt").read_text().splitlines()
    return [[int(field) for field in line.split()] for line in lines]


def plain_list(folder: Path) -> Any:
    """Every line as a list of words."""
    return [line.split() for line in (folder / "pairs.txt").read_text().splitlines()]


def _own_index(folder: Path) -> Any:
    return read_index(folder / "train.idx", folder / "train.rec", (folder / "train.rec").stat().st_size)


# What is read, by facebones and plainly.
READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "index of records": (_own_index, plain_index),
    "labels of records": (lambda folder: RecordSet(folder / "train.rec"), plain_set),
    "lines of metrics": (lambda folder: read_run(folder, "run").lines, plain_lines),
    "pairs of templates": (lambda folder: read_pair_labels(folder / "ijbc_template_pair_label.txt"), plain_pairs),
    "pairs of images": (lambda folder: read_pair_list(folder / "pairs.txt", folder), plain_list),
}


def check_same_answers(folder: Path) -> None:
    """Compare what both give."""
    keys, offsets = _own_index(folder)
    np.testing.assert_array_equal([keys.at(np.arange(len(keys))), offsets], plain_index(folder))
    np.testing.assert_array_equal(RecordSet(folder / "train.rec").labels, plain_set(folder)[-1])
    lines, shown = plain_lines(folder), read_run(folder, "run").lines
    for chosen in (lines[0], lines[-1], *(choose(lines, key=lambda line: line["loss"]) for choose in (min, max))):
        if chosen not in shown:
            raise AssertionError(f"{RunFolder(folder).metrics}: {chosen} is not shown")
    pairs = read_pair_labels(folder / "ijbc_template_pair_label.txt")
    own = np.column_stack([pairs.template_ids[pairs.pair_a], pairs.template_ids[pairs.pair_b], pairs.is_same])
    np.testing.assert_array_equal(own, plain_pairs(folder))


def peak() -> int:
    """Highest resident memory of this process so far, in kB."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def read_once(name: str, side: int, folder: Path) -> None:
    """In a child: read, and print processor seconds and MiB."""
    gc.collect()
    before, start = peak(), time.process_time()
    kept = READERS[name][side](folder)
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "mib": (peak() - before) / 1024, "kind": type(kept).__name__}))


def measure(folder: Path, turns: int) -> dict[str, dict[str, float]]:
    """Medians over the turns, by what is read."""
    found: dict[str, dict[str, float]] = {}
    for name in READERS:
        rows: list[list[dict[str, float]]] = [[], []]
        for _ in range(turns):
            for side, own in enumerate(rows):
                command = [sys.executable, __file__, "--child", name, "--side", str(side), "--folder", str(folder)]
                own.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        seconds, mib = ([statistics.median(row[key] for row in own) for own in rows] for key in ("seconds", "mib"))
        ratio = statistics.median(plain["seconds"] / own["seconds"] for own, plain in zip(*rows, strict=True))
        found[name] = {"seconds": seconds[0], "plain_seconds": seconds[1], "ratio": ratio} | {
            "mib": mib[0],
            "plain_mib": mib[1],
        }
        print(
            f"{name:20} {seconds[0]:8.2f} s {seconds[1]:8.2f} s {ratio:7.1f} {mib[0]:9.0f} MiB {mib[1]:8.0f} MiB"
            f" {mib[1] / max(mib[0], 1):7.1f}",
            flush=True,
        )
    return found


def main() -> None:
    """Make the files, check the answers, measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--millions", type=float, default=10, help="records; lines of other files follow")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made; by default a temporary folder")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        read_once(arguments.child, arguments.side, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_files(Path(folder), 0.1)
        check_same_answers(Path(folder))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_files(Path(folder), arguments.millions)
        print(f"{arguments.millions} M records; ours, plain, plain / ours, each for time and memory")
        results = measure(Path(folder), arguments.turns)
    if arguments.output:
        content = {"millions": arguments.millions, "turns": arguments.turns, "read": results}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
