"""Tables on stdout, and what the commands `evaluate`, `logs` and `profile` print.

Tables are complete also where stdout is not a terminal.
"""

import errno
import os
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from facebones.reporting.words import BUSY, MARKS, RATES, detail_words, mark_best, metric_words, set_words
from facebones.system.number_format import p_words, percent, percent_interval, points, small_rate
from facebones.system.progress import printable, tell

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 240  # columns at least, if stdout is not a terminal
MOST_MODELS_BY_PAIRS = 4  # with more, only the tests against the best are printed; the JSON has all

PROFILE_COLUMNS = {  # heading: key of a row, unit, format
    "network": ("name", 1, "{}"),
    "parameters": ("parameters", 1, "{:,}"),
    "unused": ("unused_parameters", 1, "{:,}"),
    "MACs": ("macs", 1, "{:,}"),
    "2 x MACs": ("flops_2_macs", 1, "{:,}"),
    "2 x MACs + BN + act. + pool": ("flops_mixfacenet", 1, "{:,}"),
    "activations": ("activations", 1, "{:,}"),
    "weights, MB": ("weights_bytes", 1e6, "{:,.2f}"),
    "p50, ms": ("latency_p50_ms", 1, "{:,.2f}"),
    "p90, ms": ("latency_p90_ms", 1, "{:,.2f}"),
    "images/s": ("throughput_images_per_second", 1, "{:,.1f}"),
    "peak, MB": ("peak_memory_bytes", 1e6, "{:,.1f}"),
}

TIMED = ("latency_p50_ms", "latency_p90_ms", "throughput_images_per_second")
MetricJson = Mapping[str, Any]  # of a result file, format 2


# --------------------------------------------------------------------------------------------------------- tables


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows of text under column names; columns of numbers or "-" are right-aligned.

    A title may have several lines; a line feed in a cell, as of a file's name, is escaped.

    In a narrow terminal, headings and texts wrap at spaces, numbers never. A table that still does not fit is printed
    as one block per row, with one line per column.
    """
    from rich.table import Table
    from rich.text import Text

    plain = partial(printable, breaks=False)
    columns, rows, title = [*map(plain, columns)], [[*map(plain, row)] for row in rows], printable(title)
    console = _standard_output()
    room = console.width if console.is_terminal else PIPED_WIDTH
    widths = _fitted(columns, rows, room - _frame(columns))
    needed = sum(widths) + _frame(columns)
    for line in title.splitlines():
        console.print(Text("\n".join(_broken_at_blanks(line, room)), style="table.title"), soft_wrap=True)
    if needed > room and console.is_terminal:
        _print_blocks(console, columns, rows)
        return
    console.width = max(needed, room)
    table = Table()
    for number, name in enumerate(columns):
        numeric = all(row[number].lstrip("-+")[:1].isdigit() or row[number] == "-" for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", width=widths[number])
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def print_items(texts: Sequence[str]) -> None:
    """Print texts as a list, one a line; on a terminal, wrapped at spaces."""
    from rich.console import Console

    console = Console()
    for text in texts:
        tell(*(_broken_at_blanks(text, console.width, "* ", "  ") if console.is_terminal else [f"* {text}"]))


def _standard_output() -> "Console":
    """A console whose reader may go away, as `head` does: like any output then, where Rich would exit with status 1."""
    from rich.console import Console

    class StandardOutput(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return StandardOutput()


def _print_blocks(console: "Console", columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one block per row: its first cell, and below it a line for each other cell that is not empty."""
    from rich.text import Text

    margin = max(map(len, columns[1:]), default=0) + len("  : ")
    for first, *others in rows:
        console.print(Text(first, style="table.header"), soft_wrap=True)
        for name, cell in zip(columns[1:], others, strict=True):
            if cell:
                tell(*_broken_at_blanks(cell, console.width, f"  {name}:".ljust(margin), " " * margin))


def _broken_at_blanks(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """Wrap text at spaces, with a margin for the first and the later lines; a longer word stays whole."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of the columns: that of their content, the widest narrowed until all fit or none can shrink."""
    from rich.cells import cell_len

    widths, least = [], []
    for number, name in enumerate(columns):
        cells = [row[number] for row in rows]
        pieces = [*name.split(), *(piece for cell in cells for piece in _unbroken(cell))]
        widths.append(max(map(cell_len, [name, *cells])))
        least.append(max(map(cell_len, pieces), default=0))
    while sum(widths) > room:
        loose = [number for number, width in enumerate(widths) if width > least[number]]
        if not loose:
            break
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths


def _unbroken(cell: str) -> list[str]:
    """The parts of a cell that stay on one line: words, or a whole number with unit, interval and mark."""
    is_number = cell[:1].isdigit() or cell.startswith(("+", "-", "<"))
    return [cell] if is_number else cell.split()


def _frame(columns: Sequence[str]) -> int:
    """Width of the borders: one and two spaces per column, and the last border."""
    return 3 * len(columns) + 1


# ---------------------------------------------------------------------------------------------------- evaluations


def print_evaluation(content: Mapping[str, Any]) -> None:
    """Print the result of an evaluation: of each set the metrics of the models, and the tests between them.

    Args:
        content: of a result file, format 2.
    """
    for name, model in content["models"].items():
        parts = [model.get("backbone"), model.get("checkpoint", model.get("scores")) or "random weights"]
        tell(f"{name}: {', '.join(part for part in parts if part)}")
    models = list(content["models"])
    for section in content["results"]:
        metrics = section["metrics"]
        title = ": ".join(filter(None, [set_words(section), _sizes_words(section)]))
        print_table(*_metric_table(metrics, models), title=title)
        for metric in metrics:
            if metric["reason"] is not None:
                tell(f"{metric_words(metric)}: not measured; {metric['reason']}")
        for note in section.get("notes") or ():
            tell(f"note: {note}")
        _print_details(section)
        print_tests(metrics, models, title)


def print_calibration(content: Mapping[str, Any]) -> None:
    """Print the thresholds of a model, and what its scores are worth as evidence.

    Args:
        content: what `calibrate` returns.
    """
    rows = []
    for one in content["thresholds"]:
        tar = one["true_accept_rate"], one["interval"]["low"], one["interval"]["high"]
        accepted = f"{one['accepted']:,} of {one['impostors']:,}"
        rows.append(
            [
                small_rate(one["false_match_rate"]),
                f"{one['threshold']:.4f}",
                accepted,
                f"{one['upper_bound']:.2g}",
                percent_interval(*tar),
            ]
        )
    confidence = content["thresholds"][0]["confidence"]
    columns = ["FMR at most", "accept cosines from", "impostor pairs accepted", f"bound, {confidence:g}", "TAR"]
    print_table(columns, rows, title=", ".join(one["set"] for one in content["sets"]))
    if unknown := [one["set"] for one in content["sets"] if one["people"] is None]:
        of = f" of {', '.join(unknown)}" if len(unknown) < len(content["sets"]) else ""
        tell(f"note: who is in the pairs{of} is not known, so these impostor pairs count as independent of each other")
    ratio = content["likelihood_ratio"]
    cost = "unknown" if ratio["cllr"] is None else f"{ratio['cllr']:.4f} bits"
    tell(
        f"log-likelihood ratio = {ratio['slope']:.3f} x cosine {ratio['intercept']:+.3f}; its cost Cllr {cost}, of"
        f" which the model itself {ratio['least_cllr']:.4f}"
    )


def _sizes_words(section: Mapping[str, Any]) -> str:
    sizes = section.get("sizes") or {}
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sizes.items() if count is not None)


def metric_cells(metric: MetricJson, models: Sequence[str]) -> list[str]:
    """Each model's value with its interval; of several models, the best and those like it are marked."""
    values, intervals = metric["values"], metric["intervals"]
    cells = []
    for model in models:
        if model not in values:
            cells.append("-")
        elif model in intervals:
            cells.append(percent_interval(values[model], intervals[model]["low"], intervals[model]["high"]))
        else:
            cells.append(percent(values[model]))
    if len(models) == 1 or metric.get("best") not in models:
        return cells
    alike = [model in metric["not_different_from_best"] for model in models]
    return mark_best(cells, models.index(metric["best"]), alike)


def _metric_table(metrics: Sequence[MetricJson], models: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a row per metric, or a row per model if there are more models than metrics."""
    cells = [metric_cells(metric, models) for metric in metrics]
    if len(models) <= len(metrics):
        return ["metric", *models], [[metric_words(one), *row] for one, row in zip(metrics, cells, strict=True)]
    columns = ["model", *map(metric_words, metrics)]
    return columns, [[model, *(row[place] for row in cells)] for place, model in enumerate(models)]


def _print_details(section: Mapping[str, Any]) -> None:
    """Print what else a protocol says of each model: its single values, and its lists of records."""
    printed = {metric["name"] for metric in section["metrics"]} | set(section.get("sizes") or {})
    printed.add("accuracy_shuffled")  # a metric of its own
    printed |= {key for metric in section["metrics"] if metric["reason"] for key in _published(metric)}
    records: dict[str, list[Mapping[str, Any]]] = {}
    for model, content in (section.get("details") or {}).items():
        values = {key: value for key, value in content.items() if _is_single(value) and key not in printed}
        records.setdefault("", []).append({"model": model, **values})
        for key, value in content.items():
            if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
                records.setdefault(key, []).extend({"model": model, **one} for one in value)
    for title, rows in records.items():
        columns = list(dict.fromkeys(key for row in rows for key in row if _is_told(key, rows)))
        if len(columns) > 1:
            cells = [[_detail(key, row.get(key)) for key in columns] for row in rows]
            print_table([detail_words(key) for key in columns], cells, title=detail_words(title))


def _published(metric: MetricJson) -> tuple[str, ...]:
    """Details that say by the published rule what a metric says exactly; not told where that cannot be measured."""
    is_published = metric["name"] == "tar" and metric["at"] == {"far": 0.001}
    return ("tar_at_far_1e3", "tar_at_far_1e3_std", "far_reached") if is_published else ()


def _is_single(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)


def _is_told(key: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return key == "model" or any(isinstance(row.get(key), int | float) for row in rows)


def _detail(key: str, value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return "-" if value is None else str(value)
    if key in RATES:
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def print_tests(metrics: Sequence[MetricJson], models: Sequence[str], title: str) -> None:
    """Print the tests between every two models, or against the best if there are many models."""
    rows = []
    for metric in metrics:
        shown = metric["comparisons"]
        if len(models) > MOST_MODELS_BY_PAIRS:
            shown = [one for one in shown if metric["best"] in (one["first"], one["second"])]
        rows += [_test_row(metric_words(metric), comparison) for comparison in shown]
    if rows:
        tell(MARKS)
        columns = ("metric", "models", "difference in points [95 %]", "p", "p after Holm", "test")
        print_table(columns, rows, title=f"{title}: differences")


def _test_row(name: str, comparison: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = (comparison["interval"][end] for end in ("low", "high"))
    return (
        name,
        f"{comparison['first']} - {comparison['second']}",
        f"{points(comparison['difference'])} [{points(low)}, {points(high)}]",
        p_words(comparison["p_value"]),
        p_words(comparison["adjusted"]),
        comparison["method"],
    )


# ---------------------------------------------------------------------------------------------------------- logs


def print_logs(summary: Mapping[str, Any]) -> None:
    """Print what `importers` found in the log files, and the accuracy on each set."""
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
            _rate(row["final_accuracy"], row["final_accuracy_std"]),
            _rate(row["best_accuracy"]),
        ]
        for row in summary["sets"]
    ]
    if sets:
        print_table(["set", "validations", "last step", "last accuracy", "best accuracy"], sets)
    if summary["training_lines"]:
        steps = f"steps {summary['first_step']} to {summary['last_step']}, {summary['epochs']} epochs started"
        tell(f"{summary['training_lines']} training lines: {steps}")
    tell(f"run folder: {summary['output']}")


def _rate(rate: float | None, deviation: float | None = None) -> str:
    return "-" if rate is None else percent(rate, deviation)


# ---------------------------------------------------------------------------------------------------------- costs


def profile_table(result: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Column names and rows of a profile (the content of profile.json); unknown values are "-"."""
    rows: list[Sequence[str]] = []
    for row in result["networks"]:
        named = row | {"name": with_form(row["name"], row.get("form"))}
        cells = {key: _cell(named[key], unit, form) for key, unit, form in PROFILE_COLUMNS.values()}
        if _is_busy(row):
            cells |= {key: f"{cells[key]} {BUSY}" for key in TIMED}
        rows.append(list(cells.values()))
    return tuple(PROFILE_COLUMNS), rows


def with_form(name: str, form: str | None) -> str:
    """The name of a network, and its form if it has several."""
    return f"{name} ({form} form)" if form else name


def profile_headline(result: Mapping[str, Any]) -> str:
    """The conditions of a profile, in two lines: the title of its table and plot."""
    facts = result["conditions"]
    layout = ", channels last" if facts["channels_last"] else ""
    providers = {row["provider"] for row in result["networks"]} - {None}
    busy = f"; {BUSY}: the machine did other work meanwhile" if any(map(_is_busy, result["networks"])) else ""
    onnx = f"; .onnx in ONNX Runtime ({', '.join(providers)}) at the file's own precision" if providers else ""
    return (
        f"{facts['device']}: {facts['processor']}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}, "
        f"{facts['precision']}{layout}, torch {facts['torch']}{onnx}\n"
        f"latency of one {facts['image_size']}x{facts['image_size']} image; "
        f"images/s and peak memory at batch {facts['batch_size']}{busy}"
    )


def _is_busy(row: Mapping[str, Any]) -> bool:
    return row.get("busy") is True


def _cell(value: Any, unit: float, form: str) -> str:
    if value is None:
        return "-"
    return form.format(value if unit == 1 else value / unit)
