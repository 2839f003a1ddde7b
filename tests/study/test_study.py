"""Studies: strict in."""

from pathlib import Path

import pytest

from facebones.backbones.catalogue import read_catalogue
from facebones.cli.main import main
from facebones.errors import ConfigError, UnknownNameError
from facebones.profiling.networks import find_sources
from facebones.study.study import load_study

STUDIES = sorted((Path(__file__).parents[2] / "recipes" / "studies").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write_study(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write_study


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_loads_by_path_and_by_name_and_its_backbones_are_known(path):
    study = load_study(path.stem)
    assert load_study(str(path)) == study
    assert study.name == path.stem and study.data == "", "data comes from --data"
    assert len(find_sources(study.backbones)) * len(study.recipes()) >= 3


def test_the_study_of_the_accidents_is_the_published_recipe_with_one_change_at_a_time():
    study = load_study(str(Path(__file__).parents[2] / "docs" / "studies" / "accidents" / "accidents.yaml"))
    as_run, *changed = (recipe for _, recipe in study.recipes())
    assert (as_run.data.order, as_run.data.flip_draw, as_run.optimizer.learning_rate) == ("repeated", "repeated", 0.1)
    accidents = [{"order", "flip_draw"}, {"learning_rate"}, {"clip_norm"}, {"name"}]
    in_all = set().union(*accidents) | {"jpeg_quality", "one_step_ahead"}
    for recipe, fields in zip(changed, [*accidents, in_all], strict=True):
        other = {key for key, value in recipe.values().items() if value != as_run.values()[key]}
        assert {key.rpartition(".")[2] for key in other} == fields


def test_the_published_study_has_its_fourteen_networks():
    names = [source.name for source in find_sources(load_study("study_vggface2").backbones)]
    assert len(names) == 14 and {"iresnet18", "mobilefacenet_wide", "study_shufflemixfacenet_xs"} <= set(names)


def test_the_light_study_has_three_networks_at_each_of_its_budgets():
    macs = {row["name"]: row["macs"] / 1e6 for row in read_catalogue()}
    study = load_study("light_2026")
    found = [macs[source.name] for source in find_sources(study.backbones)]
    assert [sum(low < one <= high for one in found) for low, high in ((50, 100), (150, 300), (300, 600))] == [3, 3, 3]
    assert study.seeds == [0, 1]
    assert {recipe.optimizer.name for _, recipe in study.recipes()} == {"adamw"}, "SGD does not train FaceLiVTv2"


FULL = """
recipe: demo
overrides: {training.epochs: 2, validation.sets: [tiny, other]}
backbones: [mobilefacenet, "mixfacenet_*"]
seeds: [3, 4]
data: faces
pair_sets: lfw
ijb: [IJBC]
profile: {seconds: 0.5, threads: 1}
"""


def test_a_full_study_and_what_the_command_line_replaces(write):
    study = load_study(write(FULL))
    assert (study.seeds, study.data, study.pair_sets, study.ijb) == ([3, 4], "faces", ["lfw"], ["IJBC"])
    assert (study.profile.enabled, study.profile.seconds, study.profile.threads) == (True, 0.5, 1)
    recipe = study.resolved_recipe()
    assert (recipe.training.epochs, recipe.validation.sets, recipe.data.path) == (2, ["tiny", "other"], "faces")

    given = load_study(write(FULL), seeds="7", data="here", backbones=None, overrides={"training.epochs": "5"})
    assert (given.seeds, given.data, given.backbones) == ([7], "here", study.backbones)
    assert given.resolved_recipe().training.epochs == 5
    assert given.resolved_recipe().validation.sets == ["tiny", "other"]


REFUSED = {
    "recipe: demo\nbackbone: [mobilefacenet]": "unknown key 'backbone'; did you mean 'backbones'?",
    "recipe: demi\nbackbones: [r18]": "unknown recipe 'demi'; did you mean 'demo'?",
    "recipe: demo\nbackbones: []": r"mine\.yaml: backbones: is missing or empty",
    "backbones: [r18]": r"mine\.yaml: recipe: is missing or empty",
    "recipe: demo\nbackbones: [r18]\nseeds: [one]": "seeds: 'one' is not a whole number",
    "recipe: demo\nbackbones: [r18]\nseeds: [-1]": "seeds: -1 is out of range",
    "recipe: demo\nbackbones: [r18]\nseeds: [1, 1]": r"mine\.yaml: seeds: 1 is listed twice",
    "recipe: demo\nbackbones: [r18, r18]": "backbones: r18 is listed twice",
    "recipe: demo\nbackbones: {r18: 1}": "backbones: .* is not text",
    "recipe: demo\nbackbones: [r18]\noverrides: [a]": "overrides: must be a mapping",
    "recipe: demo\nbackbones: [r18]\noverrides: {training: {epochs: 2}}": "overrides.training: must be one value",
    "recipe: demo\nbackbones: [r18]\noverrides: {training.epoch: 2}": (
        r"mine\.yaml: overrides\.training\.epoch: unknown key 'epoch'; did you mean 'epochs'"
    ),
    "recipe: demo\nbackbones: [r18]\noverrides: {trainin.epochs: 2}": (
        r"mine\.yaml: overrides\.trainin\.epochs: unknown field 'trainin\.epochs'; did you mean 'training\.epochs'"
    ),
    "recipe: demo\nbackbones: [r18]\noverrides: {training.epochs: many}": (
        r"mine\.yaml: overrides\.training\.epochs: 'many' is not a whole number"
    ),
    "recipe: demo\nbackbones: [r18]\noverrides: {training.seed: 2}": (
        r"mine\.yaml: overrides\.training\.seed: a study sets it by --seeds, or by `seeds` in the file"
    ),
    "recipe: demo\nbackbones: [r18]\nprofile: perhaps": "profile: 'perhaps' is not true or false",
    "recipe: demo\nbackbones: [r18]\nprofile: {second: 1}": "unknown key 'second'; did you mean 'seconds'?",
    "recipe: demo\nbackbones: [r18]\nprofile: {precision: fp8}": "profile.precision: unknown value 'fp8'",
    "- demo": "a study is a mapping of recipe, overrides, vary, tune, backbones",
    "": "a study is a mapping",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_is_said_in_one_line(write, text):
    with pytest.raises((ConfigError, UnknownNameError), match=REFUSED[text]) as refused:
        load_study(write(text))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": "0,0"}, "--seeds: 0 is listed twice"),
        ({"pair_sets": "lfw,lfw"}, "--pair-sets: lfw is listed twice"),
        ({"seeds": ""}, "--seeds: is missing or empty"),
        ({"backbones": ""}, "--backbones: is missing or empty"),
        ({"overrides": {"training.epochs": "many"}}, "--training.epochs: 'many' is not"),
        ({"overrides": {"training.epoch": "2"}}, "--training.epoch: unknown key 'epoch'"),
        ({"overrides": {"training.seed": "2"}}, "--training.seed: a study sets it by --seeds"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_said_of_the_option(write, given, message):
    with pytest.raises((ConfigError, UnknownNameError), match=f"^{message}"):
        load_study(write(FULL), **given)


def test_an_unknown_study_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown study 'compact_faithfull'; did you mean 'compact_faithful'"):
        load_study("compact_faithfull")
    with pytest.raises(ConfigError, match=r"mine\.yaml: no such study file; studies that come with the package: comp"):
        load_study("mine.yaml")


def test_pair_sets_of_the_command_line_replace_those_of_the_study_also_in_validation():
    """The shipped demo names other sets for validation than at the end."""
    assert load_study("demo").resolved_recipe().validation.sets == ["synthetic"]
    study = load_study("demo", pair_sets="lfw,agedb_30")
    assert study.pair_sets == study.resolved_recipe().validation.sets == ["lfw", "agedb_30"]
    study = load_study("demo", pair_sets="lfw", overrides={"validation.sets": "cfp_fp"})
    assert (study.pair_sets, study.resolved_recipe().validation.sets) == (["lfw"], ["cfp_fp"])


def test_the_help_says_what_pair_sets_replace(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "pair sets instead of the study's, to measure and to validate on: names beside the data, or paths" in words
