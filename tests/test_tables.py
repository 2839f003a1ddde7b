"""Cells of tables that compare models, and tables that fit a terminal."""

import re

import pytest

from facebones.reporting.console import print_evaluation, print_table
from facebones.reporting.words import mark_best
from facebones.system.number_format import percent, percent_interval, points, rounded


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((0.5, 0.25, 0.75), "50.00 % [25.00, 75.00]"),
        ((1.0, 1.0, 1.0), "100.00 % [100.00, 100.00]"),
        ((0.0, 0.0, 0.0), "0.00 % [0.00, 0.00]"),
        ((0.9, 0.895, 0.9049), "90.00 % [89.50, 90.49]"),
        ((0.99950, 0.99912, 0.99980), "99.950 % [99.912, 99.980]"),
        ((0.999731, 0.999702, 0.999758), "99.9731 % [99.9702, 99.9758]"),
        ((0.5, 0.5 - 1e-9, 0.5 + 1e-9), "50.0000 % [50.0000, 50.0000]"),
        ((0.4, 0.5, 0.6), "40.00 % [50.00, 60.00]"),  # a percentile interval need not hold the value
    ],
)
def test_interval_in_percent(interval, text):
    assert percent_interval(*interval) == text


@pytest.mark.parametrize("ends", [(0.6, 0.5), (float("nan"), 0.5), (0.5, float("nan"))])
def test_what_is_no_interval_is_refused(ends):
    with pytest.raises(ValueError, match="not an interval"):
        percent_interval(0.5, *ends)


@pytest.mark.parametrize("correct", [1, 3, 5, 7, 533, 535, 799])
def test_a_rate_of_800_pairs_is_rounded_in_one_way_everywhere(correct):
    """A half of the last digit is rounded up: 533 of 800 are 66.63 %, counted or averaged."""
    rate, expected = correct / 800, f"{(correct * 1000 // 8 + 5) // 10 / 100:.2f}"
    mean = sum([rate - 0.1, rate + 0.1, rate]) / 3
    assert {percent(rate), percent(mean), percent_interval(rate, 0.0, 1.0).partition(" [")[0]} == {f"{expected} %"}
    assert points(rate) == f"+{expected}" and points(-rate) == f"-{expected}"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.005, "0.01"), (-0.004, "-0.00"), (0.0, "0.00"), (100.0, "100.00"), (1e-12, "0.00"), (12345.675, "12345.68")],
)
def test_rounding(value, text):
    assert rounded(value) == text


def test_marks_of_a_column(capsys):
    column = mark_best(["98 %", "99 %", "97 %"], 1, [True, False, False])
    assert column == ["98 % *", "99 % best", "97 %"]
    print_table(["TAR"], [[cell] for cell in column])
    assert "99 % best" in capsys.readouterr().out
    with pytest.raises(ValueError, match="zip"):
        mark_best(["98 %"], 0, [True, False])


COSTS = (
    "network",
    "parameters",
    "2 x MACs",
    "2 x MACs + BN + act. + pool",
    "images/s",
    "accuracy [95 %]",
    "what it is",
)
NETWORKS = [
    ("study_shufflefacenet_0_5", "923,808", "41,062,368", "42,092,448", "107.5", "80.00 % [65.14, 89.54] best", ""),
    ("xs", "1,037,602", "5,609,040", "6,101,787", "1,206.6", "79.50 % [64.90, 88.71] *", "the study's own network"),
]


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Print a table in a terminal of so many columns; gives the lines that come out."""

    def show(width, *table, **options):
        for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
            monkeypatch.setenv(name, value)
        print_table(*table, **options)
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()

    return show


@pytest.mark.parametrize("width", [60, 80, 100, 120, 140, 200])
def test_a_terminal_breaks_no_name_and_no_figure(terminal, width):
    lines = terminal(width, COSTS, NETWORKS, title="what networks cost and how well they recognise the faces of pairs")
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in NETWORKS:
        assert all(cell in text for cell in row[:-1])
    for word in " ".join([*COSTS, "the study's own network", "what networks cost and how well they"]).split():
        assert re.search(rf"(?<!\S){re.escape(word)}:?(?!\S)", text), word


def test_headers_and_texts_are_broken_at_blanks(terminal):
    rows = [("iresnet100", "+0.10 [-0.25, +0.45]", "paired bootstrap of the pairs")]
    lines = terminal(60, ("model", "difference in points [95 %]", "test"), rows)
    assert "│ iresnet100 │ +0.10 [-0.25, +0.45] │ paired bootstrap of  │" in lines
    assert "┃ model      ┃               [95 %] ┃ test                 ┃" in lines


def test_a_table_that_fits_no_way_is_turned(terminal):
    assert terminal(60, COSTS, NETWORKS, title="costs")[7:] == [
        "xs",
        "  parameters:                  1,037,602",
        "  2 x MACs:                    5,609,040",
        "  2 x MACs + BN + act. + pool: 6,101,787",
        "  images/s:                    1,206.6",
        "  accuracy [95 %]:             79.50 % [64.90, 88.71] *",
        "  what it is:                  the study's own network",
    ]
    assert terminal(46, COSTS, NETWORKS)[-2:] == [
        "  what it is:                  the study's own",
        "                               network",
    ]


def test_a_pipe_gets_whole_rows(capsys):
    print_table(COSTS, NETWORKS, title="costs")
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + len(NETWORKS) + 1
    print_table(["error"], [["a" * 300]])
    assert "a" * 300 in capsys.readouterr().out


def test_an_evaluation_is_printed_with_its_metrics_details_and_tests(capsys):
    def metric(name, values, **more):
        intervals = {model: {"low": value - 0.1, "high": value + 0.1} for model, value in values.items()}
        known = {"name": name, "at": {}, "rule": "", "reason": None, "values": values, "intervals": intervals}
        return {**known, "comparisons": [], "best": "a", "not_different_from_best": ["a"], **more}

    ends = {"low": 0.01, "high": 0.35}
    test = {"first": "a", "second": "b", "difference": 0.18, "interval": ends, "p_value": 0.02, "adjusted": 0.04}
    values = {"a": 0.75, "b": 0.57}
    section = {
        "protocol": "tiny",
        "set": "holiday",
        "setting": "",
        "sizes": {"pairs": 1234},
        "metrics": [
            metric("purity", values, at={"faces": 3}, comparisons=[{**test, "method": "a test"}]),
            metric("tar", {}, at={"far": 1e-6}, reason="too few pairs", best=None),
        ],
        "details": {
            model: {"purity": 1, "xnorm": 20.25, "rates": [{"far": 0.5, "published": 0.25}]} for model in values
        },
    }
    models = {name: {"backbone": "net", "checkpoint": f"{name}.pt"} for name in values}
    print_evaluation({"models": models, "results": [section]})
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in (
        "a: net, a.pt",
        "holiday tiny: 1,234 pairs",
        "purity at faces 3 75.00 % [65.00, 85.00] best 57.00 % [47.00, 67.00]",
        "TAR at FAR 0.000001: not measured; too few pairs",
        "XNorm",
        "20.25",
        "TAR as published",
        "purity at faces 3 a - b +18.00 [+1.00, +35.00] 0.020 0.040 a test",
    ):
        assert words in printed, words


def test_details_are_told_in_percent_and_only_where_they_could_be_measured(capsys):
    def printed(reason):
        rates = {"accuracy_std": 0.00125, "tar_at_far_1e3": 0.95, "tar_at_far_1e3_std": 0.02, "far_reached": 0.0}
        tar = {"name": "tar", "at": {"far": 0.001}, "rule": "strict", "reason": reason, "comparisons": []}
        known = {"values": {} if reason else {"a": 0.9}, "intervals": {}, "best": None if reason else "a"}
        section = {
            "protocol": "pairs",
            "set": "small",
            "setting": "",
            "metrics": [{**tar, **known, "not_different_from_best": []}],
            "details": {"a": {"xnorm": 20.25, **rates}},
        }
        print_evaluation({"models": {"a": {}}, "results": [section]})
        return capsys.readouterr().out

    unmeasured = printed("0.001 is below 1 / 300 impostor pairs")
    assert "not measured" in unmeasured and "FAR reached" not in unmeasured and "as published" not in unmeasured
    assert "0.13 %" in unmeasured and "20.25" in unmeasured
    measured = printed(None)
    assert "FAR reached" in measured and "95.00 %" in measured and "2.00 %" in measured
