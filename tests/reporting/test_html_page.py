import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from facebones.reporting.answer import Answer
from facebones.reporting.page import cautions, page_text, save_page
from facebones.reporting.page_data import (
    DASH_NAMES,
    MARKER_NAMES,
    MOST_POINTS,
    SCORE_BINS,
    model_looks,
    page_data,
)
from facebones.reporting.plots.heat_map import SCALE, heat_tables
from facebones.reporting.plots.style import model_styles
from facebones.reporting.results import Cost, EvaluatedSet, Run
from facebones.statistics.curves import roc

ANSWER = Answer(sentences=["Take alpha.", "Or beta, for less."], rules=["At 5 %."])
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}",
    "<!-- <script>",
    "line\u2028end\nand more",
]


class Parsed(HTMLParser):
    """A page's elements, attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.scripts, self.styles = [], [], [], [], []
        self.inside = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.inside = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        {"script": self.scripts, "style": self.styles}.get(self.inside, self.words).append(data)

    def values(self, *names):
        return [value for _, name, value in self.attributes if name in names]

    @property
    def text(self):
        return "".join(self.words)

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def parse(page_tables):
    """Parse the page of some results."""
    return lambda results, answer=ANSWER: Parsed(page_text(results, page_tables(results), answer))


@pytest.fixture(scope="module")
def ordinary(page_results, parse):
    return parse(page_results())


@pytest.fixture(scope="module")
def hostile(page_results, parse):
    answer = Answer(sentences=HOSTILE, rules=HOSTILE)
    changes = {"title": HOSTILE[0], "notes": HOSTILE, "command": HOSTILE[0], "recipe": {HOSTILE[1]: {HOSTILE[2]: "1"}}}
    return parse(page_results(HOSTILE, **changes), answer)


def test_hostile_names_add_no_element_and_no_handler(hostile):
    assert hostile.tags.count("script") == 3  # the data, plotly and the page's own
    assert not {"img", "iframe", "object", "embed", "link", "base"} & set(hostile.tags)
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]


def test_hostile_names_are_shown_as_they_stand(hostile):
    for name in HOSTILE:
        assert name in hostile.text
        assert name in hostile.values("title")
    assert "49" not in hostile.values("title")
    assert [model["name"] for model in hostile.data["models"]] == HOSTILE


def test_a_name_that_is_no_unicode_is_written_with_an_escape(page_results, page_tables, tmp_path):
    results = page_results(["bad\udcffname"])
    save_page(page_text(results, page_tables(results), ANSWER), tmp_path / "report.html")
    assert r"bad\udcffname" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing(ordinary):
    assert all(link.startswith("#") for link in ordinary.values("src", "href", "srcset", "action", "data", "poster"))
    assert "url(" not in ordinary.styles[0]
    assert "@import" not in ordinary.styles[0]
    assert not any(word in ordinary.scripts[-1] for word in ("http:", "https:", "fetch(", "XMLHttpRequest", "import("))


def test_only_the_scripts_of_the_page_may_run_and_nothing_may_be_fetched(ordinary):
    from facebones.reporting.page import _hash

    (policy,) = [value for value in ordinary.values("content") if "script-src" in value]
    rules = {words.split()[0]: words.split()[1:] for words in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == [f"'{_hash(script)}'" for script in ordinary.scripts[1:]]
    assert "connect-src" not in rules


def test_everything_is_said_in_text(ordinary):
    for words in (
        *ANSWER.sentences,
        *ANSWER.rules,
        "A small study",
        "At a glance",
        "All runs",
        "gamma_seed1",
        "facebones compare small --output study",
        "0.875",
        "an abacus",
        "beef",
        "a slide rule",
    ):
        assert words in ordinary.text


def test_headings_go_down_by_one_and_anchors_lead_somewhere(ordinary):
    levels = [int(tag[1]) for tag in ordinary.tags if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = ordinary.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in ordinary.values("href")} <= set(ids)


def test_the_parts_stand_in_their_order(ordinary):
    wanted = ["answer", "overview", "cost", "models", "tests", "roc", "scores", "cmc", "training", "tables", "made"]
    assert [part for part in ordinary.values("id") if part in wanted] == wanted


def test_failed_and_unfinished_runs_are_warned_of_once(page_results):
    runs = [
        Run(name="a", backbone="a", folder=Path("a"), state="failed", error="loss is not finite"),
        Run(name="b", backbone="b", folder=Path("b"), state="unfinished"),
        Run(name="c", backbone="c", folder=Path("c"), state="to do"),
        Run(name="d", backbone="d", folder=Path("d")),
    ]
    results = page_results(runs=runs, notes=["b: is not finished", "lfw: is gone"])
    assert cautions(results) == ["a: failed: loss is not finite", "c: to do", "b: is not finished", "lfw: is gone"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 1}, "lfw accuracy"),
        ({"backbones": [f"backbone_{number}" for number in range(14)]}, "backbone_13"),
        ({"backbones": ["only"]}, "Evaluate at least two of them together"),
        ({"costs": {}}, "No cost is known"),
        ({"costs": {"beta": Cost(macs=1)}}, "lfw accuracy"),
        ({"metrics": [], "curves": {}, "cmc": {}, "runs": []}, "Nothing has been evaluated yet"),
        ({"recipe": {}, "conditions": {}, "command": ""}, "No recipe is known"),
    ],
)
def test_the_page_is_whole_whatever_is_missing(page_results, parse, changes, said):
    page = parse(page_results(**changes))
    assert said in page.text
    assert "How it was made" in page.text
    groups = {plot["group"] for plot in page.data["plots"]}
    assert {"roc", "scores", "cmc", "training"} & set(page.values("id")) == groups


def test_a_study_without_any_table_or_answer_has_a_page(page_results):
    page = Parsed(page_text(page_results(runs=[], metrics=[]), [], Answer(sentences=[], rules=[])))
    assert "There is nothing to compare yet." in page.text


def test_a_long_training_is_thinned_and_a_loss_that_is_no_number_is_a_gap(page_results):
    lines = [{"kind": "train", "step": step, "loss": float(step)} for step in range(5 * MOST_POINTS)]
    lines[0]["loss"] = math.nan
    run = Run(name="long", backbone="long", folder=Path("long"), lines=lines)
    (plot,) = page_data(page_results(runs=[run], metrics=[], curves={}, cmc={}))["plots"]
    (line,) = plot["lines"]
    assert len(line["x"]) <= MOST_POINTS
    assert (line["x"][0], line["x"][-1]) == (0, lines[-1]["step"])
    assert (line["y"][0], line["y"][-1]) == (None, lines[-1]["loss"])


def test_gradient_scales_are_drawn_where_they_are_used(page_results):
    def titles(scales):
        lines = [{"kind": "train", "step": step, "gradient_scale": scale} for step, scale in enumerate(scales)]
        run = Run(name="one", backbone="one", folder=Path("one"), lines=lines)
        return [plot["title"] for plot in page_data(page_results(runs=[run], metrics=[]))["plots"]]

    assert "Gradient scale" in titles([1.0, 2.0])
    assert "Gradient scale" not in titles([1.0, 1.0])


def test_a_model_has_the_dash_and_marker_that_it_has_in_the_other_plots():
    names = [f"backbone_{number}" for number in range(30)]
    for look, style in zip(model_looks(model_styles(names)), model_styles(names).values(), strict=True):
        assert look["dash"] == DASH_NAMES[style["linestyle"]]
        assert look["marker"] == MARKER_NAMES[style["marker"]]


def test_cells_of_the_heat_map_say_which_is_better_and_mark_what_is_not_significant(page_results):
    results = page_results()
    heat_map = heat_tables(results)[0]
    assert [results.backbones[place] for place in heat_map.models] == ["alpha", "beta", "gamma"]
    kinds = [[cell.kind for cell in row] for row in heat_map.rows]
    assert kinds == [["none", "better", "better"], ["worse", "none", "alike"], ["worse", "alike", "none"]]
    assert heat_map.rows[0][1].difference == "+5.00"
    assert heat_map.rows[1][0].difference == "\N{MINUS SIGN}5.00"
    assert 0 < heat_map.rows[0][1].tint < heat_map.rows[0][2].tint
    assert heat_map.rows[1][2].tint == 0


@pytest.mark.parametrize(("name", "half"), [("better", (0.5, 1)), ("worse", (0, 0.5))])
def test_the_heat_map_has_the_colours_of_its_plot(name, half, page_results, page_tables):
    results = page_results()
    text = page_text(results, page_tables(results), ANSWER)
    (colours,) = re.findall(rf"--{name}: light-dark\((#\w+), (#\w+)\)", text)
    scale = colormaps[SCALE](np.linspace(*half, 200))[:, :3]
    for colour in colours:
        assert np.abs(scale - to_rgb(colour)).max(1).min() < 0.02


def test_scores_are_histograms_of_the_first_seed_with_all_pairs(page_results):
    random = np.random.default_rng(0)
    is_same = np.arange(3000) % 3 == 0
    score = np.where(is_same, 0.6, 0.1) + 0.1 * random.standard_normal(3000)
    results = page_results(["alpha"], seeds=2, metrics=[], cmc={})
    curves = {
        EvaluatedSet("pairs", "lfw"): {
            run.name: roc(score if run.seed == 0 else score[::-1], is_same) for run in results.runs
        }
    }
    plots = page_data(page_results(["alpha"], seeds=2, metrics=[], cmc={}, curves=curves))["plots"]
    (line,) = next(plot for plot in plots if plot["group"] == "scores")["lines"]
    assert line["run"] == "alpha_seed0"
    gap = line["x"].index(None)
    edges = np.linspace(score.min(), score.max(), SCORE_BINS + 1)
    for part, kind in ((slice(0, gap), ~is_same), (slice(gap + 1, None), is_same)):
        x, y = np.array(line["x"][part]), np.array(line["y"][part])
        counted = np.histogram(score[kind], edges)[0] / kind.sum()
        assert y.sum() == pytest.approx(1) and y[-1] == 0
        for left, share in zip(x, y, strict=True):
            place = int(np.abs(edges - left).argmin())
            expected = counted[place] if place < SCORE_BINS else 0.0
            assert share == pytest.approx(
                expected, abs=1.5 / kind.sum()
            )  # between two scores, half a pair to each side
