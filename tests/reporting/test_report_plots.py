"""Plots of a report: all that the results can fill and no other, each with what it must show, whatever the names."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation

from facebones.errors import DataError
from facebones.reporting.plots.labels import overlaps
from facebones.reporting.plots.report_plots import PLOT_KINDS, Plots, report_plots, slug, write_plots
from facebones.reporting.plots.style import model_styles
from facebones.reporting.results import Cost, EvaluatedSet, MetricResult, Results, Run
from facebones.statistics.curves import area_under_curve, roc

HOSTILE = ["$x^{", "<script>&|", "_a\nb\x07\x00", "100 % \\frac", "name \udcff", "../../etc", "", "\u65e5\u672c"]
FOURTEEN = [f"backbone_{number:02}_with_a_long_name" for number in range(14)]
CONDITIONS = {"device": "cpu", "processor": "A processor", "threads": 4, "precision": "bf16", "batch_size": 32}
QUALITY = 0.9  # of the worst of them


def made_up_lines(rank, seed, steps=40, sets=("lfw",), scale=1.0):
    draws = np.random.default_rng(100 * rank + seed)
    loss = 20 + 20 * np.exp(-np.arange(1, steps + 1) / 10) - 0.4 * rank + draws.normal(0, 0.4, steps)
    train = [
        {
            "kind": "train",
            "step": 10 * (i + 1),
            "loss": loss[i],
            "learning_rate": 0.1 / (i + 1),
            "gradient_scale": scale,
        }
        for i in range(steps)
    ]
    return train + [
        {"kind": "validation", "step": 10 * step, "set": name, "accuracy": accuracy(rank, seed) - 0.3 / step}
        for name in sets
        for step in range(4, steps + 1, 4)
    ]


def accuracy(rank, seed):
    return QUALITY + 0.003 * rank + 0.0012 * (seed - 1) * (1 + rank % 3)


def compared(values):
    """All pairs of runs; significant where they are more than a point apart."""
    names = list(values)
    return [
        {"first": one, "second": other, "difference": difference, "p_value": p_value, "adjusted": p_value,
         "interval": {"low": difference - half, "high": difference + half}}
        for index, one in enumerate(names)
        for other in names[index + 1 :]
        for difference in [values[one] - values[other]]
        for p_value, half in [(0.001, 0.001) if abs(difference) > 0.01 else (0.8, 0.05)]
    ]  # fmt: skip


def made_up_curve(quality, pairs=2000):
    is_same = np.arange(pairs) < pairs // 2
    return roc(np.random.default_rng(0).normal(size=pairs) + quality * is_same, is_same)


LFW = EvaluatedSet("pairs", "lfw")
SEARCHES = EvaluatedSet("ijb_identification", "IJB")


def made_up_metric(where, name, values, half=0.004, **more):
    intervals = {run: {"low": value - half, "high": value + half} for run, value in values.items()}
    known = {**where._asdict(), "name": name, "values": values, "intervals": intervals}
    return MetricResult(**known, comparisons=compared(values), **more)


def made_up_results(backbones, seeds=3, where="lfw", scale=1.0, **changes):
    runs = [
        Run(name=f"{name} seed {seed}", backbone=name, seed=seed, folder=Path("made up"),
            lines=made_up_lines(rank, seed, sets=(where,), scale=scale))
        for rank, name in enumerate(backbones)
        for seed in range(seeds)
    ]  # fmt: skip
    quality = {run.name: accuracy(backbones.index(run.backbone), run.seed) for run in runs}
    pairs, tar = EvaluatedSet("pairs", where), {name: value - 0.2 for name, value in quality.items()}
    everything = {
        "title": "made up",
        "folders": [],
        "runs": runs,
        "costs": {
            name: Cost(parameters=int(1e6 * 1.3**rank), macs=int(3e7 * 1.6 ** ((5 * rank) % 14)), latency_ms=2.0 + rank)
            for rank, name in enumerate(backbones)
        },
        "metrics": [
            made_up_metric(pairs, "accuracy", quality, main=True),
            made_up_metric(pairs, "tar", tar, at={"far": 0.01}, rule="strict"),
            made_up_metric(EvaluatedSet("ijb_verification", "IJB"), "tar", quality, at={"far": 1e-4}, main=True),
            made_up_metric(SEARCHES, "rank", quality, at={"rank": 1}, main=True),
        ],
        "curves": {pairs: {name: made_up_curve(20 * value - 16) for name, value in quality.items()}},
        "cmc": {SEARCHES: {name: 1 - (1 - value) / np.arange(1, 41) for name, value in quality.items()}},
        "conditions": CONDITIONS,
        "recipe": {},
        "notes": [],
        "command": "",
    }
    return Results(**everything | changes)


MAIN = ["lfw_accuracy", "ijb_1_1_tar_at_far_0_0001", "ijb_1_n_rank_1"]
ALL = [
    "loss",
    "learning_rate",
    "gradient_scale",
    "accuracy_lfw",
    "roc_lfw",
    "cmc_ijb_1_n",
    *(f"{metric}_against_{cost}" for metric in MAIN for cost in ("macs", "parameters", "latency")),
    *(f"tests_{metric}" for metric in MAIN),
]
OF_EACH_KIND = [name for name in ALL if not any(metric in name for metric in MAIN[1:])]


def step_lines(axes):
    return [line for line in axes.get_lines() if line.get_drawstyle() == "steps-post"]


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_plot_is_written_in_three_formats_and_twice_the_same(tmp_path):
    results = made_up_results(["a", "b"], seeds=2, scale=256.0)
    assert list(report_plots(results)) == ALL
    few = replace(results, metrics=results.metrics[:1])  # a plot of each kind
    first, second = (write_plots(few, tmp_path / name) for name in ("one", "two"))
    assert [file.name for file in first] == [f"{name}.{kind}" for name in OF_EACH_KIND for kind in PLOT_KINDS]
    assert sorted(first) == sorted((tmp_path / "one").iterdir())
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        if one.suffix == ".png":
            assert cv2.imread(str(one)).std() > 0


def test_what_cannot_be_filled_is_no_plot():
    run = Run(name="a", backbone="a", folder=Path("a"), state="failed")
    empty = made_up_results([], runs=[run], costs={"a": Cost(macs=5)}, metrics=[], curves={LFW: {}}, cmc={})
    plots = report_plots(empty)
    assert not plots and "loss" not in plots
    with pytest.raises(KeyError):
        plots["loss"]


def test_one_backbone_has_no_tests_and_an_unscaled_run_no_gradient_scale():
    names = list(report_plots(made_up_results(["a"], seeds=2)))
    assert names == [name for name in ALL if not name.startswith("tests_") and name != "gradient_scale"]


def test_costs_that_nobody_knows_are_left_out_and_counted():
    costs = {"a": Cost(macs=5), "b": Cost(macs=7, parameters=3), "c": Cost()}
    results = made_up_results(["a", "b", "c"], costs=costs)
    names = [name for name in report_plots(results) if name.startswith("lfw_accuracy_against")]
    assert names == ["lfw_accuracy_against_macs", "lfw_accuracy_against_parameters"]
    (axes,) = report_plots(results)[names[1]].axes
    assert "2 not shown: parameters unknown" in axes.get_title()


def test_a_plot_is_drawn_only_when_it_is_taken():
    taken = []
    plots = Plots({("a", "B!"): lambda: taken.append("a b"), ("a_b",): lambda: taken.append("a_b")})
    assert (list(plots), len(plots), "a_b_2" in plots, taken) == (["a_b", "a_b_2"], 2, True, [])
    assert plots["a_b_2"] is None
    assert taken == ["a_b"]


def test_names_of_files_are_safe_and_apart():
    names = ["LFW", "lfw", "../lfw", "lfw 2", "顔", "", "x" * 500]
    plots = Plots({("accuracy", name): lambda: None for name in names})
    assert len(plots) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]{1,80}", name) for name in plots)
    assert slug("顔") == "unnamed"


@pytest.mark.filterwarnings("error")
def test_hostile_names_are_drawn_as_they_stand(tmp_path):
    results = made_up_results(HOSTILE, seeds=1, where="$^{<&", scale=2.0)
    few = replace(results, metrics=results.metrics[:1])
    written = write_plots(few, tmp_path, ["svg"])
    assert len(written) == len(OF_EACH_KIND) and sorted(written) == sorted(tmp_path.iterdir())
    for name in ("loss", "roc_unnamed", "accuracy_against_macs", "tests_accuracy"):
        text = (tmp_path / f"{name}.svg").read_text()
        assert f"<!-- {HOSTILE[0]}" in text
    for path in written:
        ElementTree.parse(path)


def test_loss_is_the_mean_of_the_seeds_before_its_runs():
    results = made_up_results(["a", "b"])
    figure = report_plots(results)["loss"]
    looks = model_styles(["a", "b"])
    lines = figure.axes[0].get_lines()
    assert [line.get_color() for line in lines] == [looks[name]["color"] for name in "aaaabbbb"]
    *thin, mean = lines[:4]
    runs = results.runs_of("a")
    for line, run in zip(thin, runs, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), [row["loss"] for row in run.of_kind("train")])
        assert line.get_linewidth() < mean.get_linewidth()
    np.testing.assert_allclose(mean.get_ydata(), np.mean([line.get_ydata() for line in thin], axis=0))
    assert legend_texts(figure) == ["a", "b"]


def test_seeds_without_a_common_step_are_lines_of_their_own():
    early, late = (
        Run(name=name, backbone="a", folder=Path(name), lines=[{"kind": "train", "step": step, "loss": loss}])
        for name, step, loss in (("one", 1, 5.0), ("two", 2, 4.0))
    )
    results = made_up_results([], runs=[early, late])
    assert [line.get_xydata().tolist() for line in report_plots(results)["loss"].axes[0].get_lines()] == [
        [[1, 5.0]],
        [[2, 4.0]],
    ]


def test_accuracy_ends_where_the_shortest_run_does_but_the_others_go_on():
    long, short = (
        Run(name=f"{steps}", backbone="a", folder=Path("a"), lines=made_up_lines(0, 1, steps)) for steps in (40, 20)
    )
    results = made_up_results([], runs=[long, short])
    first, second, mean = report_plots(results)["accuracy_lfw"].axes[0].get_lines()
    assert [line.get_xdata()[-1] for line in (first, second, mean)] == [400, 200, 200]
    np.testing.assert_allclose(mean.get_ydata(), second.get_ydata())


def test_one_schedule_is_one_line_and_several_are_one_a_run():
    results = made_up_results(["a", "b"])
    shared = report_plots(results)["learning_rate"]
    assert legend_texts(shared) == ["all 6 runs"] and len(shared.axes[0].get_lines()) == 1
    other = Run(name="c", backbone="c", folder=Path("c"), lines=made_up_lines(0, 0, steps=20))
    assert len(report_plots(made_up_results(["a"], scale=4.0))["gradient_scale"].axes[0].get_lines()) == 1
    apart = report_plots(made_up_results([], runs=[*results.runs, other]))["learning_rate"]
    assert legend_texts(apart) == ["a", "b", "c"] and len(apart.axes[0].get_lines()) == 7


def test_a_loss_that_is_no_number_is_an_error_and_one_that_is_missing_a_gap():
    lines = [{"kind": "train", "step": step, "loss": loss} for step, loss in ((1, 3.0), (2, None), (3, 2.0))]
    run = Run(name="a", backbone="a", folder=Path("a"), lines=lines)
    results = made_up_results([], runs=[run])
    assert report_plots(results)["loss"].axes[0].get_lines()[0].get_xdata().tolist() == [1, 3]
    broken = Run(name="a", backbone="a", folder=Path("a"), lines=[{"kind": "train", "step": 1, "loss": "x"}])
    with pytest.raises(DataError, match=r"a: .*'loss'"):
        report_plots(made_up_results([], runs=[broken]))


def test_curves_have_the_looks_of_their_backbones():
    results = made_up_results(["a", "b"])
    looks = model_styles(["a", "b"])
    for name in ("roc_lfw", "cmc_ijb_1_n"):
        figure = report_plots(results)[name]
        lines = step_lines(figure.axes[0]) or figure.axes[0].get_lines()
        assert [line.get_color() for line in lines] == [looks[backbone]["color"] for backbone in "aaabbb"]
        assert len(legend_texts(figure)) == 2
    mean = np.mean([area_under_curve(results.curves[LFW][f"a seed {seed}"]) for seed in range(3)])
    assert legend_texts(report_plots(results)["roc_lfw"])[0] == f"a (mean AUC {mean:.4f})"


def test_intervals_of_the_tar_are_drawn_where_there_are_few_curves():
    few = made_up_results(["a", "b"], seeds=1)
    (axes,) = report_plots(few)["roc_lfw"].axes
    assert "95 %" in axes.get_title()
    (_, tar, *_) = few.metrics
    ends = [bars.get_segments()[0][:, 1].tolist() for bars in axes.collections]
    assert ends == [[tar.intervals[run.name][end] for end in ("low", "high")] for run in few.runs]
    (axes,) = report_plots(made_up_results(FOURTEEN))["roc_lfw"].axes
    assert not axes.collections and "95 %" not in axes.get_title()


def test_the_pareto_line_goes_through_the_front():
    macs = {"cheap": 1, "worse": 2, "good": 3, "dear": 9, "best": 5}
    means = {"cheap": 0.90, "worse": 0.85, "good": 0.95, "dear": 0.95, "best": 0.97}
    runs = [Run(name=name, backbone=name, folder=Path(name)) for name in macs]
    costs = {name: Cost(macs=count * 10**6) for name, count in macs.items()}
    metrics = [MetricResult(**LFW._asdict(), name="accuracy", main=True, values=means)]
    results = made_up_results([], runs=runs, costs=costs, metrics=metrics)
    (axes,) = report_plots(results)["lfw_accuracy_against_macs"].axes
    (front,) = step_lines(axes)
    assert front.get_xydata().tolist() == [[1e6, 0.90], [3e6, 0.95], [5e6, 0.97]]
    assert "95 %" not in axes.get_title()


def test_bars_are_the_intervals_and_an_arrow_says_where_they_go_on():
    values = {"a": 0.90, "b": 0.91}
    runs = [Run(name=name, backbone=name, folder=Path(name)) for name in values]
    intervals = {"a": {"low": 0.895, "high": 0.905}, "b": {"low": 0.2, "high": 0.915}}
    metrics = [MetricResult(**LFW._asdict(), name="accuracy", main=True, values=values, intervals=intervals)]
    results = made_up_results([], runs=runs, costs={"a": Cost(macs=1), "b": Cost(macs=2)}, metrics=metrics)
    (axes,) = report_plots(results)["lfw_accuracy_against_macs"].axes
    low, high = axes.get_ylim()
    ends = [bar.get_segments()[0][:, 1].tolist() for bar in axes.collections]
    assert ends == [[0.895, 0.905], [low, 0.915]]
    assert 0.8 < low < 0.895 and 0.915 < high < 1
    arrows = [line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() in ("v", "^")]
    assert [[2, low]] in arrows and [[2, 0.915]] not in arrows


def test_latency_says_its_conditions():
    label = report_plots(made_up_results(["a"]))["lfw_accuracy_against_latency"].axes[0].get_xlabel()
    assert all(part in label for part in ("ms", "cpu", "A processor", "4 threads", "bf16"))
    bare = report_plots(made_up_results(["a"], conditions={}))["lfw_accuracy_against_latency"].axes[0].get_xlabel()
    assert bare.endswith("(ms)")


@pytest.mark.parametrize("cost", ["macs", "parameters", "latency"])
def test_names_of_fourteen_backbones_are_apart(cost):
    figure = report_plots(made_up_results(FOURTEEN))[f"lfw_accuracy_against_{cost}"]
    (axes,) = figure.axes
    figure.draw_without_rendering()
    texts = [child for child in axes.get_children() if isinstance(child, Annotation)]
    assert [text.get_text() for text in texts] == FOURTEEN
    boxes = np.array([super(Annotation, text).get_window_extent().extents for text in texts])
    shared = overlaps(boxes, boxes)
    np.fill_diagonal(shared, 0)
    assert not shared.any()
    bars = np.concatenate([np.concatenate(bar.get_segments()) for bar in axes.collections]).reshape(-1, 2, 2)
    ends = axes.transData.transform(bars.reshape(-1, 2)).reshape(-1, 4) + [-1, 0, 1, 0]
    assert not overlaps(boxes, ends).any()


def cells(axes):
    """Texts of the cells, by row and column."""
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text for text in axes.texts}


def squares(axes):
    """Colour and hatch of the cells, by row and column."""
    found = {}
    for group in axes.collections:
        colours = group.get_facecolor()  # none for the lines between the cells
        for number, path in enumerate(group.get_paths() if len(colours) else []):
            column, row = path.get_extents().get_points().mean(axis=0)
            found[round(row), round(column)] = (colours[number % len(colours)], group.get_hatch())
    return found


@pytest.mark.parametrize("backbones", [["a", "b", "c"], FOURTEEN])
def test_the_heat_map_holds_the_tests(backbones):
    results = made_up_results(backbones)
    (metric, *_) = results.main_metrics()
    figure = report_plots(results)["tests_lfw_accuracy"]
    axes, names = figure.axes[0], results.ranking(metric)
    figure.draw_without_rendering()
    assert names != backbones
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == names
    found, tests = cells(axes), results.tests(metric)
    assert len(found) == 2 * len(tests) == len(names) * (len(names) - 1)
    hatched = {place for place, (_, hatch) in squares(axes).items() if hatch}
    for test in tests:
        place = (names.index(test.first), names.index(test.second))
        assert float(found[place].get_text()) == pytest.approx(100 * test.difference, abs=0.0051)
        assert float(found[place[::-1]].get_text()) == pytest.approx(-100 * test.difference, abs=0.0051)
        assert (place in hatched) == (place[::-1] in hatched) == (not test.significant)


def luminance(colour):
    channels = np.array(to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


def test_cells_are_readable():
    figure = report_plots(made_up_results(FOURTEEN))["tests_lfw_accuracy"]
    axes = figure.axes[0]
    figure.draw_without_rendering()
    width, height = (axes.transData.transform([[1, 0]]) - axes.transData.transform([[0, 1]]))[0]
    behind = squares(axes)
    assert behind.keys() == cells(axes).keys()
    for place, text in cells(axes).items():
        colour, hatch = behind[place]
        assert bool(hatch) == (text.get_bbox_patch() is not None)  # no hatch behind the letters
        light, dark = sorted((luminance(text.get_color()), luminance(colour[:3])))[::-1]
        assert (light + 0.05) / (dark + 0.05) >= 4.5
        extent = text.get_window_extent()
        assert extent.width < width and extent.height < height
    whole = figure.bbox
    for axis in (axes.xaxis, axes.yaxis):
        for label in axis.get_ticklabels():
            extent = label.get_window_extent()
            assert extent.x0 >= 0 and extent.x1 <= whole.width and extent.y0 >= 0 and extent.y1 <= whole.height


@pytest.mark.parametrize("name", ["loss", "learning_rate", "gradient_scale", "accuracy_lfw", "roc_lfw", "cmc_ijb_1_n"])
def test_curves_of_fourteen_backbones_are_readable(name, assert_all_is_readable):
    results = made_up_results(FOURTEEN, scale=1024.0)
    figure = report_plots(results)[name]
    assert_all_is_readable(figure)
    assert len(legend_texts(figure)) == (1 if name in ("learning_rate", "gradient_scale") else 14)
