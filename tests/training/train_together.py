"""Train in several processes for a few steps; run as a program, because a process that has trained cannot fork others.

Usage: train_together.py CASES.json RESULTS, where CASES is a list of {"size", "recipe", "steps"} and RESULTS a folder.
Each process writes CASE-RANK.pt: what the steps measured, and its weights and centres.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch
from torch import nn

from facebones.backbones import Backbone, register_backbone
from facebones.recipe import recipe_from_dict
from facebones.system.process_group import joined
from facebones.training.trainer import Trainer

SECONDS = 240


class Shared(Backbone):
    """A network with what several processes must share: normalisation of two kinds, dropout, an unused layer."""

    def __init__(self, embedding_size, dropout=0.0):
        super().__init__()
        self.embedding_size = embedding_size
        self.conv = nn.Conv2d(3, 8, 7, 8, bias=False)
        self.norm2d = nn.BatchNorm2d(8)
        self.prelu = nn.PReLU(8)
        self.depthwise = nn.Conv2d(8, 8, 3, 2, groups=8)
        self.norm_after = nn.BatchNorm2d(8, affine=False, momentum=None)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(8 * 36, embedding_size)
        self.unused = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(embedding_size)

    def forward(self, x):
        x = self.norm_after(self.depthwise(self.prelu(self.norm2d(self.conv(x)))))
        return self.norm(self.linear(self.dropout(x.flatten(1))))


def train_together(case, number, results):
    """Fork the processes of a case and wait for them; returns their exit statuses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    children = []
    for rank in range(case["size"]):
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            _be(case, rank, port, results / f"{number}-{rank}.pt")
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _be(case, rank, port, path):
    size = case["size"]
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
    status = 1
    try:
        with joined("cpu") as world:
            trainer = Trainer(recipe_from_dict(case["recipe"]), torch.device("cpu"), world)
            measured = []
            for _, batches in zip(range(case["steps"]), trainer.step_batches(), strict=False):
                trainer.train_step(batches)
                measured += trainer.meter.read_back()
            if trainer.parallel is not None:
                trainer.parallel.share_statistics()
            state = trainer.state_dict(0)
            own = state["head"].get("centres", torch.empty(0, 0))  # without a head there are none
            centres = torch.cat(list(getattr(own, "blocks", [own])))
            momentum = [torch.cat(list(getattr(value, "blocks", [value]))) for value in _momentum(state, own)]
            torch.save(
                {
                    "measured": torch.tensor(measured, dtype=torch.float64),
                    "backbone": trainer.backbone.state_dict(),
                    "head": {name: value for name, value in state["head"].items() if name != "centres"},
                    "distillation": state.get("distillation", {}).get("loss", {}),
                    "centres": centres,
                    "momentum": torch.cat([torch.empty(len(centres), 0), *momentum], dim=1),
                    "scale": trainer.scaler.get_scale(),
                },
                path,
            )
            status = 0
    finally:
        os._exit(status)


def _momentum(state, centres):
    """What the optimizer keeps for the centres of this process."""
    shape = tuple(centres.shape)
    values = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    return [value for value in values if getattr(value, "shape", None) is not None and tuple(value.shape) == shape]


if __name__ == "__main__":
    register_backbone()(Shared)
    torch.set_num_threads(1)
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    failed = [n for n, case in enumerate(cases) if any(train_together(case, n, folder))]
    sys.exit(f"cases {failed} failed" if failed else 0)
