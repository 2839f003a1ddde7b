"""The published study's recipe on real faces, step by step beside the rule written out plainly.

    python benchmarks/study_rule.py --data people877 [--steps 300] [--batch-size 32] [--output study_rule.json]

Both sides begin with the same weights and get the same batches, in fp32: ours through `Trainer` and the recipe
`study_as_run`, the other as the study's trainer does it, with torch's own SGD and clipping. Training amplifies a
difference in the last bit until nothing is alike, so the two losses are equal in all digits or soon in none.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from facebones.recipe import load_recipe
from facebones.training.step import draw_mirrored, network_input
from facebones.training.trainer import Trainer


class StudyRule:
    """The study's training: ArcFace, the network's gradient clipped at 5, SGD, quadratic decay.

    Args:
        network: its weights are copied.
        centres: (C, D), likewise.
        rate: learning rate at the beginning.
        total: steps of the training.
    """

    def __init__(self, network: nn.Module, centres: Tensor, rate: float, total: int) -> None:
        self.network, self.centres = copy.deepcopy(network).train(), nn.Parameter(centres.detach().clone())
        self.rate, self.total, self.number = rate, total, 0
        parameters = [*self.network.parameters(), self.centres]
        self.optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4)

    def step(self, x: Tensor, labels: Tensor) -> float:
        """One update by (B, 3, H, W) and (B,); returns the loss."""
        cosine = functional.linear(functional.normalize(self.network(x)), functional.normalize(self.centres))
        cosine, row = cosine.clamp(-1, 1), torch.arange(len(labels))
        with torch.no_grad():  # the margin is not differentiated
            cosine[row, labels] = torch.cos(torch.acos(cosine[row, labels]) + 0.5)
        loss = functional.cross_entropy(64 * cosine, labels)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5)
        self.optimizer.param_groups[0]["lr"] = self.rate * ((self.total - self.number) / (self.total + 1)) ** 2
        self.optimizer.step()
        self.number += 1
        return loss.item()


def losses(trainer: Trainer, rule: StudyRule, steps: int) -> Iterator[tuple[float, float]]:
    """The loss of ours and of the rule, step by step."""
    for number, batches in zip(range(steps), trainer.step_batches(), strict=False):
        ((images, labels, _),) = batches
        theirs = rule.step(network_input(trainer, images, draw_mirrored(trainer, len(images), number)), labels)
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
    rule = StudyRule(trainer.backbone, trainer.head.centres, arguments.learning_rate, trainer.total_steps)
    curve = []
    print(" step      ours  the rule  (means of the last steps)", flush=True)
    for step, pair in enumerate(losses(trainer, rule, arguments.steps), start=1):
        curve.append(pair)
        every = 1 if step <= 5 else arguments.every
        if step % every == 0:
            means = (statistics.mean(part) for part in zip(*curve[-every:], strict=True))
            print(f"{step:5}  " + "  ".join(f"{mean:8.4f}" for mean in means), flush=True)
    apart = max(abs(ours / theirs - 1) for ours, theirs in curve)
    print(f"largest relative difference of a step's losses: {apart:.1e}")
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
