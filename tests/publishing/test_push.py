"""`push`: a finished run as a repository of the Hub, with the real `huggingface_hub` and a stand-in of the Hub."""

import json
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import yaml
from hub_server import Repository

import facebones
from facebones.cli.main import main
from facebones.errors import CheckpointError, ConfigError, DataError, MissingExtraError, RunError
from facebones.evaluation.models import load_model
from facebones.publishing.push import push

# `huggingface_hub` uploads by an argument that its HTTP client has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CPU = {"device": "cpu"}
FILES = {"README.md", "config.json", "model.calibration.json", "model.safetensors"}


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_run_is_pushed_in_one_commit_and_loads_again(hub, finished, capsys):
    line = [
        "push",
        str(finished),
        "ann/mbf",
        "--license",
        "cc-by-nc-4.0",
        "--results",
        str(finished.parent / "results"),
    ]
    assert main(line) == 0
    repository = hub.repositories["ann/mbf"]
    ((commit, files),) = repository.commits
    assert files.keys() == FILES and repository.private
    assert f"{hub.url}/ann/mbf, which is private; use it by --model hf:ann/mbf@{commit}" in capsys.readouterr().out
    assert files["model.safetensors"] == (finished / "model.safetensors").read_bytes()
    face = np.full((112, 112, 3), 90, np.uint8)
    assert np.array_equal(load_model("hf:ann/mbf", **CPU).embed(face), load_model(finished, **CPU).embed(face))


def test_the_card_says_what_was_measured(finished, tmp_path):
    results = finished.parent / "results"
    made = push(finished, "ann/mbf", license="mit", results=[results], output=tmp_path / "out")
    card = made.card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "mit" and metadata["library_name"] == "facebones"
    (measured,) = [
        one for one in json.loads((results / "pairs.json").read_text())["results"][0]["metrics"] if one["main"]
    ]
    value, interval = measured["values"]["it"], measured["intervals"]["it"]
    assert f"| tiny | accuracy | {100 * value:.2f} % [{100 * interval['low']:.2f}, " in card
    assert f"`pairs` of facebones {facebones.__version__}" in card
    assert f"95 % intervals ({interval['method']}; resampled: {interval['resampled']}, 100 replicates)" in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        f"| parameters | {config['parameters']:,} |" in card and f"| MACs for one face | {config['macs']:,} |" in card
    )
    assert config["macs"] == 112 // 8 * 112 // 8 * 8 * 3 * 49 + 8 * 14 * 14 * 16  # the convolution and the last layer
    kept = load_model(finished, **CPU).calibration["thresholds"][0]
    assert f"| {kept['threshold']:.4f} | 0.5 | 95 % |" in card
    assert "28 images of 4 identities" in card and "learning rate 0.1" in card
    assert 'facebones.load_model("hf:ann/mbf")' in card
    own = [one for one in config["metrics"] if one["name"] == "accuracy"]
    assert own[0]["value"] == value and own[0]["interval"]["low"] == interval["low"]


def test_no_path_and_no_name_of_the_machine_is_published(finished, small_data, tmp_path):
    import platform

    made = push(finished, "ann/mbf", license="mit", results=[finished.parent / "results"], output=tmp_path / "out")
    for name in made.files:
        content = (tmp_path / "out" / name).read_bytes()
        for secret in (str(small_data.parent), str(finished.parent), platform.platform(), platform.node()):
            assert secret.encode() not in content, f"{name} holds {secret}"


def test_without_results_the_card_has_the_validation_and_says_so(finished, tmp_path):
    bare = shutil.copytree(finished, tmp_path / "bare")
    (bare / "model.calibration.json").unlink()
    made = push(bare, "ann/mbf", license="mit", dry_run=True)
    assert "Validation at the last step of the training, without intervals" in made.card
    assert "## Thresholds" not in made.card and made.files.keys() == FILES - {"model.calibration.json"}


def test_results_in_the_study_around_the_run_are_found(finished, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(finished, study / "runs" / "tiny" / "seed0")
    (study / "study.json").write_text("{}")
    shutil.copytree(finished.parent / "results", study / "evaluation")
    assert "| tiny | accuracy |" in push(study / "runs" / "tiny" / "seed0", "ann/mbf", license="mit", dry_run=True).card


def test_results_of_other_weights_are_not_those_of_the_model(finished, tmp_path):
    results = shutil.copytree(finished.parent / "results", tmp_path / "results")
    content = json.loads((results / "pairs.json").read_text())
    content["models"]["it"]["weights_sha256"] = "0" * 64
    (results / "pairs.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"results: holds no results of this model"):
        push(finished, "ann/mbf", license="mit", results=[results], dry_run=True)
    shutil.copytree(results, tmp_path / "run" / "evaluation")
    with pytest.raises(DataError, match=r"nothing: no such file or folder"):
        push(finished, "ann/mbf", license="mit", results=[tmp_path / "nothing"], dry_run=True)


@pytest.mark.parametrize(("moment", "told"), [("temporary_folder", "no partial output is left"), ("check_written", "")])
def test_a_stopped_push_says_whether_the_folder_is_there(finished, tmp_path, monkeypatch, capsys, moment, told):
    place = tmp_path / "out"
    monkeypatch.setattr(f"facebones.publishing.push.{moment}", lambda _: signal.raise_signal(signal.SIGTERM))
    assert main(["push", str(finished), "ann/mbf", "--license", "mit", "--output", str(place)]) == 143
    assert place.exists() == (not told)
    assert (told or f"nothing is missing in {place}") in capsys.readouterr().err.splitlines()[-1]


def test_dry_run_and_output_need_no_network_and_no_package(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = ["push", str(finished), "ann/mbf", "--license", "mit"]
    assert main([*line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "# mbf" in said and "a new repository ann/mbf would be private" in said
    assert main([*line, "--output", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert main([*line, "--output", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*line, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["private"] is True
    with pytest.raises(MissingExtraError, match=r"facebones\[hub\]"):
        push(finished, "ann/mbf", license="mit")


# ------------------------------------------------------------------------------------------------------- visibility


def test_a_repository_is_public_only_if_that_is_asked_for(hub, finished):
    push(finished, "ann/open", license="mit", public=True)
    assert not hub.repositories["ann/open"].private
    with pytest.raises(ConfigError, match=r"^hf:ann/open: is public; give --public to publish there"):
        push(finished, "ann/open", license="mit")
    assert len(hub.repositories["ann/open"].commits) == 1


def test_a_second_push_is_a_second_commit_and_keeps_other_files(hub, finished):
    hub.repositories["ann/mbf"] = Repository(visibility="private")
    hub.repositories["ann/mbf"].commit({"notes.txt": b"mine"})
    made = push(finished, "ann/mbf", license="mit", public=True)
    assert made.private  # as it was: nobody made it public
    assert len(hub.repositories["ann/mbf"].commits) == 2 and hub.files("ann/mbf")["notes.txt"] == b"mine"


# --------------------------------------------------------------------------------------------------------- refusals


def test_a_licence_is_asked_for(finished, capsys):
    assert main(["push", str(finished), "ann/mbf"]) == 2
    assert "which licence do the weights have? Give --license ID" in capsys.readouterr().err
    for wrong in ("", "MIT", "my licence", "mit\nfoo: bar"):
        with pytest.raises(ConfigError, match=r"no identifier"):
            push(finished, "ann/mbf", license=wrong, dry_run=True)


def test_a_licence_that_the_hub_does_not_know_is_one_line(hub, finished):
    with pytest.raises(
        ConfigError, match=r"refuses the card: .license. must be one of .*; check --license; nothing was"
    ):
        push(finished, "ann/mbf", license="nonsense")
    assert hub.repositories["ann/mbf"].commits == []


@pytest.mark.parametrize("name", ["mbf", "ann/mbf/x", "hf:ann/mbf", "ann/m b", "../mbf", "ann/..", ""])
def test_what_is_no_repository_is_refused(finished, name):
    with pytest.raises(ConfigError, match=r"give OWNER/NAME"):
        push(finished, name, license="mit", dry_run=True)


def test_what_is_no_finished_model_is_refused(run, tmp_path, tiny_backbone):
    def refused(said, kind=CheckpointError):
        with pytest.raises(kind, match=said):
            push(run, "ann/mbf", license="mit", dry_run=True)

    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[:-9])
    refused(r"no safetensors file, or cut short")
    (run / "model.safetensors").unlink()
    refused(r"model.safetensors: is missing; restore it, or train again")
    (run / "result.json").unlink()
    refused(r"the training is not finished; continue it by `facebones resume")
    (run / "config.yaml").unlink()
    refused(r"no run; give the folder of a training")
    with pytest.raises(CheckpointError, match=r"nowhere: no run"):
        push(tmp_path / "nowhere", "ann/mbf", license="mit", dry_run=True)


def test_weights_that_change_while_they_are_read_are_refused(run, tmp_path, monkeypatch):
    from facebones.publishing import push as pushing

    def cut(network):
        path = run / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
        return 7

    monkeypatch.setattr(pushing, "count_macs", cut)  # the last before the file is read again
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: has changed while it was read, and nothing was publ"
    ):
        push(run, "ann/mbf", license="mit", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_are_refused(run):
    text = (run / "model.calibration.json").read_text()
    (run / "model.calibration.json").write_text(re.sub(r'"cllr": [\d.]+', '"cllr": NaN', text))
    with pytest.raises(DataError, match=r"model.calibration.json: a number in the results is not finite"):
        push(run, "ann/mbf", license="mit", dry_run=True)


def test_weights_that_are_not_finite_are_refused(run):
    from safetensors.torch import load, save

    content = (run / "model.safetensors").read_bytes()
    weights = load(content)
    weights["linear.bias"][0] = float("nan")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    (run / "model.safetensors").write_bytes(save(weights, header["__metadata__"]))
    with pytest.raises(CheckpointError, match=r"linear.bias holds values that are not finite"):
        push(run, "ann/mbf", license="mit", dry_run=True)


def test_thresholds_of_other_weights_are_refused(run, finished, tmp_path):
    content = json.loads((run / "model.calibration.json").read_text())
    content["model"]["weights_sha256"] = "0" * 64
    other = tmp_path / "other.calibration.json"
    other.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"made for other weights than model.safetensors"):
        push(run, "ann/mbf", license="mit", calibration=other, dry_run=True)
    with pytest.raises(DataError, match=r"none.json: no such file"):
        push(run, "ann/mbf", license="mit", calibration=tmp_path / "none.json", dry_run=True)
    damaged = json.loads((finished / "model.calibration.json").read_text()) | {"thresholds": [{"threshold": "high"}]}
    other.write_text(json.dumps(damaged))
    with pytest.raises(DataError, match=r"its thresholds are damaged"):
        push(run, "ann/mbf", license="mit", calibration=other, dry_run=True)


# ---------------------------------------------------------------------------------------------------------- the Hub


def test_without_a_token_nothing_is_sent(hub, finished, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        ConfigError, match=r"^no token of the Hugging Face Hub: log in by `hf auth login`, or set HF_TOKEN"
    ):
        push(finished, "ann/mbf", license="mit")
    assert not any(request.startswith("POST") for request in hub.requests)


@pytest.mark.parametrize(("token", "name"), [("hf_wrong", "ann/mbf"), (None, "bob/mbf")])
def test_a_token_that_may_not_write_is_one_line(hub, finished, monkeypatch, token, name):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(CheckpointError, match=rf"^hf:{name}: access refused \(40[13]\); log in") as caught:
        push(finished, name, license="mit")
    assert "\n" not in str(caught.value) and hub.repositories == {}


@pytest.mark.parametrize("part", ["/preupload/", "objects/batch", "/lfs/", "/commit/"])
def test_a_push_that_fails_publishes_nothing_and_can_be_repeated(hub, finished, part):
    hub.failing[part] = 503
    with pytest.raises(RunError, match=r"503.*nothing was published, and the new repository is empty$") as caught:
        push(finished, "ann/mbf", license="mit")
    assert "\n" not in str(caught.value) and hub.repositories["ann/mbf"].commits == []
    hub.failing.clear()
    push(finished, "ann/mbf", license="mit")
    assert hub.files("ann/mbf").keys() == FILES


def test_a_hub_that_does_not_answer_is_one_line(hub, finished, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"^hf:ann/mbf: the Hub cannot be reached: .*refused") as caught:
        push(finished, "ann/mbf", license="mit")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"^hf:ann/mbf: HF_HUB_OFFLINE forbids connections"):
        push(finished, "ann/mbf", license="mit")


def test_texts_from_files_are_no_markup(run):
    result = json.loads((run / "result.json").read_text())
    result["training_data"] = "a | b\n# <script>"
    (run / "result.json").write_text(json.dumps(result))
    card = push(run, "ann/mbf", license="mit", dry_run=True).card
    assert not re.search(r"^# <script>|^<script>", card, re.MULTILINE) and r"a \| b # \<script\>" in card
