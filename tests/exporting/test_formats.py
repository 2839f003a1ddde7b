"""Many formats at once: one table, in which a format that fails or crashes stops no other."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from facebones import exporting, plugins
from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.cli.main import main
from facebones.errors import ConfigError, RunError, UnknownNameError
from facebones.evaluation.models import load_model
from facebones.exporting import every_format, export
from facebones.exporting.every_format import draw_people
from facebones.exporting.format_rows import accuracies, judge, new_row, refusal
from facebones.exporting.format_table import bounds_words, formats_table, formats_title, markdown
from facebones.exporting.formats import FORMATS, find_formats
from facebones.run_folder import RunFolder
from facebones.system.crash_proof import CrashedError, CrashProof

# The network, and two formats that fail: the child process imports this file, as this one does.
PLUGIN = """
import os
import signal
from dataclasses import replace

import torch
from torch import nn

from facebones.backbones import Backbone, register_backbone
from facebones.exporting.formats import FORMATS


class Small(Backbone):
    def __init__(self, embedding_size):
        super().__init__()
        self.embedding_size = embedding_size
        linear = nn.Linear(8 * 14 * 14, embedding_size)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 7, 8), nn.PReLU(8), nn.Flatten(), linear)

    def forward(self, x):
        return self.layers(x)


@register_backbone()
def small_for_formats(embedding_size=16):
    "A network of two layers."
    return Small(embedding_size)


def crash(material, path):
    path.write_bytes(b"half a file")
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(material, path):
    raise ValueError("no such kernel")


FORMATS["openvino-int8"] = replace(FORMATS["openvino-int8"], write=crash)
FORMATS["openvino-fp16"] = replace(FORMATS["openvino-fp16"], write=fail)
"""


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """The run of a plug-in's network, of which two formats cannot be written."""
    folder = tmp_path_factory.mktemp("formats")
    kept, imported = FORMATS.copy(), plugins._imported.copy()
    (folder / "small_network.py").write_text(PLUGIN)
    plugins.import_plugins([str(folder / "small_network.py")])
    torch.manual_seed(0)
    backbone = create_backbone("small_for_formats", 16).eval()
    save_weights(RunFolder(folder / "run"), backbone, {"backbone": "small_for_formats", "embedding_size": 16})
    yield folder / "run"
    FORMATS.update(kept)
    plugins._imported[:] = imported


@pytest.fixture(scope="module")
def exported(small_run, small_data, tmp_path_factory):
    """The result of an export in all formats but the two that are rarely installed, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(every_format, "TIMED_SECONDS", 0.05)
        for name in ("executorch", "litert"):
            patch.setitem(FORMATS, name, replace(FORMATS[name], packages=("no_such_package",)))
        folder = tmp_path_factory.mktemp("exported") / "all"
        result = export(small_run, folder, formats="all", data=[small_data / "tiny.bin"])
    return result, folder


def by_name(result):
    return {row["format"]: row for row in result["formats"]}


def test_every_format_has_a_row_and_its_files(exported):
    result, folder = exported
    rows = by_name(result)
    assert list(rows) == ["pytorch", *FORMATS]
    for name in ("onnx", "onnx-fp16", "onnx-int8", "openvino", "torch-export"):
        row = rows[name]
        assert row["state"] == "ok" and row["reason"] is None
        assert row["bytes"] == sum((folder / file).stat().st_size for file in row["files"]) > 0
        assert row["latency"]["latency_p50_ms"] > 0
        limit = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.5}[row["precision"]]
        assert 0 <= row["parity"]["deviation"] <= limit
        (found,) = row["sets"]
        assert found["set"] == "tiny" and found["interval"][0] <= found["accuracy"] <= found["interval"][1]
        assert found["difference_interval"][0] <= found["difference"] <= found["difference_interval"][1]
    assert rows["onnx"]["sets"][0]["difference"] == 0
    assert rows["onnx-int8"]["bytes"] < rows["onnx-fp16"]["bytes"] < rows["onnx"]["bytes"]
    written = {file for row in rows.values() for file in row["files"]}
    assert {path.name for path in folder.iterdir()} == {*written, "export.json", "export.md"}
    assert json.loads((folder / "export.json").read_text()) == result


def test_formats_that_fail_or_crash_say_why_and_stop_no_other(exported):
    result, folder = exported
    rows = by_name(result)
    assert (rows["openvino-fp16"]["state"], rows["openvino-fp16"]["reason"]) == ("failed", "no such kernel")
    assert rows["openvino-int8"]["reason"] == "crashed: its process was ended by SIGSEGV"
    assert not (folder / "model_openvino_int8.xml").exists()  # half of it was there
    assert rows["torch-export"]["state"] == "ok"  # comes after the crash
    assert rows["executorch"]["state"] == "not installed"
    assert rows["executorch"]["reason"] == "no_such_package missing; pip install 'facebones[executorch]'"
    assert result["failed"] == []  # none was asked for by name


@pytest.mark.slow
def test_the_files_compute_the_network(exported, small_run):
    faces = np.stack(draw_people(0, 3))
    expected = load_model(small_run, device="cpu").embed(list(faces))
    np.testing.assert_allclose(
        load_model(exported[1] / "model.onnx", device="cpu").embed(list(faces)), expected, atol=1e-5
    )
    program = torch.export.load(exported[1] / "model.pt2")
    with torch.inference_mode():
        found = program.module()(torch.from_numpy(faces.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_table_is_the_same_in_markdown(exported):
    result, folder = exported
    columns, rows = formats_table(result)
    assert columns == ["format", "MB", "deviation", "least cosine", "tiny [95 %]", "tiny: to fp32, points",
                       "latency, ms", "state"]  # fmt: skip
    page = (folder / "export.md").read_text()
    assert page == markdown(result)
    for row in rows:
        assert f"| {' | '.join(row)} |" in page
    assert rows[0][2:4] == ["-", "-"] and rows[-1][1] == "-" and rows[-1][-1].startswith("not installed: ")
    assert "small_for_formats, 16-d; compared with PyTorch on 32 faces: tiny; int8 calibrated on 64: drawn faces" in (
        formats_title(result)
    )
    assert "deviation 1e-04" in bounds_words(result) and "0.9 in int8" in bounds_words(result)
    for text in (str(folder.parent.parent), "site-packages"):  # where this machine has its files
        assert not any(text.encode() in path.read_bytes() for path in folder.glob("model*"))


def test_the_command_prints_the_table_and_ends_with_1_if_a_format_that_was_named_failed(
    exported, tmp_path, monkeypatch, capsys
):
    words = ["export", "run", "--formats", "all", "--output", str(tmp_path / "out")]
    for failed, status in (([], 0), (["litert"], 1)):
        monkeypatch.setattr(exporting, "export", lambda *_, failed=failed, **__: exported[0] | {"failed": failed})
        assert main(words) == status
        printed = capsys.readouterr()
        assert "crashed: its process was ended by SIGSEGV" in printed.out and "Bounds: deviation 1e-04" in printed.out
        assert printed.err == (
            "" if not failed else f"facebones: {tmp_path}/out: not written: litert; the table says why\n"
        )
    assert main([*words, "--json"]) == 1 and json.loads(capsys.readouterr().out)["failed"] == ["litert"]


@pytest.mark.slow
def test_a_format_that_was_named_and_is_not_installed(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(every_format, "TIMED_SECONDS", 0.05)
    monkeypatch.setitem(FORMATS, "litert", replace(FORMATS["litert"], packages=("no_such_package",)))
    words = ["export", str(small_run), "--formats", "litert,torch-export", "--output", str(tmp_path / "new" / "out")]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "litert" in printed.out and "torch-export" in printed.out and "drawn faces" in printed.out
    assert printed.err.splitlines()[-1] == f"facebones: {tmp_path}/new/out: not written: litert; the table says why"
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {"model.pt2", "export.json", "export.md"}
    with pytest.raises(RunError, match=r"none: no format can be written; litert: no_such_package missing"):
        export(small_run, tmp_path / "none", formats=["litert"])
    assert not (tmp_path / "none").exists() and [path.name for path in tmp_path.iterdir()] == ["new"]


REFUSED = {
    "unknown": (["--formats", "onx"], "--formats: unknown format 'onx'; did you mean 'onnx'"),
    "empty": (["--formats", ","], "--formats: none; give all, or names such as onnx,onnx-int8"),
    "exists": (["--formats", "all", "--output", "{tmp}"], "exists already; remove it or name a new folder"),
    "int8": (["--formats", "all", "--int8"], "--int8: is for one ONNX file; with --formats name onnx-int8"),
    "pixels": (["--formats", "all", "--fold-preprocessing"], "--fold-preprocessing: is for one ONNX file"),
    "sample": (["--formats", "all", "--seed", "3"], "--calibration-images and --seed are for --int8, or --formats"),
    "layers": (["--float-layers", "first"], "--float-layers is for --int8 and --formats"),
    "layer": (["--formats", "all", "--float-layers", "layers.00"], "--float-layers: unknown layer 'layers.00'"),
    "two models": (["--model", "x"], "give one model to export"),
    "no set": (["--formats", "all", "--pairs", "{tmp}/no.bin"], "no.bin: cannot be read"),
}


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input(words, message, small_run, tmp_path, capfd):
    words = [word.format(tmp=tmp_path) for word in words]
    assert main(["export", str(small_run), "--output", str(tmp_path / "out"), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("facebones: ") and message in line
    assert not list(tmp_path.iterdir())


def test_names_of_formats():
    assert find_formats("all") == dict.fromkeys(FORMATS, False)
    assert find_formats(["litert", "all"]) == {name: name == "litert" for name in FORMATS}
    with pytest.raises(UnknownNameError):
        find_formats(["onnx", "tensorrt"])
    with pytest.raises(ConfigError):
        find_formats("")


@pytest.mark.parametrize(
    ("name", "parity", "difference", "interval", "state"),
    [
        ("onnx-fp16", {"deviation": 0.01, "cosine_min": 0.9995}, 0.0, (0.0, 0.0), "ok"),
        ("onnx-fp16", {"deviation": 0.1, "cosine_min": 0.99}, 0.0, (0.0, 0.0), "below bound"),
        ("onnx-int8", {"deviation": 0.1, "cosine_min": 0.95}, -0.009, (-0.01, -0.008), "ok"),
        ("onnx-int8", {"deviation": 0.1, "cosine_min": 0.95}, -0.02, (-0.03, -0.01), "below bound"),
        ("onnx-int8", {"deviation": 0.1, "cosine_min": 0.95}, -0.05, (-0.11, 0.01), "ok"),
        ("onnx-int8", {"deviation": 0.1, "cosine_min": 0.85}, 0.0, (0.0, 0.0), "below bound"),
    ],
)
def test_states(name, parity, difference, interval, state):
    row = new_row(name, True) | {
        "parity": parity,
        "sets": [{"difference": difference, "difference_interval": interval}],
    }
    assert refusal(row) is None
    judge(row)
    assert row["state"] == state and (row["reason"] is None) == (state == "ok")


def test_what_is_not_kept():
    row = new_row("torch-export", True)
    assert refusal(row | {"parity": {"deviation": 0.001, "cosine_min": 1.0}}) == (
        "differs from torch by 1.0e-03 of an embedding's norm; 1e-04 is allowed"
    )
    nothing = {"deviation": None, "cosine_min": None, "cosine_mean": None}
    assert "zero or not finite" in refusal(row | {"parity": nothing})


def test_the_difference_is_paired(small_data):
    from facebones.data.pair_bins import read_pairs
    from facebones.evaluation.verification import PairSetResult, verify_pairs

    pair_set = read_pairs(small_data / "tiny.bin")
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 8))
    rows[1::2][pair_set.is_same] = rows[::2][pair_set.is_same]
    good = PairSetResult(
        "tiny", verify_pairs(rows / np.linalg.norm(rows, axis=1, keepdims=True), pair_set.is_same), 1.0
    )
    worse = replace(good, verification=replace(good.verification, distances=good.verification.distances[::-1].copy()))
    found = accuracies({"pytorch": good, "onnx": good, "onnx-int8": worse}, pair_set)
    assert found["pytorch"]["accuracy"] == 1.0 and "difference" not in found["pytorch"]
    assert found["onnx"]["difference"] == 0.0
    assert found["onnx-int8"]["difference"] == found["onnx-int8"]["accuracy"] - 1.0 < 0
    assert found["onnx-int8"]["difference_interval"][1] < 0


def test_a_process_that_crashed_is_replaced(tmp_path):
    with CrashProof(tmp_path / "log.txt") as process:
        assert process.is_new
        assert process.do(dict.setdefault, "a", 1) == 1
        with pytest.raises(CrashedError, match="crashed: its process ended with status 7"):
            process.do(_exits.work)
        assert process.is_new
        assert process.do(dict.get, "a") is None  # another process, without the state
        with pytest.raises(RunError, match="unhashable"):
            process.do(dict.setdefault, [])


class _exits:  # noqa: N801
    """A function that a process without this file can be asked for: os._exit, which gets the state as its number."""

    class _Work:
        def __reduce__(self):
            return eval, ("lambda state: __import__('os')._exit(7)",)

    work = _Work()
