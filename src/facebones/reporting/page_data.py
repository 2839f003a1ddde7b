"""What the pictures of the interactive page show, as plain lists and numbers for JSON; backbones by their places."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from facebones.reporting.plots.style import DASHES, MARKERS
from facebones.reporting.plots.thinning import thin_steps
from facebones.reporting.results import Figure, Results, Run
from facebones.statistics.curves import RocCurve, area_under_curve

# The colours of `figures.COLOURS`, each with a contrast of at least 3:1 to a light page and, second, to a dark one.
COLOURS = (
    ("#0072B2", "#3B9AE1"),
    ("#D55E00", "#F07F3C"),
    ("#00875F", "#2BC79A"),
    ("#B85C90", "#E3A0C6"),
    ("#A87400", "#F0B429"),
    ("#3288C0", "#A5D8F7"),
    ("#000000", "#F0EEE9"),
)
DASH_NAMES = dict(zip(DASHES, ("solid", "dash", "dot", "dashdot"), strict=True))
MARKER_NAMES = dict(zip(MARKERS, ("circle", "square", "triangle-up", "diamond", "triangle-down"), strict=True))
MOST_POINTS = 1000  # of a training line
MOST_RANKS = 200
COSTS = {"macs": "MACs of one image", "parameters": "parameters", "latency_ms": "latency of one image (ms)"}
TRAINING = {"loss": "Loss", "learning_rate": "Learning rate", "gradient_scale": "Gradient scale"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One of lines, a line for each run.

    Attributes:
        key: of its place in the page.
        group: the section, "roc", "cmc" or "training".
        title: heading.
        x: name of the axis.
        y: name of the axis.
        measure: what `value` of a line is; empty where a line has none.
        best: "highest" or "lowest" value; empty where neither is good.
        percent: that y are rates, shown in percent.
        log: that x is shown on a logarithmic axis.
        steps: that y holds from its x up to the next.
        lines: "model" is the place of the backbone, "run" its run's name; "x", "y" and "value".
    """

    key: str
    group: str
    title: str
    x: str
    y: str
    measure: str = ""
    best: str = ""
    percent: bool = False
    log: bool = False
    steps: bool = False
    lines: Sequence[Mapping[str, Any]]


def page_data(results: Results) -> dict[str, Any]:
    """All that the page's script draws from; every number is finite or None."""
    return {
        "models": model_looks(results.backbones),
        "costs": _costs(results),
        "figures": [_figure(results, figure) for figure in results.main_figures()],
        "pictures": [asdict(picture) for picture in line_pictures(results)],
    }


def model_looks(names: Sequence[str]) -> list[dict[str, str]]:
    """Name, colours, dash and marker of each backbone, in the order of `figures.model_styles`."""
    dashes, markers = list(DASH_NAMES.values()), list(MARKER_NAMES.values())
    return [
        {
            "name": name,
            "light": COLOURS[index % len(COLOURS)][0],
            "dark": COLOURS[index % len(COLOURS)][1],
            "dash": dashes[index % len(dashes)],
            "marker": markers[index % len(markers)],
        }
        for index, name in enumerate(names)
    ]


def line_pictures(results: Results) -> list[Picture]:
    """ROC and CMC of each set, then the course of the training; pictures without a line are left out."""
    pictures = [*_roc_pictures(results), *_cmc_pictures(results), *_training_pictures(results)]
    return [picture for picture in pictures if picture.lines]


def _costs(results: Results) -> list[dict[str, Any]]:
    """Each cost that some backbone has."""
    found = []
    for name, title in COSTS.items():
        values = [getattr(results.costs.get(backbone), name, None) for backbone in results.backbones]
        if any(value is not None for value in values):
            found.append({"name": name, "title": title, "values": values})
    return found


def _figure(results: Results, figure: Figure) -> dict[str, Any]:
    spreads = [results.spread(figure, backbone) for backbone in results.backbones]
    return {
        "title": figure.title,
        "lower_is_better": figure.lower_is_better,
        "values": [
            None
            if spread is None
            else {"mean": spread.mean, "low": spread.low, "high": spread.high, "runs": len(spread.values)}
            for spread in spreads
        ],
    }


def _roc_pictures(results: Results) -> list[Picture]:
    return [
        Picture(
            key=f"roc{number}",
            group="roc",
            title=where,
            x="false accept rate",
            y="true accept rate (%)",
            measure="area under the curve",
            best="highest",
            percent=True,
            log=True,
            steps=True,
            lines=_lines(results, partial(_roc_line, curves)),
        )
        for number, (where, curves) in enumerate(results.curves.items())
    ]


def _roc_line(curves: Mapping[str, RocCurve], run: Run) -> dict[str, Any] | None:
    curve = curves.get(run.name)
    if curve is None:
        return None
    x, y = thin_steps(curve.false_accept_rate, curve.true_accept_rate, min(1 / curve.impostors, 0.1))
    return {"x": _numbers(x), "y": _numbers(y), "value": area_under_curve(curve)}


def _cmc_pictures(results: Results) -> list[Picture]:
    return [
        Picture(
            key=f"cmc{number}",
            group="cmc",
            title=where,
            x="rank",
            y="found up to this rank (%)",
            measure="Rank-1",
            best="highest",
            percent=True,
            log=True,
            steps=True,
            lines=_lines(results, partial(_cmc_line, rates)),
        )
        for number, (where, rates) in enumerate(results.cmc.items())
    ]


def _cmc_line(rates_of: Mapping[str, Sequence[float]], run: Run) -> dict[str, Any] | None:
    rates = rates_of.get(run.name, ())
    if not rates:
        return None
    ranks = np.unique(np.geomspace(1, len(rates), MOST_RANKS).round().astype(int))
    return {"x": ranks.tolist(), "y": _numbers(rates[rank - 1] for rank in ranks), "value": rates[0]}


def _training_pictures(results: Results) -> list[Picture]:
    pictures = [
        Picture(
            key=key,
            group="training",
            title=title,
            x="step",
            y=title.lower(),
            measure="last value",
            best="lowest" if key == "loss" else "",
            lines=_lines(results, partial(_trained, key)),
        )
        for key, title in TRAINING.items()
        if key != "gradient_scale" or results.scales_gradients
    ]
    return pictures + [
        Picture(
            key=f"validation{number}",
            group="training",
            title=f"Accuracy on {name}",
            x="step",
            y="accuracy (%)",
            measure="last value",
            best="highest",
            percent=True,
            lines=_lines(results, partial(_validated, name)),
        )
        for number, name in enumerate(results.pair_sets)
    ]


def _trained(key: str, run: Run) -> dict[str, Any] | None:
    return _course(run.of_kind("train"), key)


def _validated(pair_set: str, run: Run) -> dict[str, Any] | None:
    return _course([line for line in run.of_kind("validation") if line.get("set") == pair_set], "accuracy")


def _course(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any] | None:
    """A value over the steps; of more than MOST_POINTS evenly chosen ones, the first and the last among them."""
    rows = [row for row in rows if row.get(key) is not None and row.get("step") is not None]
    if not rows:
        return None
    places = np.unique(np.linspace(0, len(rows) - 1, MOST_POINTS).round().astype(int))
    x, y = ([rows[place][name] for place in places] for name in ("step", key))
    values = _numbers(y)
    return {"x": x, "y": values, "value": values[-1]}


def _lines(results: Results, line_of: Callable[[Run], dict[str, Any] | None]) -> list[dict[str, Any]]:
    places = {name: place for place, name in enumerate(results.backbones)}
    return [
        {"model": places[run.backbone], "run": run.name} | line
        for run in results.runs
        if (line := line_of(run)) is not None
    ]


def _numbers(values: Iterable[float]) -> list[float | None]:
    """With the digits that can be seen; a loss that overflowed leaves a gap."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
