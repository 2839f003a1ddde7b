"""The study's rule: our step, and the rule written out plainly, from one state and with the same batches."""

import copy

import pytest
import torch
from torch.nn import functional

from facebones.recipe import load_recipe
from facebones.training.step import network_input
from facebones.training.trainer import Trainer

STEPS = 10


class StudyRule:
    """Loss, clipping, SGD and schedule of the study, as anyone would write them down.

    Args:
        network: its weights are copied.
        centres: (C, D), likewise.
        total: T, steps of the training.
    """

    def __init__(self, network, centres, total):
        self.network, self.total, self.step = copy.deepcopy(network).train(), total, 0
        self.centres = centres.detach().clone().requires_grad_()
        self.parameters = [*self.network.parameters(), self.centres]
        self.momentum = [None] * len(self.parameters)

    def loss(self, x, label):
        cosine = functional.normalize(self.network(x)) @ functional.normalize(self.centres).T
        cosine = cosine.clamp(-1, 1)
        row = torch.arange(len(label))
        with torch.no_grad():  # straight-through: the margin has no derivative
            margin = torch.zeros_like(cosine)
            margin[row, label] = torch.cos(torch.arccos(cosine[row, label]) + 0.5) - cosine[row, label]
        return functional.cross_entropy(64 * (cosine + margin), label)

    def train(self, x, label):
        loss = self.loss(x, label)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5)  # not the centres
        rate = 0.1 * ((self.total - self.step) / (self.total + 1)) ** 2
        self.step += 1
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                if parameter.grad is None:
                    continue
                gradient = parameter.grad + 5e-4 * parameter
                before = self.momentum[index]
                self.momentum[index] = gradient if before is None else 0.9 * before + gradient
                parameter.sub_(rate * self.momentum[index])
        return loss.item()


def distance(ours, theirs):
    """Relative distance of two lists of tensors."""
    difference = sum((a - b).double().square().sum() for a, b in zip(ours, theirs, strict=True))
    return (difference / sum(b.double().square().sum() for b in theirs)).sqrt().item()


@pytest.mark.parametrize("backbone", ["study_shufflefacenet_0_5", "mobilefacenet_wide"])
def test_ten_steps_of_ours_are_ten_steps_of_the_rule(backbone, small_data):
    overrides = {
        "backbone.name": backbone,
        "data.path": str(small_data),
        "data.workers": "0",
        "validation.sets": "tiny",
        "training.precision": "fp32",
        "training.batch_size": "8",
        "training.epochs": "4",
    }
    ours = Trainer(load_recipe("study_as_run", overrides), torch.device("cpu"))
    rule = StudyRule(ours.backbone, ours.head.centres, ours.total_steps)
    for number, batches in zip(range(STEPS), ours.step_batches(), strict=False):
        ((images, label),) = batches
        theirs = rule.train(network_input(ours, images, number), label)
        ours.train_step(batches)
        ours.read_back_metrics()
        assert ours.meter.loss == pytest.approx(theirs, rel=1e-6), f"step {number}"
        ours.meter.reset()
        norm = ours.latest["gradient_norm"]
        assert norm > 5, "each step is clipped"
        weights = [p.detach() for p in (*ours.backbone.parameters(), ours.head.centres)]
        assert distance(weights, [p.detach() for p in rule.parameters]) < 1e-6, f"step {number}"
    assert rule.step == ours.step == STEPS
