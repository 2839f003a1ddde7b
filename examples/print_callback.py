"""A callback of your own: prints the loss of each log line and the best accuracy of each validation.

    facebones train demo --data faces --output runs/demo --import examples/print_callback.py

From Python: `train(recipe, output, callbacks=[PrintCallback()])`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from facebones.training.callbacks import Callback, RunInfo, register_callback


@register_callback
class PrintCallback(Callback):
    """Prints to stdout; your own may send the values anywhere."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, run: RunInfo, step: int) -> None:
        """Count the steps of this process: a resumed run has fewer than `run.total_steps`."""
        self.steps += 1

    def on_log(self, run: RunInfo, values: Mapping[str, Any]) -> None:
        """Print the loss."""
        print(f"callback: step {values['step']} of {run.total_steps}: loss {values['loss']:.3f}")

    def on_validation(self, run: RunInfo, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print the accuracies."""
        for row in rows:
            print(f"callback: {row['set']}: accuracy {row['accuracy']:.3f}, best {row['best_accuracy']:.3f}")

    def on_end(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Print where the run is."""
        print(f"callback: {self.steps} steps of {result['backbone']} in {run.folder}")
