"""Compare the evaluation of a pair set that embeds each distinct image once with one that embeds each place of it.

A set names images several times: the 6,000 pairs of LFW are 12,000 places of 7,701 images. Both ways run in this
process in turn, with all of evaluation: decoding, embedding, the protocol. Their metrics must be equal to the bit; the
ratio is the median of the ratios of neighbouring runs.

    python benchmarks/repeated_images.py --data lfw.bin [--model FILE|NAME] [--scale 128] [--turns 3] [--no-flip]
"""

import argparse
import statistics
import time
from pathlib import Path

from facebones.data.image_sources import EncodedImages, distinct
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.data.preprocessing import Preprocessing
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Model, load_model
from facebones.evaluation.verification import verify_features


class EachPlace:
    """A source like `EncodedImages` that is not looked through for equal images."""

    def __init__(self, images: EncodedImages) -> None:
        self.images, self.name = images, images.name
        self.read, self.fingerprint = images.read, images.fingerprint

    def __len__(self) -> int:
        return len(self.images)


def evaluated(model: Model, source: EncodedImages | EachPlace, pair_set: PairSet, batch_size: int, flip: bool):
    """Seconds, and all that the protocol measures."""
    start = time.perf_counter()
    features = embed({"": model}, source, batch_size=batch_size, flip=flip)[""]
    result = verify_features(features, pair_set).to_json()
    return time.perf_counter() - start, result


def main() -> None:
    """Measure in turn and print both times and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a .bin file")
    parser.add_argument("--model", default="shufflefacenet_0_5", help="a model, or the name of a backbone")
    parser.add_argument("--scale", type=float, default=127.5, help="of a foreign model's input")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--no-flip", dest="flip", action="store_false")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    pair_set = read_pairs(arguments.data)
    foreign = Path(arguments.model).is_file()
    preprocessing = Preprocessing(scale=arguments.scale) if foreign else None
    model = load_model(arguments.model, device=arguments.device, preprocessing=preprocessing)
    source = EncodedImages(pair_set.name, pair_set.images)
    print(f"{pair_set.name}: {len(source)} places of {len(distinct(source))} distinct images", flush=True)
    rows = []
    for _ in range(arguments.turns):
        taken = [
            evaluated(model, one, pair_set, arguments.batch_size, arguments.flip) for one in (EachPlace(source), source)
        ]
        (before, expected), (after, found) = taken
        assert found == expected, "the metrics differ"
        rows.append((before, after))
        print(f"each place {before:.1f} s, each image once {after:.1f} s: ratio {before / after:.2f}", flush=True)
    ratios = sorted(before / after for before, after in rows)
    accuracy = f"accuracy {100 * found['accuracy']:.2f} %, TAR at FAR 1e-3 {100 * found['tar_at_far_1e3']:.2f} %"
    print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); same metrics: {accuracy}")


if __name__ == "__main__":
    main()
