"""`benchmarks/gpu.py` on the CPU: every part runs, and what does not run is said."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)],
        check=False, capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path):
    done = run("--device", "cpu", "--small", "--output", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["small"] and content["machine"]["torch"]
    assert list(content["parts"]) == ["tests", "training", "head", "embedding", "devices", "loader"]
    assert content["parts"].pop("devices")["not_run"] == {"all of it": "it needs two GPUs; 0 here"}
    for name, part in content["parts"].items():
        assert part["rows"] and not part["not_run"], name
        assert not [row["error"] for row in part["rows"].values() if "error" in row], name
        figures = [row.get("images_per_second") for row in part["rows"].values()]
        assert name == "tests" or min(figures) > 0
    assert {row["outcome"] for row in content["parts"]["tests"]["rows"].values()} == {"skipped"}
    text = (tmp_path / "gpu.md").read_text()
    assert "no figure means anything" in text and "0 passed, 0 failed," in text and "| rate 0.1 |" in text


def test_without_a_gpu_it_says_so_in_one_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cuda:700", "--output", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit) as stop:
        script.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("--device cuda:700: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_did_not_run_is_listed_with_the_reason(script, tmp_path):
    training = {"part": "training"}
    rows = lines(
        tmp_path / "rows",
        {"part": "machine", "values": {"torch": "2"}},
        training | {"planned": ["a", "b", "c"]},
        training | {"row": "a", "values": {"images_per_second": 1234.5, "error": "plain: out of memory"}},
        training | {"row": "b", "values": {"error": "out of memory"}},
        {"part": "loader", "planned": ["x", "y"]}, {"part": "loader", "ended": 3.0},
        {"part": "tests", "error": "pytest is not installed here"}, {"part": "tests", "ended": 0.1},
    )  # fmt: skip
    ends = {
        "training": "165 s were over",
        "loader": 0,
        "tests": 0,
        "head": "the eight minutes were over",
        "embedding": -9,
    }
    machine, parts = script.collect(rows, ends)
    assert machine == {"torch": "2"}
    assert {name: part["not_run"] for name, part in parts.items()} == {
        "training": {"c": "165 s were over"},
        "loader": dict.fromkeys("xy", "its seconds were over"),
        "tests": {"all of it": "pytest is not installed here"},
        "head": {"all of it": "the eight minutes were over"},
        "embedding": {"all of it": "the process ended with status -9"},
    }
    text = script.markdown({"machine": machine, "small": False, "parts": parts})
    assert "| a |  | 1,234 |" in text and "plain: out of memory |" in text and "| b |" in text
    assert text.count("* not run: ") == 6 and "* not run: c (165 s were over)" in text


def test_a_process_that_hangs_is_ended(script, tmp_path, monkeypatch):
    hanging = tmp_path / "hang.py"
    hanging.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(script, "SCRIPT", hanging)
    assert script.run(["training=1"], 0.5, tmp_path / "rows", []) == "0 s were over"


def test_the_parts_fit_into_eight_minutes(script):
    assert script.LIMIT < 480 and sum(script.SECONDS.values()) <= script.LIMIT - len(script.SECONDS) * 10
