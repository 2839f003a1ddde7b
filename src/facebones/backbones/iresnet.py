"""iResNet, the improved residual network of the ArcFace line ("IR" in the paper).

Sources: ArcFace, arXiv 1801.07698; Improved Residual Networks, arXiv 2004.04989. Attribute names are those of
InsightFace's arcface_torch, so its `backbone.pth` state dicts load unchanged.
"""

from torch import Tensor, nn

from facebones.backbones.base import Backbone
from facebones.backbones.registry import register_backbone

STAGE_WIDTHS = (64, 128, 256, 512)


class Unit(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 (with the stride), BN; no activation after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return shortcut + out  # type: ignore[no-any-return]


class IResNet(Backbone):
    """iResNet with four stages.

    Args:
        depths: units in each stage.
        embedding_size: D.
        dropout: probability before the last linear layer.
    """

    stage_ends = ("prelu", "layer1", "layer2", "layer3", "layer4")
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, depths: tuple[int, int, int, int], embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        in_channels = 64
        for number, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True), start=1):
            units = [Unit(in_channels, width, 2), *(Unit(width, width, 1) for _ in range(depth - 1))]
            setattr(self, f"layer{number}", nn.Sequential(*units))
            in_channels = width
        self.bn2 = nn.BatchNorm2d(in_channels)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)
        # The head normalises the embedding: a learned scale per element would act as a second head.
        self.features.weight.requires_grad_(False)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x_B3HW)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)  # (B, 512, 7, 7) at the end
        x = self.dropout(self.bn2(x).flatten(1))
        return self.features(self.fc(x)).float()  # type: ignore[no-any-return]  # (B, D)


@register_backbone("r18")
def iresnet18(embedding_size: int, dropout: float) -> Backbone:
    """iResNet-18 of the ArcFace line (arXiv 1801.07698)."""
    return IResNet((2, 2, 2, 2), embedding_size, dropout)


@register_backbone("r34")
def iresnet34(embedding_size: int, dropout: float) -> Backbone:
    """iResNet-34 of the ArcFace line (arXiv 1801.07698)."""
    return IResNet((3, 4, 6, 3), embedding_size, dropout)


@register_backbone("r50")
def iresnet50(embedding_size: int, dropout: float) -> Backbone:
    """iResNet-50 of the ArcFace line (arXiv 1801.07698)."""
    return IResNet((3, 4, 14, 3), embedding_size, dropout)


@register_backbone("r100")
def iresnet100(embedding_size: int, dropout: float) -> Backbone:
    """iResNet-100 of the ArcFace line (arXiv 1801.07698)."""
    return IResNet((3, 13, 30, 3), embedding_size, dropout)


@register_backbone("r200")
def iresnet200(embedding_size: int, dropout: float) -> Backbone:
    """iResNet-200 of the ArcFace line (arXiv 1801.07698)."""
    return IResNet((6, 26, 60, 6), embedding_size, dropout)
