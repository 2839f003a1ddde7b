"""An evaluation by several processes: the same models, runtimes and images in all, and their rows in the first."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import facebones
from facebones.data.image_sources import ImageSource
from facebones.errors import CheckpointError, ConfigError
from facebones.evaluation.models import Model, open_models
from facebones.system.device import random_state_kept
from facebones.system.distributed import World
from facebones.system.process_group import own_device

CPU = torch.device("cpu")
PIECE_BYTES = 2**23  # of the rows that are sent at a time


def open_in_all(
    models: Mapping[str, Any], *, device: str, left_out: dict[str, str], world: World, **options: Any
) -> dict[str, Model]:
    """Open models in all processes; one that a process cannot use is left out in all.

    Args:
        models: as for `open_models`.
        device: likewise; "auto" and "cuda" give each process a GPU of its own.
        left_out: gets the reasons.
        world: the processes. Random weights are those of process 0.
        options: further ones of `open_models`.

    Raises:
        CheckpointError, ConfigError: as `open_models`; in all processes.
    """
    state = world.gather_objects(torch.get_rng_state())[0]
    with world.agreed(), random_state_kept(CPU):
        torch.set_rng_state(state)
        opened = open_models(models, device=own_device(device), left_out=left_out, **options)
    return without_left_out(opened, left_out, world)


def without_left_out(models: dict[str, Model], left_out: dict[str, str], world: World) -> dict[str, Model]:
    """The models that no process leaves out; `left_out` gets the reasons of all.

    Raises:
        CheckpointError: none is left.
    """
    if world.size == 1:
        return models
    for rank, reasons in enumerate(world.gather_objects(dict(left_out))):
        for name, reason in reasons.items():
            left_out.setdefault(name, reason if rank == 0 else f"process {rank}: {reason}")
    found = {name: model for name, model in models.items() if name not in left_out}
    if not found:
        raise CheckpointError(next(iter(left_out.values())))
    return found


def run_in_all(
    models: Mapping[str, Model],
    runtime: str,
    sources: Sequence[ImageSource],
    *,
    left_out: dict[str, str],
    world: World,
    **options: Any,
) -> dict[str, Model]:
    """The models computed by a runtime in all processes; "auto" is decided in process 0.

    Args:
        models: as for `with_runtime`, and so are the next two.
        runtime: its name.
        sources: the images that will be embedded.
        left_out: gets the reasons of models that the runtime fails to compute.
        world: the processes.
        options: `batch_size` and `flip` of `with_runtime`, whose errors are raised in all processes.
    """
    from facebones.evaluation.runtimes import AUTO, with_runtime  # here: few evaluations name a runtime

    if world.size == 1 or runtime != AUTO:
        with world.apart():
            prepared = with_runtime(models, runtime, sources, left_out=left_out, **options)
        return without_left_out(prepared, left_out, world)
    prepared = {}
    with world.apart():
        if world.is_first:
            prepared = with_runtime(models, runtime, sources, **options)
    chosen = world.gather_objects({name: model.runtime for name, model in prepared.items()})[0]
    with world.apart():
        if not world.is_first:
            for name, model in models.items():
                prepared |= with_runtime({name: model}, chosen[name], sources, **options)
    return prepared


def check_alike(models: Mapping[str, Model], sources: Sequence[ImageSource], world: World, **options: Any) -> None:
    """Refuse processes that would compute something else than process 0.

    Raises:
        ConfigError: other versions, weights, images or options; in all processes.
    """
    with world.agreed():
        own = {
            "facebones and torch": [facebones.__version__, torch.__version__],
            "models": {name: model.settings() for name, model in models.items()},
            "images": [source.fingerprint() for source in sources],
            "options": options,
        }
    everyones = world.gather_objects(own)
    for rank, other in enumerate(everyones):
        if differing := [what for what, value in everyones[0].items() if other[what] != value]:
            raise ConfigError(
                f"process {rank} has other {' and '.join(differing)} than process 0; give all processes the same"
            )


def rows_in_first(own: World, rows: Any) -> Any:
    """Bring the rows of all processes together in process 0, in order; the others get their own back.

    The rows travel in pieces, straight into their place: process 0 holds nothing twice.

    Args:
        own: the group.
        rows: (n, ...) array of this process; of one type, and of one shape but for n, which may be 0.
    """
    shapes = own.gather_objects(rows.shape)
    if not own.is_first:
        _in_pieces(own, torch.from_numpy(np.ascontiguousarray(rows)), 0, sends=True)
        return rows
    shape = next(shape for shape in shapes if shape[0])
    everything = np.empty((sum(shape[0] for shape in shapes), *shape[1:]), dtype=rows.dtype)
    everything[: len(rows)] = rows
    start = len(rows)
    for rank, (count, *_) in enumerate(shapes[1:], 1):
        _in_pieces(own, torch.from_numpy(everything[start : start + count]), rank, sends=False)
        start += count
    return everything


def _in_pieces(own: World, rows: Tensor, rank: int, *, sends: bool) -> None:
    """Send rows to another process, or receive them from it, a bounded number of bytes at a time."""
    flat = rows.flatten()
    each = PIECE_BYTES // flat.element_size()
    move = torch.distributed.send if sends else torch.distributed.recv
    for start in range(0, len(flat), each):
        with own.guarded("the gathering of features"):
            move(flat[start : start + each], rank)
