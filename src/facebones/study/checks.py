"""What would end a training of a study when it begins, found before the first one begins."""

from collections.abc import Mapping, Sequence
from typing import Any

from facebones.data.joined_sets import beside
from facebones.errors import ConfigError, FaceBonesError
from facebones.heads.registry import check_head
from facebones.recipe import Recipe
from facebones.recipe_sections import TIMM_WEIGHTS, BackboneConfig
from facebones.reporting.tuning import FACTOR
from facebones.study.planned_run import DONE, TO_DO, PlannedRun, read_environment
from facebones.system.hub import is_hub_address
from facebones.training.start import read_start
from facebones.training.validation import Validation


def check_trainings(runs: Sequence[PlannedRun]) -> None:
    """Read the validation sets, and try the heads and the weights to begin with of trainings that are not done.

    Raises:
        FaceBonesError: such a training cannot begin.
    """
    waiting = [run for run in runs if run.state != DONE]
    if waiting:
        recipe = waiting[0].recipe
        Validation(recipe, beside(recipe.data.path))  # reads the sets, which are the same for all trainings
    for run in {_head_of(run): run for run in reversed(waiting)}.values():
        try:
            check_head_of(run.recipe, run.data["identities"])
        except FaceBonesError as error:
            varied = run.levels.keys() - {FACTOR}
            raise ConfigError(f"vary: {run.variant}: {error}" if varied else str(error)) from error
    for recipe in {run.recipe.backbone: run.recipe for run in waiting if run.state == TO_DO}.values():
        if recipe.backbone.weights != TIMM_WEIGHTS:  # those may have to be downloaded first
            read_start(recipe)


def check_head_of(recipe: Recipe, classes: int) -> None:
    """Refuse a recipe whose head cannot be built for so many classes.

    Raises:
        ConfigError: its options exclude each other.
    """
    if not recipe.distillation.alone:
        check_head(recipe.head.name, recipe.head.options, classes, recipe.backbone.embedding_size)


def refuse_other_weights(runs: Sequence[PlannedRun]) -> None:
    """Compare the weights that trainings have begun with to those that their recipes name now, maybe by the same path.

    Runs of older versions that have recorded no digest are accepted, and weights that can no longer be read. Those of
    timm and of a commit on a hub have no other content.

    Raises:
        ConfigError: a run has begun with other weights.
    """
    digests = dict[BackboneConfig, str | None]()
    for run in runs:
        config = run.recipe.backbone
        if run.state == TO_DO or config.weights in ("", TIMM_WEIGHTS) or is_hub_address(config.weights):
            continue
        if (recorded := _digest(read_environment(run.folder))) is None:
            continue
        if config not in digests:
            digests[config] = _digest_now(run.recipe)
        if digests[config] not in (None, recorded):
            raise ConfigError(
                f"{run.folder.path}: holds a run that began with other weights than {config.weights} holds now"
                " (backbone.weights); restore that file, give the other weights another name, or choose another"
                " --output"
            )


def _head_of(run: PlannedRun) -> str:
    """Equal for trainings with equal heads; a head of the user's may have options that have no hash."""
    recipe = run.recipe
    return repr([recipe.head, recipe.distillation.alone, recipe.backbone.embedding_size, run.data["identities"]])


def _digest(environment: Mapping[str, Any]) -> str | None:
    weights = environment.get("weights")
    found = weights.get("sha256_of_tensors") if isinstance(weights, dict) else None
    return found if isinstance(found, str) else None


def _digest_now(recipe: Recipe) -> str | None:
    try:
        start = read_start(recipe)
    except FaceBonesError:  # a training that has begun does not need them
        return None
    return None if start is None else start.digest
