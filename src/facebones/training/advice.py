"""What a training measures of its head, and says once where the head does not do what it is meant to."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.system.distributed import World

CORRELATION = "norm_sharpness_correlation"
ENOUGH_IMAGES = 2000  # that a correlation is judged by
OUTWEIGHS = 100


class Advice:
    """Notes on the head's metrics, each once; of the process that logs, and not part of a checkpoint."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._images, self._sum = 0, 0.0

    def notes(self, head: Mapping[str, float], images: int) -> list[str]:
        """What to say of an interval.

        Args:
            head: metrics of the head, means over the interval.
            images: of the interval.
        """
        found = {"norm": self._of_norm(head, images), "balance": _of_balance(head)}
        new = {name: note for name, note in found.items() if note and name not in self._said}
        self._said |= new.keys()
        return list(new.values())

    def _of_norm(self, head: Mapping[str, float], images: int) -> str:
        """Judge the correlation of each `ENOUGH_IMAGES` images; below 0 by two standard errors is negative."""
        if not math.isfinite(correlation := head.get(CORRELATION, math.nan)):
            return ""
        self._images, self._sum = self._images + images, self._sum + images * correlation
        if self._images < ENOUGH_IMAGES:
            return ""
        images, mean = self._images, self._sum / self._images
        self._images, self._sum = 0, 0.0
        if mean > -2 / math.sqrt(images):
            return ""
        return (
            f"note: adaface takes a large norm for a good image, but over the last {images} images the norm falls with"
            f" the sharpness (correlation {mean:.2f}): its margin may press on the wrong ones, as it can on small sets;"
            " compare with --head.name arcface"
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
