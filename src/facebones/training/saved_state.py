"""Whether a loaded state is one that a run can take up: its own, of its data, and whole.

The present state of the run, not yet trained, is the pattern: what a file holds must have the same keys, types and
shapes, so that a damaged or forged one is refused here and not by a traceback in mid-training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from facebones.data.training_set import LABEL_KEYS, same_data
from facebones.errors import CheckpointError
from facebones.training.validation import FIGURES

# What may differ between a run and its continuation without changing a number. The sets may lie elsewhere; that they
# hold what they held is checked by their fingerprint.
CHANGEABLE_FIELDS = (
    *("data.path", "data.workers", "data.unreadable_limit"),
    *("training.checkpoint_every", "validation.sets", "log.tensorboard"),
)

# Parts that are compared by value, depend on the device (the random state), or are of any length.
CHECKED_APART = ("recipe", "data", "validation", "rng", "unreadable")
FINAL_ROW = {"set": "", **dict.fromkeys(FIGURES, 0.0), "step": 0, "epoch": 0, "best_accuracy": 0.0}


def check_state(pattern: dict[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Hold a loaded state against the run's own, whose optimizer has the state of a first step.

    Raises:
        CheckpointError: it is of another recipe or other data, or damaged; the message names the first place.
    """
    if missing := pattern.keys() - found.keys():
        raise CheckpointError(f"{path}: no checkpoint of a run: it lacks {', '.join(sorted(missing))}")
    _compare_recipes(pattern["recipe"], found["recipe"], path)
    _compare_data(pattern, found, path)
    final = [FINAL_ROW] * len(pattern["validation"]) if found["final"] else []
    optimizer = pattern["optimizer"]
    match found["optimizer"]:
        case {"state": dict(entries)}:  # a parameter that got no gradient yet, or never gets one, has no state
            optimizer = optimizer | {"state": {k: v for k, v in optimizer["state"].items() if k in entries}}
    for key, value in (pattern | {"final": final, "optimizer": optimizer}).items():
        if key not in CHECKED_APART:
            check_structure(value, found[key], f"{path}: {key}")


def _compare_recipes(now: Mapping[str, Any], found: Any, path: Path) -> None:
    sections = found if isinstance(found, dict) else {}
    for section, fields in now.items():
        then = sections.get(section)
        for key, value in fields.items():
            name = f"{section}.{key}"
            before = then.get(key) if isinstance(then, dict) else None
            # As text: a forged value need not be comparable.
            if name not in CHANGEABLE_FIELDS and repr(before) != repr(value):
                raise CheckpointError(
                    f"{path}: was made with {name} {before!s:.60}, and config.yaml says {value};"
                    " restore the one that was changed, or begin a new run"
                )


def _compare_data(pattern: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    now, then = pattern["data"], found["data"]
    if not isinstance(then, dict):
        check_structure(now, then, f"{path}: data")
    keys = [key for key in now if key in then or key in LABEL_KEYS]
    shared = {key: then[key] for key in keys if key in then}
    check_structure({key: now[key] for key in keys}, shared, f"{path}: data")
    # Sizes alone may differ: a broken file may have been repaired. The images of the sample may not.
    if {*same_data(now, then)} & {*LABEL_KEYS, "image_sample"}:
        raise CheckpointError(
            f"{path}: was trained on other data ({then['images']} images of {then['identities']} identities);"
            f" {pattern['recipe']['data']['path']} holds {now['images']} of {now['identities']}; give --data"
        )
    sets, sets_then = pattern["validation"], found["validation"]
    if same_names := isinstance(sets_then, dict) and sets_then.keys() == sets.keys():
        check_structure(sets, sets_then, f"{path}: validation")
    if not same_names or sets_then != sets:
        raise CheckpointError(
            f"{path}: was validated on other sets than {', '.join(sets) or 'none'} as they are now;"
            " restore the files, or their paths in config.yaml"
        )


def check_structure(expected: Any, found: Any, where: str) -> None:
    """Hold a loaded value against one that the run itself would save: keys, types, shapes, but no numbers.

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
    elif type(found) is not type(expected):
        _refuse(where, _describe(expected), found)


def _refuse(where: str, expected: str, found: Any) -> NoReturn:
    raise CheckpointError(f"{where}: holds {_describe(found)} instead of {expected:.60}; damaged: restore the file")


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}".replace("torch.", "")
    return f"keys {', '.join(map(str, value))}"[:60] if isinstance(value, dict) else f"a {type(value).__name__}"
