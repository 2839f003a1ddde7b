"""`facebones costs`: conventions are deduced, latencies are kept and resumed, and the page holds all of it."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import gmean, spearmanr

from facebones.backbones.catalogue import read_catalogue, read_published
from facebones.cli.main import main
from facebones.errors import ConfigError, RunError
from facebones.profiling import latencies as measuring
from facebones.profiling import published
from facebones.profiling.latencies import RUNTIMES_MEASURED, measure_latencies, unsettled
from facebones.profiling.measurements import Timings
from facebones.profiling.published import Printed, compare_published, costs, count_network, deduce_conventions
from facebones.reporting.costs_page import costs_page

PAGE = Path(__file__).parents[2] / "docs" / "costs.md"
DATA = PAGE.with_suffix(".json")
COUNTS = {"macs": 100_000_000, "attention_macs": 0, "flops_mixfacenet": 208_000_000}
SMALL = "study_mixfacenet_xs"


# --------------------------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize(
    ("flops", "attention", "conventions", "fits"),
    [
        ("100.4 M", 0, ["MACs"], True),
        ("0.2 G", 0, ["2 x MACs"], True),
        ("208000000", 0, ["all operations"], True),
        ("204.2 M", 0, ["all operations", "2 x MACs"], True),  # as near
        ("110 M", 10_000_000, ["MACs, attention too"], True),
        ("220 M", 10_000_000, ["2 x MACs, attention too"], True),
        ("150 M", 0, ["2 x MACs"], False),
        ("0.1 G", 40_000_000, ["MACs"], True),
        ("103.5 M", 0, ["MACs"], False),  # beyond 3 %
        ("0.12 G", 15_500_000, ["MACs, attention too"], True),  # within the rounding, beyond 3 %
    ],
)
def test_the_convention_of_a_source_is_the_nearest(flops, attention, conventions, fits):
    near, fit = deduce_conventions(flops, COUNTS | {"attention_macs": attention})
    assert ([one.convention for one in near], fit) == (conventions, fits)


@pytest.mark.parametrize(
    ("text", "value", "rounding"),
    [("0.99 M", 990_000, 0.005 / 0.99), ("24.2115 G", 24_211_500_000, 0.00005 / 24.2115), ("512", 512, 0.5 / 512)],
)
def test_a_printed_number_has_the_rounding_of_its_last_digit(text, value, rounding):
    assert Printed.parse(text) == Printed(pytest.approx(value), pytest.approx(rounding))


def test_a_made_up_source_is_compared_at_its_embedding_size():
    counts = count_network(SMALL, 128)
    row = {"backbone": SMALL, "source": "someone", "embedding_size": 128, "parameters": "1 M", "flops": None}
    (found,) = compare_published([row, row | {"flops": f"{2 * counts['macs']}", "parameters": None}])[:1]
    assert found["counted"]["parameters"] == counts["parameters"] != count_network(SMALL, 512)["parameters"]
    assert found["parameters_deviation"] == pytest.approx(1e6 / counts["parameters"] - 1)
    assert (found["conventions"], found["fits"]) == ([], False)
    other = compare_published([row | {"flops": f"{2 * counts['macs']}", "parameters": None}])[0]
    assert other["conventions"][0] == {"convention": "2 x MACs", "deviation": 0.0} and other["fits"]
    assert other["parameters_deviation"] is None


def test_networks_are_counted_in_deploy_form():
    row = count_network("facelivtv2_xs", 512)
    assert (row["form"], row["parameters"]) == ("deploy", 2_969_552)
    assert row["macs"] == pytest.approx(88.301e6, abs=500)
    assert row["training_form"]["parameters"] == 2_993_536
    assert row["training_form"]["macs"] == pytest.approx(89.046e6, abs=500)
    assert count_network(SMALL, 512)["training_form"] is None


@pytest.mark.parametrize("row", read_published()["rows"], ids=lambda row: f"{row['backbone']}-{row['source']}")
def test_each_published_row_names_a_backbone_and_a_source(row):
    assert row["backbone"] in {one["name"] for one in read_catalogue()}
    assert row["source"] in read_published()["sources"]
    assert row["parameters"] or row["flops"]


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_in_docs_is_made_of_the_data_beside_it():
    content = json.loads(DATA.read_text())
    assert costs_page(content) == PAGE.read_text(), "run: facebones costs --output docs/costs.md"
    assert [row["name"] for row in content["networks"]] == [row["name"] for row in read_catalogue()]
    for row, known in zip(content["networks"], read_catalogue(), strict=True):
        if row["form"] is None:
            assert (row["parameters"], row["macs"]) == (known["parameters"], known["macs"])


def test_the_published_rows_in_docs_are_those_that_are_compared_now():
    known = json.loads(DATA.read_text())["published"]
    some = [number for number, row in enumerate(read_published()["rows"]) if row["source"] in ("pocketnet", "study")]
    assert len(known) == len(read_published()["rows"])
    assert compare_published([read_published()["rows"][number] for number in some]) == [known[one] for one in some]


@pytest.mark.slow
def test_the_data_in_docs_are_those_that_are_counted_now():
    content, known = costs(), json.loads(DATA.read_text())
    assert content["published"][0]["conventions"][0]["convention"] == "2 x MACs, attention too"
    assert content["networks"] == known["networks"] and content["published"] == known["published"]


# ----------------------------------------------------------------------------------------------------------- latencies


def cell(busy=False, latency=1.5):
    return dict.fromkeys(measuring.KEPT, 0.0) | {"latency_p50_ms": latency, "busy": busy}


def settled():
    return {threads: {runtime: cell() for runtime in RUNTIMES_MEASURED} for threads in ("1", "2")}


def test_what_is_missing_busy_or_impossible_is_measured_again():
    known = settled()
    assert unsettled(known) == {}
    known["1"]["torch"] = cell(busy=True)
    known["2"]["openvino"] = {"problem": "no"}
    del known["2"]["compiled"]
    assert unsettled(known) == {1: ["torch"], 2: ["compiled", "openvino"]}
    assert unsettled({}) == {1: list(RUNTIMES_MEASURED), 2: list(RUNTIMES_MEASURED)}


@pytest.fixture
def quick(monkeypatch):
    """Counts of two networks, and measurements that note what was asked for."""
    asked = []

    def measure(files, runtimes, conditions):
        asked.append((files.name, conditions.threads, list(runtimes)))
        return {runtime: cell(busy=runtime == "torch" and len(asked) == 1) for runtime in runtimes}

    names = {SMALL, "study_mixfacenet_s"}
    rows = [row for row in read_catalogue() if row["name"] in names]
    monkeypatch.setattr(published, "read_catalogue", lambda: rows)
    monkeypatch.setattr(published, "compare_published", lambda: [])
    monkeypatch.setattr(measuring, "_measure", measure)
    monkeypatch.setattr(published, "check_measurable", lambda: None)
    return asked


def test_measuring_resumes_and_repeats_what_was_busy(quick, tmp_path, monkeypatch):
    file = tmp_path / "costs.json"
    assert costs(file)["latencies"] == {} and quick == []
    costs(file, measure=True, only=["mfn_xs"])
    every = list(RUNTIMES_MEASURED)
    assert quick == [(SMALL, 1, every), (SMALL, 2, every)]
    content = costs(file, measure=True)
    assert quick[2:] == [(SMALL, 1, ["torch"]), ("study_mixfacenet_s", 1, every), ("study_mixfacenet_s", 2, every)]
    assert json.loads(file.read_text()) == content
    assert list(content["latencies"][SMALL]["1"]) == every
    costs(file, measure=True)
    assert len(quick) == 5  # nothing left

    monkeypatch.setattr(measuring, "processor_model", lambda _: "Abacus")
    with pytest.raises(ConfigError, match=r"costs.json: its latencies were measured with processor .*, here Abacus"):
        costs(file, measure=True)
    assert costs(file)["latencies"] == content["latencies"]  # counting needs no such machine


def test_a_stopped_run_keeps_the_networks_that_are_done(quick, tmp_path, monkeypatch):
    file = tmp_path / "costs.json"

    def stop(name, known, seconds):
        if name != SMALL:
            raise KeyboardInterrupt
        return measure_latencies(name, known, seconds)

    monkeypatch.setattr(published, "measure_latencies", stop)
    with pytest.raises(KeyboardInterrupt):
        costs(file, measure=True)
    assert list(json.loads(file.read_text())["latencies"]) == [SMALL]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"conditions": null, "latencies": {"a": {"1": {"torch": {}}}}}'])
def test_a_file_of_something_else_is_refused_in_one_line(content, tmp_path, capsys):
    (tmp_path / "costs.json").write_text(content)
    assert main(["costs", "--output", str(tmp_path / "costs.md")]) == 2
    assert "costs.json: no file of `facebones costs`" in capsys.readouterr().err
    assert (tmp_path / "costs.json").read_text() == content


def test_the_command_writes_the_page_with_marks_and_reasons(quick, tmp_path, capsys):
    file = tmp_path / "costs.md"
    words = ["costs", "--output", str(file), "--measure", "--only", SMALL]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{file}: 2 backbones, 1 of them measured\n"
    (line, other) = [line for line in file.read_text().splitlines() if line.startswith(f"| `{SMALL}` | 1.50")]
    assert line.startswith(f"| `{SMALL}` | 1.50* | 1.50 |") and "*" not in other
    assert "Not measured yet: `study_mixfacenet_s`." in file.read_text()

    data = json.loads(file.with_suffix(".json").read_text())
    data["latencies"][SMALL]["2"]["openvino-int8"] = {"problem": "it crashes"}
    page = costs_page(data)
    assert page.count("see below") == 1 and f"- it crashes: `{SMALL}` (OpenVINO int8, 2)\n" in page


def test_the_page_says_how_fast_the_runtimes_are_and_how_well_macs_order_the_networks():
    draw = np.random.default_rng(0)
    macs, torch_ms, onnx_ms = draw.integers(1, 9, 20), draw.integers(1, 30, 20), draw.uniform(1, 9, 20)
    networks = [
        {"name": f"n{place}", "form": None, "training_form": None, "parameters": 1, "macs": int(one), "flops_2_macs": 1}
        | {"attention_macs": 0, "flops_mixfacenet": 1}
        for place, one in enumerate(macs)
    ]
    busy = draw.uniform(size=20) < 0.3
    latencies = {
        f"n{place}": {"1": {"torch": cell(latency=torch_ms[place]), "onnxruntime": cell(busy[place], onnx_ms[place])}}
        for place in range(20)
    }
    page = costs_page({"networks": networks, "published": [], "conditions": None, "latencies": latencies})
    ratios = (torch_ms / onnx_ms)[~busy]
    told = f"{gmean(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
    order = [spearmanr(macs, torch_ms).statistic, spearmanr(macs[~busy], onnx_ms[~busy]).statistic]
    assert f"| torch | 1 | 20 | - | {order[0]:.2f} |" in page
    assert f"| ONNX Runtime | 1 | {(~busy).sum()} | {told} | {order[1]:.2f} |" in page
    assert "| OpenVINO | 1 | 0 | - | - |" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a.json"], "a.json: its data go into this .json file; name the page .md"),
        (["--output", "a.md", "--only", "mobilfacenet"], "unknown backbone 'mobilfacenet'"),
        (["--output", "none.md/a.md"], "cannot be written"),
    ],
)
def test_a_bad_option_is_one_line_before_anything_is_counted(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("none.md").touch()
    monkeypatch.setattr(published, "count_networks", None)
    assert main(["costs", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_runtime_that_fails_has_its_reason_and_the_others_are_measured(monkeypatch, tmp_path):
    def fail(files, conditions):
        raise RunError(f"{files.folder}/int8.onnx: no such layer\nmore")

    prepare = {runtime: lambda files, conditions: lambda images: None for runtime in RUNTIMES_MEASURED}
    monkeypatch.setattr(measuring, "_PREPARE", prepare | {"onnxruntime-int8": fail})
    found = measure_latencies(SMALL, {}, 0.001)
    for threads in ("1", "2"):
        assert found[threads].pop("onnxruntime-int8") == {"problem": "int8.onnx: no such layer"}
        assert all(cell["latency_p50_ms"] >= 0 for cell in found[threads].values())


def test_a_disturbed_latency_is_measured_again_without_preparing_the_network_anew(monkeypatch):
    prepared, timed = [], []

    def prepare(runtime, files, conditions):
        prepared.append((runtime, conditions.threads))
        return lambda images: runtime

    def measure(inferences, batch_size, seconds):
        timed.append([infer(1) for infer in inferences])
        disturbed = {"torch": True, "compiled": len(timed) == 1}  # torch each time, compiled once
        rounds = {one: [0.01, 0.02] if disturbed.get(one) else [0.01, 0.01] for one in timed[-1]}
        return [Timings(1, single=[0.01], rounds=rounds[one], processor=0.01) for one in timed[-1]]

    steps = {runtime: partial(prepare, runtime) for runtime in RUNTIMES_MEASURED}
    monkeypatch.setattr(measuring, "_PREPARE", steps)
    monkeypatch.setattr(measuring, "measure_timings", measure)
    found = measure_latencies(SMALL, {"2": settled()["2"]}, 0.001)
    assert prepared == [(runtime, 1) for runtime in RUNTIMES_MEASURED]
    assert timed == [list(RUNTIMES_MEASURED), ["torch", "compiled"], *[["torch"]] * (measuring.ATTEMPTS - 2)]
    assert {runtime for runtime, one in found["1"].items() if one["busy"]} == {"torch"}


def test_a_crash_in_openvino_is_a_reason(monkeypatch, tmp_path):
    class Deadly:
        def __reduce__(self):
            import os

            return os._exit, (1,)

    files = measuring._Files(SMALL, tmp_path)
    monkeypatch.setattr(files, "int8", Deadly)
    for _ in range(2):  # the second time without another process
        with pytest.raises(RunError, match="OpenVINO crashes when it compiles the int8 file"):
            files.int8_for_openvino()


@pytest.mark.slow
def test_every_runtime_measures_a_small_network():
    pytest.importorskip("openvino")
    found = measure_latencies("shufflefacenet_0_5", {"2": settled()["2"]}, 0.01)
    assert found["2"] == settled()["2"]
    assert all(0 < cell["latency_p50_ms"] <= cell["latency_p90_ms"] for cell in found["1"].values())


# ------------------------------------------------------------------------------------------------------------ the mark


@pytest.mark.parametrize(("queued", "busy"), [(0.0, False), (0.4, True)])
def test_threads_in_the_queue_mark_a_time_on_several_threads_as_busy(queued, busy):
    timing = Timings(1, single=[0.01] * 100, rounds=[0.01, 0.01], processor=1.7, queued=queued)  # of 2.0 when idle
    assert timing.summary()["busy"] is busy


def test_a_batch_of_one_image_is_not_timed_twice():
    calls = []
    timing = Timings(1)
    timing.add_turn(calls.append, 0.001)
    assert len(calls) == len(timing.single) + 1 and timing.batch == []
    assert timing.summary()["throughput_repetitions"] == len(timing.single)
