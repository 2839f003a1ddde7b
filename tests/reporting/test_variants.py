"""Levels in reports: what a study varied, or in which fields run folders differ, is compared as backbones are."""

import itertools
import json

import pytest
from scipy.stats import ttest_ind
from synthetic_study import MIDDLE, SMALL, make_run, make_study, metric_json, write, write_pairs

from facebones.errors import DataError
from facebones.reporting.answer import answer
from facebones.reporting.load import load_results
from facebones.reporting.plots.cost import cost_plots
from facebones.reporting.plots.style import side_by_side, variant_styles
from facebones.reporting.report import results_json
from facebones.reporting.tables import report_tables

LOSSES = ("arcface", "cosface", "adaface")
ACCURACY = {"arcface": 0.90, "cosface": 0.91, "adaface": 0.95}


def make_varied(folder, backbones=(SMALL, MIDDLE), losses=LOSSES, seeds=(0, 1), p=0.0001, accuracy=ACCURACY, **more):
    """A study of levels: the second backbone has two points more, each seed a tenth more."""
    study = make_study(folder, backbones=backbones, seeds=(0,))
    content = json.loads((study / "study.json").read_text())
    rows, values, models = [], {}, {}
    for (place, backbone), loss, seed in itertools.product(enumerate(backbones), losses, seeds):
        name, inside = f"{backbone}_{loss}_seed{seed}", f"runs/{backbone}_{loss}/seed{seed}"
        values[name] = accuracy[loss] + 0.02 * place + 0.001 * seed
        fields = {"head__name": loss, **more}
        models[name] = str(make_run(folder / inside, backbone, seed, accuracy=values[name], **fields))
        known = {"name": name, "backbone": backbone, "levels": {"loss": loss}, "seed": seed, "folder": inside}
        rows.append({**known, "state": "done", "steps": 4, "error": None, "final": []})
    costs = {row["backbone"]: row for row in content["summary"]}
    summary = [{**costs[name], "levels": {"loss": loss}} for name in backbones for loss in losses]
    entries = [one for one in content["evaluation"] if one["kind"] == "profile" or one["protocol"] == "pairs"]
    write_pairs(folder / "evaluation", {"lfw": [metric_json("accuracy", values, p)]})
    content |= {"runs": rows, "summary": summary, "models": models, "evaluation": entries}
    write(study / "study.json", content)
    return study


def table_of(results, start):
    return next(table for table in report_tables(results) if table.key.startswith(start))


def rows_of(table):
    return [[cell.text for cell in row] for row in table.rows]


# --------------------------------------------------------------------------------------------- levels of a study


def test_results_are_grouped_by_backbone_and_level(tmp_path):
    results = load_results(make_varied(tmp_path / "s"))
    assert results.variants == [f"{name} ({loss})" for name in (SMALL, MIDDLE) for loss in LOSSES]
    assert results.factors == ["loss"] and results.backbones == [SMALL, MIDDLE] and results.notes == []
    overview = table_of(results, "overview")
    assert list(overview.columns)[:4] == ["backbone", "loss", "lfw accuracy", "parameters"]
    assert [row[:2] for row in rows_of(overview)] == [[name, loss] for name in (SMALL, MIDDLE) for loss in LOSSES]
    accuracy = list(overview.columns).index("lfw accuracy")
    assert rows_of(overview)[-1][accuracy] == "97.05 % ± 0.07 best"
    for key in ("pairs_lfw", "training", "runs"):
        assert "loss" in table_of(results, key).columns
    assert all(len(row) == len(table.columns) for table in report_tables(results) for row in table.rows)


def test_the_cost_of_a_backbone_is_that_of_all_its_levels(tmp_path):
    results = load_results(make_varied(tmp_path / "s"))
    costs = [results.costs[name] for name in results.variants]
    assert costs[0] == costs[1] == costs[2] != costs[3] and costs[0].latency_ms is not None


def test_differences_are_between_levels_within_a_backbone_and_between_backbones_within_a_level(tmp_path):
    results = load_results(make_varied(tmp_path / "s"))
    rows = rows_of(table_of(results, "tests"))
    assert [row[:3] for row in rows] == [
        *(["loss", name, pair] for name in (SMALL, MIDDLE) for pair in (
            "arcface - cosface", "arcface - adaface", "cosface - adaface")),
        *(["backbone", loss, f"{SMALL} - {MIDDLE}"] for loss in LOSSES),
    ]  # fmt: skip
    first, second = rows[0], rows[1]
    assert first[3] == "-1.00" and second[3] == "-5.00"
    assert second[4] == "[-5.30, -4.70]", "5 +- 4.303 standard errors of the seeds, which differ by a tenth"
    assert second[6] == "adaface is better" and rows[-1][6] == f"{MIDDLE} is better"


def test_p_is_corrected_over_all_pairs_of_variants(tmp_path):
    results = load_results(make_varied(tmp_path / "s", (SMALL,)))
    tests = {(test.first, test.second): test.p_value for test in results.tests(results.metric("lfw", "accuracy"))}
    arcface, cosface, adaface = results.variants
    seeds = {arcface: [0.9, 0.901], cosface: [0.91, 0.911], adaface: [0.95, 0.951]}
    single = {pair: ttest_ind(seeds[pair[0]], seeds[pair[1]]).pvalue for pair in tests}
    assert tests[arcface, adaface] == pytest.approx(3 * single[arcface, adaface])
    assert tests[cosface, adaface] == pytest.approx(2 * single[cosface, adaface])
    assert tests[arcface, cosface] == pytest.approx(single[arcface, cosface])


def test_runs_that_disagree_make_no_difference_of_levels(tmp_path):
    spread = {"arcface": 0.9, "cosface": 0.9005, "adaface": 0.95}
    results = load_results(make_varied(tmp_path / "s", (SMALL,), accuracy=spread))
    rows = {row[2]: row for row in rows_of(table_of(results, "tests"))}
    assert rows["arcface - cosface"][5:] == ["1", "not significantly different"] or (
        rows["arcface - cosface"][6] == "not significantly different"
    )
    assert rows["arcface - adaface"][6] == "adaface is better"


def test_the_answer_names_the_best_of_all_and_the_best_level_of_each_backbone(tmp_path):
    results = load_results(make_varied(tmp_path / "s"))
    sentences = answer(results).sentences
    assert sentences[0].startswith(f"{MIDDLE} (adaface), at 150 M MACs, is best by lfw accuracy: 97.05 % ± 0.07; 5 (")
    assert f"With {SMALL}, adaface is best by lfw accuracy: 95.05 % ± 0.07; cosface and arcface are" in " ".join(
        sentences
    )
    assert not any("backbone that" in sentence for sentence in sentences)
    alone = answer(load_results(make_varied(tmp_path / "alone", (SMALL,)))).sentences
    assert not any(sentence.startswith(f"With {SMALL}") for sentence in alone), "the first sentence says it"


def test_colours_are_levels_and_markers_are_backbones(tmp_path):
    results = load_results(make_varied(tmp_path / "s"))
    looks = list(variant_styles(results).values())
    assert len({look["color"] for look in looks}) == 3 and len({look["marker"] for look in looks}) == 2
    assert [look["color"] for look in looks[:3]] == [look["color"] for look in looks[3:]]
    assert len({(look["color"], look["marker"], str(look["linestyle"])) for look in looks}) == 6
    assert list(side_by_side(results).values()) == [-1, 0, 1] * 2
    figure = cost_plots(results)["lfw accuracy", "against", "macs"]()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == results.variants


def test_the_json_has_the_levels(tmp_path):
    content = results_json(load_results(make_varied(tmp_path / "s", (SMALL,))))
    assert content["backbones"][0]["levels"] == {"loss": "arcface"} and content["runs"][0]["levels"] == {
        "loss": "arcface"
    }
    plain = results_json(load_results(make_study(tmp_path / "plain")))
    assert '"levels"' not in json.dumps(plain)
    assert all({"low", "high"} <= one["metrics"][0]["tests"][0].keys() for one in (content, plain))


@pytest.mark.parametrize("levels", [["loss"], "loss", {"loss": 3}, {"loss": None}])
def test_levels_of_another_shape_are_refused(tmp_path, levels):
    study = make_varied(tmp_path / "s", (SMALL,))
    content = json.loads((study / "study.json").read_text())
    content["runs"][0]["levels"] = levels
    write(study / "study.json", content)
    with pytest.raises(DataError, match="unexpected content"):
        load_results(study)


# ------------------------------------------------------------------------------------------ fields of run folders


def levels_of(tmp_path, *recipes, backbones=(SMALL,)):
    folders = []
    for backbone in backbones:
        for place, recipe in enumerate(recipes):
            folders.append(make_run(tmp_path / f"{backbone[-1]}{place}", backbone, seed=place, **recipe))
    results = load_results(*folders)
    return results, [dict(run.levels) for run in results.runs]


def test_the_fields_in_which_runs_differ_are_factors_and_the_superfluous_are_not(tmp_path):
    recipes = ({"head__name": "arcface"}, {"head__name": "cosface"}, {"head__name": "cosface", "log__every": 7})
    results, levels = levels_of(tmp_path, *recipes, backbones=(SMALL, MIDDLE))
    assert levels == [{"head.name": name} for name in ("arcface", "cosface", "cosface")] * 2
    assert len(results.runs_of(f"{SMALL} (cosface)")) == 2 and results.notes == []


def test_values_of_every_kind_are_levels(tmp_path):
    recipes = [{"data__flip": flip, "schedule__power": power} for flip in (True, False) for power in (2.0, 0.5)]
    results, levels = levels_of(tmp_path, *recipes)
    assert levels[1] == {"data.flip": "true", "schedule.power": "0.5"} and len(results.variants) == 4
    assert results.variants[1] == f"{SMALL} (flip true, power 0.5)"


def test_fields_that_change_together_are_said(tmp_path):
    results, levels = levels_of(
        tmp_path, {"head__name": "arcface"}, {"head__name": "cosface", "optimizer__learning_rate": 0.5}
    )
    assert levels == [{"head.name": "arcface"}, {"head.name": "cosface"}]
    assert results.notes == [
        "runs that differ in head.name differ in optimizer.learning_rate too; a better result may come from either"
    ]


def test_recipes_that_differ_in_too_much_are_called_after_their_first_run(tmp_path):
    fields = ("schedule__power", "optimizer__learning_rate", "optimizer__weight_decay", "optimizer__momentum")
    recipes = [{}, *({name: 0.25} for name in fields)]
    _, levels = levels_of(tmp_path, *recipes)
    assert levels == [{"recipe": f"5{place}"} for place in range(5)]


def test_a_backbone_with_one_recipe_has_its_level_too(tmp_path):
    folders = [
        make_run(tmp_path / name, SMALL, optimizer__learning_rate=rate) for name, rate in (("a", 0.1), ("b", 0.2))
    ]
    results = load_results(*folders, make_run(tmp_path / "c", MIDDLE, optimizer__learning_rate=0.2))
    assert results.variants == [
        *(f"{SMALL} (learning_rate {rate})" for rate in (0.1, 0.2)),
        f"{MIDDLE} (learning_rate 0.2)",
    ]


def test_runs_that_have_not_begun_stay_with_the_first_recipe(tmp_path):
    study = make_study(tmp_path / "s", backbones=(SMALL,), to_do=(f"{SMALL}_seed1",))
    results = load_results(study, make_run(tmp_path / "other", SMALL, seed=5, optimizer__learning_rate=0.7))
    assert [run.levels["optimizer.learning_rate"] for run in results.runs] == ["0.1", "0.1", "0.7"]
