"""Preprocessing inside an ONNX graph: the scaling of pixels by which files of other tools begin."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MOVES = {"Identity", "Cast", "Transpose"}  # operators that leave values as they are
LONGEST_BEGINNING = 16  # operators that may belong to the preprocessing
LARGEST_PIXEL_FACTOR = 0.05  # 1/127.5 and 1/255 are below it, and 1/20; factors for numbers in [-1, 1] are above
NUMBERS = {1, 6, 7, 10, 11}  # element types: float, int32, int64, float16, double


@dataclass(frozen=True)
class Scaling:
    """The scaling x * factor + offset by which a graph begins, for each channel or for all.

    Attributes:
        factor: one number, or three.
        offset: likewise.
    """

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def takes_pixels(self) -> bool:
        """Whether the graph must be given pixels from 0 to 255: it makes numbers around 1 of these only."""
        return all(0 < abs(one) <= LARGEST_PIXEL_FACTOR for one in self.factor)

    @property
    def takes_unit(self) -> bool:
        """Whether the graph must be given numbers from 0 to 1: it subtracts about the middle of these."""
        subtracted = [-offset / factor for factor, offset in zip(self.factor, self.offset, strict=True) if factor]
        return len(subtracted) == len(self.factor) and all(0.3 <= one <= 0.7 for one in subtracted)

    def __str__(self) -> str:
        factor, offset = (" ".join(f"{one:.5g}" for one in row) for row in (self.factor, self.offset))
        return f"x * {factor} + {offset}"


def find_scaling(path: Path, input_name: str) -> Scaling | None:
    """Read the scaling of the input by which a graph begins.

    Returns:
        the scaling; None if the graph begins otherwise, or cannot be read (the package onnx is missing).
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        factor, offset = _scaling(graph, input_name)
    except (DecodeError, ValueError, TypeError, OSError, RuntimeError):  # ONNX Runtime is more lenient, or it is large
        return None
    if not np.isfinite([*factor, *offset]).all() or (np.all(factor == 1) and not np.any(offset)):
        return None
    factor, offset = np.broadcast_arrays(factor, offset)
    return Scaling(tuple(factor.tolist()), tuple(offset.tolist()))


def _scaling(graph: Any, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Follow the input through operators that move it about or scale it."""
    constants = _small_constants(graph)
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for source in set(node.input):
            consumers.setdefault(source, []).append(node)
    factor, offset = np.ones(1), np.zeros(1)
    for _ in range(LONGEST_BEGINNING):
        if len(consumers.get(name, [])) != 1:
            break
        (node,) = consumers[name]
        if node.op_type not in MOVES:
            step = _step(node, name, constants)
            if step is None:
                break
            factor, offset = factor * step[0], offset * step[0] + step[1]
        name = node.output[0]
    return factor, offset


def _step(node: Any, name: str, constants: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Factor and offset of an operator that scales; None for another one."""
    others: list[Any] = [constants[source] for source in node.input if source != name and source in constants]
    if len(others) + 1 != len(node.input):
        return None
    first = node.input[0] == name
    match node.op_type, others:
        case "Add", [c]:
            return 1, c
        case "Sub", [c]:
            return (1, -c) if first else (-1, c)
        case "Mul", [c]:
            return c, 0 * c
        case "Div", [c] if first and np.all(c):
            return 1 / c, 0 * c
        case "BatchNormalization", [scale, shift, mean, variance] if first and np.all(variance >= 0):
            epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
            factor = scale / np.sqrt(variance + epsilon)
            return factor, shift - mean * factor
    return None


def _small_constants(graph: Any) -> dict[str, npt.NDArray[np.float64]]:
    """Constants of one number, or one for each of three channels."""
    from onnx import TensorProto, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: numpy_helper.to_array(tensor).astype(np.float64).reshape(-1)
        for name, tensor in tensors.items()
        if prod(tensor.dims) in (1, 3) and tensor.data_location != TensorProto.EXTERNAL and tensor.data_type in NUMBERS
    }
