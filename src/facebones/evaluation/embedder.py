"""A network with all that it takes to embed faces: device, preprocessing, precision, and what its weights are."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from facebones.backbones import Backbone, lookup_backbone
from facebones.backbones.weights import load_backbone
from facebones.data.preprocessing import OURS, Preprocessing, to_network_input
from facebones.errors import CheckpointError, ConfigError
from facebones.onnx.backbone import OnnxBackbone
from facebones.system.device import device_settings, select_device, to_device

Precision = Literal["fp32", "bf16", "fp16"]
Batch = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

AUTOCAST_TYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedder:
    """Pixels to embeddings; the network should be in eval mode, as the embedding pass puts it.

    Attributes:
        network: on `device`; (B, 3, H, W) float32 -> (B, D).
        device: where the network is.
        preprocessing: how the network wants its input.
        precision: fp32, or the type of torch's autocast.
        channels_last: feed the network in the channels-last memory format.
        runtime: what computes the network, of `evaluation.runtimes`.
        path: the file of the weights, where there is one.
        weights_sha256: digest of that file; features on disk are kept under it.

    Raises:
        ConfigError: other preprocessing for a file that has its own within.
    """

    network: nn.Module
    device: torch.device
    preprocessing: Preprocessing = OURS
    precision: Precision = "fp32"
    channels_last: bool = False
    runtime: str = "eager"
    path: Path | None = None
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.network, OnnxBackbone) and self.network.folded and self.preprocessing != OURS:
            raise ConfigError(f"{self.network.path}: has its preprocessing within; leave mean, scale and colour out")

    def __call__(self, images_BHWC: Batch, flip: bool) -> Features:
        """Embed RGB images (B, H, W, 3) uint8, and with `flip` their mirror images too.

        Torch's random state is not touched.

        Returns:
            (B, 2, D) float32, images and mirror images; (B, 1, D) without `flip`. Neither summed nor normalised.
        """
        kind = self.device.type
        autocast = torch.autocast(kind, AUTOCAST_TYPE[self.precision], self.precision != "fp32")
        with device_settings(self.device), torch.inference_mode(), autocast:
            images = to_device(torch.from_numpy(images_BHWC), self.device)
            x = to_network_input(images, self.channels_last, preprocessing=self.preprocessing)  # (B, 3, H, W)
            views = (x, x.flip(3)) if flip else (x,)
            answers = torch.stack([self.network(view).float() for view in views], dim=1)  # (B, V, D)
        return np.asarray(answers.cpu().numpy(), dtype=np.float32)

    def settings(self) -> dict[str, Any]:
        """All that decides what comes out, but the images: names to plain values."""
        return {
            "weights_sha256": self.weights_sha256,
            "preprocessing": self.preprocessing.to_json(),
            "runtime": self.runtime,
            "precision": self.precision,
            "channels_last": self.channels_last,
            "device": self.device.type,
        }


def open_backbone(checkpoint: Path, name: str | None, device: str) -> tuple[Backbone, Path, torch.device]:
    """Build the network of a run, a file of weights or an ONNX file, ready to embed.

    Args:
        checkpoint: as for `load_backbone`, or a `.onnx` file.
        name: the backbone; needed where the file does not say it, checked where it does.
        device: "auto", "cpu", "cuda", ...; where the network computes.

    Returns:
        the backbone, the path of the file that was read, and the device for its input.

    Raises:
        CheckpointError: missing, broken, or of another backbone.
        ConfigError: no such device.
    """
    if checkpoint.suffix == ".onnx":
        network = OnnxBackbone(checkpoint, device)
        if name and (network.said_name is None or lookup_backbone(name).name != network.said_name):
            held = network.said_name or "a network of its own"
            raise CheckpointError(f"{checkpoint}: holds {held}, not {name}; leave --backbone out")
        return network, checkpoint, torch.device("cpu")
    computing = select_device(device)
    backbone, path = load_backbone(checkpoint, name)
    return backbone.to(computing), path, computing


def open_embedder(
    checkpoint: Path, name: str | None = None, device: str = "auto", preprocessing: Preprocessing = OURS
) -> Embedder:
    """Open a run, a file of weights or an ONNX file for embedding; `open_backbone` has the rules.

    Raises:
        CheckpointError: missing, broken, or of another backbone.
        ConfigError: no such device, or preprocessing for a file that has its own within.
    """
    network, path, computing = open_backbone(checkpoint, name, device)
    channels_last = not isinstance(network, OnnxBackbone)
    if channels_last:  # torch's convolutions are up to 1.8 times as fast so
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Embedder(
        network=network,
        device=computing,
        preprocessing=preprocessing,
        channels_last=channels_last,
        runtime="eager" if channels_last else "onnxruntime",
        path=path,
        weights_sha256=_digest(path),
    )


def _digest(path: Path) -> str:
    """Digest of a file of weights, and of the external data that exporters put beside an ONNX file."""
    digest = hashlib.sha256()
    for part in (path, path.with_name(f"{path.name}.data")):
        try:
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{part}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
