"""Options with one name and one meaning: old names, short names, plug-ins, and the lists of what ships."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from facebones.cli.main import COMMANDS, _parse, main
from facebones.cli.options import RECIPE_OPTIONS, RENAMED_OPTIONS
from facebones.recipe import field_names, load_recipe
from facebones.strict_yaml import shipped_files

EXAMPLES = Path(__file__).parents[1] / "examples"
PAIRS = "evaluate pairs --data lfw.bin"
TEMPLATES = "evaluate templates --model r --data IJBC"
SEARCH = "evaluate identification --model r --data IJBC"
# The old command line, the current one, and the note.
OLD = [
    (f"{PAIRS} --checkpoint r", f"{PAIRS} --model r", "--checkpoint is now --model"),
    (f"{PAIRS} --checkpoint=a=r --checkpoint b=s", f"{PAIRS} --model a=r --model b=s", "--checkpoint is now --model"),
    ("export --checkpoint r --output o", "export --model r --output o", "--checkpoint is now --model"),
    (f"{TEMPLATES} --settings all", f"{TEMPLATES} --pooling all", "--settings is now --pooling"),
    (f"{SEARCH} --setting N1D0F1", f"{SEARCH} --pooling N1D0F1", "--setting is now --pooling"),
    (f"{TEMPLATES} --replicates 200", f"{TEMPLATES} --bootstrap 200", "--replicates is now --bootstrap"),
    ("train demo --output r --speed auto", "train demo --output r --autotune", "--speed auto is now --autotune"),
    ("train demo --output r --speed=auto", "train demo --output r --autotune", "--speed auto is now --autotune"),
    ("train demo --output r --speed recipe", "train demo --output r", "--speed auto is now --autotune"),
    ("compare demo --output r --speed auto", "compare demo --output r --autotune", "--speed auto is now --autotune"),
]


def parse(line):
    return vars(_parse(line.split()))


def refusal(capsys, *words):
    assert main([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("facebones: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(("old", "new", "note"), OLD, ids=[old for old, _, _ in OLD])
def test_an_old_name_means_the_new_one_and_says_so_once(capsys, old, new, note):
    assert parse(old) == parse(new)
    assert capsys.readouterr().err == f"note: {note}\n"


def test_every_renamed_option_is_in_the_table_above():
    assert {*RENAMED_OPTIONS, "--speed"} == {note.split()[0] for _, _, note in OLD}


def test_an_old_name_as_a_value_stays(capsys):
    assert parse("data inspect -- --checkpoint")["path"] == Path("--checkpoint")
    assert capsys.readouterr().err == ""


def test_a_speed_that_never_was(capsys):
    assert "--speed fast: is auto or recipe; --autotune replaces" in refusal(
        capsys, "train", "demo", "--output", "r", "--speed", "fast"
    )


def test_help_shows_current_names_only(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        words = capsys.readouterr().out.split()
        assert not {*RENAMED_OPTIONS, "--speed"} & set(words), name


# ------------------------------------------------------------------------------------------------ short options


@pytest.mark.parametrize("command", ["train demo --output {} --data x", "compare demo --output {} --data x"])
@pytest.mark.parametrize("option", RECIPE_OPTIONS)
def test_a_short_option_and_its_field_exclude_each_other(capsys, tmp_path, command, option):
    words = command.format(tmp_path / "out").split()
    short = f"--{option.replace('_', '-')}"
    assert RECIPE_OPTIONS[option] in field_names()
    line = refusal(capsys, *words, short, "4", f"--{RECIPE_OPTIONS[option]}", "4")
    assert f"{short} and --{RECIPE_OPTIONS[option]} are the same" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train demo --output {} --data x", "compare demo --output {} --data x"])
@pytest.mark.parametrize("option", RECIPE_OPTIONS)
@pytest.mark.parametrize("value", ["many", "0"])
def test_a_bad_value_is_refused_under_the_name_that_was_typed(capsys, tmp_path, command, option, value):
    short = f"--{option.replace('_', '-')}"
    line = refusal(capsys, *command.format(tmp_path / "out").split(), short, value)
    assert line.startswith(f"facebones: {short}: ")
    full = f"--{RECIPE_OPTIONS[option]}"
    line = refusal(capsys, *command.format(tmp_path / "out").split(), full, value)
    assert line.startswith(f"facebones: {full}: ")


@pytest.mark.parametrize("option", ["--seed", "--workers"])
def test_a_bad_value_of_an_option_of_train_only(capsys, tmp_path, option):
    line = refusal(capsys, "train", "demo", "--output", tmp_path / "out", "--data", "x", option, "-0.5")
    assert line.startswith(f"facebones: {option}: ")


def test_short_options_set_fields_of_a_run(small_data, tiny_backbone, tmp_path):
    words = ["train", "demo", "--data", small_data, "--backbone", tiny_backbone, "--output", tmp_path / "run"]
    words += ["--workers", "0", "--validation.sets", "tiny", "--lr", "0.003", "--epochs", "1", "--batch-size", "4"]
    assert main([str(word) for word in words]) == 0
    recipe = load_recipe(tmp_path / "run" / "config.yaml")
    assert (recipe.optimizer.learning_rate, recipe.training.epochs, recipe.training.batch_size) == (0.003, 1, 4)


def test_short_options_set_fields_of_a_study(small_data, tiny_backbone, tmp_path, capsys):
    words = ["compare", "demo", "--data", small_data, "--output", tmp_path / "out", "--dry-run", "--json"]
    words += ["--pair-sets", "tiny", "--backbones", tiny_backbone, "--batch-size", "4"]
    steps = {}
    for epochs in ("1", "3"):
        assert main([str(word) for word in [*words, "--epochs", epochs]]) == 0
        steps[epochs] = json.loads(capsys.readouterr().out)[0]["steps"]
    assert steps["3"] == 3 * steps["1"]


# ------------------------------------------------------------------------------------------------------ plug-ins


def run(folder, line):
    """Run a command line in a process of its own, in a folder."""
    words = [sys.executable, "-m", "facebones", *line.split()]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def test_every_example_is_imported_by_train_and_evaluate(small_data, tmp_path):
    photos = shutil.copytree(small_data.parent / "images", tmp_path / "friends.people")
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in sorted(photos.glob("*/*.jpg"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,person", *rows]) + "\n")
    shutil.copy(small_data / "tiny.bin", tmp_path)
    used = [EXAMPLES / f"{name}.py" for name in ("my_backbone", "norm_head", "csv_faces", "print_callback")]
    imports = " ".join(f"--import {path}" for path in used)
    trained = run(
        tmp_path,
        f"train demo --data list.csv --backbone my_backbone --head.name norm_margin --head.margin 0.2 {imports}"
        " --output run --workers 1 --batch-size 4 --epochs 1 --validation.sets tiny --device cpu --log.every 1",
    )
    assert trained.returncode == 0 and "callback: step 1 of 7: loss" in trained.stdout, trained.stderr
    assert "mean_norm" in (tmp_path / "run" / "metrics.jsonl").read_text()
    resumed = run(tmp_path, "resume run --device cpu")  # the run knows its plug-ins
    assert resumed.returncode == 0, resumed.stderr
    protocol = f"--import {EXAMPLES / 'tiny_protocol.py'}"
    evaluate = f"evaluate sets --model run --data friends.people tiny.bin --device cpu --json {protocol}"
    evaluated = run(tmp_path, f"{evaluate} --import {used[0]}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert {content["protocol"] for content in json.loads(evaluated.stdout)} == {"pairs", "nearest_photo"}
    without = run(tmp_path, evaluate)
    assert without.returncode == 2 and "unknown backbone 'my_backbone'" in without.stderr.splitlines()[-1]


def test_the_examples_are_listed_and_short():
    files = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert files == sorted(re.findall(r"^\| \[(.*?)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert len(files) == 5
    assert all(len((EXAMPLES / name).read_text().splitlines()) <= 60 for name in files)


def test_a_registered_name_is_a_model(small_data, tiny_backbone, capsys):
    pairs = str(small_data / "tiny.bin")
    assert main(["evaluate", "pairs", "--model", tiny_backbone, "--data", pairs, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][tiny_backbone]["backbone"] == tiny_backbone


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def (", "cannot be imported: SyntaxError"),
        ("raise SystemExit(0)", "cannot be imported: SystemExit: 0"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(capsys, tmp_path, content, problem):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    line = refusal(capsys, "backbones", "--import", path)
    assert line.startswith(f"facebones: --import {path}: {problem}")
    assert not [name for name in sys.modules if name.endswith("mine") and "calamine" not in name]  # of pandas


def test_a_module_that_is_not_there(capsys):
    assert "--import no.such.module: cannot be imported" in refusal(capsys, "backbones", "--import", "no.such.module")


# ----------------------------------------------------------------------------------------------------- what ships


@pytest.mark.parametrize(("command", "folder"), [("recipes", "."), ("studies", "studies")])
def test_what_ships_is_listed_with_a_line_each(capsys, command, folder):
    assert main([command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(shipped_files(folder)) and len(rows) >= 4
    assert all(20 < len(row["summary"]) < 120 and not row["summary"].endswith(",") for row in rows)
    assert main([command]) == 0
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in rows)


@pytest.mark.parametrize("words", [["recipes"], ["studies", "--json"]])
def test_lists_import_no_torch(words):
    code = f"import sys; from facebones.cli.main import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
