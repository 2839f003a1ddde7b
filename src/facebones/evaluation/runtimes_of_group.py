"""The runtimes of an evaluation in each of its processes: the same in all."""

from collections.abc import Mapping, Sequence
from typing import Any

from facebones.data.image_sources import ImageSource
from facebones.evaluation.models import Model
from facebones.evaluation.models_of_group import without_left_out
from facebones.evaluation.runtimes import AUTO, with_runtime
from facebones.system.apart import apart
from facebones.system.distributed import World
from facebones.system.process_group import gather_objects


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
    if world.size == 1 or runtime != AUTO:
        with apart(world):
            prepared = with_runtime(models, runtime, sources, left_out=left_out, **options)
        return without_left_out(prepared, left_out, world)
    prepared = {}
    with apart(world):
        if world.is_first:
            prepared = with_runtime(models, runtime, sources, **options)
    chosen = gather_objects(world, {name: model.runtime for name, model in prepared.items()})[0]
    with apart(world):
        if not world.is_first:
            for name, model in models.items():
                prepared |= with_runtime({name: model}, chosen[name], sources, **options)
    return prepared
