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
from facebones.training.advice import CORRELATION, Advice, norm_sharpness_correlation, note_on_sgd, sharpness
from facebones.training.run import resume, train
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


LINES, EVERY = 90, 50  # log lines of a training of 4,500 steps, and steps between two
BATCH, PEOPLE = 8, 2000


def notes_of(correlations, *, batch_size=BATCH, identities=PEOPLE):
    """For each line, the notes of a training with these mean correlations in its lines."""
    advice = Advice(steps=EVERY * len(correlations), batch_size=batch_size, accumulation_steps=1, identities=identities)
    return [
        advice.notes({CORRELATION: value}, before=EVERY * line, counted=EVERY)
        for line, value in enumerate(correlations)
    ]


@pytest.mark.parametrize("identities", [PEOPLE, 10**9])
def test_fewer_than_5_percent_of_trainings_without_a_correlation_get_the_note(identities):
    """The correlation of 4 independent normal pairs is uniform; that of the training set's people adds to all alike."""
    generator, trainings = np.random.default_rng(0), 3000
    of_steps = 2 * generator.random((trainings, LINES, EVERY), dtype=np.float32) - 1
    of_people = generator.normal(scale=identities**-0.5, size=(trainings, 1))
    lines = of_steps.mean(axis=2) + of_people
    said = [any(notes_of(list(line), batch_size=4, identities=identities)) for line in lines]
    assert 0.02 < np.mean(said) < 0.05  # a look at every instant would give 4.6 %


def test_a_correlation_is_judged_in_the_second_half_only_and_noted_once():
    found = notes_of([-0.2] * LINES)
    lines = [line for line, notes in enumerate(found) if notes]
    assert len(lines) == 1 and LINES // 2 <= lines[0] < LINES * 0.7
    (note,) = found[lines[0]]
    images = (lines[0] + 1 - LINES // 2) * EVERY * BATCH
    assert "adaface" in note and f"(correlation -0.2 over {images} images)" in note
    assert not any(notes_of([-0.9] * (LINES // 2) + [0.0] * (LINES // 2)))  # of the first half nothing counts


@pytest.mark.parametrize(
    ("correlation", "batch_size", "identities", "said"),
    [
        (-0.06, BATCH, PEOPLE, 1),  # 2 standard errors: 2 sqrt(1 / (2250 * 7) + 1 / 2000) = 0.0475
        (-0.04, BATCH, PEOPLE, 0),
        (-0.04, BATCH, 100 * PEOPLE, 1),  # 0.0165
        (-0.06, BATCH, PEOPLE // 2, 0),  # 0.0652
        (-0.06, 2, PEOPLE, 0),  # 0.0615: in a batch of two a correlation is 1 or -1
        (0.2, BATCH, PEOPLE, 0),
        (math.nan, BATCH, PEOPLE, 0),
    ],
)
def test_the_bound_follows_batches_and_people(correlation, batch_size, identities, said):
    found = notes_of([correlation] * LINES, batch_size=batch_size, identities=identities)
    assert sum(map(len, found)) == said


def test_a_resumed_run_continues_the_sum_and_repeats_no_note():
    lines = [
        {"kind": "train", "step": EVERY * (line + 1), "skipped_steps": 0, "head": {CORRELATION: -0.2, **OUTNUMBERED}}
        for line in range(LINES)
    ]
    (first,) = [line for line, notes in enumerate(notes_of([-0.2] * LINES)) if notes]
    for resumed_at in (LINES // 2, first, first + 1, LINES - 1):
        advice = Advice(steps=EVERY * LINES, batch_size=BATCH, accumulation_steps=1, identities=PEOPLE)
        advice.replay([{"kind": "validation"}, 3, *lines[:resumed_at]], EVERY * resumed_at)
        said = [
            line
            for line in range(resumed_at, LINES)
            for _ in advice.notes(lines[line]["head"], before=EVERY * line, counted=EVERY)
        ]
        assert said == ([first] if resumed_at <= first else [])


@pytest.mark.parametrize(
    "changed",
    [
        {"step": 10**400},
        {"step": -1},
        {"step": "7"},
        {"skipped_steps": 10**400},
        {"skipped_steps": -1},
        {"head": [1]},
        {"head": {CORRELATION: 10**400}},
        {"head": {CORRELATION: "x", "own_class": None}},
        {"head": {CORRELATION: math.inf, "own_class": 1e-300, "other_classes": math.inf}},
    ],
    ids=str,
)
def test_a_forged_line_of_the_log_is_passed_over(changed):
    advice = Advice(steps=100, batch_size=BATCH, accumulation_steps=1, identities=PEOPLE)
    line = {"kind": "train", "step": 60, "skipped_steps": 0, "head": {CORRELATION: -0.9}} | changed
    advice.replay([line], 90)
    assert len(advice.notes({CORRELATION: -0.9}, before=80, counted=10)) == 1


def test_lines_without_a_correlation_are_passed_over():
    found = notes_of([-0.2, math.nan] * (LINES // 2))
    assert sum(map(len, found)) == 1


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
    advice = Advice(steps=100, batch_size=8, accumulation_steps=1, identities=50)
    notes = [note for head in intervals for note in advice.notes(head, before=0, counted=10)]
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


@pytest.mark.parametrize("name", ["adaface", "uce", "magface", "arcface", "combined"])
def test_the_log_has_what_is_measured_and_the_note_follows_it(name, tmp_path, tiny_recipe, monkeypatch, capsys):
    monkeypatch.setattr("facebones.training.advice.STANDARD_ERRORS", 0.2)
    measured = {CORRELATION: torch.tensor(-0.5)}
    monkeypatch.setattr("facebones.training.step.norm_sharpness_correlation", lambda *_: measured)
    train(tiny_recipe(**{"head.name": name}), tmp_path / "run", "cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    heads = [line["head"] for line in lines if line["kind"] == "train"]
    own = {"adaface": {CORRELATION}, "uce": {"own_class", "other_classes"}}.get(name, set())
    assert heads and all(head.keys() == {"norm", "norm_deviation"} | own for head in heads)
    output = capsys.readouterr()
    assert (output.out + output.err).count("adaface takes a large norm") == (name == "adaface")


def test_a_run_that_is_resumed_after_the_note_does_not_repeat_it(tmp_path, tiny_recipe, monkeypatch, capsys):
    monkeypatch.setattr("facebones.training.advice.STANDARD_ERRORS", 0.2)
    measured = {CORRELATION: torch.tensor(-0.5)}
    monkeypatch.setattr("facebones.training.step.norm_sharpness_correlation", lambda *_: measured)
    original = Trainer.train_step

    def step(self, batches):
        if self.step == 26:
            raise KeyboardInterrupt
        original(self, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", step)
        train(tiny_recipe(**{"head.name": "adaface"}), tmp_path / "run", "cpu")
    assert capsys.readouterr().err.count("adaface takes a large norm") == 1
    resume(tmp_path / "run", "cpu")
    assert "adaface takes a large norm" not in capsys.readouterr().err


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
