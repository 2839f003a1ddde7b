"""The backbone on several processes: each computes its rows of a batch, and the gradients are summed.

Normally a process has one shard of the batch, and the sums travel while backward still computes. With canonical shards,
a process has several, each with a copy of the network that shares its weights. They compute in turns and meet at every
batch normalisation; their gradients are kept apart and are summed in one fixed order.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from threading import Condition
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from facebones.backbones.stages import TrainingMode
from facebones.system.device import random_state_kept
from facebones.system.distributed import World
from facebones.training.batch_norm import share_batch_norm

BUCKET_BYTES = 2**22  # of gradients that are summed at a time

Network = Callable[[Tensor], Tensor]


class DataParallel:
    """A backbone whose batch is shared by the processes of a world.

    Args:
        backbone: the network; its parameters get the gradient of the whole batch.
        world: the processes.
        batch_size: rows of a forward pass, of all processes.
        seed: of dropout: each shard of each forward pass draws numbers of its own.
        device: where the backbone is.
        whole_batch_norm: normalise over the batch of all processes, not over the own part.
        frozen: how many stages of the network are frozen.
        compiled: what makes the network that computes from a network.
    """

    def __init__(
        self,
        backbone: nn.Module,
        world: World,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        whole_batch_norm: bool = True,
        frozen: int = 0,
        compiled: Callable[[Any], Network] = lambda network: network,
    ) -> None:
        self.world, self.batch_size = world, batch_size
        self._backbone, self._seed, self._device = backbone, seed, device
        self._whole_batch_norm = whole_batch_norm
        self._lockstep = _Lockstep(len(world.own_shards), world.total)
        self._copies = [_sharing(backbone, own_gradients=len(world.own_shards) > 1) for _ in world.own_shards]
        for index, copy in enumerate(self._copies):
            if whole_batch_norm:
                share_batch_norm(copy, self._lockstep.meet(index), keeps_statistics=index == 0)
        self._modes = [TrainingMode(copy, frozen) for copy in self._copies]
        self._networks = [compiled(copy) for copy in self._copies]
        self._sums = _OverlappedSums(self._copies[0], world) if world.size > 1 and not world.canonical else None
        self._forwards = 0

    def begin_step(self, step: int, forwards: int) -> None:
        """Prepare a step of several forward passes."""
        self._forwards = step * forwards
        for mode in self._modes:
            mode.begin()

    def __call__(self, x_B3HW: Tensor) -> Tensor:
        """Embeddings (B, D) of the own rows."""
        number, self._forwards = self._forwards, self._forwards + 1
        if len(self._networks) == 1:
            with self._random_numbers(number):
                return self._networks[0](x_B3HW)
        dummy = torch.zeros((), requires_grad=True)  # the images need no gradient, and the pass needs a backward
        return _CopiesInTurns.apply(dummy, self, x_B3HW, number)  # type: ignore[no-untyped-call,no-any-return]

    def last_backward_begins(self) -> None:
        """The next backward is the last one of the step: its gradients may travel as soon as they are complete."""
        if self._sums is not None:
            self._sums.begin()

    def sum_gradients(self) -> None:
        """Give the parameters of the backbone the gradient of the whole batch; call it after the last backward."""
        if self._sums is not None:
            self._sums.finish()
            return
        copies = [list(copy.parameters()) for copy in self._copies]
        trained = [index for index, p in enumerate(copies[0]) if p.grad is not None]
        flat = [torch.cat([_gradient(own[index]).reshape(-1) for index in trained]) for own in copies]
        parts = torch.split(self.world.total(flat), [copies[0][index].numel() for index in trained])
        parameters = list(self._backbone.parameters())
        for index, part in zip(trained, parts, strict=True):
            gradient = _gradient(copies[0][index])  # laid out in memory as the optimizer wants it
            for own in copies:
                own[index].grad = None
            parameters[index].grad = gradient.copy_(part.view(gradient.shape))

    def share_statistics(self) -> None:
        """Give every process the running statistics of the first one, where each keeps its own."""
        if self.world.size > 1 and not self._whole_batch_norm:
            for buffer in self._backbone.buffers():
                with self.world.guarded("broadcast"):
                    torch.distributed.broadcast(buffer, 0)

    # ------------------------------------------------------------------------------------- several shards, in turns

    def forward_in_turns(self, x_B3HW: Tensor, number: int) -> list[Tensor]:
        """The embeddings of each own shard, each with a graph of its own."""
        rows = self.world.shard_rows(self.batch_size)

        def compute(index: int) -> Tensor:
            torch.manual_seed(self._seed_of(number, self.world.own_shards[index]))
            with torch.enable_grad():
                return self._networks[index](x_B3HW[rows[index].start : rows[index].stop])

        with random_state_kept(self._device):
            return self._lockstep.run(compute)

    def backward_in_turns(self, embeddings: Sequence[Tensor], gradient_BD: Tensor) -> None:
        """Backward of each own shard."""
        parts = torch.split(gradient_BD, [len(embedding) for embedding in embeddings])
        with random_state_kept(self._device):
            self._lockstep.run(lambda index: torch.autograd.backward(embeddings[index], parts[index]))

    @contextmanager
    def _random_numbers(self, number: int) -> Iterator[None]:
        """Draw within the block from a generator of this forward pass and of the own shard."""
        with random_state_kept(self._device):
            torch.manual_seed(self._seed_of(number, self.world.own_shards[0]))
            yield

    def _seed_of(self, number: int, shard: int) -> int:
        text = f"{self._seed} {number} {shard}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")


class _CopiesInTurns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, parallel: DataParallel, x_B3HW: Tensor, number: int) -> Tensor:
        ctx.parallel, ctx.embeddings = parallel, parallel.forward_in_turns(x_B3HW, number)
        return torch.cat([embedding.detach() for embedding in ctx.embeddings])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BD: Tensor) -> tuple[None, None, None, None]:
        ctx.parallel.backward_in_turns(ctx.embeddings, gradient_BD)
        ctx.embeddings = None
        return None, None, None, None


class _Lockstep:
    """Runs a computation for each own shard, one at a time; where they meet, all wait for the sum over the shards.

    Each computation has a thread of its own, because it must stop in the middle of its network. torch's random state
    is put aside while it waits.

    Args:
        count: of the own shards.
        total: sums the values of the own shards over all processes.
    """

    def __init__(self, count: int, total: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self._count, self._total = count, total
        self._pool = ThreadPoolExecutor(count) if count > 1 else None
        self._turn = Condition()
        self._values: dict[int, Tensor] = {}
        self._meetings = 0
        self._sum = torch.empty(0)
        self._failed = False

    def run(self, compute: Callable[[int], Any]) -> list[Any]:
        """The results of `compute(index)` for each own shard; the first error of one is raised."""
        if self._pool is None:
            return [compute(0)]
        self._failed, threads = False, torch.get_num_threads()
        self._values.clear()

        def in_turn(index: int) -> Any:
            with self._turn:
                torch.set_num_threads(threads)
                try:
                    return compute(index)
                except BaseException:
                    self._failed = True
                    self._turn.notify_all()
                    raise

        futures = [self._pool.submit(in_turn, index) for index in range(self._count)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, _OtherFailedError)):
            raise error
        return [future.result() for future in futures]

    def meet(self, index: int) -> Callable[[Tensor], Tensor]:
        """The function that shard number `index` of this process calls with its value, to get the sum over all."""

        def sum_over_shards(value: Tensor) -> Tensor:
            if self._count == 1:
                return self._total([value])
            self._values[index] = value
            if len(self._values) == self._count:
                self._sum = self._total([self._values[other] for other in range(self._count)])
                self._values.clear()
                self._meetings += 1
                self._turn.notify_all()
                return self._sum
            meeting, state = self._meetings, torch.get_rng_state()
            self._turn.wait_for(lambda: self._failed or self._meetings > meeting)
            if self._failed:
                raise _OtherFailedError
            torch.set_rng_state(state)
            return self._sum

        return sum_over_shards


class _OtherFailedError(Exception):
    """The computation of another shard has failed."""


class _OverlappedSums:
    """Sums gradients over the processes in buckets, each as soon as backward has completed it.

    Args:
        network: whose parameters get the summed gradients; those of the last layers are complete first.
        world: the processes.
    """

    def __init__(self, network: nn.Module, world: World) -> None:
        self._world = world
        self._group: Any = None
        self._buckets = _buckets([p for p in network.parameters() if p.requires_grad])
        self._bucket_of = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        self._missing: list[int] = []
        self._sent: list[tuple[Tensor, Any]] = []
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._completed)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """The gradients of the next backward are the last of the step."""
        if self._group is None:  # its collectives do not wait for those of batch normalisation
            with self._world.guarded("new_group"):
                self._group = torch.distributed.new_group()
        self._missing, self._sent = [len(bucket) for bucket in self._buckets], []

    def finish(self) -> None:
        """Wait for all sums and store them in the gradients."""
        while len(self._sent) < len(self._buckets):  # those with parameters that got no gradient
            self._send(len(self._sent))
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            with self._world.guarded("all_reduce of gradients"):
                work.wait()
            for parameter, part in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
                if parameter.grad is not None:
                    parameter.grad.copy_(part.view(parameter.shape))
        self._missing, self._sent = [], []

    def _completed(self, parameter: Tensor) -> None:
        if not self._missing:  # a backward before the last one of the step
            return
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        # In one order in all processes.
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._send(len(self._sent))

    def _send(self, number: int) -> None:
        bucket = self._buckets[number]
        flat = torch.cat([torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in bucket])
        with self._world.guarded("all_reduce of gradients"):
            self._sent.append((flat, torch.distributed.all_reduce(flat, group=self._group, async_op=True)))


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters from the last to the first, in lists of one type and at most BUCKET_BYTES, or of one parameter."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        own = parameter.numel() * parameter.element_size()
        if not buckets or size + own > BUCKET_BYTES or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += own
    return buckets


def _sharing(network: nn.Module, *, own_gradients: bool) -> nn.Module:
    """A copy of a network that shares its weights and buffers; with `own_gradients`, its gradients are its own."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        alias = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad) if own_gradients else parameter
        memo[id(parameter)] = alias
    return deepcopy(network, memo)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise ValueError("a parameter has a gradient in some shards of the batch, and none in others")
    return parameter.grad
