"""Recipes: strict in, and out again."""

from pathlib import Path

import pytest

from facebones.backbones import lookup_backbone
from facebones.errors import ConfigError, UnknownNameError
from facebones.recipe import Recipe, dump_recipe, field_help, field_names, load_recipe, recipe_from_dict

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write_recipe(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write_recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_by_path_and_by_name_and_round_trips(path, write):
    recipe = load_recipe(path)
    assert load_recipe(path.stem) == recipe
    assert load_recipe(write(dump_recipe(recipe))) == recipe
    assert recipe.data.path == "", "data comes from --data"
    lookup_backbone(recipe.backbone.name)


def test_the_study_recipe_is_the_published_one():
    recipe = load_recipe("vggface2_arcface")
    head, optimizer, schedule, training = recipe.head, recipe.optimizer, recipe.schedule, recipe.training
    assert head.name == "arcface"
    combined = head.options.combined()
    assert (combined.scale, combined.m1, combined.m2, combined.m3, combined.sample_rate) == (64, 1, 0.5, 0, 1)
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay, optimizer.learning_rate) == (
        "sgd",
        0.9,
        5e-4,
        0.1,
    )
    assert (schedule.name, schedule.power, schedule.warmup_epochs) == ("polynomial", 2, 0)
    assert (training.epochs, training.batch_size, training.precision) == (20, 128, "fp16")
    assert (recipe.validation.sets, recipe.validation.every) == (["lfw", "cfp_fp", "agedb_30"], 2000)
    assert not recipe.data.flip, "the paper: no augmentation"


def test_the_study_as_it_ran_differs_from_its_paper_in_its_accidents_alone():
    paper, code = (load_recipe(name).values() for name in ("vggface2_arcface", "study_as_run"))
    assert {name: value for name, value in code.items() if value != paper[name]} == {
        "data.order": "repeated",
        "data.flip": True,
        "data.flip_draw": "repeated",
        "data.jpeg_quality": 75,
        "schedule.one_step_ahead": True,
    }


def test_overrides_reach_every_kind_of_field(write):
    overrides = {
        "backbone.name": "r50",
        "optimizer.learning_rate": "5e-2",
        "training.epochs": "3",
        "data.flip": "false",
        "validation.sets": "lfw,agedb_30",
        "schedule.milestones": "[10, 18.5]",
        "data.path": "2026",
        "training.seed": "9007199254740993",
    }
    recipe = load_recipe(write("optimizer: {learning_rate: 0.1}"), overrides)
    assert recipe.backbone.name == "r50"
    assert recipe.optimizer.learning_rate == 0.05
    assert recipe.training.epochs == 3 and recipe.data.flip is False
    assert recipe.validation.sets == ["lfw", "agedb_30"]
    assert recipe.schedule.milestones == [10.0, 18.5]
    assert recipe.data.path == "2026"
    assert recipe.training.seed == 2**53 + 1, "not by way of a float"
    assert load_recipe(write(""), {"schedule.milestones": "10, 18.5"}).schedule.milestones == [10.0, 18.5]


@pytest.mark.parametrize("text", ["0123", "a # b", "yes", "1e3", "a: b", "[x", "~", "2026-13-45", "'q'"])
def test_text_is_taken_as_it_stands(write, text):
    assert load_recipe(write(""), {"data.path": text}).data.path == text
    sets = load_recipe(write(""), {"validation.sets": f"{text},cfp_fp"}).validation.sets
    assert sets == [text.removeprefix("["), "cfp_fp"]


def test_plain_text_in_a_recipe_is_taken_as_it_stands(write):
    recipe = load_recipe(write("data: {path: 0123}\nvalidation: {sets: [lfw, 1e3, no]}\ntraining: {epochs: '3'}"))
    assert (recipe.data.path, recipe.validation.sets, recipe.training.epochs) == ("0123", ["lfw", "1e3", "no"], 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optimizer: {learning_rte: 1}",
            "optimizer.learning_rte: unknown key 'learning_rte'; did you mean 'learning_rate'?",
        ),
        ("optimiser: {}", "unknown section 'optimiser'; did you mean 'optimizer'?"),
        ("optimizer: {name: sdg}", "optimizer.name: unknown value 'sdg'; did you mean 'sgd'?"),
        ("training: {epochs: many}", "training.epochs: 'many' is not a whole number"),
        ("training: {epochs: 2.5}", "training.epochs: '2.5' is not a whole number"),
        ("training: {epochs: true}", "training.epochs: 'true' is not a whole number"),
        ("training: {epochs: 0}", "training.epochs: 0 is out of range; it must be at least 1"),
        ("head: {sample_rate: 1.5}", "head.sample_rate: 1.5 is out of range; it must be above 0 and at most 1"),
        ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate: '.nan' is not a finite number"),
        ("head: {name: [a]}", "head.name: ['a'] is not text"),
        ("head: {name: arcfac}", "head.name: unknown head 'arcfac'; did you mean 'arcface'?"),
        ("head: {name: arcface, margni: 1}", "unknown option of head arcface 'margni'; did you mean 'margin'?"),
        ("head: {margin: 0.4}", "head combined has no option 'margin'; `head.name: arcface` has it"),
        ("import: {a: b}", "import: {'a': 'b'} is not text"),
        ("import: no_such_plug_in", "import no_such_plug_in: cannot be imported"),
        ("data: {held_out: 0.95}", "data.held_out: 0.95 is out of range; it must be at least 0 and at most 0.9"),
        ("training: {stop_below: [0.5, 1.5]}", "stop_below: 1.5 is out of range; it must be at least 0 and at most 1"),
        ("training: {stop_below: [0.5, .nan]}", "training.stop_below: '.nan' is not a finite number"),
        ("data: {flip: 1}", "data.flip: '1' is not true or false"),
        ('data: {path: "a\\0b"}', "data.path: 'a\\x00b' is not text"),
        ("data: {path: [a]}", "data.path: ['a'] is not text"),
        ("data: 3", "section 'data' is a mapping of fields, not '3'"),
        ("- a", "a recipe is a mapping of sections"),
        ("data: {path: a, path: b}", "line 1: not valid YAML: key 'path' stands twice"),
        ("data:\n  path: 'a", "line 2: not valid YAML"),
        (
            "data: !!python/object/apply:os.system [true]",
            "line 1: not valid YAML: a tag (!name) has no place in a recipe",
        ),
        ("data: {path: !!timestamp x}", "line 1: not valid YAML: a tag (!name) has no place"),
        ("data: &a {path: x}\nhead: *a", "line 2: not valid YAML: an alias (*name) has no place in a recipe"),
        ("? [a]\n: 1", "line 1: not valid YAML: a key that is not text"),
        ("data:\n  path: a\x07b", "line 2: not valid YAML: the character U+0007 is not allowed"),
        ("data: " + "[" * 5000, "nested too deep"),
        ("data: [" + "[]," * 40_000 + "]", "line 1: not valid YAML: more than 32768 values, which no recipe has"),
        ("#" * (2**20 + 1), "larger than 1048576 bytes"),
        ("#" + "é" * 2**19 + "\nnonsense: {}", "larger than 1048576 bytes"),
        ("training: {epochs: 2026-13-45}", "training.epochs: '2026-13-45' is not a whole number"),
        ("training: {seed: 2026-01-01}", "training.seed: '2026-01-01' is not a whole number"),
        (f"training: {{seed: {10**400}}}", "is out of range; it must be at least 0 and at most 9223372036854775807"),
        (f"training: {{seed: {'9' * 5000}}}", "is not a whole number"),
        ("training: {epochs: .inf}", "training.epochs: '.inf' is not a whole number"),
        ("training: {epochs: 1e999}", "training.epochs: '1e999' is not a whole number"),
        (f"optimizer: {{learning_rate: {10**400}}}", "is not a finite number"),
        ("optimizer: {learning_rate: 1:2:3}", "'1:2:3' is not a finite number"),
        ("optimizer: {learning_rate: 1e300}", "learning_rate: 1e+300 is out of range; it must be above 0 and at most"),
        ("optimizer: {beta1: 1}", "optimizer.beta1: 1.0 is out of range; it must be at least 0 and at most 0.9999"),
        ("optimizer: {beta2: 1}", "optimizer.beta2: 1.0 is out of range"),
        ("data: {workers: 1000000}", "data.workers: 1000000 is out of range"),
        ("data: {shuffle: block}", "data.shuffle: 'block' is not full or block:N, such as block:1024"),
        ("data: {shuffle: 'block:0'}", "data.shuffle: 'block:0' is not full or block:N"),
        ("data: {shuffle: 'block:-3'}", "data.shuffle: 'block:-3' is not full or block:N"),
        ("data: {shuffle: Full}", "data.shuffle: 'Full' is not full or block:N"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line_that_names_the_file(write, text, message):
    path = write(text)
    with pytest.raises((ConfigError, UnknownNameError)) as error:
        load_recipe(path)
    assert str(path) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "optimizer.learning_rte",
            "1",
            "--optimizer.learning_rte: unknown key 'learning_rte'; did you mean 'learning_rate'?",
        ),
        ("optimiser.momentum", "1", "unknown option '--optimiser.momentum'; did you mean '--optimizer.momentum'?"),
        ("training.epochs", "x", "--training.epochs: 'x' is not a whole number"),
        ("training", "x", "unknown option '--training'"),
        ("head.m4", "1", "--head.m4: unknown option of head combined 'm4'; did you mean 'm"),
        ("head.name", "cosfac", "--head.name: unknown head 'cosfac'; did you mean 'cosface'?"),
        ("head.margin", "-1", "--head.margin: head combined has no option 'margin'"),
        ("training.seed", "-1", "--training.seed: -1 is out of range; it must be at least 0"),
        ("training.seed", "1" + "0" * 400, "is out of range; it must be at least 0 and at most 9223372036854775807"),
        ("schedule.milestones", "3,x", "--schedule.milestones: 'x' is not a finite number"),
    ],
)
def test_a_bad_override_is_refused_with_the_option_named(write, name, value, message):
    with pytest.raises((ConfigError, UnknownNameError)) as error:
        load_recipe(write(""), {name: value})
    assert message in str(error.value)


def test_a_missing_recipe_names_those_that_come_along(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe file; recipes that come with the package: casia_webface"):
        load_recipe(tmp_path / "x.yaml")
    with pytest.raises(UnknownNameError, match="unknown recipe 'vggface_arcface'; did you mean 'vggface2_arcface'"):
        load_recipe("vggface_arcface")


def test_a_small_file_cannot_grow(write):
    """Each line doubles the one before, by aliases, merges or keys."""
    for line in ("b{i}: [*b{j}, *b{j}]", "b{i}: {{<<: [*b{j}, *b{j}]}}", "? *b{j}\n: x"):
        lines = ["b0: &b0 [x]", *(line.format(i=i, j=i - 1).replace(": ", f": &b{i} ", 1) for i in range(1, 40))]
        with pytest.raises(ConfigError, match="has no place in a recipe"):
            load_recipe(write("\n".join(lines)))


def test_help_names_every_field():
    assert [name for name, _ in field_help()] == field_names()
    assert dict(field_help())["head.m2"] == "combined: added to the angle, radians (ArcFace) [0.5]"
    assert dict(field_help())["head.sample_rate"].endswith("[1.0]") and "arcface" in dict(field_help())["head.margin"]
    assert dict(field_help())["validation.sets"].endswith("; commas between several")
    assert recipe_from_dict({}) == Recipe()
