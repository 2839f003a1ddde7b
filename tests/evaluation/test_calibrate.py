"""`calibrate`: thresholds of a model, on sets, kept beside its weights."""

import json

import numpy as np
import pytest
import torch

import facebones
from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.cli.main import main
from facebones.errors import ConfigError, DataError
from facebones.evaluation.folder import FolderProtocol
from facebones.evaluation.models import load_model
from facebones.reporting.load import load_results
from facebones.run_folder import RunFolder


@pytest.fixture
def run(tmp_path, tiny_backbone):
    torch.manual_seed(0)
    card = {"backbone": tiny_backbone, "embedding_size": 16}
    save_weights(RunFolder(tmp_path / "run"), create_backbone(tiny_backbone, 16), card)
    return tmp_path / "run"


def test_thresholds_are_kept_beside_the_weights(run, small_data, capsys):
    line = ["calibrate", "--model", str(run), "--data", str(small_data / "tiny.bin"), "--fmr", "0.5", "0.4"]
    assert main([*line, "--output", str(run)]) == 0
    said = capsys.readouterr().out
    assert "FMR at most" in said and "log-likelihood ratio" in said and "is not known" in said
    model = load_model(run, device="cpu")
    content = model.calibration
    assert content["sets"][0]["set"] == "tiny" and content["flip"] is True and content["refused"] == {}
    low, high = content["thresholds"]
    assert (low["false_match_rate"], high["false_match_rate"]) == (0.5, 0.4) and low["threshold"] <= high["threshold"]
    assert json.loads((run / "model.calibration.json").read_text()) == content
    # The scores are those of `match`.
    from facebones.data.pair_bins import read_pairs

    pairs = read_pairs(small_data / "tiny.bin")
    scores = [model.match(*pairs.images[2 * k : 2 * k + 2], flip=True) for k in np.flatnonzero(~pairs.is_same)]
    assert sum(score >= low["threshold"] for score in scores) == low["accepted"]


def test_thresholds_of_other_weights_are_refused(run, small_data, tiny_backbone):
    facebones.calibrate(run, small_data / "tiny.bin", false_match_rates=[0.5], output=run, device="cpu")
    assert [len(table.rows) for table in load_results(run).trust] == [1]
    card = {"backbone": tiny_backbone, "embedding_size": 16}
    save_weights(RunFolder(run), create_backbone(tiny_backbone, 16), card)
    with pytest.raises(DataError, match=r"was made for other weights than model.safetensors now holds; make it again"):
        _ = load_model(run, device="cpu").calibration


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 2, "model": {}}', b"[" * 100_000, b"\xff\xfe"])
def test_a_broken_file_of_thresholds_is_one_line(run, content):
    (run / "model.calibration.json").write_bytes(content)
    with pytest.raises(DataError, match=r"model\.calibration\.json: .*make it again"):
        _ = load_model(run, device="cpu").calibration


def test_a_model_without_thresholds_has_none(run, tiny_backbone):
    assert load_model(run, device="cpu").calibration is None
    assert load_model(tiny_backbone, device="cpu").calibration is None


def test_refused_targets_end_with_their_reason_and_the_others_are_kept(run, small_data, tmp_path, capsys):
    line = [
        "calibrate",
        "--model",
        str(run),
        "--data",
        str(small_data / "tiny.bin"),
        "--output",
        str(tmp_path / "t.json"),
    ]
    assert main([*line, "--fmr", "0.5", "0.001"]) == 2
    assert "a false match rate of 0.001:" in capsys.readouterr().err
    content = json.loads((tmp_path / "t.json").read_text())
    assert len(content["thresholds"]) == 1 and list(content["refused"]) == ["0.001"]
    (tmp_path / "t.json").unlink()
    assert main([*line, "--fmr", "0.001"]) == 2 and not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--fmr", "0"], "false match rate 0: is not between 0 and 1"),
        (["--fmr", "1e-3", "7"], "false match rate 7: is not between 0 and 1"),
        (["--confidence", "1"], "confidence 1: is not between 0 and 1; give one such as 0.95"),
        (["--output", "elsewhere"], "neither the model nor a .json file"),
        (["--output", "missing/t.json"], "missing"),
    ],
)
def test_wrong_options_are_one_line(run, small_data, monkeypatch, tmp_path, capsys, more, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "missing").touch()
    line = ["calibrate", "--model", str(run), "--data", str(small_data / "tiny.bin"), "--fmr", "0.5"]
    assert main([*line, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in error


def test_sets_are_pooled_and_people_of_a_folder_known(run, small_data, capsys):
    images = small_data.parent / "images"
    content = facebones.calibrate(
        run, [FolderProtocol(images), str(small_data / "tiny.bin")], false_match_rates=[0.5], device="cpu"
    )
    folder, pairs = content["sets"]
    assert folder["people"] == 4 and pairs["people"] is None
    (threshold,) = content["thresholds"]
    assert threshold["impostors"] == folder["impostors"] + pairs["impostors"] and threshold["design_effect"] > 1
    line = ["calibrate", "--model", str(run), "--data", f"folder={images}", "--fmr", "0.6", "--json"]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["sets"] == [folder]


def test_sets_that_share_images_are_refused(run, small_data, tmp_path):
    """Otherwise the pairs of a set that is given fifteen times would promise a fifteenth of the rate."""
    pairs = small_data / "tiny.bin"
    (tmp_path / "again.bin").write_bytes(pairs.read_bytes())
    for twice in ([pairs, pairs], [pairs, tmp_path / "again.bin"]):
        with pytest.raises(
            DataError, match=r"\.bin: shares \d+ images with .*tiny\.bin, whose pairs would count twice"
        ):
            facebones.calibrate(run, twice, false_match_rates=[0.5], device="cpu")


def test_a_folder_of_people_without_its_protocol_is_named(run, small_data, tmp_path):
    images = small_data.parent / "images"
    with pytest.raises(DataError, match=rf"no evaluation set of the protocols .*such as folder={images}"):
        facebones.calibrate(run, images, device="cpu")
    with pytest.raises(DataError, match=r"all images are of one person, so no pair is of two"):
        facebones.calibrate(run, f"folder={next(path for path in images.iterdir() if path.is_dir())}", device="cpu")


def test_a_set_without_pairs_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="no evaluation set"):
        facebones.calibrate(run, [], device="cpu")
    with pytest.raises(ConfigError, match="false_match_rates: none"):
        facebones.calibrate(run, "lfw.bin", false_match_rates=[], device="cpu")
