"""States in which some matrices are spread over processes: each process holds consecutive rows of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from facebones.system.checkpoint_index import TensorName


@dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive rows of a matrix that no process holds as a whole.

    Attributes:
        blocks: (n_i, D) each: one for each own shard, consecutive; a block may be empty.
        start: number of the first row.
        total: rows of the whole matrix.
    """

    blocks: Sequence[Tensor]
    start: int
    total: int

    @property
    def span(self) -> range:
        """The rows that are here."""
        return range(self.start, self.start + sum(map(len, self.blocks)))

    @property
    def places(self) -> list[range]:
        """The rows of each block."""
        ends = list(accumulate(map(len, self.blocks), initial=self.start))
        return [range(start, end) for start, end in pairwise(ends)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (C, D) of the whole matrix."""
        return (self.total, *self.blocks[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self.blocks[0].dtype


def holds_rows(state: Any) -> bool:
    """Whether a part of a state is spread over processes."""
    if isinstance(state, Mapping):
        return any(map(holds_rows, state.values()))
    return isinstance(state, Rows) or (isinstance(state, list | tuple) and any(map(holds_rows, state)))


def named_tensors(state: Any, named: dict[str, Tensor | Rows], place: str = "") -> Any:
    """A state with a TensorName for each tensor; `named` gets the tensors by these names."""
    inner = place + "." if place else ""
    if isinstance(state, Tensor | Rows):
        name = place
        while name in named or name == "__metadata__":
            name += "'"
        named[name] = state
        return TensorName(name)
    if isinstance(state, Mapping):
        return {key: named_tensors(value, named, f"{inner}{key}") for key, value in state.items()}
    if isinstance(state, list | tuple):
        items = [named_tensors(value, named, f"{inner}{number}") for number, value in enumerate(state)]
        return items if isinstance(state, list) else tuple(items)
    return state


def fitted(found: Any, pattern: Any) -> Any:
    """A state with rows cut as in the pattern, in memory of its own; what does not fit stays as it is."""
    if isinstance(found, dict):
        return {key: fitted(value, inner_pattern(pattern, key)) for key, value in found.items()}
    if isinstance(found, list | tuple):
        items = [fitted(value, inner_pattern(pattern, number)) for number, value in enumerate(found)]
        return items if isinstance(found, list) else tuple(items)
    fits = isinstance(found, Tensor) and found.layout == torch.strided and not found.is_meta
    if not fits or not isinstance(pattern, Tensor | Rows) or not alike(found, pattern):
        return found
    if isinstance(pattern, Tensor):
        return found.clone()
    return Rows([found[place.start : place.stop].clone() for place in pattern.places], pattern.start, pattern.total)


def alike(found: Tensor, pattern: "Tensor | Rows") -> bool:
    """Whether a tensor has the shape and type that the pattern has, or is a part of."""
    return (tuple(found.shape), found.dtype) == (tuple(pattern.shape), pattern.dtype)


def inner_pattern(pattern: Any, key: Any) -> Any:
    """The pattern of a value in a dictionary or list; None where there is none."""
    if isinstance(pattern, Mapping):
        return pattern.get(key)
    fits = isinstance(pattern, list | tuple) and isinstance(key, int) and key < len(pattern)
    return pattern[key] if fits else None
