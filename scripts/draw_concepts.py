"""Draw the pictures of docs/concepts, each in a light and in a dark form, from functions of the package.

    python scripts/draw_concepts.py [FOLDER]

Scores are drawn from normal distributions with fixed seeds; everything else is computed as an evaluation, a report or a
training computes it. Run it after a change of a margin, a protocol, a statistic or a backbone.
"""

import sys
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from facebones.backbones.catalogue import read_catalogue
from facebones.evaluation.verification import verify_pairs
from facebones.heads import create_head, lookup_head
from facebones.reporting.plots.style import (
    COLOURS,
    fix_layout,
    in_percent,
    label_axes,
    line_only,
    marker_only,
    model_styles,
    new_figure,
    save_plot,
)
from facebones.statistics.bootstrap import resample_accuracy
from facebones.statistics.curves import corners, roc
from facebones.statistics.significance import compare_models, outcomes_interval, over_seeds

FOLDER = Path(__file__).parents[1] / "docs" / "concepts"
INK, PALE, GRID = "#e9e7e2", "#a9b0b6", "#353b41"  # of the dark form
# The house's black and blue are too dark on a dark page.
ON_DARK = {"#000000": INK, "black": INK, "#0072B2": "#56B4E9", "#56B4E9": "#b2abd2"}
MEAN_NORM, NORM_DEVIATION = 60.0, 12.0  # running averages of AdaFace in some training
PAIRS, GENUINE, IMPOSTOR = 6000, (0.55, 0.16), (0.02, 0.11)  # mean and deviation of the cosines


def canvas(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure of one plot that stays readable on a phone."""
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def logits(name: str, cosine: np.ndarray, norm: float = 20.0, **options: Any) -> np.ndarray:
    """What a head makes of the cosine of the true class, without the scale."""
    head = create_head(name, lookup_head(name).options(scale=1.0, **options), 2, 2)
    cosines = torch.tensor(np.stack([cosine, np.zeros_like(cosine)], 1))
    column, norms = torch.zeros(len(cosine), dtype=torch.long), torch.full((len(cosine),), norm, dtype=torch.float64)
    state = dict(head.named_buffers()) | {"mean": torch.tensor(MEAN_NORM), "deviation": torch.tensor(NORM_DEVIATION)}
    with torch.no_grad():
        return head.margin(cosines, column, norms, state)[:, 0].numpy()


# ---------------------------------------------------------------------------------------------------------- margin


def margin_angle() -> Figure:
    """The logit of the true class over the angle."""
    figure, axes = canvas()
    degrees = np.linspace(0, 150, 301)
    cosine = np.cos(np.radians(degrees))
    curves = {
        "no margin: cos t": logits("combined", cosine, m2=0.0),
        "ArcFace: cos(t + 0.5)": logits("arcface", cosine),
        "CosFace: cos t - 0.4": logits("cosface", cosine),
    }
    for (label, values), style in zip(curves.items(), model_styles(curves).values(), strict=True):
        axes.plot(degrees, values, label=label, **line_only(style))
    label_axes(axes, "", "angle t between image and centre of its person, degrees", "logit of the true class / scale")
    axes.legend(frameon=False)
    return figure


def margin_norm() -> Figure:
    """The logit at one angle over the norm of the embedding."""
    figure, axes = canvas()
    norms, cosine = np.linspace(5, 120, 116), np.full(1, np.cos(np.radians(60)))
    styles = model_styles(["no margin", "ArcFace", "AdaFace", "MagFace"])
    heads = {"no margin": ("combined", {"m2": 0.0}), "ArcFace": ("arcface", {}), "AdaFace": ("adaface", {})}
    for label, (name, options) in (heads | {"MagFace": ("magface", {})}).items():
        values = [logits(name, cosine, norm, **options)[0] for norm in norms]
        axes.plot(norms, values, label=label, **line_only(styles[label]))
    label_axes(axes, "", "norm of the embedding", "logit at an angle of 60 degrees / scale")
    axes.set_ylim(-0.62, 0.62)
    axes.legend(frameon=False, ncols=2)
    return figure


# -------------------------------------------------------------------------------------------------------- protocol


def drawn_cosines(genuine: int, impostors: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of pairs, genuine and impostor ones alternately where there are as many, and which are genuine."""
    random = np.random.default_rng(seed)
    cosine = np.concatenate([random.normal(*GENUINE, genuine), random.normal(*IMPOSTOR, impostors)]).clip(-1, 1)
    is_same = np.arange(genuine + impostors) < genuine
    order = random.permutation(len(cosine))
    return cosine[order], is_same[order]


def protocol_scores() -> Figure:
    """The scores of a pair set, and the thresholds of its ten folds."""
    cosine, is_same = drawn_cosines(PAIRS // 2, PAIRS // 2)
    second = np.stack([cosine, np.sqrt(1 - cosine**2)], 1)
    embeddings = np.stack([np.broadcast_to([1.0, 0.0], second.shape), second], 1).reshape(-1, 2)
    result = verify_pairs(embeddings, is_same)
    figure, axes = canvas()
    bins = np.linspace(-0.4, 1, 57).tolist()
    for kind, label, colour in ((~is_same, "two people", COLOURS[1]), (is_same, "one person", COLOURS[0])):
        axes.hist(cosine[kind], bins, color=colour, alpha=0.65, label=label)
    for number, distance in enumerate(result.fold_threshold):
        label = "thresholds of the ten folds" if number == 0 else None
        axes.axvline(1 - distance / 2, color=COLOURS[-1], linewidth=0.8, linestyle="--", label=label)
    label_axes(axes, "", "cosine of the two embeddings", "pairs")
    axes.text(0.98, 0.55, f"accuracy {100 * result.accuracy:.2f} %", transform=axes.transAxes, ha="right")
    axes.legend(frameon=False)
    return figure


def protocol_roc() -> Figure:
    """True accept rate over false accept rate, from few and from many impostor pairs."""
    figure, axes = canvas()
    counts = {"3,000 impostor pairs, as in LFW": 3000, "1,000,000, from a folder of people": 1_000_000}
    for (label, impostors), style in zip(counts.items(), model_styles(counts).values(), strict=True):
        curve = corners(roc(*drawn_cosines(3000, impostors, seed=3)))
        shown = curve.false_accept_rate > 0
        axes.step(curve.false_accept_rate[shown], curve.true_accept_rate[shown], where="post", label=label,
                  **line_only(style))  # fmt: skip
    axes.axvline(1 / 3000, color=COLOURS[-1], linewidth=0.8, linestyle="--")
    axes.text(1.15 / 3000, 0.52, "1 in 3,000", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(8e-7, 0.3)
    axes.set_ylim(0.5, 1.005)
    label_axes(axes, "", "false accept rate (FAR)", "true accept rate (TAR), %")
    in_percent(axes.yaxis)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.08))
    return figure


# ----------------------------------------------------------------------------------------------------- uncertainty


def uncertainty_pairs() -> Figure:
    """Half of the width of the 95 % interval over the number of pairs."""
    figure, axes = canvas()
    pairs = np.unique(np.geomspace(200, 200_000, 61).astype(int))
    rates = (0.9, 0.97, 0.995)
    for rate, style in zip(rates, model_styles(map(str, rates)).values(), strict=True):
        found = [outcomes_interval(rate, int(count)) for count in pairs]
        half = [50 * (interval.high - interval.low) for interval in found]
        axes.plot(pairs, half, label=f"accuracy {100 * rate:g} %", **line_only(style))
    axes.axvline(PAIRS, color=COLOURS[-1], linewidth=0.8, linestyle="--")
    axes.text(1.08 * PAIRS, 4, "LFW: 6,000 pairs", fontsize=9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_yticks([0.01, 0.03, 0.1, 0.3, 1, 3], ["0.01", "0.03", "0.1", "0.3", "1", "3"])
    axes.minorticks_off()
    label_axes(axes, "", "pairs", "half of the 95 % interval, points")
    axes.legend(frameon=False, loc="lower left")
    return figure


def uncertainty_difference() -> Figure:
    """Two models on the same pairs: their intervals overlap, and the interval of the difference excludes 0."""
    random = np.random.default_rng(5)
    hard = random.normal(size=PAIRS)
    correct = [hard + 0.25 * random.normal(size=PAIRS) < bound for bound in (2.06, 1.95)]
    names = ["model A", "model B"]
    compared = compare_models(names, [resample_accuracy(correct, np.arange(PAIRS) % 2 == 0)])[0]
    difference, figure = compared.comparisons[0], new_figure(6.4, 3.0)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (name, style) in enumerate(model_styles(names).items()):
        bar(left, place, compared.values[name], compared.intervals[name], style)
    left.set_xticks([0, 1], names)
    left.set_xlim(-0.6, 1.6)
    label_axes(left, "each by itself", "", "accuracy, %")
    bar(right, 0, difference.difference, difference.interval, model_styles("abc")["c"])
    right.axhline(0, color=COLOURS[-1], linewidth=0.8)
    right.set_xticks([0], [f"A - B\n(p = {difference.p_value:.2g})"])
    right.set_xlim(-1, 1)
    label_axes(right, "on the same pairs", "", "difference, points")
    return figure


def bar(axes: Axes, place: float, value: float, interval: Any, style: Mapping[str, Any]) -> None:
    """A value with its interval, in percent."""
    low, high = 100 * (value - interval.low), 100 * (interval.high - value)
    axes.errorbar([place], [100 * value], [[low], [high]], capsize=4, **marker_only(dict(style)))


def uncertainty_seeds() -> Figure:
    """Twelve networks of one quality: the best of them, by one seed each and by the mean of three."""
    random, figure = np.random.default_rng(2), canvas()[0]
    axes, spread = figure.axes[0], 0.006
    names = [f"{number + 1}" for number in range(12)]
    for place, _ in enumerate(names):
        seeds = 0.95 + spread * random.normal(size=3)
        found = over_seeds(seeds.tolist())
        axes.plot([place] * 3, 100 * seeds, linestyle="", marker="o", markersize=4, color=COLOURS[5],
                  label=None if place else "one seed")  # fmt: skip
        bar(axes, place, found.mean, found.interval, {"color": COLOURS[0], "marker": "s", "linestyle": "", "zorder": 3})
    axes.plot([], [], color=COLOURS[0], marker="s", linestyle="", label="mean of three, 95 % interval")
    axes.axhline(95, color=COLOURS[-1], linewidth=0.8, linestyle="--", label="true accuracy of all twelve")
    axes.set_xticks(range(12), names)
    label_axes(axes, "", "network", "accuracy, %")
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure


# ------------------------------------------------------------------------------------------------------------ cost


def cost_counts() -> Figure:
    """Parameters and multiply-accumulates of all backbones."""
    figure, axes = canvas(6.4, 5.0)
    families = [(name, list(rows)) for name, rows in groupby(read_catalogue(), key=lambda row: row["family"])]
    styles = model_styles(name for name, _ in families)
    for name, rows in families:
        axes.plot([row["macs"] / 1e6 for row in rows], [row["parameters"] / 1e6 for row in rows], label=name,
                  **marker_only(styles[name]))  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([3, 10, 100, 1000, 10_000], ["3", "10", "100", "1,000", "10,000"])
    axes.set_yticks([0.5, 1, 5, 10, 50, 100], ["0.5", "1", "5", "10", "50", "100"])
    axes.minorticks_off()
    label_axes(axes, "", "multiply-accumulates of one image, millions", "parameters, millions")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")
    return figure


# ------------------------------------------------------------------------------------------------------------ files


PICTURES: tuple[Callable[[], Figure], ...] = (
    *(margin_angle, margin_norm, protocol_scores, protocol_roc),
    *(uncertainty_pairs, uncertainty_difference, uncertainty_seeds, cost_counts),
)


def darken(figure: Figure) -> None:
    """Text, frames and grids pale; colours that vanish on a dark page lighter."""
    for text in figure.findobj(Text):
        text.set_color(INK)
    for axes in figure.axes:
        axes.tick_params(colors=PALE)
        axes.grid(True, color=GRID)
        for spine in axes.spines.values():
            spine.set_color(PALE)
        for patch in axes.patches:
            colour, alpha = to_hex(patch.get_facecolor()).upper(), patch.get_alpha()
            patch.set(facecolor=ON_DARK.get(colour, colour), alpha=alpha)
    for item in figure.findobj(lambda artist: hasattr(artist, "get_color") and not isinstance(artist, Text)):
        if isinstance(colour := item.get_color(), str) and colour in ON_DARK:
            item.set_color(ON_DARK[colour])


def draw(folder: Path) -> None:
    """Write all pictures."""
    for picture in PICTURES:
        figure = picture()
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        fix_layout(figure)
        for ending in ("", "_dark"):
            if ending:
                darken(figure)
            with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
                save_plot(figure, folder / f"{picture.__name__}{ending}.svg")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
