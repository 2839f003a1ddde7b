"""Claim: from a file that is not in memory, images ordered by `data.shuffle block:1024` come twice as fast or more.

Images are read, not decoded, one after another in the order of an epoch, from a record file of random bytes that the
system has been told to forget; with what is read ahead in that order, and without. Also said is how many bytes came
from the disk for each byte used (/proc, so Linux only): at a random place the system fetches what is around as well.
The first 64 blocks are all read at once, so that short turns are to the disadvantage of large blocks. What a disk does
depends on its kind: name a folder on the one that is meant.

    python benchmarks/cold_reads.py [--folder FOLDER] [--images 200000] [--read 12800] [--turns 3] [--output FILE.json]
"""

import argparse
import json
import mmap
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from facebones.data.loader import EpochOrder
from facebones.data.record_set import RecordSet
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack

BATCH_SIZE = 128
# Block, what the system is told of the file, and whether the order reads ahead.
ORDERS = {
    "full": (0, mmap.MADV_NORMAL, True),
    "full, MADV_RANDOM": (0, mmap.MADV_RANDOM, True),
    "block:1024, nothing ahead": (1024, mmap.MADV_NORMAL, False),
    "block:1024": (1024, mmap.MADV_NORMAL, True),
    "block:256": (256, mmap.MADV_NORMAL, True),
}


def generate(path: Path, images: int, seed: int) -> None:
    """Write records of 3 to 8 kB; 56 of an identity, as MS1MV3 has."""
    random = np.random.default_rng(seed)
    noise = random.bytes(2**24)
    with RecordWriter(path) as writer:
        for index in range(images):
            start, size = int(random.integers(0, 2**24 - 8000)), int(random.integers(3000, 8000))
            writer.write(index + 1, pack(Header(float(index // 56), index + 1), noise[start : start + size]))


def forget(data: RecordSet) -> None:
    """Have the system drop what it keeps of the file, which nobody may have mapped."""
    if data.records._map is not None:
        data.records._map.close()
        data.records._map = None
    with data.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def from_disk() -> int:
    """Bytes that this process had fetched from a disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def read(data: RecordSet, images: int, seed: int, how: tuple[int, int, bool]) -> tuple[float, float]:
    """Read that many in order; images a second, and bytes from the disk for each byte used."""
    block, advice, ahead = how
    forget(data)
    data.records.content.madvise(advice)
    batches = images // BATCH_SIZE
    order = EpochOrder(
        data,
        batch_size=BATCH_SIZE,
        batches_per_epoch=len(data) // BATCH_SIZE,
        first=0,
        last=batches,
        seed=seed,
        block=block,
    )
    before, start, used = from_disk(), time.perf_counter(), 0
    with patch.object(RecordSet, "read_ahead", RecordSet.read_ahead if ahead else lambda *_: None):
        for batch in order:
            used += sum(len(data.read(index)[0]) for index in batch)
    return batches * BATCH_SIZE / (time.perf_counter() - start), (from_disk() - before) / used


def main() -> None:
    """Read in each order, in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to write the file (default: for temporary files)")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--read", type=int, default=12_800, help="images read in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        generate(Path(name) / "train.rec", arguments.images, seed=0)
        data = RecordSet(Path(name) / "train.rec")
        print(
            f"{arguments.images} images, {data.records.size / 1e9:.1f} GB; {arguments.read} read in a turn", flush=True
        )
        turns = [
            {title: read(data, arguments.read, turn, how) for title, how in ORDERS.items()}
            for turn in range(arguments.turns)
        ]  # fmt: skip
    rows = []
    for title in ORDERS:
        rates, amounts = zip(*(turn[title] for turn in turns), strict=True)
        ratios = sorted(turn[title][0] / turn["full"][0] for turn in turns)
        row = {
            "order": title,
            "images_per_second": statistics.median(rates),
            "of_full": statistics.median(ratios),
            "lowest": ratios[0],
            "highest": ratios[-1],
            "disk_bytes_per_byte": statistics.median(amounts),
        }
        rows.append(row)
        print(
            f"{title:26} {row['images_per_second']:8,.0f} images/s, {row['of_full']:5.1f} of full"
            f" ({ratios[0]:.1f} to {ratios[-1]:.1f}), {row['disk_bytes_per_byte']:5.1f} bytes from disk a byte used"
        )
    if arguments.output:
        content = {"machine": platform.platform(), "images": arguments.images, "read": arguments.read, "rows": rows}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
