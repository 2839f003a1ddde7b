"""Lines of a metrics.jsonl in a report: all of a short file; first, last, extremes and validations of a long one."""

import json

import numpy as np
import pytest

from facebones.errors import DataError
from facebones.reporting import run_lines as module
from facebones.reporting.runs import read_run
from facebones.run_folder import RunFolder, read_metrics
from facebones.study.trials import _accuracies

COUNT = 1000


def train(step, **values):
    return {"kind": "train", "step": step, "epoch": 1, "loss": 5.0, "learning_rate": 0.1, **values}


def validation(step, accuracy, name="lfw"):
    return {"kind": "validation", "set": name, "accuracy": accuracy, "step": step}


def write(folder, lines):
    path = folder / "metrics.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def lines_of(folder):
    return list(read_run(folder, "run").lines)


@pytest.fixture
def long_files(monkeypatch):
    """Every file counts as long."""
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)
    monkeypatch.setattr(module, "BUCKETS", 10)
    monkeypatch.setattr(module, "MOST_VALIDATIONS", 80)


def many_lines(seed=0):
    losses = np.random.default_rng(seed).normal(9, 1, COUNT).round(3).tolist()
    lines = [train(step, loss=loss) for step, loss in enumerate(losses, 1)]
    for step in (100, 500, 1000):
        lines.insert(step, validation(step, step / 1001))
    return lines


def test_a_short_file_is_read_whole(tmp_path):
    path = write(tmp_path, many_lines())
    assert lines_of(tmp_path) == read_metrics(path) == many_lines()


def test_of_a_long_file_the_course_is_kept(tmp_path, long_files):
    lines = many_lines()
    write(tmp_path, lines)
    kept = lines_of(tmp_path)
    assert kept == lines_of(tmp_path)
    trained = [line for line in lines if line["kind"] == "train"]
    for line in (lines[0], trained[-1], *(f(trained, key=lambda line: line["loss"]) for f in (min, max))):
        assert line in kept
    assert [line for line in kept if line["kind"] == "validation"] == [line for line in lines if "set" in line]
    assert 20 <= len(kept) <= 10 * 5 + 3
    assert [lines.index(line) for line in kept] == sorted(lines.index(line) for line in kept)
    # In each tenth of the file, the kept extremes are the extremes.
    for part in np.array_split(np.arange(COUNT), 5):
        own = [line["loss"] for line in trained if line["step"] - 1 in part]
        shown = [line["loss"] for line in kept if line["kind"] == "train" and line["step"] - 1 in part]
        assert len(shown) < 30 and max(own) - max(shown) < 0.5 and min(shown) - min(own) < 0.5


def test_losses_that_are_missing_or_in_another_form_of_json_count_as_well(tmp_path, long_files):
    lines = [train(step) for step in range(1, COUNT)]
    lines[300] = {"step": 301, "loss": -7, "kind": "train", "note": "\N{GREEK SMALL LETTER ALPHA}"}
    lines[400] = train(401, loss=1e-5)
    lines[500] = train(501, loss=float("nan"))
    lines += [train(step, loss=None) for step in range(COUNT, COUNT + 20)]
    write(tmp_path, lines)
    kept = lines_of(tmp_path)
    assert lines[300] in kept and lines[400] in kept and lines[-1] in kept
    run = read_run(tmp_path, "run")
    assert (run.final_loss, run.steps) == (5.0, COUNT + 19)


def test_thousands_of_validations_are_thinned_by_set(tmp_path, long_files):
    accuracies = np.random.default_rng(0).random((2, COUNT)).tolist()
    rows = [validation(s, accuracies[k][s], f"set{k}") for s in range(COUNT) for k in range(2)]
    write(tmp_path, rows)
    run = read_run(tmp_path, "run")
    assert 20 <= len(run.lines) <= 80
    for number, own in enumerate(accuracies):
        assert run.best_accuracy(f"set{number}") == max(own)
        assert rows[number] in run.lines and rows[-2 + number] in run.lines


@pytest.mark.parametrize("size", ["short", "long"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 500: not JSON"),
        ('{"kind": "train", "step": 1, "epoch": 1, "loss": 5.0, "learning_rate": \0\0\0}', "line 500: not JSON"),
        ('{"kind": "train", "step": 1, "epoch": 1, "loss": 5.0, "learning_', "line 500: not JSON"),
        ('{"kind": "train", "step": "1", "loss": 5.0}', "line 500: unexpected content"),
        ('{"kind": "train", "step": 1, "epoch": 1, "loss": "low"}', "line 500: unexpected content"),
        ("5", "line 500: unexpected content"),
    ],
)
def test_a_damaged_line_is_named(request, tmp_path, size, line, reason):
    if size == "long":
        request.getfixturevalue("long_files")
    lines = many_lines()
    lines[499] = line
    write(tmp_path, lines)
    with pytest.raises(DataError, match=rf"metrics\.jsonl, {reason}"):
        read_run(tmp_path, "run")


def test_a_half_written_last_line_is_dropped(tmp_path, long_files):
    path = write(tmp_path, many_lines())
    before = lines_of(tmp_path)
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert lines_of(tmp_path)[-1] == before[-1]


def test_all_validations_count_for_a_trial(tmp_path):
    write(tmp_path, many_lines())
    assert _accuracies(RunFolder(tmp_path)) == [step / 1001 for step in (100, 500, 1000)]


@pytest.mark.slow
def test_two_million_lines_take_little_memory(tmp_path, added_memory):
    line = json.dumps(train(1, gradient_norm=500.25, gradient_scale=1.0, images_per_second=169.69)) + "\n"
    ending = json.dumps(validation(1, 0.5)) + "\n"
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for _ in range(100):
            file.write(line * 20_000 + ending)
    code = """
from facebones.reporting.runs import read_run
assert 500 <= len(read_run(Path(sys.argv[1]), "run").lines) <= 1300
"""
    assert added_memory(code, tmp_path) <= 60  # all lines take 2,700
