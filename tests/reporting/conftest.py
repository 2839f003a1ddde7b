"""Figures as they are drawn, checks of every plot, and results for the page."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from facebones.reporting.results import Cost, EvaluatedSet, MetricResult, Results, Run
from facebones.reporting.tables import Cell, Table
from facebones.statistics.curves import roc

LFW = EvaluatedSet("pairs", "lfw")
SEARCHES = EvaluatedSet("ijb_identification", "faces")


@pytest.fixture
def drawn(monkeypatch):
    """Figures, each once, as they are written."""
    figures, save = [], Figure.savefig

    def remember(figure, *arguments, **options):
        if figure not in figures:
            figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


@pytest.fixture(scope="session")
def assert_is_image():
    """That a file can be read as an image with something on it, and nothing temporary is left beside it."""

    def check(path):
        image = cv2.imread(str(path))
        assert image is not None
        assert image.std() > 0
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    return check


@pytest.fixture(scope="session")
def assert_all_is_readable():
    """That no text of a plot of curves is cut, and the legend is whole, below the axes and their labels."""

    def check(figure):
        (axes,), (legend,) = figure.axes, figure.legends
        figure.draw_without_rendering()
        whole, inner, box = figure.bbox, axes.get_tightbbox(), legend.get_window_extent()
        assert box.y1 <= inner.y0
        for part in (inner, box):
            assert part.x0 >= 0 and part.x1 <= whole.width
            assert part.y0 >= 0 and part.y1 <= whole.height
        assert axes.bbox.height > 3.9 * figure.dpi  # the legend has taken nothing of the curves' height

    return check


def _page_run(backbone, seed, **changes):
    """A finished run with a falling loss and two validations."""
    train = [
        {"kind": "train", "step": step, "loss": 20 / step, "learning_rate": 0.1 / step, "gradient_scale": 2.0**seed}
        for step in range(1, 40)
    ]
    validation = [{"kind": "validation", "set": "lfw", "step": step, "accuracy": step / 50} for step in (20, 40)]
    fields = {
        "name": f"{backbone}_seed{seed}",
        "backbone": backbone,
        "seed": seed,
        "folder": Path("runs") / str(seed),
        "recipe": {"training": {"epochs": 7}},
        "environment": {"device": "an abacus", "data": {"labels_sha256": "beef"}},
        "lines": train + validation,
    }
    return Run(**fields | changes)


def _page_metric(where, name, runs, backbones, **more):
    """Worse from one backbone to the next; the first differs from all others, which are alike."""
    values = {run.name: 0.95 - 0.05 * backbones.index(run.backbone) - 0.001 * run.seed for run in runs}
    comparisons = [
        {
            "first": first.name,
            "second": second.name,
            "difference": (difference := values[first.name] - values[second.name]),
            "interval": {"low": difference - half, "high": difference + half},
            "p_value": p_value,
            "adjusted": p_value,
        }
        for first, second in itertools.combinations(runs, 2)
        for is_clear in [backbones[0] in (first.backbone, second.backbone) or first.backbone == second.backbone]
        for p_value, half in [(0.001, 0.001) if is_clear else (0.6, 0.5)]
    ]
    intervals = {run: {"low": value - 0.02, "high": value + 0.02} for run, value in values.items()}
    measured = {"values": values, "intervals": intervals, "comparisons": comparisons, "main": True}
    return MetricResult(**where._asdict(), name=name, **measured, **more)


@pytest.fixture(scope="session")
def page_results():
    """Build results of so many backbones and seeds, with one pair set and one gallery; takes changes."""

    def build(backbones=("alpha", "beta", "gamma"), seeds=2, **changes):
        backbones = list(backbones)
        runs = [_page_run(backbone, seed) for backbone in backbones for seed in range(seeds)]
        draw = np.random.default_rng(0)
        is_same = np.arange(200) % 2 == 0
        fields = {
            "title": "A small study",
            "folders": [Path("study")],
            "runs": runs,
            "costs": {
                name: Cost(parameters=1000 * 4**place, macs=5_000_000 * 3**place, latency_ms=1.5 + place)
                for place, name in enumerate(reversed(backbones))
            },
            "metrics": [
                _page_metric(LFW, "accuracy", runs, backbones, chance=0.5),
                _page_metric(SEARCHES, "rank", runs, backbones, at={"rank": 1}),
            ],
            "curves": {LFW: {run.name: roc(is_same + draw.normal(size=200), is_same) for run in runs}},
            "cmc": {SEARCHES: {run.name: list(np.linspace(0.5, 1, 30)) for run in runs}},
            "conditions": {"processor": "a slide rule"},
            "recipe": {"optimizer": {"momentum": 0.875}},
            "notes": [],
            "command": "facebones compare small --output study",
        }
        return Results(**fields | changes)

    return build


@pytest.fixture(scope="session")
def page_tables():
    """The overview of the backbones, and a table of the runs with an empty cell."""

    def build(results):
        overview = [
            [Cell(text=name, value=name), Cell(text=f"{place} M", value=[2, 10, 1, 30][place % 4])]
            for place, name in enumerate(results.backbones)
        ]
        runs = [
            [Cell(text=run.name, value=run.name), Cell(text="-", value=None if run.seed == 0 else run.seed)]
            for run in results.runs
        ]
        return [
            Table(key="overview", title="At a glance", note="Of all.", columns=["backbone", "MACs"], rows=overview),
            Table(key="runs", title="All runs", note="Each one.", columns=["run", "seed"], rows=runs),
        ]

    return build
