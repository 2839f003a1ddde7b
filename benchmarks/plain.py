"""The reference of several benchmarks: training as simply as anyone of the field would write it first.

Pillow and tensors image by image, torch's DataLoader, eager, contiguous, a dense ArcFace head; fp32, or torch.autocast
where a benchmark says so.
"""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from facebones.backbones import create_backbone

CPU = torch.device("cpu")


class PlainFolder:
    """A data set: one folder a person.

    Args:
        folder: with a folder of images for each person.
    """

    def __init__(self, folder: Path) -> None:
        self.people = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        self.samples = [(path, label) for label, person in enumerate(self.people) for path in sorted(person.iterdir())]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = Image.open(path).convert("RGB")
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return plain_input(image), label


def plain_input(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return x.sub_(0.5).div_(0.5)


class PlainTraining:
    """A backbone, the centres of all classes, and steps of SGD with momentum 0.9, weight decay 5e-4 and a scale of 64.

    Args:
        backbone: its name.
        classes: number of people C.
        learning_rate: of the first steps; `optimizer` holds it.
        margin: added to the angle of the right class, radians.
        device: where it computes.
        autocast: number format of the network, by torch.autocast; float16 comes with a gradient scaler.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        learning_rate: float,
        margin: float,
        *,
        device: torch.device = CPU,
        autocast: torch.dtype = torch.float32,
    ) -> None:
        self.margin, self.device, self.autocast = margin, device, autocast
        self.network = create_backbone(backbone).train().to(device)
        self.centres = torch.nn.Parameter((torch.randn(classes, 512) * 0.01).to(device))
        parameters = [*self.network.parameters(), self.centres]
        self.optimizer = torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast == torch.float16)

    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        """One update by (B, 3, H, W) and (B,), on the device; returns the loss."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast != torch.float32):
            embedding = self.network(x)
        cosine = functional.linear(functional.normalize(embedding.float()), functional.normalize(self.centres))
        cosine = cosine.clamp(-1, 1)
        with torch.no_grad():
            target = torch.zeros_like(cosine).scatter(1, labels[:, None], 1.0)
            change = target * (torch.cos(torch.acos(cosine) + self.margin) - cosine)
        loss = functional.cross_entropy(64 * (cosine + change), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()
