"""A network as an ONNX model in memory: what `facebones export` writes, and what other runtimes than torch compute."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones import Backbone
from facebones.backbones.registry import IMAGE_SIZE
from facebones.data.preprocessing import to_network_input
from facebones.errors import ConfigError, RunError, first_line

OPSET = 20
LARGEST_FILE = 2**31 - 1  # bytes; protobuf's limit


@dataclass(frozen=True)
class InputForm:
    """What an exported file takes; the text goes into the file.

    Attributes:
        name: the input's name.
        layout: shape and type.
        preprocessing: what is done to 8-bit pixels before the network, and where.
    """

    name: str
    layout: str
    preprocessing: str


NETWORK_INPUT = InputForm("input", "B,3,112,112 float32", "RGB, x / 127.5 - 1")
PIXEL_INPUT = InputForm("image", "B,112,112,3 uint8", "none: RGB pixels as they are; x / 127.5 - 1 is in the graph")


def check_packages(what: str, packages: Sequence[str], extra: str) -> None:
    """Refuse work whose packages are not installed.

    Raises:
        ConfigError: some are missing.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(f"{what} needs {', '.join(missing)}; pip install 'facebones[{extra}]'")


def to_onnx(network: Backbone, where: str, form: InputForm = NETWORK_INPUT) -> Any:
    """A network in eval mode, on the CPU, as an ONNX model, batch normalisation folded into the convolutions before it.

    Args:
        network: the backbone.
        where: what errors begin with.
        form: what the model takes.

    Raises:
        RunError: the network is too large or cannot be exported.
    """
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > LARGEST_FILE:
        raise RunError(f"{where}: {size / 1e9:.1f} GB of weights; an ONNX file holds 2.1 GB")
    pixels = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    folded = form is PIXEL_INPUT
    try:
        with torch.no_grad(), quiet(), redirect_stderr(io.StringIO()):  # where it fails, torch prints the graph
            program = torch.onnx.export(
                _FromPixels(network).eval() if folded else network,
                (pixels if folded else to_network_input(pixels),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[form.name],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise RunError(f"{where}: {network.name} cannot be exported: {reason}; --debug shows the rest") from error
    assert program is not None  # noqa: S101 (only with other options)
    return program.model_proto


class _FromPixels(nn.Module):
    """A backbone with its preprocessing, from pixels (B, 112, 112, 3) uint8."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        embedding: Tensor = self.backbone(to_network_input(image))
        return embedding


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporter and quantiser say of their own insides; what goes wrong arrives as an exception."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(disabled)
