"""Claim: all pairs of 100,000 images are counted in minutes, and in the memory of the embeddings.

The ROC curve of all pairs of made-up embeddings by `all_pairs_curve`, and by the plain way, which keeps every score
(for few images only). Said are processor seconds, and the memory beyond that of the embeddings (/proc, so Linux only).

    python benchmarks/all_pairs.py [--images 5000 20000 100000] [--size 512]
"""

import argparse
import time
from pathlib import Path

import numpy as np

from facebones.evaluation.folder import Rows, all_pairs_curve
from facebones.statistics.curves import area_under_curve, roc

MOST_PLAIN = 6000  # images: above, the scores and their labels do not fit


def plain(rows: Rows, labels: np.ndarray) -> float:
    """Area under the curve of the listed scores."""
    first, second = np.triu_indices(len(rows), 1)
    return area_under_curve(roc((rows @ rows.T)[first, second], labels[first] == labels[second]))


def memory(kind: str) -> int:
    """Memory of this process in KiB: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def main() -> None:
    """Measure each number of images."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20_000, 100_000])
    parser.add_argument("--size", type=int, default=512, help="of an embedding")
    arguments = parser.parse_args()
    for images in arguments.images:
        random = np.random.default_rng(0)
        labels = random.integers(0, max(images // 20, 2), images)
        rows = random.standard_normal((images, arguments.size), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, started = memory("VmRSS"), time.process_time()
        area = area_under_curve(all_pairs_curve(rows, labels))
        seconds = time.process_time() - started
        more = (memory("VmHWM") - before) / 1024
        pairs = images * (images - 1) // 2
        print(f"{images:,} images, {pairs:,} pairs: {seconds:.1f} processor seconds, {more:.0f} MiB", end="")
        if images <= MOST_PLAIN:
            started = time.process_time()
            difference = abs(plain(rows, labels) - area)
            taken = time.process_time() - started
            print(f"; plain: {taken:.1f} processor seconds, area differs by {difference:.1e}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
