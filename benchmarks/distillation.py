"""What a teacher adds to a training step: its embeddings are read, one loss more is computed, nothing is embedded.

Two trainings of one recipe, one with a teacher, take their steps in turn on their own images, loading included; the
ratio is that of neighbouring steps' processor time.

    python benchmarks/distillation.py [--backbone NAME] [--losses NAME ...] [--steps 7] [--output FILE.json]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from training_step import write_data

from facebones.data.folders import open_training_set
from facebones.evaluation.feature_store import FeatureFile
from facebones.evaluation.teacher_embeddings import TrainingImages
from facebones.heads.distillation import TEACHER_LOSSES
from facebones.recipe import load_recipe
from facebones.training.trainer import Trainer

TEACHER_SIZE = 512


def write_teacher(folder: Path) -> Path:
    """Random embeddings of the data in the folder."""
    source = TrainingImages(open_training_set(folder))
    rows = np.random.default_rng(0).normal(size=(len(source), 2, TEACHER_SIZE)).astype(np.float32)
    settings = {"source": source.fingerprint(), "dtype": "float16", "weights_sha256": "random"}
    with FeatureFile(folder, "teacher", len(source), len(source), settings) as file:
        file.write(0, rows)
    return file.path


def main(arguments: argparse.Namespace) -> None:
    """Measure each loss, beside the head and alone."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        plain = {
            **{"backbone.name": arguments.backbone, "data.path": name, "data.workers": "0", "validation.sets": ""},
            **{"training.batch_size": str(arguments.batch_size)},
        }
        taught = plain | {"distillation.embeddings": str(write_teacher(folder))}
        found = {}
        for loss in arguments.losses:
            for alone in ("false", "true"):
                options = {"distillation.loss": loss, "distillation.alone": alone}
                ratios = compare(plain, taught | options, arguments.steps)
                label = f"{loss}{', no head' if alone == 'true' else ''}"
                found[label] = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
                print(f"{label}: {found[label]['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=2))


def compare(plain: dict[str, str], taught: dict[str, str], steps: int) -> list[float]:
    """Processor time of steps with a teacher over that of steps without, in turn."""
    trainers = [Trainer(load_recipe("small_data", fields), torch.device("cpu")) for fields in (plain, taught)]
    batches = [trainer.step_batches() for trainer in trainers]
    ratios = []
    for number in range(steps + 2):
        seconds = []
        for trainer, mine in zip(trainers, batches, strict=True):
            start = time.process_time()
            trainer.train_step(next(mine))
            trainer.read_back_metrics()
            seconds.append(time.process_time() - start)
        if number >= 2:  # the heap has grown
            ratios.append(seconds[1] / seconds[0])
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="shufflefacenet_1_0")
    parser.add_argument("--losses", nargs="+", default=[*TEACHER_LOSSES], choices=TEACHER_LOSSES, metavar="NAME")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--output", type=Path)
    main(parser.parse_args())
