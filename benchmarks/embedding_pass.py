"""Compare the embedding pass, with a network that costs nothing, with bare OpenCV over the same loose crops.

The bare loop reads, decodes and warps each photo in one process with matrices that it is given; with W threads, the
pass should come near to W times its images a second. Where the cores are not free, nothing can: so W processes with the
bare loop, each with its share of the photos, run as well, and show what the machine gives. All run several times in
turn; the ratios are those of the quickest runs.

    python benchmarks/embedding_pass.py [--data FOLDER] [--workers 1 2]

FOLDER is laid out like IJB-C: `loose_crop/` and `meta/*_name_5pts_score.txt`.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from facebones.data.image_sources import LooseCrops
from facebones.data.preprocessing import REFERENCE, similarity_transforms
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Model

EMBEDDING_SIZE = 512
BATCH_SIZE = 128


class Free(Model):
    """Answers zeros, so that only the reading is left."""

    def __call__(self, images_BHWC, flip):
        """Look at no pixel."""
        return np.zeros((len(images_BHWC), 2 if flip else 1, EMBEDDING_SIZE), dtype=np.float32)


def generate(folder: Path, images: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Write smooth random photos of about 200x200, JPEG of quality 90, and draw landmarks that suit them."""
    random = np.random.default_rng(seed)
    files, landmarks = [], []
    for index in range(images):
        coarse = random.integers(0, 256, (25, 25, 3), dtype=np.uint8)
        size = int(random.integers(180, 221))
        photo = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        files.append(f"{index}.jpg")
        (folder / files[-1]).write_bytes(cv2.imencode(".jpg", photo, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes())
        landmarks.append((REFERENCE - 56) * size / 150 + size / 2 + random.normal(0, 3, (5, 2)))
    return files, np.array(landmarks)


def listed(folder: Path) -> tuple[list[str], np.ndarray]:
    """Read names and landmarks from the list of an IJB folder."""
    (path,) = (folder / "meta").glob("*_name_5pts_score.txt")
    rows = [line.split() for line in path.read_text().splitlines()]
    return [row[0] for row in rows], np.array([row[1:11] for row in rows], dtype=np.float64).reshape(-1, 5, 2)


def bare(paths: Sequence[str], matrices: Iterable[np.ndarray]) -> None:
    """Do what cannot be done without, in one thread."""
    for path, matrix in zip(paths, matrices, strict=True):
        cv2.warpAffine(cv2.imread(path), matrix, (112, 112), flags=cv2.INTER_LINEAR)


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(folder: Path, files: list[str], landmarks: np.ndarray, workers: int, runs: int) -> None:
    """Run all in turn; print the images a second of each, and the ratios."""
    source = LooseCrops("photos", folder, files, landmarks)
    models = {"free": Free(network=torch.nn.Identity(), device=torch.device("cpu"))}
    paths = [str(folder / file) for file in files]
    matrices = similarity_transforms(landmarks, REFERENCE, str)
    shares = [(paths[part::workers], matrices[part::workers]) for part in range(workers)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        contestants = (
            lambda: bare(paths, matrices),
            lambda: pool.starmap(bare, shares, chunksize=1),
            lambda: embed(models, source, batch_size=BATCH_SIZE, workers=workers),
        )
        rounds = [[seconds(work) for work in contestants] for _ in range(runs)]
    alone, together, ours = (len(files) / min(times) for times in zip(*rounds, strict=True))
    print(
        f"workers {workers}: bare OpenCV {alone:,.0f} images/s in one process, {together:,.0f} in {workers}; "
        f"the pass {ours:,.0f} images/s: ratio {ours / (workers * alone):.2f} to {workers} x one process, "
        f"{ours / together:.2f} to {workers} at once"
    )


def main() -> None:
    """Measure with each number of workers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="an IJB folder (default: random photos are made)")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.data / "loose_crop" if arguments.data else Path(name)
        if arguments.data:
            files, landmarks = listed(arguments.data)
        else:
            files, landmarks = generate(folder, arguments.images, arguments.seed)
        print(f"{len(files)} photos of {arguments.data or 'random smooth noise'}, {os.cpu_count()} cores")
        for workers in arguments.workers:
            compare(folder, files, landmarks, workers, arguments.runs)


if __name__ == "__main__":
    main()
