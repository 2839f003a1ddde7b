"""The protocol seam: the registry, a user's own protocol, and evaluation from Python."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.cli.main import COMMANDS
from facebones.data.image_sources import EncodedImages, LooseCrops
from facebones.data.preprocessing import Preprocessing
from facebones.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from facebones.evaluation.built_in import BUILT_IN
from facebones.evaluation.models import load_model
from facebones.evaluation.protocol import (
    Protocol,
    find_protocols,
    list_protocols,
    lookup_protocol,
    register_protocol,
)
from facebones.evaluation.run import DEFAULTS, Options, evaluate, run_protocols
from facebones.reporting.words import PROTOCOLS
from facebones.run_folder import RunFolder
from facebones.statistics.metric import Metric, MetricComparison
from facebones.synthetic.dataset import synthesize

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny_protocol.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_backbone):
    """Two runs with random weights, by name."""
    runs = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        runs[name] = tmp_path_factory.mktemp(name)
        card = {"backbone": tiny_backbone, "embedding_size": 16}
        save_weights(RunFolder(runs[name]), create_backbone(tiny_backbone, 16), card)
    return runs


@pytest.fixture(scope="module")
def ijb(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    synthesize(folder, identities=2, images_per_identity=1, pairs=20, template_subjects=6, workers=1)
    return folder / "ijb"


@pytest.fixture
def people(small_data, tmp_path):
    """A folder of the example's protocol."""
    folder = tmp_path / "friends.people"
    for photo in sorted((small_data.parent / "images").glob("*/*.jpg")):
        (folder / photo.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / photo.parent.name / photo.name).write_bytes(photo.read_bytes())
    return folder


@pytest.fixture
def example():
    """The example's protocol, registered for one test."""
    from facebones.plugins import import_plugins

    import_plugins([str(EXAMPLE)])
    return lookup_protocol("nearest_photo")


# -------------------------------------------------------------------------------------------------------- registry


def test_built_in_protocols_find_their_sets(small_data, ijb, tmp_path):
    assert list_protocols()[:3] == ["pairs", "ijb_verification", "ijb_identification"]
    (tiny,) = find_protocols(small_data)
    assert (tiny.name, tiny.set, tiny.path) == ("pairs", "tiny", small_data / "tiny.bin")
    assert [(one.name, one.set) for one in find_protocols(ijb)] == [
        ("ijb_verification", "ijb"),
        ("ijb_identification", "ijb"),
    ]
    assert [one.name for one in find_protocols(ijb, "ijb_identification")] == ["ijb_identification"]
    for found in (tiny, *find_protocols(ijb)):
        found.check()
        assert len(found.images()) > 0
    (tmp_path / "list.txt").write_text("a.jpg b.jpg 1\n")
    assert [one.name for one in find_protocols(tmp_path / "list.txt")] == ["pairs"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_protocol_is_known_by_its_line(name, tmp_path):
    """A line in `built_in` gives the registry, the command and the lists of a study."""
    protocol = lookup_protocol(name)
    assert (protocol.name, protocol.__module__) == (name, f"facebones.evaluation.{BUILT_IN[name].module}")
    assert name in list_protocols() and name in PROTOCOLS
    if BUILT_IN[name].help:
        assert f"evaluate {name}" in COMMANDS
        (found,) = find_protocols(f"{name}={tmp_path}")
        with pytest.raises(DataError) as error:
            found.check()
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_what_no_protocol_knows_is_one_line(tmp_path, small_data):
    with pytest.raises(DataError, match="no such file or folder"):
        find_protocols(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no evaluation set of the protocols pairs"):
        find_protocols(tmp_path / "empty")
    with pytest.raises(UnknownNameError, match="unknown protocol 'pears'; did you mean 'pairs'"):
        find_protocols(small_data, "pears")


def test_a_name_is_registered_once():
    methods = {"find": classmethod(lambda cls, path: []), "images": None, "evaluate": None}
    for name in ("pairs", "ijb_verification"):
        with pytest.raises(ConfigError, match=f"protocol {name}: the name is taken"):
            register_protocol(type("Mine", (Protocol,), {"name": name, "__module__": "mine", **methods}))
    register_protocol(type("Mine", (Protocol,), {"name": "mine", "__module__": "mine", **methods}))
    with pytest.raises(ConfigError, match="the name is taken"):
        register_protocol(type("Other", (Protocol,), {"name": "mine", "__module__": "other", **methods}))
    with pytest.raises(ConfigError, match=r"not a class derived from .*\.Protocol"):
        register_protocol(object)
    with pytest.raises(ConfigError, match="protocol Unfinished: lacks name, evaluate, images;"):
        register_protocol(type("Unfinished", (Protocol,), {"find": methods["find"]}))


def test_a_folder_without_identification_lists_fails_its_check(ijb, tmp_path):
    import shutil

    shutil.copytree(ijb, tmp_path / "ijb")
    (tmp_path / "ijb" / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    verification, identification = find_protocols(tmp_path / "ijb")
    verification.check()
    with pytest.raises(DataError, match="identification"):
        identification.check()


# ---------------------------------------------------------------------------------------------------- from Python


def test_one_model_has_metrics_with_intervals(weights, small_data):
    metrics = evaluate(weights["first"], small_data / "tiny.bin", device="cpu", bootstrap=100)
    assert [(one.name, one.protocol, one.set) for one in metrics] == [
        (name, "pairs", "tiny") for name in ("accuracy", "tar", "auc", "eer")
    ]
    accuracy, tar, *_ = metrics
    assert accuracy.interval.low <= accuracy.value <= accuracy.interval.high
    assert (tar.value, tar.interval, tar.at) == (None, None, {"far": 1e-3})
    assert "impostor pairs" in tar.reason
    (found,) = find_protocols(small_data / "tiny.bin")
    assert evaluate(load_model(weights["first"], device="cpu"), found, device="cpu", bootstrap=100) == metrics


def test_several_models_are_compared(weights, small_data):
    compared = evaluate(weights, [small_data / "tiny.bin"], device="cpu", bootstrap=100)
    assert all(isinstance(one, MetricComparison) for one in compared)
    assert list(compared[0].values) == ["first", "second"]
    assert [(one.first, one.second) for one in compared[0].comparisons] == [("first", "second")]
    alone = evaluate(weights["second"], small_data / "tiny.bin", device="cpu", bootstrap=100)
    assert [one.of("second").value for one in compared] == [one.value for one in alone]


def test_a_protocols_own_evaluate_gives_the_same_values(weights, small_data):
    from facebones.evaluation.embed import embed

    (found,) = find_protocols(small_data / "tiny.bin")
    features = embed({"x": load_model(weights["first"], device="cpu")}, found.images(), batch_size=128)["x"]
    whole = evaluate(weights["first"], found, device="cpu")
    assert found.evaluate(features) == whole


def test_images_of_two_protocols_are_embedded_once(weights, ijb, tmp_path, monkeypatch):
    reads = []
    original = LooseCrops.read
    monkeypatch.setattr(LooseCrops, "read", lambda *given: reads.append(given[1]) or original(*given))
    options = {"device": "cpu", "bootstrap": 100, "progress": False}
    contents = run_protocols(weights, find_protocols(ijb), output=tmp_path, **options)
    assert list(contents) == ["ijb_verification", "ijb_identification"]
    assert len(reads) == len(set(reads)) == len(find_protocols(ijb)[0].images())
    for name, file in (("ijb_verification", "templates.json"), ("ijb_identification", "identification.json")):
        assert json.loads((tmp_path / file).read_text()) == contents[name]
        assert contents[name]["protocol"] == name


def test_library_calls_leave_torchs_state(weights, small_data):
    torch.manual_seed(7)
    state, flags = torch.get_rng_state(), (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32)
    threads = torch.get_num_threads()
    load_model("mobilefacenet", device="cpu")
    evaluate(weights["first"], small_data / "tiny.bin", device="cpu", bootstrap=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == flags
    assert torch.get_num_threads() == threads


def test_nothing_to_do_is_refused(weights, small_data):
    with pytest.raises(ConfigError, match="at least one of both"):
        evaluate({}, small_data / "tiny.bin")
    with pytest.raises(ConfigError, match="at least one of both"):
        evaluate(weights["first"], [])
    (found,) = find_protocols(small_data / "tiny.bin")
    with pytest.raises(DataError, match="two evaluation sets are called tiny"):
        run_protocols(weights, [found, found])


# ---------------------------------------------------------------------------------------------------------- models


def test_a_model_embeds_paths_bytes_and_arrays(weights, small_data):
    from facebones.data.images import decode

    model = load_model(weights["first"], device="cpu")
    path = next((small_data.parent / "images").glob("*/*.jpg"))
    pixels = decode(path.read_bytes(), "x", 112)
    rows = model.embed([path, str(path), path.read_bytes(), pixels])
    assert rows.shape == (4, 16) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, rows[:1].repeat(4, axis=0), atol=1e-5)
    assert model.embed(pixels).shape == (1, 16)
    flipped = model.embed(path, flip=True)
    mirror = model.embed(np.ascontiguousarray(pixels[:, ::-1]))
    np.testing.assert_allclose(flipped, rows[:1] + mirror, rtol=1e-4, atol=1e-5)
    large = model.embed(np.zeros((224, 224, 3), np.uint8))
    np.testing.assert_allclose(large, model.embed(np.zeros((112, 112, 3), np.uint8)), atol=1e-6)


def test_a_model_matches_images_and_embeddings(weights, small_data):
    model = load_model(weights["first"], device="cpu")
    one, other = sorted((small_data.parent / "images").glob("*/*.jpg"))[::10][:2]
    assert model.match(one, one) == pytest.approx(1.0)
    a, b = model.embed([one, other])
    expected = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert model.match(one, other) == pytest.approx(expected, abs=1e-5)
    assert model.match(a, other) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(DataError, match="zero or not finite"):
        model.match(np.zeros(16, np.float32), a)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "0 images"),
        (["missing.jpg"], "missing.jpg: cannot be read"),
        ([b"no image"], "image 0: no readable image"),
        ([np.zeros((112, 112), np.uint8)], "image 0: uint8 of shape"),
        ([np.zeros((112, 112, 3))], "image 0: float64"),
    ],
)
def test_unfit_images_are_one_line(weights, images, message):
    with pytest.raises(DataError, match=message) as error:
        load_model(weights["first"], device="cpu").embed(images)
    assert "\n" not in str(error.value)


def test_a_registered_name_has_random_weights(capsys, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = load_model("mobilefacenet", device="cpu")
    assert "random weights" in capsys.readouterr().err
    assert model.embed(np.zeros((112, 112, 3), np.uint8)).shape == (1, 512)
    torch.manual_seed(0)
    expected = create_backbone("mobilefacenet").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.network.state_dict().items())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mobilefacenet").mkdir()  # a path wins: a run must never turn into random weights
    with pytest.raises(CheckpointError, match="mobilefacenet: neither"):
        load_model("mobilefacenet", device="cpu")
    for missing in ("mobilefacenot", tmp_path / "mobilefacenet2", "runs/x", "x.onnx"):
        with pytest.raises(CheckpointError):
            load_model(missing, device="cpu")


def test_preprocessing_of_a_file_that_states_its_own_is_refused(weights):
    with pytest.raises(ConfigError, match="states its own"):
        load_model(weights["first"], device="cpu", preprocessing=Preprocessing(scale=128))


# --------------------------------------------------------------------------------------------------- user's protocol


def expected_rate(model, folder):
    photos = sorted(folder.glob("*/*.jpg"))
    rows = model.embed(photos, flip=True).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    right = 0
    for place, row in enumerate(rows):
        others = [(float(row @ other), at) for at, other in enumerate(rows) if at != place]
        right += photos[max(others)[1]].parent == photos[place].parent
    return right / len(photos)


def test_the_example_works_from_python(example, weights, people):
    (found,) = find_protocols(people)
    assert isinstance(found, example) and found.file == "nearest_photo.json"
    found.check()
    (metric,) = evaluate(weights["first"], people, device="cpu")
    expected = expected_rate(load_model(weights["first"], device="cpu"), people)
    assert metric == Metric(name="nearest", value=expected, main=True, protocol="nearest_photo", set="friends.people")
    (compared,) = evaluate(weights, people, device="cpu")
    assert compared.values["first"] == expected and compared.comparisons == ()
    assert compared.not_different_from_best == ("first", "second")


def small_run(folder):
    """A run whose backbone other processes know too."""
    torch.manual_seed(0)
    card = {"backbone": "mobilefacenet", "embedding_size": 16}
    save_weights(RunFolder(folder), create_backbone("mobilefacenet", 16), card)
    return folder


def test_the_example_works_on_the_command_line(people, tmp_path):
    run = small_run(tmp_path / "run")
    words = ["evaluate", "sets", "--import", EXAMPLE, "--model", f"mine={run}", "--data", people]
    words = [sys.executable, "-m", "facebones", *words, "--device", "cpu", "--output", tmp_path / "out"]
    done = subprocess.run(list(map(str, words)), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nearest" in done.stdout
    content = json.loads((tmp_path / "out" / "nearest_photo.json").read_text())
    expected = expected_rate(load_model(run, device="cpu"), people)
    assert content["results"][0]["metrics"][0]["values"] == {"mine": expected}
    assert content["results"][0]["sizes"] == {"images": 28}


def test_the_example_refuses_a_folder_without_a_second_photo(example, people):
    for photo in people.glob("*/*.jpg"):
        if photo.stem != "0":
            photo.unlink()
    (found,) = find_protocols(people)
    with pytest.raises(DataError, match="no person has two photos"):
        found.check()


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60


def test_a_protocol_without_images_fails_its_check(tmp_path):
    class Empty(Protocol):
        name = "empty"

        @classmethod
        def find(cls, path):
            return [cls(path)]

        def images(self):
            return EncodedImages("nothing", [])

        def evaluate(self, features_NxVxD):
            return []

    with pytest.raises(DataError, match="no images for the protocol empty"):
        Empty(tmp_path).check()


def test_commands_evaluate_with_the_options_and_defaults_of_the_function():
    assert {**evaluate.__kwdefaults__, "progress": True} == DEFAULTS
    assert DEFAULTS.keys() == Options.__annotations__.keys()


SCRIPT = """
import sys
from facebones.evaluation.run import evaluate
evaluate(sys.argv[1], sys.argv[2], device="cpu", bootstrap=100)
print(*sorted(name for name in sys.modules if name.split(".")[0] == "facebones"), sep="\\n")
"""


def test_one_pair_set_needs_few_modules(small_data, tmp_path):
    run = small_run(tmp_path / "run")
    words = [sys.executable, "-c", SCRIPT, str(run / "model.safetensors"), str(small_data / "tiny.bin")]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    packages = {name.split(".")[1] for name in loaded if "." in name}
    assert not packages & {"reporting", "profiling", "training", "study", "cli", "onnx", "export"}
    files = [name for name in loaded if not any(other.startswith(f"{name}.") for other in loaded)]
    assert len(files) <= 31, " ".join(files)  # beside the __init__.py of the packages that they are in
