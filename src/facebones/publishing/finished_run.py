"""What a finished run holds that can be published: its network, its recipe, and its thresholds, without paths."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from facebones.backbones import Backbone
from facebones.backbones.hub_config import StatedFile
from facebones.backbones.weights import load_backbone, weights_digest
from facebones.errors import CheckpointError
from facebones.evaluation.calibrate import calibration_file, read_thresholds
from facebones.recipe import load_config
from facebones.reporting.runs import read_run
from facebones.run_folder import RunFolder
from facebones.system.regular_files import read_regular

SHARED_ENVIRONMENT = ("facebones", "commit", "torch")  # not the paths, and not the machine


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: where it is.
        network: with its trained weights, in eval mode on the CPU.
        stated: size and digest of model.safetensors.
        weights_sha256: what results and thresholds call these weights (`Model.weights_sha256`).
        recipe: sections of its recipe, without the folders of paths.
        result: the content of result.json.
        environment: versions of facebones and torch, and the commit.
    """

    folder: RunFolder
    network: Backbone
    stated: StatedFile
    weights_sha256: str
    recipe: Mapping[str, Any]
    result: Mapping[str, Any]
    environment: Mapping[str, Any]

    def weights_bytes(self) -> bytes:
        """The content of model.safetensors, the same that was loaded.

        Raises:
            CheckpointError: it cannot be read, or has changed since.
        """
        path = self.folder.weights
        try:
            content = read_regular(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        if StatedFile.of_bytes(content) != self.stated:
            raise CheckpointError(
                f"{path}: has changed while it was read, and nothing was published; run the same command again"
            )
        return content


def open_finished(path: Path) -> FinishedRun:
    """Open a run that is to be published.

    Raises:
        CheckpointError: it is no run, not finished, its weights are damaged or not finite, or of another backbone than
            its recipe says.
        FaceBonesError: one of its files is damaged.
    """
    folder = RunFolder(path)
    if not path.is_dir() or not folder.config.is_file():
        raise CheckpointError(f"{path}: no run; give the folder of a training, which holds config.yaml")
    if not folder.result.is_file():
        raise CheckpointError(f"{path}: the training is not finished; continue it by `{folder.resume_command}`")
    if not folder.weights.is_file():
        raise CheckpointError(f"{folder.weights}: is missing; restore it, or train again")
    run, recipe = read_run(path, path.resolve().name), load_config(folder.config)
    stated = StatedFile.of(folder.weights)  # before it is loaded: `weights_bytes` notices a file that changes
    network, weights = load_backbone(folder.weights)
    if network.name != recipe.backbone.name and network.name != run.result.get("backbone"):
        raise CheckpointError(
            f"{weights}: holds {network.name}, and the run trained {recipe.backbone.name}; restore the file"
        )
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{weights}: {name} holds values that are not finite; nobody can use such a model")
    return FinishedRun(
        folder=folder,
        network=network,
        stated=stated,
        weights_sha256=weights_digest(weights),
        recipe=without_folders(recipe.to_dict()),
        result=run.result,
        environment={key: run.environment[key] for key in SHARED_ENVIRONMENT if run.environment.get(key)},
    )


def without_folders(content: Any) -> Any:
    """The content, with the last part alone of each path: folders of a machine tell who works where.

    >>> without_folders({"data": {"path": "/home/ann/faces", "sets": ["lfw", "/data/own.bin"]}})
    {'data': {'path': 'faces', 'sets': ['lfw', 'own.bin']}}
    """
    match content:
        case dict():
            return {key: without_folders(value) for key, value in content.items()}
        case list():
            return [without_folders(value) for value in content]
        case str() if "/" in content and not content.startswith("hf:"):
            # Training data in several folders are joined as in the variable PATH.
            return ":".join(PurePath(part).name for part in content.split(":"))
    return content


def published_thresholds(run: FinishedRun, given: Path | None) -> dict[str, Any] | None:
    """The thresholds that are published with a model: those of a file, or those beside its weights.

    Args:
        run: of the model.
        given: a file of `calibrate`; None: the one beside the weights, if there is one.

    Returns:
        the content of the file without paths; None if there is none.

    Raises:
        DataError: the file is missing, damaged, or of other weights.
    """
    path = calibration_file(run.folder.weights) if given is None else given
    if given is None and not path.is_file():
        return None
    content = read_thresholds(path, run.weights_sha256, run.folder.weights.name)
    model = content["model"]
    sets = [without_folders(one) for one in content.get("sets", ())]
    return {**content, "model": {**model, "checkpoint": run.folder.weights.name}, "sets": sets}
