"""The activations of an 8-bit ONNX file beside those of its fp32 original, layer by layer.

Each channel counts alike: the cosine of a layer is the mean of the cosines of its channels. A cosine over all channels
would stay near 1 where one channel is large and sets the range for all, and the others are rounded to 0.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray
from facebones.onnx.backbone import ONLY_FATAL, OnnxBackbone
from facebones.onnx.graph_layers import owners_of
from facebones.onnx.quantize import stack_images

ROUNDED_SUFFIX = "_DequantizeLinear_Output"  # what the quantiser appends to the name of a value that it rounds

# They lose nothing themselves, but may give an activation a form of which the channels cannot be told.
SHAPE_OPERATORS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LayerActivation:
    """An activation in fp32 and in 8 bits, over some images.

    Attributes:
        layer: the layer that it belongs to; "input" before the first.
        operator: what computes it, such as "Conv" or "PRelu".
        norm_fp32: root of the mean square in fp32.
        norm_int8: in 8 bits.
        cosine: mean over the channels of the cosine between both; of another shape than (B, C, H, W), over all numbers.
        step: how far the cosine has fallen from the least cosine among what the operator reads; below 0 if it rises.
        spread: root mean square of the largest channel, in those of the median channel.
    """

    layer: str
    operator: str
    norm_fp32: float
    norm_int8: float
    cosine: float
    step: float
    spread: float

    def to_json(self) -> dict[str, Any]:
        """Return all attributes; None for what is not finite."""
        return {key: None if _is_endless(value) else value for key, value in asdict(self).items()}


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def compare_activations(
    before: OnnxBackbone, after: OnnxBackbone, images: Sequence[ImageArray], folder: Path
) -> list[LayerActivation]:
    """Compare all activations of a file with those of its quantised form, in the order of computing.

    What only has another shape is left out.

    Args:
        before: the fp32 file.
        after: the file that `quantize` made of it.
        images: (112, 112, 3) uint8 RGB, one or more.
        folder: for two files that are made and removed.
    """
    import onnx

    graph = onnx.load(str(before.path)).graph
    quantized = onnx.load(str(after.path))
    made = {value for node in quantized.graph.node for value in node.output}
    values = [value for node in graph.node for value in node.output[:1] if value in made]
    rounded = [value + ROUNDED_SUFFIX if value + ROUNDED_SUFFIX in made else value for value in values]
    sums: dict[str, Sums] = {value: Sums() for value in values}
    pairs = zip(_computed(before, values, images, folder), _computed(after, rounded, images, folder), strict=True)
    for exact, approximate in pairs:
        for value, one, other in zip(values, exact, approximate, strict=True):
            if one.dtype == np.float32 and one.shape == other.shape:
                sums[value].add(one, other)
    return _rows(graph, {value: one for value, one in sums.items() if one.numbers})


class Sums:
    """Sums over images of an activation's products and squares, by channel."""

    def __init__(self) -> None:
        self.numbers = 0
        self.product: Floats | float = 0.0
        self.square: Floats | float = 0.0
        self.other_square: Floats | float = 0.0

    def add(self, one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> None:
        """Add the activation of an image: (1, C, H, W), or of any shape, which counts as one channel."""
        rows = one.shape[1] if one.ndim == 4 else 1
        a, b = (array.astype(np.float64).reshape(rows, -1) for array in (one, other))
        self.numbers += a.size
        self.product = self.product + (a * b).sum(1)
        self.square = self.square + (a * a).sum(1)
        self.other_square = self.other_square + (b * b).sum(1)

    @property
    def cosine(self) -> float:
        """Mean cosine of the channels that are not 0 in fp32; 0 for one that is 0, or not finite, in 8 bits."""
        alive = np.asarray(self.square) > 0
        if not alive.any():
            return 1.0
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = np.asarray(self.product) / np.sqrt(np.asarray(self.square) * np.asarray(self.other_square))
        return float(np.nan_to_num(cosines[alive], nan=0.0).mean())

    @property
    def norms(self) -> tuple[float, float]:
        """Roots of the mean squares, in fp32 and in 8 bits."""
        squares = (np.sum(self.square), np.sum(self.other_square))
        one, other = (float(np.sqrt(square / self.numbers)) for square in squares)
        return one, other

    @property
    def spread(self) -> float:
        """The largest channel's root mean square in those of the median channel; infinite if most channels are 0."""
        square = np.sqrt(np.asarray(self.square))
        median = float(np.median(square))
        return float(square.max()) / median if median else float("inf") if square.any() else 1.0


def _computed(
    network: OnnxBackbone, values: Sequence[str], images: Sequence[ImageArray], folder: Path
) -> Iterator[list[Any]]:
    """The named values of a graph, for one image after the other."""
    import onnx
    import onnxruntime

    model = onnx.load(str(network.path))
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(value) for value in dict.fromkeys(values) if value not in present
    )
    path = folder / f"{network.path.stem}.activations.onnx"
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    # Merged operators have no activations between them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    path.unlink()
    for image in images:
        given = {network.signature.input_name: network.to_file_input(stack_images([image]))}
        yield session.run(list(values), given)


def _rows(graph: Any, sums: dict[str, Sums]) -> list[LayerActivation]:
    owner, rows = owners_of(graph), []
    cosine = {value: one.cosine for value, one in sums.items()}
    for node in graph.node:
        value = node.output[0]
        if node.op_type in SHAPE_OPERATORS:
            cosine[value] = cosine.get(node.input[0], 1.0)
        elif value in sums:
            exact, approximate = sums[value].norms
            least = min((cosine[one] for one in node.input if one in cosine), default=1.0)
            row = LayerActivation(
                layer=owner.get(value, "input"),
                operator=node.op_type,
                norm_fp32=exact,
                norm_int8=approximate,
                cosine=cosine[value],
                step=least - cosine[value],
                spread=sums[value].spread,
            )
            rows.append(row)
    return rows
