"""ONNX graphs: a backbone becomes one (for `facebones export` and for runtimes other than torch), and is counted."""

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facebones.backbones.base import IMAGE_SIZE, Backbone
from facebones.data.preprocessing import to_network_input
from facebones.errors import CheckpointError, ConfigError, RunError, first_line

OPSET = 20
LARGEST_FILE = 2**31 - 1  # bytes; protobuf's limit
WEIGHTED = ("Conv", "Gemm", "MatMul")
INTEGER_OPERATORS = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm"}
SCALE_OPERATORS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class InputForm:
    """The input of an exported file; the texts are written into its metadata.

    Attributes:
        name: the input's name.
        layout: shape and type.
        preprocessing: how the caller must scale 8-bit pixels.
    """

    name: str
    layout: str
    preprocessing: str


NETWORK_INPUT = InputForm("input", "B,3,112,112 float32", "RGB, x / 127.5 - 1")
PIXEL_INPUT = InputForm("image", "B,112,112,3 uint8", "none: RGB pixels as they are; x / 127.5 - 1 is in the graph")


def check_packages(what: str, packages: Sequence[str], extra: str) -> None:
    """Check that packages are installed.

    Args:
        what: the work that needs them, as the error begins.
        packages: their import names.
        extra: the extra of this package that installs them.

    Raises:
        ConfigError: some are missing.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(f"{what} needs {', '.join(missing)}; pip install 'facebones[{extra}]'")


def to_onnx(network: Backbone, where: str, form: InputForm = NETWORK_INPUT) -> Any:
    """Export a network to an ONNX model with a free batch size; batch normalisation is folded into convolutions.

    Args:
        network: the backbone, in eval mode on the CPU.
        where: how errors begin: the file that the network came from.
        form: the model's input.

    Returns:
        an `onnx.ModelProto`.

    Raises:
        RunError: the network is too large or cannot be exported.
    """
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > LARGEST_FILE:
        raise RunError(f"{where}: {size / 1e9:.1f} GB of weights; an ONNX file holds 2.1 GB at most")
    pixels = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    folded = form is PIXEL_INPUT
    try:
        with torch.no_grad(), quiet(), redirect_stderr(io.StringIO()):  # on failure torch prints the graph
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
    """A backbone that takes pixels (B, 112, 112, 3) uint8 and scales them itself."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        embedding: Tensor = self.backbone(to_network_input(image))
        return embedding


@contextmanager
def quiet() -> Iterator[None]:
    """Silence log lines and warnings of the exporter and quantiser; failures raise exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(disabled)


def count_onnx(path: Path) -> dict[str, int | None]:
    """Count "parameters", "macs" and "activations" of an ONNX file for one image.

    Parameters are the elements of its initializers, without shapes (int64) and the scales and zero points of int8
    files. The number differs from the network's own if the exporter folded batch normalisation into convolutions or
    left out unused parameters. MACs and activations are those of Conv, Gemm and MatMul with a weight; they are None if
    shape inference fails on one of these or an operator computes in integers.

    Raises:
        ConfigError: the package onnx is missing.
        CheckpointError: the file is damaged, or has no input.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(f"{path}: counting needs the package onnx; pip install 'facebones[export]'") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: no ONNX file, or damaged: {first_line(error)}; export it again") from error
    held = {tensor.name for tensor in model.graph.initializer}  # older files list weights among the inputs
    image = next((value for value in model.graph.input if value.name not in held), None)
    if image is None:
        raise CheckpointError(f"{path}: has no input; a backbone has one; export it with the image as its input")
    if image.type.tensor_type.shape.dim:
        image.type.tensor_type.shape.dim[0].dim_value = 1
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, DecodeError, ValueError, RuntimeError):
        graph = model.graph
    weights = _weights(graph)
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.output)}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    layers = [_layer(node, shapes) for node in graph.node if node.op_type in WEIGHTED and {*node.input[1:2]} & weights]
    known = None not in layers and not any(node.op_type in INTEGER_OPERATORS for node in graph.node)
    return {
        "parameters": _parameters(graph, onnx.TensorProto.INT64),
        "macs": sum(macs for macs, _ in filter(None, layers)) if known else None,
        "activations": sum(elements for _, elements in filter(None, layers)) if known else None,
    }


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a value, or None if a size is unknown."""
    tensor = value.type.tensor_type
    sizes = tuple(size.dim_value for size in tensor.shape.dim)
    return sizes if tensor.HasField("shape") and all(sizes) else None


def _weights(graph: Any) -> set[str]:
    """Names of the weights in the file; perhaps of int8, which a node dequantizes."""
    held = {tensor.name for tensor in graph.initializer}
    others = (node for node in graph.node if node.op_type == "DequantizeLinear" and {*node.input[:1]} & held)
    return held | {name for other in others for name in other.output[:1]}


def _layer(node: Any, shapes: dict[str, tuple[int, ...] | None]) -> tuple[int, int] | None:
    """MACs and output elements for one image."""
    weight, output = shapes.get(node.input[1]), shapes.get(node.output[0]) if node.output else None
    if not weight or output is None:
        return None
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    inputs_per_output = prod(weight[1:]) if node.op_type == "Conv" or transposed else weight[0]
    return prod(output) * inputs_per_output, prod(output)


def _parameters(graph: Any, shape_type: int) -> int:
    scales = {name for node in graph.node if node.op_type in SCALE_OPERATORS for name in node.input[1:]}
    held = (tensor for tensor in graph.initializer if tensor.data_type != shape_type and tensor.name not in scales)
    return sum(prod(tensor.dims) for tensor in held)
