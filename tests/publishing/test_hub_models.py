"""Models by their address on the Hub, with the real `huggingface_hub` and a stand-in of the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer, Repository

import facebones
from facebones.cli.main import main
from facebones.errors import CheckpointError, ConfigError, MissingExtraError, RunError
from facebones.evaluation.models import load_model, named_files
from facebones.profiling.networks import find_sources
from facebones.system import hub as hub_files
from facebones.system.hub import parse_address

CPU = {"device": "cpu"}
FACE = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)


def change(hub, **files):
    """Commit other content to ann/mbf; names have "__" for ".", and None removes the file."""
    hub.repositories["ann/mbf"].commit({})
    held = hub.files("ann/mbf")
    for key, content in files.items():
        name = key.replace("__", ".")
        if content is None:
            del held[name]
        else:
            held[name] = content


def config(hub, **changes):
    return json.dumps(json.loads(hub.files("ann/mbf")["config.json"]) | changes).encode()


def test_a_published_model_embeds_as_the_run_does(published, finished):
    commit = published.repositories["ann/mbf"].commits[-1][0]
    model = load_model("hf:ann/mbf", **CPU)
    assert np.array_equal(model.embed(FACE), load_model(finished, **CPU).embed(FACE))
    assert model.describe()["checkpoint"] == f"hf:ann/mbf@{commit}"
    assert model.calibration["thresholds"][0]["false_match_rate"] == 0.5
    fetched = {request.rpartition("/")[2] for request in published.requests if "/resolve/" in request}
    assert fetched == {"config.json", "model.safetensors", "model.calibration.json"}  # not the card


def test_each_revision_is_its_own_model(published):
    repository = published.repositories["ann/mbf"]
    first = repository.commits[-1][0]
    repository.tags["v1"] = first
    change(published, config__json=b"{}")
    with pytest.raises(CheckpointError, match=r"^hf:ann/mbf: not of a facebones model"):
        load_model("hf:ann/mbf", **CPU)
    for revision in ("v1", first):
        model = load_model(f"hf:ann/mbf@{revision}", **CPU)
        assert model.describe()["checkpoint"] == f"hf:ann/mbf@{first}"


def test_what_is_in_the_cache_needs_no_network(published, monkeypatch):
    load_model("hf:ann/mbf", **CPU)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(published.requests)
    assert load_model("hf:ann/mbf", **CPU).path.name == "model.safetensors"
    assert len(published.requests) == before
    with pytest.raises(RunError, match=r"^hf:ann/other: config.json is not in the cache, and HF_HUB_OFFLINE forbids"):
        load_model("hf:ann/other", **CPU)


def test_a_hub_that_does_not_answer_is_one_line_and_the_cache_still_serves(published, monkeypatch):
    load_model("hf:ann/mbf", **CPU)
    from huggingface_hub import constants

    gone = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", gone)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", gone + "/{repo_id}/resolve/{revision}/{filename}")
    load_model("hf:ann/mbf", **CPU)
    with pytest.raises(
        RunError, match=r"^hf:ann/other: config.json is not in the cache, and the Hub cannot be reached"
    ):
        load_model("hf:ann/other", **CPU)


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf:ann/none", r"^hf:ann/none: no such repository, or a private one that you have no access to"),
        ("hf:ann/mbf@v9", r"^hf:ann/mbf@v9: the repository has no such revision"),
        ("hf:ann/secret", r"^hf:ann/secret: no such repository, or a private one .*set HF_TOKEN"),
        ("hf:ann/gated", r"^hf:ann/gated: access is given on request"),
        ("hf:ann/theirs", r"^hf:ann/theirs: no facebones model: the repository holds no config.json"),
        ("hf:ann/bert", r"^hf:ann/bert: not of a facebones model"),
    ],
)
def test_what_is_no_model_for_this_user_is_one_line(published, monkeypatch, address, said):
    monkeypatch.delenv("HF_TOKEN")
    bert = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"", "pytorch_model.bin": b"pickle"}
    for name, held, options in (
        ("secret", {"a": b""}, {"visibility": "private"}),
        ("gated", {"a": b""}, {"gated": True}),
        ("theirs", {"pytorch_model.bin": b"pickle"}, {}),
        ("bert", bert, {}),
    ):
        published.repositories[f"ann/{name}"] = Repository(**options)
        published.repositories[f"ann/{name}"].commit(held)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(address, **CPU)
    assert "\n" not in str(caught.value)
    assert not any(request.endswith(".bin") for request in published.requests)


@pytest.mark.parametrize(
    "address", ["hf:", "hf:mbf", "hf:ann/mbf/x", "hf:ann/mbf@", "hf:ann/mbf@../x", "hf:a n/b", "hf:a--b/c"]
)
def test_what_is_no_address_is_refused_without_a_connection(hub, address):
    with pytest.raises(ConfigError, match=r"OWNER/NAME|no revision after"):
        load_model(address, **CPU)
    assert hub.requests == []


def test_other_weights_than_config_json_names_are_refused(published):
    held = published.files("ann/mbf")["model.safetensors"]
    changed = bytes([*held[:-1], held[-1] ^ 1])
    change(published, model__safetensors=changed)
    with pytest.raises(
        CheckpointError, match=r"not the weights that config.json beside it names: SHA-256 \w+\.\.\. instead"
    ):
        load_model("hf:ann/mbf", **CPU)


def test_another_size_than_config_json_says_is_not_fetched(published):
    held = published.files("ann/mbf")["model.safetensors"]
    change(published, model__safetensors=held + bytes(8))
    with pytest.raises(CheckpointError, match=r"model.safetensors has [\d,]+ bytes instead of [\d,]+"):
        load_model("hf:ann/mbf", **CPU)
    assert not any("GET" in request and request.endswith("safetensors") for request in published.requests)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": 7}, r"the network has [\d,]+ parameters, and config.json beside it says 7"),
        ({"backbone": "mobilefacenet"}, r"holds tiny_for_tests .*config.json beside it says 'mobilefacenet'"),
        ({"embedding_size": 32}, r"holds tiny_for_tests of embedding size 16, .* of 32"),
        ({"format": 2}, r"format 2 is not known here; update facebones"),
        ({"files": {}}, r"damaged: it lacks what `facebones push` writes"),
        ({"files": {"model.safetensors": {"sha256": "0" * 64, "bytes": 2**40}}}, r"damaged"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(published, changes, said):
    change(published, config__json=config(published, **changes))
    with pytest.raises(CheckpointError, match=said):
        load_model("hf:ann/mbf", **CPU)


def test_a_config_that_is_far_too_large_is_not_fetched(published):
    change(published, config__json=b" " * 2_000_000)
    with pytest.raises(CheckpointError, match=r"config.json has 2,000,000 bytes instead of up to 1,048,576"):
        load_model("hf:ann/mbf", **CPU)
    assert not any("GET" in request for request in published.requests)


def test_a_file_that_is_missing_is_named(published):
    change(published, model__safetensors=None)
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors"):
        load_model("hf:ann/mbf", **CPU)


def test_a_download_that_is_cut_short_leaves_nothing_and_the_next_one_is_whole(published):
    published.truncated.add("model.safetensors")
    with pytest.raises(
        RunError, match=r"model.safetensors was not transferred as a whole: .*run the same command again"
    ):
        load_model("hf:ann/mbf", **CPU)
    published.truncated.clear()
    load_model("hf:ann/mbf", **CPU)


def test_a_failing_hub_is_one_line(published):
    published.failing["model.safetensors"] = 500
    with pytest.raises(
        RunError, match=r"^hf:ann/mbf@\w+: model.safetensors is not in the cache, and the Hub cannot"
    ) as caught:
        load_model("hf:ann/mbf", **CPU)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'facebones\[hub\]'"):
        load_model("hf:ann/mbf", **CPU)


# ------------------------------------------------------------------------------------------------- wherever a model is


def test_a_model_is_called_like_its_repository():
    given = ["hf:ann/mbf@v1.0", "theirs=hf:bob/mbf"]
    assert named_files(given, "--model") == {"mbf": Path("hf:ann/mbf@v1.0"), "theirs": Path("hf:bob/mbf")}
    assert str(parse_address(named_files(given, "--model")["mbf"])) == "hf:ann/mbf@v1.0"


def test_results_record_the_commit(published, small_data, tmp_path, capsys):
    commit = published.repositories["ann/mbf"].commits[-1][0]
    line = ["evaluate", "pairs", "--model", "hf:ann/mbf", "--data", str(small_data / "tiny.bin"), "--device", "cpu"]
    assert main([*line, "--bootstrap", "100", "--output", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "pairs.json").read_text())
    assert result["models"]["mbf"]["checkpoint"] == f"hf:ann/mbf@{commit}"
    assert facebones.load_results(tmp_path / "out").metrics
    (source,) = find_sources(["hf:ann/mbf"])  # of `profile` and `compare`
    assert source.name == f"hf:ann/mbf@{commit}" and source.path.name == "model.safetensors"


def test_match_uses_the_thresholds_that_were_published(published, noisy, tmp_path, capsys):
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(noisy(0, number))
    line = ["match", str(tmp_path / "0.jpg"), str(tmp_path / "1.jpg"), "--aligned", "--device", "cpu"]
    assert main([*line, "--model", "hf:ann/mbf"]) == 0
    assert "accepts at most 0.5 of pairs of strangers" in capsys.readouterr().out
    del published.files("ann/mbf")["model.calibration.json"]
    files = json.loads(published.files("ann/mbf")["config.json"])["files"]
    change(published, config__json=config(published, files={"model.safetensors": files["model.safetensors"]}))
    assert main([*line, "--model", "hf:ann/mbf"]) == 0
    hint = capsys.readouterr().out
    assert "hf download ann/mbf --local-dir mbf && facebones calibrate --model mbf --data PAIRS" in hint


def test_a_training_begins_with_the_commit_that_it_has_found(published, tiny_recipe, tmp_path):
    commit = published.repositories["ann/mbf"].commits[-1][0]
    recipe = tiny_recipe(**{"backbone.weights": "hf:ann/mbf", "training.epochs": 1})
    facebones.train(recipe, tmp_path / "run", device="cpu")
    assert f"weights: hf:ann/mbf@{commit}" in (tmp_path / "run" / "config.yaml").read_text()
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["weights"]["path"] == f"hf:ann/mbf@{commit}"


def test_thresholds_of_a_user_do_not_go_into_the_cache(published, small_data):
    with pytest.raises(ConfigError, match=r"take a copy of the model by `hf download ann/mbf --local-dir mbf`"):
        facebones.calibrate("hf:ann/mbf", small_data / "tiny.bin", false_match_rates=[0.5], output="hf:ann/mbf", **CPU)


def test_a_folder_that_push_has_written_is_a_model_and_is_checked(published, tmp_path):
    folder = tmp_path / "as_pushed"
    assert load_model(folder, **CPU).describe()["checkpoint"] == str(folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"parameters": 1}))
    with pytest.raises(CheckpointError, match=r"parameters, and config.json beside it says 1"):
        load_model(folder, **CPU)
    (folder / "config.json").write_text('{"model_type": "bert"}')  # of another program: not our claim
    load_model(folder, **CPU)


def test_the_environment_of_a_user_is_respected(tmp_path):
    """As a user has it: a process of its own, with HF_ENDPOINT and HF_HOME."""
    code = """
from facebones.system.hub import download, origin, parse_address
path = download(parse_address("hf:ann/xs"), "config.json", most=9)
print(origin(path), path)
"""
    with HubServer() as server:
        server.repositories["ann/xs"] = Repository()
        commit = server.repositories["ann/xs"].commit({"config.json": b"{}"})
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": ""}
        ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    address, path = ran.stdout.split()
    assert address == f"hf:ann/xs@{commit}" and Path(path).is_relative_to(tmp_path / "home")


def test_errors_that_are_not_the_hub_s_stay_as_they_are(hub):
    with pytest.raises(ZeroDivisionError), hub_files.hub_errors(parse_address("hf:ann/mbf"), "a"):
        _ = 1 / 0
