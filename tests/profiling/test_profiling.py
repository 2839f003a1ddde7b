"""`facebones profile`: what it takes, what it prints and writes, and how it measures."""

import csv
import importlib.util
import io
import json
import os
import signal

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from facebones.backbones import create_backbone
from facebones.cli.main import main
from facebones.errors import ConfigError, RunError
from facebones.onnx.graph import count_onnx
from facebones.profiling import Conditions
from facebones.profiling import measurements as latency
from facebones.profiling import measurements as peak_memory
from facebones.profiling.conditions import ROUNDS, Inference
from facebones.profiling.cost import count_operations
from facebones.profiling.measurements import LEAST_BATCHES, LEAST_SINGLES, measure_peak_memory, measure_timings
from facebones.profiling.networks import Source, find_sources

SMALL = ("study_mixfacenet_xs", "study_shufflefacenet_0_5")
QUICK = ("--seconds", "0.01", "--batch-size", "2", "--device", "cpu", "--threads", "1")


@pytest.fixture
def known_memory(monkeypatch):
    """Leaves the process that measures memory out: it takes seconds, and has its own tests."""
    monkeypatch.setattr("facebones.profiling.profile.measure_peak_memory", lambda source, conditions: 10_000_000)


def write_onnx(path, *, quantized=False):
    """A convolution to (4, 7, 7), a linear layer to 8 and a product to 5."""
    draw = np.random.default_rng(0).normal
    kernel = draw(size=(4, 3, 16, 16)).astype(np.float32)
    tensors = {
        "linear": draw(size=(8, 4 * 49)).astype(np.float32),
        "bias": draw(size=8).astype(np.float32),
        "matrix": draw(size=(8, 5)).astype(np.float32),
        "shape": np.array([-1, 4 * 49]),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["map"], strides=[16, 16]),
        helper.make_node("Reshape", ["map", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "linear", "bias"], ["hidden"], transB=1),
        helper.make_node("MatMul", ["hidden", "matrix"], ["embedding"]),
    ]
    if quantized:
        tensors |= {
            "kernel_int8": kernel.astype(np.int8),
            "scale": np.ones(4, np.float32),
            "zero": np.zeros(4, np.int8),
        }
        nodes.insert(0, helper.make_node("DequantizeLinear", ["kernel_int8", "scale", "zero"], ["kernel"], axis=0))
    else:
        tensors["kernel"] = kernel
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_json_csv_and_pictures_of_two_networks(tmp_path, capsys, known_memory):
    output = tmp_path / "profile"
    assert main(["profile", *SMALL, "--json", "--output", str(output), *QUICK]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {path.name for path in output.iterdir()} == {f"profile.{kind}" for kind in ("json", "csv", "png", "pdf")}
    assert json.loads((output / "profile.json").read_text()) == result

    conditions = result["conditions"]
    assert (conditions["device"], conditions["threads"], conditions["batch_size"]) == ("cpu", 1, 2)
    assert conditions["processor"] and conditions["torch"] == torch.__version__
    assert [row["name"] for row in result["networks"]] == list(SMALL)
    first = result["networks"][0]
    assert (first["parameters"], first["unused_parameters"], first["macs"]) == (1_037_602, 842_752, 2_804_520)
    operations = count_operations(create_backbone(SMALL[0]))
    assert first["flops_2_macs"] == 2 * first["macs"]
    assert first["flops_mixfacenet"] == operations.flops_mixfacenet
    assert first["activations"] == operations.activations
    assert first["weights_bytes"] > 4 * first["parameters"]
    for row in result["networks"]:
        assert 0 < row["latency_p50_ms"] <= row["latency_p90_ms"]
        assert row["throughput_images_per_second"] > 0
        assert row["peak_memory_bytes"] == 10_000_000

    rows = list(csv.DictReader(io.StringIO((output / "profile.csv").read_text())))
    assert [row["name"] for row in rows] == list(SMALL)
    assert rows[0]["macs"] == "2804520" and rows[0]["threads"] == "1"


def test_checkpoints_and_onnx_files_stand_beside_backbones(tmp_path, capsys, known_memory):
    weights, file = tmp_path / "model.pth", write_onnx(tmp_path / "small.onnx")
    torch.save(create_backbone("mfn_xs", embedding_size=64).state_dict(), weights)
    assert main(["profile", str(weights), "mfn_xs", "--backbone", "mfn_xs", "--json", *QUICK]) == 0
    trained, new = json.loads(capsys.readouterr().out)["networks"]
    assert (trained["name"], trained["backbone"], trained["family"]) == (str(weights), "study_mixfacenet_xs", "study")
    assert new["parameters"] > trained["parameters"]

    assert main(["profile", str(file), "mfn_xs", *QUICK]) == 0
    text = capsys.readouterr().out
    assert ".onnx in ONNX Runtime (CPUExecutionProvider)" in text and "at batch 2" in text and "1 thread, fp32" in text
    (line,) = [line for line in text.splitlines() if "small.onnx" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")][1:4] == [f"{3072 + 1568 + 8 + 40:,}", "-", "152,136"]


def test_a_network_with_a_deploy_form_is_measured_in_it(tmp_path, capsys, known_memory):
    output = tmp_path / "profile"
    assert main(["profile", "facelivtv2_xs", SMALL[0], "--output", str(output), *QUICK]) == 0
    assert "facelivtv2_xs (deploy form)" in capsys.readouterr().out
    first, second = json.loads((output / "profile.json").read_text())["networks"]
    assert (first["name"], first["form"], first["parameters"]) == ("facelivtv2_xs", "deploy", 2_969_552)
    assert (first["trained_parameters"], first["trained_macs"]) == (2_993_536, 89_045_824)
    assert (second["form"], second["parameters"], second["trained_parameters"]) == (None, 1_037_602, None)


@pytest.mark.parametrize("quantized", [False, True])
def test_counts_of_an_onnx_file(tmp_path, quantized):
    counts = count_onnx(write_onnx(tmp_path / "small.onnx", quantized=quantized))
    macs = 4 * 49 * 3 * 16 * 16 + 8 * 4 * 49 + 8 * 5
    assert counts == {"parameters": 4 * 768 + 8 * 196 + 8 + 8 * 5, "macs": macs, "activations": 4 * 49 + 8 + 5}


def test_names_aliases_patterns_and_paths_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r18").touch()
    found = find_sources(["mbf", "mobilefacenet_w*", "r18", "./r18"], "r18")
    assert [source.name for source in found] == ["mobilefacenet_wide", "iresnet18", "./r18"]
    assert found[1] == Source("iresnet18")
    assert found[2].backbone == "r18"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mobilfacenet"], "unknown backbone 'mobilfacenet'; did you mean 'mobilefacenet'?"),
        (["zzz*"], "unknown backbone 'zzz*'; known: edgeface_base"),
        (["runs/none.onnx"], "runs/none.onnx: no such run or file; check the path"),
        (["adaface.ckpt"], "adaface.ckpt: no such run or file; check the path"),
        (["pytorch_model.bin"], "pytorch_model.bin: no such run or file; check the path"),
        (["mfn_xs", "--device", "abacus"], "--device abacus: no such device"),
        (["mfn_xs", "--seconds", "0"], "0 is not a positive time"),
        (["mfn_xs", "--seconds", "inf"], "inf is not a positive time"),
        (["mfn_xs", "--seconds", "abc"], "abc is not a positive time"),
        (["mfn_xs", "--threads", "100000"], "--threads 100000: this machine has"),
        (["mfn_xs", "--output", "occupied/here"], "occupied/here/profile.json: cannot be written: Not a directory"),
        (["occupied"], "occupied: "),
        (["occupied.onnx"], "occupied.onnx: no ONNX file that can be run"),
    ],
)
def test_what_cannot_be_profiled_is_said_in_one_line_before_anything_is_timed(
    words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("occupied", "occupied.onnx"):
        (tmp_path / name).write_bytes(b"no network")
    monkeypatch.setattr("facebones.profiling.profile.measure_timings", None)
    assert main(["profile", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("building")]
    assert len(lines) == 1
    assert lines[0].startswith("facebones: ") and message in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["occupied", "occupied.onnx"]


def test_networks_take_turns_and_a_first_pass_is_not_counted(monkeypatch):
    calls, now = [], iter(range(10_000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(now) / 10)
    inferences = [lambda images, name=name: calls.append((name, images)) for name in "ab"]
    timings = measure_timings(inferences, 8, seconds=ROUNDS * 0.55)
    turn = [1] * (1 + 6) + [8] * (1 + 6)  # 0.55 s filled by six passes of 0.1 s
    assert calls == [(name, images) for _ in range(ROUNDS) for name in "ab" for images in turn]
    assert all(len(timing.single) == len(timing.batch) == 6 * ROUNDS for timing in timings)
    summary = timings[0].summary()
    assert summary["latency_p50_ms"] == pytest.approx(100)
    assert summary["throughput_images_per_second"] == pytest.approx(80)


def test_slow_networks_are_timed_more_than_once():
    (timing,) = measure_timings([lambda images: None], 8, seconds=1e-12)
    assert len(timing.single) >= ROUNDS * LEAST_SINGLES
    assert len(timing.batch) >= ROUNDS * LEAST_BATCHES


def test_percentiles_are_of_all_repetitions():
    timing = latency.Timings(4, single=[0.001 * n for n in range(1, 12)], batch=[0.1, 0.2, 9.0])
    summary = timing.summary()
    assert (summary["latency_p50_ms"], summary["latency_p90_ms"]) == pytest.approx((6.0, 10.0))
    assert summary["throughput_images_per_second"] == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("processor", "rounds", "busy"),
    [
        (1.0, [0.010, 0.011], False),
        (2.0, [0.010, 0.011], False),  # two threads
        (0.8, [0.010, 0.011], True),  # it waited for its processor
        (1.0, [0.010, 0.014, 0.010], True),  # one round was slower
    ],
)
def test_a_busy_machine_is_noticed(processor, rounds, busy):
    timing = latency.Timings(4, single=[0.01] * 50, batch=[0.05] * 10, rounds=rounds, processor=processor)
    summary = timing.summary()
    assert summary["busy"] is busy
    assert summary["wall_to_processor_time"] == pytest.approx(1 / processor)


def test_the_time_of_the_processors_is_counted_in_each_turn(monkeypatch):
    clock, processors = iter(range(10_000)), iter(range(10_000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock) / 10)
    monkeypatch.setattr(latency.time, "process_time", lambda: next(processors) / 2)
    timing = latency.Timings(8)
    timing.add_turn(lambda images: None, 0.35)  # four passes of 0.1 s, twice; the processors' clock: 0.5 s each
    assert timing.processor == pytest.approx(1.0) and timing.rounds == pytest.approx([0.1])
    assert timing.summary()["wall_to_processor_time"] == pytest.approx(0.8)


def test_precision_and_layout_reach_the_network():
    class Looks(torch.nn.Module):
        def forward(self, x):
            self.dtype = torch.nn.functional.linear(x[:, 0], torch.zeros(4, 112)).dtype
            self.channels_last = x.is_contiguous(memory_format=torch.channels_last)
            self.count = len(x)

    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for channels_last in (False, True):
            conditions = Conditions(precision=precision, channels_last=channels_last, batch_size=4)
            infer = Inference(Looks(), torch.device("cpu"), conditions)
            infer(4)
            seen = infer.network
            assert (seen.dtype, seen.channels_last, seen.count) == (dtype, channels_last, 4)


def test_threads_are_set_for_the_measurement_only():
    before = torch.get_num_threads()
    with Conditions(threads=before + 1).threads_set():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ConfigError, match="--precision fp64: known are fp32"):
        Conditions(precision="fp64").check()


@pytest.mark.skipif(not peak_memory.STATUS.is_file(), reason="the system does not tell its memory as Linux does")
def test_peak_memory_is_the_networks_own(tmp_path):
    """Not the parent's nor what loading imports, and more where more images are embedded at once."""
    held = torch.ones(100_000_000)
    torch.save(create_backbone("sfn0_5").state_dict(), tmp_path / "model.pth")
    loaded = Source("model", tmp_path / "model.pth", "sfn0_5")
    one = measure_peak_memory(loaded, Conditions(threads=1, batch_size=1))
    many = measure_peak_memory(Source("sfn0_5"), Conditions(threads=1, batch_size=128))
    weights = 4 * 923_808
    assert weights / 2 < one < 40e6 < 4 * len(held)
    assert many > one + 4 * 128 * 24 * 56 * 56  # the first map alone
    runtime_itself = 25e6  # ONNX Runtime, once imported
    file = write_onnx(tmp_path / "small.onnx")
    assert 0 < measure_peak_memory(Source("small", file), Conditions(threads=1, batch_size=1)) < runtime_itself


class Deadly:
    """Ends the process that it is sent to, as a system does that has no memory left."""

    name = "mfn_xs"

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_the_system_ended_is_an_error_in_one_line():
    with pytest.raises(RunError, match=r"^mfn_xs: the process .* batch 32 was ended.*smaller --batch-size$"):
        measure_peak_memory(Deadly(), Conditions())


def test_a_batch_beyond_all_memory_is_one_line(capsys):
    assert main(["profile", "mfn_xs", "--batch-size", "1000000000"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "facebones: a batch of 1000000000 images does not fit into memory; give a smaller --batch-size"
    )


def test_the_process_that_measures_memory_leaves_an_interrupt_to_its_parent(monkeypatch):
    given = {}

    class Pool(peak_memory.ProcessPoolExecutor):
        def __init__(self, *arguments, **options):
            given.update(options)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(peak_memory, "ProcessPoolExecutor", Pool)
    peak_memory.measure_peak_memory(Source("study_mixfacenet_xs"), Conditions(batch_size=1))
    before = signal.getsignal(signal.SIGINT)
    try:
        given["initializer"]()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_pattern_leaves_out_what_cannot_be_built_and_says_so(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "timm" else find(name, *rest))
    assert [source.name for source in find_sources(["edgeface_x*", "mixfacenet_xs"])] == ["mixfacenet_xs"]
    assert "note: edgeface_xs is left out: timm is not installed" in capsys.readouterr().err
