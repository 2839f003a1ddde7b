"""What the commands that evaluate print: of each set or target the models' figures, and the tests between them."""

from collections.abc import Mapping, Sequence
from typing import Any

from facebones.reporting.comparison_table import figure_cells, print_tests, print_unmeasured
from facebones.reporting.console import print_table


def print_pairs(content: Mapping[str, Any]) -> None:
    """Print the figures of each pair set."""
    models = _print_models(content)
    for section in content["sets"]:
        figures, results = section["figures"], section["models"]
        columns = ["model", "accuracy [95 %]", "folds", "TAR@FAR=1e-3", "FAR reached"]
        rows = [
            [
                model,
                cell,
                f"+- {results[model]['accuracy_std']:.2%}",
                f"{results[model]['tar_at_far_1e3']:.2%} +- {results[model]['tar_at_far_1e3_std']:.2%}",
                f"{results[model]['far_reached']:.2e}",
            ]
            for model, cell in zip(models, figure_cells(figures["accuracy"], models), strict=True)
        ]
        _add_figures(columns, rows, figures, models, [name for name in figures if name != "accuracy"])
        columns.append("XNorm")
        for model, row in zip(models, rows, strict=True):
            row.append(f"{results[model]['xnorm']:.2f}")
        pairs = results[models[0]]["pairs"]
        _print_section(f"{section['set']}: {pairs:,} pairs", columns, rows, figures, models)


def print_templates(content: Mapping[str, Any]) -> None:
    """Print the 1:1 figures: of each FAR the strict reading with its interval, and the published one."""
    models = _print_models(content)
    for section in content["verification"]:
        figures, results = section["figures"], section["models"]
        columns = ["figure", "model", "value [95 %]", "as published", "FAR reached"]
        rows = []
        for name, figure in figures.items():
            for model, cell in zip(models, figure_cells(figure, models), strict=True):
                rows.append([name, model, cell, *_published(name, results[model]["rates"])])
        first = results[models[0]]
        title = (
            f"{section['name']}: {first['genuine']:,} genuine and {first['impostors']:,} impostor pairs of templates"
        )
        _print_section(title, columns, rows, figures, models)


def print_identification(content: Mapping[str, Any]) -> None:
    """Print the 1:N figures."""
    models, section = _print_models(content), content["identification"]
    figures = section["figures"]
    columns, rows = ["model"], [[model] for model in models]
    _add_figures(columns, rows, figures, models, list(figures))
    first = section["models"][models[0]]
    title = f"{section['name']} {content['setting']}: {first['probes']:,} probes, {first['subjects']:,} subjects"
    _print_section(title, columns, rows, figures, models)


def _print_models(content: Mapping[str, Any]) -> list[str]:
    """Say what each name stands for; returns the names."""
    for name, model in content["models"].items():
        backbone = f"{model['backbone']}, " if "backbone" in model else ""
        print(f"{name}: {backbone}{model.get('checkpoint') or model['scores']}")
    return list(content["models"])


def _add_figures(
    columns: list[str], rows: list[list[str]], figures: Mapping[str, Any], models: Sequence[str], names: Sequence[str]
) -> None:
    for name in names:
        columns.append(name if name == "AUC" or not name.startswith("TAR") else f"{name}, strict")
        for row, cell in zip(rows, figure_cells(figures[name], models), strict=True):
            row.append(cell)


def _published(name: str, rates: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    for rate in rates:
        if name == f"TAR at FAR {rate['far']:g}" and rate["published"] is not None:
            return f"{rate['published']:.2%}", f"{rate['far_reached']:.2e}"
    return "-", "-"


def _print_section(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], figures: Mapping[str, Any], models: Sequence[str]
) -> None:
    print_table(columns, rows, title=title)
    print_unmeasured(figures)
    print_tests(figures, models, title)
