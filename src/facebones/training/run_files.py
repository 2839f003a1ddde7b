"""The JSON files of a run: environment.json at its start, result.json and the weights at its end."""

import json
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import facebones
from facebones.backbones.weights import save_weights
from facebones.data.joined_sets import JoinedSets, part_name
from facebones.data.record_shards import RecordShards
from facebones.data.training_set import same_data
from facebones.data.wrapped_sets import SomePeople
from facebones.errors import ConfigError, UntrainedError, some
from facebones.run_folder import RunFolder
from facebones.system.environment import git_revision
from facebones.system.files import parse_json, write_json
from facebones.system.process_group import gather_objects
from facebones.system.progress import say
from facebones.system.regular_files import read_regular
from facebones.training.logs import finite_or_none
from facebones.training.state import CHANGEABLE_FIELDS
from facebones.training.trainer import Trainer

MOST_THREADS = 4096


def describe_environment(trainer: Trainer) -> dict[str, Any]:
    """Versions, device, data and teacher of a run, and the weights that it has been given in this process."""
    given: dict[str, Any] = {"weights": trainer.started_from} if trainer.started_from else {}
    if trainer.teaching is not None:
        embeddings = trainer.recipe.distillation.embeddings
        given["teacher"] = {"embeddings": embeddings, "fingerprint": trainer.teaching.fingerprint}
    return given | {
        "facebones": facebones.__version__,
        "commit": git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "platform": platform.platform(),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "data": {"path": trainer.recipe.data.path, **trainer.data.fingerprint()},
        "validation": trainer.validation.fingerprint,
    }


def saved_threads(folder: RunFolder) -> int | None:
    """The threads that a run began with; None if it has recorded none."""
    try:
        threads = json.loads(read_regular(folder.environment))["threads"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return threads if type(threads) is int and 0 < threads <= MOST_THREADS else None


def same_training(trainer: Trainer) -> None:
    """Compare what decides numbers with that of the first process. All processes call it together.

    Raises:
        ConfigError: another process has another version, recipe, data, teacher or number of threads; in every process.
    """
    if trainer.world.size == 1:
        return
    own: dict[str, Any] = {"facebones": facebones.__version__, "torch": torch.__version__}
    own |= {f"training data of {name}": value for name, value in trainer.data.fingerprint().items()}
    own |= {name: value for name, value in trainer.recipe.values().items() if name not in CHANGEABLE_FIELDS}
    if trainer.teaching is not None:
        own["distillation.embeddings of fingerprint"] = trainer.teaching.fingerprint
    if trainer.world.canonical:
        own["number of threads"] = torch.get_num_threads()
    answers = gather_objects(trainer.world, {"host": socket.gethostname(), **own})
    names = dict.fromkeys(name for answer in answers for name in answer if name != "host")
    for rank, answer in enumerate(answers):
        for name in names:
            if answer.get(name) != answers[0].get(name):
                raise ConfigError(
                    f"process {rank} on {answer['host']} has {name} {answer.get(name)!s:.60}, and process 0 on"
                    f" {answers[0]['host']} has {answers[0].get(name)!s:.60}; start all with the same versions,"
                    " recipe and data"
                )


def note_environment(folder: RunFolder, now: Mapping[str, Any], step: int) -> None:
    """Write environment.json; in that of a resumed run, add what has changed, and from which step."""
    try:
        first = parse_json(read_regular(folder.environment))
        changes = first.get("resumed", {})
        known = dict(first)
        for change in changes.values():
            known.update(change)
    except FileNotFoundError:
        write_json(folder.environment, now)
        return
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        say(f"note: {folder.environment}: not understood, and left as it is; changes since then are not recorded")
        return
    changed = {key: value for key, value in now.items() if _differs(key, value, known.get(key))}
    if changed:
        shown = [key if isinstance(now[key], dict) else f"{key} {now[key]}, was {known.get(key)}" for key in changed]
        say(f"note: changed since the run started: {'; '.join(shown)}")
        write_json(folder.environment, first | {"resumed": {**changes, f"step {step}": changed}})


def _differs(key: str, now: Any, then: Any) -> bool:
    """Whether an entry has changed; a fingerprint of the data need not have keys that an older version did not know."""
    if key == "data" and isinstance(then, dict):
        return now["path"] != then.get("path") or bool(same_data(now, then))
    if key == "teacher" and then is None:  # the run is older than this entry; its checkpoint knows the teacher
        return False
    return bool(now != then)


def _data_name(trainer: Trainer) -> str:
    """Name of the training data, or of its parts."""
    data = trainer.data.original if isinstance(trainer.data, SomePeople) else trainer.data
    if isinstance(data, JoinedSets):
        return some(map(part_name, data.parts))
    if isinstance(data, RecordShards):
        return part_name(data)
    return Path(trainer.recipe.data.path).name


def write_result(folder: RunFolder, trainer: Trainer) -> dict[str, Any]:
    """Write the trained weights and result.json; returns the content of result.json.

    Raises:
        UntrainedError: the gradient scaler skipped every step.
    """
    if trainer.skipped_steps == trainer.step:
        raise UntrainedError(
            f"the gradient scaler skipped all {trainer.step} steps, so nothing was trained; start a new run with"
            " more --training.epochs, or with --training.precision fp32 or bf16"
        )
    recipe = trainer.recipe
    card = {
        "backbone": trainer.backbone.name,
        "embedding_size": recipe.backbone.embedding_size,
        "training_data": _data_name(trainer),
        "training_images": len(trainer.data),
        "training_identities": trainer.data.num_identities,
        "epochs": recipe.training.epochs,
        "facebones": facebones.__version__,
    }
    save_weights(folder, trainer.backbone, card)
    result = {
        **card,
        "steps": trainer.step,
        **({"stopped_early": True} if trainer.stopped_early else {}),
        "skipped_steps": trainer.skipped_steps,
        "unreadable_images": len(trainer.unreadable.images),
        "final": [finite_or_none(row) for row in trainer.final],
        "best": trainer.best,
    }
    write_json(folder.result, result)
    return result
