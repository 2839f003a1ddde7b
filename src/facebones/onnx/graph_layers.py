"""The layers of an ONNX graph by the names that they have in torch, and what each reads and writes.

A layer is an operator with a weight: its name is that of the weight without ".weight", such as "blocks.0.2.0". The
operators between layers, such as activation functions and additions, belong to the layer before them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from facebones.errors import UnknownNameError
from facebones.onnx.graph import WEIGHTED

FIRST, LAST = "first", "last"  # names for layers in lists of layers
WEIGHT_SUFFIXES = (".weight", "_DequantizeLinear_Output", "_quantized")


def layer_name(node: Any) -> str:
    """The name of a layer, from its weight; of a weight without such a name, the node's."""
    name: str = node.input[1] if len(node.input) > 1 else ""
    stem = name
    for suffix in reversed(WEIGHT_SUFFIXES):
        stem = stem.removesuffix(suffix)
    return stem if stem != name else node.name


def layers_of(graph: Any) -> dict[str, Any]:
    """The layers of a graph, in the order of computing: nodes by name."""
    held = {tensor.name for tensor in graph.initializer}
    return {layer_name(node): node for node in graph.node if node.op_type in WEIGHTED and {*node.input[1:2]} & held}


def owners_of(graph: Any) -> dict[str, str]:
    """The layer that each value of a graph belongs to: the one that computes it, or the last one before it.

    A value that no layer comes before is not in it.
    """
    names = {node.output[0]: name for name, node in layers_of(graph).items()}
    place = {name: number for number, name in enumerate(names.values())}
    owner: dict[str, str] = {}
    for node in graph.node:
        before = [owner[value] for value in node.input if value in owner]
        found = names.get(node.output[0]) or max(before, key=place.__getitem__, default=None)
        if found is not None:
            owner |= dict.fromkeys(node.output, found)
    return owner


def nodes_in_float(graph: Any, names: Sequence[str]) -> list[str]:
    """The nodes that must not be quantised if these layers are to stay in fp32, with their outputs.

    An output is quantised as long as one operator that writes or reads it is. So they are the layer, the operators
    behind it, and the layers that read those; of an operator that joins two branches, what lies behind it stays.

    Args:
        graph: of an ONNX file whose nodes have names.
        names: of layers; FIRST and LAST name the first and the last.

    Raises:
        UnknownNameError: no such layer.
    """
    held = {tensor.name for tensor in graph.initializer}
    layers = layers_of(graph)
    listed = list(layers)
    if unknown := [name for name in names if name not in layers and name not in (FIRST, LAST)]:
        raise UnknownNameError("layer", unknown[0], [*listed, FIRST, LAST], where="--float-layers")
    places = {FIRST: listed[0], LAST: listed[-1]} if listed else {}
    ends = {node.name for node in layers.values()} | {node.name for node in graph.node if _joins(node, held)}
    found: list[str] = []
    for name in names:
        node = layers[places.get(name, name)]
        found += [node.name, *_readers(graph, node.output, ends)]
    return list(dict.fromkeys(found))


def _joins(node: Any, held: set[str]) -> bool:
    """Whether a node computes from two values that are not constant."""
    return len({value for value in node.input if value and value not in held}) > 1


def _readers(graph: Any, values: Iterable[str], ends: set[str]) -> list[str]:
    """The nodes that read these values, and those behind them up to an end."""
    waiting, found = set(values), []
    for node in graph.node:  # in the order of computing
        if waiting & {*node.input}:
            found.append(node.name)
            if node.name not in ends:
                waiting |= {*node.output}
    return found
