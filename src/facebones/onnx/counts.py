"""Counts of an ONNX file, as far as its graph tells them."""

from math import prod
from pathlib import Path
from typing import Any

from facebones.errors import ConfigError

WEIGHTED = ("Conv", "Gemm", "MatMul")
INTEGER_OPERATORS = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm"}
SCALE_OPERATORS = ("QuantizeLinear", "DequantizeLinear")


def count_onnx(path: Path) -> dict[str, int | None]:
    """Parameters, MACs and activations of an ONNX file, keyed so.

    Parameters are the elements of its initializers, except for shapes (int64) and the scales and zero points of int8
    files; they are others than the network's own where the exporter folded a batch normalisation into a convolution,
    or left out what the output does not depend on.
    MACs and activations are those of Conv, Gemm and MatMul with a weight, and None where shape inference does not
    reach one of them.

    Raises:
        ConfigError: the package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(f"{path}: counting needs the package onnx; pip install 'facebones[export]'") from error
    model = onnx.load(str(path), load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.output)}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    layers = [_layer(node, shapes) for node in graph.node if _has_weight(node, graph)]
    known = None not in layers and not any(node.op_type in INTEGER_OPERATORS for node in graph.node)
    return {
        "parameters": _parameters(graph, onnx.TensorProto.INT64),
        "macs": sum(macs for macs, _ in filter(None, layers)) if known else None,
        "activations": sum(elements for _, elements in filter(None, layers)) if known else None,
    }


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a value, None where a size is not known."""
    tensor = value.type.tensor_type
    sizes = tuple(size.dim_value for size in tensor.shape.dim)
    return sizes if tensor.HasField("shape") and all(sizes) else None


def _has_weight(node: Any, graph: Any) -> bool:
    """Whether a node is a convolution or linear layer: a product with what the file holds, perhaps as int8."""
    if node.op_type not in WEIGHTED:
        return False
    held = {tensor.name for tensor in graph.initializer}
    held |= {other.output[0] for other in graph.node if other.op_type == "DequantizeLinear" and other.input[0] in held}
    return node.input[1] in held


def _layer(node: Any, shapes: dict[str, tuple[int, ...] | None]) -> tuple[int, int] | None:
    """MACs and output elements for one image."""
    weight, output = shapes.get(node.input[1]), shapes.get(node.output[0])
    if weight is None or output is None:
        return None
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    inputs_per_output = prod(weight[1:]) if node.op_type == "Conv" or transposed else weight[0]
    return prod(output) * inputs_per_output, prod(output)


def _parameters(graph: Any, shape_type: int) -> int:
    scales = {name for node in graph.node if node.op_type in SCALE_OPERATORS for name in node.input[1:]}
    held = (tensor for tensor in graph.initializer if tensor.data_type != shape_type and tensor.name not in scales)
    return sum(prod(tensor.dims) for tensor in held)
