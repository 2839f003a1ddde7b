"""Callbacks: code of the user's that a training calls, to watch it or to log elsewhere.

A callback is a class derived from `Callback`. Give it to `train(recipe, output, callbacks=[...])`, or register it with
`@register_callback` in a plug-in: then `facebones train --import my_callback.py` and the trainings of a study use it
too. Callbacks get copies, and torch's random state is restored after each call, so they do not change the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from facebones.plugins import import_entry_points
from facebones.recipe import Recipe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The run that a callback watches.

    Attributes:
        folder: of the run.
        recipe: resolved.
        total_steps: of the whole run.
    """

    folder: Path
    recipe: Recipe
    total_steps: int


class Callback:
    """Base of all callbacks; override the methods that you need."""

    def on_step(self, run: RunInfo, step: int) -> None:
        """After each step of the optimizer, counted from 1. The device may still compute it."""

    def on_log(self, run: RunInfo, values: Mapping[str, Any]) -> None:
        """After each train line of metrics.jsonl, with its values."""

    def on_validation(self, run: RunInfo, rows: Sequence[Mapping[str, Any]]) -> None:
        """After each validation, with the metrics of each pair set."""

    def on_end(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """After the last step, with the content of result.json."""


CallbackClass = TypeVar("CallbackClass", bound=Callable[[], Callback])
_REGISTRY: list[Callable[[], Callback]] = []


def register_callback(callback: CallbackClass) -> CallbackClass:
    """Register the decorated class: every training of this process makes one, without arguments, and calls it."""
    _REGISTRY.append(callback)
    return callback


def registered_callbacks() -> list[Callback]:
    """A new instance of each registered callback."""
    import_entry_points()
    return [make() for make in _REGISTRY]


class Callbacks:
    """The callbacks of a run, called as one."""

    def __init__(self, callbacks: Sequence[Callback], run: RunInfo, device: "torch.device") -> None:
        self._callbacks, self._run, self._device = callbacks, run, device
        self._watch_steps = [one for one in callbacks if type(one).on_step is not Callback.on_step]

    def on_step(self, step: int) -> None:
        """Call those that override `on_step`: other trainings pay nothing for a step."""
        if self._watch_steps:
            self._call(self._watch_steps, "on_step", lambda: step)

    def on_log(self, values: Mapping[str, Any]) -> None:
        """Call all, each with a copy."""
        self._call(self._callbacks, "on_log", lambda: dict(values))

    def on_validation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Call all, each with a copy."""
        self._call(self._callbacks, "on_validation", lambda: [dict(row) for row in rows])

    def on_end(self, result: Mapping[str, Any]) -> None:
        """Call all, each with a copy."""
        self._call(self._callbacks, "on_end", lambda: dict(result))

    def _call(self, callbacks: Sequence[Callback], method: str, value: Callable[[], Any]) -> None:
        from facebones.system.device import random_state_kept

        for callback in callbacks:
            with random_state_kept(self._device):
                getattr(callback, method)(self._run, value())
