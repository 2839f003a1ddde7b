"""The tables of a report: their cells, marks and notes, and which there are."""

import re

import pytest
from synthetic_study import (
    LARGE,
    MIDDLE,
    SMALL,
    make_run,
    make_study,
    metric_json,
    unmeasured_json,
    write_pairs,
)

from facebones.reporting.load import load_results
from facebones.reporting.results import Results
from facebones.reporting.tables import report_tables
from facebones.reporting.words import MARKS
from facebones.system.number_format import percent_interval


def tables_of(*folders):
    return {table.key: table for table in report_tables(load_results(*folders))}


def texts(table):
    """Row name to heading to text."""
    return {row[0].text: {name: cell.text for name, cell in zip(table.columns, row, strict=True)} for row in table.rows}


def values(table, column):
    place = list(table.columns).index(column)
    return [row[place].value for row in table.rows]


# -------------------------------------------------------------------------------------------------------- overview


def test_the_overview_has_costs_metrics_and_seeds(tmp_path):
    tables = tables_of(make_study(tmp_path / "s", failed=[f"{MIDDLE}_seed1"]))
    overview = tables["overview"]
    assert next(iter(tables)) == "overview"
    small, middle = texts(overview)[SMALL], texts(overview)[MIDDLE]
    costs = ("parameters", "MACs (M)", "latency p50 (ms)", "images/s", "peak memory (MiB)")
    assert [small[name] for name in costs] == ["500,000", "50.0", "1.00", "1,000", "1.0"]
    assert overview.columns[1] == "lfw accuracy"  # on a phone it is beside the name
    # 0.95 and 0.951: their mean, and 0.001 / sqrt(2)
    assert small["lfw accuracy"] == "95.05 % ± 0.07 best"
    assert middle["lfw accuracy"] == percent_interval(0.93, 0.92, 0.94)
    assert (small["seeds done"], middle["seeds done"]) == ("2/2", "1/2")
    assert values(overview, "MACs (M)") == [50.0, 150.0] and values(overview, "seeds done") == [2, 1]
    assert values(overview, "lfw accuracy") == pytest.approx([0.9505, 0.93])
    assert "threads 1" in overview.note and "batch size 32" in overview.note and MARKS[1:] in overview.note


def test_what_is_not_significantly_different_from_the_best_has_a_star(tmp_path):
    study = make_study(tmp_path / "s", p={(f"{SMALL}_seed1", f"{MIDDLE}_seed0"): 0.5}, backbones=(SMALL, MIDDLE, LARGE))
    rows = texts(tables_of(study)["overview"])
    marks = {name: row["lfw accuracy"].split()[-1] for name, row in rows.items()}
    assert (marks[SMALL], marks[MIDDLE]) == ("best", "*") and marks[LARGE] not in ("best", "*")


def test_columns_of_costs_that_nobody_knows_are_left_out_and_untested_columns_are_named(tmp_path):
    first = make_run(tmp_path / "a", accuracy=0.9)
    second = make_run(tmp_path / "b", accuracy=0.95, optimizer__learning_rate=0.5)
    tables = tables_of(first, second)
    overview = tables["overview"]
    assert list(overview.columns) == [
        *("backbone", "optimizer.learning_rate", "lfw accuracy", "parameters", "MACs (M)", "seeds done")
    ]
    cells = [[cell.text for cell in row] for row in overview.rows]
    assert [(row[0], row[1], row[2]) for row in cells] == [(SMALL, "0.1", "90.00 %"), (SMALL, "0.5", "95.00 % best")]
    assert "Not every variant was tested" in overview.note and "lfw accuracy" in overview.note
    assert list(tables) == ["overview", "training", "runs"]


def test_of_a_single_backbone_nothing_is_marked(tmp_path):
    study = make_study(tmp_path / "s", backbones=(SMALL,), seeds=(0,))
    tables = tables_of(study)
    assert texts(tables["overview"])[SMALL]["lfw accuracy"] == percent_interval(0.95, 0.94, 0.96)
    assert "best" not in tables["overview"].note and not any(key.startswith("tests") for key in tables)


# -------------------------------------------------------------------------------------------------- evaluated sets


def test_each_evaluated_set_has_a_table_of_all_its_metrics(tmp_path):
    tables = tables_of(make_study(tmp_path / "s"))
    pairs = tables["pairs_lfw"]
    assert list(pairs.columns) == ["backbone", "accuracy", "TAR at FAR 0.001", "AUC", "EER"]
    small, middle = texts(pairs)[SMALL], texts(pairs)[MIDDLE]
    assert small["TAR at FAR 0.001"] == middle["TAR at FAR 0.001"] == "-"
    assert "TAR at FAR 0.001: not measured, because too few pairs." in pairs.note
    assert small["EER"] == "4.95 % ± 0.07 best" and not middle["EER"].endswith(("best", "*"))
    assert list(tables["ijb_verification_ijbc_n1d1f1"].columns)[1:] == [
        "TAR at FAR 0.000001",
        "TAR at FAR 0.00001",
        "TAR at FAR 0.0001",
        "TAR at FAR 0.001",
        "AUC",
        "EER",
    ]
    assert list(tables["ijb_identification_ijbc_n1d1f1"].columns)[1:] == ["Rank-1", "Rank-5", "TPIR at FPIR 0.1"]


def test_a_set_that_gives_no_metric_says_why(tmp_path):
    metrics = [unmeasured_json("accuracy", "no pairs"), unmeasured_json("auc", "no pairs")]
    write_pairs(tmp_path / "e", {"lfw": metrics}, models=["a", "b"])
    table = tables_of(tmp_path / "e")["pairs_lfw"]
    assert set(texts(table)) == {"a", "b"} and texts(table)["a"]["accuracy"] == "-"
    assert table.note.startswith("accuracy: not measured, because no pairs.")


def test_two_names_that_give_one_key_are_numbered(tmp_path):
    metrics = [metric_json("accuracy", {"a": 0.9})]
    write_pairs(tmp_path / "e", {"my set": metrics, "my_set": metrics})
    keys = list(tables_of(tmp_path / "e"))
    assert {"pairs_my_set", "pairs_my_set_2"} <= set(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", key) for key in keys)


# ----------------------------------------------------------------------------------------------------------- tests


def test_the_verdict_names_the_better_one(tmp_path):
    study = make_study(
        tmp_path / "s",
        backbones=(SMALL, MIDDLE, LARGE),
        seeds=(0,),
        accuracy=lambda place, seed: (0.90, 0.95, 0.94)[place],
        p={(MIDDLE, LARGE): 0.3, (SMALL, MIDDLE): 0.00001},
    )
    table = tables_of(study)["tests_lfw_accuracy"]
    assert texts(table)[f"{SMALL} - {MIDDLE}"] == {
        "backbones": f"{SMALL} - {MIDDLE}",
        "difference in points": "-5.00",
        "95 % interval": "[-6.00, -4.00]",
        "p": "< 0.0001",
        "verdict": f"{MIDDLE} is better",
    }
    verdicts = {name: row["verdict"] for name, row in texts(table).items()}
    assert verdicts[f"{SMALL} - {LARGE}"] == f"{LARGE} is better"
    assert verdicts[f"{MIDDLE} - {LARGE}"] == "not significantly different"
    assert values(table, "difference in points") == pytest.approx([-5, -4, 1])


def test_the_verdict_on_an_error_rate_is_for_the_lower_one(tmp_path, monkeypatch):
    monkeypatch.setattr(Results, "main_metrics", lambda self: [self.metric("lfw", "eer")])
    (row,) = texts(tables_of(make_study(tmp_path / "s"))["tests_lfw_eer"]).values()
    assert row["difference in points"].startswith("-") and row["verdict"] == f"{SMALL} is better"


# -------------------------------------------------------------------------------------------------------- training


def test_training_has_a_row_a_backbone_and_set_over_the_finished_seeds(tmp_path):
    study = make_study(tmp_path / "s", sets=("lfw", "cfp_fp"), seeds=(0, 1, 2), failed=[f"{SMALL}_seed2"])
    table = tables_of(study)["training"]
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[:2] for row in rows] == [[SMALL, "lfw"], [SMALL, "cfp_fp"], [MIDDLE, "lfw"], [MIDDLE, "cfp_fp"]]
    assert rows[0][2:] == ["95.05 % ± 0.07", "96.00 % ± 0.00", "6.0000 ± 0.0000", "4"]
    assert "optimistic" in table.note


def test_a_backbone_without_a_finished_run_has_dashes(tmp_path):
    study = make_study(tmp_path / "s", seeds=(0,), unfinished=[SMALL])
    row = texts(tables_of(study)["training"])[SMALL]
    assert [row[name] for name in ("final accuracy", "best accuracy", "final loss", "steps")] == ["-"] * 4


# ------------------------------------------------------------------------------------------------------------ runs


def test_a_failed_run_is_plain_to_see(tmp_path):
    study = make_study(tmp_path / "s", failed=[f"{SMALL}_seed1"], to_do=[f"{MIDDLE}_seed0"])
    table = tables_of(study)["runs"]
    rows = texts(table)
    failed = rows[f"{SMALL}_seed1"]
    assert (failed["state"], failed["error"], failed["lfw accuracy"]) == ("FAILED", "no memory left", "-")
    assert (failed["steps"], failed["final loss"]) == ("2", "8.0000")
    assert f"1 of 4 runs failed: {SMALL}_seed1." in table.note
    assert rows[f"{SMALL}_seed0"]["lfw accuracy"] == "95.00 %" and rows[f"{SMALL}_seed0"]["error"] == ""
    assert rows[f"{MIDDLE}_seed0"]["state"] == "to do" and rows[f"{MIDDLE}_seed0"]["steps"] == "-"


def test_every_row_has_a_cell_for_each_column(tmp_path):
    study = make_study(tmp_path / "s", failed=[f"{SMALL}_seed1"], sets=("lfw", "agedb_30"))
    for table in report_tables(load_results(study)):
        assert table.rows and table.title
        assert {len(row) for row in table.rows} == {len(table.columns)}
