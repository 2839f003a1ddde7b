"""Runtimes: all embed as eager does; `auto` takes the fastest that does, and believes no cache blindly."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from facebones.backbones import Backbone, create_backbone
from facebones.backbones.weights import save_weights
from facebones.cli.main import main
from facebones.cli.options import RUNTIME_HELP
from facebones.data.image_sources import EncodedImages
from facebones.data.pair_bins import read_pairs
from facebones.errors import ConfigError, UnknownNameError
from facebones.evaluation import runtimes
from facebones.evaluation import runtimes as runtime_choice
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Model
from facebones.evaluation.runtimes import AUTO, EAGER, RUNTIMES, Runtime, choose, run_by, smallest_cosine, with_runtime
from facebones.run_folder import RunFolder

CPU = torch.device("cpu")
BATCH = 4
QUICK = [name for name in RUNTIMES if not name.startswith("compiled")]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in RUNTIMES if name.startswith("compiled")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "facebones" / "runtimes.json"


@pytest.fixture(scope="module")
def faces(small_data):
    return EncodedImages("faces", read_pairs(small_data / "tiny.bin").images[:10])


def opened(network):
    network = network.eval().to(memory_format=torch.channels_last)
    return Model(network=network, device=CPU, channels_last=True, weights_sha256="its weights")


def needs(name):
    for package in RUNTIMES[name].packages:
        pytest.importorskip(package)


def embedded(embedder, faces):
    return embed({"": embedder}, faces, batch_size=BATCH, workers=1)[""]


def test_a_signal_is_handled_after_two_models_by_openvino(tmp_path):
    """Each core of OpenVINO changes the stack of the handlers; two, released in their order, left one that was gone."""
    pytest.importorskip("openvino")
    helper = pytest.importorskip("onnx").helper
    sides = [helper.make_tensor_value_info(name, 1, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "graph", sides[:1], sides[1:])
    opset = [helper.make_opsetid("", 17)]
    (tmp_path / "negative.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )
    program = f"""
import faulthandler, signal
from pathlib import Path
from facebones.onnx.openvino import compile_openvino
faulthandler.enable()
first, second = (compile_openvino(Path({str(tmp_path / "negative.onnx")!r}), (1, 3), "f32") for _ in range(2))
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.parametrize("name", QUICK + SLOW)
def test_embeds_as_eager_does(name, tiny_backbone, faces):
    """Also the last batch, which is smaller, and the mirror images."""
    needs(name)
    eager = opened(create_backbone(tiny_backbone, 16))
    ours = run_by(eager, name, BATCH)
    expected, found = embedded(eager, faces), embedded(ours, faces)
    assert found.shape == expected.shape == (10, 2, 16)
    assert smallest_cosine(expected.reshape(20, 16), found.reshape(20, 16)) >= RUNTIMES[name].lowest_cosine
    np.testing.assert_allclose(found, expected, atol=(0.05 if RUNTIMES[name].precision == "bf16" else 1e-5))
    if name != EAGER:
        assert not np.array_equal(found, expected) or RUNTIMES[name].precision == "fp32"
        assert ours.settings() != eager.settings()
    assert (ours.settings()["runtime"], ours.settings()["precision"]) == (name, RUNTIMES[name].precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNTIMES))
@pytest.mark.parametrize("backbone", ["mobilefacenet_wide", "shufflefacenet_0_5"])
def test_real_backbones_within_bounds(name, backbone, scaled_backbone, faces):
    needs(name)
    eager = opened(scaled_backbone(backbone))
    expected, found = (embedded(one, faces).reshape(20, -1) for one in (eager, run_by(eager, name, BATCH)))
    assert smallest_cosine(expected, found) >= RUNTIMES[name].lowest_cosine


@pytest.mark.slow
def test_compiled_networks_of_one_class_keep_their_weights_and_are_compiled_once(tiny_backbone, faces):
    """Weights are constants in them, and torch by itself goes back to eager after the eighth."""
    import torch._dynamo

    models = [opened(create_backbone(tiny_backbone, 16)) for _ in range(10)]
    ours = [run_by(model, "compiled", BATCH) for model in models]
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch._dynamo.utils.counters.clear()
        for model, compiled in zip(models, ours, strict=True):
            expected, found = embedded(model, faces), embedded(compiled, faces)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            with torch.no_grad():
                model.network.linear.weight.zero_()  # seen by eager only: what was compiled has its own
            assert np.array_equal(embedded(compiled, faces), found)
    assert not torch._dynamo.utils.counters["unimplemented"]


def test_larger_batch_is_refused(tiny_backbone):
    pytest.importorskip("onnxruntime")
    ours = run_by(opened(create_backbone(tiny_backbone, 16)), "onnxruntime", BATCH)
    with pytest.raises(ValueError, match=r"5 images; .* 4$"):
        ours(np.zeros((5, 112, 112, 3), np.uint8), flip=False)


def test_networks_are_left_in_their_mode(tiny_backbone, faces):
    model = opened(create_backbone(tiny_backbone, 16))
    model.network.train()
    embedded(run_by(model, "bf16", BATCH), faces)
    assert all(module.training for module in model.network.modules())


class Refused(Backbone):
    name, embedding_size = "refused", 8

    def forward(self, x):
        raise RuntimeError("no compiler\nand much more")


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("fast", {}, UnknownNameError, "--runtime: unknown runtime 'fast'"),
        ("compield", {}, UnknownNameError, "did you mean 'compiled'"),
        ("onnxruntime", {"device": torch.device("cuda")}, ConfigError, "--runtime onnxruntime: computes on the CPU"),
        ("bf16", {}, ConfigError, "--runtime bf16: no compiler; choose another runtime"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name, change, error, message, faces):
    model = Model(network=Refused(), device=CPU)
    with pytest.raises(error, match=message) as caught:
        with_runtime({"a": Model(**(vars(model) | change))}, name, [faces], batch_size=BATCH)
    assert len(str(caught.value).splitlines()) == 1


def test_auto_is_refused_where_there_is_no_set_of_images_to_choose_by():
    with pytest.raises(ConfigError, match=r"--runtime auto measures on a set of images .* name one of eager, bf16"):
        run_by(Model(network=Refused(), device=CPU), "auto", 1)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("facebones.onnx.graph.find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(ConfigError, match=r"openvino-bf16 needs openvino; pip install 'facebones\[openvino\]'"):
        run_by(Model(network=Refused(), device=CPU), "openvino-bf16", BATCH)


# --- auto


class Slow(Backbone):
    """A network that takes its time, unless a runtime takes it from it."""

    name, embedding_size = "slow", 8

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3 * 112 * 112, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        time.sleep(0.03)
        return x.flatten(1) @ self.weights


class Quick(Slow):
    def __init__(self, original, change):
        super().__init__()
        self.original, self.change = original, change

    def forward(self, x):
        return self.change(x.flatten(1) @ self.original.weights)


def fake(change=lambda x: x, **options):
    return Runtime(prepare=lambda network, batch_size: Quick(network, change), **options)


def turned(x):
    return x + 0.1 * x.norm(dim=1, keepdim=True) * torch.eye(8)[0]


@pytest.fixture
def only(monkeypatch):
    """Replace all runtimes but eager."""

    def replace(**fakes):
        for name in list(RUNTIMES)[1:]:
            monkeypatch.delitem(RUNTIMES, name)
        for name, runtime in fakes.items():
            monkeypatch.setitem(RUNTIMES, name, runtime)

    return replace


@pytest.fixture
def images(faces):
    return np.stack([faces.read(index, 112) for index in range(BATCH)])


def take(images, count=100_000):
    return choose("it", Model(network=Slow(), device=CPU), images, BATCH, count)


def test_auto_takes_the_fastest(only, images, capsys):
    only(same=fake())
    assert take(images).runtime == "same"
    assert "it: --runtime auto takes same: " in capsys.readouterr().err


@pytest.mark.parametrize("change", [turned, lambda x: -x, lambda x: x * torch.nan, torch.zeros_like])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auto_refuses_what_embeds_otherwise(only, images, capsys, change, precision):
    only(wrong=fake(change, precision=precision))
    for _ in range(2):  # the second time its speed is known, and its embeddings are looked at all the same
        assert take(images).runtime == EAGER
        assert "auto refuses wrong: smallest cosine to eager" in capsys.readouterr().err


def test_bf16_may_differ_by_more_than_fp32(only, images):
    def a_little(x):
        return x + 0.02 * x.norm(dim=1, keepdim=True) * torch.eye(8)[0]

    only(rough=fake(a_little))
    assert take(images).runtime == EAGER
    RUNTIMES["rough"] = fake(a_little, precision="bf16")
    assert take(images).runtime == "rough"


def test_auto_goes_on_without_what_fails(only, images, capsys):
    def fails(x):
        raise RuntimeError("no compiler\nand much more")

    only(broken=fake(fails), same=fake())
    assert take(images).runtime == "same"
    assert "auto leaves out broken: --runtime broken: no compiler; " in capsys.readouterr().err


def test_auto_prepares_only_what_can_pay_back(only, images, capsys):
    """At 0.03 s a batch of four, 1,000 images take 7.5 s; to try may cost a quarter."""
    only(dear=Runtime(prepare=lambda *_: pytest.fail("tried"), setup_seconds=45))
    assert take(images, count=1000).runtime == EAGER
    only(cheap=fake(setup_seconds=0.1))
    assert take(images, count=1000).runtime == "cheap"
    assert take(images, count=20).runtime == EAGER
    assert "20 images are too few" in capsys.readouterr().err


def test_auto_measures_once(only, images, cache, monkeypatch):
    only(same=fake())
    assert take(images).runtime == "same"
    (row,) = json.loads(cache.read_text()).values()
    assert set(row) == {EAGER, "same"}
    with monkeypatch.context() as patch:
        patch.setattr(runtime_choice._Trial, "measure", lambda *_: pytest.fail("measured again"))
        assert take(images).runtime == "same"
        torch_threads = torch.get_num_threads() + 1
        patch.setattr(torch, "get_num_threads", lambda: torch_threads)
        with pytest.raises(pytest.fail.Exception, match="measured again"):  # under other conditions
            take(images)


def says(content, **eager):
    return json.dumps({key: {EAGER: eager} for key in content})


EDITS = {
    "no JSON": lambda content: "{",
    "no object": lambda content: "[]",
    "too deep": lambda content: "[" * 100_000,
    "no row": lambda content: json.dumps(dict.fromkeys(content, 3)),
    "no number": lambda content: says(content, setup_seconds=0, images_per_second="many"),
    "zero": lambda content: says(content, setup_seconds=0, images_per_second=0),
    "NaN": lambda content: says(content, setup_seconds=0, images_per_second=float("nan")),
    "other fields": lambda content: says(content, speed=1),
    "unknown": lambda content: json.dumps({key: row | {"evil": row[EAGER]} for key, row in content.items()}),
    "no eager": lambda content: json.dumps({key: {"same": row["same"]} for key, row in content.items()}),
    "too large": lambda content: json.dumps(content) + " " * 2**20,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_broken_cache_is_said_and_ignored(only, images, cache, capsys, edit):
    only(same=fake())
    take(images)
    cache.write_text(edit(json.loads(cache.read_text())))
    capsys.readouterr()
    assert take(images).runtime == "same"
    assert "not understood and" in capsys.readouterr().err
    take(images)  # and was written again
    assert "not understood" not in capsys.readouterr().err


def test_cache_that_cannot_be_written_stops_nothing(only, images, cache, capsys):
    only(same=fake())
    cache.parent.parent.write_text("a file, where a folder should be")
    assert take(images).runtime == "same"
    assert "the measurement is not saved" in capsys.readouterr().err


def test_explicit_runtime_wins_over_what_was_measured(only, images, faces):
    only(same=fake(), wrong=fake(turned))
    assert take(images).runtime == "same"
    model = {"it": Model(network=Slow(), device=CPU)}
    for name in (EAGER, "wrong"):
        assert with_runtime(model, name, [faces], batch_size=BATCH)["it"].runtime == name
    assert with_runtime(model, None, [faces], batch_size=BATCH) == model


# --- the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_backbone):
    folder = RunFolder(tmp_path_factory.mktemp("weights") / "tiny")
    torch.manual_seed(0)
    network = create_backbone(tiny_backbone, 16)
    save_weights(folder, network, {"backbone": tiny_backbone, "embedding_size": 16})
    return folder.weights


def evaluate(weights, data, capsys, *words):
    status = main(["evaluate", "pairs", "--model", str(weights), "--data", str(data), "--json", *words])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def test_results_say_how_they_were_computed(weights, small_data, capsys):
    data = small_data / "tiny.bin"
    said = {}
    for name in (None, EAGER, "bf16", AUTO):
        status, content, err = evaluate(weights, data, capsys, *(["--runtime", name] if name else []))
        assert not status, err
        model = content["models"]["model"]
        said[name] = model["runtime"], model["precision"], model["device"]
    assert said == {
        None: (EAGER, "fp32", "cpu"),
        EAGER: (EAGER, "fp32", "cpu"),
        "bf16": ("bf16", "bf16", "cpu"),
        AUTO: (EAGER, "fp32", "cpu"),  # 80 images are too few
    }


def test_onnx_files_have_their_runtime(weights, small_data, capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    assert not main(["export", "--model", str(weights), "--output", str(tmp_path / "tiny.onnx")])
    capsys.readouterr()
    for name in (None, AUTO, "onnxruntime"):
        words = ["--runtime", name] if name else []
        status, content, _ = evaluate(tmp_path / "tiny.onnx", small_data / "tiny.bin", capsys, *words)
        assert (status, content["models"]["tiny"]["runtime"]) == (0, "onnxruntime")
    status, _, err = evaluate(tmp_path / "tiny.onnx", small_data / "tiny.bin", capsys, "--runtime", "compiled")
    assert status == 2
    assert "is an ONNX file; take one of onnxruntime, openvino, openvino-bf16, or leave out --runtime" in err
    assert len(err.strip().splitlines()) == 1


def test_help_names_all_runtimes():
    names = RUNTIME_HELP.partition(": ")[2].partition(";")[0].split(", ")
    assert sorted(names) == sorted(runtimes.RUNTIMES)
