"""What a training measures of its head, and when it says something about it."""

import json
import math

import cv2
import numpy as np
import pytest
import torch

from facebones.backbones import create_backbone
from facebones.backbones.facelivt import START_FOR_SGD, facelivtv2_xs
from facebones.heads.registry import create_head
from facebones.recipe import head_config
from facebones.system.distributed import ALONE
from facebones.training.advice import (
    CORRELATION,
    ENOUGH_IMAGES,
    Advice,
    norm_sharpness_correlation,
    note_on_sgd,
    sharpness,
)
from facebones.training.run import train
from facebones.training.trainer import Trainer

OUTNUMBERED, BALANCED = {"own_class": 0.01, "other_classes": 2.0}, {"own_class": 0.3, "other_classes": 2.0}


def as_input(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_sharpness_falls_with_every_blur_and_with_every_loss_of_resolution():
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    blurred = [
        image,
        *(cv2.GaussianBlur(image, (0, 0), deviation) for deviation in (0.5, 1, 2, 4)),
    ]  # then rounding to 8 bits
    sizes = [image, *(cv2.resize(cv2.resize(image, (n, n)), (112, 112)) for n in (90, 56, 30, 20))]
    for images in (blurred, sizes):
        assert (sharpness(as_input(images)).diff() < 0).all()
    assert sharpness(torch.zeros(2, 3, 112, 112)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_correlation_is_pearsons(sign, dtype):
    x = torch.randn(32, 3, 16, 16) * torch.linspace(0.01, 1, 32)[:, None, None, None]
    embedding = torch.nn.functional.normalize(torch.randn(32, 8))
    embedding = (embedding * (20 + sign * sharpness(x) + torch.randn(32))[:, None]).to(dtype)
    found = norm_sharpness_correlation(embedding, x, ALONE, 32)[CORRELATION].item()
    expected = np.corrcoef(embedding.float().norm(dim=1).numpy(), sharpness(x).numpy())[0, 1]
    assert found == pytest.approx(expected, abs=1e-4) and found * sign > 0.3


def test_equal_norms_have_no_correlation_and_no_nan():
    x = torch.randn(4, 3, 16, 16)
    assert abs(norm_sharpness_correlation(torch.ones(4, 8), x, ALONE, 4)[CORRELATION].item()) < 1e-3


@pytest.mark.parametrize(
    ("correlations", "images", "said"),
    [
        ([-0.2], ENOUGH_IMAGES, 1),
        ([-0.2], ENOUGH_IMAGES - 1, 0),
        ([-0.2] * 4, ENOUGH_IMAGES // 2, 1),
        ([-0.02] * 4, ENOUGH_IMAGES, 0),  # within two standard errors of 0
        ([0.3, 0.2], ENOUGH_IMAGES, 0),
        ([0.3, -0.1] * 3, ENOUGH_IMAGES // 2, 0),
        ([math.nan, -0.2], ENOUGH_IMAGES, 1),
        ([math.nan] * 3, ENOUGH_IMAGES, 0),
    ],
)
def test_a_negative_correlation_over_enough_images_is_noted_once(correlations, images, said):
    advice = Advice()
    notes = [note for value in correlations for note in advice.notes({CORRELATION: value}, images)]
    assert len(notes) == said
    assert all("adaface" in note and "correlation -0.20" in note for note in notes)


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([OUTNUMBERED], 1),
        ([OUTNUMBERED, OUTNUMBERED], 1),
        ([BALANCED, OUTNUMBERED], 1),
        ([BALANCED], 0),
        ([{"own_class": 30.0, "other_classes": 0.1}], 0),  # how a training begins
        ([{"norm": 20.0}, {}], 0),
    ],
)
def test_other_classes_that_outweigh_the_true_one_are_noted_once(intervals, said):
    advice = Advice()
    notes = [note for head in intervals for note in advice.notes(head, 100)]
    assert len(notes) == said and all("200" not in note and "0.01" in note for note in notes)


@pytest.mark.parametrize("name", ["uce", "sphereface2"])
def test_the_parts_of_a_sum_over_classes_make_up_the_loss(name):
    torch.manual_seed(0)
    options = head_config(name).options
    head = create_head(name, options, 10, 4)
    embedding, label = torch.randn(6, 4), torch.tensor([1, 9, -1, 3, 3, 0])
    output = head(embedding, label)
    parts = output.metrics["own_class"], output.metrics["other_classes"]
    assert sum(parts).item() == pytest.approx(output.loss.item(), rel=1e-5) and min(parts) > 0
    logits, column = head.logits(embedding, label)
    own = [math.log1p(math.exp(-logits[row, column[row]].item())) for row in range(6) if label[row] >= 0]
    assert parts[0].item() == pytest.approx(head.own * sum(own) / 5, rel=1e-5)
    shards = [create_head(name, options, 10, 4, shard=shard) for shard in (range(3), range(3, 9), range(9, 10))]
    for shard in shards:
        shard.centres.data.copy_(head.centres.data[shard.shard.start : shard.shard.stop])
    total = sum(shard.own_part(*shard.logits(embedding, label)) for shard in shards)
    assert total.item() / 5 == pytest.approx(parts[0].item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("norm", [0.0, 1e-4, 1.0, 10.0, 110.0, 1e4, 1e5])
def test_magface_in_fp16_is_finite_where_arcface_is(norm, scale):
    """Why there is no note on fp16: what it computes with norms is in float32."""
    finite = {}
    for name in ("arcface", "magface"):
        torch.manual_seed(0)
        head = create_head(name, head_config(name).options, 10, 64)
        direction = torch.nn.functional.normalize(torch.randn(128, 64))
        embedding = (direction * norm).half().requires_grad_()
        loss = head(embedding, torch.arange(128) % 10).loss
        (loss * scale).backward()
        finite[name] = bool(loss.isfinite()), bool(embedding.grad.isfinite().all())
    assert finite["magface"][0] and finite["magface"] >= finite["arcface"]


@pytest.mark.parametrize("name", ["adaface", "uce", "magface"])
def test_the_log_has_what_is_measured_and_the_note_follows_it(name, tmp_path, tiny_recipe, monkeypatch, capsys):
    monkeypatch.setattr("facebones.training.advice.ENOUGH_IMAGES", 20)
    measured = {CORRELATION: torch.tensor(-0.5)}
    monkeypatch.setattr("facebones.training.step.norm_sharpness_correlation", lambda *_: measured)
    train(tiny_recipe(**{"head.name": name}), tmp_path / "run", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    heads = [line["head"] for line in lines if line["kind"] == "train"]
    own = {"adaface": {CORRELATION}, "uce": {"own_class", "other_classes"}, "magface": set()}[name]
    assert heads and all(head.keys() == {"norm", "norm_deviation"} | own for head in heads)
    output = capsys.readouterr()
    assert (output.out + output.err).count("adaface takes a large norm") == (name == "adaface")


def test_sgd_is_noted_for_a_network_of_which_it_leaves_a_part_as_it_is():
    published = create_backbone("facelivtv2_xs", 8)
    assert note_on_sgd(published, "sgd").startswith("note: SGD leaves the token mixing of facelivtv2_xs as it starts")
    assert note_on_sgd(published, "adamw") == ""
    others = (facelivtv2_xs(8, 0.0, START_FOR_SGD), create_backbone("facelivt_s", 8), torch.nn.Linear(2, 2))
    assert [note_on_sgd(network, "sgd") for network in others] == [""] * 3
    for name, parameter in published.named_parameters():
        if name.endswith((".ls", ".alpha")):
            torch.nn.init.constant_(parameter, 0.1)  # as in trained weights
    assert note_on_sgd(published, "sgd") == ""


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_begins_with_that_note(optimizer, tmp_path, tiny_recipe, monkeypatch, capsys):
    def stop(self, batches):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_step", stop)
    recipe = tiny_recipe(**{"backbone.name": "facelivtv2_xs", "optimizer.name": optimizer})
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", "cpu")
    assert ("note: SGD leaves the token mixing" in capsys.readouterr().err) == (optimizer == "sgd")
