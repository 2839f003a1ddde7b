"""Compare a training step of ours, in several settings, with the plain loop of the field's trainers.

The plain side is as simple as can be: eager, fp32, contiguous, a dense ArcFace head, SGD, the C library as it is. Ours
is `Trainer.train_step` on the same images, as `facebones train` runs it. Both sides of a comparison are processes of
their own, for what the C library does with freed memory holds for a whole process; they take their steps in turn, one
at a time, and the ratio is the median of the ratios of neighbouring steps.

    python benchmarks/training_step.py [--backbones NAME ...] [--settings NAME ...] [--steps 7] [--output FILE.json]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from turns import Side, compare, serve

CLASSES, BATCH_SIZE = 8631, 64
PLAIN = "plain"
SETTINGS = {
    "contiguous": {"precision": "fp32", "channels_last": False},
    "channels-last": {"precision": "fp32"},
    "compile": {"precision": "fp32", "compile": True},
    "bf16": {"precision": "bf16"},
    "bf16 compile": {"precision": "bf16", "compile": True},
}
BACKBONES = ("mobilefacenet_wide", "iresnet18", "shufflefacenet_1_0", "mixfacenet_xs")


def write_data(folder: Path) -> None:
    """Write one image each of so many people; a step's time does not depend on what they show."""
    from facebones.data.record_writer import RecordWriter
    from facebones.data.recordio import Header, pack

    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    with RecordWriter(folder / "train.rec") as writer:
        for person in range(CLASSES):
            writer.write(person + 1, pack(Header(label=float(person), id=person + 1), jpeg))
    (folder / "property").write_text(f"{CLASSES},112,112\n")


def plain_step(backbone: str) -> Callable[[], None]:
    """The reference: what a trainer of the field does in a step, and no more."""
    import torch
    from plain import PlainTraining

    training = PlainTraining(backbone, CLASSES, learning_rate=0.001, margin=0.5)
    images = torch.randint(0, 256, (BATCH_SIZE, 112, 112, 3), dtype=torch.uint8)
    labels = torch.arange(BATCH_SIZE)

    def step() -> None:
        training.step((images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5, labels)

    return step


def our_step(backbone: str, data: Path, setting: str) -> Callable[[], None]:
    """`Trainer.train_step` by the recipe of the published study, in one setting."""
    import torch

    from facebones.recipe import load_recipe
    from facebones.system.malloc import tune_malloc
    from facebones.training.step import Batch
    from facebones.training.trainer import Trainer

    tune_malloc()
    fields = {"backbone.name": backbone, "data.path": str(data), "validation.sets": "", "training.batch_size": "64"}
    fields["training.clip_norm"] = "0"  # the plain side does not clip
    recipe = load_recipe("vggface2_arcface", fields)
    recipe = replace(recipe, training=replace(recipe.training, **SETTINGS[setting]))
    trainer = Trainer(recipe, torch.device("cpu"))
    images = torch.randint(0, 256, (BATCH_SIZE, 112, 112, 3), dtype=torch.uint8)
    batches = [Batch(images, torch.arange(BATCH_SIZE))]
    return lambda: trainer.train_step(batches)


def step_of(backbone: str, side: str, data: Path) -> Callable[[], None]:
    """A step of a side: plain, or ours in a setting."""
    return plain_step(backbone) if side == PLAIN else our_step(backbone, data, side)


def profile(backbone: str, side: str, data: Path, rows: int = 12) -> None:
    """Print where the time of a step goes, operator by operator."""
    import torch

    step = step_of(backbone, side, data)
    for _ in range(4):
        step()
    with torch.profiler.profile() as profiler:
        step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{backbone}, {side}: {total / 1e6:.2f} s")
    for event in events[:rows]:
        share = event.self_cpu_time_total / total
        print(f"{share:6.1%} {event.self_cpu_time_total / 1e3:8.1f} ms {event.count:5} x {event.key[:60]}")


def measure(backbone: str, setting: str, data: Path, steps: int) -> dict[str, Any]:
    """Steps of both sides in turn."""
    words = [__file__, "--backbones", backbone, "--data", data, "--serve"]
    plain, ours = Side(*words, PLAIN), Side(*words, setting)
    row = {"backbone": backbone, "setting": setting, **compare(plain, ours, steps)}
    plain.close()
    ours.close()
    print(
        f"{backbone:24} {setting:14} plain {row['plain_seconds']:.2f} s, ours {row['seconds']:.2f} s:"
        f" ratio {row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
        flush=True,
    )
    return row


def main() -> None:
    """Measure each backbone in each setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--settings", nargs="+", default=["bf16 compile"], choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    parser.add_argument("--profile", action="store_true", help="the operators of a step of each side, and no ratios")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(step_of(arguments.backbones[0], arguments.serve, arguments.data), {})
        return
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name))
        print(f"batch {BATCH_SIZE}, {CLASSES} classes, {os.cpu_count()} cores, {platform.processor() or 'CPU'}")
        if arguments.profile:
            for backbone in arguments.backbones:
                for side in (PLAIN, *arguments.settings):
                    profile(backbone, side, Path(name))
            return
        rows = [
            measure(backbone, setting, Path(name), arguments.steps)
            for backbone in arguments.backbones
            for setting in arguments.settings
        ]
    mean = statistics.geometric_mean(row["ratio"] for row in rows)
    print(f"geometric mean of {len(rows)} ratios: {mean:.2f}; lowest {min(row['ratio'] for row in rows):.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": platform.platform(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
