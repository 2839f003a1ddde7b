"""A backbone of your own: depthwise separable convolutions with squeeze-and-excitation, 0.1 M parameters.

facebones train demo --import examples/my_backbone.py --backbone my_backbone --data faces --output runs/mine
facebones compare demo --import examples/my_backbone.py --backbones my_backbone,mobilefacenet --data faces --output both
"""

import itertools

from torch import Tensor, nn

from facebones import register_backbone

WIDTHS = (32, 64, 96, 128)  # after each block, which halves the height and width of its input


class SqueezeExcite(nn.Module):
    """Scale each channel by a weight that all channels decide (Hu et al., arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x_BCHW * self.weights(x_BCHW)


def block(channels: int, width: int) -> nn.Sequential:
    """(B, channels, H, W) to (B, width, H/2, W/2)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.PReLU(width),
        SqueezeExcite(width),
    )


@register_backbone()
def my_backbone(embedding_size: int, dropout: float) -> nn.Module:
    """A small network of depthwise separable convolutions with squeeze-and-excitation."""
    channels = (3, *WIDTHS)
    return nn.Sequential(
        *(block(before, width) for before, width in itertools.pairwise(channels)),
        nn.Conv2d(WIDTHS[-1], WIDTHS[-1], 7, groups=WIDTHS[-1], bias=False),  # 7x7 to 1x1, weighted by place
        nn.Flatten(),
        nn.BatchNorm1d(WIDTHS[-1]),
        nn.Dropout(dropout),
        nn.Linear(WIDTHS[-1], embedding_size, bias=False),
        nn.BatchNorm1d(embedding_size),
    )
