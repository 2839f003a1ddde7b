"""The main job on real faces, small enough for a test: the loss falls, and the weights verify what training said."""

import json

import pytest

from facebones.cli.main import main
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.run_folder import RunFolder, read_metrics

pytestmark = [pytest.mark.faces, pytest.mark.slow]


def test_an_epoch_on_real_faces_lowers_the_loss_and_verifies_above_chance(real_faces, tmp_path, capsys):
    lfw = read_pairs(real_faces / "celeba_cfp" / "lfw.bin")
    part = range(0, len(lfw.is_same), 10)  # of each fold: the first 600 pairs alone would fill folds with one kind
    images = [lfw.images[2 * pair + side] for pair in part for side in (0, 1)]
    write_pairs(tmp_path / "lfw_part.bin", images, [lfw.is_same[pair] for pair in part])
    words = [
        "train", "small_data", "--data", real_faces / "celeba_cfp", "--output", tmp_path / "run", "--device", "cpu",
        "--backbone", "shufflefacenet_0_5", "--training.epochs", "1", "--workers", "1", "--log.every", "20",
        "--validation.sets", tmp_path / "lfw_part.bin",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    losses = [line["loss"] for line in read_metrics(RunFolder(tmp_path / "run").metrics) if line["kind"] == "train"]
    assert losses[-1] < losses[0] - 1
    final = json.loads((tmp_path / "run" / "result.json").read_text())["final"][0]
    assert final["accuracy"] > 0.55
