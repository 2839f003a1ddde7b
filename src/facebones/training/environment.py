"""environment.json: where and with what a run computes, from its beginning on."""

import json
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import facebones
from facebones.run_folder import RunFolder
from facebones.system.environment import git_revision
from facebones.system.files import write_json
from facebones.system.progress import say


def describe_environment(
    device: torch.device, data: Mapping[str, Any], validation: Mapping[str, Any]
) -> dict[str, Any]:
    """Versions, device and data."""
    import cv2  # not above: `facebones.data` sets its limits first

    return {
        "facebones": facebones.__version__,
        "commit": git_revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "data": dict(data),
        "validation": dict(validation),
    }


def note_environment(folder: RunFolder, now: Mapping[str, Any], step: int) -> None:
    """Write environment.json; to the one of a run that goes on, add from which step on what is not as before."""
    try:
        first = json.loads(folder.environment.read_bytes())
        changes = first.get("resumed", {})
        known = dict(first)
        for change in changes.values():
            known.update(change)
    except FileNotFoundError:
        write_json(folder.environment, now)
        return
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        say(f"note: {folder.environment}: not understood, and left as it is: what has changed since is not known")
        return
    changed = {key: value for key, value in now.items() if known.get(key) != value}
    if changed:
        shown = [key if isinstance(now[key], dict) else f"{key} {now[key]}, was {known.get(key)}" for key in changed]
        say(f"note: not as before: {'; '.join(shown)}")
        write_json(folder.environment, first | {"resumed": {**changes, f"step {step}": changed}})
