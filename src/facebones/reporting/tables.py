"""The tables of a report, independent of their file format."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from facebones.reporting.results import EvaluatedSet, MetricResult, Results, Run
from facebones.reporting.variant_tests import Contrast, VariantTest
from facebones.reporting.variants import BACKBONE
from facebones.reporting.words import BUSY, MARKS, mark_best, set_words, spread_words
from facebones.statistics.significance import over_seeds
from facebones.system.number_format import decimal, p_words, percent, points

HOW_METRICS = "Mean ± standard deviation over the seeds; for one seed, the value [95 % interval]."
LOWEST_FAR = "Beside a set's main metric stands its TAR at the lowest FAR that its impostor pairs can measure."
HOW_TESTS = (
    "Over the seeds of both and over the people or pairs of the set; p after Holm's correction. Significant: p <= 0.05."
    " The interval is not corrected."
)
HOW_CONTRASTS = "Each row compares two levels of a factor, or two backbones, with everything else equal. " + HOW_TESTS
HOW_TRAINING = (
    "Validation during training; mean ± standard deviation over the finished seeds. The best accuracy is selected on"
    " the set that it is reported on and therefore optimistic; compare backbones by the final accuracy."
)
COSTS: tuple[tuple[str, str, float, str], ...] = (  # heading, attribute of Cost, its unit, and how it is printed
    ("parameters", "parameters", 1, "{:,.0f}"),
    ("MACs (M)", "macs", 1e6, "{:,.1f}"),
    ("latency p50 (ms)", "latency_ms", 1, "{:.2f}"),
    ("images/s", "images_per_second", 1, "{:,.0f}"),
    ("peak memory (MiB)", "memory_bytes", 2**20, "{:,.1f}"),
)
FIRST_COSTS = ("parameters", "MACs (M)", "latency p50 (ms)")
TIMED = ("latency_ms", "images_per_second")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: for people.
        value: unrounded, for sorting and CSV; None if there is none.
        about: variants that the cell is about, if it does not name them.
    """

    text: str
    value: float | str | None = None
    about: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report.

    Attributes:
        key: short name in files and anchors: letters, digits and "_".
        title: heading.
        note: how to read it; a sentence or two.
        columns: their headings.
        rows: a cell for each column.
        section: of the page, "tables", "tuning" or "trust"; the overview has its own.
        folded: whether the page shows it on demand only.
    """

    key: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    section: str = "tables"
    folded: bool = False


NOTHING = Cell(text="-")


def report_tables(results: Results) -> list[Table]:
    """All tables that the results can fill, the most important first."""
    sets = dict.fromkeys(metric.evaluated_set for metric in results.metrics)
    tables = [
        _overview(results),
        *(_evaluated(results, where) for where in sets),
        *(_tests(results, metric) for metric in results.main_metrics()),
        *_tuning(results),
        *results.trust,
        *_added_seeds(results),
        _training(results),
        _runs(results),
    ]
    return _distinct_keys([table for table in tables if table.rows])


# ----------------------------------------------------------------------------------------------------- overview


def _overview(results: Results) -> Table:
    metrics, numbers, names = results.headline_metrics(), results.numbers(), results.variants
    columns, cells = list(_named(results)), list(_named(results).values())
    costs = {
        heading: [cost_cell(row[key], unit, form, busy=row["busy"] and key in TIMED) for row in numbers]
        for heading, key, unit, form in COSTS
        if any(row[key] is not None for row in numbers)
    }
    measured = {metric.title: _metric_column(results, metric, names) for metric in metrics}
    # A narrow page hides the columns on the right, so those that matter most for a choice come first.
    main = dict([*measured.items()][:1])
    first = {heading: costs.pop(heading) for heading in FIRST_COSTS if heading in costs}
    for heading, column in (main | first | measured | costs).items():
        columns.append(heading)
        cells.append(column)
    columns.append("seeds done")
    cells.append([_seeds(row) for row in numbers])
    lowest = LOWEST_FAR if len(metrics) > len(results.main_metrics()) else ""
    return Table(
        key="overview",
        title="Overview",
        note=_sentences(_metrics_note(results, metrics), lowest, _size_note(results), _conditions_note(results)),
        columns=columns,
        rows=_transposed(cells),
    )


def cost_cell(value: float | None, unit: float, form: str, *, busy: bool = False) -> Cell:
    """A cost in the unit of its column's heading, marked if it was measured on a busy machine."""
    if value is None:
        return NOTHING
    text = form.format(value / unit) + (f" {BUSY}" if busy else "")
    return Cell(text=text, value=value if unit == 1 else value / unit)


def _seeds(row: dict[str, Any]) -> Cell:
    return Cell(text=f"{row['seeds_done']}/{row['seeds_planned']}", value=row["seeds_done"])


def _size_note(results: Results) -> str:
    """The size of the embeddings, if all runs have one: networks of another size have other parameters."""
    size = results.recipe.get("backbone", {}).get("embedding_size")
    return "" if size is None else f"The networks give embeddings of {size} dimensions."


def _conditions_note(results: Results) -> str:
    if not results.conditions:
        return ""
    names = ("device", "processor", "threads", "precision", "batch_size")
    said = ", ".join(
        f"{name.replace('_', ' ')} {results.conditions[name]}" for name in names if name in results.conditions
    )
    busy = any(cost.busy for cost in results.costs.values())
    marks = f" {BUSY}: the machine did other work meanwhile; measure again before relying on it." if busy else ""
    return f"Latency (one image), images/s and peak memory (in batches): {said}.{marks}"


def _named(results: Results, variants: Sequence[str] | None = None) -> dict[str, list[Cell]]:
    """The first columns of a table with a row for each variant: its backbone and its levels."""
    names = results.variants if variants is None else variants
    rows = [name_cells(results, name) for name in names]
    return {name: [row[place] for row in rows] for place, name in enumerate(name_columns(results))}


def name_columns(results: Results) -> list[str]:
    """Headings of the columns that name a variant."""
    return [BACKBONE, *results.factors]


def name_cells(results: Results, variant: str) -> list[Cell]:
    """The cells that name a variant."""
    run = results.first_run(variant)
    levels = [text_cell(run.levels[name]) if name in run.levels else NOTHING for name in results.factors]
    return [replace(text_cell(run.backbone), about=(variant,)), *levels]


# ------------------------------------------------------------------------------------------------ evaluated sets


def _evaluated(results: Results, where: EvaluatedSet) -> Table:
    """All metrics of a set, of each variant that was measured on it."""
    metrics = [metric for metric in results.known_metrics if metric.evaluated_set == where]
    measured = [name for name in results.variants if any(results.spread(metric, name) for metric in metrics)]
    names = measured or results.variants
    named = _named(results, names)
    return Table(
        key=_key(f"{where.protocol}_{where.set}_{where.setting}"),
        title=set_words(where),
        note=_sentences(
            _metrics_note(results, metrics),
            *(f"{metric.words}: not measured, because {metric.reason}." for metric in metrics if metric.reason),
        ),
        columns=[*named, *(metric.words for metric in metrics)],
        rows=_transposed([*named.values(), *(_metric_column(results, metric, names) for metric in metrics)]),
    )


def _metric_column(results: Results, metric: MetricResult, names: Sequence[str]) -> list[Cell]:
    """A metric of the variants; of several, the best is marked, and those not significantly different from it."""
    spreads = [results.spread(metric, name) for name in names]
    cells = [NOTHING if spread is None else Cell(text=spread_words(spread), value=spread.mean) for spread in spreads]
    if sum(spread is not None for spread in spreads) < 2:
        return cells
    best = results.ranking(metric)[0]
    alike = results.not_different_from(metric, best)
    texts = mark_best([cell.text for cell in cells], names.index(best), [name in alike for name in names])
    return [replace(cell, text=text) for cell, text in zip(cells, texts, strict=True)]


def _metrics_note(results: Results, metrics: Sequence[MetricResult]) -> str:
    """How to read cells and marks, and which columns lack tests."""
    metrics = [metric for metric in metrics if metric.values]
    if not metrics:
        return ""
    several = [metric for metric in metrics if len(results.ranking(metric)) > 1]
    untested = [metric.title for metric in several if not set(results.ranking(metric)) <= _tested(results, metric)]
    marks = f"{MARKS[0].upper()}{MARKS[1:]}." if several else ""
    missing = (
        f"Not every {results.noun} was tested, so a missing * means nothing: {', '.join(untested)}." if untested else ""
    )
    return _sentences(HOW_METRICS, marks, missing)


def _tested(results: Results, metric: MetricResult) -> set[str]:
    return {name for test in results.tests(metric) for name in (test.first, test.second)}


# -------------------------------------------------------------------------------------------------------- tests


def _tests(results: Results, metric: MetricResult) -> Table:
    if results.factors:
        return Table(
            key=_key(f"tests_{metric.title}"),
            title=f"{metric.title}: differences",
            note=HOW_CONTRASTS,
            columns=("factor", "with", "levels", "difference in points", "95 % interval", "p", "verdict"),
            rows=[_contrast_row(one, metric.higher_is_better) for one in results.contrasts(metric)],
        )
    return Table(
        key=_key(f"tests_{metric.title}"),
        title=f"{metric.title}: differences",
        note=HOW_TESTS,
        columns=("backbones", "difference in points", "95 % interval", "p", "verdict"),
        rows=[_test_row(test, metric.higher_is_better) for test in results.tests(metric)],
    )


def _contrast_row(contrast: Contrast, higher_is_better: bool) -> list[Cell]:
    test = contrast.test
    better = contrast.levels[(test.difference > 0) != higher_is_better]
    return [
        replace(text_cell(contrast.factor), about=(test.first, test.second)),
        text_cell(contrast.within),
        text_cell(f"{contrast.levels[0]} - {contrast.levels[1]}"),
        Cell(text=points(test.difference), value=100 * test.difference),
        text_cell(f"[{points(test.low)}, {points(test.high)}]"),
        Cell(text=p_words(test.p_value), value=test.p_value),
        text_cell(f"{better} is better" if test.significant else "not significantly different"),
    ]


def _test_row(test: VariantTest, higher_is_better: bool) -> list[Cell]:
    better = test.first if (test.difference > 0) == higher_is_better else test.second
    return [
        text_cell(f"{test.first} - {test.second}"),
        Cell(text=points(test.difference), value=100 * test.difference),
        text_cell(f"[{points(test.low)}, {points(test.high)}]"),
        Cell(text=p_words(test.p_value), value=test.p_value),
        text_cell(f"{better} is better" if test.significant else "not significantly different"),
    ]


# ----------------------------------------------------------------------------------------------------- training


def _tuning(results: Results) -> list[Table]:
    if not results.tunings:
        return []
    from facebones.reporting.tuning_tables import tuning_tables  # which imports this module

    return tuning_tables(results)


def _added_seeds(results: Results) -> list[Table]:
    if not results.added_seeds:
        return []
    from facebones.reporting.added_seeds import added_seeds_table  # which imports this module

    several = len(results.added_seeds) > 1
    return [added_seeds_table(one, noun=results.noun, several=several) for one in results.added_seeds]


def _training(results: Results) -> Table:
    """A row for each trained variant and set; a variant without a finished run has a row of dashes."""
    rows: list[Sequence[Cell]] = []
    for variant in results.variants:
        runs = [run for run in results.runs_of(variant) if run.source != "file"]
        done = [run for run in runs if run.state == "done"]
        sets = [name for name in results.validated_sets if any(_is_validated(run, name) for run in runs)]
        rows += [[*name_cells(results, variant), *_training_row(name, done)] for name in sets]
    return Table(
        key="training",
        title="Training",
        note=HOW_TRAINING,
        columns=(*name_columns(results), "set", "final accuracy", "best accuracy", "final loss", "steps"),
        rows=rows,
    )


def _is_validated(run: Run, pair_set: str) -> bool:
    return run.final_accuracy(pair_set) is not None or run.best_accuracy(pair_set) is not None


def _training_row(pair_set: str, runs: Sequence[Run]) -> list[Cell]:
    return [
        text_cell(pair_set),
        _over_runs((run.final_accuracy(pair_set) for run in runs), percent),
        _over_runs((run.best_accuracy(pair_set) for run in runs), percent),
        _over_runs((run.final_loss for run in runs), decimal),
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
            "Accuracies are validation accuracies at the last step." if sets else "",
        ),
        columns=(
            "run",
            *name_columns(results),
            "seed",
            "source",
            "state",
            "steps",
            "final loss",
            *(f"{name} accuracy" for name in sets),
            *(["error"] if any(run.error for run in results.runs) else []),
        ),
        rows=[
            _run_row(run, name_cells(results, run.variant), sets, any(other.error for other in results.runs))
            for run in results.runs
        ],
    )


def _run_row(run: Run, named: Sequence[Cell], sets: Sequence[str], has_errors: bool) -> list[Cell]:
    return [
        text_cell(run.name),
        *named,
        NOTHING if run.seed is None else Cell(text=str(run.seed), value=run.seed),
        text_cell(run.source),
        Cell(text="FAILED" if run.state == "failed" else run.state, value=run.state),
        NOTHING if run.steps is None else Cell(text=f"{run.steps:,}", value=run.steps),
        _over_runs([run.final_loss], decimal),
        *(_over_runs([run.final_accuracy(name)], percent) for name in sets),
        *([text_cell(run.error or "")] if has_errors else []),
    ]


# -------------------------------------------------------------------------------------------------------- texts


def text_cell(text: str) -> Cell:
    """A cell of a text; it has no value if the text is empty."""
    return Cell(text=text, value=text or None)


def _sentences(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _transposed(columns: Sequence[Sequence[Cell]]) -> list[Sequence[Cell]]:
    return [list(row) for row in zip(*columns, strict=True)]


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()


def _distinct_keys(tables: Sequence[Table]) -> list[Table]:
    """The tables; if two names give the same key, the later one is numbered."""
    found: dict[str, Table] = {}
    for table in tables:
        key, count = table.key, 1
        while key in found:
            count += 1
            key = f"{table.key}_{count}"
        found[key] = replace(table, key=key)
    return list(found.values())
