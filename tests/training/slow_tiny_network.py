"""A plug-in of tests: a network that trains in a moment, and steps that last as long as STEP_SECONDS says."""

import os
import time

from torch import nn

from facebones.backbones import Backbone, register_backbone
from facebones.training.callbacks import Callback, register_callback


class SlowTiny(Backbone):
    """Convolution, normalisation, dropout and a parameter without a gradient."""

    def __init__(self, embedding_size, dropout):
        super().__init__()
        self.embedding_size = embedding_size
        self.conv = nn.Conv2d(3, 4, 7, 16, bias=False)
        self.norm2d = nn.BatchNorm2d(4)
        self.prelu = nn.PReLU(4)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * 7 * 7, embedding_size)
        self.unused = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(embedding_size)

    def forward(self, x):
        x = self.prelu(self.norm2d(self.conv(x))).flatten(1)
        return self.norm(self.linear(self.dropout(x))).float()


@register_backbone()
def slow_tiny(embedding_size, dropout):
    """A tiny network for tests."""
    return SlowTiny(embedding_size, dropout)


@register_callback
class Slow(Callback):
    """Waits after each step, and says in a file how far the training is."""

    def on_step(self, run, step):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        (run.folder / "step").write_text(str(step))
