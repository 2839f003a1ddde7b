"""The published study's recipe on real faces, step by step beside the rule written out plainly.

    python benchmarks/study_rule.py --data people877 [--steps 300] [--batch-size 32] [--output study_rule.json]

Both sides begin with the same weights and get the same batches, in fp32: ours through `Trainer` and the recipe
`study_as_run`, the other through `plain.PlainTraining` with the study's clipping and rates. Rounding differs and
grows from step to step, so the curves agree closely at first and by and large at the end.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from plain import PlainTraining

from facebones.recipe import load_recipe
from facebones.training.step import network_input
from facebones.training.trainer import Trainer


def losses(trainer: Trainer, rule: PlainTraining, steps: int) -> Iterator[tuple[float, float]]:
    """The loss of ours and of the rule, step by step."""
    base, total = rule.optimizer.param_groups[0]["lr"], trainer.total_steps
    for number, batches in zip(range(steps), trainer.step_batches(), strict=False):
        ((images, labels),) = batches
        rule.optimizer.param_groups[0]["lr"] = base * ((total - number) / (total + 1)) ** 2
        theirs = rule.step(network_input(trainer, images, number), labels).item()
        trainer.train_step(batches)
        trainer.read_back_metrics()
        yield trainer.meter.loss or float("nan"), theirs
        trainer.meter.reset()


def main(arguments: argparse.Namespace) -> None:
    """Train both sides and print their curves."""
    fields = {
        "backbone.name": arguments.backbone,
        "data.path": str(arguments.data),
        "validation.sets": "",
        "training.precision": "fp32",
        "training.batch_size": str(arguments.batch_size),
        "optimizer.learning_rate": str(arguments.learning_rate),
    }
    trainer = Trainer(load_recipe("study_as_run", fields), torch.device("cpu"))
    rule = PlainTraining(arguments.backbone, trainer.data.num_identities, arguments.learning_rate, margin=0.5, clip=5)
    rule.network.load_state_dict(trainer.backbone.state_dict())
    rule.centres.data.copy_(trainer.head.centres.data)
    curve = []
    print(" step      ours  the rule  (means of the last steps)", flush=True)
    for step, pair in enumerate(losses(trainer, rule, arguments.steps), start=1):
        curve.append(pair)
        every = 1 if step <= 5 else arguments.every
        if step % every == 0:
            means = (statistics.mean(part) for part in zip(*curve[-every:], strict=True))
            print(f"{step:5}  " + "  ".join(f"{mean:8.4f}" for mean in means), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"recipe": trainer.recipe.to_dict(), "losses": curve}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", default="study_shufflefacenet_0_5")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=20, help="steps between lines")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--output", type=Path)
    main(parser.parse_args())
