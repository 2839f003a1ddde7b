"""Compare the embedding of faces by each `--runtime` of `evaluate` with a plain loop over batches.

The plain side is as simple as can be: torch eager, fp32, contiguous, the C library as it is, no mirror images. Ours is
the `Model` of `facebones evaluate`, by one runtime. Both sides of a comparison are processes of their own, for what
the C library does with freed memory holds for a whole process; they embed the same batch in turn, one at a time, and
the ratio is the median of the ratios of neighbouring batches. Setup (export, compilation, measuring of `auto`) is told
beside it, not in it. `int8` is no runtime but what `export --int8` makes, a network of its own, in ONNX Runtime. How
near the embeddings are is not measured here: that takes trained networks, and `--runtime auto` says it of each.

    python benchmarks/evaluation.py [--backbones NAME ...] [--runtimes NAME ...] [--batches 7] [--output FILE.json]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from turns import Side, compare, serve

BATCH_SIZE = 64
IMAGES = 938_750  # that `auto` is told of: IJB-C's with the mirror images; 24,000 would be LFW's
PLAIN, INT8, AUTO = "plain", "int8", "auto"
RUNTIMES = (
    "eager", "bf16", "onnxruntime", "openvino", "openvino-bf16", "compiled", "compiled-bf16", INT8, AUTO,
)  # fmt: skip
DEFAULT_RUNTIMES = ("eager", "compiled-bf16", "openvino-bf16")
BACKBONES = ("mobilefacenet_wide", "shufflefacenet_1_0", "mixfacenet_s", "iresnet18")


def smooth_images(count: int, seed: int) -> np.ndarray:
    """Draw (N, 112, 112, 3) uint8 without an edge, as a face has few."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, (112, 112), interpolation=cv2.INTER_CUBIC) for image in coarse])


def network_of(backbone: str):
    """Draw a network with running statistics half way to those of its activations.

    It embeds all images nearly alike, so that `auto` finds every runtime near enough, as it does with trained ones.
    """
    import torch

    from facebones.backbones import create_backbone
    from facebones.data.preprocessing import to_network_input

    torch.manual_seed(0)
    network = create_backbone(backbone).train()
    with torch.no_grad():
        for seed in range(5):
            network(to_network_input(torch.from_numpy(smooth_images(16, seed + 1))))
    return network.eval()


def plain_pass(backbone: str) -> Callable[[], object]:
    """The reference: what an evaluation of the field does with a batch, and no more."""
    import torch

    network = network_of(backbone)
    images = torch.from_numpy(smooth_images(BATCH_SIZE, 0))

    def embed() -> object:
        with torch.no_grad():
            x = (images.permute(0, 3, 1, 2).contiguous().float() / 255 - 0.5) / 0.5
            return network(x).numpy()

    return embed


def our_pass(backbone: str, runtime: str, count: int) -> tuple[Callable[[], object], dict[str, object]]:
    """`Model` by a runtime; and what is told of it: its name and seconds of setup."""
    import torch

    from facebones.evaluation.models import Model
    from facebones.evaluation.runtimes import choose, run_by
    from facebones.system.malloc import tune_malloc

    tune_malloc()
    network = network_of(backbone).to(memory_format=torch.channels_last)
    images = smooth_images(BATCH_SIZE, 0)
    eager = Model(network=network, device=torch.device("cpu"), channels_last=True)
    start = time.perf_counter()
    if runtime == INT8:
        ours = replace(eager, network=quantized(network), channels_last=False, runtime=INT8)
    elif runtime == AUTO:
        ours = choose(backbone, eager, images, BATCH_SIZE, count)
    else:
        ours = run_by(eager, runtime, BATCH_SIZE)
    setup = time.perf_counter() - start
    return lambda: ours(images, flip=False), {"taken": ours.runtime, "setup_seconds": setup}


def quantized(network):
    """The 8-bit form, its ranges from other images."""
    from facebones.onnx.backbone import OnnxBackbone
    from facebones.onnx.graph import to_onnx
    from facebones.onnx.quantize import quantize

    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "fp32.onnx", Path(name) / "int8.onnx"
        source.write_bytes(to_onnx(network, network.name).SerializeToString())
        quantize(OnnxBackbone(source), target, list(smooth_images(64, 1)))
        return OnnxBackbone(target)


def embedding_side(backbone: str, side: str, count: int = 0, cache: str = "") -> Side:
    """A process that embeds a batch when asked."""
    words = [__file__, "--serve", side, "--backbones", backbone, "--images", count]
    return Side(*words, XDG_CACHE_HOME=cache)


def measure(plain: Side, backbone: str, runtime: str, batches: int, count: int) -> dict[str, object]:
    """Batches of both sides in turn; `auto` measures from nothing, in a cache folder of its own."""
    with tempfile.TemporaryDirectory() as cache:
        ours = embedding_side(backbone, runtime, count, cache)
    found = compare(plain, ours, batches)
    ours.close()
    row = {
        "backbone": backbone,
        "runtime": runtime,
        "plain_images_per_second": BATCH_SIZE / found.pop("plain_seconds"),
        "images_per_second": BATCH_SIZE / found.pop("seconds"),
        **found,
        **ours.told,
    }
    taken = f" ({row['taken']})" if runtime == AUTO else ""
    print(
        f"{backbone:22} {runtime:14} plain {row['plain_images_per_second']:6.1f}, ours {row['images_per_second']:6.1f}"
        f" images/s: ratio {row['ratio']:5.2f} ({row['lowest']:.2f} to {row['highest']:.2f}),"
        f" setup {row['setup_seconds']:.0f} s{taken}",
        flush=True,
    )
    return row


def main() -> None:
    """Measure each backbone by each runtime."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--runtimes", nargs="+", default=DEFAULT_RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--batches", type=int, default=7)
    parser.add_argument("--images", type=int, default=IMAGES, help="that `auto` is told of")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        backbone = arguments.backbones[0]
        plain = arguments.serve == PLAIN
        work, told = (plain_pass(backbone), {}) if plain else our_pass(backbone, arguments.serve, arguments.images)
        serve(work, told)
        return
    print(f"batch {BATCH_SIZE}, {os.cpu_count()} cores, {platform.processor() or 'CPU'}")
    rows = []
    for backbone in arguments.backbones:
        plain = embedding_side(backbone, PLAIN)
        for runtime in arguments.runtimes:
            rows.append(measure(plain, backbone, runtime, arguments.batches, arguments.images))
        plain.close()
    means = {
        runtime: statistics.geometric_mean(row["ratio"] for row in rows if row["runtime"] == runtime)
        for runtime in arguments.runtimes
    }
    for runtime, mean in means.items():
        print(f"geometric mean over {len(arguments.backbones)} backbones: {runtime} {mean:.2f}")
    if arguments.output:
        content = {
            "machine": platform.platform(),
            "batch_size": BATCH_SIZE,
            "images": arguments.images,
            "rows": rows,
            "geometric_means": means,
        }
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
