"""Preprocessing inside an ONNX graph: the scaling of pixels and swap of channels by which files of other tools begin.

The input is followed through operators that treat every pixel alike. What is known of a value is, for each of its
channels, which channel of the input it is, and the factor and offset that it has been scaled by.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import IMAGE_SIZE

MOST_OPERATORS = 32  # that may belong to the preprocessing
LARGEST_CONSTANT = 16 * 3 * IMAGE_SIZE**2  # numbers: of a whole batch of images
LARGEST_PIXEL_FACTOR = 0.05  # 1/127.5 and 1/255 are below it, and 1/20; factors for numbers in [-1, 1] are above
NUMBERS = {1, 6, 7, 10, 11}  # element types: float, int32, int64, float16, double
ASIDE = {"Shape", "Size"}  # operators that read no pixels
PIXEL_MEANS = (60, 195)  # what is subtracted from pixels from 0 to 255 lies between them
LIMITS = (0, 1, 255, -1)  # of an input's numbers, to which graphs clip them
DEEPEST_CONSTANT = 8  # operators between a constant and its use
MOST_COMPUTED = 64  # operators on constants in all
ARITHMETIC = ("Add", "Sub", "Mul", "Div")
FOLDED = ("Constant", "Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", *ARITHMETIC)
INTEGERS = {2, 3, 4, 5, 6, 7, 12, 13}  # element types
# Means of red, green and blue in numbers from 0 to 1: ImageNet's, VGGFace's and VGGFace2's.
KNOWN_MEANS = ((0.485, 0.456, 0.406), (0.5066, 0.4108, 0.367), (0.5141, 0.4074, 0.3588))
LARGEST_DEVIATION = 0.01  # from them

UNLIMITED = (-np.inf, np.inf)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """The preprocessing by which a graph begins: x * factor + offset, and perhaps a swap of channels.

    Attributes:
        factor: for each channel of the input.
        offset: likewise.
        swapped: whether the network behind it gets the channels in reverse.
        limits: the lowest and highest number to which the graph clips its input; infinite where it does not.
    """

    factor: tuple[float, ...]
    offset: tuple[float, ...]
    swapped: bool = False
    limits: tuple[float, float] = UNLIMITED

    @property
    def takes_pixels(self) -> bool:
        """Whether the graph must be given pixels from 0 to 255: by what it clips to, scales by, or subtracts."""
        if self.limits[1] < np.inf:
            return self.limits[1] == 255
        return all(0 < abs(one) <= LARGEST_PIXEL_FACTOR for one in self.factor) or self._subtracts(*PIXEL_MEANS)

    @property
    def takes_unit(self) -> bool:
        """Whether the graph must be given numbers from 0 to 1: it clips to these, or subtracts about their middle."""
        if self.limits[1] < np.inf:
            return self.limits == (0, 1)
        return self._subtracts(0.3, 0.7)

    @property
    def is_understood(self) -> bool:
        """Whether it says of itself which numbers the graph must be given."""
        scaled = set(self.factor) != {1.0} or set(self.offset) != {0.0}
        return self.takes_pixels or self.takes_unit or self.limits == (-1, 1) or not scaled

    @property
    def colour(self) -> Literal["rgb", "bgr"]:
        """The order of the input, "rgb" or "bgr": the network behind gets RGB, unless well-known means say BGR."""
        behind = self._subtracted()[:: -1 if self.swapped else 1]
        network_is_bgr = len(behind) == 3 and any(
            np.allclose(behind, np.array(known[::-1]) * largest, rtol=0, atol=LARGEST_DEVIATION * largest)
            for known in KNOWN_MEANS
            for largest in (1, 255)
        )
        return "bgr" if network_is_bgr != self.swapped else "rgb"

    def _subtracted(self) -> list[float]:
        """The numbers that are subtracted from the channels of the input; shorter if one has factor 0."""
        return [-offset / factor for factor, offset in zip(self.factor, self.offset, strict=True) if factor]

    def _subtracts(self, least: float, most: float) -> bool:
        """Whether a number between two is subtracted from each channel."""
        subtracted = self._subtracted()
        return len(subtracted) == len(self.factor) and all(least <= one <= most for one in subtracted)

    def __str__(self) -> str:
        rows = (row[:1] if len(set(row)) == 1 else row for row in (self.factor, self.offset))
        factor, offset = (" ".join(f"{one:.5g}" for one in row) for row in rows)
        scaled = set(self.factor) != {1.0} or set(self.offset) != {0.0}
        bounds = [f"{one:g}" if np.isfinite(one) else "any" for one in self.limits]
        parts = [f"x clipped to {' .. '.join(bounds)}"] if self.limits != UNLIMITED else []
        parts += [f"x * {factor} + {offset}"] if scaled else []
        return ", ".join(parts + (["channels swapped"] if self.swapped else []))


def find_scaling(path: Path, input_name: str, channels_last: bool = False) -> Scaling | None:
    """Read the preprocessing by which a graph begins.

    Args:
        path: the file.
        input_name: of the images.
        channels_last: whether these are (B, H, W, 3); else (B, 3, H, W).

    Returns:
        the preprocessing; None if the graph begins otherwise, or cannot be read (the package onnx is missing).
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        return None
    start = Pixels("BHWC" if channels_last else "BCHW", (0, 1, 2), np.ones(3), np.zeros(3), (input_name,))
    try:
        with np.errstate(all="ignore"):  # refused below
            found = _last_image(onnx.load(str(path), load_external_data=False).graph, start)
    # ONNX Runtime is more lenient, or the file is large, or a number overflows.
    except (DecodeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, RuntimeError):
        return None
    if found is None or found.source not in ((0, 1, 2), (2, 1, 0)):
        return None
    factor, offset = found.factor[list(found.source)], found.offset[list(found.source)]  # of the input's channels
    if not np.isfinite([*factor, *offset]).all():
        return None
    scaling = Scaling(tuple(factor.tolist()), tuple(offset.tolist()), found.source == (2, 1, 0), found.limits)
    return scaling if str(scaling) else None


@dataclass(frozen=True)
class Pixels:
    """What is known of a value in the graph.

    Attributes:
        axes: a letter for each: B, C, H, W; without C it is one channel.
        source: for each of its channels, the channel of the input.
        factor: for each of its channels.
        offset: likewise.
        way: names of the values from the input to this one.
        limits: the lowest and highest number to which the input was clipped.
    """

    axes: str
    source: tuple[int, ...]
    factor: Floats
    offset: Floats
    way: tuple[str, ...]
    limits: tuple[float, float] = UNLIMITED

    @property
    def is_image(self) -> bool:
        """Whether it has all channels of the input, each once."""
        return "C" in self.axes and sorted(self.source) == [0, 1, 2]

    def scaled(self, factor: Any, offset: Any) -> "Pixels":
        """The value x * factor + offset."""
        return replace(self, factor=self.factor * factor, offset=self.offset * factor + offset)

    def taken(self, channels: Any) -> "Pixels":
        """Some of its channels, in an order."""
        chosen = [int(one) for one in channels]
        source = tuple(self.source[one] for one in chosen)
        return replace(self, source=source, factor=self.factor[chosen], offset=self.offset[chosen])


def _last_image(graph: Any, start: Pixels) -> Pixels | None:
    """Follow the input; returns the last image that everything behind the preprocessing is computed from."""
    constants = _Constants(graph)
    known = {start.way[0]: start}
    used: list[Pixels] = []  # by the network
    steps = 0
    for node in graph.node:
        inputs = [name for name in node.input if name in known]
        if not inputs or node.op_type in ASIDE:
            continue
        outputs = _outputs(node, [known.get(name) for name in node.input], constants) if steps < MOST_OPERATORS else []
        if not outputs:
            used += [known[name] for name in inputs]
        steps += 1
        way = tuple(dict.fromkeys(name for each in inputs for name in known[each].way))
        for name, output in zip(node.output, outputs, strict=False):
            known[name] = replace(output, way=(*way, name))
    if not used:
        return None
    shared = set.intersection(*(set(value.way) for value in used))
    return next((value for name, value in reversed(known.items()) if name in shared and value.is_image), None)


def _outputs(node: Any, inputs: list[Pixels | None], constants: "_Constants") -> list[Pixels]:
    """What is known of an operator's outputs; empty for an operator that is no preprocessing."""
    first = inputs[0]
    if node.op_type == "Concat" and all(inputs):
        return _joined([value for value in inputs if value], _attribute(node, "axis", 0))
    if first is None and (len(inputs) != 2 or node.op_type not in ("Add", "Sub", "Mul", "Max", "Min")):
        return []
    value = first or inputs[1]
    if value is None or sum(each is not None for each in inputs) != 1:
        return []
    moved = _moved(node, value, constants)
    if moved is not None:
        return moved
    if node.op_type in ("Clip", "Max", "Min"):
        return _clipped(node, value, constants)
    step = _step(node, value, first is not None, constants)
    return [] if step is None else [value.scaled(*step)]


def _moved(node: Any, value: Pixels, constants: "_Constants") -> list[Pixels] | None:
    """The outputs of an operator that leaves numbers as they are; None for another one."""
    axes, channel = value.axes, value.axes.find("C")

    def argument(place: int, name: str) -> list[int] | None:
        """Whole numbers that are an input in newer files, and were an attribute in older ones."""
        if len(node.input) > place and node.input[place]:
            found = constants.read(node.input[place])
            return None if found is None else [int(one) for one in found.reshape(-1)]
        numbers: list[int] | None = _attribute(node, name, None)
        return numbers

    match node.op_type:
        case "Identity" | "Cast":
            return [value]
        case "Transpose":
            order = _attribute(node, "perm", list(range(len(axes)))[::-1])
            return [replace(value, axes="".join(axes[place] for place in order))]
        case "Gather" if _place(node, axes, 0) == channel:
            indices = constants.read(node.input[1])
            if indices is None or indices.ndim > 1 or np.any(np.abs(indices + 0.5) > len(value.source)):
                return []
            taken = value.taken(indices.reshape(-1))
            return [taken if indices.ndim else replace(taken, axes=axes.replace("C", ""))]
        case "Slice":
            starts, ends, along = argument(1, "starts"), argument(2, "ends"), argument(3, "axes")
            steps = argument(4, "steps") or [1]
            along = along or list(range(len(starts or ())))
            if not starts or not ends or [one % len(axes) for one in along] != [channel]:
                return []
            return [value.taken(range(*slice(starts[0], ends[0], steps[0]).indices(len(value.source))))]
        case "Split" if _place(node, axes, 0) == channel:
            parts = len(node.output)
            sizes = argument(1, "split") or [len(value.source) // parts] * parts
            if len(sizes) != parts or sum(sizes) != len(value.source):
                return []
            ends = np.cumsum(sizes).tolist()
            return [value.taken(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
        case "Unsqueeze" if channel < 0 and len(where := argument(1, "axes") or []) == 1:
            place = where[0] % (len(axes) + 1)
            return [replace(value, axes=f"{axes[:place]}C{axes[place:]}")]
        case "Squeeze" if len(value.source) == 1 and argument(1, "axes") in ([channel], [channel - len(axes)]):
            return [replace(value, axes=axes.replace("C", ""))]
    return None


def _clipped(node: Any, value: Pixels, constants: "_Constants") -> list[Pixels]:
    """The output of an operator that only keeps the input within limits that inputs have; else none."""
    bounds = [_attribute(node, "min", None), _attribute(node, "max", None)]  # in older files
    for place, name in enumerate(name for name in node.input if node.op_type == "Clip" or name not in value.way):
        if name and (node.op_type != "Clip" or place):
            number = constants.read(name)
            if number is None or number.size != 1:
                return []
            bounds[{"Max": 0, "Min": 1}.get(node.op_type, place - 1)] = float(number.reshape(-1)[0])
    if len(set(value.factor)) > 1 or len(set(value.offset)) > 1 or value.factor[0] <= 0:
        return []
    known = list(value.limits)
    for side, bound in enumerate(bounds):
        if bound is None or abs(bound) > 1e30:  # the largest number there is
            continue
        of_input = (bound - value.offset[0]) / value.factor[0]
        near = next((one for one in LIMITS if abs(of_input - one) <= LARGEST_DEVIATION), None)
        if near is None or (side == 0) != (near <= 0):
            return []
        known[side] = (max, min)[side](known[side], float(near))
    return [replace(value, limits=(known[0], known[1]))]


def _joined(values: list[Pixels], axis: int) -> list[Pixels]:
    axes = values[0].axes
    if any(value.axes != axes or value.limits != values[0].limits for value in values) or axes[axis] != "C":
        return []
    factor, offset = (
        np.concatenate(parts) for parts in zip(*((one.factor, one.offset) for one in values), strict=True)
    )
    return [Pixels(axes, tuple(one for value in values for one in value.source), factor, offset, (), values[0].limits)]


def _step(node: Any, value: Pixels, is_first: bool, constants: "_Constants") -> tuple[Any, Any] | None:
    """Factor and offset, by channel, of an operator that scales; None for another one."""
    if node.op_type == "BatchNormalization" and is_first and value.axes[1:2] == "C":
        rows = [constants.read(name) for name in node.input[1:]]
        if len(rows) != 4 or any(row is None or row.shape != (len(value.source),) for row in rows):
            return None
        scale, shift, mean, variance = (np.asarray(row) for row in rows)
        factor = scale / np.sqrt(variance + _attribute(node, "epsilon", 1e-5))
        return factor, shift - mean * factor
    if node.op_type == "Conv" and is_first:
        return _diagonal(node, value, constants)
    if node.op_type not in ARITHMETIC or len(node.input) != 2:
        return None
    c = constants.by_channel(node.input[1 if is_first else 0], value)
    if c is None:
        return None
    match node.op_type:
        case "Add":
            return 1, c
        case "Sub":
            return (1, -c) if is_first else (-1, c)
        case "Mul":
            return c, 0 * c
        case "Div" if is_first and np.all(c):
            return 1 / c, 0 * c
    return None


def _diagonal(node: Any, value: Pixels, constants: "_Constants") -> tuple[Any, Any] | None:
    """Factor and offset of a convolution that scales each channel by itself; None for another one."""
    channels = len(value.source)
    weight, *bias = (constants.read(name) for name in node.input[1:])
    moves = any(_attribute(node, "pads", [])) or any(one != 1 for one in _attribute(node, "strides", []))
    if weight is None or value.axes != "BCHW" or moves or _attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return None
    groups = _attribute(node, "group", 1)
    if groups == 1 and weight.shape == (channels, channels, 1, 1):
        factor = np.diagonal(weight[:, :, 0, 0])
        if np.any(weight[:, :, 0, 0] != np.diag(factor)):
            return None
    elif groups == channels and weight.shape == (channels, 1, 1, 1):
        factor = weight.reshape(-1)
    else:
        return None
    offset = bias[0] if bias else np.zeros(channels)
    return None if offset is None or offset.shape != (channels,) else (factor, offset)


def _place(node: Any, axes: str, default: int) -> int:
    """The attribute `axis`, counted from the front."""
    return int(_attribute(node, "axis", default)) % len(axes)


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx.helper import get_attribute_value

    return next((get_attribute_value(one) for one in node.attribute if one.name == name), default)


class _Constants:
    """The small constants of a graph, read when they are asked for."""

    def __init__(self, graph: Any) -> None:
        self._tensors: Mapping[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes = {node.output[0]: node for node in graph.node if node.op_type in FOLDED and node.output}
        self._computed = 0

    def read(self, name: str, depth: int = 0) -> Floats | None:
        """A constant of numbers, in its shape; None if it is none, or is large."""
        from onnx import TensorProto, numpy_helper

        tensor = self._tensors.get(name)
        if tensor is None and name in self._nodes:
            if self._nodes[name].op_type != "Constant":
                return self._folded(self._nodes[name], depth + 1) if depth < DEEPEST_CONSTANT else None
            for word in ("value_float", "value_floats", "value_int", "value_ints"):
                if (numbers := _attribute(self._nodes[name], word, None)) is not None:
                    return np.asarray(numbers[:LARGEST_CONSTANT] if word.endswith("s") else numbers, dtype=np.float64)
            tensor = _attribute(self._nodes[name], "value", None)
        if tensor is None or prod(tensor.dims) > LARGEST_CONSTANT or tensor.data_type not in NUMBERS:
            return None
        if tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor).astype(np.float64)

    def _folded(self, node: Any, depth: int) -> Floats | None:
        """What an operator of `FOLDED` makes of constants; None if it cannot be told, or is large."""
        self._computed += 1
        inputs = [self.read(name, depth) for name in node.input] if self._computed <= MOST_COMPUTED else []
        if not inputs or any(one is None for one in inputs):
            return None
        x, *more = (one for one in inputs if one is not None)
        match node.op_type:
            case "Identity":
                return x
            case "Cast":
                kind = _attribute(node, "to", 0)
                return np.trunc(x) if kind in INTEGERS else x if kind in NUMBERS else None
            case "Reshape":
                sizes = [int(one) for one in more[0].reshape(-1)]
                sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
                return x.reshape(sizes)
            case "Unsqueeze" | "Squeeze":
                axes = more[0].astype(int).reshape(-1).tolist() if more else _attribute(node, "axes", None)
                if node.op_type == "Unsqueeze":
                    return np.expand_dims(x, tuple(axes))
                return np.squeeze(x, tuple(axes) if axes else None)
        if len(more) != 1 or prod(np.broadcast_shapes(x.shape, more[0].shape)) > LARGEST_CONSTANT:
            return None
        compute = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[node.op_type]
        return np.asarray(compute(x, more[0]), dtype=np.float64)

    def by_channel(self, name: str, value: Pixels) -> Floats | None:
        """A constant that is one number for each channel of a value, whatever its shape; None for another one."""
        numbers = self.read(name)
        if numbers is None or numbers.ndim > len(value.axes) or not numbers.size:
            return None
        numbers = numbers.reshape((1,) * (len(value.axes) - numbers.ndim) + numbers.shape)
        if "C" in value.axes:
            numbers = np.moveaxis(numbers, value.axes.index("C"), 0)
            rows = numbers.reshape(len(numbers), -1)
        else:
            rows = numbers.reshape(1, -1)
        if len(rows) not in (1, len(value.source)) or np.any(rows != rows[:, :1]):
            return None
        return np.broadcast_to(rows[:, 0], (len(value.source),))
