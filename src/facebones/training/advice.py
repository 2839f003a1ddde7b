"""What a training measures of its head, and says once where the head does not do what it is meant to."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.system.distributed import World

CORRELATION = "norm_sharpness_correlation"
STANDARD_ERRORS = 2.0  # below 0 at which a sum of correlations is negative
OUTWEIGHS = 100


class Advice:
    """Notes on the head's metrics, each once; of the process that logs. A resumed run reads in its log what was said.

    The correlation of norm and sharpness is judged in the second half of a training, when norms mean something. Without
    a true correlation, that of a batch of n images has mean 0 and variance 1 / (n - 1) over the permutations of its
    images, for every distribution of either. The training set is itself a sample, of people: over other people its own
    correlation has a variance of at most about 1 / identities. So the sum of the correlations of all T steps of the
    second half has the variance V = T / (n - 1) + T^2 / identities. The sum so far is compared with -2 sqrt(V) at each
    line. By Levy's inequality it falls below that at any of the lines with at most twice the probability of doing so at
    the last one: 2 * 2.3 % = 4.6 % of trainings without a true correlation get the note.

    Args:
        steps: of the whole training.
        batch_size: rows of a batch, of all processes.
        accumulation_steps: batches of a step.
        identities: people in the training set.
    """

    def __init__(self, *, steps: int, batch_size: int, accumulation_steps: int, identities: int) -> None:
        self._said: set[str] = set()
        self._sum, self._steps = 0.0, 0
        self._images = batch_size * accumulation_steps  # of a step
        self._half = steps // 2
        judged = steps - self._half
        variance = judged / (accumulation_steps * max(1, batch_size - 1)) + judged**2 / max(1, identities)
        self._bound = -STANDARD_ERRORS * math.sqrt(variance)

    def notes(self, head: Mapping[str, float], *, before: int, counted: int) -> list[str]:
        """What to say of an interval.

        Args:
            head: metrics of the head, means over the counted steps.
            before: steps of the training before the interval.
            counted: steps of the interval whose metrics are known.
        """
        found = {"norm": self._of_norm(head, before, counted), "balance": _of_balance(head)}
        new = {name: note for name, note in found.items() if note and name not in self._said}
        self._said |= new.keys()
        return list(new.values())

    def replay(self, lines: Iterable[Any], step: int) -> None:
        """Take in the log of a run that is resumed, without saying its notes again.

        Args:
            lines: of metrics.jsonl, in order; what no training wrote is passed over.
            step: at which the run is resumed.
        """
        before = 0
        for line in lines:
            match line:
                case {"kind": "train", "step": int(end), "skipped_steps": int(skipped), "head": dict(head)} if (
                    0 <= skipped <= end - before and end <= step
                ):
                    numbers = {name: value for name, value in head.items() if isinstance(value, float)}
                    self.notes(numbers, before=before, counted=end - before - skipped)
                    before = end

    def _of_norm(self, head: Mapping[str, float], before: int, counted: int) -> str:
        if before < self._half or not math.isfinite(correlation := head.get(CORRELATION, math.nan)):
            return ""
        self._sum, self._steps = self._sum + counted * correlation, self._steps + counted
        if self._sum > self._bound or not self._steps:
            return ""
        return (
            "note: adaface takes a large norm for a good image, but in the second half of the training the norm falls"
            f" with the sharpness (correlation {self._sum / self._steps:.2g} over {self._steps * self._images} images):"
            " its margin may press on the wrong ones, as it can on small sets; compare with --head.name arcface"
        )


def _of_balance(head: Mapping[str, float]) -> str:
    """Other classes that outweigh the true one; the reverse is how every training begins."""
    own, other = head.get("own_class", 0.0), head.get("other_classes", 0.0)
    if not 0 < OUTWEIGHS * own < other:
        return ""
    return (
        f"note: the other classes make up {other:.3g} of the loss and the true class {own:.3g}, since the last"
        f" line: more than {OUTWEIGHS} times as much; the true class hardly counts (uce: lower --head.negatives)"
    )


@torch.no_grad()
def note_on_sgd(backbone: nn.Module, optimizer: str) -> str:
    """A note on a network of which SGD leaves a part as it is; "" where there is none to make."""
    if optimizer != "sgd" or not isinstance(backbone, Backbone) or not (part := backbone.unmoved_by_sgd()):
        return ""
    return (
        f"note: SGD leaves the {part} of {backbone.name} as it starts, with gradients near 0: give --optimizer.name"
        " adamw --optimizer.learning_rate 1e-3, as the study light_2026 does, or another start (docs/recipes.md)"
    )


@torch.no_grad()
def norm_sharpness_correlation(
    embedding_BD: Tensor, x_B3HW: Tensor, world: World, batch_size: int
) -> dict[str, Tensor]:
    """Pearson's correlation of the embedding's norm and the image's sharpness, over the whole batch, as a metric.

    Args:
        embedding_BD: of the own rows.
        x_B3HW: the network's input, augmentations included.
        world: the processes that share the batch.
        batch_size: rows of all processes.
    """
    pair_B2 = torch.stack([torch.linalg.vector_norm(embedding_BD.float(), dim=1), sharpness(x_B3HW)], dim=1)
    pair_B2 = world.gather_rows(pair_B2, batch_size)
    centred_B2 = pair_B2 - pair_B2.mean(dim=0)
    product = (centred_B2[:, 0] * centred_B2[:, 1]).mean()
    deviation_2 = centred_B2.square().mean(dim=0).sqrt()
    return {CORRELATION: product / deviation_2.prod().clamp(min=1e-12)}


def sharpness(x_B3HW: Tensor) -> Tensor:
    """Logarithm (B,) of the variance of the Laplacian of the grey image: low for a blurred or enlarged one."""
    grey_BHW = (x_B3HW[:, 0] + x_B3HW[:, 1] + x_B3HW[:, 2]).float().contiguous() / 3
    inner_BHW = grey_BHW[:, 1:-1, 1:-1]
    # Sums of slices: a fifth of the time of a convolution with one channel, on a CPU.
    neighbours_BHW = grey_BHW[:, :-2, 1:-1] + grey_BHW[:, 2:, 1:-1] + grey_BHW[:, 1:-1, :-2] + grey_BHW[:, 1:-1, 2:]
    laplacian_BP = (neighbours_BHW - 4 * inner_BHW).flatten(1)
    variance_B = laplacian_BP.square().mean(dim=1) - laplacian_BP.mean(dim=1).square()  # faster than `var`
    return variance_B.clamp(min=1e-8).log()
