"""The teacher of a training: its embeddings of the training images, and the loss that draws the student to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facebones.data.folders import open_labelled_images, open_training_set
from facebones.data.training_set import TrainingSet
from facebones.data.wrapped_sets import without_held_out
from facebones.errors import CheckpointError, ConfigError
from facebones.evaluation.teacher_embeddings import TeacherEmbeddings
from facebones.heads.distillation import TEACHER_LOSSES, Distillation, Teacher
from facebones.recipe import Recipe
from facebones.recipe_sections import MARGIN_LOSSES, DistillationConfig
from facebones.system.device import to_device
from facebones.system.distributed import World


class Teaching:
    """A teacher in a training.

    Args:
        recipe: with a section `distillation` that names embeddings.
        data: the training set.
        device: of the training.
        world: the processes that train together.

    Attributes:
        loss: the module; its parameters are trained, its state belongs to the checkpoint.
        fingerprint: of the embeddings.

    Building one may draw from torch's global generator.

    Raises:
        DataError: the embeddings are missing, broken, or of other images.
        ConfigError: mirror images are trained on, and not embedded.
    """

    def __init__(self, recipe: Recipe, data: TrainingSet, device: torch.device, world: World) -> None:
        config = recipe.distillation
        self._embeddings = TeacherEmbeddings(config.embeddings, data)
        _refuse_missing_views(recipe, self._embeddings)
        self.fingerprint, self._device = self._embeddings.fingerprint, device
        teacher = Teacher(
            size=self._embeddings.size,
            num_classes=data.num_identities,
            class_means=lambda: self._embeddings.class_means(data.labels, data.num_identities),
        )
        options = {"scale": config.scale, "margin": config.margin, "kind": config.kind}
        self.loss = Distillation(
            TEACHER_LOSSES[config.loss].build(teacher, options),
            recipe.backbone.embedding_size,
            teacher.size,
            weight=config.weight,
            world=world,
            batch_size=recipe.training.batch_size,
        ).to(device)

    def rows(self, number_B: Tensor, mirror_B: Tensor | None) -> Tensor:
        """The teacher's embeddings (B, D) of images by number, mirrored where `mirror_B` is true, on the device."""
        return to_device(self._embeddings.rows(number_B, mirror_B), self._device)

    def state_dict(self) -> dict[str, Any]:
        """What changes during training, and the fingerprint of the embeddings."""
        return {"loss": self.loss.state_dict(), "teacher": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any], path: Path) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: the embeddings are not those that the run was trained with.
        """
        if state["teacher"] != self.fingerprint:
            raise CheckpointError(
                f"{path}: was trained with other embeddings than {self._embeddings.path} holds; restore that file, or"
                " its place in config.yaml (distillation.embeddings)"
            )
        self.loss.load_state_dict(state["loss"])


def open_training_data(recipe: Recipe) -> TrainingSet:
    """The training set of a recipe, without the people that it holds out.

    Raises:
        DataError: as `open_all_people`.
        ConfigError: as `open_all_people`; or `data.held_out` leaves too few people.
    """
    return without_held_out(open_all_people(recipe), recipe.data.held_out)


def open_all_people(recipe: Recipe, *others: Recipe) -> TrainingSet:
    """The whole training set of recipes; one without labels will do where only the teacher's embeddings are used.

    Raises:
        DataError: as `open_training_set`.
        ConfigError: neither head nor teacher.
    """
    if all(map(_without_labels, (recipe, *others))):
        return open_labelled_images(Path(recipe.data.path))
    return open_training_set(recipe.data.path)


def _without_labels(recipe: Recipe) -> bool:
    _refuse_nothing(recipe)
    config = recipe.distillation
    return config.alone and not TEACHER_LOSSES[config.loss].needs_labels


def check_distillation(recipe: Recipe) -> None:
    """Refuse fields of `distillation` that a new training would ignore.

    Raises:
        ConfigError: such a field is set to another value than its default; or there is neither head nor teacher.
    """
    _refuse_nothing(recipe)
    config, default = recipe.distillation, DistillationConfig()
    given = {name: getattr(config, name) for name in config.without_effect()}
    idle = [f"distillation.{name} {value}" for name, value in given.items() if value != getattr(default, name)]
    if idle and not config.embeddings:
        raise ConfigError(
            f"{', '.join(idle)}: has no effect without a teacher; give --distillation.embeddings, made by `facebones"
            " data embed`, or leave it out"
        )
    if idle:
        raise ConfigError(
            f"{', '.join(idle)}: has no effect with distillation.loss {config.loss}, only with"
            f" {' and '.join(MARGIN_LOSSES)}; leave it out, or give one of these"
        )


def read_teachers(recipes: Sequence[Recipe], data: TrainingSet) -> dict[str, str]:
    """The fingerprints of the embeddings that recipes name, by that name; each is opened once.

    Raises:
        DataError: they are missing, broken, or of other images.
        ConfigError: a recipe mirrors images, and the mirror images are not embedded.
    """
    found = dict[str, TeacherEmbeddings]()
    for recipe in recipes:
        if name := recipe.distillation.embeddings:
            if name not in found:
                found[name] = TeacherEmbeddings(name, data)
            _refuse_missing_views(recipe, found[name])
    return {name: embeddings.fingerprint for name, embeddings in found.items()}


def _refuse_nothing(recipe: Recipe) -> None:
    if recipe.distillation.alone and not recipe.distillation.embeddings:
        raise ConfigError(
            "distillation.alone: there is no teacher; give --distillation.embeddings, made by `facebones data embed`"
        )


def _refuse_missing_views(recipe: Recipe, embeddings: TeacherEmbeddings) -> None:
    if recipe.data.flip and not embeddings.mirrored:
        raise ConfigError(
            f"{embeddings.path}: has no embeddings of mirror images; make them again without --no-flip, or give"
            " --data.flip false"
        )
