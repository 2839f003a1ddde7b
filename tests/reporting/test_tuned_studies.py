"""Tuned studies in reports: what the trials chose, whether the order of the backbones changes, and what is no news."""

import itertools
import json
from pathlib import Path

import pytest
from synthetic_study import MIDDLE, SMALL, make_run, make_study, metric_json, write, write_pairs

from facebones.errors import DataError
from facebones.reporting import tuning as reported
from facebones.reporting.answer import MOST_SENTENCES, ORDER_RULE, answer
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text
from facebones.reporting.report import results_json
from facebones.reporting.results import Cost, MetricResult, Results, Run
from facebones.reporting.table_files import csv_text
from facebones.reporting.tables import report_tables
from facebones.reporting.tuning_order import order_sentences
from facebones.study import planned_run

LEVELS = ("default", "tuned")
RATE, SCHEDULE = "optimizer.learning_rate", "schedule.name"
OWN = {"optimizer": {"learning_rate": 0.1}, "schedule": {"name": "polynomial"}}
ORDER = "Tuning {} the order of the backbones by lfw accuracy"


def trial(number, accuracy, state="done", error=None, **fields):
    named = {name.replace("__", "."): value for name, value in fields.items()}
    known = {"trial": number, "fields": named, "state": state, "accuracy": accuracy, "steps": 1200}
    return {**known, "step": 1200 if state == "done" else 300, "error": error}


TRIALS = {
    SMALL: (
        2,
        trial(0, 0.61),
        trial(1, 0.55, "stopped early", optimizer__learning_rate="0.3", schedule__name="cosine"),
        trial(2, 0.645, optimizer__learning_rate="0.02", schedule__name="polynomial"),
        trial(3, None, "failed", "the loss is NaN", optimizer__learning_rate="3", schedule__name="cosine"),
    ),
    MIDDLE: (0, trial(0, 0.7), trial(1, 0.7, optimizer__learning_rate="0.3", schedule__name="cosine")),
}


def make_tuned(folder, trials=TRIALS, levels=(None,), seeds=(0,), other=None):
    """A study of two tuned backbones: the first has the rate 0.02 at tuned; `levels` are those of a factor "loss"."""
    study = make_study(folder, seeds=(0,))
    content = json.loads((study / "study.json").read_text())
    rows, values = [], {}
    for (place, name), loss, level, seed in itertools.product(enumerate(trials), levels, LEVELS, seeds):
        run = "_".join(filter(None, (name, loss, level, f"seed{seed}")))
        fields = {"optimizer__learning_rate": 0.02} if (place, level) == (0, "tuned") else {}
        if other and (place, level) == (1, "tuned"):
            fields |= other
        make_run(folder / "runs" / run, name, seed, head__name=loss or "arcface", **fields)
        values[run] = 0.9 + 0.01 * place + (0.02 if level == "tuned" else 0)
        known = {"name": run, "backbone": name, "seed": seed, "folder": f"runs/{run}", "state": "done"}
        at = ({"loss": loss} if loss else {}) | {"tuning": level}
        rows.append({**known, "levels": at, "steps": 4, "error": None, "final": []})
    costs = {row["backbone"]: row for row in content["summary"]}
    found = [
        {"name": name, "backbone": name, "levels": {"loss": loss} if loss else {}, "chosen": chosen, "trials": tried}
        for (name, (chosen, *tried)), loss in itertools.product(trials.items(), levels)
    ]
    write_pairs(folder / "evaluation", {"lfw": [metric_json("accuracy", values)]})
    space = {RATE: {"low": "0.01", "high": "3"}, SCHEDULE: ["polynomial", "cosine"]}
    content |= {
        "study": {**content["study"], "tune": {"space": space}},
        "recipe": OWN,
        "tuning": {"people": 22, "pairs": 6000, "backbones": found},
        "runs": rows,
        "summary": [{**costs[row["backbone"]], "levels": row["levels"]} for row in rows],
        "models": {row["name"]: str(folder / row["folder"]) for row in rows},
        "evaluation": [one for one in content["evaluation"] if one["protocol"] == "pairs"],
    }
    write(study / "study.json", content)
    return study


def edit(study, change):
    content = json.loads((study / "study.json").read_text())
    change(content)
    write(study / "study.json", content)


def tables_of(*folders):
    return {table.key: table for table in report_tables(load_results(*folders))}


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_the_words_of_study_files_stay_as_they_are():
    assert (reported.FACTOR, reported.DEFAULT, reported.TUNED) == ("tuning", "default", "tuned")
    assert (reported.DONE, reported.STOPPED, reported.FAILED) == (planned_run.DONE, "stopped early", "failed")


# -------------------------------------------------------------------------------------------------------- tables


def test_the_table_says_what_was_chosen_and_how_well_it_did(tmp_path):
    table = tables_of(make_tuned(tmp_path / "s"))["tuning"]
    assert texts(table) == [
        [SMALL, "2", "0.1 -> 0.02", "polynomial", "61.00 %", "64.50 %", "2", "1", "1"],
        [MIDDLE, "0, the recipe as it is", "0.1", "polynomial", "70.00 %", "70.00 %", "2", "0", "0"],
    ]
    assert table.rows[0][0].about == tuple(f"{SMALL} ({level})" for level in LEVELS)
    assert table.note.startswith(
        "What decided is the accuracy on 6,000 pairs of 22 people on whom no trial trained; no reported set took part."
        " The best of 4 trials looks better there than it is"
    )


def test_every_trial_has_a_row_and_the_chosen_one_is_marked(tmp_path):
    study = make_tuned(tmp_path / "s")
    table = tables_of(study)["tuning_trials"]
    assert texts(table)[:4] == [
        [SMALL, "0", "0.1", "polynomial", "61.00 %", "done", "1,200 / 1,200", ""],
        [SMALL, "1", "0.3", "cosine", "55.00 %", "stopped early", "300 / 1,200", ""],
        [SMALL, "2", "0.02", "polynomial", "64.50 %", "done, chosen", "1,200 / 1,200", ""],
        [SMALL, "3", "3", "cosine", "-", "FAILED", "300 / 1,200", "the loss is NaN"],
    ]
    assert len(table.rows) == 6 and table.folded


def test_a_factor_of_the_study_is_a_column_and_every_row_of_the_csv_has_its_name(tmp_path):
    found = tables_of(make_tuned(tmp_path / "s", levels=("arcface", "cosface")))
    assert [row[:2] for row in texts(found["tuning"])] == [
        [name, loss] for name in (SMALL, MIDDLE) for loss in ("arcface", "cosface")
    ]
    assert found["tuning"].rows[1][0].about == tuple(f"{SMALL} (cosface, {level})" for level in LEVELS)
    lines = csv_text([found["tuning_trials"]]).splitlines()
    assert f'tuning_trials,"{SMALL}, cosface, 2",accuracy,0.645,64.50 %' in lines
    assert len({*lines}) == len(lines)


@pytest.mark.parametrize(
    ("trials", "chosen", "left"),
    [
        ((trial(0, 0.6), trial(1, None, "to do")), "none yet", 1),
        ((trial(0, None, "failed", "NaN"), trial(1, None, "failed", "NaN")), "none: all failed", None),
    ],
)
def test_without_a_choice_the_table_says_why(tmp_path, trials, chosen, left):
    table = tables_of(make_tuned(tmp_path / "s", {SMALL: (None, *trials), MIDDLE: (None, *trials)}))["tuning"]
    row = dict(zip(table.columns, texts(table)[0], strict=True))
    assert (row["chosen trial"], row[RATE], row["accuracy of the chosen"]) == (chosen, "0.1", "-")
    assert row.get("trials left") == (left and str(left))


def test_two_studies_have_their_own_tables_and_a_study_without_tuning_has_none(tmp_path):
    tuned, plain = make_tuned(tmp_path / "a"), make_study(tmp_path / "b")
    assert not any(key.startswith("tuning") for key in tables_of(plain))
    edit(again := make_tuned(tmp_path / "c"), lambda content: content["study"].update(name="other"))
    found = tables_of(tuned, plain, again)
    assert [table.title for key, table in found.items() if key.startswith("tuning")] == [
        "Tuning of demo", "All trials of demo", "Tuning of other", "All trials of other",
    ]  # fmt: skip


def test_the_json_has_the_trials_as_the_study_does(tmp_path):
    study = make_tuned(tmp_path / "s")
    content = json.loads((study / "study.json").read_text())
    assert results_json(load_results(study))["tuning"] == [content["tuning"]]
    assert results_json(load_results(make_study(tmp_path / "plain")))["tuning"] == []


def test_the_page_has_a_section_with_the_trials_folded(tmp_path):
    results = load_results(make_tuned(tmp_path / "s"))
    page = page_text(results, report_tables(results), answer(results))
    section = page[page.index('<section id="tuning"') : page.index('<section id="training"')]
    assert '<a href="#tuning">' in page and page.count('id="table-tuning_trials"') == 1
    assert section.index("0, the recipe as it is") < section.index("<details") < section.index("the loss is NaN")
    plain = load_results(make_study(tmp_path / "plain"))
    assert 'href="#tuning"' not in page_text(plain, report_tables(plain), answer(plain))


def first_row(content):
    return content["tuning"]["backbones"][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(tuning=[]),
        lambda content: content.update(tuning=None),
        lambda content: content["study"].pop("tune"),
        lambda content: content["recipe"].pop("schedule"),
        lambda content: content["tuning"].update(people="many"),
        lambda content: first_row(content).update(chosen=9),
        lambda content: first_row(content).update(levels=["loss"]),
        lambda content: first_row(content)["trials"][1].update(accuracy="good"),
        lambda content: first_row(content)["trials"][1].update(fields={"head.name": "arcface"}),
        lambda content: first_row(content)["trials"][1].update(fields={RATE: 0.3}),
        lambda content: first_row(content)["trials"][1].pop("state"),
    ],
)
def test_a_damaged_tuning_is_refused_with_the_name_of_its_file(tmp_path, change):
    edit(study := make_tuned(tmp_path / "s"), change)
    with pytest.raises(DataError) as caught:
        load_results(study)
    assert str(caught.value).startswith(f"{study / 'study.json'}: unexpected content") and "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- notes


def test_what_trials_chose_is_no_difference_to_note_and_everything_else_is(tmp_path):
    assert load_results(make_tuned(tmp_path / "s", seeds=(0, 1))).notes == []
    (note,) = load_results(make_tuned(tmp_path / "other", other={"optimizer__momentum": 0.5})).notes
    assert "they differ in optimizer.momentum;" in note


def test_other_rates_at_default_are_noted(tmp_path):
    study = make_tuned(tmp_path / "s")
    make_run(study / "runs" / f"{SMALL}_default_seed0", SMALL, 0, head__name="arcface", optimizer__learning_rate=0.5)
    (note,) = load_results(study).notes
    assert "they differ in optimizer.learning_rate;" in note


# --------------------------------------------------------------------------------------------------------- order


def make_results(values, alike=(), tested=True, higher_is_better=True):
    """Results of runs; `values` are of (backbone, *levels), the last of tuning, and `alike` does not differ."""
    runs = {
        key: Run(
            name="_".join(key),
            backbone=key[0],
            levels=dict(zip(("loss", "tuning")[-len(key[1:]) :], key[1:], strict=True)) if key[1:] else {},
            seed=0,
            folder=Path("_".join(key)),
        )
        for key in values
    }
    comparisons = [
        {
            "first": runs[a].name,
            "second": runs[b].name,
            "difference": values[a] - values[b],
            "interval": {"low": -1.0, "high": 1.0},
        }
        | dict.fromkeys(("p_value", "adjusted"), 0.5 if {a, b} in map(set, alike) else 1e-6)
        for a, b in itertools.combinations(runs, 2)
    ]
    metric = MetricResult(
        protocol="pairs",
        set="lfw",
        name="accuracy",
        main=True,
        higher_is_better=higher_is_better,
        values={runs[key].name: value for key, value in values.items()},
        comparisons=comparisons if tested else [],
    )
    given = {"title": "s", "folders": [], "runs": list(runs.values()), "metrics": [metric], "curves": {}, "cmc": {}}
    empty = {"conditions": {}, "recipe": {}, "notes": [], "command": ""}
    tuned = reported.Tuning(study="s", people=2, pairs=20, own={}, backbones=[], content={})
    return Results(**given, **empty, costs={run.variant: Cost() for run in runs.values()}, tunings=[tuned])


def at_levels(**accuracies):
    """Values of backbones at default and at tuned."""
    return {
        (name, level): value for name, pair in accuracies.items() for level, value in zip(LEVELS, pair, strict=True)
    }


def said(results):
    sentences = order_sentences(results, results.main_metrics()[0])
    found = answer(results)
    assert [sentence for sentence in found.details or found.sentences if "uning " in sentence] == sentences
    assert len(found.sentences) <= MOST_SENTENCES
    assert (ORDER_RULE in answer(results).rules) == bool(sentences)
    return sentences


AT_DEFAULT, AT_TUNED = (tuple((name, level) for name in "ab") for level in LEVELS)


@pytest.mark.parametrize(
    ("alike", "verdict"),
    [
        ([], "significant at both levels"),
        ([AT_DEFAULT, AT_TUNED], "not significant at either level"),
        ([AT_DEFAULT], "not significant at default and significant at tuned"),
        ([AT_TUNED], "significant at default and not significant at tuned"),
    ],
)
def test_two_backbones_that_change_places_are_named_with_their_tests(alike, verdict):
    results = make_results(at_levels(a=(0.8, 0.85), b=(0.82, 0.84)), alike)
    assert said(results) == [f"{ORDER.format('changes')}: a overtakes b; the difference of a and b is {verdict}."]


def test_without_tests_nothing_is_called_significant():
    (sentence,) = said(make_results(at_levels(a=(0.8, 0.85), b=(0.82, 0.84)), tested=False))
    assert sentence.endswith("a overtakes b; the difference of a and b is not tested.")


def test_an_order_that_stays_is_said_to_stay():
    assert said(make_results(at_levels(a=(0.8, 0.85), b=(0.82, 0.86), c=(0.9, 0.9)))) == [
        f"{ORDER.format('does not change')}."
    ]
    assert said(make_results(at_levels(a=(0.8, 0.8), b=(0.8, 0.8)))) == [f"{ORDER.format('does not change')}."]


def test_of_an_error_the_lower_one_is_better():
    (sentence,) = said(make_results(at_levels(a=(0.1, 0.05), b=(0.08, 0.07)), higher_is_better=False))
    assert "a overtakes b;" in sentence


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ((0.8, 0.85), (0.8, 0.9), "a and b tie at default and b is better at tuned"),
        ((0.8, 0.85), (0.7, 0.85), "a is better than b at default and ties with it at tuned"),
    ],
)
def test_a_tie_at_one_level_is_a_change(a, b, words):
    (sentence,) = said(make_results(at_levels(a=a, b=b)))
    assert f": {words}; the difference" in sentence


def test_of_several_changes_the_significant_ones_are_named():
    values = at_levels(a=(0.80, 0.89), b=(0.82, 0.85), c=(0.84, 0.86))
    pairs = [
        ((first, level), (second, level)) for first, second in (*zip("aa", "bc", strict=True),) for level in LEVELS
    ]
    head = f"{ORDER.format('changes')}: a overtakes b; a overtakes c; "
    assert said(make_results(values, pairs)) == [f"{head}none of these differences is significant at either level."]
    assert said(make_results(values, pairs[:3])) == [
        f"{head}the difference of a and c is not significant at default and significant at tuned; no other of these"
        " differences is significant."
    ]
    assert said(make_results(values, tested=False)) == [f"{head}no test compares them."]


def test_many_changes_are_counted():
    (sentence,) = said(make_results(at_levels(a=(0.1, 0.5), b=(0.2, 0.4), c=(0.3, 0.3), d=(0.4, 0.2))))
    assert "b overtakes c; 2 more pairs change places; 6 of these differences are significant" in sentence


def test_backbones_without_both_levels_are_left_out():
    values = at_levels(a=(0.8, 0.85), b=(0.82, 0.84)) | {("c", "default"): 0.9, ("file",): 0.7}
    assert said(make_results(values))[0].startswith("Tuning changes the order of a and b by lfw accuracy: a overtakes")
    assert said(make_results({key: value for key, value in values.items() if key[0] != "a"})) == []
    assert said(make_results({("a", "default"): 0.8, ("b", "default"): 0.9})) == []


def test_each_level_of_another_factor_has_its_sentence():
    values = {
        (name, loss, level): 0.8 + 0.01 * place
        for place, (name, loss, level) in enumerate(itertools.product("ab", ("arcface", "cosface"), LEVELS))
    }
    values["a", "cosface", "tuned"] = 0.99
    assert [sentence.split(" by ")[0] for sentence in said(make_results(values))] == [
        "With arcface, tuning does not change the order of the backbones",
        "With cosface, tuning changes the order of the backbones",
    ]
