"""The tables of a report: what stands in them, once, for Markdown, LaTeX, CSV and the page."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from facebones.reporting.comparison_table import format_p
from facebones.reporting.console import MARKS, format_interval, mark_best
from facebones.reporting.results import BackboneTest, Figure, Results, Run, Spread
from facebones.statistics.significance import over_seeds

HOW_FIGURES = "Mean +- standard deviation over the seeds, or, of one seed, the value [95 % interval]."
HOW_TESTS = (
    "Every run of one against every run of the other; p is the largest of these tests after Holm's correction, and 1"
    " where they do not agree about which is better. Told apart: p up to 0.05."
)
HOW_TRAINING = (
    "Measured while training; mean +- standard deviation over the finished seeds. The best accuracy is that of the best"
    " step for the very set that it is reported on, so it is optimistic: compare backbones by the final one."
)
COSTS: tuple[tuple[str, str, float, str], ...] = (  # heading, attribute of Cost, its unit, and how it is printed
    ("parameters", "parameters", 1, "{:,.0f}"),
    ("MACs (M)", "macs", 1e6, "{:,.1f}"),
    ("latency p50 (ms)", "latency_ms", 1, "{:.2f}"),
    ("images/s", "images_per_second", 1, "{:,.0f}"),
    ("peak memory (MiB)", "memory_bytes", 2**20, "{:,.1f}"),
)
FIRST_COSTS = ("parameters", "MACs (M)", "latency p50 (ms)")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Of a table.

    Attributes:
        text: for people.
        value: by which a column is sorted and which CSV holds, unrounded; None of a cell without one.
    """

    text: str
    value: float | str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Of a report.

    Attributes:
        key: short name in files and anchors: letters, digits and "_".
        title: heading.
        note: how to read it; a sentence or two.
        columns: their headings.
        rows: a cell for each column.
    """

    key: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


NOTHING = Cell(text="-")


def report_tables(results: Results) -> list[Table]:
    """All tables that the results can fill, the most important first."""
    wheres = dict.fromkeys(figure.where for figure in results.figures)
    tables = [
        _overview(results),
        *(_evaluated(results, where) for where in wheres),
        *(_tests(results, figure) for figure in results.main_figures()),
        _training(results),
        _runs(results),
    ]
    return _distinct_keys([table for table in tables if table.rows])


# ----------------------------------------------------------------------------------------------------- overview


def _overview(results: Results) -> Table:
    figures, numbers = results.main_figures(), results.numbers()
    names = [row["backbone"] for row in numbers]
    columns, cells = ["backbone"], [[_text(name) for name in names]]
    costs = {
        heading: [_cost(row[key], unit, form) for row in numbers]
        for heading, key, unit, form in COSTS
        if any(row[key] is not None for row in numbers)
    }
    accuracies = {figure.title: _figure_column(results, figure, names) for figure in figures}
    # By what most choose first: on a narrow page the rest is out of sight.
    first = {heading: costs.pop(heading) for heading in FIRST_COSTS if heading in costs}
    for heading, column in (first | accuracies | costs).items():
        columns.append(heading)
        cells.append(column)
    columns.append("seeds done")
    cells.append([_seeds(row) for row in numbers])
    return Table(
        key="overview",
        title="Overview",
        note=_sentences(_figures_note(results, figures), _conditions_note(results)),
        columns=columns,
        rows=_turned(cells),
    )


def _cost(value: float | None, unit: float, form: str) -> Cell:
    """The value is in the unit of its column's heading."""
    return (
        NOTHING if value is None else Cell(text=form.format(value / unit), value=value if unit == 1 else value / unit)
    )


def _seeds(row: dict[str, Any]) -> Cell:
    return Cell(text=f"{row['seeds_done']}/{row['seeds_planned']}", value=row["seeds_done"])


def _conditions_note(results: Results) -> str:
    if not results.conditions:
        return ""
    names = ("device", "processor", "threads", "precision", "batch_size")
    said = ", ".join(
        f"{name.replace('_', ' ')} {results.conditions[name]}" for name in names if name in results.conditions
    )
    return f"Latency (one image), images/s and peak memory (in batches): {said}."


# ------------------------------------------------------------------------------------------------ evaluated sets


def _evaluated(results: Results, where: str) -> Table:
    """All figures of a set, of each backbone that was measured on it."""
    figures = [figure for figure in results.known_figures if figure.where == where]
    measured = [name for name in results.backbones if any(results.spread(figure, name) for figure in figures)]
    names = measured or results.backbones
    return Table(
        key=_key(f"{figures[0].kind}_{where}"),
        title=where,
        note=_sentences(
            _figures_note(results, figures),
            *(f"{figure.name}: not measured, for {figure.reason}." for figure in figures if figure.reason),
        ),
        columns=["backbone", *(figure.name for figure in figures)],
        rows=_turned(
            [[_text(name) for name in names], *(_figure_column(results, figure, names) for figure in figures)]
        ),
    )


def _figure_column(results: Results, figure: Figure, names: Sequence[str]) -> list[Cell]:
    """A figure of the backbones, the best marked where there are several, and what a test has not told from it."""
    spreads = [results.spread(figure, name) for name in names]
    cells = [NOTHING if spread is None else Cell(text=_spread_text(spread), value=spread.mean) for spread in spreads]
    if sum(spread is not None for spread in spreads) < 2:
        return cells
    best = results.ranking(figure)[0]
    alike = results.as_good_as(figure, best)
    texts = mark_best([cell.text for cell in cells], names.index(best), [name in alike for name in names])
    return [replace(cell, text=text) for cell, text in zip(cells, texts, strict=True)]


def _spread_text(spread: Spread) -> str:
    if spread.deviation is not None:
        return _percent(spread.mean, spread.deviation)
    if spread.low is not None and spread.high is not None:
        return format_interval(spread.mean, spread.low, spread.high)
    return _percent(spread.mean)


def _figures_note(results: Results, figures: Sequence[Figure]) -> str:
    """How cells and marks are to be read, and which columns nobody has tested."""
    figures = [figure for figure in figures if figure.values]
    if not figures:
        return ""
    several = [figure for figure in figures if len(results.ranking(figure)) > 1]
    tested = {
        figure.title: {pair for test in results.tests(figure) for pair in (test.first, test.second)}
        for figure in several
    }
    untested = [figure.title for figure in several if not set(results.ranking(figure)) <= tested[figure.title]]
    marks = f"{MARKS[0].upper()}{MARKS[1:]}." if several else ""
    missing = (
        f"Without a test of every backbone, so that a missing * says nothing: {', '.join(untested)}."
        if untested
        else ""
    )
    return _sentences(HOW_FIGURES, marks, missing)


# -------------------------------------------------------------------------------------------------------- tests


def _tests(results: Results, figure: Figure) -> Table:
    return Table(
        key=_key(f"tests_{figure.title}"),
        title=f"{figure.title}: differences",
        note=HOW_TESTS,
        columns=("backbones", "difference in points", "p", "verdict"),
        rows=[_test_row(test, figure.lower_is_better) for test in results.tests(figure)],
    )


def _test_row(test: BackboneTest, lower_is_better: bool) -> list[Cell]:
    better = test.first if (test.difference > 0) != lower_is_better else test.second
    points = 100 * test.difference
    return [
        _text(f"{test.first} - {test.second}"),
        Cell(text=f"{points:+.2f}", value=points),
        Cell(text=format_p(test.p_value), value=test.p_value),
        _text(f"{better} is better" if test.significant else "not told apart"),
    ]


# ----------------------------------------------------------------------------------------------------- training


def _training(results: Results) -> Table:
    """A row a backbone and set, of what was trained; a backbone of which no run is finished has a row of dashes."""
    rows = []
    for backbone in results.backbones:
        runs = [run for run in results.runs_of(backbone) if run.source != "file"]
        done = [run for run in runs if run.state == "done"]
        sets = [name for name in results.validated_sets if any(_is_validated(run, name) for run in runs)]
        rows += [_training_row(backbone, name, done) for name in sets]
    return Table(
        key="training",
        title="Training",
        note=HOW_TRAINING,
        columns=("backbone", "set", "final accuracy", "best accuracy", "final loss", "steps"),
        rows=rows,
    )


def _is_validated(run: Run, pair_set: str) -> bool:
    return run.final_accuracy(pair_set) is not None or run.best_accuracy(pair_set) is not None


def _training_row(backbone: str, pair_set: str, runs: Sequence[Run]) -> list[Cell]:
    return [
        _text(backbone),
        _text(pair_set),
        _over_runs((run.final_accuracy(pair_set) for run in runs), _percent),
        _over_runs((run.best_accuracy(pair_set) for run in runs), _percent),
        _over_runs((run.final_loss for run in runs), _loss),
        _steps([run.steps for run in runs if run.steps is not None]),
    ]


def _over_runs(values: Iterable[float | None], form: Any) -> Cell:
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    found = over_seeds(known)
    return Cell(text=form(found.mean, found.deviation), value=found.mean)


def _steps(steps: Sequence[int]) -> Cell:
    if not steps:
        return NOTHING
    least, most = min(steps), max(steps)
    return Cell(text=f"{least:,}" if least == most else f"{least:,} to {most:,}", value=most)


# --------------------------------------------------------------------------------------------------------- runs


def _runs(results: Results) -> Table:
    sets = [
        name for name in results.validated_sets if any(run.final_accuracy(name) is not None for run in results.runs)
    ]
    failed = [run.name for run in results.runs if run.state == "failed"]
    return Table(
        key="runs",
        title="Runs",
        note=_sentences(
            f"{len(failed)} of {len(results.runs)} runs failed: {', '.join(failed)}." if failed else "",
            "Accuracies are those of the last step, measured while training." if sets else "",
        ),
        columns=(
            "run",
            "backbone",
            "seed",
            "source",
            "state",
            "steps",
            "final loss",
            *(f"{name} accuracy" for name in sets),
            "error",
        ),
        rows=[_run_row(run, sets) for run in results.runs],
    )


def _run_row(run: Run, sets: Sequence[str]) -> list[Cell]:
    return [
        _text(run.name),
        _text(run.backbone),
        NOTHING if run.seed is None else Cell(text=str(run.seed), value=run.seed),
        _text(run.source),
        Cell(text="FAILED" if run.state == "failed" else run.state, value=run.state),
        NOTHING if run.steps is None else Cell(text=f"{run.steps:,}", value=run.steps),
        _over_runs([run.final_loss], _loss),
        *(_over_runs([run.final_accuracy(name)], _percent) for name in sets),
        _text(run.error or ""),
    ]


# -------------------------------------------------------------------------------------------------------- texts


def _percent(mean: float, deviation: float | None = None) -> str:
    spread = "" if deviation is None else f" +- {100 * deviation:.2f}"
    return f"{100 * mean:.2f} %{spread}"


def _loss(mean: float, deviation: float | None = None) -> str:
    spread = "" if deviation is None else f" +- {deviation:.4f}"
    return f"{mean:.4f}{spread}"


def _text(text: str) -> Cell:
    return Cell(text=text, value=text or None)


def _sentences(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _turned(columns: Sequence[Sequence[Cell]]) -> list[Sequence[Cell]]:
    return [list(row) for row in zip(*columns, strict=True)]


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()


def _distinct_keys(tables: Sequence[Table]) -> list[Table]:
    """The tables; where two names give one key, the later ones are numbered."""
    found: dict[str, Table] = {}
    for table in tables:
        key, count = table.key, 1
        while key in found:
            count += 1
            key = f"{table.key}_{count}"
        found[key] = replace(table, key=key)
    return list(found.values())
