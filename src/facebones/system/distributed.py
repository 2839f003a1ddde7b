"""The processes of one training as one world: what they gather, and what they sum, in an order that can be fixed.

A world of several processes is started by torchrun or by `facebones train --devices N`; `process_group.joined` joins
it. A program that was started alone has the world `ALONE`, in which every collective returns its input.

A batch, and the classes of a head, are cut into shards: by default one for each process. With canonical shards, their
number V is fixed, each process has V / size of them, and sums over shards are made in one fixed order. Then any number
of processes that divides V computes the same bits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from facebones.errors import ConfigError

# Larger tensors are summed by their owners, each a slice, instead of by everyone: fewer bytes are sent.
SMALL_ELEMENTS = 16_384


def tree_sum(parts_V: Tensor) -> Tensor:
    """Sum over the first dimension by a fixed binary tree: neighbours first.

    >>> tree_sum(torch.tensor([1.0, 2.0, 3.0]))
    tensor(6.)
    """
    while len(parts_V) > 1:
        pairs = len(parts_V) // 2
        summed = parts_V[0 : 2 * pairs : 2] + parts_V[1 : 2 * pairs : 2]
        parts_V = torch.cat([summed, parts_V[2 * pairs :]])
    return parts_V[0]


def part_of(total: int, part: int, parts: int) -> range:
    """Part number `part` of `parts` ranges that cover `total` things; their sizes differ by at most one.

    >>> [list(part_of(5, part, 3)) for part in range(3)]
    [[0, 1], [2, 3], [4]]
    """
    if not 0 <= part < parts:
        raise ValueError(f"part {part} of {parts}: give 0 to {parts - 1}")
    size, larger = divmod(total, parts)
    start = part * size + min(part, larger)
    return range(start, start + size + (part < larger))


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes, W.
        canonical: number of canonical shards, V; 0: a shard for each process, and sums in the order that is fastest.
        guard: what surrounds each collective: it names the process for which the others wait in vain.
    """

    rank: int = 0
    size: int = 1
    canonical: int = 0
    guard: Callable[[str], Any] | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether everything is computed here, and as one piece."""
        return self.size == 1 and not self.canonical

    @property
    def shards(self) -> int:
        """Number of shards of a batch, and of the classes."""
        return self.canonical or self.size

    @property
    def own_shards(self) -> range:
        """The shards of this process."""
        each = self.shards // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def with_canonical(self, shards: int) -> "World":
        """This world with a fixed number of shards.

        Raises:
            ConfigError: the processes do not divide it.
        """
        if shards % self.size:
            divisors = [n for n in range(1, shards + 1) if shards % n == 0]
            raise ConfigError(
                f"training.canonical_shards {shards} cannot be shared by {self.size} processes; start"
                f" {', '.join(map(str, divisors[:-1]))} or {shards} of them"
            )
        return replace(self, canonical=shards)

    def rows_of(self, total: int, rank: int | None = None) -> range:
        """The rows of a batch that a process reads and computes; canonical shards must divide the batch."""
        return part_of(total, self.rank if rank is None else rank, self.size)

    def shard_rows(self, total: int) -> list[range]:
        """The rows of each own shard, counted from the first row of this process."""
        start = self.rows_of(total).start
        parts = [part_of(total, shard, self.shards) for shard in self.own_shards]
        return [range(part.start - start, part.stop - start) for part in parts]

    def class_ranges(self, classes: int) -> list[range]:
        """The classes of each own shard: the ranges of `torch.chunk`, the last of which may be empty."""
        size = -(-classes // self.shards)
        return [range(min(classes, k * size), min(classes, (k + 1) * size)) for k in self.own_shards]

    # ------------------------------------------------------------------------------------------------- collectives

    def total(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum over all shards, the same bits in each process.

        Args:
            parts: one for each own shard, all of one shape.
        """
        if self.size == 1:
            return tree_sum(torch.stack(list(parts))) if len(parts) > 1 else parts[0]
        if not self.canonical:
            return self._all_reduce(parts[0].clone(), "SUM")
        if parts[0].numel() <= SMALL_ELEMENTS:
            return tree_sum(self._gathered(torch.stack(list(parts)), [len(parts)] * self.size))
        return self._total_by_slices(torch.stack([part.reshape(-1) for part in parts])).view(parts[0].shape)

    def _total_by_slices(self, parts_vP: Tensor) -> Tensor:
        """Each process sums a slice over all shards; then all get all slices."""
        shards, length = len(parts_vP), parts_vP.shape[1]
        slice_length = -(-length // self.size)
        padded = parts_vP.new_zeros(shards, slice_length * self.size)
        padded[:, :length] = parts_vP
        sent = padded.view(shards, self.size, slice_length).transpose(0, 1).contiguous()
        own = tree_sum(self._exchanged(sent).view(self.shards, slice_length))
        return self._gathered(own, [slice_length] * self.size)[:length]

    def largest(self, parts: Sequence[Tensor]) -> Tensor:
        """The elementwise maximum over all shards."""
        own = parts[0].clone() if len(parts) == 1 else torch.stack(list(parts)).amax(dim=0)
        return own if self.size == 1 else self._all_reduce(own, "MAX")

    def gather_rows(self, own: Tensor, total: int) -> Tensor:
        """The rows (total, ...) of a batch, from those of each process."""
        if self.size == 1:
            return own
        return self._gathered(own.contiguous(), [len(self.rows_of(total, rank)) for rank in range(self.size)])

    def sum_rows(self, parts: Sequence[Tensor]) -> Tensor:
        """The own rows of a sum over all shards.

        Args:
            parts: (B, ...) for each own shard, B rows of all processes.
        """
        total = len(parts[0])
        if self.size == 1:
            return self.total(parts)
        counts = [len(self.rows_of(total, rank)) for rank in range(self.size)]
        # (v, B, ...) -> for each process the v parts of its rows, one after the other.
        sent = torch.cat([piece.flatten(0, 1) for piece in torch.split(torch.stack(list(parts)), counts, dim=1)])
        shards, own = len(parts), counts[self.rank]
        received = sent.new_empty(self.size * shards * own, *sent.shape[1:])
        with self.guarded("all_to_all"):
            torch.distributed.all_to_all_single(
                received, sent, [shards * own] * self.size, [shards * count for count in counts]
            )
        return tree_sum(received.view(self.size * shards, own, *sent.shape[1:]))

    # ------------------------------------------------------------------- where one process needs no module for it

    def agreed(self) -> AbstractContextManager[None]:
        """A block in which all processes fail if one fails; see `process_group.agreed`."""
        if self.size == 1:
            return nullcontext()
        from facebones.system.process_group import agreed

        return agreed(self)

    def apart(self) -> AbstractContextManager[Callable[[], None]]:
        """A block of long work that each process does apart; see `apart.apart`."""
        if self.size == 1:
            return nullcontext(_nothing)
        from facebones.system.apart import apart

        return apart(self)

    def gather_objects(self, value: Any) -> list[Any]:
        """The value of each process, in order; see `process_group.gather_objects`."""
        if self.size == 1:
            return [value]
        from facebones.system.process_group import gather_objects

        return gather_objects(self, value)

    def _all_reduce(self, tensor: Tensor, operation: str) -> Tensor:
        with self.guarded("all_reduce"):
            torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, operation))
        return tensor

    def _gathered(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """All rows; processes with fewer rows than others send padding, which is dropped."""
        most = max(counts)
        padded = own if len(own) == most else torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        found = own.new_empty(self.size * most, *own.shape[1:])
        with self.guarded("all_gather"):
            _all_gather(found, padded.contiguous())
        if min(counts) == most:
            return found
        return torch.cat([found[k * most : k * most + count] for k, count in enumerate(counts)])

    def _exchanged(self, sent: Tensor) -> Tensor:
        received = torch.empty_like(sent)
        with self.guarded("all_to_all"):
            torch.distributed.all_to_all_single(received, sent)
        return received

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Surround a collective: if it fails, the error names the process for which this one waited."""
        if self.guard is None:
            yield
            return
        with self.guard(name):
            yield


def _nothing() -> None:
    pass


def _all_gather(found: Tensor, own: Tensor) -> None:
    """Torch's collective, which newer versions call by another name."""
    name = "all_gather_single" if hasattr(torch.distributed, "all_gather_single") else "all_gather_into_tensor"
    getattr(torch.distributed, name)(found, own)


ALONE = World()
