"""Claim: AdaFace's augmentations at its authors' probabilities cost about as much as decoding, none costs nothing.

Each kind is measured by itself with a probability of 1, in one thread, after decoding the same images; all take their
turns, and a ratio is the median of those within a turn.

    python benchmarks/augmentations.py [--data FOLDER] [--turns 11]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from data_path import generate

from facebones.data.augmentations import Augmentation
from facebones.data.folders import open_training_set
from facebones.data.images import decode

BATCH, BATCHES = 128, 5
KINDS = {
    "crop": Augmentation(crop=1.0),
    "low_resolution": Augmentation(low_resolution=1.0),
    "photometric": Augmentation(photometric=1.0),
    "erasing": Augmentation(erasing=1.0),
    "the first three at 0.2": Augmentation(crop=0.2, low_resolution=0.2, photometric=0.2),
    "all at 0.2": Augmentation(crop=0.2, low_resolution=0.2, photometric=0.2, erasing=0.2),
}


def microseconds(work: Callable[[], object]) -> float:
    """Time for each image of a call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6 / (BATCH * BATCHES)


def measure(path: Path, turns: int) -> dict[str, list[float]]:
    """Microseconds an image of decoding and of each kind, in each turn."""
    data = open_training_set(path)
    encoded = [data.read(index % len(data))[0] for index in range(BATCH * BATCHES)]
    images = np.empty((BATCH, 112, 112, 3), np.uint8)

    def decode_all() -> None:
        for index, one in enumerate(encoded):
            images[index % BATCH] = decode(one, str)

    def augment_all(augmentation: Augmentation) -> None:
        for number in range(BATCHES):
            augmentation(images, number, 0)

    times: dict[str, list[float]] = {name: [] for name in ("decoding", *KINDS)}
    for _ in range(turns):
        times["decoding"].append(microseconds(decode_all))
        for name, augmentation in KINDS.items():
            times[name].append(microseconds(lambda chosen=augmentation: augment_all(chosen)))
    return times


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="training data (default: random images are made)")
    parser.add_argument("--turns", type=int, default=11)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)  # as in a worker
    with tempfile.TemporaryDirectory() as name:
        path = arguments.data or Path(name) / "train.rec"
        if not arguments.data:
            generate(path, BATCH * BATCHES, seed=0)
        times = measure(path, arguments.turns)
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["decoding"], strict=True))
        print(f"{name:24} {statistics.median(found):6.0f} us an image  {ratio:5.2f} of decoding")


if __name__ == "__main__":
    main()
