"""How far the trainings are: a table that lives on a terminal, plain lines elsewhere; read from their metrics.jsonl."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from facebones.study.plan import PlannedRun
from facebones.system.progress import format_seconds, say

LIVE_SECONDS = 1.0
PLAIN_SECONDS = 60.0
COLUMNS = ("run", "state", "step", "loss", "accuracy", "left")


class Display:
    """What a study says while it trains, on stderr.

    Args:
        runs: all of the study.
    """

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._runs = runs
        self._last = time.monotonic()
        self._live: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()

    def begin(self, run: PlannedRun) -> None:
        """A training is about to start."""
        self._line(f"{run.name}: {'begins' if run.state == 'to do' else 'goes on'}; it says more in {run.log}")

    def end(self, run: PlannedRun, error: str | None) -> None:
        """A training has ended."""
        if error is not None:
            self._line(f"{run.name}: failed: {error}")
        else:
            self._line(f"{run.name}: done{_accuracy_text(run.progress())}")

    def show(self, running: Sequence[PlannedRun], errors: Mapping[str, str]) -> None:
        """Bring the table up to date, or say a line a minute for each training."""
        now = time.monotonic()
        if now - self._last < (LIVE_SECONDS if self._live is not None else PLAIN_SECONDS):
            return
        self._last = now
        if self._live is not None:
            self._live.update(self._table(running, errors), refresh=True)
        else:
            for run in running:
                say(progress_line(run))

    def close(self) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()

    def _line(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def _table(self, running: Sequence[PlannedRun], errors: Mapping[str, str]) -> Any:
        from rich.table import Table

        table = Table(*COLUMNS)
        for run in self._runs:
            state = "failed" if run.name in errors else "trains" if run in running else run.state
            table.add_row(run.name, state, *_cells(run))
        return table


def progress_line(run: PlannedRun) -> str:
    """A line about a training that runs."""
    step, loss, _, left = _cells(run)
    return f"{run.name}: step {step}  loss {loss}{_accuracy_text(run.progress())}  {left} left"


def seconds_left(run: PlannedRun, progress: Mapping[str, Any]) -> float | None:
    """At the rate last measured; None where none was."""
    rate = progress["images_per_second"]
    return (run.steps - progress["step"]) * run.images / max(run.steps, 1) / rate if rate else None


def _cells(run: PlannedRun) -> tuple[str, str, str, str]:
    progress = run.progress()
    left = seconds_left(run, progress)
    loss = "-" if progress["loss"] is None else f"{progress['loss']:.3f}"
    accuracy = "-" if progress["accuracy"] is None else f"{progress['accuracy']:.2%}"
    return f"{progress['step']}/{run.steps}", loss, accuracy, "-" if left is None else format_seconds(left)


def _accuracy_text(progress: Mapping[str, Any]) -> str:
    return "" if progress["accuracy"] is None else f"  accuracy {progress['accuracy']:.2%}"
