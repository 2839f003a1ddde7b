"""What `facebones logs` prints."""

from collections.abc import Mapping
from typing import Any

from facebones.reporting.console import print_table


def print_logs(summary: Mapping[str, Any]) -> None:
    """Print what each file holds, what the run is, and the accuracy of each set."""
    files = [
        [
            found["path"],
            str(found["lines"]),
            str(found["training_lines"]),
            " to ".join(map(str, found["steps"])) or "-",
            " to ".join(found["times"]) or "-",
            str(found["not_understood"]),
        ]
        for found in summary["files"]
    ]
    print_table(["file", "lines", "training lines", "steps", "written", "not understood"], files)
    sets = [
        [
            row["set"],
            str(row["validations"]),
            str(row["final_step"]),
            f"{_percent(row['final_accuracy'])} +- {_percent(row['final_accuracy_std'])}",
            _percent(row["best_accuracy"]),
        ]
        for row in summary["sets"]
    ]
    if sets:
        print_table(["set", "validations", "last at step", "accuracy there", "best"], sets)
    if summary["training_lines"]:
        steps = f"steps {summary['first_step']} to {summary['last_step']}, {summary['epochs']} epochs begun"
        print(f"{summary['training_lines']} training lines: {steps}")
    print(f"run folder: {summary['output']}")


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2%}"
