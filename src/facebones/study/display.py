"""What a study prints: its progress, as a live table on a terminal and as lines elsewhere, and tables of results."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from facebones.errors import counted
from facebones.reporting.tables import COSTS, FIRST_COSTS, cost_cell
from facebones.reporting.variants import several_levels
from facebones.reporting.words import metric_words, set_words
from facebones.study.planned_run import UNFINISHED, PlannedRun
from facebones.study.vary import sets_section
from facebones.system.number_format import percent
from facebones.system.progress import format_seconds, printable, say

LIVE_SECONDS = 1.0
PLAIN_SECONDS = 60.0
COLUMNS = ("run", "state", "step", "loss", "accuracy", "left")

Table = tuple[Sequence[str], list[Sequence[str]]]  # names of the columns, and rows


class Display:
    """Progress of the trainings on stderr, read from their metrics.jsonl.

    Args:
        runs: all runs of the study.
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
        """Announce a training that is about to start."""
        self._line(f"{run.name}: {'starts' if run.state == 'to do' else 'resumes'}; log: {run.log}")

    def end(self, run: PlannedRun, error: str | None) -> None:
        """Announce the end of a training."""
        if error is not None:
            self._line(f"{run.name}: failed: {error}")
        else:
            self._line(f"{run.name}: done{_accuracy_text(run.progress())}")

    def lost(self, run: PlannedRun) -> None:
        """Announce that another worker has taken up a training, because this machine was suspended or cut off."""
        self._line(f"{run.name}: another worker has taken it up while this one gave no sign of life; it ends here")

    def show(
        self, running: Sequence[PlannedRun], errors: Mapping[str, str], elsewhere: Mapping[str, str] | None = None
    ) -> None:
        """Update the table, or print a line a minute for each training.

        Args:
            running: the trainings of this process.
            errors: why runs failed, by name.
            elsewhere: the workers that train other runs, by the run's name.
        """
        now = time.monotonic()
        if now - self._last < (LIVE_SECONDS if self._live is not None else PLAIN_SECONDS):
            return
        self._last = now
        if self._live is not None:
            self._live.update(self._table(running, errors, elsewhere or {}), refresh=True)
        else:
            for run in self._runs:
                if run in running:
                    say(progress_line(run))
                elif run.name in (elsewhere or {}):
                    say(f"{progress_line(run)} (on {(elsewhere or {})[run.name]})")

    def close(self) -> None:
        """Remove the table."""
        if self._live is not None:
            self._live.stop()

    def _line(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(printable(text), markup=False, highlight=False)
        else:
            say(text)

    def _table(self, running: Sequence[PlannedRun], errors: Mapping[str, str], elsewhere: Mapping[str, str]) -> Any:
        from rich.table import Table

        table = Table(*COLUMNS)
        for run in self._runs:
            state = "failed" if run.name in errors else "training" if run in running else run.state
            if run.name in elsewhere:
                state = f"training on {elsewhere[run.name]}"
            table.add_row(run.name, state, *_cells(run))
        return table


def progress_line(run: PlannedRun) -> str:
    """One line about a running training."""
    step, loss, _, left = _cells(run)
    return f"{run.name}: step {step}  loss {loss}{_accuracy_text(run.progress())}  {left} left"


def seconds_left(run: PlannedRun, progress: Mapping[str, Any]) -> float | None:
    """Time left at the last measured rate; None if there is none yet."""
    rate = progress["images_per_second"]
    return (run.steps - progress["step"]) * run.images / max(run.steps, 1) / rate if rate else None


def _cells(run: PlannedRun) -> tuple[str, str, str, str]:
    progress = run.progress()
    left = seconds_left(run, progress)
    loss = "-" if progress["loss"] is None else f"{progress['loss']:.3f}"
    accuracy = "-" if progress["accuracy"] is None else percent(progress["accuracy"])
    return f"{progress['step']}/{run.steps}", loss, accuracy, "-" if left is None else format_seconds(left)


def _accuracy_text(progress: Mapping[str, Any]) -> str:
    return "" if progress["accuracy"] is None else f"  accuracy {percent(progress['accuracy'])}"


# ------------------------------------------------------------------------------------------------ tables on stdout


def plan_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of a plan as a table."""
    return ("run", "parameters", "MACs", "images", "steps", "left", "state"), [_plan_cells(row) for row in rows]


def plan_hours(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the rows of a plan take in all, in words.

    >>> plan_hours([{"hours": 1.5}, {"hours": 0.25}])
    'left: 1h45m of training steps, one training after the other; validation and evaluation come on top'
    """
    unknown = sum(row["hours"] is None for row in rows)
    left = format_seconds(3600 * sum(row["hours"] or 0.0 for row in rows))
    besides = f" besides {counted(unknown, 'training')} of unknown speed" if unknown else ""
    steps = f"{left} of training steps{besides}, one training after the other"
    return f"left: {steps}; validation and evaluation come on top"


def _plan_cells(row: Mapping[str, Any]) -> Sequence[str]:
    known = row["problem"] is None
    state = f"to resume after step {row['step']}" if row["state"] == UNFINISHED else row["state"]
    if row["worker"]:
        state = f"step {row['step']} on {row['worker']}"
    return (
        row["name"],
        f"{row['parameters']:,}" if known else "-",
        f"{row['macs'] / 1e6:,.1f} M" if known else "-",
        f"{row['images']:,}",
        f"{row['steps']:,}",
        "unknown" if row["hours"] is None else format_seconds(3600 * row["hours"]),
        state if known else f"{state}; cannot be built: {row['problem']}",
    )


def study_table(content: Mapping[str, Any]) -> Table:
    """The summary of study.json as a table: a row for each variant, a column for each main metric over the seeds.

    Costs are those of the report's overview that are known; errors have a column if there are any.
    """
    summary = content["summary"]
    factors = several_levels([row.get("levels", {}) for row in summary])
    titles = list(dict.fromkeys(_title(metric) for row in summary for metric in row["metrics"]))
    costs = [one for one in COSTS if one[0] in FIRST_COSTS and any(row.get(one[1]) is not None for row in summary)]
    failed = any(row["errors"] for row in summary)
    rows: list[Sequence[str]] = []
    for row in summary:
        cost = [cost_cell(row.get(key), unit, form).text for _, key, unit, form in costs]
        measured = {_title(metric): percent(metric["mean"], metric["deviation"]) for metric in row["metrics"]}
        cells = [measured.get(title, "-") for title in titles]
        errors = ["; ".join(row["errors"])] if failed else []
        levels = [row.get("levels", {}).get(factor, "-") for factor in factors]
        rows.append((row["backbone"], *levels, *cost, *cells, f"{row['done']}/{row['planned']}", *errors))
    return ("backbone", *factors, *(cost[0] for cost in costs), *titles, "seeds", *(["error"] if failed else [])), rows


def study_title(content: Mapping[str, Any]) -> str:
    """The title of `study_table`: the study, what its numbers are, and the size of embeddings that it trained."""
    title = f"{content['study']['name']}: mean over seeds ± standard deviation"
    trained = {run["backbone"] for run in content["runs"]}
    tuned = content["study"].get("tune", {}).get("space", {})
    varied = sets_section(content["study"].get("vary", {}), "backbone") or any("backbone." in name for name in tuned)
    if varied or any(row["backbone"] not in trained for row in content["summary"]):
        return title
    return f"{title}; embeddings of {content['recipe']['backbone']['embedding_size']} dimensions"


def _title(metric: Mapping[str, Any]) -> str:
    return f"{set_words(metric)}: {metric_words(metric)}"
