"""Compare the embedding of a pair set that embeds equal images once with one that embeds each place of them.

A set names images several times: the 6,000 pairs of LFW are 12,000 places of 7,701 images. Both ways run in this
process in turn, from the encoded images to their embeddings, which must be equal to the bit; the protocol takes a
second more. The ratio is the median of the ratios of neighbouring runs, in time and in processor time, which a busy
machine changes little. For a slow model, `--part 0.05` takes a twentieth of the images, each with all its places.

    python benchmarks/repeated_images.py --data lfw.bin [--model FILE|NAME] [--part 0.05] [--turns 3] [--no-flip]
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from facebones.data.image_sources import EncodedImages, ImageSource, distinct
from facebones.data.pair_bins import read_pairs
from facebones.data.preprocessing import Preprocessing
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Model, load_model


class EachPlace:
    """A source like `EncodedImages` that is not looked through for equal images."""

    def __init__(self, images: EncodedImages) -> None:
        self.images, self.name = images, images.name
        self.read, self.fingerprint = images.read, images.fingerprint

    def __len__(self) -> int:
        return len(self.images)


def part_of(images: list[bytes], share: float, seed: int = 0) -> list[bytes]:
    """Choose a share of the distinct images, and keep all their places."""
    once = list(dict.fromkeys(images))
    chosen = np.random.default_rng(seed).choice(len(once), round(share * len(once)), replace=False)
    kept = {once[index] for index in chosen}
    return [image for image in images if image in kept]


def embedded(model: Model, source: ImageSource, batch_size: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and seconds of the processors, (2,), and the embeddings."""
    start = np.array([time.perf_counter(), time.process_time()])
    features = embed({"": model}, source, batch_size=batch_size, flip=flip)[""]
    return np.array([time.perf_counter(), time.process_time()]) - start, features


def main() -> None:
    """Measure in turn and print both times and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a .bin file")
    parser.add_argument("--model", default="shufflefacenet_0_5", help="a model, or the name of a backbone")
    parser.add_argument("--scale", type=float, default=127.5, help="of a foreign model's input")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--no-flip", dest="flip", action="store_false")
    parser.add_argument("--part", type=float, default=1.0, help="share of the images")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    pair_set = read_pairs(arguments.data)
    preprocessing = Preprocessing(scale=arguments.scale) if Path(arguments.model).is_file() else None
    model = load_model(arguments.model, device=arguments.device, preprocessing=preprocessing)
    source = EncodedImages(pair_set.name, part_of(list(pair_set.images), arguments.part))
    print(f"{source.name}: {len(source)} places of {len(distinct(source))} images", flush=True)
    rows = []
    for _ in range(arguments.turns):
        ways = EachPlace(source), source
        (before, expected), (after, found) = (
            embedded(model, way, arguments.batch_size, arguments.flip) for way in ways
        )
        assert np.array_equal(found, expected), "the embeddings differ"
        rows.append(before / after)
        print(
            f"each place {before[0]:.1f} s ({before[1]:.1f} of processors),"
            f" equal images once {after[0]:.1f} s ({after[1]:.1f})",
            flush=True,
        )
    for kind, ratios in zip(("time", "processor time"), zip(*rows, strict=True), strict=True):
        print(f"{kind}: ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print("the same embeddings")


if __name__ == "__main__":
    main()
