"""The weights that a new training begins with, where its recipe names some: read, checked and recorded.

A resumed training has its weights from its checkpoint and does not read the file again.
"""

import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from facebones.backbones import create_backbone, lookup_backbone
from facebones.backbones.base import TIMM_PREFIX, Backbone, is_deployed
from facebones.backbones.weights import load_backbone, local_model
from facebones.errors import CheckpointError, ConfigError
from facebones.recipe import Recipe
from facebones.recipe_sections import TIMM_WEIGHTS
from facebones.system.distributed import World
from facebones.system.hub import is_hub_address, origin
from facebones.system.process_group import gather_objects
from facebones.system.progress import say


@dataclass(frozen=True, kw_only=True)
class StartWeights:
    """Weights that a training begins with.

    Attributes:
        path: of their file, or "timm".
        tensors: by their names in the backbone; all of them, or those that timm has.
        digest: SHA-256 of the names, types, shapes and values.
    """

    path: str
    tensors: Mapping[str, Tensor]
    digest: str

    @property
    def record(self) -> dict[str, str]:
        """What environment.json keeps."""
        return {"path": self.path, "sha256_of_tensors": self.digest}

    def fill(self, backbone: nn.Module) -> None:
        """Load them."""
        backbone.load_state_dict(dict(self.tensors), strict=self.path != TIMM_WEIGHTS)


def read_start(recipe: Recipe) -> StartWeights | None:
    """The weights that a recipe names; None if it names none.

    Raises:
        ConfigError: timm has no weights for the backbone, frozen stages without weights, or weights of another
            embedding size.
        CheckpointError: no such file, a broken one, or weights of another backbone.
    """
    config, decay = recipe.backbone, recipe.optimizer.layer_decay
    if not config.weights:
        if config.frozen:
            raise ConfigError(
                f"backbone.frozen {config.frozen} would keep random weights; give --backbone.weights RUN|FILE|timm too"
            )
        if decay != 1:
            say(f"note: optimizer.layer_decay {decay:g} without --backbone.weights slows random weights down")
        return None
    path, tensors = _read_timm(recipe) if config.weights == TIMM_WEIGHTS else _read_file(recipe)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite; take other weights")
    return StartWeights(path=path, tensors=tensors, digest=_digest(tensors))


def _read_timm(recipe: Recipe) -> tuple[str, dict[str, Tensor]]:
    name = lookup_backbone(recipe.backbone.name).name
    if not name.startswith(TIMM_PREFIX):
        raise ConfigError(
            f"backbone.weights timm: timm has no weights for {name}; give a run or a file of weights, or --backbone"
            f" {TIMM_PREFIX}NAME"
        )
    from facebones.backbones.timm_models import pretrained_weights  # here: it needs an extra

    pretrained = pretrained_weights(name.removeprefix(TIMM_PREFIX))
    return TIMM_WEIGHTS, {f"body.{key}": tensor for key, tensor in pretrained.items()}


def _read_file(recipe: Recipe) -> tuple[str, dict[str, Tensor]]:
    config = recipe.backbone
    place = local_model(config.weights)
    if not place.exists():
        raise CheckpointError(
            f"backbone.weights {config.weights}: no such run or file; give a run's folder or a file of weights"
        )
    backbone, path = load_backbone(place, config.name)
    if is_deployed(backbone):
        raise ConfigError(
            f"{path}: holds {backbone.name} in deploy form, whose batch normalisation is folded away; give weights in"
            " the form that is trained"
        )
    if backbone.embedding_size != config.embedding_size:
        raise ConfigError(
            f"{path}: its embeddings have {backbone.embedding_size} elements, and the recipe asks for"
            f" {config.embedding_size}; give --backbone.embedding_size {backbone.embedding_size}"
        )
    if not getattr(backbone, "known_input", None):  # a plug-in's network may be any module
        return origin(path), backbone.state_dict()
    say(f"note: {path}: was trained on another input than [-1, 1] RGB; the first epochs adapt it")
    return origin(path), _with_our_eps(backbone, path)


def _with_our_eps(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    """The state dict for a new network of this kind, where a file's author has another eps, as MagFace's has.

    Evaluation divides by sqrt(running_var + eps), so a larger variance is the same as a larger eps.
    """
    tensors, changed = dict(backbone.state_dict()), ""
    with torch.device("meta"):
        new = dict(create_backbone(backbone.name, backbone.embedding_size).named_modules())
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and (eps := new[name].eps) != module.eps:
            variance = tensors[f"{name}.running_var"]
            tensors[f"{name}.running_var"] = (variance.double() + (module.eps - eps)).to(variance.dtype)
            changed = f"with eps {eps:g} instead of {module.eps:g}"
    if changed:
        say(
            f"note: {path}: the training computes batch normalisation {changed}; its running variances are increased by"
            " the difference, so that the first embeddings are those of the file"
        )
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def same_start(start: StartWeights | None, world: World) -> None:
    """Compare the weights with those of the first process. All processes call it together.

    Raises:
        ConfigError: another process has read others; in every process.
    """
    answers = gather_objects(world, (socket.gethostname(), start and start.digest))
    for rank, (host, digest) in enumerate(answers):
        if digest != answers[0][1]:
            raise ConfigError(
                f"process {rank} on {host} has read other backbone.weights than process 0 on {answers[0][0]}; give all"
                " the same file"
            )


def with_absolute_weights(recipe: Recipe) -> Recipe:
    """The recipe with the path of its weights absolute, and the address of a published model at its present commit."""
    weights = recipe.backbone.weights
    if weights in ("", TIMM_WEIGHTS):
        return recipe
    if is_hub_address(weights):
        return replace(recipe, backbone=replace(recipe.backbone, weights=origin(local_model(weights))))
    return replace(recipe, backbone=replace(recipe.backbone, weights=str(Path(weights).absolute())))
