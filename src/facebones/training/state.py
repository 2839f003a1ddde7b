"""The saved state: whether a loaded one can continue this run, and torch's random state in it.

The fresh state of the run itself is the pattern: a loaded state must have the same keys, types and shapes. So a damaged
or forged file is refused here, with a message, and not by a traceback in the middle of training. Files of older
versions are read: fields of the recipe that they lack or call by an earlier name are translated
(`recipe.older_values`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from facebones.data.joined_sets import differing_parts
from facebones.data.training_set import CONTENT_KEYS, LABEL_KEYS, same_data
from facebones.errors import CheckpointError
from facebones.recipe import Recipe, older_values
from facebones.system.device import set_random_state
from facebones.system.rows import Rows
from facebones.training.logs import SHUFFLED
from facebones.training.validation import VALIDATION_METRICS

# Fields that may change between a run and its continuation, because they change no number. Validation sets and a
# teacher's embeddings may move; their fingerprints show that their content is the same. The checkpoint holds what
# became of `backbone.weights`.
CHANGEABLE_FIELDS = (
    *("data.path", "data.workers", "data.max_unreadable", "distillation.embeddings", "backbone.weights"),
    *("training.checkpoint_every", "training.background_saves", "validation.sets", "log.trackers"),
)

# Parts that are compared by value, depend on the device (the random state), or may have any length.
CHECKED_APART = ("recipe", "data", "validation", "rng", "unreadable")
LONGEST_PATH = 10_000  # of data in several places; a longer one is no path of a run
FINAL_ROW = {"set": "", **dict.fromkeys(VALIDATION_METRICS, 0.0), "step": 0, "epoch": 0, "best_accuracy": 0.0}


def check_state(recipe: Recipe, pattern: dict[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Compare a loaded state with the run's fresh one.

    Args:
        recipe: of the run.
        pattern: the fresh state, with an optimizer state as after a first step.
        found: the loaded state.
        path: of its file, for errors.

    Raises:
        CheckpointError: it belongs to another recipe or other data, or is damaged; the message names the first place.
    """
    missing = pattern.keys() - found.keys()
    if missing <= {"distillation"} and "distillation" in found.keys() ^ pattern.keys():
        _refuse_teacher(recipe.distillation.embeddings, path)
    if missing:
        raise CheckpointError(f"{path}: no checkpoint of a run: it lacks {', '.join(sorted(missing))}")
    _compare_recipes(recipe, found["recipe"], path)
    _compare_data(pattern, found, path)
    final = _final_pattern(len(pattern["validation"]), found["final"]) if found["final"] else []
    optimizer, meter = pattern["optimizer"], pattern["meter"]
    match found["meter"]:
        case {"head": dict(sums)} if all(type(name) is str and type(value) is float for name, value in sums.items()):
            meter = meter | {"head": sums}  # which metrics a head has shows only when it is called
    match found["optimizer"]:
        case {"state": dict(entries)}:  # a parameter that got no gradient yet, or never gets one, has no state
            optimizer = optimizer | {"state": {k: v for k, v in optimizer["state"].items() if k in entries}}
    for key, value in (pattern | {"final": final, "optimizer": optimizer, "meter": meter}).items():
        if key not in CHECKED_APART:
            check_structure(value, found[key], f"{path}: {key}")


def _refuse_teacher(embeddings: str, path: Path) -> NoReturn:
    then, now = ("without", f"names {embeddings:.200}") if embeddings else ("with", "names none")
    raise CheckpointError(
        f"{path}: was trained {then} a teacher, and config.yaml {now} (distillation.embeddings); restore that line, or"
        " start a new run"
    )


def _final_pattern(sets: int, found: Any) -> list[dict[str, Any]]:
    """Rows as of a last validation; those of sets with folds of one kind of pair have one number more."""
    rows = found if isinstance(found, list) and len(found) == sets else [None] * sets
    return [FINAL_ROW | ({SHUFFLED: 0.0} if isinstance(row, dict) and SHUFFLED in row else {}) for row in rows]


def _compare_recipes(now: Recipe, found: Any, path: Path) -> None:
    then = older_values(now, found)
    for name, value in now.values().items():
        # As text: a forged value need not be comparable.
        if name in CHANGEABLE_FIELDS or repr(then[name]) == repr(value):
            continue
        if _lacks(found, name):
            raise CheckpointError(
                f"{path}: was made before {name} existed, when runs did what {then[name]!s:.60} does; config.yaml says"
                f" {value}, which changes the run: write {name} {then[name]!s:.60} there, or start a new run"
            )
        raise CheckpointError(
            f"{path}: was made with {name} {then[name]!s:.60}, and config.yaml says {value}; restore the one that was"
            " changed, or start a new run"
        )


def _lacks(found: Any, name: str) -> bool:
    section, _, key = name.partition(".")
    part = found.get(section) if isinstance(found, dict) else None
    return section != "head" and isinstance(part, dict) and key not in part


def _compare_data(pattern: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    now, then = pattern["data"], found["data"]
    known = then if isinstance(then, dict) else {}
    shared = [key for key in now if key in known or key in LABEL_KEYS]
    then = {key: known[key] for key in shared if key in known} if isinstance(then, dict) else then
    check_structure({key: now[key] for key in shared}, then, f"{path}: data")
    if {*same_data(now, then)} & {*CONTENT_KEYS}:
        labels = any(then[key] != now[key] for key in LABEL_KEYS)
        path_now = pattern["recipe"]["data"]["path"]
        differing = differing_parts(path_now, _data_path(found))
        raise CheckpointError(
            f"{path}: was trained on other data ({then['images']} images of {then['identities']} identities);"
            f" {path_now} holds {now['images']} of {now['identities']}"
            f" {'with other labels' if labels else 'with the same labels, but other images'};"
            f" {differing or 'give --data'}"
        )
    sets, sets_then = pattern["validation"], found["validation"]
    if same_names := isinstance(sets_then, dict) and sets_then.keys() == sets.keys():
        check_structure(sets, sets_then, f"{path}: validation")
    if not same_names or sets_then != sets:
        raise CheckpointError(
            f"{path}: was validated on other sets than {', '.join(sets) or 'none'} as they are now;"
            " restore the files, or their paths in config.yaml"
        )


def _data_path(found: Mapping[str, Any]) -> str:
    """The path of the data in a loaded state, whose recipe may hold anything where a run may change."""
    section = found["recipe"].get("data") if isinstance(found["recipe"], dict) else None
    path = section.get("path") if isinstance(section, dict) else None
    return path if isinstance(path, str) and len(path) < LONGEST_PATH else ""


def check_structure(expected: Any, found: Any, where: str) -> None:
    """Compare keys, types and shapes of a loaded value with those of a value that the run itself would save.

    Raises:
        CheckpointError: they differ; the message names the first place.
    """
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            _refuse(where, f"keys {', '.join(map(str, expected))}", found)
        for key, value in expected.items():
            check_structure(value, found[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            _refuse(where, f"{len(expected)} elements", found)
        for index, (value, other) in enumerate(zip(expected, found, strict=True)):
            check_structure(value, other, f"{where}.{index}")
    elif isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (expected.shape, expected.dtype):
            _refuse(where, _describe(expected), found)
    elif isinstance(expected, Rows):
        if not isinstance(found, Rows) or _kind(found) != _kind(expected):
            _refuse(where, _describe(expected), found)
    elif type(found) is not type(expected):
        _refuse(where, _describe(expected), found)


def _refuse(where: str, expected: str, found: Any) -> NoReturn:
    raise CheckpointError(f"{where}: holds {_describe(found)} instead of {expected:.60}; damaged: restore the file")


def _kind(rows: Rows) -> tuple[Any, ...]:
    return rows.shape, rows.dtype, rows.start, [block.shape for block in rows.blocks]


def _describe(value: Any) -> str:
    if isinstance(value, Rows):
        return f"rows {value.start} to {value.span.stop} of {value.shape} of {value.dtype}".replace("torch.", "")
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}".replace("torch.", "")
    return f"keys {', '.join(map(str, value))}"[:60] if isinstance(value, dict) else f"a {type(value).__name__}"


def restore_random_state(state: Mapping[str, Tensor], device: torch.device, path: Path) -> None:
    """Restore the random state of a checkpoint.

    Raises:
        CheckpointError: damaged.
    """
    try:
        set_random_state(state, device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: rng: no state of a random generator; damaged: restore the file") from error
