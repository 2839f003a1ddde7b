"""The study's rule: our step, and the rule written out plainly, from one state and with the same batches."""

import copy

import pytest
import torch
from torch.nn import functional

from facebones.recipe import load_recipe
from facebones.training.step import draw_mirrored, network_input
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
        self.momentum = [torch.zeros_like(parameter) for parameter in self.parameters]

    def loss(self, x, label):
        cosine = functional.linear(functional.normalize(self.network(x)), functional.normalize(self.centres))
        cosine = cosine.clamp(-1, 1)
        row = torch.arange(len(label))
        with torch.no_grad():  # straight-through: the margin is applied and not differentiated
            cosine[row, label] = torch.cos(torch.arccos(cosine[row, label]) + 0.5)
        return functional.cross_entropy(64 * cosine, label)

    def train(self, x, label):
        loss = self.loss(x, label)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5)  # not the centres
        rate = 0.1 * ((self.total - self.step) / (self.total + 1)) ** 2
        self.step += 1
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.add(parameter, alpha=5e-4)
                self.momentum[index] = 0.9 * self.momentum[index] + gradient
                parameter.add_(self.momentum[index], alpha=-rate)
        return loss.item(), norm.item()


def plain_sgd_rounds_as_the_fused_one_does():
    """Training amplifies a difference in the last bit more than a thousandfold in ten steps."""
    parameter = torch.nn.Parameter(torch.randn(1001))
    expected = parameter.detach().clone()
    optimizer = torch.optim.SGD([parameter], lr=0.07, weight_decay=5e-4, fused=True)
    parameter.grad = torch.randn(1001)
    expected.add_(parameter.grad.add(expected, alpha=5e-4), alpha=-0.07)
    optimizer.step()
    return torch.equal(parameter, expected)


def distance(ours, theirs):
    """Relative distance of two lists of tensors."""
    difference = sum((a - b).double().square().sum() for a, b in zip(ours, theirs, strict=True))
    return (difference / sum(b.double().square().sum() for b in theirs)).sqrt().item()


@pytest.mark.parametrize(
    "backbone", ["study_shufflefacenet_0_5", pytest.param("mobilefacenet_wide", marks=pytest.mark.slow)]
)
def test_ten_steps_of_ours_are_ten_steps_of_the_rule(backbone, small_data):
    if not plain_sgd_rounds_as_the_fused_one_does():
        pytest.skip("torch's fused SGD rounds in another way than its plain operations do on this processor")
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
    norms = []
    for number, batches in zip(range(STEPS), ours.step_batches(), strict=False):
        ((images, label, _),) = batches
        theirs, norm = rule.train(network_input(ours, images, draw_mirrored(ours, len(images), number)), label)
        norms.append(norm)
        ours.train_step(batches)
        ours.read_back_metrics()
        assert ours.meter.loss == pytest.approx(theirs, rel=1e-6), f"step {number}"
        ours.meter.reset()
        weights = [p.detach() for p in (*ours.backbone.parameters(), ours.head.centres)]
        assert distance(weights, [p.detach() for p in rule.parameters]) < 1e-6, f"step {number}"
    assert rule.step == ours.step == STEPS
    assert min(norms[:5]) > 5, "these steps are clipped"
