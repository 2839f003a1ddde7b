"""Whether training data were audited for overlap with the sets of a report: matched by digests, never by names."""

import html
import json

import pytest
from synthetic_study import LARGE, MIDDLE, SMALL, make_run, make_study, metric_json, models_json, write, write_pairs

from facebones.errors import DataError
from facebones.reporting.answer import answer
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text
from facebones.reporting.report import results_json
from facebones.reporting.tables import report_tables

TRAINING = {"data": "elsewhere/faces", "images": 9, "labels_sha256": "a"}
FOUND = {"identical": 1, "near": 2, "person": 30}
PEOPLE = {"model": "r50.onnx", "cut_off": 0.5, "false_rate": 0.0098}
NOT_CHECKED = "Whether the training data, faces, hold images or people of "


def audited(name="lfw", fingerprint="f-lfw", found=FOUND, **more):
    return {"set": name, "images": 12_000, "fingerprint": fingerprint, "found": found, **more}


def audit(folder, *sets, training=TRAINING, people=PEOPLE):
    findings = [{"kind": "person", "set": "lfw", "image": image, "person": image % 7} for image in range(30)]
    content = {"format": 1, "training": training, "people": people, "sets": list(sets), "findings": findings}
    write(folder / "overlap.json", content)
    return folder


def study(folder, fingerprints=(("lfw", "f-lfw"),), **options):
    """A study whose evaluations record digests of their images; that of IJBC is "f-ijbc"."""
    known = dict(fingerprints)
    make_study(folder, sets=tuple(known), **options)
    for file in ("pairs.json", "IJBC/templates.json", "IJBC/identification.json"):
        content = json.loads((folder / "evaluation" / file).read_text())
        for section in content["results"]:
            fingerprint = known.get(section["set"], "f-ijbc")
            section.update({"data": f"sets/{section['set']}"} | ({"fingerprint": fingerprint} if fingerprint else {}))
        write(folder / "evaluation" / file, content)
    return folder


def page(*folders):
    results = load_results(*folders)
    return html.unescape(page_text(results, report_tables(results), answer(results)))


def test_what_an_audit_beside_the_study_found_is_said(tmp_path):
    folder = study(tmp_path / "s")
    nothing = dict.fromkeys(FOUND, 0)
    audit(folder / "overlap", audited(), audited("IJBC", "f-ijbc", nothing))
    results = load_results(folder)
    assert results.overlap == [
        f"The training data, faces, were audited ({folder}/overlap/overlap.json). Of the 12,000 images of lfw, 3 are in"
        " them (1 identical, 2 nearly), and 30 likely show a person of them (7 people). Of the 12,000 images of IJBC, 0"
        " are in them, and 0 likely show a person of them (0 people). As of a person trained on, 0.98 % of strangers'"
        " images are listed by chance."
    ]
    assert [table.key for table in results.trust] == ["overlap"] and results_json(results)["overlap"] == results.overlap
    assert "likely show a person of them" in page(folder).partition('id="trust"')[2]


def test_an_audit_may_be_given_with_the_study_and_says_what_it_did_not_look_for(tmp_path):
    own = study(tmp_path / "s")
    other = audit(tmp_path / "a", audited(found={"identical": 0, "near": 0}), audited("IJBC", "f-ijbc"), people=None)
    (sentence,) = load_results(own, other).overlap
    assert (
        "Of the 12,000 images of lfw, 0 are in them. " in sentence and "Shared people were not looked for" in sentence
    )
    assert load_results(own, other, audit(other / "overlap", audited())).overlap[0] == sentence


def test_no_audit_is_one_sentence_with_the_command(tmp_path):
    folder = study(tmp_path / "s")
    (sentence,) = load_results(folder).overlap
    command = f"facebones data overlap faces sets/lfw sets/IJBC --output {folder}/overlap"
    assert sentence.startswith(f"{NOT_CHECKED}lfw and IJBC was not checked. `{command}` checks the images")
    assert f"<code>{command}</code>" in page(folder).partition('id="trust"')[2]


def test_an_audit_of_other_images_is_said_and_not_used(tmp_path):
    folder = study(tmp_path / "s")
    audit(folder / "overlap", audited(fingerprint="others"), audited("IJBC", "f-ijbc"))
    used, other, left = load_results(folder).overlap
    assert "of IJBC, " in used and "lfw" not in used.replace("/lfw", "")
    assert other.endswith("overlap.json is of other images of lfw than those measured, and not used.")
    assert left.startswith(f"{NOT_CHECKED}lfw was not checked")
    (table,) = load_results(folder).trust
    assert [row[0].text for row in table.rows] == ["lfw (other images)", "IJBC"]


def test_an_audit_of_other_training_data_is_said_and_not_used(tmp_path):
    folder = study(tmp_path / "s")
    audit(folder / "overlap", audited(), training={**TRAINING, "labels_sha256": "b"})
    left, other = load_results(folder).overlap
    assert left.startswith(f"{NOT_CHECKED}lfw and IJBC was not checked")
    assert "is of other training data (elsewhere/faces) than the runs here, and not used." in other
    assert load_results(folder).trust[0].title.endswith("(not those of this report)")


def test_results_without_a_digest_are_matched_with_nothing(tmp_path):
    folder = study(tmp_path / "s", (("lfw", ""),))
    audit(folder / "overlap", audited(), audited("IJBC", "f-ijbc"))
    _, undated = load_results(folder).overlap
    assert undated.startswith("No audit can be matched with lfw") and undated.endswith("evaluate again.")


def test_a_run_by_itself_is_matched_by_the_digest_of_its_validation(tmp_path):
    run = make_run(tmp_path / "r")
    environment = json.loads((run / "environment.json").read_text())
    write(run / "environment.json", environment | {"validation": {"lfw": {"pairs": 6000, "sha256": "v-lfw"}}})
    (sentence,) = load_results(run).overlap
    assert f"`facebones data overlap faces faces/lfw.bin --output {run}/overlap`" in sentence
    audit(run / "overlap", audited(pairs_sha256="v-lfw"))
    (sentence,) = load_results(run).overlap
    assert "Of the 12,000 images of lfw, 3 are in them" in sentence


def test_a_model_without_a_run_asks_for_no_set_that_only_a_run_validated_on(tmp_path):
    run = make_run(tmp_path / "r")
    environment = json.loads((run / "environment.json").read_text())
    write(run / "environment.json", environment | {"validation": {"lfw": {"pairs": 6000, "sha256": "v-lfw"}}})
    write_pairs(run, {"cfp_fp": [metric_json("accuracy", {"theirs": 0.9})]})
    audit(run / "overlap", audited(pairs_sha256="v-lfw"))
    found, undated, unknown = load_results(run).overlap
    assert "images of lfw, 3" in found and "matched with cfp_fp:" in undated and unknown.startswith("What theirs was")


def test_runs_on_different_data_are_told_apart(tmp_path):
    first, other = make_run(tmp_path / "a", SMALL), make_run(tmp_path / "b", MIDDLE, data="b")
    environment = json.loads((other / "environment.json").read_text())
    environment["data"]["path"] = "its faces"
    write(other / "environment.json", environment)
    sentences = load_results(first, other).overlap
    assert [one.partition(", hold")[0].partition("data, ")[2] for one in sentences] == ["faces", "its faces"]
    assert "overlap 'its faces' " in sentences[1]


def test_what_is_not_known_of_training_data_is_said(tmp_path):
    folder = study(tmp_path / "s")
    run = folder / "runs" / SMALL / "seed0" / "environment.json"
    write(run, json.loads(run.read_text()) | {"weights": {"path": "theirs"}})
    file = folder / "evaluation" / "pairs.json"
    content = json.loads(file.read_text())
    content["models"] |= models_json(["theirs"])
    write(file, content)
    _, unknown, begun = load_results(folder).overlap
    assert unknown == "What theirs was trained on is not recorded, so nothing is said of its overlap."
    assert begun.startswith(f"{SMALL}_seed0 began with trained weights")


def test_an_audit_alone_has_a_table_and_nothing_to_be_matched_with(tmp_path):
    results = load_results(audit(tmp_path, audited()))
    assert results.overlap == [] and len(results.trust) == 1


@pytest.mark.parametrize(
    "change",
    [{"training": 3}, {"findings": 3}, {"findings": [{}]}, {"sets": [audited(fingerprint=3)]}, {"people": {}}],
)
def test_a_damaged_audit_is_one_line(tmp_path, change):
    folder = audit(tmp_path, audited())
    write(folder / "overlap.json", json.loads((folder / "overlap.json").read_text()) | change)
    with pytest.raises(DataError, match=r"overlap\.json") as caught:
        load_results(folder)
    assert "\n" not in str(caught.value)


def test_a_large_study_lists_few_names(tmp_path):
    names = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw")
    folder = study(tmp_path / "s", [(name, f"f-{name}") for name in names], backbones=(SMALL, MIDDLE, LARGE))
    (sentence,) = load_results(folder).overlap
    assert sentence.startswith(f"{NOT_CHECKED}6 (lfw, cfp_fp, agedb_30, calfw ...) was not checked")
