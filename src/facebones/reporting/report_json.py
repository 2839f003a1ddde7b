"""A report as plain values: what results.json holds, for programs that do not use this package."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facebones import __version__
from facebones.reporting.results import Figure, Results, Run


def results_json(results: Results) -> dict[str, Any]:
    """All of a report but the lines and the points of curves.

    Returns:
        "facebones" (version), "title", "folders", "command", "notes" and "recipe" as in `Results`; and

        - "conditions": of the measured costs;
        - "backbones": of each, as `Results.numbers` has them: costs, main figures, seeds done and planned;
        - "runs": of each its name, backbone, seed, folder, source, state, error, steps, final_loss, and "accuracy": set
          to final and best, as measured while training;
        - "figures": of each where, name, kind, whether it is a main one, lower_is_better, reason (of a figure that the
          data cannot give), "values" and "intervals" of each run, "backbones": the spread of each over its seeds, the
          best first, and "tests" of every two backbones;
        - "cmc": set to run to the rates of Rank-1, Rank-2, ...

        None stands where something is not known. There is no number that JSON lacks.
    """
    main = [figure.title for figure in results.main_figures()]
    content = {
        "facebones": __version__,
        "title": results.title,
        "folders": results.folders,
        "command": results.command,
        "notes": results.notes,
        "recipe": results.recipe,
        "conditions": results.conditions,
        "backbones": results.numbers(),
        "runs": [_run(run, results.validated_sets) for run in results.runs],
        "figures": [{**_figure(results, figure), "main": figure.title in main} for figure in results.known_figures],
        "cmc": results.cmc,
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def _run(run: Run, sets: Sequence[str]) -> dict[str, Any]:
    kept = ("name", "backbone", "seed", "folder", "source", "state", "error", "steps", "final_loss")
    accuracy = {name: {"final": run.final_accuracy(name), "best": run.best_accuracy(name)} for name in sets}
    return {key: getattr(run, key) for key in kept} | {"accuracy": accuracy}


def _figure(results: Results, figure: Figure) -> dict[str, Any]:
    kept = ("where", "name", "kind", "lower_is_better", "reason", "values", "intervals")
    spreads = {name: vars(results.spread(figure, name)) for name in results.ranking(figure)}
    tests = [{**vars(test), "significant": test.significant} for test in results.tests(figure)]
    return {key: getattr(figure, key) for key in kept} | {"backbones": spreads, "tests": tests}


def _plain(content: Any) -> Any:
    """The content as JSON knows it; NaN and the infinities become None."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, Path):
        return str(content)
    return None if isinstance(content, float) and not math.isfinite(content) else content
