"""IR and IR-SE, the residual networks of AdaFace (arXiv 2204.00964) and CVLface.

iResNet with four differences: where the channels stay, the shortcut subsamples and has no convolution; the last
normalisation has no scale and shift; SE variants weight the channels of each branch (arXiv 1709.01507); weights are
drawn by He's rule. Attribute names are the authors', so AdaFace's `.ckpt` and CVLface's `model.pt` load unchanged.
"""

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.layers import initialize
from facebones.backbones.registry import register_backbone

STAGE_WIDTHS = (64, 128, 256, 512)
SE_REDUCTION = 16


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over the map; without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // SE_REDUCTION, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(channels // SE_REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True))))  # (B, C, 1, 1)
        return x * weight.sigmoid()


class Unit(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 (with the stride), BN and in SE variants channel weights; no activation after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut_layer: nn.Module | None = None
        if in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        if squeeze:
            self.res_layer.add_module("se_block", SqueezeExcite(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut_layer is not None:
            shortcut = self.shortcut_layer(x)
        else:
            shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        return shortcut + self.res_layer(x)  # type: ignore[no-any-return]


class IR(Backbone):
    """IR or IR-SE with four stages.

    Args:
        depths: units in each stage.
        embedding_size: D.
        dropout: probability before the last linear layer; the authors train with 0.4.
        squeeze: squeeze-and-excitation in each unit: IR-SE.
    """

    def __init__(
        self, depths: tuple[int, int, int, int], embedding_size: int, dropout: float, squeeze: bool = False
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        units: list[nn.Module] = []
        ends = ["input_layer"]
        in_channels = 64
        for width, depth in zip(STAGE_WIDTHS, depths, strict=True):
            for stride in (2, *[1] * (depth - 1)):
                units.append(Unit(in_channels, width, stride, squeeze))
                in_channels = width
            ends.append(f"body.{len(units) - 1}")
        self.stage_ends = tuple(ends)
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels), nn.Dropout(dropout), nn.Flatten(),
            nn.Linear(in_channels * 7 * 7, embedding_size), nn.BatchNorm1d(embedding_size, affine=False),
        )  # fmt: skip
        initialize(self)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.body(self.input_layer(x_B3HW))  # (B, 512, 7, 7)
        return self.output_layer(x).float()  # type: ignore[no-any-return]  # (B, D)


@register_backbone()
def ir_18(embedding_size: int, dropout: float) -> Backbone:
    """IR-18 of AdaFace and CVLface (arXiv 2204.00964)."""
    return IR((2, 2, 2, 2), embedding_size, dropout)


@register_backbone()
def ir_34(embedding_size: int, dropout: float) -> Backbone:
    """IR-34 of AdaFace and CVLface (arXiv 2204.00964)."""
    return IR((3, 4, 6, 3), embedding_size, dropout)


@register_backbone()
def ir_50(embedding_size: int, dropout: float) -> Backbone:
    """IR-50 of AdaFace and CVLface (arXiv 2204.00964)."""
    return IR((3, 4, 14, 3), embedding_size, dropout)


@register_backbone()
def ir_101(embedding_size: int, dropout: float) -> Backbone:
    """IR-101 of AdaFace and CVLface, as deep as iResNet-100 (arXiv 2204.00964)."""
    return IR((3, 13, 30, 3), embedding_size, dropout)


@register_backbone()
def ir_se_18(embedding_size: int, dropout: float) -> Backbone:
    """IR-18 with squeeze-and-excitation, from AdaFace's code."""
    return IR((2, 2, 2, 2), embedding_size, dropout, squeeze=True)


@register_backbone()
def ir_se_50(embedding_size: int, dropout: float) -> Backbone:
    """IR-50 with squeeze-and-excitation, from AdaFace's code."""
    return IR((3, 4, 14, 3), embedding_size, dropout, squeeze=True)


@register_backbone()
def ir_se_101(embedding_size: int, dropout: float) -> Backbone:
    """IR-101 with squeeze-and-excitation, from AdaFace's code."""
    return IR((3, 13, 30, 3), embedding_size, dropout, squeeze=True)
