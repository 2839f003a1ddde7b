"""`seeds: auto` in a report: the last decision beside the answer, every round in a table, and the numbers of both."""

import html
import json

import pytest
from synthetic_study import LARGE, MIDDLE, SMALL, make_study, write

from facebones.errors import DataError
from facebones.reporting.added_seeds import read_added_seeds
from facebones.reporting.answer import MOST_SENTENCES, answer
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text
from facebones.reporting.report import results_json
from facebones.reporting.tables import report_tables

WANTED = {"difference": 2.0, "power": 0.8, "confidence": 0.8, "set": "", "most": 6, "hours": 0.0}
SPREAD = {"set": "lfw", "levels": [SMALL, MIDDLE], "deviation": 0.8, "upper": 1.254}
FIRST = {"seeds": 3, "more": True, **SPREAD, "power": 0.31, "detectable": 3.85, "verdict": "one seed more of up to 6"}
ENOUGH = {"seeds": 4, "more": False, **SPREAD, "power": 0.83, "detectable": 1.94, "verdict": "that is enough (80 %)"}
FEW = {**FIRST, "more": False, "verdict": "not enough, but 3 seeds are the most (auto_seeds.most)"}
OPEN = {
    **{"seeds": 3, "more": False, "why": "3 seeds: not decided before a_seed2 is done", "levels": []},
    **dict.fromkeys(("deviation", "upper", "power")),
}
POWERLESS = "3 seeds each would find a difference of 2 points in lfw accuracy with 31 % power and 3.85 points with 80 %"
VARIES = f"between seeds of {SMALL} and {MIDDLE} it varies by ± 0.80 points (at most ± 1.25, 80 % confidence)"


def study(folder, *rounds, wanted=WANTED, **options):
    make_study(folder, seeds=(0, 1, 2), **options)
    content = json.loads((folder / "study.json").read_text())
    content["auto_seeds"] = [{"why": f"{one['seeds']} seeds: {one.get('verdict')}", **one} for one in rounds]
    content["study"]["auto_seeds"] = wanted
    write(folder / "study.json", content)
    return folder


@pytest.mark.parametrize(
    ("rounds", "sentence"),
    [
        (
            [FIRST, ENOUGH],
            "4 seeds each would find a difference of 2 points in lfw accuracy with 83 % power, so no more were added: "
            f"{VARIES}.",
        ),
        (
            [FIRST],
            f"{POWERLESS}: {VARIES}; one more is to be trained.",
        ),
        (
            [FEW],
            f"{POWERLESS}: {VARIES}; not enough, but 3 seeds are the most (auto_seeds.most).",
        ),
        ([OPEN], "Seeds are added until a difference of 2 points would be found; 3 seeds: not decided before a_seed2"),
    ],
)
def test_the_last_decision_stands_in_the_answer_however_long_that_is(tmp_path, rounds, sentence):
    few = answer(load_results(study(tmp_path / "few", *rounds)))
    assert sum(one.startswith(sentence) for one in few.sentences) == 1
    sets = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
    many = answer(load_results(study(tmp_path / "many", *rounds, backbones=(SMALL, MIDDLE, LARGE), sets=sets)))
    assert len(many.sentences) <= MOST_SENTENCES < len(many.details)
    assert sum(one.startswith(sentence) for one in many.sentences) == 1
    assert any("Student's t test" in rule and "seeds: auto" in rule for rule in many.rules)


def test_every_round_has_a_row_with_what_decided_in_the_section_on_trust(tmp_path):
    results = load_results(study(tmp_path / "s", FIRST, ENOUGH))
    (table,) = [one for one in report_tables(results) if one.key == "added_seeds"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["3", f"{SMALL} and {MIDDLE}", "0.80", "1.25", "3.85", "31 %", "one seed more of up to 6"],
        ["4", f"{SMALL} and {MIDDLE}", "0.80", "1.25", "1.94", "83 %", "that is enough (80 %)"],
    ]
    assert table.section == "trust" and table.columns[5] == "power for 2 points"
    for words in ("last lfw accuracy", "upper 80 % limit", "Student's t test", "At most 6 seeds each. "):
        assert words in table.note
    page = html.unescape(page_text(results, report_tables(results), answer(results)))
    assert 'id="table-added_seeds"' in page.partition('id="trust"')[2] and "so no more were added" in page
    assert results_json(results)["added_seeds"][0]["wanted"] == WANTED
    assert [one["detectable"] for one in results_json(results)["added_seeds"][0]["rounds"]] == [3.85, 1.94]


def test_rounds_that_other_settings_had_begun_say_so(tmp_path):
    results = load_results(study(tmp_path / "s", {**ENOUGH, "seeds": 3}, ENOUGH, wanted={**WANTED, "hours": 4.5}))
    (table,) = [one for one in report_tables(results) if one.key == "added_seeds"]
    assert [row[-1].text for row in table.rows] == [
        "that is enough (80 %); the next round had begun by other settings",
        "that is enough (80 %)",
    ]
    assert "4.5 hours of training in all" in table.note


def test_a_record_of_an_older_version_lacks_words_and_not_the_page(tmp_path):
    older = {key: one for key, one in ENOUGH.items() if key not in ("set", "detectable", "verdict")}
    results = load_results(study(tmp_path / "s", {**older, "why": "4 seeds: that is enough"}))
    (table,) = [one for one in report_tables(results) if one.key == "added_seeds"]
    assert [cell.text for cell in table.rows[0]][4:] == ["-", "83 %", "4 seeds: that is enough"]
    assert any("would find a difference of 2 points with 83 % power" in one for one in answer(results).sentences)


def test_a_study_with_numbered_seeds_has_neither(tmp_path):
    results = load_results(make_study(tmp_path / "s"))
    assert not results.added_seeds and results_json(results)["added_seeds"] == []
    assert "added_seeds" not in [table.key for table in report_tables(results)]


def test_two_studies_have_a_table_each(tmp_path):
    first = study(tmp_path / "a", FIRST, name="one")
    second = study(tmp_path / "b", ENOUGH, name="other")
    titles = [table.title for table in report_tables(load_results(first, second)) if table.section == "trust"]
    assert titles == ["Added seeds of one", "Added seeds of other"]


@pytest.mark.parametrize("content", [3, {"a": 1}, [3], [{}], [{**ENOUGH, "why": 3}], [{**ENOUGH, "power": "much"}]])
def test_a_damaged_record_is_one_line(tmp_path, content):
    folder = study(tmp_path / "s", ENOUGH)
    damaged = json.loads((folder / "study.json").read_text()) | {"auto_seeds": content}
    write(folder / "study.json", damaged)
    with pytest.raises(DataError, match=r"study\.json: unexpected content") as caught:
        load_results(folder)
    assert "\n" not in str(caught.value)


def test_a_record_without_what_was_wanted_is_refused(tmp_path):
    with pytest.raises(KeyError):
        read_added_seeds({"auto_seeds": [ENOUGH], "study": {"name": "s"}})
